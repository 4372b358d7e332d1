//! What the process with the mapping and the reader say to each other, on a Unix stream socket.
//!
//! In: values. Out: bytes, and back. Both ends are on one machine and of one build.
//! Must not know: sockets, userfaultfd.
//!
//! A message is [`MESSAGE_BYTES`] long; [`Message::Mapped`] carries the userfaultfd (SCM_RIGHTS).
//! Each is answered with the byte [`DONE`].

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Environment variable that holds a [`Target`].
pub const VARIABLE: &str = "RACEGATE_STORES";

/// Length of every message.
pub const MESSAGE_BYTES: usize = 40;

/// The answer to every message: it has been acted upon.
pub const DONE: u8 = 1;

/// First word of every message, where the lowest byte is the kind.
const MAGIC: u64 = 0x7263_5374_6f72_0100;

/// Which file is watched, and where its reader listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Device that the file is on, as `st_dev` has it.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// The reader's socket.
    pub socket: PathBuf,
}

impl Target {
    /// The value of [`VARIABLE`]: `DEVICE:INODE:SOCKET`.
    pub fn to_variable(&self) -> OsString {
        let mut text = OsString::from(format!("{}:{}:", self.device, self.inode));
        text.push(&self.socket);
        text
    }

    /// Reads the value of [`VARIABLE`]; `None` if it is none.
    pub fn from_variable(value: &OsStr) -> Option<Target> {
        let mut parts = value.as_bytes().splitn(3, |byte| *byte == b':');
        let mut number = || str::from_utf8(parts.next()?).ok()?.parse().ok();
        let (device, inode) = (number()?, number()?);
        let socket = parts.next().filter(|path| !path.is_empty())?;
        Some(Target { device, inode, socket: OsString::from_vec(socket.to_vec()).into() })
    }
}

/// A message to the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// The file was mapped, and is registered with the userfaultfd that comes along.
    Mapped {
        /// Address of the mapping's first byte.
        address: u64,
        /// Its length, whole pages.
        bytes: u64,
        /// Which byte of the file is at `address`.
        file_offset: u64,
        /// Whether only stores in user mode can be seen: those of the kernel on behalf of the
        /// process (KVM, read(2) into the mapping) fail.
        user_mode_only: bool,
    },
    /// The file was mapped, but no userfaultfd is to be had for it.
    Refused {
        /// What was refused.
        step: Step,
        /// Why.
        errno: i32,
    },
    /// The process flushes the file.
    Flush,
    /// Somebody wants to see the next store to each page.
    Protect,
}

/// Steps towards a registered mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// userfaultfd(2), and `/dev/userfaultfd`.
    Open,
    /// UFFDIO_API with the features that are needed.
    Features,
    /// UFFDIO_REGISTER.
    Register,
}

impl Message {
    /// The message as bytes.
    pub fn encode(&self) -> [u8; MESSAGE_BYTES] {
        let words = match *self {
            Message::Mapped { address, bytes, file_offset, user_mode_only } => {
                [MAGIC | 1, address, bytes, file_offset, user_mode_only.into()]
            }
            Message::Refused { step, errno } => [MAGIC | 2, step as u64, errno as u64, 0, 0],
            Message::Flush => [MAGIC | 3, 0, 0, 0, 0],
            Message::Protect => [MAGIC | 4, 0, 0, 0, 0],
        };
        let mut bytes = [0; MESSAGE_BYTES];
        for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        bytes
    }

    /// The bytes as a message; `None` if they are none.
    pub fn decode(bytes: &[u8; MESSAGE_BYTES]) -> Option<Message> {
        let word = |n: usize| u64::from_le_bytes(std::array::from_fn(|at| bytes[n * 8 + at]));
        Some(match word(0) ^ MAGIC {
            1 => Message::Mapped {
                address: word(1),
                bytes: word(2),
                file_offset: word(3),
                user_mode_only: word(4) != 0,
            },
            2 => {
                let steps = [Step::Open, Step::Features, Step::Register];
                let step = steps.into_iter().find(|step| *step as u64 == word(1))?;
                Message::Refused { step, errno: word(2) as i32 }
            }
            3 => Message::Flush,
            4 => Message::Protect,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_reads_back_and_nothing_else_does() {
        let target = Target { device: 29, inode: 7, socket: "/tmp/a:b/s".into() };
        assert_eq!(Target::from_variable(&target.to_variable()), Some(target));
        for wrong in ["", "1", "1:2", "1:2:", "x:2:/s", "1:-2:/s"] {
            assert_eq!(Target::from_variable(OsStr::new(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn messages_read_back_and_nothing_else_does() {
        let mapped = Message::Mapped {
            address: 0x7f00_0000_0000,
            bytes: 64 << 20,
            file_offset: 4096,
            user_mode_only: true,
        };
        let refused = Message::Refused { step: Step::Register, errno: 22 };
        for message in [mapped, refused, Message::Flush, Message::Protect] {
            assert_eq!(Message::decode(&message.encode()), Some(message));
            let mut wrong = message.encode();
            wrong[1] ^= 1;
            assert_eq!(Message::decode(&wrong), None);
        }
        assert_eq!(Message::decode(&[0; MESSAGE_BYTES]), None);
    }
}
