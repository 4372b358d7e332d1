//! Journal streams: log blocks in any order, with any tags, on a real disk.
//!
//! In: descriptors, copies, revokes, commits, superblocks of the log; writes in place; ends of
//! requests in any order. Out: nothing; see [`Disk::check`].

use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use ext4_layout::Layout;
use pipeline::{Op, Outcome};

use crate::disk::Disk;
use crate::recorded;
use crate::seed::Seed;

const STEPS_MOST: usize = 256;
/// Bytes of a block of the recorded disks.
const BLOCK: usize = 1024;
const MAGIC: u32 = 0xC03B_3998;

/// Sectors of the log on each recorded disk: first, and how many.
fn log(which: usize) -> (u64, u64) {
    static LOG: OnceLock<Vec<(u64, u64)>> = OnceLock::new();
    LOG.get_or_init(|| (0..recorded::DISKS).map(find_log).collect())[which % recorded::DISKS]
}

fn find_log(which: usize) -> (u64, u64) {
    let base = recorded::disk(which);
    let mut disk = Disk::new(base, base.device_bytes, true);
    disk.reopen();
    let (mut first, mut end) = (u64::MAX, 0);
    let map = Layout::map(&disk.layout);
    map.classify(0, map.device_sectors(), &mut |span| {
        if span.class.kind().name().starts_with("journal") {
            first = first.min(span.first_sector);
            end = end.max(span.first_sector + span.sectors);
        }
    });
    assert!(first < end, "the recorded disk has a journal");
    (first, end - first)
}

pub(crate) fn run(input: &[u8]) {
    // Short of bytes: the input ends there.
    let _ = interpret(&mut Unstructured::new(input));
}

fn interpret(u: &mut Unstructured<'_>) -> Result<()> {
    let which = usize::from(u.arbitrary::<u8>()?);
    let base = recorded::disk(which);
    let mut disk = Disk::new(base, base.device_bytes, u.arbitrary::<u8>()? & 1 == 0);
    disk.reopen();
    for _ in 0..STEPS_MOST {
        if u.is_empty() {
            break;
        }
        step(u, &mut disk, log(which))?;
    }
    while disk.open() > 0 {
        disk.complete(0, Outcome::Ok);
    }
    disk.check();
    Ok(())
}

fn step(u: &mut Unstructured<'_>, disk: &mut Disk, (first, sectors): (u64, u64)) -> Result<()> {
    let kind = u.arbitrary::<u8>()? % 12;
    let at = |u: &mut Unstructured<'_>| -> Result<u64> {
        let block = u64::from(u.arbitrary::<u16>()?) % (sectors / 2);
        Ok(first + block * 2)
    };
    let header = |kind: u32, sequence: u32| {
        let mut block = vec![0; BLOCK];
        for (at, word) in [MAGIC, kind, sequence].into_iter().enumerate() {
            block[at * 4..at * 4 + 4].copy_from_slice(&word.to_be_bytes());
        }
        block
    };
    match kind {
        0 | 1 => {
            // Descriptor or revoke block: what follows the header is free.
            let at = at(u)?;
            let mut block = header(if kind == 0 { 1 } else { 5 }, u.arbitrary()?);
            let len = usize::from(u.arbitrary::<u8>()?);
            block[12..12 + len].copy_from_slice(u.bytes(len)?);
            disk.arrive(Op::Write, at, 2, Some(block));
        }
        2 => {
            let at = at(u)?;
            let block = header(2, u.arbitrary()?);
            disk.arrive(Op::Write, at, 2, Some(block));
        }
        3 => {
            // The log's superblock as it is, with a new start and sequence.
            let mut block = disk.sectors.get(first).to_vec();
            block.extend(disk.sectors.get(first + 1));
            let field = usize::from(u.arbitrary::<u8>()?) * 4;
            block[field..field + 4].copy_from_slice(u.bytes(4)?);
            disk.arrive(Op::Write, first, 2, Some(block));
        }
        4 | 5 => {
            // A copy of a block, or the block in place, with a change.
            let of = u64::from(u.arbitrary::<u16>()?) % (disk.sectors.bytes / BLOCK as u64) * 2;
            let to = if kind == 4 { at(u)? } else { of };
            let mut block = disk.sectors.get(of).to_vec();
            block.extend(disk.sectors.get(of + 1));
            let field = usize::from(u.arbitrary::<u16>()?) % (BLOCK - 8);
            block[field..field + 8].copy_from_slice(u.bytes(8)?);
            disk.arrive(Op::Write, to, 2, Some(block));
        }
        6 => {
            // One of the guest's own writes.
            let which = usize::from(u.arbitrary::<u8>()?) % recorded::DISKS;
            let writes = &recorded::disk(which).writes;
            let (sector, bytes) = &writes[usize::from(u.arbitrary::<u16>()?) % writes.len()];
            let sectors = bytes.len() as u64 / 512;
            disk.arrive(Op::Write, *sector, sectors, Some(bytes.clone()));
        }
        7 => disk.arrive(Op::Flush, 0, 0, None),
        8 => disk.complete(u.arbitrary::<u8>()?.into(), Outcome::IoErr),
        9 => disk.disconnect(),
        10 => {
            let sector = u64::from(u.arbitrary::<u16>()?);
            disk.arrive(Op::Discard, sector, u64::from(u.arbitrary::<u8>()?), None);
        }
        _ => disk.complete(u.arbitrary::<u8>()?.into(), Outcome::Ok),
    }
    Ok(())
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for which in 0..recorded::DISKS as u8 {
        // What the guest did, in its order, each write ended before the next.
        let mut whole = Seed::default().u8(which).u8(0);
        for write in 0..recorded::disk(which.into()).writes.len().min(120) as u16 {
            whole = whole.u8(6).u8(which).u16(write).u8(11).u8(0);
        }
        seeds.push(whole.done());
        // A descriptor with two tags, their copies, a commit.
        let mut tags = Vec::new();
        for (block, flags) in [(40_u32, 0_u16), (41, 8)] {
            tags.extend(block.to_be_bytes());
            tags.extend([0, 0]);
            tags.extend(flags.to_be_bytes());
            tags.extend([0; 16]);
        }
        let one = Seed::default().u8(which).u8(0);
        let one = one.u8(0).u16(1).u32(2).u8(tags.len() as u8).bytes(&tags);
        let one = one.u8(4).u16(40).u16(2).u16(0).bytes(&[0; 8]);
        let one = one.u8(4).u16(41).u16(3).u16(0).bytes(&[0; 8]);
        let one = one.u8(11).u8(0).u8(11).u8(0).u8(11).u8(0).u8(7).u8(11).u8(0);
        seeds.push(one.u8(2).u16(4).u32(2).u8(11).u8(0).u8(1).u16(5).u32(3).u8(4).u32(20).done());
    }
    seeds
}
