//! A disk with layout and shadow on it, as the engine keeps them: for inputs that write metadata.
//!
//! In: writes, in any order, with any bytes. Out: a layout and a shadow that must survive them,
//! within bounds.
//! Must not know: what the writes mean.

use std::collections::BTreeMap;
use std::sync::Arc;

use ext4_layout::{Change, Layout, LayoutMap, ReadAt, ReadError};
use pipeline::shadow::{Arriving, Options, Shadow};
use pipeline::{Nanos, Op, Outcome, RequestId};

use crate::recorded::{Recorded, SECTOR};

/// What layout and shadow may hold together, on a disk of any size, 16 EiB among them.
const HEAP_MOST: usize = 64 << 20;

/// Sectors of a recorded disk, with what was written since.
pub(crate) struct Sectors {
    base: &'static Recorded,
    over: BTreeMap<u64, [u8; SECTOR]>,
    pub(crate) bytes: u64,
}

impl Sectors {
    pub(crate) fn get(&self, sector: u64) -> [u8; SECTOR] {
        let over = self.over.get(&sector).copied();
        over.or_else(|| self.base.sectors.get(&sector).map(|base| **base)).unwrap_or([0; SECTOR])
    }

    pub(crate) fn put(&mut self, first: u64, bytes: &[u8]) {
        for (sector, part) in (first..).zip(bytes.chunks_exact(SECTOR)) {
            let mut whole = [0; SECTOR];
            whole.copy_from_slice(part);
            self.over.insert(sector, whole);
        }
    }
}

impl ReadAt for Sectors {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let length = buf.len();
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.bytes);
        let Some(end) = end else {
            let source = "past the end of the disk".into();
            return Err(ReadError { offset, length, source });
        };
        buf.fill(0);
        let sectors = offset / SECTOR as u64..end.div_ceil(SECTOR as u64);
        let base = self.base.sectors.range(sectors.clone()).map(|(at, bytes)| (*at, &**bytes));
        let over = self.over.range(sectors).map(|(at, bytes)| (*at, bytes));
        for (sector, bytes) in base.chain(over) {
            let start = sector * SECTOR as u64;
            let from = offset.saturating_sub(start) as usize;
            let at = start.saturating_sub(offset) as usize;
            let len = (SECTOR - from).min(length - at);
            buf[at..at + len].copy_from_slice(&bytes[from..from + len]);
        }
        Ok(())
    }
}

/// A request that has arrived and not ended.
struct Open {
    id: RequestId,
    op: Op,
    sector: u64,
    sectors: u64,
    bytes: Option<Vec<u8>>,
}

/// The disk, and those who watch it.
pub(crate) struct Disk {
    pub(crate) sectors: Sectors,
    pub(crate) layout: Layout,
    shadow: Shadow,
    open: Vec<Open>,
    reopen_due: bool,
    steps: u64,
}

impl Disk {
    pub(crate) fn new(base: &'static Recorded, bytes: u64, ordered: bool) -> Disk {
        let mut layout = Layout::blank(bytes);
        layout.keep_commits();
        Disk {
            sectors: Sectors { base, over: BTreeMap::new(), bytes },
            layout,
            shadow: Shadow::new(Options { ordered }),
            open: Vec::new(),
            reopen_due: false,
            steps: 0,
        }
    }

    /// Reads the layout.
    pub(crate) fn reopen(&mut self) {
        // A disk without ext4 is as good as one with it.
        let bytes = self.sectors.bytes;
        let _ = self.layout.reopen(&mut self.sectors, bytes);
        self.shadow.opened(&self.layout);
        self.reopen_due = false;
        // The shadow's first opening with a map is told to it; findings are its business.
        self.shadow.take_findings();
    }

    /// A request arrives; it ends with [`Disk::complete`].
    pub(crate) fn arrive(&mut self, op: Op, sector: u64, sectors: u64, bytes: Option<Vec<u8>>) {
        let disk_sectors = self.sectors.bytes / SECTOR as u64;
        if op != Op::Flush && sector.checked_add(sectors).is_none_or(|end| end > disk_sectors) {
            // Refused before anybody sees it.
            return;
        }
        self.steps += 1;
        let id = RequestId(self.steps);
        if let Some(bytes) = &bytes {
            let change = self.layout.write_arrived(sector, bytes);
            self.reopen_due |= change == Change::Reopen;
        }
        let map = self.layout.map();
        let request = Arriving { id, op, sector, sectors, bytes: bytes.as_deref() };
        self.shadow.arrive(Nanos(self.steps), &request, &map);
        self.shadow.take_findings();
        self.open.push(Open { id, op, sector, sectors, bytes });
    }

    /// How many have not ended.
    pub(crate) fn open(&self) -> usize {
        self.open.len()
    }

    /// One of them ends.
    pub(crate) fn complete(&mut self, which: usize, outcome: Outcome) {
        if self.open.is_empty() {
            return;
        }
        self.steps += 1;
        let Open { id, op, sector, sectors, bytes } = self.open.remove(which % self.open.len());
        let old = self.layout.map();
        if outcome == Outcome::Ok {
            let change = match (op, &bytes) {
                (Op::Write, Some(bytes)) => {
                    self.sectors.put(sector, bytes);
                    self.layout.write_done(sector, bytes)
                }
                (Op::Discard | Op::WriteZeroes, _) => self.layout.zeroed(sector, sectors),
                _ => Change::None,
            };
            self.reopen_due |= change == Change::Reopen;
            if self.reopen_due {
                self.reopen();
            }
        }
        let commits = self.layout.take_commits();
        let map = self.layout.map();
        self.shadow.complete(Nanos(self.steps), id, outcome, (&old, &map), &commits);
        self.shadow.take_findings();
    }

    /// The front-end goes away.
    pub(crate) fn disconnect(&mut self) {
        self.open.clear();
        self.shadow.disconnect();
    }

    /// What must hold whatever happened.
    pub(crate) fn check(&self) {
        let map = self.layout.map();
        let covered = covered(&map, 0, map.device_sectors());
        assert_eq!(covered, map.device_sectors(), "sectors of the disk and of its classes");
        let heap = self.layout.heap_bytes() + self.shadow.heap_bytes();
        assert!(heap <= HEAP_MOST, "layout and shadow hold {heap} bytes");
    }

    /// What the map says of some sectors.
    pub(crate) fn classify(&self, sector: u64, sectors: u64) {
        let map: Arc<LayoutMap> = self.layout.map();
        if sector.checked_add(sectors).is_some_and(|end| end <= map.device_sectors()) {
            assert_eq!(covered(&map, sector, sectors), sectors);
            map.kinds(sector, sectors);
            map.wants_bytes(sector, sectors);
        }
    }
}

/// Sectors that have a class; in order, without gap or overlap.
fn covered(map: &LayoutMap, sector: u64, sectors: u64) -> u64 {
    let mut next = sector;
    map.classify(sector, sectors, &mut |span| {
        assert_eq!(span.first_sector, next, "a gap or an overlap in the classes");
        assert!(span.sectors > 0, "an empty span");
        next += span.sectors;
    });
    next - sector
}
