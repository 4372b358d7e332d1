//! The area by itself: a process that stops between any two stores, and areas that lie.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;

use super::{Area, BadArea, Description, Tracker};

const SIZE: u16 = 8;

fn area() -> (File, Description) {
    let (fd, shape) = Area::create(2, SIZE).expect("an area");
    (File::from(fd), shape)
}

fn open(file: &File, shape: Description) -> Result<Area, BadArea> {
    Area::open(file, shape, 2, SIZE)
}

fn tracker(file: &File, shape: Description) -> Tracker {
    let area = Arc::new(open(file, shape).expect("opens"));
    Tracker::new(&area, 1, SIZE).expect("fits").expect("there is such a queue")
}

/// A used ring of which only the index matters.
#[derive(Default)]
struct Used(u16);

/// The steps in which a batch of heads is returned, up to step `stop_before`: true if the
/// index of the used ring was stored.
fn give_back(tracker: &Tracker, used: &mut Used, heads: &[u16], stop_before: usize) -> bool {
    let n = heads.len();
    // Each head is linked in by itself.
    tracker.returning(heads.iter().copied().take(stop_before));
    if stop_before <= n {
        return false;
    }
    used.0 = used.0.wrapping_add(n as u16);
    // And taken off by itself.
    let off = stop_before - n - 1;
    for head in heads.iter().take(off) {
        tracker.in_flight(*head).store(0, std::sync::atomic::Ordering::Release);
    }
    if off > n {
        tracker.returned(heads.iter().copied(), used.0);
    }
    true
}

#[test]
fn a_fresh_area_has_nothing_in_flight_wherever_the_ring_is() {
    let (file, shape) = area();
    let mut first = tracker(&file, shape);
    assert_eq!(first.recover(700).expect("fresh"), [0_u16; 0]);
    first.taken(&[3, 1, 2]);
    first.returning([1].into_iter());
    first.returned([1].into_iter(), 701);
    assert_eq!(tracker(&file, shape).recover(701).expect("recovers"), [3, 2]);
}

#[test]
fn a_stopped_ring_may_start_anywhere() {
    let (file, shape) = area();
    let mut first = tracker(&file, shape);
    first.recover(40_000).expect("fresh");
    first.taken(&[5]);
    first.begin(40_000);
    assert_eq!(tracker(&file, shape).recover(0).expect("a new ring"), [0_u16; 0]);
}

#[test]
fn areas_that_lie() {
    let (file, shape) = area();
    let bad = |change: fn(&mut Description)| {
        let mut shape = shape;
        change(&mut shape);
        open(&file, shape).expect_err("refused")
    };
    assert!(matches!(bad(|s| s.num_queues = 3), BadArea::Shape { .. }));
    assert!(matches!(bad(|s| s.queue_size = 0), BadArea::Shape { .. }));
    assert!(matches!(bad(|s| s.queue_size = 9), BadArea::Shape { .. }));
    assert!(matches!(bad(|s| s.mmap_size = 64), BadArea::Size { .. }));
    assert!(matches!(bad(|s| s.mmap_size = 1 << 40), BadArea::Size { .. }));
    assert!(matches!(bad(|s| s.mmap_offset = u64::MAX), BadArea::Size { .. }));
    let may_shrink = tempfile::tempfile().expect("a file");
    may_shrink.set_len(1 << 16).expect("its size");
    assert!(matches!(open(&may_shrink, shape), Err(BadArea::MayShrink)));
    let fits = Arc::new(open(&file, shape).expect("opens"));
    assert!(matches!(Tracker::new(&fits, 0, 16), Err(BadArea::Ring { .. })));
}

#[test]
fn the_write_cache_is_kept() {
    let (file, shape) = area();
    assert_eq!(open(&file, shape).expect("opens").writeback(), None);
    open(&file, shape).expect("opens").keep_writeback(false);
    assert_eq!(open(&file, shape).expect("opens").writeback(), Some(false));
    // An area of somebody else has no room for it.
    let shorter = Description { mmap_size: shape.mmap_size - 64, ..shape };
    let area = open(&file, shorter).expect("opens");
    area.keep_writeback(true);
    assert_eq!(area.writeback(), None);
    assert_eq!(open(&file, shape).expect("opens").writeback(), Some(false));
}

proptest! {
    /// Whatever the area says, recovery ends, with heads that exist, each once.
    #[test]
    fn any_bytes_end_well(bytes in prop::collection::vec(any::<u8>(), 16 + 16 * SIZE as usize),
                          valid in any::<bool>(), used_idx in any::<u16>()) {
        let (file, shape) = area();
        let region = shape.region_bytes() as u64;
        file.write_at(&bytes, region).expect("written");
        if valid {
            file.write_at(&[1, 0, SIZE as u8, 0], region + 8).expect("written");
        }
        let mut tracker = tracker(&file, shape);
        if let Ok(heads) = tracker.recover(used_idx) {
            let distinct: BTreeSet<u16> = heads.iter().copied().collect();
            prop_assert_eq!(distinct.len(), heads.len());
            prop_assert!(heads.iter().all(|head| *head < SIZE));
            tracker.taken(&heads);
            tracker.returning(heads.iter().copied());
            tracker.returned(heads.iter().copied(), used_idx.wrapping_add(heads.len() as u16));
        }
    }

    /// Goal: whenever the process dies, what the next one resubmits is exactly what the ring
    /// does not have, in the order in which it was taken.
    /// Method: batches of heads are taken and returned, the last return is cut at any step; the
    /// oracle is a list.
    #[test]
    fn a_death_at_any_step(rounds in prop::collection::vec((1_usize..5, any::<u64>()), 1..40),
                           cut in 0_usize..14) {
        let (file, shape) = area();
        let mut used = Used(65_530);
        let mut out: Vec<u16> = Vec::new();
        let mut tracker = tracker(&file, shape);
        tracker.recover(used.0).expect("fresh");
        let last = rounds.len() - 1;
        for (round, (n, seed)) in rounds.into_iter().enumerate() {
            let free: Vec<u16> = (0..SIZE).filter(|head| !out.contains(head)).take(n).collect();
            tracker.taken(&free);
            out.extend(&free);
            let mut seed = seed;
            let count = 1 + seed as usize % out.len();
            let mut batch = Vec::new();
            for _ in 0..count {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                batch.push(out.remove((seed >> 33) as usize % out.len()));
            }
            let stop = if round == last { cut } else { usize::MAX / 2 };
            let before = out.clone();
            if !give_back(&tracker, &mut used, &batch, stop) {
                // Not returned: still out, in the old order, which is that of the counters.
                out = before;
                let mut all: Vec<u16> = batch;
                all.extend(&out);
                all.sort_by_key(|head| {
                    tracker.counter_of(*head).load(std::sync::atomic::Ordering::Relaxed)
                });
                out = all;
            }
        }
        let mut next = super::tests::tracker(&file, shape);
        prop_assert_eq!(next.recover(used.0).expect("recovers"), out);
    }
}
