//! What the operator does to an engine, and what the agent in the guest tells it.
//!
//! In: commands, marks, messages. Out: their effect, or why there is none.
//! Must not know: sockets, frames.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use ext4_layout::{Kind, Layout, LayoutMap};
use pipeline::control::RuleInfo;
use pipeline::event::{LayoutChange, RulesText, SpanRecord};
use pipeline::shadow::{Shadow, ShadowStats};
use pipeline::{Input, RuleSet, RulesError, Stats, UnknownRule, What};
use thiserror::Error;

use super::Engine;
use crate::sink::Subscription;
use crate::storage::StorageError;

/// Ranges in one answer: some megabytes of JSON.
const RANGES_MAX: usize = 1 << 15;

/// Why a range of the layout cannot be told.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    /// Past the end of the disk.
    #[error("sectors {sector} to {} are not on the disk, which has {device_sectors} sectors",
        sector.saturating_add(*sectors).saturating_sub(1))]
    OffDisk {
        /// First 512-byte sector.
        sector: u64,
        /// How many.
        sectors: u64,
        /// 512-byte sectors of the disk.
        device_sectors: u64,
    },
    /// Too fragmented for one answer.
    #[error("more than {RANGES_MAX} ranges: ask for fewer sectors at once")]
    TooMany,
}

impl Engine {
    /// Replaces the rules; what the old ones had parked is let go. Nothing changes on an error.
    ///
    /// # Errors
    /// The first mistake in the rules.
    pub fn load(&self, text: &RulesText) -> Result<(), RulesError> {
        let rules = RuleSet::from_text(text)?;
        self.load_rules(rules);
        Ok(())
    }

    /// The same, for rules that were checked before.
    pub fn load_rules(&self, rules: RuleSet) {
        let mut guard = self.state();
        let now = guard.now(self.clock);
        let state = &mut *guard;
        state.watch = Arc::new(rules.filter());
        state.core.load(now, rules, &mut state.outbox);
        if let Some(shadow) = &mut state.shadow {
            shadow.tell_anew();
        }
        // Before the new filter is seen: a request that it wants finds its classes.
        self.keep_layout(state, now);
        self.carry_out(guard, None);
    }

    /// Name of the rules file and its rules, in words and with their counts.
    pub fn list(&self) -> (String, Vec<RuleInfo>) {
        let state = self.state();
        (state.core.rules().text().file.clone(), state.core.list())
    }

    /// Counts and latencies of the rules.
    pub fn stats(&self) -> Stats {
        let state = self.state();
        let layout_bytes = state.layout.as_ref().map_or(0, Layout::heap_bytes) as u64;
        let shadow = state.shadow.as_ref().map(Shadow::stats);
        let shadow = shadow.map(|stats| ShadowStats { layout_bytes, ..stats });
        Stats { shadow, kernel: state.follower.stats(), ..state.core.stats() }
    }

    /// Arms or disarms a rule.
    ///
    /// # Errors
    /// No rule has that name.
    pub fn arm(&self, rule: &str, armed: bool) -> Result<(), UnknownRule> {
        self.state().core.find_rule(rule)?;
        self.input(Input::Arm { rule, armed });
        Ok(())
    }

    /// Lets go what a rule has parked, or every rule; gives how many requests.
    ///
    /// # Errors
    /// No rule has that name.
    pub fn release(&self, rule: Option<&str>) -> Result<u64, UnknownRule> {
        if let Some(name) = rule {
            self.state().core.find_rule(name)?;
        }
        Ok(self.input(Input::Release { rule }))
    }

    /// The agent in the guest passed a mark.
    pub fn agent_mark(&self, name: &str, guest_ns: u64) {
        self.input(Input::AgentMark { name, guest_ns });
    }

    /// Puts a message of the agent among the events.
    pub fn agent_message(&self, message: serde_json::Value) {
        self.note(What::Agent { message });
    }

    /// The classes of a range of the disk, in disk order, adjacent equal ones merged.
    ///
    /// # Errors
    /// The range is not on the disk, or too fragmented.
    pub fn layout(&self, sector: u64, sectors: u64) -> Result<Vec<SpanRecord>, LayoutError> {
        let map = self.ask_layout();
        let device_sectors = map.device_sectors();
        if sector.checked_add(sectors).is_none_or(|end| end > device_sectors) {
            return Err(LayoutError::OffDisk { sector, sectors, device_sectors });
        }
        let mut ranges = Vec::new();
        let mut too_many = false;
        map.classify(sector, sectors, &mut |span| {
            if ranges.len() < RANGES_MAX {
                ranges.push(SpanRecord::from(span));
            } else {
                too_many = true;
            }
        });
        if too_many { Err(LayoutError::TooMany) } else { Ok(ranges) }
    }

    /// How many 512-byte sectors of the disk are of each class.
    pub fn layout_summary(&self) -> BTreeMap<Kind, u64> {
        let map = self.ask_layout();
        let mut sectors = BTreeMap::new();
        map.classify(0, map.device_sectors(), &mut |span| {
            *sectors.entry(span.class.kind()).or_default() += span.sectors;
        });
        sectors
    }

    /// The map of now; from then on it is kept current.
    fn ask_layout(&self) -> Arc<LayoutMap> {
        let mut guard = self.state();
        let now = guard.now(self.clock);
        let state = &mut *guard;
        state.layout_asked = true;
        self.keep_layout(state, now);
        let map = state.map.clone();
        self.carry_out(guard, None);
        // Just opened, and dropped by nobody while it is asked for; an empty one if ever not.
        map.unwrap_or_else(|| ext4_layout::Layout::blank(0).map())
    }

    /// A new subscriber. Its first line says where the stream begins.
    ///
    /// # Errors
    /// When the system gives no eventfd.
    pub fn subscribe(&self) -> io::Result<Arc<Subscription>> {
        let mut guard = self.state();
        let now = guard.now(self.clock);
        let state = &mut *guard;
        let subscription = self.sinks.subscribe(&state.core.header(now))?;
        state.set_logging(true);
        self.publish(state);
        self.keep_layout(state, now);
        self.carry_out(guard, None);
        Ok(subscription)
    }

    /// The subscriber is gone; without any, and without a log, nobody makes events any more.
    pub fn unsubscribe(&self, subscription: &Arc<Subscription>) {
        let mut guard = self.state();
        let now = guard.now(self.clock);
        self.sinks.unsubscribe(subscription);
        let wanted = self.sinks.wanted();
        let state = &mut *guard;
        if !wanted && state.logging {
            state.set_logging(false);
            self.publish(state);
            self.keep_layout(state, now);
        }
        self.carry_out(guard, None);
    }

    /// Starts the event log, at the start of everything.
    pub(super) fn begin_log(&self) {
        let mut guard = self.state();
        let now = guard.now(self.clock);
        let state = &mut *guard;
        self.sinks.push(&mut vec![state.core.header(now)]);
        state.set_logging(true);
        self.publish(state);
        self.keep_layout(state, now);
        self.carry_out(guard, None);
    }

    /// Waits until everything that happened so far was written and offered to the subscribers.
    pub fn settle_events(&self) {
        self.sinks.settle();
    }

    /// How often a queue thread had to wait for the event log to be written.
    pub fn log_stalls(&self) -> u64 {
        self.sinks.stalls()
    }

    /// Puts the storage back to its state at the start; the layout follows.
    ///
    /// # Errors
    /// The storage cannot.
    pub fn reset(&self) -> Result<(), StorageError> {
        let mut guard = self.state();
        self.storage.reset()?;
        let now = guard.now(self.clock);
        let state = &mut *guard;
        if state.layout.is_some() {
            self.open_layout(state, now, LayoutChange::Reopened);
        }
        self.carry_out(guard, None);
        Ok(())
    }

    /// The disk has another size; the layout follows.
    pub fn resized(&self) {
        let mut guard = self.state();
        let now = guard.now(self.clock);
        let state = &mut *guard;
        if state.layout.is_some() {
            self.open_layout(state, now, LayoutChange::Reopened);
        }
        self.carry_out(guard, None);
    }

    fn note(&self, what: What) {
        let mut guard = self.state();
        let now = guard.now(self.clock);
        let state = &mut *guard;
        state.core.note(now, what, &mut state.outbox);
        self.carry_out(guard, None);
    }
}
