//! Shrinking a list that differs, on the real guest: runs of operations are taken out, then
//! lengths made shorter, as long as the list still differs.
//!
//! In: a list. Out: a shorter list that differs too; nothing can be taken out of it.
//! Method: delta debugging (Zeller, Hildebrandt, 2002). All candidates of one size are one batch.

use delalloc::Op;

use super::DifferentialError;
use super::compare::{Failure, Ground, compare};
use super::lab::Lab;
use super::list::{Script, admitted};

/// The shortest list found, and where it differs.
pub(super) fn shrink(
    lab: &mut Lab<'_>,
    ground: &Ground,
    script: &Script,
    failure: Failure,
) -> Result<(Script, Failure), DifferentialError> {
    let mut best = (script.clone(), failure);
    cut(&mut best);
    let mut size = best.0.ops.len().div_ceil(2).max(1);
    loop {
        let candidates = without(ground, &best.0, size);
        if let Some(better) = first_differing(lab, ground, candidates)? {
            best = better;
            cut(&mut best);
            size = size.min(best.0.ops.len()).max(1);
        } else if size > 1 {
            size = size.div_ceil(2);
        } else {
            break;
        }
    }
    while let Some(better) = first_differing(lab, ground, shorter(ground, &best.0))? {
        best = better;
    }
    Ok(best)
}

/// Operations behind the difference have no part in it.
fn cut((script, failure): &mut (Script, Failure)) {
    script.ops.truncate(failure.step + 1);
}

/// The list without each run of `size` operations.
fn without(ground: &Ground, script: &Script, size: usize) -> Vec<Script> {
    let count = script.ops.len();
    let starts = (0..count).step_by(size);
    let candidates = starts.map(|start| {
        let kept = move |index: usize| index < start || index >= start + size;
        (0..count).filter(move |&index| kept(index)).map(|index| script.ops[index])
    });
    let scripts = candidates
        .map(|ops| Script { ops: admitted(ground.kernel, ground.geo, ops), map: script.map });
    scripts.filter(|candidate| candidate.ops.len() < count).collect()
}

/// The list with one operation one block shorter, or without asking for the map.
fn shorter(ground: &Ground, script: &Script) -> Vec<Script> {
    let mut candidates = Vec::new();
    if script.map {
        candidates.push(Script { map: false, ..script.clone() });
    }
    for index in 0..script.ops.len() {
        let mut ops = script.ops.clone();
        if let Some(op) = one_shorter(ops[index]) {
            ops[index] = op;
            if admitted(ground.kernel, ground.geo, ops.clone()) == ops {
                candidates.push(Script { ops, map: script.map });
            }
        }
    }
    candidates
}

fn one_shorter(mut op: Op) -> Option<Op> {
    match &mut op {
        Op::Write { len, .. }
        | Op::Read { len, .. }
        | Op::Fallocate { len, .. }
        | Op::ZeroRange { len, .. }
        | Op::PunchHole { len, .. }
        | Op::DioWrite { len, .. }
        | Op::DioRead { len, .. }
            if *len > 1 =>
        {
            *len -= 1;
            Some(op)
        }
        _ => None,
    }
}

fn first_differing(
    lab: &mut Lab<'_>,
    ground: &Ground,
    candidates: Vec<Script>,
) -> Result<Option<(Script, Failure)>, DifferentialError> {
    let results = lab.run(&candidates)?;
    let differing = candidates.into_iter().zip(&results).find_map(|(script, result)| {
        let failure = compare(ground, &script, result).err()?;
        Some((script, failure))
    });
    Ok(differing)
}
