//! Comparing what a kernel has shown with what the engine predicts, operation by operation.
//!
//! In: a script and the agent's result. Out: the first step at which they differ, and how.
//! What the kernel is free to choose (physical blocks, a block for the extent tree) is told to
//! the engine, or allowed for, and checked for being a legal choice.

use agent::wire::{KernelLine, ListResult, Run, Seen};
use delalloc::{Flag, Geometry, Kernel, Op};
use serde::Serialize;

use super::list::Script;
use super::predict::{Letter, Model, Prediction, put};

/// Name of what is compared first of all.
const STATUS: &str = "extent status";
/// Name of what must be legal.
const PLACE: &str = "physical block";

/// Extents that fit the inode. Looking one up puts all of them into extent status; in a leaf that
/// depends on which blocks of the tree the kernel has looked at before, which nothing shows.
const ROOT_EXTENTS: u32 = 4;

/// One thing that differs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Difference {
    /// What it is about.
    pub field: &'static str,
    /// What the engine says.
    pub expected: String,
    /// What the kernel showed.
    pub seen: String,
}

/// One operation with the extent status after it, for reports.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// The operation.
    pub op: String,
    /// Extent status by the engine, a letter a block.
    pub expected: String,
    /// Extent status by the kernel.
    pub seen: String,
}

/// Where a list differs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Failure {
    /// Number of the operation, from 0; one behind the last is the end of the list.
    pub step: usize,
    /// What differs there.
    pub differences: Vec<Difference>,
    /// The operations up to there.
    pub rows: Vec<Row>,
    /// The bug that explains it, if it is one that this kernel version is known to have and that
    /// the engine cannot foresee.
    pub known: Option<&'static str>,
}

/// The file system's facts that choices are checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ground {
    pub(super) kernel: Kernel,
    pub(super) geo: Geometry,
    /// Blocks of the file system.
    pub(super) blocks: u64,
}

/// Compares. Out, if nothing differs: in how many places the engine was told what the kernel has
/// cached in extent status.
pub(super) fn compare(
    ground: &Ground,
    script: &Script,
    result: &ListResult,
) -> Result<u32, Failure> {
    let geo = ground.geo;
    let mut model = Model::new(ground.kernel, geo);
    let mut rows = Vec::new();
    let mut told = 0;
    // Where each block is, as far as it was seen.
    let mut known: Vec<Option<u64>> = vec![None; usize::from(geo.blocks)];
    let mut placed = true;
    let ops = script.ops.iter().copied();
    // As `Script::list` adds it.
    let all = ops.chain([Op::Read { at: 0, len: geo.blocks }]);
    for (step, op) in all.enumerate() {
        let Some(seen) = result.steps.get(step) else {
            let reason = result.error.clone().unwrap_or_else(|| "no result".to_owned());
            let difference = Difference::new("agent", op.label(), reason);
            return Err(Failure { step, differences: vec![difference], rows, known: None });
        };
        let in_leaf = model.leaf() || model.most_extents(op) > ROOT_EXTENTS;
        let mut prediction = model.run(op);
        let mut differences = Vec::new();
        let status = cells(&geo, &seen.status);
        let caching_is_free = in_leaf || !placed;
        if caching_is_free && let Some(count) = model.tell_cached(&status) {
            told += count;
            prediction.status = status.iter().collect();
        }
        rows.push(Row {
            op: op.label(),
            expected: prediction.status.clone(),
            seen: status.iter().collect(),
        });
        plain(&geo, &prediction, seen, &status, &mut differences);
        let map = seen.map.as_ref().map(|runs| (model.map(), runs));
        if let Some((expected, runs)) = &map {
            let seen: String = cells(&geo, runs).into_iter().collect();
            differ(&mut differences, "extent map", expected, &seen);
        }
        let seen_at = choices(ground, seen, &mut differences);
        let moved = matches!(op, Op::CollapseRange { .. } | Op::InsertRange { .. });
        let mapped = model.mapped();
        for (block, place) in known.iter_mut().enumerate() {
            let gone = moved || !mapped.contains(&(block as u8));
            *place = seen_at[block].or(place.filter(|_| !gone));
        }
        let all: Option<Vec<u64>> = mapped.iter().map(|&block| known[usize::from(block)]).collect();
        placed = all.is_some();
        if let Some(all) = all {
            model.place(&all);
        }
        model.tell_leaf(seen.sectors > prediction.sectors);
        if !differences.is_empty() {
            let seen = (&prediction.status[..], &status[..], caching_is_free);
            let known = known_bug(ground, op, &model, seen, &differences);
            return Err(Failure { step, differences, rows, known });
        }
    }
    let mut differences = Vec::new();
    differ(&mut differences, "delayed blocks after unlink", &0, &result.left);
    for line in result.kernel.iter().filter(|line| is_complaint(line)) {
        differences.push(Difference::new("kernel log", "silence".to_owned(), line.text.clone()));
    }
    let step = rows.len();
    if differences.is_empty() {
        Ok(told)
    } else {
        Err(Failure { step, differences, rows, known: None })
    }
}

/// Whether what differs is M22: an operation that splits extents has let the kernel cache a hole
/// where the new extent was still missing from the tree; zero range, on its next turn, takes the
/// hole's lack of a block for block 0. Whether that happens depends on how many extents the inode
/// holds, which is not known where U+D hides blocks. But for these holes extent status must be as
/// predicted, or a free choice of what to cache.
fn known_bug(
    ground: &Ground,
    op: Op,
    model: &Model,
    (expected, seen, caching_is_free): (&str, &[Letter], bool),
    differences: &[Difference],
) -> Option<&'static str> {
    let splits = matches!(
        op,
        Op::ZeroRange { .. }
            | Op::DioWrite { .. }
            | Op::DioRead { .. }
            | Op::Fsync
            | Op::Writepages { .. }
            | Op::PunchHole { .. }
            | Op::CollapseRange { .. }
            | Op::InsertRange { .. }
    );
    if ground.kernel.has(Flag::SplitNocache) || !splits {
        return None;
    }
    let mapped = model.mapped();
    let cells = expected.chars().zip(seen).enumerate();
    let without_holes: Vec<Letter> = cells
        .map(
            |(lblk, (expected, &seen))| {
                if seen == 'H' && mapped.contains(&(lblk as u8)) { expected } else { seen }
            },
        )
        .collect();
    let as_predicted = expected.chars().eq(without_holes.iter().copied());
    let holes = without_holes != seen
        && (as_predicted || caching_is_free && model.clone().tell_cached(&without_holes).is_some());
    let about = |difference: &Difference| match difference.field {
        STATUS => holes,
        PLACE => difference.seen.starts_with("0 for "),
        _ => false,
    };
    differences.iter().all(about).then_some("M22")
}

impl Difference {
    fn new(field: &'static str, expected: String, seen: String) -> Difference {
        Difference { field, expected, seen }
    }
}

fn differ<T: ToString + PartialEq>(
    differences: &mut Vec<Difference>,
    field: &'static str,
    expected: &T,
    seen: &T,
) {
    if expected != seen {
        differences.push(Difference::new(field, expected.to_string(), seen.to_string()));
    }
}

fn plain(
    geo: &Geometry,
    prediction: &Prediction,
    seen: &Seen,
    status: &[Letter],
    differences: &mut Vec<Difference>,
) {
    if let Some(broken) = &prediction.broken {
        differences.push(Difference::new("invariant", "holds".to_owned(), broken.clone()));
    }
    differ(differences, "errno", &prediction.errno, &seen.errno);
    differ(differences, "size", &prediction.size, &seen.size);
    differ(differences, "delayed blocks", &prediction.delayed, &seen.delayed);
    differ(differences, STATUS, &prediction.status, &status.iter().collect());
    // Four extents fit the inode; a file with more has one cluster with their leaf, and may keep
    // it when they become fewer.
    let cluster = u64::from(geo.cluster_blocks()) * u64::from(geo.block_bytes) / 512;
    if seen.sectors != prediction.sectors && seen.sectors != prediction.sectors + cluster {
        differ(differences, "sectors", &prediction.sectors, &seen.sectors);
    }
    let same =
        prediction.data.len() == seen.data.len()
            && prediction.data.iter().zip(&seen.data).all(|(expected, &seen)| {
                expected.is_none_or(|expected| i16::from(expected) == seen)
            });
    if !same {
        let expected: Vec<i16> =
            prediction.data.iter().map(|byte| byte.map_or(-2, i16::from)).collect();
        differ(differences, "data", &bytes(&expected), &bytes(&seen.data));
    }
}

fn bytes(data: &[i16]) -> String {
    let text = |&byte: &i16| match byte {
        -2 => "any".to_owned(),
        -1 => "mixed".to_owned(),
        byte => byte.to_string(),
    };
    data.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// Checks where the kernel has put the blocks. Out: the place of each, as far as it is shown.
fn choices(ground: &Ground, seen: &Seen, differences: &mut Vec<Difference>) -> Vec<Option<u64>> {
    let ratio = u64::from(ground.geo.cluster_blocks());
    let blocks = usize::from(ground.geo.blocks);
    let status = places(blocks, &seen.status);
    let map = seen.map.as_ref().map(|runs| places(blocks, runs));
    let mut chosen: Vec<Option<u64>> = vec![None; blocks];
    for (block, place) in chosen.iter_mut().enumerate() {
        *place = map.as_ref().map_or(status[block], |map| map[block]);
        if let (Some(map), Some(cached)) = (&map, status[block]) {
            let mapped = map[block].map_or_else(|| "nothing".to_owned(), |pblk| pblk.to_string());
            differ(differences, "physical block in extent status", &mapped, &cached.to_string());
        }
        if let Some(pblk) = *place {
            let inside = pblk != 0 && pblk < ground.blocks;
            if !inside || pblk % ratio != block as u64 % ratio {
                let legal = format!("inside {} blocks, aligned to its cluster", ground.blocks);
                let seen = format!("{pblk} for block {block}");
                differences.push(Difference::new(PLACE, legal, seen));
            }
        }
    }
    let mut owned: Vec<u64> = chosen.iter().flatten().copied().collect();
    let distinct = owned.len();
    owned.sort_unstable();
    owned.dedup();
    if owned.len() != distinct {
        let seen = format!("{chosen:?}");
        differences.push(Difference::new(PLACE, "one owner each".to_owned(), seen));
    }
    chosen
}

/// The physical block of each block; those of U+D entries are not shown.
fn places(blocks: usize, runs: &[Run]) -> Vec<Option<u64>> {
    let mut places = vec![None; blocks];
    for &Run(first, len, pblk, flags) in runs {
        if flags & (Run::DELAYED | Run::HOLE) != 0 {
            continue;
        }
        for (n, block) in (first..first + len).enumerate() {
            if let Some(place) = places.get_mut(block as usize) {
                *place = Some(pblk + n as u64);
            }
        }
    }
    places
}

fn cells(geo: &Geometry, runs: &[Run]) -> Vec<Letter> {
    let mut letters = vec!['.'; usize::from(geo.blocks)];
    for &Run(first, len, _, flags) in runs {
        let has = |flag| flags & flag != 0;
        let letter = match (has(Run::HOLE), has(Run::DELAYED), has(Run::UNWRITTEN)) {
            (true, ..) => 'H',
            (_, true, true) => 'u',
            (_, true, false) => 'D',
            (_, false, true) => 'U',
            (_, false, false) => 'W',
        };
        put(&mut letters, first.min(255) as u8, len.min(255) as u8, letter);
    }
    letters
}

/// Whether the kernel complains about the file system or itself.
fn is_complaint(line: &KernelLine) -> bool {
    const SIGNS: [&str; 5] = ["EXT4-fs", "WARNING:", "BUG:", "not cleared", "ext4_da_"];
    SIGNS.iter().any(|sign| line.text.contains(sign))
}
