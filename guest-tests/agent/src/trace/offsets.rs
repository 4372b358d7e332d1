//! Filling the offsets of structure members into the text of a probe.
//!
//! In: text with `{STRUCT.MEMBER}` in it. Out: the same with numbers, each with its sign, as a
//! probe's arguments take them.
//! Must not know: what the structures are.

use std::fmt::Write as _;

use anyhow::{Context as _, bail};

use super::btf::Btf;

/// Replaces every `{...}` of a probe.
pub(super) fn fill_in(probe: &str, btf: &Btf<'_>) -> anyhow::Result<String> {
    let mut line = String::with_capacity(probe.len());
    let mut rest = probe;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((name, behind)) = after.split_once('}') else {
            bail!("a brace is not closed");
        };
        line += before;
        write!(line, "{:+}", value(name, btf)?)?;
        rest = behind;
    }
    Ok(line + rest)
}

/// `A.B`, or `A.B-C.D`.
fn value(name: &str, btf: &Btf<'_>) -> anyhow::Result<i64> {
    match name.split_once('-') {
        None => member(name, btf),
        Some((plus, minus)) => Ok(member(plus, btf)? - member(minus, btf)?),
    }
}

fn member(name: &str, btf: &Btf<'_>) -> anyhow::Result<i64> {
    let (structure, member) = name.split_once('.').context("no dot in a member's name")?;
    let offset = btf.offset(structure, member);
    Ok(i64::from(offset.with_context(|| format!("this kernel has no {structure}.{member}"))?))
}
