//! Indices that wrap, events that are passed, and wake-ups that must not be lost: against a
//! driver written here that knows nothing of [`Split`].

use std::num::Wrapping;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::mpsc;
use std::time::Duration;

use proptest::prelude::*;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{BadRing, Place, Split, need_event};
use crate::queue::Used;
use crate::segments::Snapshot;

const BASE: u64 = 0x10_0000;
const LEN: usize = 0x10_0000;

fn place(size: u16, event_idx: bool) -> Place {
    Place { desc: BASE, avail: BASE + 0x4_0000, used: BASE + 0x8_0000, size, event_idx }
}

fn memory() -> Snapshot {
    let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(BASE), LEN)]).expect("memory");
    Snapshot::new(std::sync::Arc::new(map))
}

/// The driver's view: plain addresses, the words of the specification.
struct Driver {
    memory: Snapshot,
    place: Place,
    avail_idx: u16,
    used_seen: u16,
    kicked_at: u16,
}

impl Driver {
    fn new(memory: &Snapshot, place: Place, first: u16) -> Driver {
        let driver = Driver {
            memory: memory.clone(),
            place,
            avail_idx: first,
            used_seen: first,
            kicked_at: first,
        };
        driver.word(place.avail + 2).store(first, Ordering::SeqCst);
        driver.word(place.used + 2).store(first, Ordering::SeqCst);
        driver
    }

    fn word(&self, addr: u64) -> &AtomicU16 {
        let at = self.memory.memory().get_host_address(GuestAddress(addr)).expect("mapped");
        // SAFETY: inside the test's memory, aligned, alive as long as `self`.
        unsafe { AtomicU16::from_ptr(at.cast()) }
    }

    fn used_event(&self) -> &AtomicU16 {
        self.word(self.place.avail + 4 + 2 * u64::from(self.place.size))
    }

    fn avail_event(&self) -> &AtomicU16 {
        self.word(self.place.used + 4 + 8 * u64::from(self.place.size))
    }

    fn add(&mut self, head: u16) {
        let entry = u64::from(self.avail_idx % self.place.size);
        self.word(self.place.avail + 4 + 2 * entry).store(head, Ordering::Relaxed);
        self.avail_idx = self.avail_idx.wrapping_add(1);
        self.word(self.place.avail + 2).store(self.avail_idx, Ordering::Release);
    }

    /// Whether the device wants a kick for what was added since the last time.
    fn must_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        if !self.place.event_idx {
            return self.word(self.place.used).load(Ordering::Relaxed) & 1 == 0;
        }
        let event = self.avail_event().load(Ordering::Relaxed);
        let old = std::mem::replace(&mut self.kicked_at, self.avail_idx);
        passed(event, old, self.avail_idx)
    }

    fn next_used(&mut self) -> Option<(u32, u32)> {
        if self.word(self.place.used + 2).load(Ordering::Acquire) == self.used_seen {
            return None;
        }
        let at = self.place.used + 4 + 8 * u64::from(self.used_seen % self.place.size);
        let address = |addr| {
            let at = self.memory.memory().get_host_address(GuestAddress(addr)).expect("mapped");
            // SAFETY: as in `word`.
            unsafe { AtomicU32::from_ptr(at.cast()) }.load(Ordering::Relaxed)
        };
        let element = (address(at), address(at + 4));
        self.used_seen = self.used_seen.wrapping_add(1);
        Some(element)
    }

    /// From now on a call is wanted. True if there is something already.
    fn want_call(&self) -> bool {
        if self.place.event_idx {
            self.used_event().store(self.used_seen, Ordering::Relaxed);
        } else {
            self.word(self.place.avail).store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.word(self.place.used + 2).load(Ordering::Relaxed) != self.used_seen
    }
}

/// The dumb oracle: walks from `old` to `new`, one index at a time, and looks whether it makes
/// `event` happen, which is entry `event` becoming visible.
fn passed(event: u16, old: u16, new: u16) -> bool {
    let mut at = old;
    while at != new {
        if at == event {
            return true;
        }
        at = at.wrapping_add(1);
    }
    false
}

proptest! {
    #[test]
    fn need_event_is_the_walk(old: u16, event: u16, far in 0_u16..=u16::MAX) {
        let new = old.wrapping_add(far);
        let found = need_event(Wrapping(event), Wrapping(new), Wrapping(old));
        prop_assert_eq!(found, passed(event, old, new));
    }

    #[test]
    fn need_event_near_the_wrap(old in 65530_u16.., event in prop_oneof![65525_u16.., 0_u16..8], far in 0_u16..12) {
        let new = old.wrapping_add(far);
        let found = need_event(Wrapping(event), Wrapping(new), Wrapping(old));
        prop_assert_eq!(found, passed(event, old, new));
    }

    /// A device that wants no kick gets none, however much a driver makes available that adds one
    /// chain or many at a time; the first chain after it wants one makes it kick.
    #[test]
    fn kicks_only_where_they_are_wanted(first: u16, size in 1_u32..=15, step in 1_u16..9) {
        let memory = memory();
        let place = place(1 << size, true);
        let mut driver = Driver::new(&memory, place, first);
        let split = Split::new(&memory, place).expect("a ring");
        split.unwant_kick(first);
        for added in 1..=place.size {
            driver.add(0);
            if added % step == 0 || added == place.size {
                prop_assert!(!driver.must_kick(), "after {added} chains");
            }
        }
        prop_assert!(!split.want_kick(first.wrapping_add(place.size)));
        driver.add(0);
        prop_assert!(driver.must_kick());
    }

    /// Batches of any length, from any index on: heads and used elements arrive as they were
    /// sent, and a call is wanted exactly when the walk passes the event.
    #[test]
    fn batches(
        first: u16,
        size_bits in 1_u32..8,
        event_idx: bool,
        steps in prop::collection::vec((1_u16..200, 0_u16..300), 1..40),
    ) {
        let size = 1_u16 << size_bits;
        let memory = memory();
        let place = place(size, event_idx);
        let mut driver = Driver::new(&memory, place, first);
        let mut split = Split::new(&memory, place).expect("a ring");
        let (mut next_avail, mut next_used) = (first, first);
        // The first question is always answered with yes; it is none of this test.
        split.wants_call(first);
        for (number, ahead) in steps {
            let number = number % size + 1;
            let sent: Vec<u16> = (0..number).map(|i| (first.wrapping_add(i)) % size).collect();
            for head in &sent {
                driver.add(*head);
            }
            let mut heads = Vec::new();
            next_avail = split.take(next_avail, &mut heads, usize::from(size)).expect("taken");
            prop_assert_eq!(&heads, &sent);
            driver.used_event().store(driver.used_seen.wrapping_add(ahead), Ordering::Relaxed);
            let event = driver.used_seen.wrapping_add(ahead);
            let used: Vec<Used> =
                heads.iter().map(|head| Used { head: *head, len: u32::from(*head) + 7 }).collect();
            let old = next_used;
            next_used = split.put(next_used, &used).expect("put");
            let wanted = if event_idx { passed(event, old, next_used) } else { true };
            prop_assert_eq!(split.wants_call(next_used), wanted);
            for head in sent {
                prop_assert_eq!(driver.next_used(), Some((u32::from(head), u32::from(head) + 7)));
            }
            prop_assert_eq!(driver.next_used(), None);
        }
    }
}

/// A bell that can be waited for only so long.
struct Bell(AtomicU64, mpsc::SyncSender<()>);

/// Nobody waits longer on a machine that still runs.
const LOST: Duration = Duration::from_secs(20);

impl Bell {
    fn new() -> (Bell, mpsc::Receiver<()>) {
        let (ring, hear) = mpsc::sync_channel(1);
        (Bell(AtomicU64::new(0), ring), hear)
    }

    fn ring(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        // Full: it rings already.
        let _ = self.1.try_send(());
    }
}

/// Driver and device on a thread each, both asleep whenever they may: with a notification lost
/// they would sleep for ever. The indices wrap several times.
fn nobody_sleeps_for_ever(size: u16, event_idx: bool, requests: u32) {
    let memory = memory();
    let place = place(size, event_idx);
    let mut driver = Driver::new(&memory, place, 65500);
    let (kick, kicked) = Bell::new();
    let (call, called) = Bell::new();
    std::thread::scope(|scope| {
        let (memory, kick, call) = (&memory, &kick, &call);
        scope.spawn(move || {
            let mut split = Split::new(memory, place).expect("a ring");
            let (mut next_avail, mut next_used, mut served) = (65500, 65500, 0);
            let mut heads = Vec::new();
            while served < requests {
                split.unwant_kick(next_avail);
                loop {
                    heads.clear();
                    next_avail = split.take(next_avail, &mut heads, 3).expect("taken");
                    if heads.is_empty() {
                        break;
                    }
                    let used: Vec<Used> =
                        heads.iter().map(|head| Used { head: *head, len: 1 }).collect();
                    next_used = split.put(next_used, &used).expect("put");
                    if split.wants_call(next_used) {
                        call.ring();
                    }
                    served += heads.len() as u32;
                }
                if served < requests && !split.want_kick(next_avail) {
                    kicked.recv_timeout(LOST).expect("a kick was lost");
                }
            }
        });
        let (mut sent, mut done) = (0, 0);
        while done < requests {
            // As many as fit: heads are free again in the order in which they were used.
            while sent < requests && sent - done < u32::from(size) {
                driver.add(sent as u16 % size);
                sent += 1;
            }
            if driver.must_kick() {
                kick.ring();
            }
            while driver.next_used().is_some() {
                done += 1;
            }
            let room = sent < requests && sent - done < u32::from(size);
            if done < requests && !room && !driver.want_call() {
                called.recv_timeout(LOST).expect("a call was lost");
            }
        }
    });
}

#[test]
fn no_wake_up_is_lost() {
    nobody_sleeps_for_ever(2, true, 200_000);
    nobody_sleeps_for_ever(64, true, 400_000);
}

#[test]
fn no_wake_up_is_lost_without_event_indices() {
    nobody_sleeps_for_ever(4, false, 100_000);
}

#[test]
fn more_available_than_there_is() {
    let memory = memory();
    let place = place(4, true);
    let driver = Driver::new(&memory, place, 10);
    let split = Split::new(&memory, place).expect("a ring");
    driver.word(place.avail + 2).store(15, Ordering::Relaxed);
    let found = split.take(10, &mut Vec::new(), 64);
    assert_eq!(found, Err(BadRing::Available { available: 5, size: 4 }));
    let found = split.put(10, &[Used { head: 4, len: 0 }]);
    assert_eq!(found, Err(BadRing::Head { head: 4, size: 4 }));
}

#[test]
fn rings_that_are_no_memory() {
    let memory = memory();
    let good = place(256, true);
    assert!(Split::new(&memory, good).is_ok());
    let end = BASE + LEN as u64;
    for bad in [
        Place { desc: end - 4080, ..good },
        Place { avail: end - 516, ..good },
        Place { used: end - 2052, ..good },
        Place { used: u64::MAX - 8, ..good },
        Place { used: good.used + 2, ..good },
        Place { avail: good.avail + 1, ..good },
        Place { size: 0, ..good },
        Place { size: 3, ..good },
    ] {
        assert!(Split::new(&memory, bad).is_err(), "{bad:?}");
    }
    // The last byte counts.
    let exact = Place { avail: end - 518, ..good };
    assert!(Split::new(&memory, exact).is_ok());
}

/// Goal: every index of both rings is right, at the wrap above all. Method: each of the 65536
/// values as the next one, in rings of several sizes, with as much available as there can be and
/// more; the entry of index i says i.
#[test]
fn every_index_wraps() {
    for size in [1, 2, 4, 256, 32768] {
        let memory = memory();
        let place = place(size, true);
        let mut driver = Driver::new(&memory, place, 0);
        let split = Split::new(&memory, place).expect("a ring");
        let mut heads = Vec::with_capacity(4);
        for head in 0..size {
            driver.add(head);
        }
        // Under Miri some of them.
        let step = if cfg!(miri) { 4093 } else { 1 };
        for next in (0..=u16::MAX).step_by(step) {
            for available in [0, 1, size - 1, size, size.wrapping_add(1), u16::MAX] {
                driver.word(place.avail + 2).store(next.wrapping_add(available), Ordering::Relaxed);
                heads.clear();
                let found = split.take(next, &mut heads, 4);
                if available > size {
                    assert_eq!(found, Err(BadRing::Available { available, size }));
                    assert!(heads.is_empty());
                    continue;
                }
                let taken = available.min(4);
                assert_eq!(found, Ok(next.wrapping_add(taken)), "{next} of {size}");
                let wanted = (0..taken).map(|i| next.wrapping_add(i) % size);
                assert!(wanted.eq(heads.iter().copied()), "{next} of {size}: {heads:?}");
                assert_eq!(split.has_more(next), available > 0);
            }
            let used = Used { head: next % size, len: next.into() };
            assert_eq!(split.put(next, &[used]), Ok(next.wrapping_add(1)));
            assert_eq!(split.used_idx(), next.wrapping_add(1));
            driver.used_seen = next;
            assert_eq!(driver.next_used(), Some((used.head.into(), used.len)));
        }
    }
}
