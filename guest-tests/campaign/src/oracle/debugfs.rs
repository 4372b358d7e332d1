//! What `debugfs` prints for `stat`, `icheck` and `logdump`, as values.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::OracleError;
use super::dumpe2fs::{Range, range_at};

/// What `stat` calls the type of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Regular,
    Directory,
    Symlink,
    Other,
}

/// Blocks of an inode, as `stat` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// `(0-3):100-103`, with `[u]` when unwritten.
    Data { lblk: Range, pblk: Range, unwritten: bool },
    /// `(ETB0):33`: level 0 is the one below the root.
    ExtentNode { level: u16, pblk: u64 },
    /// `(IND)`, `(DIND)`, `(TIND)`.
    Indirect { pblk: u64 },
}

/// One inode.
#[derive(Clone, Debug)]
pub(super) struct Stat {
    pub(super) inode: u32,
    pub(super) kind: Type,
    pub(super) flags: u64,
    pub(super) links: u64,
    pub(super) xattr_block: u64,
    pub(super) pieces: Vec<Piece>,
}

/// A block of the log, as `logdump -a` reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Logged {
    Descriptor { tid: u32, index: u32 },
    Copy { tid: u32, index: u32, pblk: u64 },
    Commit { tid: u32, index: u32 },
    Revoke { tid: u32, index: u32 },
}

/// Runs debugfs with a file of commands on standard input.
pub(super) fn run(image: &Path, name: &str, commands: &str) -> Result<String, OracleError> {
    let failed =
        |message: String| OracleError::Tool { tool: "debugfs", image: image.into(), message };
    let mut child = Command::new("debugfs")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .env("LC_ALL", "C")
        .env("DEBUGFS_PAGER", "cat")
        .args(["-f", "-", name])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(commands.as_bytes())));
        let output = child.wait_with_output();
        // A debugfs that ends early closes the pipe; its exit status tells.
        drop(writer.join());
        output
    })
    .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(format!("{}", output.status)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Parses the output of a series of `stat <INODE>`.
pub(super) fn stats(text: &str) -> Result<Vec<Stat>, OracleError> {
    let mut stats: Vec<Stat> = Vec::new();
    let mut listing = false;
    for line in text.lines() {
        let bad = || OracleError::Output { tool: "debugfs", line: line.to_owned() };
        if line.starts_with("debugfs: ") {
            listing = false;
            continue;
        }
        if let Some(rest) = line.strip_prefix("Inode: ") {
            listing = false;
            stats.push(header(rest).ok_or_else(bad)?);
        }
        let Some(stat) = stats.last_mut() else {
            continue;
        };
        if listing {
            for item in line.split(", ").filter(|item| item.starts_with('(')) {
                stat.pieces.push(piece(item).ok_or_else(bad)?);
            }
        } else if let Some(acl) = line.strip_prefix("File ACL: ") {
            stat.xattr_block = range_at(acl).ok_or_else(bad)?.0;
        } else if let Some(links) = line.strip_prefix("Links: ") {
            stat.links = range_at(links).ok_or_else(bad)?.0;
        } else if line == "EXTENTS:" || line == "BLOCKS:" {
            listing = true;
        }
    }
    Ok(stats)
}

fn header(rest: &str) -> Option<Stat> {
    let words: Vec<&str> = rest.split_whitespace().collect();
    let value = |key: &str| {
        words.iter().position(|word| *word == key).and_then(|at| words.get(at + 1)).copied()
    };
    let kind = match value("Type:")? {
        "regular" => Type::Regular,
        "directory" => Type::Directory,
        "symlink" => Type::Symlink,
        _ => Type::Other,
    };
    let flags = u64::from_str_radix(value("Flags:")?.strip_prefix("0x")?, 16).ok()?;
    let inode = words.first()?.parse().ok()?;
    Some(Stat { inode, kind, flags, links: 0, xattr_block: 0, pieces: Vec::new() })
}

fn piece(item: &str) -> Option<Piece> {
    let (what, at) = item.strip_prefix('(')?.split_once("):")?;
    let pblk = range_at(at)?;
    if let Some(level) = what.strip_prefix("ETB") {
        return Some(Piece::ExtentNode { level: level.parse().ok()?, pblk: pblk.0 });
    }
    if what.ends_with("IND") {
        return Some(Piece::Indirect { pblk: pblk.0 });
    }
    Some(Piece::Data { lblk: range_at(what)?, pblk, unwritten: what.ends_with("[u]") })
}

/// Parses the output of `icheck`: blocks that have an owner, with it.
pub(super) fn owners(text: &str) -> Vec<(u64, u32)> {
    let owner = |line: &str| {
        let (block, inode) = line.split_once('\t')?;
        Some((block.parse().ok()?, inode.parse().ok()?))
    };
    text.lines().filter_map(owner).collect()
}

/// Parses the output of `logdump -a`. A line about a copy belongs to the descriptor before it.
pub(super) fn log(text: &str) -> Vec<Logged> {
    let mut tid = 0;
    let mut log = Vec::new();
    for line in text.lines() {
        let after = |key: &str| Some(range_at(line.split_once(key)?.1.trim_start())?.0);
        if let (Some(pblk), Some(index)) = (after("FS block"), after("journal block")) {
            log.push(Logged::Copy { tid, index: index as u32, pblk });
        } else if line.starts_with("Found expected sequence")
            && let (Some(sequence), Some(index)) = (after("sequence"), after("at block"))
        {
            tid = sequence as u32;
            let index = index as u32;
            match after("type") {
                Some(1) => log.push(Logged::Descriptor { tid, index }),
                Some(2) => log.push(Logged::Commit { tid, index }),
                Some(5) => log.push(Logged::Revoke { tid, index }),
                _ => {}
            }
        }
    }
    log
}
