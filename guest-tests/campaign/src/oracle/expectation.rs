//! The class of every block as e2fsprogs tells it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use ext4_layout::{Class, Home, Written};

use super::debugfs::{self, Logged, Piece, Stat, Type};
use super::dumpe2fs::{Dump, Range};
use super::{OracleError, run};

const FLAG_EA_INODE: u64 = 0x20_0000;
const BAD_BLOCKS_INODE: u32 = 1;
const RESIZE_INODE: u32 = 7;
/// Blocks without an owner that `icheck` is asked about, at most: it compares each block of the
/// file system with each of them.
const ICHECK_MAX: usize = 2000;

/// What each block of a file system is.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// By block number.
    pub classes: Vec<Class>,
    /// Block groups.
    pub groups: u32,
}

impl Expectation {
    /// Asks e2fsprogs about the file system that starts `offset` bytes into the image.
    ///
    /// # Errors
    /// A tool cannot be run, or says what this module does not understand.
    pub fn read(image: &Path, offset: u64) -> Result<Expectation, OracleError> {
        let dump = Dump::parse(&run("dumpe2fs", image, &[&name(image, offset)])?)?;
        if !dump.has("needs_recovery") {
            return read_clean(image, offset, &dump, &[]);
        }
        let log = debugfs::run(image, &name(image, offset), "logdump -a\n")?;
        let io_error = |source| OracleError::Image { path: image.into(), source };
        let folder = tempfile::tempdir().map_err(io_error)?;
        let copy = folder.path().join("replayed.img");
        fs::copy(image, &copy).map_err(io_error)?;
        run("e2fsck", &copy, &["-p", "-E", "journal_only", &name(&copy, offset)])?;
        let dump = Dump::parse(&run("dumpe2fs", &copy, &[&name(&copy, offset)])?)?;
        read_clean(&copy, offset, &dump, &debugfs::log(&log))
    }
}

/// The name under which e2fsprogs finds a file system inside an image.
fn name(image: &Path, offset: u64) -> String {
    let path = image.display();
    if offset == 0 { format!("{path}") } else { format!("{path}?offset={offset}") }
}

fn read_clean(
    image: &Path,
    offset: u64,
    dump: &Dump,
    log: &[Logged],
) -> Result<Expectation, OracleError> {
    let mut commands = String::new();
    for inode in inodes_in_use(dump) {
        let _ = writeln!(commands, "stat <{inode}>");
    }
    let stats = debugfs::stats(&debugfs::run(image, &name(image, offset), &commands)?)?;
    let unknown = Class::Home(Home::Unknown);
    let mut classes = vec![unknown; dump.block_count as usize];
    let mut journal = Vec::new();
    for stat in &stats {
        owned_blocks(&mut classes, &mut journal, dump, stat);
    }
    let mut unowned = vec![false; classes.len()];
    for (class, unowned) in classes.iter().zip(&mut unowned) {
        *unowned = *class == unknown;
    }
    fixed_blocks(&mut classes, dump);
    confirm_unowned(image, offset, &classes, &unowned)?;
    log_blocks(&mut classes, &journal, log);
    Ok(Expectation { classes, groups: dump.groups.len() as u32 })
}

fn inodes_in_use(dump: &Dump) -> impl Iterator<Item = u64> + '_ {
    dump.groups.iter().zip(0_u64..).flat_map(|(group, number)| {
        let first = number * dump.inodes_per_group + 1;
        let is_free =
            |inode: u64| group.free_inodes.iter().any(|(from, to)| (*from..=*to).contains(&inode));
        (first..first + dump.inodes_per_group).filter(move |inode| !is_free(*inode))
    })
}

fn set(classes: &mut [Class], blocks: Range, class: impl Fn(u64) -> Class) {
    for block in blocks.0..=blocks.1 {
        if let Some(slot) = classes.get_mut(block as usize) {
            *slot = class(block - blocks.0);
        }
    }
}

fn owned_blocks(classes: &mut [Class], journal: &mut Vec<u64>, dump: &Dump, stat: &Stat) {
    let inode = stat.inode;
    if inode == BAD_BLOCKS_INODE {
        return;
    }
    let is = |number: u64| u64::from(inode) == number;
    if stat.xattr_block != 0 {
        let lowest = match classes[stat.xattr_block as usize] {
            Class::Home(Home::Xattr { inode: other }) => other.min(inode),
            _ => inode,
        };
        classes[stat.xattr_block as usize] = Class::Home(Home::Xattr { inode: lowest });
    }
    let levels = stat.pieces.iter().filter_map(|piece| match piece {
        Piece::ExtentNode { level, .. } => Some(*level + 1),
        _ => None,
    });
    let levels = levels.max().unwrap_or(0);
    for piece in &stat.pieces {
        match *piece {
            Piece::ExtentNode { level, pblk } => {
                let depth = levels - 1 - level;
                set(classes, (pblk, pblk), |_| Class::Home(Home::ExtentNode { inode, depth }));
            }
            Piece::Indirect { pblk } => {
                // Those below the resize inode's double indirect block are reserved descriptors.
                set(classes, (pblk, pblk), |_| Class::Home(Home::IndirectBlock { inode }));
            }
            Piece::Data { pblk, .. } if is(dump.journal_inode) => {
                journal.extend(pblk.0..=pblk.1);
            }
            Piece::Data { .. } if inode == RESIZE_INODE => {}
            Piece::Data { lblk, pblk, unwritten } => {
                let state = if unwritten { Written::Unwritten } else { Written::Written };
                set(classes, pblk, |index| {
                    let lblk = (lblk.0 + index) as u32;
                    Class::Home(match stat.kind {
                        _ if is(dump.orphan_inode) => Home::OrphanFile,
                        Type::Directory => Home::Directory { inode },
                        _ if stat.flags & FLAG_EA_INODE != 0 => Home::Xattr { inode },
                        Type::Regular | Type::Symlink | Type::Other => {
                            Home::FileData { inode, first_lblk: lblk, last_lblk: lblk, state }
                        }
                    })
                });
            }
        }
    }
}

fn fixed_blocks(classes: &mut [Class], dump: &Dump) {
    let per_block = dump.block_bytes / dump.inode_bytes;
    for (group, number) in dump.groups.iter().zip(0_u32..) {
        for free in &group.free_blocks {
            // With bigalloc a range ends with the first block of its last cluster.
            let end = (free.1 + dump.cluster_blocks - 1).min(group.blocks.1);
            set(classes, (free.0, end), |_| Class::Home(Home::Free));
        }
        let backup = number != 0;
        if let Some(block) = group.superblock {
            set(classes, (block, block), |_| Class::Home(Home::Superblock { backup }));
        }
        if let Some(range) = group.reserved {
            set(classes, range, |_| Class::Home(Home::ReservedGdt));
        }
        set(classes, (group.block_bitmap, group.block_bitmap), |_| {
            Class::Home(Home::BlockBitmap { group: number })
        });
        set(classes, (group.inode_bitmap, group.inode_bitmap), |_| {
            Class::Home(Home::InodeBitmap { group: number })
        });
        set(classes, group.inode_table, |index| {
            let start = u64::from(number) * dump.inodes_per_group;
            let first = start + index * per_block + 1;
            let last = (first + per_block - 1).min(start + dump.inodes_per_group);
            let (first_inode, last_inode) = (first as u32, last as u32);
            Class::Home(Home::InodeTable { group: number, first_inode, last_inode })
        });
    }
    let descriptors = dump.groups.iter().zip(0_u64..);
    let per_block = descriptors_per_block(dump);
    for (group, number) in descriptors {
        if let Some(range) = group.descriptors {
            // The first copy in a meta block group is the primary one.
            let backup = if dump.has("meta_bg") { number % per_block } else { number } != 0;
            set(classes, range, |_| Class::Home(Home::GroupDescriptors { backup }));
        }
    }
    if let Some(block) = dump.mmp_block {
        set(classes, (block, block), |_| Class::Home(Home::Mmp));
    }
}

fn descriptors_per_block(dump: &Dump) -> u64 {
    dump.block_bytes / if dump.has("64bit") { 64 } else { 32 }
}

/// Blocks in use that no `stat` mentions must have no owner for `icheck` either.
fn confirm_unowned(
    image: &Path,
    offset: u64,
    classes: &[Class],
    unowned: &[bool],
) -> Result<(), OracleError> {
    let blocks = classes.iter().zip(unowned).zip(0_u64..);
    let unknown = Class::Home(Home::Unknown);
    let asked: Vec<u64> = blocks
        .filter(|((class, unowned), _)| **class == unknown && **unowned)
        .map(|(_, block)| block)
        .take(ICHECK_MAX)
        .collect();
    if asked.is_empty() {
        return Ok(());
    }
    let mut commands = String::new();
    // debugfs reads lines of at most 8 KiB.
    for asked in asked.chunks(500) {
        commands.push_str("icheck");
        for block in asked {
            let _ = write!(commands, " {block}");
        }
        commands.push('\n');
    }
    let owned = debugfs::owners(&debugfs::run(image, &name(image, offset), &commands)?);
    // The journal's blocks get their classes from the log.
    match owned.iter().find(|(_, inode)| *inode != 8 && *inode != RESIZE_INODE) {
        Some((block, inode)) => Err(OracleError::Output {
            tool: "debugfs",
            line: format!("icheck: block {block} belongs to inode {inode}, stat did not say so"),
        }),
        None => Ok(()),
    }
}

fn log_blocks(classes: &mut [Class], journal: &[u64], log: &[Logged]) {
    let homes: Vec<Class> = log
        .iter()
        .map(|logged| match logged {
            Logged::Copy { pblk, .. } => classes[*pblk as usize],
            _ => Class::JournalIdle,
        })
        .collect();
    for (block, index) in journal.iter().zip(0_u32..) {
        let class = if index == 0 { Class::JournalSuperblock } else { Class::JournalIdle };
        set(classes, (*block, *block), |_| class);
    }
    for (logged, home) in log.iter().zip(homes) {
        let (index, class) = match *logged {
            Logged::Descriptor { tid, index } => (index, Class::JournalDescriptor { tid }),
            Logged::Commit { tid, index } => (index, Class::JournalCommit { tid }),
            Logged::Revoke { tid, index } => (index, Class::JournalRevoke { tid }),
            Logged::Copy { tid, index, .. } => {
                let of = home.subject().unwrap_or(Home::Unknown);
                (index, Class::JournalCopy { tid, of })
            }
        };
        if let Some(block) = journal.get(index as usize) {
            set(classes, (*block, *block), |_| class);
        }
    }
}
