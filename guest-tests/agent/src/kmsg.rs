//! The kernel log, from a position on.
//!
//! In: /dev/kmsg. Out: parsed lines. Must not know: what a line means.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use agent::wire::KernelLine;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// Longest record that the kernel hands out (`CONSOLE_EXT_LOG_MAX`).
const RECORD_BYTES: usize = 8192;

/// A reader of the kernel log.
pub(crate) struct Kmsg {
    file: File,
}

impl Kmsg {
    /// Opens the log behind its last line.
    pub(crate) fn at_end() -> io::Result<Kmsg> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Kmsg { file })
    }

    /// All lines since the last call.
    pub(crate) fn lines(&mut self) -> io::Result<Vec<KernelLine>> {
        let mut lines = Vec::new();
        let mut record = [0; RECORD_BYTES];
        loop {
            match self.file.read(&mut record) {
                Ok(length) => lines.extend(parse(&record[..length])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(lines),
                // Lines were overwritten before they were read; what is left follows.
                Err(error) if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => {
                    lines.push(KernelLine {
                        at_us: 0,
                        level: 4,
                        text: "racegate-agent: kernel log lines were lost".into(),
                    });
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// `priority,sequence,microseconds,flags[,...];text\n[ KEY=value\n ...]`, see
/// Documentation/ABI/testing/dev-kmsg.
fn parse(record: &[u8]) -> Option<KernelLine> {
    let record = String::from_utf8_lossy(record);
    let (head, body) = record.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.trim().parse().ok()?;
    let at_us = fields.nth(1)?.parse().ok()?;
    let text = body.split_once('\n').map_or(body, |(text, _)| text).to_owned();
    Some(KernelLine { at_us, level: (priority & 7) as u8, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_parsed() {
        let record = b"3,411,1234567,-;EXT4-fs (vda): Inode 12: x\n SUBSYSTEM=block\n DEVICE=b1\n";
        let line = parse(record).unwrap();
        assert_eq!(line.at_us, 1_234_567);
        assert_eq!(line.level, 3);
        assert_eq!(line.text, "EXT4-fs (vda): Inode 12: x");
        // Facility bits (user space, 1 << 3) do not change the level.
        assert_eq!(parse(b"12,1,5,-,caller=T1;hello\n").unwrap().level, 4);
    }

    #[test]
    fn what_is_no_record_is_skipped() {
        for record in [&b""[..], b"garbage", b"a,b,c;d", b"1,2;text", b"\xff;\xff"] {
            assert_eq!(parse(record), None, "{record:?}");
        }
    }
}
