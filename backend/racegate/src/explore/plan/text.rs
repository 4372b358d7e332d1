//! The text of a plan that was compiled.
//!
//! In: a counterexample, taken apart. Out: TOML.
//! Must not know: how the counterexample was found.

use std::fmt::Write as _;

use anyhow::bail;
use campaign::plan;
use delalloc::{Mutant, Op, Scenario};
use explorer::Trace;

use super::super::pick::Picked;
use super::super::timeline;
use super::{Compiled, Control, Held, Kind, Predicted, Stands};

/// Most time that a request is held if nobody lets it go.
const AT_MOST: &str = "10s";
/// How long a thread waits for another, in milliseconds.
const LIMIT_MS: u32 = 20_000;
/// Blocks that an inode without extents names itself (EXT4_NDIR_BLOCKS).
const DIRECT_BLOCKS: u64 = 12;
/// The byte of the first version of a block; later ones add to it.
const FILL: u8 = 0xa0;

/// What a shadow calls the broken rule, and others that the same bug breaks.
pub(super) fn signs(invariant: &str, mutant: Option<&Mutant>) -> Vec<String> {
    let also = mutant.map(|mutant| mutant.caught_by).unwrap_or_default();
    let names = std::iter::once(invariant).chain(also.iter().map(|of| of.name()));
    let mut signs = Vec::new();
    for known in names.flat_map(plan::rules_of) {
        if !signs.contains(&known) {
            signs.push(known);
        }
    }
    signs
}

/// The kernel function that runs an operation: on its stack whatever it waits for.
pub(super) fn function(op: Op) -> &'static str {
    match op {
        Op::Mkwrite { .. } => "ext4_page_mkwrite",
        Op::Fallocate { .. }
        | Op::ZeroRange { .. }
        | Op::PunchHole { .. }
        | Op::CollapseRange { .. }
        | Op::InsertRange { .. } => "ext4_fallocate",
        Op::Write { .. } | Op::DioWrite { .. } => "ext4_file_write_iter",
        Op::Read { .. } | Op::DioRead { .. } => "ext4_file_read_iter",
        Op::Truncate { .. } => "ext4_setattr",
        Op::Fsync | Op::Writepages { .. } | Op::Commit => "ext4_sync_file",
        Op::Fiemap { .. } => "ext4_llseek",
        Op::Evict => "ext4_evict_inode",
        // They hold no lock that another waits for, or have no place in a plan.
        Op::RemountNodelalloc
        | Op::GetEsCache { .. }
        | Op::PrecacheExtents
        | Op::ClearEsCache
        | Op::Reclaim { .. } => "ext4",
    }
}

/// Sizes of the scenario in bytes.
struct Sizes {
    block: u64,
    /// Where the model's file begins. The model knows no direct blocks; in a file without extents
    /// the first twelve are, and its bugs lie behind them.
    base: u64,
    size: u64,
    mapped: u64,
}

pub(super) fn write(
    name: &str,
    picked: &Picked,
    compiled: &Compiled,
    trace: &Trace,
    invariant: &str,
    signs: &[String],
    predicted: &Predicted,
) -> anyhow::Result<String> {
    let scenario = picked.model.scenario();
    let block = u64::from(scenario.fs.block_bytes);
    let base = if scenario.fs.indirect { DIRECT_BLOCKS * block } else { 0 };
    let size = base + u64::from(scenario.file.size) * block;
    let size = size - if scenario.file.half { block / 2 } else { 0 };
    let mapped = base + u64::from(scenario.file.blocks) * block;
    let sizes = Sizes { block, base, size, mapped };
    let mut text = head(picked, compiled, trace, invariant);
    let quoted = |list: &[String]| {
        list.iter().map(|item| format!("{item:?}")).collect::<Vec<_>>().join(", ")
    };
    // Writing to a String does not fail.
    let _ = writeln!(text, "\nname = {name:?}");
    let _ = writeln!(text, "summary = {:?}", scenario.about);
    text += "trials = 20\nrate_if_affected = 0.9\n\n[kernels]\n";
    let _ = writeln!(text, "affected = [{}]", quoted(&predicted.affected));
    let _ = writeln!(text, "fixed = [{}]", quoted(&predicted.fixed));
    if !compiled.held.is_empty() {
        for device in ["nvdimm", "virtio-pmem", "vhost-user-pmem"] {
            let _ = writeln!(text, "\n[[not_on]]\ndevice = {device:?}");
            text += "because = \"a held page stops the processor that would have to answer\"\n";
        }
    }
    let mkfs = quoted(&mkfs(scenario));
    let _ = writeln!(text, "\n[filesystem]\nbytes = 67108864\nmkfs = [{mkfs}]");
    text += "\n[guest]\ntrial_limit = \"60s\"\n\n[[arm]]\nname = \"rules\"\n";
    if !compiled.held.is_empty() {
        let _ = writeln!(text, "rules = '''\n{}'''", rules(scenario, &compiled.held));
    }
    let (setup, evicted) = (setup(scenario, &sizes), evicts(scenario));
    let _ = writeln!(text, "\n[workload]\nsetup = {}", list(&setup));
    let finish: &[&str] = &[
        r#"{ fsync = { file = "raced" } }"#,
        r#"{ close = { file = "raced" } }"#,
        r#"{ unlink = { path = "raced" } }"#,
    ];
    let finish: Vec<String> = finish.iter().filter(|_| !evicted).map(ToString::to_string).collect();
    let _ = writeln!(text, "finish = {}", list(&finish));
    text += "cleanup = [{ umount = {} }]\n";
    for (thread, ops) in threads(scenario, compiled, &sizes)? {
        let _ = writeln!(text, "\n[[workload.thread]]\nname = {thread:?}\nops = {}", list(&ops));
    }
    let _ = writeln!(text, "\n[hit]\nshadow = [{}]", quoted(signs));
    Ok(text)
}

/// The comment: the counterexample, what is held and why, what is left to the kernel.
fn head(picked: &Picked, compiled: &Compiled, trace: &Trace, invariant: &str) -> String {
    let mut text = String::new();
    let scenario = picked.model.scenario();
    let _ = writeln!(text, "# {}: {}.", picked.title(), scenario.about);
    let _ =
        writeln!(text, "# Compiled from a counterexample: {invariant} is broken in this order.\n#");
    for line in timeline::draw(trace).lines() {
        let _ = writeln!(text, "# {line}");
    }
    text += "#\n";
    for (rule, held) in compiled.held.iter().enumerate() {
        let Held { kind, step, by, .. } = held;
        let what = match kind {
            Kind::Bitmap => "the read of the block bitmap",
            Kind::Leaf => "the read of a block of the extent tree",
            Kind::DataRead => "the read of file data",
            Kind::DataWrite => "the write of file data",
            Kind::Log => "the write of the bitmap's log copy",
        };
        if held.fails {
            let _ = writeln!(text, "# Fails: {what} that {by} makes in step {step}.");
            continue;
        }
        let until = compiled.controls.iter().find_map(|(control, stand)| match control {
            Control::LetGo { rule: of } if *of == rule => Some(stand),
            _ => None,
        });
        let until = until.map(|stand| {
            let others = stand.iter().filter_map(|(thread, stands)| match stands {
                Stands::Done(_) => Some(format!("{} is done", letter(*thread))),
                Stands::Blocked(within) => Some(format!("{} waits in {within}", letter(*thread))),
                Stands::WaitsFor(_) => None,
            });
            others.collect::<Vec<_>>().join(" and ")
        });
        let until = until.filter(|until| !until.is_empty());
        let until = until.unwrap_or_else(|| "all that must happen meanwhile has".to_owned());
        let _ = writeln!(text, "# Held: {what} that {by} makes in step {step}, until {until}.");
    }
    if compiled.held.is_empty() {
        text +=
            "# Nothing is held: no request has to be outstanding. The disk adds nothing here.\n";
    }
    if scenario
        .thread
        .iter()
        .any(|thread| thread.ops.iter().any(|op| matches!(op, Op::Writepages { .. })))
    {
        text += "# Writeback is asked for with fsync, which commits as well.\n";
    }
    text
}

fn letter(thread: usize) -> char {
    char::from(b'a' + (thread % 26) as u8)
}

fn mkfs(scenario: &Scenario) -> Vec<String> {
    let fs = &scenario.fs;
    let mut args = vec!["-b".to_owned(), fs.block_bytes.to_string(), "-I".into(), "256".into()];
    let mut features = Vec::new();
    if fs.indirect {
        features.extend(["^extents", "^64bit", "^metadata_csum"]);
    }
    if fs.cluster_blocks > 1 {
        features.push("bigalloc");
        let bytes = fs.block_bytes * u32::from(fs.cluster_blocks);
        args.extend(["-C".to_owned(), bytes.to_string()]);
    }
    if scenario.file.inline {
        features.push("inline_data");
    }
    if !features.is_empty() {
        args.extend(["-O".to_owned(), features.join(",")]);
    }
    args
}

fn rules(scenario: &Scenario, held: &[Held]) -> String {
    let mut text = String::new();
    for (index, held) in held.iter().enumerate() {
        let (op, class) = match held.kind {
            Kind::Bitmap => ("\"read\"", "\"block_bitmap\""),
            Kind::Leaf if scenario.fs.indirect => ("\"read\"", "\"indirect_block\""),
            Kind::Leaf => ("\"read\"", "\"extent_node\""),
            Kind::DataRead => ("\"read\"", "\"file_data\""),
            // The block of data that is written ahead of its commit belongs to nobody yet.
            Kind::DataWrite => ("\"write\"", "[\"file_data\", \"free\"]"),
            Kind::Log => ("\"write\"", "\"journal_copy\", of = \"block_bitmap\""),
        };
        if index > 0 {
            text += "\n";
        }
        let name = rule(index, held);
        let _ = writeln!(text, "[[rule]]\nname = {name:?}\narm_on = \"agent:ready\"");
        let _ = writeln!(text, "match = {{ op = {op}, class = {class}, nth = {} }}", held.nth);
        if held.fails {
            text += "action = { fail = \"EIO\" }\n";
        } else {
            let _ = writeln!(
                text,
                "action = {{ hold = {{ until = \"agent:go-{name}\", at_most = {AT_MOST:?} }} }}\n\
                 tell_agent = true"
            );
        }
    }
    text
}

fn rule(index: usize, held: &Held) -> String {
    let what = match held.kind {
        Kind::Bitmap => "bitmap-read",
        Kind::Leaf => "tree-read",
        Kind::DataRead => "data-read",
        Kind::DataWrite => "data-write",
        Kind::Log => "log-copy",
    };
    format!("{what}-{}", index + 1)
}

fn evicts(scenario: &Scenario) -> bool {
    scenario.thread.iter().any(|thread| thread.ops.contains(&Op::Evict))
}

fn commits(scenario: &Scenario) -> bool {
    scenario.thread.iter().any(|thread| thread.ops.contains(&Op::Commit))
}

/// What brings about the file that the scenario starts with.
fn setup(scenario: &Scenario, sizes: &Sizes) -> Vec<String> {
    let file = &scenario.file;
    let mut options = "noatime,5.13+no_prefetch_block_bitmaps".to_owned();
    if !scenario.fs.dioread_nolock && !scenario.fs.indirect {
        options += ",dioread_lock";
    }
    let mount = format!("{{ mount = {{ options = {options:?} }} }}");
    let open =
        |create: &str| format!("{{ open = {{ file = \"raced\", path = \"raced\"{create} }} }}");
    let mut ops = vec![mount.clone()];
    if commits(scenario) {
        // The raced inode must not share its block of the inode table with what is committed.
        ops.push(r#"{ open = { file = "other", path = "other", create = true } }"#.to_owned());
        ops.push(r#"{ truncate = { file = "other", bytes = 0 } }"#.to_owned());
        ops.push(r#"{ fill = { prefix = "between", count = 40 } }"#.to_owned());
    }
    ops.push(open(", create = true"));
    let at = |range: &delalloc::ops::Range| {
        let (at, len) = (u64::from(range.at) * sizes.block, u64::from(range.len) * sizes.block);
        let at = sizes.base + at;
        (at, len)
    };
    let write = |range: &delalloc::ops::Range, fill: u8| {
        let (at, len) = at(range);
        format!("{{ write = {{ file = \"raced\", offset = {at}, bytes = {len}, fill = {fill} }} }}")
    };
    ops.push(format!("{{ truncate = {{ file = \"raced\", bytes = {} }} }}", sizes.size));
    ops.extend(file.written.iter().map(|range| write(range, FILL)));
    for range in file.unwritten.iter().chain(&file.unwritten_delayed) {
        let (at, len) = at(range);
        ops.push(format!(
            "{{ fallocate = {{ file = \"raced\", mode = \"keep_size\", offset = {at}, bytes = {len} }} }}"
        ));
    }
    if file.half {
        ops.push(format!("{{ truncate = {{ file = \"raced\", bytes = {} }} }}", sizes.size));
    }
    let allocated = !file.written.is_empty() || !file.unwritten.is_empty();
    if allocated || commits(scenario) {
        ops.push("{ syncfs = {} }".to_owned());
    }
    if allocated {
        // Mounted anew, nothing of it is in memory.
        ops.push(r#"{ close = { file = "raced" } }"#.to_owned());
        ops.push("{ umount = {} }".to_owned());
        ops.push(mount);
        ops.push(open(""));
    }
    if maps(scenario) {
        ops.push(format!("{{ map = {{ file = \"raced\", bytes = {} }} }}", sizes.mapped.max(4096)));
    }
    for folio in &file.cached {
        let offset = sizes.base + u64::from(*folio) * 4096;
        ops.push(format!("{{ read = {{ file = \"raced\", offset = {offset}, bytes = 1 }} }}"));
    }
    ops.extend(file.dirty.iter().map(|range| write(range, FILL + 1)));
    if file.inline {
        // Data that fitted the inode, and then more than fits: block 0 is delayed, and the flag
        // stays until writeback.
        ops.push(r#"{ write = { file = "raced", bytes = 40, fill = 165 } }"#.to_owned());
        ops.push(
            r#"{ write = { file = "raced", offset = 40, bytes = 2000, fill = 90 } }"#.to_owned(),
        );
    } else {
        ops.extend(file.delayed.iter().map(|range| write(range, FILL + 1)));
    }
    ops.push(r#"{ mark = { name = "ready" } }"#.to_owned());
    if file.inline {
        // The file must be empty before its data can lie in the inode.
        ops.retain(|op| !op.contains("truncate"));
    }
    ops
}

fn maps(scenario: &Scenario) -> bool {
    let maps = |op: &Op| matches!(op, Op::Mkwrite { .. });
    scenario.thread.iter().any(|thread| thread.ops.iter().any(maps))
}

/// The threads of the workload with their operations, and one that lets requests go.
fn threads(
    scenario: &Scenario,
    compiled: &Compiled,
    sizes: &Sizes,
) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let mut threads = Vec::new();
    for (thread, spec) in scenario.thread.iter().enumerate() {
        let mut ops = vec![barrier()];
        for (number, op) in spec.ops.iter().enumerate() {
            let started = compiled.controls.iter().find(|(control, _)| {
                matches!(control, Control::Start { thread: of, op } if *of == thread && *op == number)
            });
            if let Some((_, stand)) = started {
                ops.extend(waits(stand, thread, &compiled.held));
            }
            ops.extend(calls(*op, number, sizes)?);
            ops.push(format!("{{ signal = {{ name = \"{}-{number}-done\" }} }}", letter(thread)));
        }
        threads.push((letter(thread).to_string(), ops));
    }
    let mut disk = vec![barrier()];
    for (control, stand) in &compiled.controls {
        if let Control::LetGo { rule: of } = control
            && !compiled.held[*of].fails
        {
            let name = rule(*of, &compiled.held[*of]);
            disk.push(held(&name));
            disk.extend(waits(stand, usize::MAX, &compiled.held));
            disk.push(format!("{{ mark = {{ name = \"go-{name}\" }} }}"));
        }
    }
    if disk.len() > 1 {
        disk.dedup();
        threads.push(("disk".to_owned(), disk));
    }
    Ok(threads)
}

fn barrier() -> String {
    r#"{ barrier = { name = "go" } }"#.to_owned()
}

fn held(rule: &str) -> String {
    format!("{{ await = {{ signal = \"held:{rule}\", limit_ms = {LIMIT_MS} }} }}")
}

/// Waits until the other threads stand as they should.
fn waits(
    stand: &std::collections::BTreeMap<usize, Stands>,
    thread: usize,
    held_requests: &[Held],
) -> Vec<String> {
    let others = stand.iter().filter(|(other, _)| **other != thread);
    let wait = |(other, stands): (&usize, &Stands)| match stands {
        Stands::Done(op) => {
            let signal = format!("{}-{op}-done", letter(*other));
            Some(format!("{{ await = {{ signal = {signal:?}, limit_ms = {LIMIT_MS} }} }}"))
        }
        // One that fails is not held.
        Stands::WaitsFor(of) if held_requests[*of].fails => None,
        Stands::WaitsFor(of) => Some(held(&rule(*of, &held_requests[*of]))),
        Stands::Blocked(within) => Some(format!(
            "{{ await_parked = {{ thread = \"{}\", within = [{within:?}], limit_ms = {LIMIT_MS} }} }}",
            letter(*other)
        )),
    };
    // First what is held, then who waits behind it.
    let (first, then): (Vec<_>, Vec<_>) =
        others.partition(|(_, stands)| matches!(stands, Stands::WaitsFor(_)));
    first.into_iter().chain(then).filter_map(wait).collect()
}

/// The system calls of an operation.
fn calls(op: Op, number: usize, sizes: &Sizes) -> anyhow::Result<Vec<String>> {
    let span =
        |at: u8, len: u8| (sizes.base + u64::from(at) * sizes.block, u64::from(len) * sizes.block);
    let fallocate = |mode: &str, at: u8, len: u8| {
        let (at, len) = span(at, len);
        format!(
            "{{ fallocate = {{ file = \"raced\", mode = {mode:?}, offset = {at}, bytes = {len} }} }}"
        )
    };
    let fill = |data: u8| FILL + data;
    Ok(match op {
        Op::Mkwrite { at, data, behind_eof } => {
            let (at, len) = span(at, 1);
            let offset = if behind_eof { at + len - 1 } else { at };
            let value = fill(data);
            vec![format!(
                "{{ store = {{ file = \"raced\", offset = {offset}, value = {value} }} }}"
            )]
        }
        Op::Write { at, len, data, partial } => {
            let (at, bytes) = span(at, len);
            let bytes = if partial { bytes - sizes.block / 2 } else { bytes };
            let fill = fill(data);
            vec![format!(
                "{{ write = {{ file = \"raced\", offset = {at}, bytes = {bytes}, fill = {fill} }} }}"
            )]
        }
        Op::Read { at, len } => {
            let (at, bytes) = span(at, len);
            vec![format!("{{ read = {{ file = \"raced\", offset = {at}, bytes = {bytes} }} }}")]
        }
        Op::Fallocate { at, len, keep_size } => {
            vec![fallocate(if keep_size { "keep_size" } else { "allocate" }, at, len)]
        }
        Op::ZeroRange { at, len, keep_size } => {
            let mode = if keep_size { "zero_range_keep_size" } else { "zero_range" };
            vec![fallocate(mode, at, len)]
        }
        Op::PunchHole { at, len } => vec![fallocate("punch_hole", at, len)],
        Op::CollapseRange { at, len } => vec![fallocate("collapse_range", at, len)],
        Op::InsertRange { at, len } => vec![fallocate("insert_range", at, len)],
        Op::Truncate { size } => {
            let bytes = sizes.base + u64::from(size) * sizes.block;
            vec![format!("{{ truncate = {{ file = \"raced\", bytes = {bytes} }} }}")]
        }
        // fsync that may fail: the device may have failed what it writes.
        Op::Fsync | Op::Writepages { .. } => {
            vec![r#"{ try_fsync = { file = "raced" } }"#.to_owned()]
        }
        Op::Commit => vec![
            r#"{ write = { file = "other", bytes = 4096, fill = 90 } }"#.to_owned(),
            r#"{ fsync = { file = "other" } }"#.to_owned(),
        ],
        Op::Fiemap { at, .. } => {
            let (offset, _) = span(at, 1);
            vec![format!(
                "{{ seek_data = {{ file = \"raced\", offset = {offset}, name = \"found-{number}\" }} }}"
            )]
        }
        Op::RemountNodelalloc => {
            vec![r#"{ remount = { options = "noatime,nodelalloc", may_fail = true } }"#.to_owned()]
        }
        Op::Evict => vec![
            r#"{ close = { file = "raced" } }"#.to_owned(),
            r#"{ unlink = { path = "raced" } }"#.to_owned(),
        ],
        Op::DioWrite { .. }
        | Op::DioRead { .. }
        | Op::GetEsCache { .. }
        | Op::PrecacheExtents
        | Op::ClearEsCache
        | Op::Reclaim { .. } => bail!(
            "{} has no operation in the language of plans: no plan can be written for it",
            op.label()
        ),
    })
}

fn list(ops: &[String]) -> String {
    let lines: String = ops.iter().fold(String::new(), |text, op| text + "    " + op + ",\n");
    if lines.is_empty() { "[]".to_owned() } else { format!("[\n{lines}]") }
}
