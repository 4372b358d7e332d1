//! The table and the JSON of `racegate inspect`.

use std::io::{self, Write};

use ext4_layout::{Class, Home, LayoutMap, Span};
use pipeline::event::ClassRecord;
use serde::Serialize;
use serde_json::json;

use super::Summary;

#[derive(Serialize)]
struct RangeRecord {
    first: u64,
    last: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_block: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_block: Option<u64>,
    #[serde(flatten)]
    class: ClassRecord,
}

fn record(map: &LayoutMap, span: &Span) -> RangeRecord {
    let last = span.first_sector + span.sectors - 1;
    RangeRecord {
        first: span.first_sector,
        last,
        first_block: block_of(map, span.first_sector),
        last_block: block_of(map, last),
        class: span.class.into(),
    }
}

fn block_of(map: &LayoutMap, sector: u64) -> Option<u64> {
    let per_block = map.block_bytes()? / 512;
    let block = sector.checked_sub(map.sector_of_block(0)?)? / per_block;
    (block < map.block_count()?).then_some(block)
}

/// One object, a range a line.
pub(super) fn ranges_json(out: &mut dyn Write, map: &LayoutMap, spans: &[Span]) -> io::Result<()> {
    write!(out, "{{\"schema\":1,\"ranges\":[")?;
    for (span, number) in spans.iter().zip(0_usize..) {
        out.write_all(if number == 0 { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut *out, &record(map, span))?;
    }
    writeln!(out, "\n]}}")
}

pub(super) fn ranges(out: &mut dyn Write, map: &LayoutMap, spans: &[Span]) -> io::Result<()> {
    writeln!(out, "{:>23} {:>23}  class", "sectors", "blocks")?;
    for span in spans {
        let RangeRecord { first, last, first_block, last_block, .. } = record(map, span);
        let sectors = format!("{first}-{last}");
        let blocks = match (first_block, last_block) {
            (Some(first), Some(last)) if first == last => format!("{first}"),
            (Some(first), Some(last)) => format!("{first}-{last}"),
            _ => String::new(),
        };
        writeln!(out, "{sectors:>23} {blocks:>23}  {}", describe(span.class))?;
    }
    Ok(())
}

fn describe(class: Class) -> String {
    let name = class.kind().name();
    match class {
        Class::Home(home) => describe_home(home),
        Class::JournalCopy { tid, of } => format!("{name} tid {tid} of {}", describe_home(of)),
        Class::JournalDescriptor { tid }
        | Class::JournalCommit { tid }
        | Class::JournalRevoke { tid } => format!("{name} tid {tid}"),
        Class::JournalSuperblock | Class::JournalFastCommit | Class::JournalIdle => name.to_owned(),
    }
}

fn describe_home(home: Home) -> String {
    let name = home.kind().name();
    match home {
        Home::Superblock { backup: true } | Home::GroupDescriptors { backup: true } => {
            format!("{name} backup")
        }
        Home::BlockBitmap { group } | Home::InodeBitmap { group } => {
            format!("{name} group {group}")
        }
        Home::InodeTable { group, first_inode, last_inode } => {
            format!("{name} group {group} inodes {first_inode}-{last_inode}")
        }
        Home::ExtentNode { inode, depth } => format!("{name} inode {inode} depth {depth}"),
        Home::IndirectBlock { inode } | Home::Directory { inode } | Home::Xattr { inode } => {
            format!("{name} inode {inode}")
        }
        Home::FileData { inode, first_lblk, last_lblk, state } => {
            let state = format!("{state:?}").to_lowercase();
            format!("{name} inode {inode} lblk {first_lblk}-{last_lblk} {state}")
        }
        _ => name.to_owned(),
    }
}

pub(super) fn summary_json(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let kinds: Vec<_> = summary
        .kinds
        .iter()
        .map(|(kind, sectors, runs)| json!({"class": kind, "sectors": sectors, "runs": runs}))
        .collect();
    let value = json!({
        "schema": 1,
        "sectors": summary.sectors,
        "block_bytes": summary.block_bytes,
        "groups": summary.groups,
        "classes": kinds,
        "open_seconds": summary.open.as_secs_f64(),
        "layout_bytes": summary.heap_bytes,
        "peak_memory_bytes": peak_memory_bytes(),
    });
    serde_json::to_writer(&mut *out, &value)?;
    writeln!(out)
}

pub(super) fn summary(out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
    let Summary { sectors, block_bytes, groups, heap_bytes, open, .. } = summary;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    writeln!(out, "{sectors} sectors, blocks of {block_bytes} bytes, {groups} groups")?;
    writeln!(out, "{:>21} {:>16} {:>9}", "class", "sectors", "runs")?;
    for (kind, sectors, runs) in &summary.kinds {
        writeln!(out, "{:>21} {sectors:>16} {runs:>9}", kind.name())?;
    }
    write!(out, "opened in {:.3} s, map {:.1} MiB", open.as_secs_f64(), mib(*heap_bytes as f64))?;
    match peak_memory_bytes() {
        Some(bytes) => writeln!(out, ", peak memory of the process {:.1} MiB", mib(bytes as f64)),
        None => writeln!(out),
    }
}

/// The largest resident size of this process so far, as the kernel counts it (`VmHWM`).
fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
