//! Counters: how many requests each queue ended, and how long they took.
//!
//! In: what was taken and what ended, batch by batch, from the queue's worker. Out: values for
//! whoever asks.
//! Must not know: who asks, rules, rings.
//!
//! Every counter is written by one thread and read by others: a load and a store, no lock, no
//! locked instruction, no queue on another's cache line. The clock is read once for each batch
//! that is taken from the ring and once for each that is returned, so the time of a request goes
//! from one to the other.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ext4_layout::Kind;
use pipeline::Op;
use pipeline::traffic::{
    BUCKETS, ClassTraffic, OpTraffic, QueueTraffic, Traffic, bucket_of, latency,
};

const OPS: usize = Op::ALL.len();
const KINDS: usize = Kind::ALL.len();

/// Adds to a counter that only this thread writes.
#[inline]
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// One operation of one queue, or of one class.
#[derive(Debug)]
struct OpCounters {
    bytes: AtomicU64,
    failed: AtomicU64,
    sum_ns: AtomicU64,
    /// How many requests took how long; their number is the sum.
    buckets: [AtomicU64; BUCKETS],
}

impl OpCounters {
    fn new() -> OpCounters {
        OpCounters {
            bytes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            sum_ns: AtomicU64::new(0),
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
        }
    }

    /// Requests that ended together: their number, and the bytes of all.
    #[inline]
    fn record(&self, done: &Done, number: u64, bytes: u64, took_ns: u64) {
        if done.failed {
            add(&self.failed, number);
        } else {
            add(&self.bytes, bytes);
        }
        add(&self.sum_ns, number.wrapping_mul(took_ns));
        // `bucket_of` is below BUCKETS, which the compiler does not see.
        if let Some(bucket) = self.buckets.get(bucket_of(took_ns)) {
            add(bucket, number);
        }
    }
}

/// Sums of the counters of one operation, of one queue or several.
struct Total {
    bytes: u64,
    failed: u64,
    sum_ns: u64,
    counts: [u64; BUCKETS],
}

impl Total {
    const ZERO: Total = Total { bytes: 0, failed: 0, sum_ns: 0, counts: [0; BUCKETS] };

    fn add(&mut self, of: &OpCounters) {
        self.bytes += get(&of.bytes);
        self.failed += get(&of.failed);
        self.sum_ns = self.sum_ns.wrapping_add(get(&of.sum_ns));
        for (sum, bucket) in self.counts.iter_mut().zip(&of.buckets) {
            *sum += get(bucket);
        }
    }

    /// `None` if nothing occurred.
    fn traffic(&self, op: Op) -> Option<OpTraffic> {
        let latency = latency(&self.counts, self.sum_ns)?;
        let (requests, latency) = (latency.count, Some(latency));
        Some(OpTraffic { op, requests, bytes: self.bytes, failed: self.failed, latency })
    }
}

/// What is known of a request while it is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begun {
    /// `None`: it reaches no storage (GET_ID), or was no good, and is not counted here.
    pub op: Option<Op>,
    /// What it touches, as far as that was looked at ([`Kind::bit`]).
    pub kinds: u32,
    /// What it moves, discards or zeroes.
    pub bytes: u64,
    /// From [`QueueCounters::now_ns`].
    pub at_ns: u64,
}

/// A request that ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub begun: Begun,
    pub failed: bool,
}

impl Done {
    /// Whether both are counted in the same places.
    #[inline]
    fn is_like(&self, other: &Done) -> bool {
        let of = |done: &Done| (done.begun.op, done.begun.kinds, done.begun.at_ns, done.failed);
        of(self) == of(other)
    }
}

/// The counters of one queue.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct QueueCounters {
    start: Instant,
    ops: [OpCounters; OPS],
    /// By class and operation; each is made when it first occurs.
    classes: [OnceLock<Box<OpCounters>>; KINDS * OPS],
    refused: AtomicU64,
    batches: AtomicU64,
    in_flight: AtomicU64,
    parked: AtomicU64,
}

impl QueueCounters {
    fn new() -> QueueCounters {
        QueueCounters {
            start: Instant::now(),
            ops: std::array::from_fn(|_| OpCounters::new()),
            classes: [const { OnceLock::new() }; KINDS * OPS],
            refused: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            parked: AtomicU64::new(0),
        }
    }

    /// The time, as latencies are made of it.
    pub(crate) fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// A request was answered without being carried out.
    pub(crate) fn refuse(&self) {
        add(&self.refused, 1);
    }

    /// What is under way now.
    pub(crate) fn hold(&self, in_flight: usize, parked: usize) {
        self.in_flight.store(in_flight as u64, Ordering::Relaxed);
        self.parked.store(parked as u64, Ordering::Relaxed);
    }

    /// A batch was returned to the driver; leaves `done` empty.
    pub(crate) fn record(&self, done: &mut Vec<Done>) {
        add(&self.batches, 1);
        let now_ns = self.now_ns();
        // Most that are returned together were taken together, and are alike.
        for alike in done.chunk_by(Done::is_like) {
            let (Some(done), number) = (alike.first(), alike.len() as u64) else { continue };
            let Some(op) = done.begun.op else { continue };
            let bytes = alike.iter().fold(0, |sum: u64, one| sum.wrapping_add(one.begun.bytes));
            let took_ns = now_ns.saturating_sub(done.begun.at_ns);
            self.ops[op as usize].record(done, number, bytes, took_ns);
            let mut kinds = done.begun.kinds;
            while kinds != 0 {
                let index = kinds.trailing_zeros() as usize * OPS + op as usize;
                kinds &= kinds - 1;
                if let Some(class) = self.classes.get(index) {
                    let class = class.get_or_init(|| Box::new(OpCounters::new()));
                    class.record(done, number, bytes, took_ns);
                }
            }
        }
        done.clear();
    }

    fn traffic(&self, queue: u16) -> QueueTraffic {
        let ops = Op::ALL.iter().zip(&self.ops).filter_map(|(op, of)| {
            let mut total = Total::ZERO;
            total.add(of);
            total.traffic(*op)
        });
        QueueTraffic {
            queue,
            in_flight: get(&self.in_flight),
            parked: get(&self.parked),
            refused: get(&self.refused),
            batches: get(&self.batches),
            ops: ops.collect(),
        }
    }
}

/// The counters of a disk: they outlive its connections.
#[derive(Debug)]
pub(crate) struct Counters(Box<[QueueCounters]>);

impl Counters {
    /// All zero, for that many queues.
    pub(crate) fn new(queues: u16) -> Counters {
        Counters((0..queues).map(|_| QueueCounters::new()).collect())
    }

    /// Those of one queue; `None` past the last.
    pub(crate) fn queue(&self, queue: u16) -> Option<&QueueCounters> {
        self.0.get(usize::from(queue))
    }

    /// What there is to tell.
    pub(crate) fn traffic(&self) -> Traffic {
        let queues = self.0.iter().enumerate().map(|(n, queue)| queue.traffic(n as u16));
        let mut classes = Vec::new();
        for (index, class) in Kind::ALL.into_iter().enumerate() {
            for op in Op::ALL {
                let mut total = Total::ZERO;
                for queue in &self.0 {
                    if let Some(of) = queue.classes[index * OPS + op as usize].get() {
                        total.add(of);
                    }
                }
                classes.extend(total.traffic(op).map(|of| ClassTraffic { class, of }));
            }
        }
        Traffic { queues: queues.collect(), classes }
    }
}

#[cfg(test)]
mod tests {
    use super::{Begun, Counters, Done, Kind, Op};

    #[test]
    fn what_failed_moved_nothing_and_what_reached_no_storage_is_not_counted() {
        let counters = Counters::new(4);
        let queue = counters.queue(3).expect("four queues");
        let (kinds, bytes) = (Kind::BlockBitmap.bit() | Kind::InodeTable.bit(), 4096);
        let begun = Begun { op: Some(Op::Read), kinds, bytes, at_ns: queue.now_ns() };
        let id = Begun { op: None, kinds: 0, bytes: 20, at_ns: 0 };
        let mut done = vec![
            Done { begun, failed: false },
            Done { begun, failed: true },
            Done { begun: id, failed: false },
        ];
        queue.record(&mut done);
        assert!(done.is_empty());
        queue.refuse();
        queue.hold(5, 2);

        let traffic = counters.traffic();
        assert_eq!(traffic.queues.len(), 4);
        assert_eq!((traffic.queues[0].batches, traffic.queues[0].ops.len()), (0, 0));
        let of = &traffic.queues[3];
        assert_eq!((of.queue, of.batches, of.refused), (3, 1, 1));
        assert_eq!((of.in_flight, of.parked, of.ops.len()), (5, 2, 1));
        assert_eq!((of.ops[0].requests, of.ops[0].failed, of.ops[0].bytes), (2, 1, 4096));
        assert_eq!(of.ops[0].latency.as_ref().map(|of| of.count), Some(2));
        let classes: Vec<_> = traffic.classes.iter().map(|of| (of.class, of.of.requests)).collect();
        assert_eq!(classes, [(Kind::BlockBitmap, 2), (Kind::InodeTable, 2)]);
    }

    /// Goal: times are those between the looks at the clock. Queues add up by class.
    #[test]
    fn queues_add_up() {
        let counters = Counters::new(2);
        for queue in [0, 1] {
            let of = counters.queue(queue).expect("two queues");
            let kinds = Kind::FileData.bit();
            let begun = Begun { op: Some(Op::Write), kinds, bytes: 512, at_ns: of.now_ns() };
            let before = std::time::Instant::now();
            while before.elapsed().as_micros() < 300 {}
            of.record(&mut vec![Done { begun, failed: false }]);
        }
        let traffic = counters.traffic();
        assert_eq!((traffic.requests(), traffic.classes.len()), (2, 1));
        let of = &traffic.classes[0].of;
        assert_eq!((of.requests, of.bytes), (2, 1024));
        assert!(of.latency.as_ref().is_some_and(|of| of.min_ns >= 256_000 && of.p50_ns >= 256_000));
    }
}
