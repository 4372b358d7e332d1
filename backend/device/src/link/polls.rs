//! Polls of the guest that wait for a message.
//!
//! In: reads, messages, time. Out: each read answered, in order, at most
//! [`POLL_LIMIT_MS`](agent::wire::POLL_LIMIT_MS) after it came.
//! Must not know: what a message means.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use agent::wire::POLL_LIMIT_MS;
use pipeline::Nanos;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::mailbox::{Mailbox, Next};
use crate::clock::Clock;
use crate::segments::Segments;
use crate::storage::IoResult;

/// The polls of one queue.
pub(super) struct Polls {
    waiting: VecDeque<Poll>,
    clock: Clock,
    /// Readable when a message came, or a poll should be looked at.
    event: Arc<OwnedFd>,
    /// Readable when the first poll has waited long enough.
    timer: OwnedFd,
    /// Readable when one of the two is.
    either: OwnedFd,
    /// The frame at hand; kept for its memory.
    frame: Vec<u8>,
}

struct Poll {
    token: u64,
    to: Segments,
    limit: Nanos,
    /// Its queue is being stopped: it waits no longer, and gets no message, because the guest
    /// may never see the answer.
    hurried: bool,
}

impl Polls {
    pub(super) fn new(mailbox: &Mailbox) -> io::Result<Polls> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let either = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&either, &*event, data, epoll::EventFlags::IN)?;
        epoll::add(&either, &timer, data, epoll::EventFlags::IN)?;
        mailbox.wake(&event);
        Ok(Polls {
            waiting: VecDeque::new(),
            clock: Clock::start(),
            event,
            timer,
            either,
            frame: Vec::new(),
        })
    }

    /// Readable when [`Polls::answer`] has something to do.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.either.as_fd()
    }

    /// Adds a poll; a message that waits already is given by the next [`Polls::answer`].
    pub(super) fn add(&mut self, token: u64, to: Segments) {
        let limit = self.clock.now().plus(POLL_LIMIT_MS * 1_000_000);
        self.waiting.push_back(Poll { token, to, limit, hurried: false });
        self.look();
    }

    /// The polls so far wait no longer.
    pub(super) fn hurry(&mut self) {
        self.waiting.iter_mut().for_each(|poll| poll.hurried = true);
        self.look();
    }

    fn look(&self) {
        // A counter that cannot take one more is readable anyway.
        let _ = rustix::io::write(&*self.event, &1_u64.to_ne_bytes());
    }

    /// Answers the polls that can be.
    pub(super) fn answer(&mut self, mailbox: &Mailbox, done: &mut dyn FnMut(u64, IoResult)) {
        // Both before the mailbox: what comes later signals again.
        let _ = rustix::io::read(&*self.event, &mut [0_u8; 8]);
        let _ = rustix::io::read(&self.timer, &mut [0_u8; 8]);
        let now = self.clock.now();
        while let Some(poll) = self.waiting.pop_front() {
            let next = if poll.hurried {
                Next::Nothing
            } else {
                mailbox.next(poll.to.len(), &mut self.frame)
            };
            match next {
                Next::Frame => {}
                Next::NoRoom => {
                    done(poll.token, Err(Errno::MSGSIZE));
                    continue;
                }
                Next::Nothing if poll.hurried || poll.limit <= now => {
                    mailbox.empty(&mut self.frame);
                }
                Next::Nothing => {
                    self.waiting.push_front(poll);
                    break;
                }
            }
            poll.to.write(0, &self.frame);
            let used = self.frame.len() as u64;
            let rest = poll.to.len().saturating_sub(used);
            poll.to.zero(used, usize::try_from(rest).unwrap_or(usize::MAX));
            done(poll.token, Ok(()));
        }
        if let Some(poll) = self.waiting.front() {
            self.set_timer(poll.limit);
        }
    }

    fn set_timer(&self, limit: Nanos) {
        let timer = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: self.clock.absolute(limit),
        };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &timer) {
            tracing::error!(%error, "cannot set the timer of the link disk: polls may wait for ever");
        }
    }
}
