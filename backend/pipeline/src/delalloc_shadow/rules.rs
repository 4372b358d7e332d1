//! The rules, each where the event that can break it is taken in.
//!
//! In: an event of a probe, the inode as it was. Out: the inode as it is, findings.
//! Must not know: how events arrive.
//!
//! A section under `i_data_sem` is over when its thread returns from a function that gives the
//! semaphore up, or when another thread changes the same inode, which it can only do with the
//! semaphore. The shrinker and the inode's end need none, and close nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use delalloc::Invariant;

use super::inode::{Cell, Change, ES_SHIFT, Inode, Status};
use super::threads::Call;
use super::{Actor, DelallocFinding, DelallocShadow, block, unless_same};
use crate::kernel::KernelEvent;

/// Bytes of a page on x86-64: delayed blocks reach to the end of the last page.
pub(super) const PAGE_BYTES: u64 = 4096;
/// SEEK_DATA found nothing: -ENXIO.
const NO_DATA: i64 = -6;
/// `S_IFMT` and `S_IFREG` of `i_mode`.
const KIND: u64 = 0o170_000;
const REGULAR: u64 = 0o100_000;

impl DelallocShadow {
    /// `__es_insert_extent`, before it changes anything.
    pub(super) fn es_insert(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let (lblk, len) = extent(event)?;
        let pblk = event.field("pblk")?;
        let status = Status::of(pblk >> ES_SHIFT);
        let by = self.under_lock(event, address);
        let thread = self.threads.of(event.tid);
        thread.last = Some((address, lblk, len));
        let writes_back = thread.writes_back == thread.last;
        let cell = Cell {
            status,
            shift: (pblk & !(31 << ES_SHIFT)).wrapping_sub(u64::from(lblk)),
            by: Arc::clone(&by),
        };
        let findings = self.with(address, |inode, context| {
            let mut findings = Vec::new();
            let ino = inode.ino;
            let find =
                |rule, seen: String| DelallocFinding::new(rule, ino, &by, seen).at(lblk, len);
            if !status.legal(context.exclusive) {
                findings.push(find(Invariant::A8, format!("extent status {status}")));
            }
            let mut on_disk = inode.disk.within(lblk, len);
            if status.mapped() {
                let moved = |(at, _, old): &(u32, u32, &Cell)| old.pblk(*at) != cell.pblk(*at);
                if let Some((at, len, old)) = on_disk.find(moved) {
                    let (is, was) = (cell.pblk(at), old.pblk(at));
                    let seen = format!("extent status says block {is}, it was block {was}");
                    let other = unless_same(&by, Some(Arc::clone(&old.by)));
                    findings.push(find(Invariant::A1, seen).at(at, len).against(other));
                }
            } else if let Some((at, len, old)) = on_disk.next() {
                let other = unless_same(&by, Some(Arc::clone(&old.by)));
                if status.delayed_only() {
                    let seen = "a delayed extent went in over allocated blocks".to_owned();
                    findings.push(find(Invariant::A4, seen).at(at, len).against(other));
                } else if status.hole() {
                    let seen = "a hole went in over allocated blocks".to_owned();
                    findings.push(find(Invariant::A2, seen).at(at, len).against(other));
                }
            }
            drop(on_disk);
            inode.tell(&by, Change::Put(status, lblk, len));
            if status.mapped() && !status.unwritten() {
                inode.converting.remove(lblk, len);
            } else if writes_back {
                inode.converting.insert(lblk, len, Arc::clone(&by));
            }
            if status.mapped() {
                inode.disk.insert(lblk, len, cell.clone());
            } else {
                // Once is enough; what was there is doubtful now.
                inode.disk.remove(lblk, len);
            }
            inode.es_insert(lblk, len, cell);
            findings
        });
        for finding in findings {
            self.find(address, finding);
        }
        Some(())
    }

    /// `__es_remove_extent`, before it changes anything.
    pub(super) fn es_remove(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let (lblk, end) = (block(event, "lblk")?, block(event, "end")?);
        let len = end.checked_sub(lblk)?.saturating_add(1);
        self.under_lock(event, address);
        self.threads.of(event.tid).last = Some((address, lblk, len));
        self.with(address, |inode, _| {
            inode.forget_pending(lblk, len);
            inode.es_remove(lblk, len);
            if inode.complete && !inode.keeps_any() {
                inode.pending = Some(BTreeSet::new());
            }
        });
        Some(())
    }

    /// The last change of extent status by that thread ran out of memory: who knows what is there.
    pub(super) fn es_failed(&mut self, tid: u32) -> Option<()> {
        let (address, lblk, len) = self.threads.of(tid).last.take()?;
        self.with(address, |inode, _| {
            inode.es_remove(lblk, len);
            inode.complete = false;
        });
        Some(())
    }

    /// What every probe under `i_es_lock` brings: the end of another thread's section, and counters
    /// that can be compared before anything is changed.
    fn under_lock(&mut self, event: &KernelEvent, address: u64) -> Arc<Actor> {
        let by = self.threads.actor(event);
        self.section_of_another(event.tid, address);
        self.threads.of(event.tid).changes(address);
        let counts = (event.field("all"), event.field("shk"));
        let finding = self.with(address, |inode, _| {
            identify(inode, event);
            inode.open = Some(event.tid);
            inode.reserved = event.field("reserved");
            let (Some(all), Some(shk)) = counts else {
                return None;
            };
            if all == shk {
                // No entry has to be kept, whatever was seen of them.
                let wrong = inode.keeps_any() && inode.complete;
                if all == 0 || inode.keeps_any() {
                    inode.es_clear();
                }
                inode.complete = true;
                return wrong.then(|| "no entry is to be kept, and one is delayed".to_owned());
            }
            let none = inode.complete && !inode.keeps_any();
            none.then(|| {
                format!("{} entries are to be kept, and none is delayed", all.wrapping_sub(shk))
            })
        });
        if let Some(seen) = finding {
            let ino = event.field("ino").unwrap_or(0);
            self.find(address, DelallocFinding::new(Invariant::A8, ino, &by, seen));
        }
        by
    }

    /// `ext4_es_insert_extent`, with `i_data_sem` held and nothing changed: delayed blocks cannot
    /// come or go meanwhile.
    pub(super) fn es_put(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let (lblk, len) = extent(event)?;
        self.advances(event.tid, address, len);
        let status = Status::of(event.field("status")?);
        if status.unwritten() {
            self.removes(event, address);
            let whole = self.inodes.get(&address).is_some_and(|inode| inode.delayed(lblk, len));
            let writes_back = whole && self.threads.is_in(event.tid, "writepages");
            self.threads.of(event.tid).writes_back = writes_back.then_some((address, lblk, len));
        }
        if !status.hole() {
            return Some(());
        }
        let delayed = self.with(address, |inode, _| {
            let mut parts = inode.es(lblk, len);
            let delayed = parts.find(|(.., cell)| cell.status.delayed_only());
            delayed.map(|(at, len, cell)| (at, len, Arc::clone(&cell.by)))
        });
        if let Some((at, len, other)) = delayed {
            let by = self.threads.actor(event);
            let seen = "a hole goes in over delayed blocks".to_owned();
            let finding = DelallocFinding::new(Invariant::A2, event.field("ino")?, &by, seen);
            self.find(address, finding.at(at, len).against(Some(other)));
        }
        Some(())
    }

    /// `ext4_es_free_extent`: of the shrinker's victims, each.
    pub(super) fn es_free(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let by_shrinker =
            ["reclaim", "clear_es"].iter().any(|of| self.threads.is_in(event.tid, of));
        if !by_shrinker {
            return Some(());
        }
        let (lblk, len) = extent(event)?;
        let status = Status::of(event.field("pblk")? >> ES_SHIFT);
        let by = self.threads.actor(event);
        self.with(address, |inode, _| {
            inode.tell(&by, Change::Reclaim(lblk, len));
            inode.es_remove(lblk, len);
        });
        if status.must_keep() {
            let seen = format!("an entry of status {status} is reclaimed");
            let finding = DelallocFinding::new(Invariant::A10, event.field("ino")?, &by, seen);
            self.find(address, finding.at(lblk, len));
        }
        Some(())
    }

    /// `ext4_da_update_reserve_space` and `ext4_da_release_space`, before they change anything.
    pub(super) fn reservation(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let (used, reserved) = (event.field("used")?, event.field("reserved")?);
        let by = self.threads.actor(event);
        self.section_of_another(event.tid, address);
        self.threads.of(event.tid).changes(address);
        let change =
            if event.name == "release" { Change::Release(used) } else { Change::Update(used) };
        self.with(address, |inode, _| {
            identify(inode, event);
            inode.open = Some(event.tid);
            inode.reserved = Some(reserved.saturating_sub(used));
            inode.tell(&by, change);
        });
        if used > reserved {
            let seen = format!("{change}, of {reserved}");
            let finding = DelallocFinding::new(Invariant::A11, event.field("ino")?, &by, seen);
            self.find(address, finding);
        }
        Some(())
    }

    /// `ext4_free_blocks`: whoever frees blocks has given up their extent status before.
    pub(super) fn freed(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let (first, count) = (event.field("block")?, event.field("count")?);
        // 0: the block is that of a buffer, which is one of the tree's own.
        if first == 0 || !self.inodes.contains_key(&address) {
            return Some(());
        }
        let by = self.threads.actor(event);
        let end = first.saturating_add(count);
        let stale = self.with(address, |inode, _| {
            let gone: Vec<(u32, u32)> =
                inode.disk.all().filter_map(|part| inside(part, first, end)).collect();
            for (at, len) in gone {
                inode.disk.remove(at, len);
            }
            let mapped = inode.es_all().filter(|(.., cell)| cell.status.mapped());
            let mut stale = mapped.filter_map(|part| Some((inside(part, first, end)?, &part.2.by)));
            let found = stale.next().map(|((at, len), by)| (at, len, Arc::clone(by)));
            drop(stale);
            inode.tell(&by, Change::Free(first, count));
            found
        });
        if let Some((at, len, other)) = stale {
            let seen = format!("extent status still maps freed blocks {first}+{count}");
            let finding = DelallocFinding::new(Invariant::A1, event.field("ino")?, &by, seen);
            let other = unless_same(&by, Some(other));
            self.find(address, finding.at(at, len).against(other));
        }
        Some(())
    }

    /// A thread has given up `i_data_sem` for certain: what it changed must fit together now.
    pub(super) fn sections_over(&mut self, tid: u32) {
        let thread = self.threads.of(tid);
        (thread.advances, thread.writes_back) = (None, None);
        let changed = std::mem::take(&mut thread.changed);
        for address in changed {
            if self.inodes.get(&address).is_some_and(|inode| inode.open == Some(tid)) {
                self.balance(address);
            }
        }
    }

    /// Another thread is about to change the inode: the section before is over.
    fn section_of_another(&mut self, tid: u32, address: u64) {
        let open = self.inodes.get(&address).and_then(|inode| inode.open);
        if open.is_some_and(|open| open != tid) {
            self.balance(address);
        }
    }

    /// A3 and A5: reservations against delayed blocks.
    fn balance(&mut self, address: u64) {
        let Some(inode) = self.inodes.get_mut(&address) else {
            return;
        };
        inode.open = None;
        let (Some(by), other) = inode.last_two() else {
            return;
        };
        let other = unless_same(&by, other);
        let mut findings = Vec::new();
        if let (Some(due), Some(reserved)) = (inode.due(), inode.reserved)
            && due != reserved
        {
            let seen = format!("{reserved} clusters are reserved, {due} are delayed");
            findings.push(
                DelallocFinding::new(Invariant::A3, inode.ino, &by, seen).against(other.clone()),
            );
        }
        if let (true, true, Some(pending)) = (inode.complete, inode.ratio > 1, &inode.pending) {
            let delayed = inode.delayed_clusters();
            if let Some(cluster) = pending.iter().find(|cluster| !delayed.contains(cluster)) {
                let seen = "a cluster is pending and has no delayed block".to_owned();
                let at = cluster.saturating_mul(inode.ratio);
                let finding = DelallocFinding::new(Invariant::A5, inode.ino, &by, seen);
                findings.push(finding.at(at, inode.ratio).against(other));
            }
        }
        for finding in findings {
            self.find(address, finding);
        }
    }

    /// `ext4_truncate` has returned, with `i_rwsem` still held.
    pub(super) fn truncated(&mut self, event: &KernelEvent, call: &Call) {
        let [size, bits, _] = call.values;
        let Some(end) =
            size.checked_next_multiple_of(PAGE_BYTES).filter(|_| (10..=16).contains(&bits))
        else {
            return;
        };
        let by = self.threads.actor(event);
        let Some(inode) = self.inodes.get(&call.inode) else {
            return;
        };
        let Ok(first) = u32::try_from(end >> bits) else {
            return;
        };
        let left = inode
            .es(first, u32::MAX - first)
            .find(|(.., cell)| cell.status.delayed_only())
            .map(|(at, len, cell)| (at, len, Arc::clone(&cell.by)));
        if let Some((at, len, other)) = left {
            let seen = format!("delayed blocks are left behind a truncation to {size} bytes");
            let by = Arc::new(Actor {
                operation: Some(("ext4_truncate", call.since_us)),
                ..(*by).clone()
            });
            let finding = DelallocFinding::new(Invariant::A4, inode.ino, &by, seen).at(at, len);
            self.find(call.inode, finding.against(Some(other)));
        }
    }

    /// `ext4_da_write_begin`, with `i_rwsem` held.
    pub(super) fn write_begin(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let (size, disksize) = (event.field("size")?, event.field("disksize")?);
        if disksize > size {
            let by = self.threads.actor(event);
            let other = self.with(address, |inode, _| inode.last_two().0);
            let seen = format!("i_disksize is {disksize}, i_size {size}");
            let finding = DelallocFinding::new(Invariant::A6, event.field("ino")?, &by, seen);
            self.find(address, finding.against(unless_same(&by, other)));
        }
        Some(())
    }

    /// What a seek must not skip: `values` become the offset of the first delayed block from where
    /// it begins, the size of a block as bits, and where it begins. With `i_rwsem` held, such a
    /// block can become allocated meanwhile, but stays data.
    pub(super) fn before_seek(&self, address: u64, values: &mut [u64; 3]) {
        let [size, bits, from] = *values;
        values[0] = u64::MAX;
        let Some(inode) = self.inodes.get(&address).filter(|_| (10..=16).contains(&bits)) else {
            return;
        };
        let Ok(first) = u32::try_from(from >> bits) else {
            return;
        };
        let mut parts = inode.es(first, u32::MAX - first);
        let delayed = parts.find(|(.., cell)| cell.status.delayed_only());
        if let Some((at, ..)) = delayed {
            let offset = (u64::from(at) << bits).max(from);
            if offset < size {
                values[0] = offset;
            }
        }
    }

    /// A seek has returned.
    pub(super) fn sought(&mut self, event: &KernelEvent, call: &Call, returned: u64) {
        let [delayed, bits, from] = call.values;
        if delayed == u64::MAX {
            return;
        }
        let returned = returned.cast_signed();
        let hole = call.probe == "seek_hole";
        let skipped = if hole {
            // Only the block where it begins is known to be no hole.
            delayed == from && returned == from.cast_signed()
        } else {
            returned == NO_DATA || returned > delayed.cast_signed()
        };
        if !skipped {
            return;
        }
        let by = self.threads.actor(event);
        let by = Arc::new(Actor {
            operation: Some((
                if hole { "iomap_seek_hole" } else { "iomap_seek_data" },
                call.since_us,
            )),
            ..(*by).clone()
        });
        let what = if hole { "SEEK_HOLE" } else { "SEEK_DATA" };
        let found = if returned == NO_DATA { "ENXIO".to_owned() } else { returned.to_string() };
        let seen = format!("{what} from {from} gives {found}; there is delayed data at {delayed}");
        let block = (delayed >> bits.min(63)) as u32;
        let other = self.inodes.get(&call.inode).map(|inode| {
            let mut parts = inode.es(block, 1);
            (inode.ino, parts.next().map(|(.., cell)| Arc::clone(&cell.by)))
        });
        let Some((ino, other)) = other else {
            return;
        };
        let finding = DelallocFinding::new(Invariant::G4, ino, &by, seen).at(block, 1);
        self.find(call.inode, finding.against(unless_same(&by, other)));
    }

    /// `ext4_evict_inode`: nobody else has the inode any more.
    pub(super) fn evict(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let (nlink, blocks) = (event.field("nlink")?, event.field("blocks")?);
        let by = self.threads.actor(event);
        if self.inodes.get(&address)?.open.is_some() {
            self.balance(address);
        }
        let mapped = self.with(address, |inode, _| {
            identify(inode, event);
            inode.tell(&by, Change::Evict);
            let first = inode.disk.all().next();
            first.map(|(at, len, cell)| (at, len, Arc::clone(&cell.by)))
        });
        if let (0, 0, Some((at, len, other))) = (nlink, blocks, mapped) {
            let seen = "i_blocks is 0 and blocks are mapped: they will not be freed".to_owned();
            let finding = DelallocFinding::new(Invariant::C3, event.field("ino")?, &by, seen);
            self.find(address, finding.at(at, len).against(unless_same(&by, Some(other))));
        }
        Some(())
    }

    /// `ext4_destroy_inode`: extent status is given up; the end of what is known of the inode. Of
    /// probes at one place the last one added is the first to run.
    pub(super) fn destroy(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let by = self.threads.actor(event);
        let (reserved, pending) = (event.field("reserved")?, event.field("pending")?);
        let entries = event.field("all")?;
        let other = self.inodes.get(&address).and_then(|inode| inode.last_two().0);
        let seen = match (reserved, pending, entries) {
            (0, 0, 0) => return self.forget(address).map(drop),
            (0, 0, _) => {
                format!("{entries} entries of extent status are left and the inode is gone")
            }
            (0, ..) => "clusters are pending and the inode is gone".to_owned(),
            _ => format!("{reserved} blocks are reserved and the inode is gone"),
        };
        let finding = DelallocFinding::new(Invariant::C1, event.field("ino")?, &by, seen);
        self.find(address, finding.against(unless_same(&by, other)));
        self.forget(address).map(drop)
    }

    /// The same: I/O of it.
    pub(super) fn destroy_io(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let (unwritten, direct) = (event.field("unwritten").unwrap_or(0), event.field("dio")?);
        if (unwritten, direct) != (0, 0) {
            let by = self.threads.actor(event);
            let seen = format!(
                "{unwritten} writes to unwritten blocks and {direct} direct ones are in flight and \
                 the inode is gone"
            );
            let finding = DelallocFinding::new(Invariant::C2, event.field("ino")?, &by, seen);
            self.find(address, finding);
        }
        Some(())
    }

    /// The same: its sizes.
    pub(super) fn destroy_size(&mut self, event: &KernelEvent, address: u64) -> Option<()> {
        let (size, disksize) = (event.field("size")?, event.field("disksize")?);
        let (nlink, mode) = (event.field("nlink")?, event.field("mode")?);
        let sound = self.inodes.get(&address).is_some_and(|inode| inode.fresh && !inode.failed);
        if sound && nlink > 0 && mode & KIND == REGULAR && size != disksize {
            let by = self.threads.actor(event);
            let seen = format!("i_disksize is {disksize}, i_size {size} and the inode is gone");
            let finding = DelallocFinding::new(Invariant::B4, event.field("ino")?, &by, seen);
            self.find(address, finding);
        }
        Some(())
    }

    /// The agent says what `delayed_allocation_blocks` is with nobody at work.
    pub(super) fn mark(&mut self, event: &KernelEvent) -> Option<()> {
        let dirty = event.field("dirty").filter(|_| event.field(super::QUIET) == Some(1))?;
        self.unconverted(event);
        if dirty == 0 {
            self.leaked = false;
        } else if !std::mem::replace(&mut self.leaked, true) {
            let by = self.threads.actor(event);
            let seen = format!("{dirty} blocks are counted as delayed after syncfs");
            self.find(0, DelallocFinding::new(Invariant::B1, 0, &by, seen));
        }
        Some(())
    }
}

impl DelallocShadow {
    /// B3: writeback has ended, and what it wrote must be written.
    fn unconverted(&mut self, event: &KernelEvent) {
        let sound = self.inodes.iter().filter(|(_, inode)| !inode.failed);
        let left: Vec<_> = sound
            .filter_map(|(address, inode)| {
                let (at, len, by) = inode.converting.all().next()?;
                Some((*address, inode.ino, at, len, Arc::clone(by)))
            })
            .collect();
        let by = self.threads.actor(event);
        for (address, ino, at, len, other) in left {
            let seen = "blocks that were written back are unwritten after syncfs".to_owned();
            let finding = DelallocFinding::new(Invariant::B3, ino, &by, seen).at(at, len);
            self.find(address, finding.against(unless_same(&by, Some(other))));
        }
    }
}

/// What events say of an inode besides what happens to it.
fn identify(inode: &mut Inode, event: &KernelEvent) {
    if let Some(ino) = event.field("ino") {
        inode.ino = ino;
    }
    if let Some(ratio) = event.field("ratio") {
        inode.ratio = u32::try_from(ratio).unwrap_or(0);
    }
}

/// The part of a range that lies in physical blocks `first..end`.
fn inside((at, len, cell): (u32, u32, &Cell), first: u64, end: u64) -> Option<(u32, u32)> {
    let start = cell.pblk(at);
    let (from, to) = (start.max(first), start.saturating_add(u64::from(len)).min(end));
    if from >= to {
        return None;
    }
    // Both lie within the range, whose length is a u32.
    Some((at.saturating_add((from - start) as u32), (to - from) as u32))
}

/// First block and length of an extent. ext4 has none that ends beyond `EXT_MAX_BLOCKS`.
fn extent(event: &KernelEvent) -> Option<(u32, u32)> {
    let (lblk, len) = (block(event, "lblk")?, block(event, "len")?);
    lblk.checked_add(len)?;
    Some((lblk, len))
}
