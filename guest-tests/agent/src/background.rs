//! A write that is under way while its thread goes on.
//!
//! In: a file, where, how many bytes of which value. Out: whether it was written.
//! With `ioctl` and `mapping`, the only unsafe code of the agent.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};

use crate::link::Aligned;

/// A write in the kernel's hands. Whoever drops it waits for its end.
pub(crate) struct Background {
    ring: IoUring,
    bytes: u32,
    done: bool,
    /// What is written; the kernel reads it until the write is done.
    _data: Aligned,
    /// Open as long as the write lasts.
    _file: File,
}

impl Background {
    /// Submits a write.
    pub(crate) fn write(
        file: &File,
        offset: u64,
        bytes: usize,
        value: u8,
    ) -> io::Result<Background> {
        let file = file.try_clone()?;
        let mut data = Aligned::full_of(value, bytes);
        let length = u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut ring = IoUring::new(1)?;
        let start = data.bytes(bytes).as_ptr();
        let entry =
            opcode::Write::new(types::Fd(file.as_raw_fd()), start, length).offset(offset).build();
        // SAFETY: `data` and `file` move into the value that is returned, whose memory on the heap
        // and whose descriptor stay where they are, and which does not end before the write does.
        let pushed = unsafe { ring.submission().push(&entry) };
        pushed.map_err(io::Error::other)?;
        let write = Background { ring, bytes: length, done: false, _data: data, _file: file };
        write.ring.submit()?;
        Ok(write)
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> io::Result<()> {
        let written = self.ended()?;
        if written == self.bytes {
            return Ok(());
        }
        Err(io::Error::other(format!("{written} of {} bytes were written", self.bytes)))
    }

    fn ended(&mut self) -> io::Result<u32> {
        loop {
            if let Some(entry) = self.ring.completion().next() {
                self.done = true;
                let written = u32::try_from(entry.result());
                return written.map_err(|_| io::Error::from_raw_os_error(-entry.result()));
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if !self.done {
            // How it ended is nobody's business any more.
            drop(self.ended());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_written_in_the_background_is_there_at_the_end() {
        let file = tempfile::tempfile().unwrap();
        // A machine may forbid io_uring.
        let Ok(write) = Background::write(&file, 100, 5000, 7) else { return };
        write.wait().unwrap();
        drop(Background::write(&file, 0, 100, 8).unwrap());
        let mut bytes = vec![0; 5100];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..100].iter().all(|&byte| byte == 8));
        assert!(bytes[100..].iter().all(|&byte| byte == 7));
    }

    #[test]
    fn a_write_that_fails_says_so() {
        let file = File::open("/proc/self/exe").unwrap();
        let Ok(write) = Background::write(&file, 0, 1, 7) else { return };
        assert_eq!(write.wait().unwrap_err().raw_os_error(), Some(9));
    }
}
