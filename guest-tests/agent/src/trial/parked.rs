//! Seeing that a thread sleeps where it is expected.
//!
//! In: a thread ID and names of kernel functions. Out: yes, or a time limit.
//! The kernel reports no such event, so /proc is looked at every half millisecond; the look
//! costs no memory and takes no lock that the sleeper holds.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::clock;

const INTERVAL: Duration = Duration::from_micros(500);
/// More than any `/proc/PID/stat` or stack of a thread that sleeps in ext4.
const ROOM: usize = 4096;

/// Two files of /proc about one thread, held open.
pub(super) struct Watch {
    stat: File,
    stack: File,
}

impl Watch {
    /// Opens what /proc says about a thread of this process. Needs CAP_SYS_ADMIN and
    /// CONFIG_STACKTRACE for the stack.
    pub(super) fn new(tid: i32) -> io::Result<Watch> {
        let open = |name: &str| File::open(format!("/proc/self/task/{tid}/{name}"));
        Ok(Watch { stat: open("stat")?, stack: open("stack")? })
    }

    /// Waits until the thread sleeps uninterruptibly with all of `within` on its kernel stack.
    /// `Ok(false)`: it did not within the limit, or `given_up` said so. A thread that ends is an
    /// error.
    pub(super) fn wait(
        &self,
        within: &[String],
        limit: Duration,
        given_up: impl Fn() -> bool,
    ) -> io::Result<bool> {
        let deadline = Instant::now() + limit;
        let mut room = [0; ROOM];
        let mut slept = String::from("nowhere");
        let ended = |error: io::Error, slept: &str| match Errno::from_io_error(&error) {
            Some(Errno::SRCH) => {
                let within = within.join(", ");
                io::Error::other(format!("it ended, and slept in {slept}, not within {within}"))
            }
            _ => error,
        };
        loop {
            let length = self.stat.read_at(&mut room, 0).map_err(|error| ended(error, &slept))?;
            if state(&room[..length]) == Some(b'D') {
                let length =
                    self.stack.read_at(&mut room, 0).map_err(|error| ended(error, &slept))?;
                let stack = &room[..length];
                if within.iter().all(|function| on_stack(stack, function)) {
                    return Ok(true);
                }
                slept = functions(stack);
            }
            if given_up() || Instant::now() >= deadline {
                return Ok(false);
            }
            clock::sleep(INTERVAL);
        }
    }
}

/// The state letter of `/proc/PID/stat`: what follows the last parenthesis of the name.
fn state(stat: &[u8]) -> Option<u8> {
    let end = stat.iter().rposition(|&b| b == b')')?;
    stat.get(end + 2).copied()
}

/// Whether a line of `/proc/PID/stack` (`[<0>] function+0x1/0x2`) names the function. Suffixes
/// that the compiler adds (`.constprop.0`) do not matter.
fn on_stack(stack: &[u8], function: &str) -> bool {
    stack.split(|&b| b == b'\n').any(|line| {
        let name = line.split(|&b| b == b' ').nth(1).unwrap_or_default();
        name.strip_prefix(function.as_bytes())
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b'.')))
    })
}

/// The functions of a stack, innermost first.
fn functions(stack: &[u8]) -> String {
    let names = stack.split(|&b| b == b'\n').filter_map(|line| line.split(|&b| b == b' ').nth(1));
    let name = |name: &[u8]| {
        let end = name.iter().position(|&b| b == b'+').unwrap_or(name.len());
        String::from_utf8_lossy(&name[..end]).into_owned()
    };
    names.map(name).collect::<Vec<_>>().join(" < ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_behind_the_name_whatever_the_name() {
        assert_eq!(state(b"12 (storer) D 1 2"), Some(b'D'));
        assert_eq!(state(b"12 (a) S) R 1 2"), Some(b'R'));
        assert_eq!(state(b"12"), None);
        assert_eq!(state(b"12 ()"), None);
    }

    #[test]
    fn functions_are_matched_whole() {
        let stack = b"[<0>] rwsem_down_write_slowpath+0x2ba/0x470\n[<0>] ext4_da_get_block_prep.cold+0x1/0x2\n";
        assert!(on_stack(stack, "rwsem_down_write_slowpath"));
        assert!(on_stack(stack, "ext4_da_get_block_prep"));
        assert!(!on_stack(stack, "rwsem_down_write"));
        assert!(!on_stack(stack, "ext4_page_mkwrite"));
        assert!(!on_stack(b"", "x"));
        assert_eq!(functions(stack), "rwsem_down_write_slowpath < ext4_da_get_block_prep.cold");
    }
}
