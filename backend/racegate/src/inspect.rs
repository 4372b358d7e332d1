//! `racegate inspect`: what the blocks of an image are.
//!
//! In: an image file or block device with ext4 on it, and which part of it to show. Out: a table
//! for people, or JSON: `{"schema":1,"ranges":[{"first","last","class",...}]}`, where `first` and
//! `last` are sectors of 512 bytes, both inclusive.
//! Must not know: how classes are found.

mod show;
mod source;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ext4_layout::{Class, Home, Kind, Layout, LayoutMap, Span};

use source::Source;

/// Arguments of `racegate inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Image file or block device with ext4 on it, whole or in its first ext4 partition
    image: PathBuf,
    #[command(flatten)]
    part: Part,
    /// Write JSON to this file, or to standard output for `-`, in place of the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(multiple = false)]
struct Part {
    /// Show the block of the file system with this number
    #[arg(long, value_name = "N")]
    block: Option<u64>,
    /// Show what belongs to this inode, and the part of the inode table that stores it
    #[arg(long, value_name = "N")]
    inode: Option<u32>,
    /// Show the sector (512 bytes) of the device with this number
    #[arg(long, value_name = "N")]
    sector: Option<u64>,
    /// Show how much there is of each class, and what reading the image cost
    #[arg(long)]
    summary: bool,
}

/// Shows an image's classes.
///
/// # Errors
/// The image cannot be read, holds no ext4, or has no such block, sector or inode.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { image, part, json } = args;
    let mut source = Source::open(&image)?;
    let started = Instant::now();
    let bytes = source.bytes();
    let layout = Layout::open(&mut source, bytes)
        .with_context(|| format!("Cannot inspect {}", image.display()))?;
    let took = started.elapsed();
    let map = layout.map();
    if part.summary {
        let summary = Summary::of(&layout, took);
        return write_out(json.as_deref(), |out, as_json| {
            if as_json { show::summary_json(out, &summary) } else { show::summary(out, &summary) }
        });
    }
    let spans = select(&map, &part)?;
    write_out(json.as_deref(), |out, as_json| {
        if as_json { show::ranges_json(out, &map, &spans) } else { show::ranges(out, &map, &spans) }
    })
}

/// What `--summary` tells.
struct Summary {
    /// Sectors and runs of each kind.
    kinds: Vec<(Kind, u64, u64)>,
    sectors: u64,
    block_bytes: u64,
    groups: u32,
    heap_bytes: usize,
    open: Duration,
}

impl Summary {
    fn of(layout: &Layout, open: Duration) -> Summary {
        let map = layout.map();
        let mut counts = [(0, 0); Kind::ALL.len()];
        map.classify(0, map.device_sectors(), &mut |span| {
            let (sectors, runs) = &mut counts[span.class.kind() as usize];
            *sectors += span.sectors;
            *runs += 1;
        });
        let kinds = Kind::ALL.into_iter().zip(counts);
        Summary {
            kinds: kinds
                .filter(|(_, (_, runs))| *runs > 0)
                .map(|(kind, (sectors, runs))| (kind, sectors, runs))
                .collect(),
            sectors: map.device_sectors(),
            block_bytes: map.block_bytes().unwrap_or(0),
            groups: map.group_count().unwrap_or(0),
            heap_bytes: layout.heap_bytes(),
            open,
        }
    }
}

fn select(map: &LayoutMap, part: &Part) -> anyhow::Result<Vec<Span>> {
    let (first, sectors) = match (part.block, part.sector) {
        (Some(block), _) => {
            let count = map.block_count().unwrap_or(0);
            let Some(first) = map.sector_of_block(block).filter(|_| block < count) else {
                bail!("--block {block}: the file system has blocks 0 to {}", count - 1);
            };
            (first, map.block_bytes().unwrap_or(512) / 512)
        }
        (_, Some(sector)) if sector >= map.device_sectors() => {
            bail!("--sector {sector}: the device has sectors 0 to {}", map.device_sectors() - 1);
        }
        (_, Some(sector)) => (sector, 1),
        (None, None) => (0, map.device_sectors()),
    };
    let mut spans = Vec::new();
    map.classify(first, sectors, &mut |span| {
        if part.inode.is_none_or(|inode| concerns(span.class, inode)) {
            spans.push(span);
        }
    });
    if let Some(inode) = part.inode {
        if spans.is_empty() {
            bail!("--inode {inode}: the file system has no such inode");
        }
        narrow_tables(map, inode, &mut spans);
    }
    Ok(spans)
}

fn concerns(class: Class, inode: u32) -> bool {
    matches!(class, Class::Home(home) if home.concerns_inode(inode))
}

/// Of a whole inode table, keeps the block that stores the inode.
fn narrow_tables(map: &LayoutMap, inode: u32, spans: &mut [Span]) {
    let per_block = map.block_bytes().unwrap_or(512) / 512;
    for span in spans {
        let Class::Home(Home::InodeTable { first_inode, last_inode, .. }) = span.class else {
            continue;
        };
        let blocks = (span.sectors / per_block).max(1);
        let inodes = u64::from(last_inode - first_inode) + 1;
        let block = u64::from(inode - first_inode) / inodes.div_ceil(blocks);
        let at = span.first_sector + block * per_block;
        map.classify(at, per_block, &mut |narrow| *span = narrow);
    }
}

/// Writes to standard output, or to a file as a whole or not at all.
fn write_out(
    json: Option<&Path>,
    write: impl FnOnce(&mut dyn Write, bool) -> io::Result<()>,
) -> anyhow::Result<ExitCode> {
    let path = json.filter(|path| *path != Path::new("-"));
    let mut out: Box<dyn Write> = match path {
        Some(path) => {
            let file = File::create(path);
            Box::new(file.with_context(|| format!("--json: cannot write {}", path.display()))?)
        }
        None => Box::new(io::stdout().lock()),
    };
    let mut out = BufWriter::new(&mut out);
    let written = write(&mut out, json.is_some()).and_then(|()| out.flush());
    match written {
        // The reader had enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe && path.is_none() => {}
        written => written.with_context(|| match path {
            Some(path) => format!("--json: cannot write {}", path.display()),
            None => "Cannot write to standard output".to_owned(),
        })?,
    }
    Ok(ExitCode::SUCCESS)
}
