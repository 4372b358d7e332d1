//! The on-disk shadow: what the guest's kernel got wrong, told from its requests alone, when it
//! happens.
//!
//! In: requests as they arrive and complete, with the bytes of metadata writes; maps of the disk.
//! Out: [`Finding`]s. Must not know: queues, files, the guest's threads.
//!
//! Verified, for a journaled ext4 that the shadow has followed since its log was empty (every rule
//! has a canary in the tests, and is silent on real kernels there):
//! - order on the wire (D7): a commit record arrives after all that it covers is durable; metadata
//!   is written in place only as committed, and after the commit is durable; the tail of the log
//!   passes only what is durable in place; the live part of the log is not overwritten. `Durable`
//!   takes FLUSH and the volatile cache at their word. The first commit to an empty log tells whether
//!   the guest relies on flushes; with `nobarrier`, or a write-through disk, completed counts as
//!   durable.
//! - stale data (D3): a block that a commit makes *written* has a copy in that transaction
//!   (`data=journal`), or was written, and that was durable, when the commit record arrived, unless
//!   nobody could read it after a power cut: the file has no name any more, or recovery cuts it
//!   before the block. A new directory or tree block has a copy in the log.
//! - revokes (D6): no data goes to a block of which the log still has a copy, unless the file
//!   system journals data; a transaction does not revoke what it logged.
//! - late metadata (P1): no metadata write is in flight when its block is freed or written to again,
//!   and none is made again after it was freed. Without a journal, this is all that is checked.
//! - allocation (D1, D2), for what a commit touched: mapped blocks are in use and nobody else's,
//!   blocks taken have an owner, free counts and checksums agree with bitmaps, trees are sane,
//!   `i_blocks` is exact for trees in the inode, no written block beyond the size of a file that is
//!   no orphan; a clean superblock has exact counts and no orphan (D4).
//!
//! Not verified: bytes that the guest changes after their request has arrived (a delayed write is
//! stored later than it is looked at); what fsync promised (D5: the disk does not see fsync); truncated ranges that come
//! back (D6, first half); indirect-mapped inodes beyond the labels; bigalloc's `i_blocks`,
//! leaks and, in clusters that stay in use, stale data; data written to a block that
//! FALLOC_FL_ZERO_RANGE makes unwritten in the same transaction; fast commits (a full commit is
//! checked as if they had not been); data that moves from file to file (EXT4_IOC_MOVE_EXT); contents
//! of directories and attributes; the data of a file that gets a name after its blocks were committed
//! (`O_TMPFILE`), and of one that grows over blocks that were committed beyond its size.
//! `data=writeback` promises less than D3, so switch it off with [`Options::ordered`]. Superblocks,
//! backups and the MMP block are written past the log by design and are exempt from D7.
//!
//! What would survive a power cut now is [`Shadow::survivors`].
//!
//! Memory is bounded whatever the guest does: each table has a bound, see the modules, and all
//! together `HEAP_MAX`. At a bound the shadow forgets, counts [`ShadowStats::unknown`] and checks
//! what needs it only when it is seen again; it never guesses. Requests in flight are bounded by the
//! queues. The work for a request is proportional to its blocks, for a commit to what it has logged,
//! up to a bound.

mod cache;
mod check;
mod finding;
mod fresh;
mod history;
mod inode;
mod ledger;
mod log;
mod stats;
mod step;
mod watch;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use ext4_layout::{Commit, Facts, Home, Layout, LayoutMap, LogFormat, Tid};

pub use check::{CheckError, Checked, Checker};
pub use finding::{Finding, Moment, Rule};
pub use stats::{ShadowStats, Survivors};
pub use watch::{Wants, Watch};

use crate::request::{Nanos, Op, Outcome, RequestId};
use cache::{Barriers, Cache};
use finding::Findings;
use fresh::Fresh;
use history::{History, Place};
use ledger::{Case, Ledger};
use log::{InPlace, Log};
use step::{Step, blocks};

/// Findings of one rule that are told between two loads of rules; more are only counted.
const TOLD_MAX: u64 = 64;
/// Freed metadata blocks that are remembered.
const GHOSTS_MAX: usize = 1 << 16;
/// Committed tree and directory blocks of which a checksum is remembered: about 4 MiB.
const SUMS_MAX: usize = 1 << 17;
/// Bytes of all tables together, beyond which everything is forgotten but what is in flight.
const HEAP_MAX: usize = 36 << 20;

/// How the shadow looks at a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Data must be stored before its block becomes written: true for `data=ordered`, the default
    /// of ext4, and `data=journal`; false for `data=writeback`, which the disk cannot see.
    pub ordered: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { ordered: true }
    }
}

/// A request that arrives.
#[derive(Clone, Copy, Debug)]
pub struct Arriving<'a> {
    /// Identity.
    pub id: RequestId,
    /// What it does.
    pub op: Op,
    /// First 512-byte sector.
    pub sector: u64,
    /// Length in sectors.
    pub sectors: u64,
    /// The data of a write of which [`Watch::wants`] said [`Wants::Bytes`].
    pub bytes: Option<&'a [u8]>,
}

/// A write, flush or discard on its way.
#[derive(Clone, Debug)]
struct Flight {
    place: Place,
    /// Number of a flush.
    flush: Option<u64>,
    /// Blocks that hold somebody's new data when it completes.
    data: Vec<(u64, u64)>,
    /// Blocks of metadata, written in place.
    metadata: Vec<u64>,
    /// Blocks of the log.
    log: Vec<u32>,
    /// A commit record among them.
    commit: Option<Tid>,
    /// A new superblock of the log.
    format: Option<LogFormat>,
    /// Blocks discarded.
    dropped: Option<(u64, u64)>,
}

/// A block that was metadata and is free now.
#[derive(Clone, Copy, Debug)]
struct Ghost {
    ino: Option<u32>,
    sum: u32,
    tid: Tid,
}

/// What makes two findings the same.
type Told = (String, Option<(u64, u64)>, String);

/// The shadow of one disk.
#[derive(Debug)]
pub struct Shadow {
    options: Options,
    watch: Arc<Watch>,
    cache: Cache,
    fresh: Fresh,
    log: Log,
    ledger: Ledger,
    history: History,
    flights: HashMap<RequestId, Flight>,
    /// Metadata writes in flight, by block.
    metadata: BTreeMap<u64, (RequestId, &'static str)>,
    ghosts: HashMap<u64, Ghost>,
    ghost_order: VecDeque<u64>,
    sums: BTreeMap<u64, u32>,
    /// The file system that all this is about.
    facts: Option<Facts>,
    /// File data goes through the log.
    journals_data: bool,
    /// The superblock said "mounted" when it was last written.
    mounted: bool,
    newest: Survivors,
    told: HashSet<Told>,
    /// Findings by rule since rules were loaded.
    recent: BTreeMap<String, u64>,
    found: Vec<Finding>,
    stats: ShadowStats,
}

impl Shadow {
    /// A shadow that knows nothing; tell it of the disk with [`Shadow::opened`].
    pub fn new(options: Options) -> Shadow {
        Shadow {
            options,
            watch: Arc::default(),
            cache: Cache::default(),
            fresh: Fresh::default(),
            log: Log::default(),
            ledger: Ledger::default(),
            history: History::default(),
            flights: HashMap::new(),
            metadata: BTreeMap::new(),
            ghosts: HashMap::new(),
            ghost_order: VecDeque::new(),
            sums: BTreeMap::new(),
            facts: None,
            journals_data: false,
            mounted: false,
            newest: Survivors::default(),
            told: HashSet::new(),
            recent: BTreeMap::new(),
            found: Vec::new(),
            stats: ShadowStats::default(),
        }
    }

    /// Which requests it has to be told of.
    pub fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }

    /// The layout was read from the storage. For another file system than before, what was known of
    /// the disk's past is void.
    pub fn opened(&mut self, layout: &Layout) {
        let facts = layout.map().facts();
        if facts.is_some() && facts == self.facts {
            return;
        }
        self.facts = facts;
        self.watch.clear();
        self.fresh = Fresh::default();
        self.log = Log::new(layout.log_format());
        self.ledger.forget();
        self.ghosts.clear();
        self.ghost_order.clear();
        self.sums.clear();
        self.metadata.clear();
        self.journals_data = false;
        for flight in self.flights.values_mut() {
            *flight = Flight::new(flight.place, flight.flush);
        }
    }

    /// The operator loaded rules: what follows is told as if nothing had been.
    pub fn tell_anew(&mut self) {
        self.told.clear();
        self.recent.clear();
    }

    /// The front-end went away: requests in flight never complete.
    pub fn disconnect(&mut self) {
        self.flights.clear();
        self.metadata.clear();
        self.log.forget_running();
        self.fresh.thaw(&self.cache);
        self.cache.barriers = Barriers::Unknown;
    }

    /// A request arrives. `map` is the one that its class follows from.
    pub fn arrive(&mut self, now: Nanos, arriving: &Arriving<'_>, map: &LayoutMap) {
        let Arriving { id, op, sector, sectors, bytes } = *arriving;
        if matches!(op, Op::Read | Op::Fault) {
            return;
        }
        self.stats.requests += 1;
        let flush = (op == Op::Flush).then(|| self.cache.flush_arrived());
        let what = match bytes {
            _ if op == Op::Flush => "",
            Some(_) => map.block_of_sector(sector).map_or("", |at| map.kind_of_block(at).name()),
            None => "data",
        };
        let place = self.history.arrived(now, id, op, (sector, sectors), what);
        let mut flight = Flight::new(place, flush);
        if let (Some(facts), true) = (map.facts(), sectors > 0) {
            let mut findings = Findings::default();
            match op {
                Op::Write | Op::Store => {
                    let mut step = Step { shadow: self, map, facts, id, findings: &mut findings };
                    step.write(&mut flight, sector, sectors, bytes);
                }
                Op::WriteZeroes => flight.data.extend(blocks(map, &facts, sector, sectors)),
                Op::Discard => flight.dropped = blocks(map, &facts, sector, sectors),
                Op::Read | Op::Flush | Op::Fault => {}
            }
            self.report(map, findings);
        }
        self.flights.insert(id, flight);
    }

    /// A request that arrived has ended. `old` is the map before what it did, `new` the one after,
    /// `commits` the transactions that took effect by it ([`Layout::take_commits`]).
    pub fn complete(
        &mut self,
        now: Nanos,
        id: RequestId,
        outcome: Outcome,
        (old, new): (&LayoutMap, &LayoutMap),
        commits: &[Commit],
    ) {
        let Some(flight) = self.flights.remove(&id) else {
            return;
        };
        let good = outcome == Outcome::Ok;
        self.history.ended(flight.place, now, good);
        if let (Some(number), true) = (flight.flush, good)
            && self.cache.flush_done(number)
        {
            self.fresh.settle(&self.cache);
        }
        let stamp = good.then(|| self.cache.stamp());
        for pblk in &flight.metadata {
            if self.metadata.get(pblk).is_some_and(|(other, _)| *other == id) {
                self.metadata.remove(pblk);
            }
            if let Some(cover) = self.log.covers.get_mut(pblk)
                && cover.in_place == InPlace::InFlight(id)
            {
                cover.in_place = stamp.map_or(InPlace::No, InPlace::Done);
            }
        }
        for index in &flight.log {
            self.log.done(*index, id, stamp);
        }
        if let Some(stamp) = stamp {
            for (first, end) in &flight.data {
                self.fresh.written(*first, *end, stamp);
            }
            if let Some((first, end)) = flight.dropped {
                self.fresh.forget(first, end);
            }
            if let Some(format) = flight.format {
                self.log.set_format(format);
                // A log that is emptied ends a mount, and the next one may have other options.
                if format.start().is_none() {
                    self.cache.barriers = Barriers::Unknown;
                }
                self.rewatch();
            }
        }
        for commit in commits {
            self.commit(old, new, commit);
        }
        if flight.commit.is_some() {
            // It took effect just now, or will not as it should.
            self.fresh.thaw(&self.cache);
        }
    }

    fn commit(&mut self, old: &LayoutMap, new: &LayoutMap, commit: &Commit) {
        let Some(facts) = new.facts() else { return };
        if commit.lost {
            self.ledger.forget();
            self.ledger.unknown += 1;
            self.ledger.orphans.lose();
            self.log.lose();
            return;
        }
        self.stats.commits += 1;
        let mut findings = Findings::default();
        let effect = self.log.take_effect(commit.tid, &mut findings);
        if effect.is_none() {
            self.ledger.unknown += 1;
        }
        let case = Case {
            facts,
            old,
            new,
            commit,
            effect: effect.as_ref(),
            fresh: &self.fresh,
            needs_flush: self.cache.barriers == Barriers::On,
            ordered: self.options.ordered,
        };
        let changes = self.ledger.commit(&case);
        findings.append(changes.findings);
        for finding in findings.iter_mut() {
            finding.tid.get_or_insert(commit.tid);
            if let Some(effect) = &effect
                && finding.requests.is_empty()
            {
                finding.requests.push(effect.commit_id);
            }
        }
        for (first, end) in &changes.freed {
            self.fresh.forget(*first, *end);
            self.log.freed(*first, *end);
            let logged = self.sums.range(*first..*end).map(|(block, _)| *block);
            let flying = self.metadata.range(*first..*end).map(|(block, _)| *block);
            let blocks: BTreeSet<u64> = logged.chain(flying).collect();
            for block in blocks {
                let commit_id = effect.as_ref().map(|of| of.commit_id);
                self.freed(block, old, commit.tid, commit_id, &mut findings);
            }
        }
        for (first, end) in &changes.written {
            self.fresh.forget(*first, *end);
        }
        for (first, end) in &changes.doubtful {
            self.fresh.assume(*first, *end);
        }
        if let Some(effect) = effect {
            for (pblk, sum) in effect.copies {
                self.logged(pblk, sum, new);
            }
            for pblk in effect.revoked {
                self.sums.remove(&pblk);
            }
        }
        self.newest.possible = Some(commit.tid);
        self.report(new, findings);
        if self.heap_bytes() > HEAP_MAX {
            self.forget_past();
        }
    }

    /// Every table at once is too much: what was known of the disk's past is void, and what needs
    /// it is not checked until it is seen again.
    fn forget_past(&mut self) {
        self.ledger.forget();
        self.ledger.unknown += 1;
        self.ledger.orphans.lose();
        self.log.lose();
        self.fresh.lose();
        self.ghosts = HashMap::new();
        self.ghost_order = VecDeque::new();
        self.sums.clear();
    }

    /// A transaction has a copy of the block.
    fn logged(&mut self, pblk: u64, sum: Option<u32>, map: &LayoutMap) {
        match map.block(pblk, pblk.saturating_add(1)).0 {
            Ok(Home::FileData { inode, .. }) => {
                // Quota files are always journaled.
                self.journals_data |= inode > 10;
                self.watch.add(pblk);
            }
            Ok(
                Home::ExtentNode { .. }
                | Home::IndirectBlock { .. }
                | Home::Directory { .. }
                | Home::Xattr { .. },
            ) => {
                if self.sums.len() >= SUMS_MAX && !self.sums.contains_key(&pblk) {
                    self.sums.clear();
                    self.ledger.unknown += 1;
                }
                match sum {
                    Some(sum) => self.sums.insert(pblk, sum),
                    None => self.sums.remove(&pblk),
                };
            }
            _ => {}
        }
    }

    /// A commit freed the block.
    fn freed(
        &mut self,
        block: u64,
        old: &LayoutMap,
        tid: Tid,
        commit: Option<RequestId>,
        findings: &mut Findings,
    ) {
        let ino = old.claimant(block, block.saturating_add(1)).0;
        if let Some((id, kind)) = self.metadata.get(&block) {
            let seen = format!("it was freed while a write of it as {kind} is in flight");
            findings.push(Finding {
                inode: ino,
                blocks: Some((block, block)),
                tid: Some(tid),
                requests: [Some(*id), commit].into_iter().flatten().collect(),
                ..Finding::of(Rule::LateMetadata, seen)
            });
        }
        let Some(sum) = self.sums.remove(&block) else {
            return;
        };
        if self.ghosts.insert(block, Ghost { ino, sum, tid }).is_none() {
            self.ghost_order.push_back(block);
        }
        self.watch.add(block);
        while self.ghost_order.len() > GHOSTS_MAX {
            if let Some(oldest) = self.ghost_order.pop_front() {
                self.ghosts.remove(&oldest);
            }
        }
    }

    /// Names the watched blocks anew: the log has dropped some.
    fn rewatch(&mut self) {
        self.watch.clear();
        self.ghost_order.retain(|block| self.ghosts.contains_key(block));
        for block in &self.ghost_order {
            self.watch.add(*block);
        }
        if self.journals_data {
            for block in self.log.covers.keys() {
                self.watch.add(*block);
            }
        }
    }

    /// Makes findings public, with their stories.
    fn report(&mut self, map: &LayoutMap, findings: Findings) {
        let (findings, more) = findings.take();
        self.stats.findings += more;
        for mut finding in findings {
            self.stats.findings += 1;
            *self.stats.rules.entry(finding.rule.clone()).or_default() += 1;
            let count = self.recent.entry(finding.rule.clone()).or_default();
            *count += 1;
            if *count > TOLD_MAX {
                continue;
            }
            if let (None, Some((first, _))) = (finding.inode, finding.blocks) {
                finding.inode = map.claimant(first, first.saturating_add(1)).0;
            }
            let key = (finding.rule.clone(), finding.blocks, finding.seen.clone());
            if !self.told.insert(key) {
                continue;
            }
            let per_block = map.block_bytes().unwrap_or(0) / 512;
            let range = finding.blocks.and_then(|(first, last)| {
                let sector = map.sector_of_block(first)?;
                Some((sector, (last - first).saturating_add(1).saturating_mul(per_block)))
            });
            finding.timeline = self.history.story(range.as_slice(), &finding.requests);
            self.found.push(finding);
        }
    }

    /// The findings since the last call; at most 64 of each rule between two loads of rules.
    pub fn take_findings(&mut self) -> Vec<Finding> {
        std::mem::take(&mut self.found)
    }

    /// Whether [`Shadow::take_findings`] has any.
    pub fn has_findings(&self) -> bool {
        !self.found.is_empty()
    }

    /// What would be on the disk after a power cut now.
    pub fn survivors(&self) -> Survivors {
        let certain = self
            .log
            .covers
            .values()
            .filter(|cover| self.cache.durable(cover.committed))
            .map(|cover| cover.tid)
            .max_by(|one, other| one.wrapping_sub(*other).cast_signed().cmp(&0));
        Survivors { certain, replayed: self.log.covers.len() as u64, ..self.newest }
    }

    /// Counts.
    pub fn stats(&self) -> ShadowStats {
        ShadowStats {
            checked: self.ledger.checked,
            unknown: self.ledger.unknown,
            heap_bytes: self.heap_bytes() as u64,
            survivors: self.survivors(),
            ..self.stats.clone()
        }
    }

    /// Bytes on the heap, nearly.
    pub fn heap_bytes(&self) -> usize {
        self.fresh.heap_bytes()
            + self.log.heap_bytes()
            + self.ledger.heap_bytes()
            + self.history.heap_bytes()
            + self.flights.capacity() * (size_of::<Flight>() + 9)
            + self.ghosts.capacity() * 25
            + self.ghost_order.capacity() * 8
            + self.sums.len() * 20
    }
}

impl Flight {
    fn new(place: Place, flush: Option<u64>) -> Flight {
        Flight {
            place,
            flush,
            data: Vec::new(),
            metadata: Vec::new(),
            log: Vec::new(),
            commit: None,
            format: None,
            dropped: None,
        }
    }
}
