//! The cookbook: each built-in plan, from its own file.
//!
//! In: `guest-tests/plans/*.toml`. Out: Markdown.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context, Result};
use toml::Table;

use crate::command::top;

const INTRODUCTION: &str = "\
# Cookbook

Made by `cargo ci docs` from the plan files; do not edit.

Each plan is raced on the kernels that it names with the first command, and on any other with
`--kernel NAME` (`racegate kernels list`). `racegate campaign show PLAN` prints the whole plan.
";

pub(super) fn page() -> Result<String> {
    let folder = top().join("guest-tests/plans");
    let mut files: Vec<_> = fs::read_dir(&folder)?.collect::<std::io::Result<_>>()?;
    files.sort_by_key(fs::DirEntry::file_name);
    let mut text = INTRODUCTION.to_owned();
    for file in files {
        let path = file.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let plan = fs::read_to_string(&path)?;
            recipe(&mut text, &plan).with_context(|| path.display().to_string())?;
        }
    }
    Ok(text)
}

fn recipe(text: &mut String, file: &str) -> Result<()> {
    let plan: Table = file.parse()?;
    let word = |name: &str| plan.get(name).and_then(toml::Value::as_str);
    let name = word("name").context("it has no name")?;
    // Writing to a String does not fail.
    let _ = write!(text, "\n## {name}\n\n{}.\n\n", word("summary").context("it has no summary")?);
    let comment = file.lines().take_while(|line| line.starts_with('#') || line.is_empty());
    for line in comment {
        let line = line.trim_start_matches('#');
        *text += line.strip_prefix(' ').unwrap_or(line);
        *text += "\n";
    }
    *text = text.trim_end().to_owned() + "\n\n";
    let kernels = |which: &str| {
        let names = plan.get("kernels").and_then(|kernels| kernels.get(which)?.as_array());
        names.into_iter().flatten().filter_map(toml::Value::as_str).collect::<Vec<_>>()
    };
    for which in ["affected", "fixed"] {
        let names = kernels(which);
        if !names.is_empty() {
            let _ = writeln!(text, "- {which}: {}", names.join(", "));
        }
    }
    let rate = plan.get("rate_if_affected").and_then(toml::Value::as_float).unwrap_or_default();
    let _ = writeln!(
        text,
        "- an affected kernel is hit in at least {:.0} % of the trials",
        100.0 * rate
    );
    let shadow = plan.get("hit").and_then(|hit| hit.get("shadow")?.as_array());
    let shadow: Vec<&str> = shadow.into_iter().flatten().filter_map(toml::Value::as_str).collect();
    if !shadow.is_empty() {
        let _ = writeln!(text, "- told by the shadow: {}", shadow.join(", "));
    }
    let _ = write!(text, "\n```\nracegate campaign run {name} --html {name}.html\n```\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_made_from_the_file_alone() {
        let mut text = String::new();
        let plan = "# Why.\n#\n# More.\n\nname = \"p\"\nsummary = \"s\"\nrate_if_affected = 0.9\n\
                    [kernels]\naffected = [\"a\", \"b\"]\n# No part of it.\n";
        recipe(&mut text, plan).unwrap();
        assert!(text.starts_with("\n## p\n\ns.\n\nWhy.\n\nMore.\n\n- affected: a, b\n"), "{text}");
        assert!(text.contains("at least 90 %") && !text.contains("No part"), "{text}");
        assert!(recipe(&mut text, "summary = \"s\"").is_err());
    }
}
