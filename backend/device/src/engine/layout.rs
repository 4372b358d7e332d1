//! The engine's copy of the disk's layout: when it is kept, how it follows the disk.
//!
//! In: writes that arrived and completed, storage to read from. Out: a new map in the view.
//! Must not know: what rules make of it.

use ext4_layout::{Change, Layout, OpenError, ReadAt, ReadError};
use pipeline::event::{LayoutChange, bytes_event};
use pipeline::{Nanos, What};

use super::Engine;
use super::state::{NoExt4, State};
use crate::storage::{SECTOR_BYTES, Storage};

/// A storage as the layout parser reads it.
struct Reader<'a> {
    storage: &'a dyn Storage,
    /// What was read, for the event log.
    read: Option<Vec<(u64, Vec<u8>)>>,
}

impl ReadAt for Reader<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let length = buf.len();
        self.storage.read_at(offset, buf).map_err(|errno| ReadError {
            offset,
            length,
            source: Box::new(errno),
        })?;
        if let Some(read) = &mut self.read {
            read.push((offset, buf.to_vec()));
        }
        Ok(())
    }
}

impl Engine {
    /// Opens or drops the layout, as somebody or nobody needs it now.
    pub(super) fn keep_layout(&self, state: &mut State, now: Nanos) {
        let by_class = state.core.rules().needs_classes();
        let needed = by_class || state.logging || state.layout_asked || state.shadow.is_some();
        if needed && state.layout.is_none() {
            self.open_layout(state, now, LayoutChange::Opened);
        } else if !needed && state.layout.is_some() {
            state.layout = None;
            state.map = None;
            self.publish(state);
        }
        if let Some(no_ext4) = &mut state.no_ext4
            && by_class
            && !no_ext4.reported
        {
            no_ext4.reported = true;
            tracing::warn!(
                "the rules go by class, but there is no ext4 to be read on the disk ({}); \
                 until the guest makes one, every block is `unknown`",
                no_ext4.why
            );
        }
    }

    /// Reads the layout from storage; a disk without ext4 has a blank one.
    pub(super) fn open_layout(&self, state: &mut State, now: Nanos, how: LayoutChange) {
        let device_bytes = self.storage.capacity_sectors().saturating_mul(SECTOR_BYTES);
        // The same layout again: it remembers partitions, and how often the guest made it be read.
        let mut layout = state.layout.take().unwrap_or_else(|| Layout::blank(device_bytes));
        if state.shadow.is_some() {
            layout.keep_commits();
        }
        let read = self.records(state).then(Vec::new);
        let mut reader = Reader { storage: &*self.storage, read };
        let opened = layout.reopen(&mut reader, device_bytes);
        for (offset, bytes) in reader.read.into_iter().flatten() {
            state.core.note(now, bytes_event(None, offset, &bytes), &mut state.outbox);
        }
        let change = match opened {
            Ok(()) => {
                state.no_ext4 = None;
                how
            }
            Err(error) => {
                let reported = state.no_ext4.as_ref().is_some_and(|before| before.reported);
                state.no_ext4 = Some(NoExt4 { why: chain(&error), reported });
                LayoutChange::Lost
            }
        };
        state.map = Some(layout.map());
        if let Some(shadow) = &mut state.shadow {
            shadow.opened(&layout);
        }
        state.layout = Some(layout);
        state.reopen_due = false;
        self.publish(state);
        let detail = state.no_ext4.as_ref().map(|no_ext4| no_ext4.why.clone());
        let device_bytes = self.records(state).then_some(device_bytes);
        let what = What::Layout { change, detail, device_bytes };
        state.core.note(now, what, &mut state.outbox);
    }

    pub(super) fn write_arrived(&self, state: &mut State, now: Nanos, sector: u64, bytes: &[u8]) {
        if let Some(layout) = &mut state.layout {
            let change = layout.write_arrived(sector, bytes);
            // Storage does not have the bytes yet: a reopening waits until it does.
            state.reopen_due |= change == Change::Reopen;
            self.follow(state, now, change);
        }
    }

    pub(super) fn write_done(&self, state: &mut State, now: Nanos, sector: u64, bytes: &[u8]) {
        if let Some(layout) = &mut state.layout {
            let change = layout.write_done(sector, bytes);
            state.reopen_due |= change == Change::Reopen;
            self.follow(state, now, change);
            self.reopen_if_due(state, now);
        }
    }

    pub(super) fn zeroed(&self, state: &mut State, now: Nanos, sector: u64, sectors: u64) {
        if let Some(layout) = &mut state.layout {
            let change = layout.zeroed(sector, sectors);
            state.reopen_due |= change == Change::Reopen;
            self.follow(state, now, change);
            self.reopen_if_due(state, now);
        }
    }

    fn follow(&self, state: &mut State, now: Nanos, change: Change) {
        if change != Change::Map {
            return;
        }
        state.map = state.layout.as_ref().map(Layout::map);
        self.publish(state);
        let change = LayoutChange::Changed;
        let what = What::Layout { change, detail: None, device_bytes: None };
        state.core.note(now, what, &mut state.outbox);
    }

    fn reopen_if_due(&self, state: &mut State, now: Nanos) {
        if state.reopen_due {
            self.open_layout(state, now, LayoutChange::Reopened);
        }
    }
}

/// The error and what it comes from, in one line.
fn chain(error: &OpenError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
