//! Carrying out lists of calls, one file each, and looking at the file after every call.
//!
//! In: a [`List`]. Out: a [`ListResult`]. The file system is mounted, and its settings keep
//! writeback away (see the host's side).
//! Must not know: what the kernel should show.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use agent::wire::{Call, FallocateMode, List, ListResult, MOST_BLOCKS, Run, Seen};
use rustix::fs::{FallocateFlags, OFlags};

use crate::ioctl::{self, Extent};
use crate::link::Aligned;
use crate::mapping::Mapping;
use crate::trial::Stage;

/// Carries one list out and removes its file.
pub(crate) fn run(stage: &mut Stage, id: u64, blocks: u64, list: &List) -> ListResult {
    stage.kernel_lines();
    let mut result = ListResult { id, number: list.number, ..ListResult::default() };
    if let Err(error) = perform(stage, blocks.min(MOST_BLOCKS), list, &mut result) {
        result.error = Some(error.to_string());
    }
    result.kernel = stage.kernel_lines();
    result.kernel.truncate(16);
    result
}

fn perform(stage: &Stage, blocks: u64, list: &List, result: &mut ListResult) -> io::Result<()> {
    let path = stage.root().join(format!("list{}", list.number));
    let delayed = format!("/sys/fs/ext4/{}/delayed_allocation_blocks", stage.disk());
    let outcome = Subject::create(&path, &delayed, blocks).and_then(|mut subject| {
        for call in &list.calls {
            let outcome = subject.call(call);
            result.steps.push(subject.look(outcome, list.map || *call == Call::Fiemap)?);
        }
        Ok(())
    });
    // The file is closed: its last user is gone with its last link.
    let removed = fs::remove_file(&path);
    result.left = read_number(&delayed)?;
    outcome.and(removed)
}

/// The file of one list.
struct Subject<'a> {
    file: File,
    direct: File,
    /// Bytes in a block.
    block: u64,
    /// Blocks that are looked at.
    blocks: u64,
    delayed: &'a str,
    buffer: Aligned,
}

impl Subject<'_> {
    fn create<'a>(path: &Path, delayed: &'a str, blocks: u64) -> io::Result<Subject<'a>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let direct = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::DIRECT.bits().cast_signed())
            .open(path)?;
        let block = file.metadata()?.blksize();
        Ok(Subject { file, direct, block, blocks, delayed, buffer: Aligned::new() })
    }

    /// Carries a call out. Out: what was read, one number a block.
    fn call(&mut self, call: &Call) -> io::Result<Vec<i16>> {
        match *call {
            Call::Write(offset, length, fill) => {
                let data = self.buffer.bytes(length as usize);
                data.fill(fill);
                self.file.write_all_at(data, offset)?;
            }
            Call::DirectWrite(offset, length, fill) => {
                let data = self.buffer.bytes(length as usize);
                data.fill(fill);
                self.direct.write_all_at(data, offset)?;
            }
            Call::Read(offset, length) => return self.read(false, offset, length),
            Call::DirectRead(offset, length) => return self.read(true, offset, length),
            Call::Store(offset, length, fill) => self.mapping()?.fill(offset, length, fill)?,
            Call::Msync(offset, length) => self.mapping()?.sync(offset, length)?,
            Call::Fallocate(mode, offset, length) => {
                rustix::fs::fallocate(&self.file, falloc_flags(mode), offset, length)?;
            }
            Call::Truncate(size) => self.file.set_len(size)?,
            Call::Fsync => self.file.sync_all()?,
            Call::ClearEs => ioctl::clear_es_cache(&self.file)?,
            // Part of what is looked at.
            Call::Fiemap => {}
        }
        Ok(Vec::new())
    }

    /// A mapping of the file as far as it reaches: nothing beyond can be touched, which would end
    /// init by SIGBUS.
    fn mapping(&self) -> io::Result<Mapping> {
        Mapping::new(&self.file, self.file.metadata()?.len())
    }

    fn read(&mut self, direct: bool, offset: u64, length: u64) -> io::Result<Vec<i16>> {
        let file = if direct { &self.direct } else { &self.file };
        let left = file.metadata()?.len().saturating_sub(offset);
        let buffer = self.buffer.bytes(length.min(left) as usize);
        let mut got = 0;
        while got < buffer.len() {
            match file.read_at(&mut buffer[got..], offset + got as u64)? {
                0 => break,
                more => got += more,
            }
        }
        Ok(buffer[..got].chunks(self.block as usize).map(uniform).collect())
    }

    fn look(&self, outcome: io::Result<Vec<i16>>, map: bool) -> io::Result<Seen> {
        let (errno, data) = match outcome {
            Ok(data) => (0, data),
            Err(error) => match error.raw_os_error() {
                Some(errno) => (errno, Vec::new()),
                None => return Err(error),
            },
        };
        let metadata = self.file.metadata()?;
        let status = self.runs(self.extent_status()?);
        let all = self.blocks * self.block;
        let map = map.then(|| ioctl::fiemap(&self.file, 0, all)).transpose()?;
        Ok(Seen {
            errno,
            size: metadata.size(),
            sectors: metadata.blocks(),
            delayed: read_number(self.delayed)?,
            status,
            map: map.map(|extents| self.runs(extents)),
            data,
        })
    }

    /// The whole dump: the kernel ends it at a gap where it starts, and passes over later ones.
    fn extent_status(&self) -> io::Result<Vec<Extent>> {
        let all = self.blocks * self.block;
        for first in 0..self.blocks {
            let start = first * self.block;
            let extents = ioctl::es_cache(&self.file, start, all - start)?;
            if !extents.is_empty() {
                return Ok(extents);
            }
        }
        Ok(Vec::new())
    }

    /// Bytes to blocks, cut to what is looked at.
    fn runs(&self, extents: Vec<Extent>) -> Vec<Run> {
        let run = |extent: Extent| {
            let first = extent.logical / self.block;
            let end = (extent.logical.saturating_add(extent.length)) / self.block;
            let len = end.min(self.blocks).saturating_sub(first);
            Run(first, len, extent.physical / self.block, extent.flags)
        };
        extents.into_iter().map(run).filter(|run| run.1 != 0).collect()
    }
}

fn uniform(block: &[u8]) -> i16 {
    match block.first() {
        Some(&first) if block.iter().all(|&byte| byte == first) => i16::from(first),
        _ => -1,
    }
}

fn read_number(path: &str) -> io::Result<u64> {
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

/// The flags of fallocate(2) for a mode.
pub(crate) fn falloc_flags(mode: FallocateMode) -> FallocateFlags {
    match mode {
        FallocateMode::Allocate => FallocateFlags::empty(),
        FallocateMode::KeepSize => FallocateFlags::KEEP_SIZE,
        FallocateMode::PunchHole => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        FallocateMode::ZeroRange => FallocateFlags::ZERO_RANGE,
        FallocateMode::ZeroRangeKeepSize => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
        FallocateMode::CollapseRange => FallocateFlags::COLLAPSE_RANGE,
        FallocateMode::InsertRange => FallocateFlags::INSERT_RANGE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_its_byte_or_mixed() {
        assert_eq!([uniform(&[7; 512]), uniform(&[0; 4]), uniform(&[7, 8])], [7, 0, -1]);
    }

    #[test]
    fn extents_become_blocks_of_the_window() {
        let file = tempfile::tempfile().unwrap();
        let subject = Subject {
            direct: file.try_clone().unwrap(),
            file,
            block: 4096,
            blocks: 8,
            delayed: "",
            buffer: Aligned::new(),
        };
        let extent = |logical, length| Extent { logical, length, ..Extent::default() };
        let runs =
            subject.runs(vec![extent(4096, 8192), extent(16384, 1 << 40), extent(65536, 4096)]);
        assert_eq!(runs, [Run(1, 2, 0, 0), Run(4, 4, 0, 0)]);
    }

    #[test]
    fn calls_on_an_ordinary_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut subject = Subject::create(&folder.path().join("f"), "", 8).unwrap();
        subject.call(&Call::Write(0, 8192, 9)).unwrap();
        subject.call(&Call::Store(4096, 4096, 5)).unwrap();
        assert_eq!(subject.call(&Call::Read(0, 16384)).unwrap(), [9, 5]);
        assert!(subject.call(&Call::Store(8192, 1, 5)).is_err());
        subject.call(&Call::Msync(4096, 4096)).unwrap();
        subject.call(&Call::Truncate(4096)).unwrap();
        assert_eq!(subject.call(&Call::Read(0, 16384)).unwrap(), [9]);
    }
}
