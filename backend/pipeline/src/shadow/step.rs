//! What a write means when it arrives: order in place and in the log (D6, D7, P1), the clean
//! superblock (D4).
//!
//! In: a write, with its bytes where the shadow asked for them, and the map. Out: findings, and
//! what has to be remembered until the write completes.
//! Must not know: what a commit changes.

use ext4_layout::{ExtentNode, Facts, Home, LayoutMap, LogFormat, Written};

use super::finding::{Finding, Findings, Rule};
use super::inode::word;
use super::log::{Arrived, InPlace};
use super::{Flight, Shadow};
use crate::request::RequestId;

/// `INCOMPAT_RECOVER` of the superblock: mounted, or to be recovered.
const INCOMPAT_RECOVER: u32 = 0x4;
const SUPERBLOCK_BYTES: usize = 1024;

/// The blocks of a range of sectors: first, one past the last.
pub(super) fn blocks(
    map: &LayoutMap,
    facts: &Facts,
    sector: u64,
    sectors: u64,
) -> Option<(u64, u64)> {
    let base = map.sector_of_block(0)?;
    let last = sector.saturating_add(sectors).checked_sub(1)?;
    let end = (map.block_of_sector(last)? + 1).min(facts.blocks);
    let first = map.block_of_sector(sector.max(base))?;
    (first < end).then_some((first, end))
}

/// A write that arrives.
pub(super) struct Step<'a> {
    pub(super) shadow: &'a mut Shadow,
    pub(super) map: &'a LayoutMap,
    pub(super) facts: Facts,
    pub(super) id: RequestId,
    pub(super) findings: &'a mut Findings,
}

impl Step<'_> {
    pub(super) fn write(
        &mut self,
        flight: &mut Flight,
        sector: u64,
        sectors: u64,
        bytes: Option<&[u8]>,
    ) {
        let Some((first, end)) = blocks(self.map, &self.facts, sector, sectors) else {
            return;
        };
        let Some(base) = self.map.sector_of_block(0) else { return };
        let block_bytes = self.facts.block_bytes as u64;
        let mut at = first;
        while at < end {
            let (home, next) = self.map.block(at, end);
            for block in at..next {
                let part = bytes.map(|bytes| {
                    let start = base + block * (block_bytes / 512);
                    let from = (start.saturating_sub(sector) * 512).min(bytes.len() as u64);
                    let to = ((start + block_bytes / 512).saturating_sub(sector) * 512)
                        .min(bytes.len() as u64);
                    &bytes[from as usize..to.max(from) as usize]
                });
                let full = part.filter(|part| part.len() == self.facts.block_bytes);
                match home {
                    Err(0) => self.log_superblock(flight, full),
                    Err(index) => {
                        let index = index + (block - at) as u32;
                        self.log_block(flight, index, full);
                    }
                    Ok(home) => self.in_place(flight, block, home, full),
                }
            }
            at = next;
        }
    }

    fn log_superblock(&mut self, flight: &mut Flight, block: Option<&[u8]>) {
        let Some(format) = block.and_then(LogFormat::parse) else {
            return;
        };
        let shadow = &mut *self.shadow;
        if shadow.log.from_empty && (shadow.mounted || shadow.log.active) {
            for (pblk, cover) in shadow.log.passed(&format, &shadow.cache) {
                let home = self.map.block(pblk, pblk.saturating_add(1)).0;
                let exempt = match home {
                    // Written past the log; freed since; not what a read returns; data that
                    // journaling does not revoke.
                    Err(_)
                    | Ok(
                        Home::Superblock { .. }
                        | Home::Free
                        | Home::Unknown
                        | Home::FileData { state: Written::Unwritten, .. },
                    ) => true,
                    Ok(Home::FileData { .. }) => !shadow.journals_data,
                    Ok(_) => false,
                };
                if exempt {
                    continue;
                }
                let how = match cover.in_place {
                    InPlace::No => "was not written in place",
                    InPlace::InFlight(_) => "is still being written in place",
                    InPlace::Done(_) => "was not flushed after it was written in place",
                };
                let seen = format!(
                    "the log's tail moves from transaction {} to {}, and the block ({}) {how}",
                    cover.tid,
                    format.sequence(),
                    home.map_or("journal", |home| home.kind().name())
                );
                self.findings.push(Finding {
                    blocks: Some((pblk, pblk)),
                    tid: Some(cover.tid),
                    requests: vec![cover.commit_id, self.id],
                    ..Finding::of(Rule::TailTooFar, seen)
                });
            }
        }
        flight.format = Some(format);
    }

    fn log_block(&mut self, flight: &mut Flight, index: u32, block: Option<&[u8]>) {
        let Shadow { log, cache, fresh, .. } = &mut *self.shadow;
        match log.arrived(index, self.id, block, cache, self.findings) {
            Arrived::Commit(tid) => {
                fresh.freeze(cache);
                flight.commit = Some(tid);
            }
            Arrived::Part => {}
        }
        flight.log.push(index);
    }

    /// A write of a block at its own place.
    fn in_place(&mut self, flight: &mut Flight, block: u64, home: Home, bytes: Option<&[u8]>) {
        self.not_in_flight(block, home);
        match home {
            Home::Superblock { backup: false } => self.superblock(block, bytes),
            Home::Superblock { .. }
            | Home::GroupDescriptors { backup: true }
            | Home::ReservedGdt
            | Home::Mmp => {}
            Home::GroupDescriptors { .. }
            | Home::BlockBitmap { .. }
            | Home::InodeBitmap { .. }
            | Home::InodeTable { .. }
            | Home::ExtentNode { .. }
            | Home::IndirectBlock { .. }
            | Home::Directory { .. }
            | Home::Xattr { .. }
            | Home::OrphanFile => {
                self.committed(block, home, bytes);
                self.fly(flight, block, home.kind().name());
            }
            Home::FileData { state: Written::Written, .. } => {
                self.not_a_ghost(block, bytes);
                if let Some(cover) = self.shadow.log.covers.get_mut(&block) {
                    cover.in_place = InPlace::InFlight(self.id);
                    flight.metadata.push(block);
                }
            }
            Home::FileData { .. } | Home::Free | Home::Unknown => {
                self.not_a_ghost(block, bytes);
                // Without a journal a tree's block is written before what points at it.
                if self.facts.journal_inode.is_none()
                    && bytes.is_some_and(|bytes| ExtentNode::parse(bytes).is_ok())
                {
                    self.fly(flight, block, "extent_node");
                }
                if home == Home::Free {
                    self.free(block);
                }
                match flight.data.last_mut() {
                    Some((_, end)) if *end == block => *end += 1,
                    _ => flight.data.push((block, block + 1)),
                }
            }
        }
    }

    fn fly(&mut self, flight: &mut Flight, block: u64, kind: &'static str) {
        self.shadow.metadata.insert(block, (self.id, kind));
        flight.metadata.push(block);
    }

    /// P1: no metadata write to the block is in flight.
    fn not_in_flight(&mut self, block: u64, home: Home) {
        if let Some((other, kind)) = self.shadow.metadata.get(&block).copied()
            && other != self.id
        {
            let seen = format!(
                "it is written to (as {}) while a write of it as {kind} is in flight",
                home.kind().name()
            );
            self.findings.push(Finding {
                blocks: Some((block, block)),
                requests: vec![other, self.id],
                ..Finding::of(Rule::LateMetadata, seen)
            });
        }
    }

    /// P1: what is written is not the metadata that the block held before it was freed.
    fn not_a_ghost(&mut self, block: u64, bytes: Option<&[u8]>) {
        let Some(ghost) = self.shadow.ghosts.remove(&block) else {
            return;
        };
        if bytes.is_some_and(|bytes| crc32c::crc32c(bytes) == ghost.sum) {
            let seen = format!(
                "the metadata that it held is written to it; it was freed by transaction {}",
                ghost.tid
            );
            self.findings.push(Finding {
                inode: ghost.ino,
                blocks: Some((block, block)),
                tid: Some(ghost.tid),
                requests: vec![self.id],
                ..Finding::of(Rule::LateMetadata, seen)
            });
        }
    }

    /// D6, D7: a write to a block that the bitmap has free.
    fn free(&mut self, block: u64) {
        let log = &self.shadow.log;
        if !log.active || self.shadow.journals_data {
            return;
        }
        let (rule, tid, seen) = if let Some(cover) = log.covers.get(&block) {
            let seen = "the log has a copy of it that recovery would write over the data";
            (Rule::NotRevoked, cover.tid, seen)
        } else if let Some((tid, _)) = log.uncommitted(block) {
            (Rule::InPlaceEarly, tid, "its transaction has no durable commit record")
        } else {
            return;
        };
        self.findings.push(Finding {
            blocks: Some((block, block)),
            tid: Some(tid),
            requests: vec![self.id],
            ..Finding::of(rule, seen.to_owned())
        });
    }

    /// D7: what is written in place was committed, and that is durable.
    fn committed(&mut self, block: u64, home: Home, bytes: Option<&[u8]>) {
        let Shadow { log, cache, .. } = &mut *self.shadow;
        let Some(bytes) = bytes.filter(|_| log.active && self.facts.journal_inode.is_some()) else {
            return;
        };
        let sum = crc32c::crc32c(bytes);
        let uncommitted = log.uncommitted(block);
        let early = |tid, seen: &str, requests| Finding {
            blocks: Some((block, block)),
            tid: Some(tid),
            requests,
            ..Finding::of(Rule::InPlaceEarly, seen.to_owned())
        };
        if let Some(cover) = log.covers.get_mut(&block)
            && cover.sum.is_none_or(|covered| covered == sum)
        {
            cover.in_place = InPlace::InFlight(self.id);
            if !cache.durable(cover.committed) {
                let seen = "its commit record was not flushed";
                self.findings.push(early(cover.tid, seen, vec![cover.commit_id, self.id]));
            }
            return;
        }
        if let Some((tid, Some(logged))) = uncommitted
            && logged == sum
        {
            let seen = "its transaction has no durable commit record";
            self.findings.push(early(tid, seen, vec![self.id]));
            return;
        }
        // Inode tables are zeroed lazily, past the log.
        let lazy = matches!(home, Home::InodeTable { .. }) && bytes.iter().all(|byte| *byte == 0);
        if log.from_empty && !lazy && !log.format.is_some_and(|format| format.has_fast_commits()) {
            let cover = log.covers.get(&block);
            let seen = match cover {
                Some(cover) => format!("it is not what transaction {} committed", cover.tid),
                None => "no transaction in the log has it".to_owned(),
            };
            self.findings.push(Finding {
                blocks: Some((block, block)),
                tid: cover.map(|cover| cover.tid),
                requests: cover.map(|cover| cover.commit_id).into_iter().chain([self.id]).collect(),
                ..Finding::of(Rule::NotCommitted, format!("as {}: {seen}", home.kind().name()))
            });
        }
    }

    /// D4: a superblock that says "clean" is exact.
    fn superblock(&mut self, block: u64, bytes: Option<&[u8]>) {
        if let Some(cover) = self.shadow.log.covers.get_mut(&block) {
            cover.in_place = InPlace::Done(self.shadow.cache.stamp());
        }
        let start = 1024 % self.facts.block_bytes;
        let Some(raw) = bytes.and_then(|bytes| bytes.get(start..start + SUPERBLOCK_BYTES)) else {
            return;
        };
        self.shadow.ledger.orphans.note_head(raw);
        let mounted = word(raw, 0x60) & INCOMPAT_RECOVER != 0;
        let was = std::mem::replace(&mut self.shadow.mounted, mounted);
        if mounted || !was || self.facts.journal_inode.is_none() {
            return;
        }
        let orphan = word(raw, 0xe8);
        let high = if self.facts.descriptor_bytes >= 64 { word(raw, 0x158) } else { 0 };
        let free = u64::from(high) << 32 | u64::from(word(raw, 0xc));
        let counted = self.shadow.ledger.groups.free_clusters(&self.facts);
        let counted = counted.map(|clusters| clusters << self.facts.cluster_bits);
        let seen = match counted {
            _ if orphan != 0 => format!("inode {orphan} heads the orphan list"),
            Some(counted) if counted != free => {
                format!("it counts {free} free blocks, the descriptors {counted}")
            }
            _ => return,
        };
        self.findings.push(Finding {
            blocks: Some((block, block)),
            requests: vec![self.id],
            ..Finding::of(Rule::NotClean, seen)
        });
    }
}
