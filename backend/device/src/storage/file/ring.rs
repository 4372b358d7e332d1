//! A channel to an image through io_uring: many operations in flight, one ring per queue thread.
//!
//! In: operations. Out: results, announced by the ring's own descriptor: one that is collected
//! before anybody sleeps costs no system call.
//! Must not know: virtqueues, requests.
//!
//! The channel owns the segments of an operation until the kernel is done with it, also when it
//! is dropped: dropping waits.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use tracing::{error, warn};

use super::pinned::Pinned;
use super::spot::{Reads, Writes};
use super::window::Window;
use crate::segments::{AlignedBuf, Segments, Snapshot};
use crate::storage::image::{IOV_MAX, Image, ZERO_CHUNK, ZeroStep, is_unsupported};
use crate::storage::{Channel, Io, IoResult, Submitted};

/// Operations that the kernel may have at a time; more wait in `backlog`. The completion queue
/// is as long, so it never overflows.
const IN_FLIGHT_MAX: u32 = 1024;
/// Length of the submission queue.
const SUBMISSIONS: u32 = 256;

/// Index of the image among the registered files.
const FILE: types::Fixed = types::Fixed(0);
/// Index of the same image through the page cache (the same file without O_DIRECT).
const FILE_BUFFERED: types::Fixed = types::Fixed(1);

/// Whether that failure to set a ring up means that the system does not want us to have one
/// (sysctl `io_uring_disabled`, seccomp, old kernel, RLIMIT_MEMLOCK).
pub(super) fn is_not_permitted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::ENOMEM | libc::EINVAL)
    )
}

/// An operation on its way.
enum Job {
    Read { at: u64, to: Segments, bounce: Option<Bounce> },
    Write { at: u64, from: Segments, durable: bool },
    Flush,
    Discard { at: u64, len: u64 },
    Zero { at: u64, len: u64, step: ZeroStep, durable: bool },
    WriteZeroes { at: u64, end: u64, chunk: Segments, durable: bool },
}

/// Where a read goes when the guest's memory does not suit O_DIRECT.
struct Bounce {
    buf: AlignedBuf,
    done: usize,
}

/// What to do when the kernel is done with a job for now.
enum Next {
    Again,
    Done(IoResult),
}

struct Slot {
    token: u64,
    /// None while the slot is free.
    job: Option<Job>,
}

pub(super) struct RingChannel {
    ring: IoUring,
    image: Arc<Image>,
    /// Boxed: the kernel reads the lists of addresses in a slot until the operation is submitted,
    /// and the table may grow before that. Used again, so that a warm channel allocates nothing.
    #[expect(clippy::vec_box, reason = "the addresses of slots must not change")]
    slots: Vec<Box<Slot>>,
    free: Vec<usize>,
    backlog: VecDeque<usize>,
    in_flight: u32,
    /// Those of `in_flight` that the kernel has not been told of.
    unsubmitted: u32,
    /// Those of this batch that it was told of.
    told: u32,
    ended: Vec<(usize, i32)>,
    reads: Reads,
    writes: Writes,
    window: Window,
    /// `None`: guest memory is not pinned.
    pinned: Option<Pinned>,
}

impl RingChannel {
    pub(super) fn new(image: Arc<Image>, pin_memory: bool) -> io::Result<RingChannel> {
        let ring = new_ring()?;
        let submitter = ring.submitter();
        submitter.register_files(&[image.fd().as_raw_fd(), image.buffered_fd().as_raw_fd()])?;
        let through_cache = image.align() == 1;
        let window = if through_cache { Window::new(&image) } else { Window::closed() };
        Ok(RingChannel {
            ring,
            image,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            in_flight: 0,
            unsubmitted: 0,
            told: 0,
            ended: Vec::new(),
            reads: Reads::new(through_cache),
            writes: Writes::new(through_cache),
            window,
            pinned: pin_memory.then(Pinned::default),
        })
    }

    fn job(&self, io: Io) -> Job {
        let align = self.image.align() as usize;
        match io {
            Io::Read { offset, to } => {
                let bounce = (self.image.fits_direct(offset, to.len()) && !to.is_aligned(align))
                    .then(|| Bounce { buf: AlignedBuf::zeroed(to.len() as usize), done: 0 });
                Job::Read { at: offset, to, bounce }
            }
            Io::Write { offset, from, durable } => {
                let from = if self.image.fits_direct(offset, from.len()) && !from.is_aligned(align)
                {
                    Segments::private(from.to_private())
                } else {
                    from
                };
                Job::Write { at: offset, from, durable }
            }
            Io::Flush => Job::Flush,
            Io::Discard { offset, len } => Job::Discard { at: offset, len },
            Io::WriteZeroes { offset, len, unmap, durable } => {
                zero_job(offset, len, self.image.zero_step(unmap), durable)
            }
        }
    }

    fn insert(&mut self, token: u64, job: Job) -> usize {
        let job = Some(job);
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index];
            (slot.token, slot.job) = (token, job);
            index
        } else {
            self.slots.push(Box::new(Slot { token, job }));
            self.slots.len() - 1
        }
    }

    /// Hands a slot's job to the kernel, or lets it wait for room.
    fn start(&mut self, index: usize) {
        if self.in_flight >= IN_FLIGHT_MAX {
            self.backlog.push_back(index);
            return;
        }
        let Some(job) = &self.slots[index].job else {
            return;
        };
        let entry = prepare(job, &self.image, self.pinned.as_ref()).user_data(index as u64);
        // SAFETY: the addresses in the entry are of memory that the slot owns, and the slot
        // stays (boxed) until the kernel has given its completion.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit();
        }
        self.in_flight += 1;
        self.unsubmitted += 1;
        // A disk that has nothing to do begins while the rest of the batch is still being prepared.
        // Whether it has is not known: what is thought to be in flight may have ended.
        if self.unsubmitted >= self.told {
            self.submit();
        }
    }

    fn submit(&mut self) {
        loop {
            match self.ring.submit() {
                Ok(_) => break,
                // EINTR: a signal. EAGAIN, EBUSY: the kernel is short of memory for a moment;
                // everything stays in the submission queue.
                Err(e)
                    if matches!(
                        e.raw_os_error(),
                        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                    ) =>
                {
                    std::thread::yield_now();
                }
                Err(e) => {
                    // Nothing that a guest can cause: the ring itself is misused.
                    error!(error = %e, "io_uring refuses submissions");
                    break;
                }
            }
        }
        self.told += self.unsubmitted;
        self.unsubmitted = 0;
    }

    /// Takes what the kernel has finished, goes on with what is not complete, and gives the rest
    /// to `done`.
    fn collect(&mut self, done: &mut dyn FnMut(u64, IoResult)) {
        let mut ended = std::mem::take(&mut self.ended);
        ended.extend(self.ring.completion().map(|cqe| (cqe.user_data() as usize, cqe.result())));
        for &(index, result) in &ended {
            self.in_flight -= 1;
            let slot = &mut self.slots[index];
            let Some(job) = slot.job.as_mut() else {
                continue;
            };
            match advance(job, result, &self.image) {
                Next::Again => self.start(index),
                Next::Done(result) => {
                    let token = slot.token;
                    slot.job = None;
                    self.free.push(index);
                    done(token, result);
                }
            }
        }
        ended.clear();
        self.ended = ended;
        while self.in_flight < IN_FLIGHT_MAX
            && let Some(index) = self.backlog.pop_front()
        {
            self.start(index);
        }
        if self.unsubmitted > 0 {
            self.submit();
        }
    }
}

impl Channel for RingChannel {
    /// A read of what is in the page cache, by a call that does not wait, or a write to it.
    fn at_once(&mut self, io: &mut Io) -> Option<IoResult> {
        match io {
            Io::Read { offset, to } if self.window.read(*offset, to) => Some(Ok(())),
            Io::Read { offset, to } if self.reads.worth_a_try() => {
                let Ok(hit) = self.image.read_cached(*offset, to) else {
                    self.reads.give_up();
                    return None;
                };
                self.reads.tried(hit);
                if hit {
                    self.window.found(*offset, to.len());
                }
                hit.then_some(Ok(()))
            }
            Io::Write { offset, from, durable: false }
                if self.writes.suits(*offset, from.len()) =>
            {
                let begun = Instant::now();
                if !self.writes.worth_a_try(begun) {
                    return None;
                }
                let result = self.image.write(*offset, from, false);
                let now = Instant::now();
                self.writes.took(now, now - begun);
                Some(result)
            }
            _ => None,
        }
    }

    fn follow_memory(&mut self, memory: &Snapshot) {
        // What was prepared goes by the numbers of before.
        self.flush_submissions();
        if let Some(pinned) = &mut self.pinned
            && let Err(error) = pinned.replace(&self.ring.submitter(), memory)
        {
            warn!(
                %error,
                "guest memory cannot be pinned (RLIMIT_MEMLOCK, or memory that is neither \
                 anonymous nor shared): going on without"
            );
            self.pinned = None;
        }
    }

    fn soon(&self, offset: u64, len: u64) {
        self.window.soon(offset, len);
    }

    fn submit(&mut self, token: u64, io: Io) -> Submitted {
        let job = self.job(io);
        let index = self.insert(token, job);
        self.start(index);
        Submitted::Pending
    }

    fn flush_submissions(&mut self) {
        if self.unsubmitted > 0 {
            RingChannel::submit(self);
        }
        self.told = 0;
    }

    /// Needs no system call to see what there is.
    fn reap(&mut self, done: &mut dyn FnMut(u64, IoResult)) {
        self.collect(done);
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring keeps its descriptor open as long as it lives, and it outlives `self`'s
        // borrow.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }
}

impl Drop for RingChannel {
    /// Waits for the kernel: it may still write to the segments.
    fn drop(&mut self) {
        self.backlog.clear();
        while self.in_flight > 0 {
            if let Err(e) = self.ring.submit_and_wait(1)
                && e.raw_os_error() != Some(libc::EINTR)
            {
                error!(error = %e, "cannot wait for io_uring; leaking its buffers");
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.in_flight -= self.ring.completion().count() as u32;
        }
        if let Some(pinned) = &mut self.pinned {
            // The ring goes in any case, and what it has pinned with it.
            let _ = pinned.release(&self.ring.submitter());
        }
    }
}

/// A ring whose completions do not interrupt the thread that works: it enters the kernel soon
/// enough (IORING_SETUP_COOP_TASKRUN, Linux 5.19).
fn new_ring() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(IN_FLIGHT_MAX).setup_clamp();
    let without = builder.clone();
    match builder.setup_coop_taskrun().build(SUBMISSIONS) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => without.build(SUBMISSIONS),
        made => made,
    }
}

fn zero_job(at: u64, len: u64, step: ZeroStep, durable: bool) -> Job {
    if step == ZeroStep::Write {
        let zeroes = Arc::new(AlignedBuf::zeroed(len.min(ZERO_CHUNK) as usize));
        Job::WriteZeroes { at, end: at + len, chunk: Segments::private(zeroes), durable }
    } else {
        Job::Zero { at, len, step, durable }
    }
}

/// The next thing to ask of the kernel for that job.
fn prepare(job: &Job, image: &Image, pinned: Option<&Pinned>) -> squeue::Entry {
    let file = |at: u64, len: u64| {
        if image.fits_direct(at, len) { FILE } else { FILE_BUFFERED }
    };
    match job {
        Job::Read { at, bounce: Some(Bounce { buf, done }), .. } => {
            let left = buf.len() - done;
            // SAFETY: done <= buf.len().
            let to = unsafe { buf.as_ptr().add(*done) };
            opcode::Read::new(file(*at, left as u64), to, left as u32).offset(*at).build()
        }
        Job::Read { at, to, bounce: None } => match to.iovecs() {
            [one] => {
                let (file, to) = (file(*at, to.len()), one.iov_base.cast());
                let len = one.iov_len as u32;
                match pinned.and_then(|pinned| pinned.buffer(one)) {
                    Some(number) => {
                        opcode::ReadFixed::new(file, to, len, number).offset(*at).build()
                    }
                    None => opcode::Read::new(file, to, len).offset(*at).build(),
                }
            }
            many => opcode::Readv::new(
                file(*at, to.len()),
                many.as_ptr(),
                many.len().min(IOV_MAX) as u32,
            )
            .offset(*at)
            .build(),
        },
        Job::Write { at, from, durable } => {
            write_entry(file(*at, from.len()), *at, from, *durable, pinned)
        }
        Job::WriteZeroes { at, end, chunk, durable } => {
            debug_assert!(chunk.len() <= end - at);
            write_entry(file(*at, chunk.len()), *at, chunk, *durable, None)
        }
        Job::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        Job::Discard { at, len } => fallocate_entry(ZeroStep::Punch, *at, *len),
        Job::Zero { at, len, step, .. } => fallocate_entry(*step, *at, *len),
    }
}

fn fallocate_entry(step: ZeroStep, at: u64, len: u64) -> squeue::Entry {
    let mode = step.mode().map_or(0, |mode| mode.bits());
    opcode::Fallocate::new(FILE_BUFFERED, len).offset(at).mode(mode.cast_signed()).build()
}

fn write_entry(
    file: types::Fixed,
    at: u64,
    from: &Segments,
    durable: bool,
    pinned: Option<&Pinned>,
) -> squeue::Entry {
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    match from.iovecs() {
        [one] => {
            let (from, len) = (one.iov_base.cast::<u8>(), one.iov_len as u32);
            match pinned.and_then(|pinned| pinned.buffer(one)) {
                Some(number) => opcode::WriteFixed::new(file, from, len, number)
                    .offset(at)
                    .rw_flags(flags)
                    .build(),
                None => opcode::Write::new(file, from, len).offset(at).rw_flags(flags).build(),
            }
        }
        many => opcode::Writev::new(file, many.as_ptr(), many.len().min(IOV_MAX) as u32)
            .offset(at)
            .rw_flags(flags)
            .build(),
    }
}

/// Takes the kernel's answer into account.
fn advance(job: &mut Job, result: i32, image: &Image) -> Next {
    let result = u64::try_from(result).map_err(|_| Errno::from_raw_os_error(-result));
    if matches!(result, Err(Errno::INTR | Errno::AGAIN)) {
        return Next::Again;
    }
    match job {
        Job::Read { at, to, bounce } => {
            let n = match moved(result) {
                Ok(n) => n,
                Err(errno) => return Next::Done(Err(errno)),
            };
            *at += n;
            if let Some(bounce) = bounce {
                bounce.done += n as usize;
                if bounce.done < bounce.buf.len() {
                    return Next::Again;
                }
                to.write(0, bounce.buf.as_slice());
                return Next::Done(Ok(()));
            }
            to.advance(n);
            if to.is_empty() { Next::Done(Ok(())) } else { Next::Again }
        }
        Job::Write { at, from, .. } => match moved(result) {
            Ok(n) => {
                *at += n;
                from.advance(n);
                if from.is_empty() { Next::Done(Ok(())) } else { Next::Again }
            }
            Err(errno) => Next::Done(Err(errno)),
        },
        Job::WriteZeroes { at, end, chunk, .. } => match moved(result) {
            Ok(n) => {
                *at += n;
                chunk.truncate(*end - *at);
                if at == end { Next::Done(Ok(())) } else { Next::Again }
            }
            Err(errno) => Next::Done(Err(errno)),
        },
        Job::Flush => Next::Done(result.map(drop)),
        Job::Discard { .. } => Next::Done(match result {
            Err(errno) if is_unsupported(errno) => {
                // A discard is advice: not following it is no error.
                image.no_punch(errno);
                Ok(())
            }
            other => other.map(drop),
        }),
        Job::Zero { at, len, step, durable } => match result {
            Ok(_) if *durable => {
                *job = Job::Flush;
                Next::Again
            }
            Err(errno) if is_unsupported(errno) => {
                *job = zero_job(*at, *len, image.after_unsupported(*step, errno), *durable);
                Next::Again
            }
            other => Next::Done(other.map(drop)),
        },
    }
}

/// Bytes moved by a transfer that is not complete: none at all would go on for ever, and means
/// that the file shrank under us.
fn moved(result: Result<u64, Errno>) -> Result<u64, Errno> {
    match result {
        Ok(0) => Err(Errno::IO),
        other => other,
    }
}

#[cfg(test)]
mod tests;
