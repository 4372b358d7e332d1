//! The load itself: one thread for each queue keeps that many requests in flight.
//!
//! In: queues of a client, a job. Out: a [`Sample`].
//! Must not know: what the backend is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use campaign::interrupt;
use device::client::{ClientError, ClientQueue, Waker};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, clock_gettime};

use super::contender::latencies;
use super::job::{Ask, Job, Offsets, Wait};

/// How long a request may take before the backend counts as stuck.
const STUCK: Duration = Duration::from_secs(30);

/// What one thread did.
pub(super) struct Done {
    pub(super) requests: u64,
    pub(super) failed: u64,
    pub(super) latencies: Histogram<u64>,
    pub(super) cpu: Duration,
}

/// What a thread needs to know.
struct Order<'a> {
    job: &'a Job,
    bytes: u64,
    seed: u64,
    until: Instant,
    /// Set when there is no use in waiting.
    given_up: &'a AtomicBool,
}

/// Keeps the queues busy for `window`; nothing is in flight on return.
///
/// # Errors
/// When the backend dies (`alive` says so) or does not answer.
pub(super) fn run(
    queues: &mut [ClientQueue],
    job: &Job,
    bytes: u64,
    seed: u64,
    window: Duration,
    alive: impl Fn() -> bool,
) -> anyhow::Result<(Vec<Done>, Duration)> {
    let given_up = AtomicBool::new(false);
    let begin = Instant::now();
    let order = Order { job, bytes, seed, until: begin + window, given_up: &given_up };
    let wakers: Vec<Waker> = queues.iter().map(ClientQueue::waker).collect();
    let used = usize::from(job.queues);
    std::thread::scope(|scope| {
        let (results, inbox) = mpsc::channel();
        for (index, queue) in queues.iter_mut().take(used).enumerate() {
            let (order, results) = (&order, results.clone());
            scope.spawn(move || {
                // The receiver waits for every thread.
                let _ = results.send(drive(queue, index as u16, order));
            });
        }
        let mut done = Vec::new();
        let mut failure = None;
        while done.len() < used && failure.is_none() {
            match inbox.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(result)) => done.push(result),
                Ok(Err(error)) => failure = Some(anyhow::Error::new(error)),
                Err(_) if interrupt::requested() => failure = Some(anyhow::anyhow!("interrupted")),
                Err(_) if !alive() => failure = Some(anyhow::anyhow!("the backend has ended")),
                Err(_) if begin.elapsed() > window + STUCK => {
                    failure = Some(anyhow::anyhow!("the backend does not answer"));
                }
                Err(_) => {}
            }
        }
        if let Some(failure) = failure {
            given_up.store(true, Ordering::Release);
            for waker in &wakers {
                waker.wake();
            }
            return Err(failure);
        }
        Ok((done, begin.elapsed()))
    })
}

fn cpu_of_thread() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// Adds the next request under that slot.
fn ask(
    queue: &mut ClientQueue,
    slot: u16,
    offsets: &mut Offsets,
    len: usize,
) -> Result<(), ClientError> {
    match offsets.ask() {
        Ask::Read(offset) => queue.read(slot, offset, len),
        Ask::Write(offset) => queue.write(slot, offset, len),
        Ask::Flush => queue.flush(slot),
    }
}

fn drive(queue: &mut ClientQueue, index: u16, order: &Order<'_>) -> Result<Done, ClientError> {
    let Order { job, bytes, seed, until, given_up } = *order;
    let mut offsets = Offsets::new(job, bytes, index, seed);
    let len = job.block_size as usize;
    let cpu_before = cpu_of_thread();
    let mut done = Done { requests: 0, failed: 0, latencies: latencies(), cpu: Duration::ZERO };
    let mut sent = vec![Instant::now(); usize::from(queue.slots())];
    let mut in_flight = job.depth;
    queue.want_call(false);
    for slot in 0..job.depth {
        ask(queue, slot, &mut offsets, len)?;
    }
    queue.kick()?;
    while in_flight > 0 && !given_up.load(Ordering::Relaxed) {
        // One look at the clock for all that has ended by now.
        let now = Instant::now();
        let mut taken = 0;
        while taken < job.depth
            && let Some((slot, ok)) = queue.next_ended()
        {
            taken += 1;
            done.requests += 1;
            done.failed += u64::from(!ok);
            let took = now.saturating_duration_since(sent[usize::from(slot)]);
            done.latencies.saturating_record(took.as_nanos() as u64);
            if now < until {
                ask(queue, slot, &mut offsets, len)?;
                sent[usize::from(slot)] = now;
            } else {
                in_flight -= 1;
            }
        }
        if taken > 0 {
            queue.kick()?;
        } else if job.wait == Wait::Poll {
            std::hint::spin_loop();
        } else {
            queue.want_call(true);
            if !queue.has_ended() {
                queue.wait()?;
            }
            queue.want_call(false);
        }
    }
    done.cpu = cpu_of_thread().saturating_sub(cpu_before);
    Ok(done)
}

/// Bytes of one request while a disk is filled.
const FILL_BYTES: usize = 64 << 10;

/// Writes the whole disk once, with bytes that are all different from a hole.
///
/// # Errors
/// When the backend refuses writes, or dies.
pub(super) fn fill(
    queue: &mut ClientQueue,
    bytes: u64,
    alive: impl Fn() -> bool + Send,
) -> anyhow::Result<()> {
    const DEPTH: u16 = 8;
    let waker = queue.waker();
    let (over, ended) = mpsc::channel::<()>();
    let given_up = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let given_up = &given_up;
        scope.spawn(move || {
            while ended.recv_timeout(Duration::from_millis(100))
                == Err(mpsc::RecvTimeoutError::Timeout)
            {
                if !alive() || interrupt::requested() {
                    given_up.store(true, Ordering::Release);
                    waker.wake();
                    return;
                }
            }
        });
        let filled = fill_queue(queue, bytes, DEPTH, given_up);
        drop(over);
        filled
    })
}

fn fill_queue(
    queue: &mut ClientQueue,
    bytes: u64,
    depth: u16,
    given_up: &AtomicBool,
) -> anyhow::Result<()> {
    let mut text = vec![0_u8; FILL_BYTES];
    let mut at = 0;
    let mut next = |queue: &mut ClientQueue, slot| -> anyhow::Result<bool> {
        if at >= bytes {
            return Ok(false);
        }
        let len = FILL_BYTES.min((bytes - at) as usize);
        for (index, word) in text.chunks_exact_mut(8).enumerate() {
            let value = (at + index as u64 * 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            word.copy_from_slice(&value.to_le_bytes());
        }
        queue.fill(slot, &text[..len])?;
        queue.write(slot, at, len)?;
        at += len as u64;
        Ok(true)
    };
    let mut in_flight = 0;
    for slot in 0..depth {
        in_flight += u32::from(next(queue, slot)?);
    }
    queue.kick()?;
    while in_flight > 0 {
        if given_up.load(Ordering::Relaxed) {
            bail!("the backend has ended, or the run was interrupted");
        }
        queue.want_call(true);
        if !queue.has_ended() {
            queue.wait().context("waiting for a write")?;
        }
        queue.want_call(false);
        while let Some((slot, ok)) = queue.next_ended() {
            if !ok {
                bail!("the backend refused to write");
            }
            in_flight -= 1;
            in_flight += u32::from(next(queue, slot)?);
        }
        queue.kick()?;
    }
    Ok(())
}
