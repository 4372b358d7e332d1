//! Whether racegate's map of an image is the one that e2fsprogs draws, block by block.
//!
//! In: an image file with ext4 on it. Out: an [`OracleReport`] with every block that the map and
//! the oracle class differently.
//!
//! The oracle: `dumpe2fs` for superblocks, descriptors, bitmaps, inode tables and free blocks;
//! `debugfs stat` of every inode in use for extents, tree blocks and attribute blocks; `icheck` for
//! blocks that seem to have no owner. What the log holds comes from `debugfs logdump`. An image
//! whose log is to be replayed is copied, and `e2fsck -E journal_only` replays it on the copy.
//!
//! Verified: the class of every block and every field of it, `lblk`, state, depth, inode range and
//! transaction included. Not verified: the fast-commit area beyond its extent.

mod debugfs;
mod dumpe2fs;
mod expectation;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ext4_layout::{Class, Home, Layout, LayoutMap, OpenError, ReadAt, ReadError, Span};

pub use expectation::Expectation;

/// Differences kept in a report; all are counted.
const DIFFERENCES_KEPT: usize = 50;

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum OracleError {
    /// The image file cannot be used.
    #[error("Cannot read the image {}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The map could not be made.
    #[error("Cannot map the image {}", path.display())]
    Layout {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: OpenError,
    },
    /// A tool of e2fsprogs could not be run, or failed.
    #[error("{tool} failed on {}: {message}; it comes with the package e2fsprogs", image.display())]
    Tool {
        /// The program.
        tool: &'static str,
        /// The image.
        image: PathBuf,
        /// What it printed, or why it did not start.
        message: String,
    },
    /// Output of a tool that this module does not understand.
    #[error("Cannot read the output of {tool}: {line:?}")]
    Output {
        /// The program.
        tool: &'static str,
        /// The line.
        line: String,
    },
}

/// A block on which map and oracle do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Block of the file system.
    pub block: u64,
    /// What the map says.
    pub map: Class,
    /// What e2fsprogs says.
    pub oracle: Class,
}

/// The outcome of a comparison.
#[derive(Clone, Debug)]
pub struct OracleReport {
    /// Blocks compared.
    pub blocks: u64,
    /// Block groups of the file system.
    pub groups: u32,
    /// Blocks of each kind, as the oracle has them.
    pub kinds: BTreeMap<&'static str, u64>,
    /// How many blocks differ.
    pub difference_count: u64,
    /// The first of them.
    pub differences: Vec<Difference>,
}

impl fmt::Display for OracleReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { blocks, groups, difference_count, .. } = self;
        write!(out, "{blocks} blocks in {groups} groups, {difference_count} differences")?;
        for Difference { block, map, oracle } in &self.differences {
            write!(out, "\n  block {block}: map {map:?}, oracle {oracle:?}")?;
        }
        Ok(())
    }
}

/// A device that is a file.
#[derive(Debug)]
pub struct FileDevice(pub File);

impl ReadAt for FileDevice {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        self.0.read_exact_at(buf, offset).map_err(|source| ReadError {
            offset,
            length: buf.len(),
            source: source.into(),
        })
    }
}

/// Maps the image and compares with the oracle.
///
/// # Errors
/// The image or a tool cannot be used; differences are no error.
pub fn compare(image: &Path) -> Result<OracleReport, OracleError> {
    compare_map(image, &open_map(image)?)
}

/// The map of an image.
///
/// # Errors
/// The image cannot be read or is not ext4.
pub fn open_map(image: &Path) -> Result<LayoutMap, OracleError> {
    let io_error = |source| OracleError::Image { path: image.into(), source };
    let file = File::open(image).map_err(io_error)?;
    let bytes = file.metadata().map_err(io_error)?.len();
    let layout = Layout::open(&mut FileDevice(file), bytes)
        .map_err(|source| OracleError::Layout { path: image.into(), source })?;
    Ok(LayoutMap::clone(&layout.map()))
}

/// Compares a map, made from the image or kept current by other means, with the oracle.
///
/// # Errors
/// As [`compare`].
pub fn compare_map(image: &Path, map: &LayoutMap) -> Result<OracleReport, OracleError> {
    let base_sector = map.sector_of_block(0).unwrap_or(0);
    let block_bytes = map.block_bytes().unwrap_or(4096);
    let expectation = Expectation::read(image, base_sector * 512)?;
    let mut report = OracleReport {
        blocks: expectation.classes.len() as u64,
        groups: expectation.groups,
        kinds: BTreeMap::new(),
        difference_count: 0,
        differences: Vec::new(),
    };
    for class in &expectation.classes {
        *report.kinds.entry(class.kind().name()).or_default() += 1;
    }
    let per_block = block_bytes / 512;
    let mut next = base_sector;
    map.classify(base_sector, report.blocks * per_block, &mut |span| {
        if span.first_sector != next {
            report.difference_count += 1;
        }
        next = span.first_sector + span.sectors;
        for (block, map) in blocks_of(span, base_sector, block_bytes) {
            let oracle = expectation.classes.get(block as usize).copied();
            let oracle = oracle.unwrap_or(Class::Home(Home::Unknown));
            if map != oracle {
                report.difference_count += 1;
                if report.differences.len() < DIFFERENCES_KEPT {
                    report.differences.push(Difference { block, map, oracle });
                }
            }
        }
    });
    if next != base_sector + report.blocks * per_block {
        report.difference_count += 1;
    }
    Ok(report)
}

/// A span as blocks, each with the class that it would have alone.
fn blocks_of(span: Span, base_sector: u64, block_bytes: u64) -> impl Iterator<Item = (u64, Class)> {
    let per_block = block_bytes / 512;
    let first = (span.first_sector - base_sector) / per_block;
    let blocks = span.sectors / per_block;
    (0..blocks).map(move |index| (first + index, nth_class(span.class, index, blocks)))
}

fn nth_class(class: Class, index: u64, blocks: u64) -> Class {
    match class {
        Class::Home(Home::FileData { inode, first_lblk, state, .. }) => {
            let lblk = first_lblk + index as u32;
            Class::Home(Home::FileData { inode, first_lblk: lblk, last_lblk: lblk, state })
        }
        Class::Home(Home::InodeTable { group, first_inode, last_inode }) => {
            // The table's last block may hold fewer inodes than the others.
            let inodes = last_inode - first_inode + 1;
            let per_block = inodes.div_ceil(blocks as u32);
            let first = first_inode + per_block * index as u32;
            let last = (first + per_block - 1).min(last_inode);
            Class::Home(Home::InodeTable { group, first_inode: first, last_inode: last })
        }
        other => other,
    }
}

/// Runs a tool of e2fsprogs and returns its standard output.
fn run(tool: &'static str, image: &Path, args: &[&str]) -> Result<String, OracleError> {
    let failed = |message: String| OracleError::Tool { tool, image: image.into(), message };
    let output = Command::new(tool)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .env("LC_ALL", "C")
        .args(args)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    // e2fsck says 1 when it changed something.
    let success = output.status.success() || tool == "e2fsck" && output.status.code() == Some(1);
    if !success {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
