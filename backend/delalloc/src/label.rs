//! Steps, locks and changes as text, in the kernel's words; only ever called for a counterexample.

use std::fmt::Write;

use explorer::{InvariantId, Model, Step};

use crate::exec::{DEVICE_FAILS, DEVICE_IO, Engine, Fault};
use crate::geometry::{Set, bit, each};
use crate::invariant::Invariant;
use crate::model::DelallocModel;
use crate::program::{Instr, Need};
use crate::state::{Errno, Locks, Map, Mode, Rwsem, State, Status, Wait};

/// A step in the kernel's words, with what it found and what it released.
pub(crate) fn step(engine: &Engine, before: &State, thread: u8, choice: u8) -> String {
    let mut after = *before;
    engine.apply(&mut after, thread, choice);
    let slot = usize::from(thread);
    if slot == engine.device() {
        return device(before, choice);
    }
    if slot == engine.shrinker() {
        return format!("ext4_es_shrink: entry at {choice}");
    }
    let mut text = instruction(engine, before, &after, slot);
    if let Some(fault) = Fault::of_choice(choice) {
        text = format!("{text} -> {}", fault_text(fault));
    }
    text.push_str(&released(before.threads[slot].held & !after.threads[slot].held));
    text
}

/// Locks given back at the end of a step, innermost first.
fn released(held: u8) -> String {
    let up = |lock: Rwsem| {
        if held & Locks::held_bit(lock, Mode::Read) != 0 {
            format!("; up_read({})", lock.name())
        } else if held & Locks::held_bit(lock, Mode::Write) != 0 {
            format!("; up_write({})", lock.name())
        } else {
            String::new()
        }
    };
    let stop = if held & Locks::HANDLE != 0 { "; ext4_journal_stop" } else { "" };
    format!("{}{stop}{}{}", up(Rwsem::Data), up(Rwsem::Invalidate), up(Rwsem::Inode))
}

fn fault_text(fault: Fault) -> &'static str {
    match fault {
        Fault::AllocEnospc | Fault::SplitEnospc | Fault::SplitSecond => "ENOSPC",
        Fault::AllocEnomem | Fault::SplitEnomem | Fault::EsEnomem | Fault::PendingEnomem => {
            "ENOMEM"
        }
        Fault::AllocEio | Fault::WriteEio | Fault::ReadEio => "EIO",
        Fault::Restart => "no credits",
    }
}

fn device(before: &State, choice: u8) -> String {
    let index = usize::from(choice & 15);
    let end = if choice & DEVICE_FAILS != 0 { "fails" } else { "done" };
    if choice & DEVICE_IO != 0 {
        let blocks = State::blocks_text(before.io[index].blocks);
        return format!("write of data {blocks} {end}");
    }
    let t = &before.threads[index];
    let what = match t.wait {
        Wait::None => "nothing",
        Wait::Bitmap => "read of block bitmap",
        Wait::Leaf => "read of extent leaf",
        Wait::Data => "read of data",
        Wait::DirectWrite => "direct write",
        Wait::DirectRead => "direct read",
        Wait::Log => "write of log",
    };
    format!("{what} {end}")
}

fn status_text(state: &State, block: u8) -> &'static str {
    let delayed = state.es.delayed & bit(block) != 0;
    match state.es.status(block) {
        Status::None => "-",
        Status::Written if delayed => "W+D",
        Status::Written => "W",
        Status::Unwritten if delayed => "U+D",
        Status::Unwritten => "U",
        Status::Delayed => "D",
        Status::Hole => "H",
    }
}

fn found_text(state: &State, block: u8) -> &'static str {
    match state.es.status(block) {
        Status::None => "miss",
        Status::Written => "written",
        Status::Unwritten => "unwritten",
        Status::Delayed => "delayed",
        Status::Hole => "hole",
    }
}

fn range_text(first: u8, end: u8) -> String {
    if end <= first + 1 { format!("{first}") } else { format!("{first}-{}", end - 1) }
}

fn map_text(map: Map) -> String {
    let range = range_text(map.lblk, map.end);
    if map.pblk == 0 && map.has(Map::DELAYED) {
        format!("delayed {range}")
    } else if map.pblk == 0 {
        format!("hole {range}")
    } else if map.has(Map::UNWRITTEN) {
        format!("unwritten {range} at {}", map.pblk)
    } else {
        format!("written {range} at {}", map.pblk)
    }
}

fn errno_text(errno: Errno) -> &'static str {
    match errno {
        Errno::Ok => "ok",
        Errno::Enomem => "ENOMEM",
        Errno::Enospc => "ENOSPC",
        Errno::Eio => "EIO",
        Errno::Einval => "EINVAL",
        Errno::Fault => "SIGBUS",
    }
}

#[allow(clippy::too_many_lines, clippy::match_same_arms, reason = "one line an instruction")]
fn instruction(engine: &Engine, before: &State, after: &State, slot: usize) -> String {
    let t = &before.threads[slot];
    let now = &after.threads[slot];
    let block = t.cur;
    let failed = |text: &str| {
        if now.errno == t.errno || now.errno == Errno::Ok {
            text.to_owned()
        } else {
            format!("{text} -> {}", errno_text(now.errno))
        }
    };
    match engine.at(before, slot) {
        Instr::Lock(lock, mode) => {
            let call = if mode == Mode::Read { "down_read" } else { "down_write" };
            let taken = now.held & Locks::held_bit(lock, mode) != 0;
            let wait = if taken { "" } else { ": waits" };
            let walk = if taken && after.threads[slot].pc > before.threads[slot].pc + 1 {
                walked_text(engine, after, slot)
            } else {
                String::new()
            };
            format!("{call}({}){wait}{walk}", lock.name())
        }
        Instr::HandleStart => "ext4_journal_start".into(),
        Instr::EsLookup { .. } | Instr::DaLookup { .. } => {
            format!("ext4_es_lookup_extent({block}) -> {}", found_text(before, block))
        }
        Instr::DaRecheck { .. } => {
            format!("ext4_es_lookup_extent({block}) again -> {}", found_text(before, block))
        }
        Instr::LeafRead => "read_extent_tree_block: submit".into(),
        Instr::LeafCache { .. } => "ext4_cache_extents".into(),
        Instr::Walk { .. } => {
            format!("ext4_ext_map_blocks({block}) -> {}", map_text(walked(engine, before, slot)))
        }
        Instr::CacheFound => format!("ext4_es_insert_extent({})", map_text(t.map)),
        Instr::BitmapRead => "ext4_read_block_bitmap: submit".into(),
        Instr::Allocate(need) => {
            let call = if before.disk.mapped & bit(block) != 0 && need != Need::Unwritten {
                "ext4_ext_handle_unwritten_extents"
            } else {
                "ext4_mb_new_blocks, ext4_ext_insert_extent"
            };
            if now.errno == t.errno {
                format!("{call} -> {}", map_text(after.threads[slot].map))
            } else {
                failed(call)
            }
        }
        Instr::UpdateReserve(_) => "ext4_da_update_reserve_space".into(),
        Instr::InsertAllocated(_) => format!("ext4_es_insert_extent({})", map_text(t.map)),
        Instr::Reserve => failed("ext4_da_reserve_space"),
        Instr::InsertDelayed => failed(&format!("ext4_es_insert_delayed_block({block})")),
        Instr::FolioCreate | Instr::FolioLock => {
            failed(&format!("lock folio {}", engine.geo.folio(block)))
        }
        Instr::Fill => format!("read block {block}: submit"),
        Instr::Filled => format!("block {block} is up to date"),
        Instr::IfCached { .. } => format!("look for folio {}", engine.geo.folio(block)),
        Instr::Store { first, size: 0, .. } => {
            format!("mark dirty, store to block {first}")
        }
        Instr::Store { first, end, .. } => {
            format!("copy to blocks {}, mark dirty", range_text(first, end))
        }
        Instr::StoreBehindEof(block) => {
            format!("mark dirty, store behind the end of the file in block {block}")
        }
        Instr::DropFolios { blocks, .. } => {
            format!("truncate_pagecache_range({})", State::blocks_text(blocks))
        }
        Instr::WbFind(_) => "find dirty folio".into(),
        Instr::WbLock(_) => format!("lock folio {}", t.wb),
        Instr::WbSubmit { .. } => format!("submit folio {}", t.wb),
        Instr::WbDisksize => "i_disksize moves up".into(),
        Instr::WbGiveUp => "ext4_es_remove_extent: give up".into(),
        Instr::WbInvalidate => format!("invalidate folio {}", t.wb),
        Instr::EndIoWait => "ext4_end_io_rsv_work".into(),
        Instr::EndIoFinish => "end writeback".into(),
        Instr::SetSize { size, .. } => format!("size -> {size}"),
        Instr::PunchDisksize(_) => "i_disksize moves up".into(),
        Instr::EsRemove(first, end) => {
            failed(&format!("ext4_es_remove_extent({})", range_text(first, end)))
        }
        Instr::RemoveLeaf { first, end, .. } => {
            format!("ext4_ext_remove_space({})", range_text(first, end))
        }
        Instr::InsertHole(first, end) => {
            format!("ext4_es_insert_extent(hole {})", range_text(first, end))
        }
        Instr::Shift { by, .. } => format!("ext4_ext_shift_extents({by})"),
        Instr::Orphan(true) => "ext4_orphan_add".into(),
        Instr::Orphan(false) => "ext4_orphan_del".into(),
        Instr::CutOrphan => "ext4_inode_extension_cleanup".into(),
        Instr::Remount => failed("remount nodelalloc"),
        Instr::DioWrite(_) => "submit direct write".into(),
        Instr::DioRead => "submit direct read".into(),
        Instr::CommitLock => "commit: no new handles".into(),
        Instr::CommitLog => "commit: submit log".into(),
        Instr::CommitDone => "commit: durable".into(),
        Instr::ClearEs => "ext4_clear_inode_es".into(),
        Instr::ReportHole => "report".into(),
        Instr::Reclaim(folio) => format!("reclaim folio {folio}"),
        Instr::EvictWait => "last user is gone".into(),
        Instr::Evict => "ext4_destroy_inode".into(),
        other => format!("{other:?}"),
    }
}

/// A walk that belongs to the step of the shared lock before it.
fn walked_text(engine: &Engine, after: &State, slot: usize) -> String {
    let t = &after.threads[slot];
    let walk = engine.programs[slot][usize::from(t.pc - 1)];
    if matches!(walk, Instr::Walk { .. }) {
        format!(", ext4_ext_map_blocks({}) -> {}", t.cur, map_text(t.map))
    } else {
        String::new()
    }
}

/// What the walk at which the thread is will find.
fn walked(engine: &Engine, before: &State, slot: usize) -> Map {
    let mut after = *before;
    engine.apply(&mut after, slot as u8, 0);
    after.threads[slot].map
}

/// The locks of a thread.
pub(crate) fn held(engine: &Engine, state: &State, thread: u8) -> String {
    let slot = usize::from(thread);
    if slot >= engine.programs.len() {
        return String::new();
    }
    let t = &state.threads[slot];
    let mut held = Vec::new();
    for lock in Rwsem::ALL {
        if t.held & Locks::held_bit(lock, Mode::Write) != 0 {
            held.push(format!("{} W", lock.name()));
        }
        if t.held & Locks::held_bit(lock, Mode::Read) != 0 {
            held.push(format!("{} R", lock.name()));
        }
    }
    if t.held & Locks::HANDLE != 0 {
        held.push("handle".into());
    }
    held.extend(each(t.folios).map(|folio| format!("folio {folio}")));
    held.join(", ")
}

/// What differs between two states, without registers and locks.
pub(crate) fn changed(engine: &Engine, before: &State, after: &State) -> String {
    let mut parts = Vec::new();
    for block in 0..engine.geo.blocks {
        let (old, new) = (status_text(before, block), status_text(after, block));
        let moved = before.es.pblk[usize::from(block)] != after.es.pblk[usize::from(block)];
        if old != new || moved {
            parts.push(format!("es[{block}]: {old} -> {new}"));
        }
        let (old, new) = (disk_text(before, block), disk_text(after, block));
        if old != new {
            parts.push(format!("disk[{block}]: {old} -> {new}"));
        }
    }
    let mut number = |name: &str, old: i64, new: i64| {
        if old != new {
            parts.push(format!("{name}: {old} -> {new}"));
        }
    };
    number("reserved", before.inode.reserved.into(), after.inode.reserved.into());
    number("i_size", before.inode.i_size.into(), after.inode.i_size.into());
    number("i_disksize", before.inode.i_disksize.into(), after.inode.i_disksize.into());
    number("i_blocks", before.inode.i_blocks.into(), after.inode.i_blocks.into());
    let mut set = |name: &str, old: Set, new: Set| {
        if new & !old != 0 {
            parts.push(format!("{name} {}", State::blocks_text(new & !old)));
        }
        if old & !new != 0 {
            parts.push(format!("no longer {name} {}", State::blocks_text(old & !new)));
        }
    };
    set("cached", before.cache.present, after.cache.present);
    set("dirty", before.cache.dirty, after.cache.dirty);
    set("stored behind the end", before.cache.behind_eof, after.cache.behind_eof);
    set("writeback", before.cache.writeback, after.cache.writeback);
    set("pending", before.es.pending, after.es.pending);
    parts.join(", ")
}

fn disk_text(state: &State, block: u8) -> String {
    let pblk = state.disk.pblk[usize::from(block)];
    if state.disk.mapped & bit(block) == 0 {
        "-".into()
    } else if state.disk.unwritten & bit(block) != 0 {
        format!("U{pblk}")
    } else {
        format!("W{pblk}")
    }
}

/// What is wrong: the rule, the block, the values, the two steps that conflict.
pub(crate) fn explain(
    model: &DelallocModel,
    history: &[Step],
    state: &State,
    id: InvariantId,
) -> String {
    let Some(invariant) = Invariant::nth(id.0) else {
        return "no thread can go on".into();
    };
    let block = model.finding(state).map_or(0, |(_, block)| block);
    let engine = model.engine();
    let mut text = format!(
        "{}: {}\nblock {block}: extent status {}, on disk {}, reserved {} for {} delayed\n",
        invariant.name(),
        invariant.statement(),
        status_text(state, block),
        disk_text(state, block),
        state.inode.reserved,
        state.reservation_due(&engine.geo),
    );
    if invariant == Invariant::A9 {
        for t in state.threads.iter().filter(|t| t.map.has(Map::SEQ)) {
            let _ = writeln!(text, "mapping at the i_es_seq of now: {}", map_text(t.map));
        }
    }
    let conflict = conflicting(model, history, block);
    for (number, step, label) in &conflict {
        let thread = model.thread_name(step.thread);
        let _ = writeln!(text, "step {number}, {thread}: {label}");
    }
    text
}

/// The last step, and the last one before it by another thread, that changed what the rules say
/// about the block.
fn conflicting(model: &DelallocModel, history: &[Step], block: u8) -> Vec<(usize, Step, String)> {
    let engine = model.engine();
    let view = |state: &State| {
        let b = usize::from(block);
        let folio = engine.geo.folio(block);
        (
            (status_text(state, block), state.es.pblk[b], disk_text(state, block)),
            (state.inode.reserved, state.inode.i_disksize, state.es.pending),
            (
                state.cache.present & bit(folio),
                state.cache.dirty & bit(folio),
                state.cache.behind_eof & bit(block),
                state.cache.data.get(block),
            ),
        )
    };
    let mut state = model.initial();
    let mut writers: Vec<(usize, Step, String)> = Vec::new();
    for (number, &step) in history.iter().enumerate() {
        let label = model.step_label(&state, step);
        let old = view(&state);
        model.apply(&mut state, step);
        if view(&state) != old {
            writers.push((number + 1, step, label));
        }
    }
    let Some(last) = writers.pop() else {
        return Vec::new();
    };
    let other = writers.into_iter().rev().find(|(_, step, _)| step.thread != last.1.thread);
    other.into_iter().chain([last]).collect()
}
