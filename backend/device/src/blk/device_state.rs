//! Device state: what of a stopped device is not in its guest's memory (vhost-user.rst,
//! "Migrating back-end state").
//!
//! In: the `writeback` byte, or a pipe with what another daemon wrote. Out: the other of the two.
//! Must not know: connections.
//!
//! All of it fits into a pipe, so nothing is ever waited for: the front-end writes it and closes
//! its end before it asks whether it arrived.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// How a state begins: what it is, and its version.
const MAGIC: [u8; 9] = *b"racegate\x01";
/// Magic and the `writeback` byte.
const BYTES: usize = MAGIC.len() + 1;

/// A transfer that was begun.
#[derive(Debug)]
pub(super) enum Transfer {
    /// The state went out, or did not.
    Saved(io::Result<()>),
    /// The state comes from here.
    Loading(File),
}

impl Transfer {
    /// Writes the state.
    pub(super) fn save(mut to: File, writeback: bool) -> Transfer {
        let state = [&MAGIC[..], &[u8::from(writeback)]].concat();
        Transfer::Saved(never_wait(&to).and_then(|()| to.write_all(&state)))
    }

    /// Ends a transfer; one that loads gives the `writeback` byte.
    ///
    /// # Errors
    /// The state did not go out, or what came is none.
    pub(super) fn end(self) -> io::Result<Option<bool>> {
        let from = match self {
            Transfer::Saved(result) => return result.map(|()| None),
            Transfer::Loading(from) => from,
        };
        never_wait(&from)?;
        let mut state = Vec::new();
        from.take(BYTES as u64 + 1).read_to_end(&mut state)?;
        match state.strip_prefix(&MAGIC) {
            Some(&[writeback @ 0..=1]) => Ok(Some(writeback != 0)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn never_wait(file: &File) -> io::Result<()> {
    Ok(fcntl_setfl(file, fcntl_getfl(file)? | OFlags::NONBLOCK)?)
}
