//! What the machine itself can do: nothing that serves requests is faster.
//!
//! In: a job. Out: samples of a thread that only copies, and of two threads that share a ring.
//! Must not know: vhost-user.

mod lane;

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use memmap2::{Advice, MmapMut};
use rustix::time::{ClockId, clock_gettime};

use super::contender::{Contender, Sample, latencies};
use super::job::{Job, Offsets, Op, Wait};
use super::processors::Processors;
use lane::Lane;

/// Anonymous memory on huge pages, every byte written. Blocks in it lie as a guest's do, at the
/// beginning of a page: a processor copies several times slower to what lies a few bytes further in
/// its page than where it comes from.
fn memory(bytes: u64) -> anyhow::Result<MmapMut> {
    let mut memory = MmapMut::map_anon(bytes as usize).context("no memory for a limit")?;
    // Without huge pages it is slower, and still right.
    let _ = memory.advise(Advice::HugePage);
    memory.fill(0x5a);
    Ok(memory)
}

fn cpu_of_thread() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

/// Copies one block between disk and buffer, as the job's request would.
fn copy(disk: &mut [u8], offset: u64, buffer: &mut [u8], op: Op) {
    let block = &mut disk[offset as usize..offset as usize + buffer.len()];
    if op.writes() {
        block.copy_from_slice(buffer);
    } else {
        buffer.copy_from_slice(block);
    }
    black_box(buffer);
}

fn sample(requests: u64, elapsed: Duration, client_cpu: Duration, before: Processors) -> Sample {
    Sample {
        requests,
        failed: 0,
        elapsed,
        latencies: latencies(),
        backend_cpu: None,
        client_cpu,
        others_cpus: f64::NAN,
        stolen: Processors::since(before).stolen,
    }
}

/// One thread that copies.
pub(super) struct Memcpy {
    disk: MmapMut,
    seed: u64,
}

impl Memcpy {
    pub(super) fn new(bytes: u64) -> anyhow::Result<Memcpy> {
        Ok(Memcpy { disk: memory(bytes)?, seed: 0 })
    }
}

impl Contender for Memcpy {
    fn name(&self) -> &'static str {
        "memcpy@memory"
    }

    fn run(&mut self, job: &Job, window: Duration) -> anyhow::Result<Option<Sample>> {
        if matches!(job.op, Op::Flush | Op::Mix(_)) {
            return Ok(None);
        }
        self.seed += 1;
        let mut offsets =
            Offsets::new(&Job { queues: 1, ..*job }, self.disk.len() as u64, 0, self.seed);
        // As many buffers as requests in flight, so that they lie in the same caches.
        let mut buffers = memory(job.block_size * u64::from(job.depth))?;
        let all_before = Processors::now();
        let cpu = cpu_of_thread();
        let begin = Instant::now();
        let mut requests = 0;
        while begin.elapsed() < window {
            for buffer in buffers.chunks_exact_mut(job.block_size as usize) {
                copy(&mut self.disk, offsets.offset(), buffer, job.op);
            }
            requests += u64::from(job.depth);
        }
        let (elapsed, cpu) = (begin.elapsed(), cpu_of_thread().saturating_sub(cpu));
        Ok(Some(sample(requests, elapsed, cpu, all_before)))
    }
}

/// Two threads: one asks, the other copies and answers; each sleeps when it has nothing to do.
pub(super) struct Ring {
    disk: MmapMut,
    seed: u64,
}

impl Ring {
    pub(super) fn new(bytes: u64) -> anyhow::Result<Ring> {
        Ok(Ring { disk: memory(bytes)?, seed: 0 })
    }
}

/// Ends the serving thread.
const OVER: u64 = u64::MAX;
/// Bits of an entry that name the slot; the rest is the offset in sectors.
const SLOT_BITS: u32 = 16;

impl Contender for Ring {
    fn name(&self) -> &'static str {
        "ring@memory"
    }

    fn run(&mut self, job: &Job, window: Duration) -> anyhow::Result<Option<Sample>> {
        if matches!(job.op, Op::Flush | Op::Mix(_)) || job.queues > 1 {
            return Ok(None);
        }
        self.seed += 1;
        let mut offsets = Offsets::new(job, self.disk.len() as u64, 0, self.seed);
        let (asked, answered) = (Lane::new()?, Lane::new()?);
        let mut buffers = memory(job.block_size * u64::from(job.depth))?;
        let sleeps = job.wait == Wait::Event;
        let disk = &mut self.disk;
        let mut latencies = latencies();
        let all_before = Processors::now();
        let (requests, elapsed, cpu) = std::thread::scope(|scope| {
            let (asked, answered) = (&asked, &answered);
            scope.spawn(move || serve(disk, &mut buffers, job, asked, answered));
            let mut ask = |slot: u64| asked.push(((offsets.offset() / 512) << SLOT_BITS) | slot);
            let cpu = cpu_of_thread();
            let begin = Instant::now();
            let mut sent = vec![begin; usize::from(job.depth)];
            let mut in_flight = job.depth;
            let mut requests = 0;
            for slot in 0..u64::from(job.depth) {
                ask(slot);
            }
            asked.notify();
            while in_flight > 0 {
                let now = Instant::now();
                let mut taken = 0;
                while taken < job.depth
                    && let Some(slot) = answered.pop()
                {
                    taken += 1;
                    requests += 1;
                    let at = &mut sent[slot as usize];
                    latencies
                        .saturating_record(now.saturating_duration_since(*at).as_nanos() as u64);
                    if now < begin + window {
                        ask(slot);
                        *at = now;
                    } else {
                        in_flight -= 1;
                    }
                }
                if taken > 0 {
                    asked.notify();
                } else if sleeps {
                    answered.wait();
                } else {
                    std::hint::spin_loop();
                }
            }
            let elapsed = begin.elapsed();
            asked.push(OVER);
            asked.notify();
            (requests, elapsed, cpu_of_thread().saturating_sub(cpu))
        });
        Ok(Some(Sample { latencies, ..sample(requests, elapsed, cpu, all_before) }))
    }
}

fn serve(disk: &mut [u8], buffers: &mut [u8], job: &Job, asked: &Lane, answered: &Lane) {
    let block = job.block_size as usize;
    let sleeps = job.wait == Wait::Event;
    loop {
        let mut any = false;
        while let Some(entry) = asked.pop() {
            if entry == OVER {
                return;
            }
            any = true;
            let slot = entry & ((1 << SLOT_BITS) - 1);
            let buffer = &mut buffers[slot as usize * block..][..block];
            copy(disk, (entry >> SLOT_BITS) * 512, buffer, job.op);
            answered.push(slot);
            answered.notify();
        }
        if !any {
            if sleeps {
                asked.wait();
            } else {
                std::hint::spin_loop();
            }
        }
    }
}
