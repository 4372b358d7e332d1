//! ext4 images: a real one with any bytes changed, then writes that change more of it.
//!
//! In: which disk, its size, changes before it is opened, requests. Out: nothing; see
//! [`Disk::check`].

use arbitrary::{Result, Unstructured};
use pipeline::{Op, Outcome};

use crate::disk::Disk;
use crate::recorded::{self, SECTOR};
use crate::seed::Seed;

/// Requests of one input.
const STEPS_MOST: usize = 64;

pub(crate) fn run(input: &[u8]) {
    // Short of bytes: the input ends there.
    let _ = interpret(&mut Unstructured::new(input));
}

fn interpret(u: &mut Unstructured<'_>) -> Result<()> {
    let base = recorded::disk(u.arbitrary::<u8>()?.into());
    let bytes = match u.arbitrary::<u8>()? % 8 {
        0..4 => base.device_bytes,
        4 => base.device_bytes / 2,
        5 => u64::from(u.arbitrary::<u16>()?) << 20,
        6 => 16 << 40,
        _ => !511,
    };
    let mut disk = Disk::new(base, bytes, u.arbitrary::<u8>()? & 1 == 0);
    for _ in 0..u.arbitrary::<u8>()? % 32 {
        let (sector, mut content) = some_sector(u, &disk)?;
        change(u, &mut content)?;
        disk.sectors.put(sector, &content);
    }
    disk.reopen();
    disk.check();
    for _ in 0..STEPS_MOST {
        if u.is_empty() {
            break;
        }
        step(u, &mut disk)?;
    }
    while disk.open() > 0 {
        disk.complete(0, Outcome::Ok);
    }
    disk.check();
    Ok(())
}

fn step(u: &mut Unstructured<'_>, disk: &mut Disk) -> Result<()> {
    match u.arbitrary::<u8>()? % 8 {
        0..3 => {
            // A block of two sectors as it is, with changes.
            let (sector, _) = some_sector(u, disk)?;
            let sector = sector & !1;
            let mut block = disk.sectors.get(sector).to_vec();
            block.extend(disk.sectors.get(sector + 1));
            for _ in 0..u.arbitrary::<u8>()? % 4 {
                change(u, &mut block)?;
            }
            disk.arrive(Op::Write, sector, 2, Some(block));
        }
        3 => {
            // One block's bytes at another's place.
            let (_, content) = some_sector(u, disk)?;
            let (to, _) = some_sector(u, disk)?;
            disk.arrive(Op::Write, to, 1, Some(content.to_vec()));
        }
        4 => {
            let (sector, _) = some_sector(u, disk)?;
            let op = if u.arbitrary::<u8>()? & 1 == 0 { Op::Discard } else { Op::WriteZeroes };
            disk.arrive(op, sector, u64::from(u.arbitrary::<u16>()?) % 4096, None);
        }
        5 => disk.complete(u.arbitrary::<u8>()?.into(), Outcome::IoErr),
        6 => {
            let (sector, _) = some_sector(u, disk)?;
            disk.classify(sector, u.arbitrary::<u16>()?.into());
            disk.arrive(Op::Flush, 0, 0, None);
        }
        _ => disk.complete(u.arbitrary::<u8>()?.into(), Outcome::Ok),
    }
    Ok(())
}

/// A sector: mostly one that has something in it.
fn some_sector(u: &mut Unstructured<'_>, disk: &Disk) -> Result<(u64, [u8; SECTOR])> {
    let sector = u64::from(u.arbitrary::<u16>()?);
    Ok((sector, disk.sectors.get(sector)))
}

fn change(u: &mut Unstructured<'_>, content: &mut [u8]) -> Result<()> {
    let at = usize::from(u.arbitrary::<u16>()?) % content.len();
    let len = usize::from(u.arbitrary::<u8>()? % 16).min(content.len() - at);
    content[at..at + len].copy_from_slice(u.bytes(len)?);
    Ok(())
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for which in 0..recorded::DISKS as u8 {
        // As it was.
        seeds.push(Seed::default().u8(which).u8(0).u8(0).u8(0).done());
        // The superblock at sector 2: block count, blocks per group, inodes per group.
        for field in [0x04_u16, 0x18, 0x20, 0x28, 0x58, 0x60, 0xFE] {
            let patch = Seed::default().u8(which).u8(0).u8(1).u8(1).u16(2).u16(field);
            seeds.push(patch.u8(4).u32(u32::MAX).done());
        }
        let base = recorded::disk(which.into());
        for sector in base.sectors.keys().step_by(7).take(8) {
            let sector = *sector as u16;
            let written = Seed::default().u8(which).u8(0).u8(0).u8(0);
            seeds.push(written.u8(0).u16(sector).u8(1).u16(4).u8(2).u16(1).u8(7).u8(0).done());
        }
    }
    seeds.push(a_million_groups());
    seeds
}

/// A superblock that promises as many groups as there can be, on a disk that has none of them.
fn a_million_groups() -> Vec<u8> {
    let words = |seed: Seed, field: u16, words: &[u32]| {
        let seed = seed.u16(2).u16(field).u8(words.len() as u8 * 4);
        words.iter().fold(seed, |seed, word| seed.u32(*word))
    };
    let seed = Seed::default().u8(0).u8(6).u8(0).u8(4);
    let seed = words(seed, 0x00, &[1 << 23, 1 << 28]);
    // Blocks of 1 KiB, 256 of them and 8 inodes in a group.
    let seed = words(seed, 0x14, &[1, 0, 0]);
    let seed = words(seed, 0x20, &[256, 256, 8]);
    // Neither journal nor checksums; extents.
    words(seed, 0x5C, &[0, 0x42, 1]).done()
}
