//! One timer for every delay and every limit of a hold: one thread, one timerfd.
//!
//! In: the earliest time at which something is due. Out: a call of the handler at that time.
//! Must not know: what is due.
//!
//! The timerfd fires early, by what wake-ups took lately (`Lead`), and the thread spins over
//! the rest. It spins only when something is due, so an idle daemon costs nothing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use pipeline::Nanos;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::clock::Clock;
use crate::lead::Lead;
use crate::sandbox::{self, Role};

/// Longest time that the thread is woken early and spins, in nanoseconds.
const SPIN_MAX_NS: u64 = 200_000;

/// Nothing is due.
const NEVER: u64 = u64::MAX;

/// A running timer; its thread ends when this is dropped.
#[derive(Debug)]
pub struct Timer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Sets a [`Timer`].
#[derive(Clone, Debug)]
pub struct Alarm {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    fd: OwnedFd,
    clock: Clock,
    /// What is waited for; [`NEVER`] if nothing is.
    due: AtomicU64,
    /// What the timerfd is set for: earlier than that.
    fires: AtomicU64,
    /// How much earlier.
    lead: Lead,
    stop: AtomicBool,
}

impl Alarm {
    /// An alarm whose timer does not run yet.
    ///
    /// # Errors
    /// When the system gives no timerfd.
    pub fn new(clock: Clock) -> io::Result<Alarm> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let shared = Shared {
            fd,
            clock,
            due: AtomicU64::new(NEVER),
            fires: AtomicU64::new(0),
            lead: Lead::new(SPIN_MAX_NS),
            stop: AtomicBool::new(false),
        };
        Ok(Alarm { shared: Arc::new(shared) })
    }

    /// Has the handler called at `due`, or before.
    ///
    /// Calls must not race with each other: the caller holds the lock under which `due` was
    /// found. A later time than the one set is not set again: the handler is called too early
    /// once, finds nothing due, and sets the right time. That spares a system call for each
    /// request that is let go before its limit.
    pub fn set(&self, due: Nanos) {
        if due.0 < self.shared.due.load(Ordering::Relaxed) {
            self.shared.due.store(due.0, Ordering::Release);
            self.shared.program(Nanos(due.0.saturating_sub(self.shared.lead.get_ns())));
        }
    }

    /// Starts the thread that calls `handler` when something is due. The handler sets the alarm
    /// again for what comes next, under the same lock as everybody else.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(&self, mut handler: impl FnMut() + Send + 'static) -> io::Result<Timer> {
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name("rg-timer".into()).spawn(move || {
            sandbox::narrow(Role::Timer);
            while shared.wait() {
                handler();
            }
        })?;
        Ok(Timer { shared: Arc::clone(&self.shared), thread: Some(thread) })
    }
}

impl Shared {
    fn program(&self, at: Nanos) {
        // A time that is past fires now, and says nothing about how long wake-ups take.
        self.fires.store(at.max(self.clock.now()).0, Ordering::Release);
        // A zero time would disarm the timerfd; the clock's own zero never is one, the machine
        // having booted before.
        let timer = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: self.clock.absolute(at),
        };
        if let Err(error) = timerfd_settime(&self.fd, TimerfdTimerFlags::ABSTIME, &timer) {
            tracing::error!(%error, "cannot set the timer: delays will be late");
        }
    }

    /// Waits until something is due; `false`: the timer was dropped.
    fn wait(&self) -> bool {
        loop {
            if self.stop.load(Ordering::Acquire) {
                return false;
            }
            match rustix::io::read(self.fd.as_fd(), &mut [0_u8; 8]) {
                Ok(_) => {
                    let fired = Nanos(self.fires.load(Ordering::Acquire));
                    self.lead.observe(self.clock.now().since(fired));
                    if self.spin() {
                        return true;
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot wait for the timer: delays have stopped");
                    return false;
                }
            }
        }
    }

    /// Waits actively until the due time, which may come closer meanwhile; `false`: nothing is
    /// due (the handler already did what the timerfd was set for), or the timer was dropped.
    fn spin(&self) -> bool {
        loop {
            let due = self.due.load(Ordering::Acquire);
            if due == NEVER || self.stop.load(Ordering::Relaxed) {
                return false;
            }
            if self.clock.now().0 >= due {
                self.due.store(NEVER, Ordering::Release);
                return true;
            }
            std::hint::spin_loop();
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.program(Nanos(0));
        if let Some(thread) = self.thread.take() {
            // The handler may hold the last reference to the owner of this timer.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("the timer thread panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::Alarm;
    use crate::clock::Clock;

    /// Sets one time after another and prints how late the handler was called; asserts only
    /// that it never was early and always came.
    #[test]
    fn never_early() {
        let clock = Clock::start();
        let alarm = Alarm::new(clock).expect("timerfd");
        let (sender, receiver) = mpsc::channel();
        let _timer =
            alarm.start(move || sender.send(clock.now()).expect("the test waits")).expect("thread");
        let mut late_ns = Vec::new();
        for delay_us in [0, 20, 100, 500, 1000, 5000].repeat(20) {
            let due = clock.now().plus(delay_us * 1000);
            alarm.set(due);
            let at = receiver.recv_timeout(Duration::from_secs(10)).expect("the alarm");
            assert!(at >= due, "called {} ns early", due.since(at));
            late_ns.push(at.since(due));
        }
        late_ns.sort_unstable();
        println!(
            "timer late by: median {} ns, p90 {} ns, max {} ns",
            late_ns[late_ns.len() / 2],
            late_ns[late_ns.len() * 9 / 10],
            late_ns[late_ns.len() - 1]
        );
    }

    /// A later time must not push back an earlier one, an earlier one must come first.
    #[test]
    fn earliest_wins() {
        let clock = Clock::start();
        let alarm = Alarm::new(clock).expect("timerfd");
        let (sender, receiver) = mpsc::channel();
        let _timer =
            alarm.start(move || sender.send(clock.now()).expect("the test waits")).expect("thread");
        let now = clock.now();
        let soon = now.plus(20_000_000);
        alarm.set(now.plus(3_600_000_000_000));
        alarm.set(soon);
        alarm.set(now.plus(1_800_000_000_000));
        let at = receiver.recv_timeout(Duration::from_secs(10)).expect("the alarm");
        assert!(at >= soon);
    }
}
