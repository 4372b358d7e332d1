//! The reference of plans and rules.
//!
//! In: the sources that define them. Out: Markdown.

use std::fmt::Write as _;

use anyhow::Result;

use super::source::{Member, Source, Variant};

const PLAN: &str = "guest-tests/campaign/src/plan.rs";
const WORKLOAD: &str = "guest-tests/agent/src/wire/workload.rs";
const DEVICE: &str = "guest-tests/campaign/src/device.rs";
const RULES: &str = "backend/pipeline/src/rules.rs";
const CLASS: &str = "backend/ext4-layout/src/class.rs";

const INTRODUCTION: &str = "\
# Reference: plans and rules

Made by `cargo ci docs` from the code; do not edit.

A plan says what is raced, how the device widens the window, and what counts as a hit. `racegate
campaign new NAME` starts one from a built-in plan, `racegate campaign check FILE` names the line of a
mistake and says in words what the plan does. Files are TOML. A field that is not here is a mistake.
";

pub(super) fn page() -> Result<String> {
    let (plan, workload) = (Source::read(PLAN)?, Source::read(WORKLOAD)?);
    let mut text = INTRODUCTION.to_owned();

    heading(&mut text, 2, "Plans", "The top of the file.");
    // What is said of a field stands at the public type, how it is written at the private one.
    table(&mut text, &described(plan.members("File")?, &plan.members("Plan")?));
    for (title, name, about) in [
        ("`[kernels]`", "Kernels", "Names that `racegate kernels list` shows."),
        ("`[[not_on]]`", "NotOn", "A device that the plan cannot run on."),
        ("`[filesystem]`", "Filesystem", "How the image is made."),
        ("`[guest]`", "Guest", "What the guest needs."),
    ] {
        heading(&mut text, 3, title, about);
        table(&mut text, &plan.members(name)?);
    }
    heading(
        &mut text,
        3,
        "`[[arm]]`",
        "One way of running the workload. There must be one named `rules`: the verdict is about it. \
         `none` has no rules, `uniform` delays everything alike; others may have any name.",
    );
    table(&mut text, &described(plan.members("ArmTable")?, &plan.members("Arm")?));
    heading(&mut text, 3, "`[hit]`", "What counts as a hit: everything given must agree.");
    table(&mut text, &plan.members("Hit")?);
    heading(&mut text, 3, "`counter_rises`", "Two values that `read_value` has read.");
    table(&mut text, &plan.members("CounterRises")?);
    heading(&mut text, 3, "Devices", "For `not_on` and `--device`.");
    for Variant { name, doc, .. } in Source::read(DEVICE)?.variants("Device")? {
        let _ = writeln!(text, "- `{}`: {doc}", name.replace('_', "-"));
    }

    heading(&mut text, 2, "Workloads", "What the guest does in one trial; the same in every arm.");
    heading(&mut text, 3, "`[workload]`", "`setup`, then all threads at once, then `finish`.");
    table(&mut text, &workload.members("Workload")?);
    heading(&mut text, 3, "`[[workload.thread]]`", "One thread of the guest.");
    table(&mut text, &workload.members("Thread")?);
    heading(
        &mut text,
        3,
        "Operations",
        "Each is a table with one name: `{ store = { file = \"raced\", value = 165 } }`. Files are \
         known by the name that `open` gave them; paths are relative to the mount point; offsets and \
         lengths are in bytes.",
    );
    for Variant { name, doc, members } in workload.variants("Op")? {
        heading(&mut text, 4, &format!("`{name}`"), &doc);
        if members.is_empty() {
            let _ = writeln!(text, "No fields: `{{ {name} = {{}} }}`.");
        } else {
            table(&mut text, &members);
        }
    }

    heading(
        &mut text,
        2,
        "Rules",
        "The text of an arm's `rules`, and of the files that `racegate-blk --rules` and `racegate ctl \
         load` take.",
    );
    let language = Source::read(RULES)?.module_doc("# The language")?;
    // References to items of the code have no place here.
    let language =
        language.replace("[`crate::Errno`]", "the names in `backend/pipeline/src/errno.rs`");
    let _ = writeln!(text, "{}", language.trim());
    heading(&mut text, 3, "Classes", "What a block can be, as `class` and `of` spell it.");
    let class = Source::read(CLASS)?;
    let homes = class.variants("Home")?.into_iter();
    let of_log = class.variants("Class")?.into_iter().filter(|variant| variant.name != "home");
    text += "| class | what it is | fields |\n|---|---|---|\n";
    for Variant { name, doc, members } in homes.chain(of_log) {
        let fields: Vec<String> = members.iter().map(|of| format!("`{}`", of.name)).collect();
        let _ = writeln!(text, "| `{name}` | {doc} | {} |", fields.join(", "));
    }
    Ok(text)
}

/// Members with the documentation of those of the same name; `arm` is that of `arms`.
fn described(members: Vec<Member>, others: &[Member]) -> Vec<Member> {
    let of = |mut member: Member| {
        let same = |other: &&Member| {
            other.name == member.name || other.name == format!("{}s", member.name)
        };
        if let Some(other) = others.iter().find(same) {
            member.doc.clone_from(&other.doc);
        }
        member
    };
    members.into_iter().map(of).collect()
}

fn heading(text: &mut String, level: usize, title: &str, about: &str) {
    // Writing to a String does not fail.
    let _ = write!(text, "\n{} {title}\n\n{about}\n\n", "#".repeat(level));
}

fn table(text: &mut String, members: &[Member]) {
    *text += "| field | value | |\n|---|---|---|\n";
    for Member { name, kind, optional, doc } in members {
        let needed = if *optional { "" } else { " (needed)" };
        let doc = doc.replace('|', "\\|");
        let value = value(kind).unwrap_or_else(|| kind.clone());
        let _ = writeln!(text, "| `{name}` | {value}{needed} | {doc} |");
    }
}

/// A type in words.
fn value(kind: &str) -> Option<String> {
    let inside = |outer: &str| kind.strip_prefix(outer)?.strip_suffix('>');
    for outer in ["Option<", "Spanned<"] {
        if let Some(inner) = inside(outer) {
            return value(inner);
        }
    }
    if let Some(inner) = inside("Vec<") {
        let one = value(inner)?;
        return Some(match inner {
            "Op" => "list of operations".to_owned(),
            "String" => "list of texts".to_owned(),
            _ => format!("list of {one}"),
        });
    }
    let words = match kind {
        "String" => "text",
        "bool" => "`true` or `false`",
        "u8" => "number up to 255",
        "u32" | "u64" => "number",
        "f64" => "number from 0 to 1",
        "Duration" => "time, such as `\"60s\"`",
        "Op" => "operation",
        "Device" => "name of a device",
        "Isolation" => "`\"shared\"` or `\"fresh\"`",
        "FallocateMode" => "name of a mode",
        "Kernels" | "Filesystem" | "Guest" | "Hit" | "Workload" | "CounterRises" => "table",
        "NotOn" | "ArmTable" | "Thread" => "tables",
        _ => return None,
    };
    Some(words.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_a_type_in_words_and_a_meaning() {
        let page = page().unwrap();
        // Below the rules there are tables of another kind.
        let (plans, _) = page.split_once("\n## Rules").unwrap();
        let mut fields = 0;
        for line in plans.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.splitn(4, '|').collect();
            assert!(!cells[2].contains('<') && !cells[2].contains("::"), "{line}");
            assert!(!cells[3].trim_matches(['|', ' ']).is_empty(), "{line}");
            fields += 1;
        }
        assert!(fields > 100, "{fields}");
    }

    #[test]
    fn a_type_without_words_is_seen() {
        assert_eq!(value("Option<Vec<String>>").unwrap(), "list of texts");
        assert_eq!(value("BTreeMap<String,u32>"), None);
    }
}
