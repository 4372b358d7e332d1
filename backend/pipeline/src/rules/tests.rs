//! Goal: every mistake in a rules file is told with its line, field and mend, and sound files
//! mean what they say. Method: snapshots of the messages, one for each kind of mistake.

use super::RuleSet;
use crate::request::Op;

/// The message for a file whose only rule has this `match` and this `action`.
fn mistake(matches: &str, action: &str) -> String {
    whole(&format!("[[rule]]\nname = \"r\"\nmatch = {matches}\naction = {action}\n"))
}

fn whole(toml: &str) -> String {
    match RuleSet::parse(toml, "x.toml") {
        Ok(set) => format!("accepted: {:?}", set.meanings()),
        Err(error) => error.to_string(),
    }
}

const DELAY: &str = "{ delay = \"80ms\" }";

#[test]
fn mistakes_of_the_file() {
    let two =
        |first: &str, second: &str| whole(&format!("[[rule]]\n{first}\n[[rule]]\n{second}\n"));
    let rule = |name: &str, rest: &str| {
        format!("name = \"{name}\"\nmatch = {{}}\naction = {{ delay = \"1ms\" }}\n{rest}")
    };
    let seen = [
        whole("[[rule]]\nname = \n"),
        whole("[[rules]]\nname = \"a\"\n"),
        whole("rule = 5"),
        whole("rule = [5]"),
        whole("[[rule]]\nmatch = {}\n"),
        whole("[[rule]]\nname = 7\n"),
        whole("[[rule]]\nname = \"a b\"\n"),
        whole("[[rule]]\nname = \"a\"\nmatsh = {}\n"),
        whole("[[rule]]\nname = \"a\"\naction = { delay = \"1ms\" }\n"),
        whole("[[rule]]\nname = \"a\"\nmatch = {}\n"),
        whole(&"[[rule]]\n".repeat(129)),
        two(&rule("a", ""), &rule("a", "")),
        two(&rule("a", ""), &rule("b", "")),
        whole(&format!("[[rule]]\n{}", rule("a", "armed = \"yes\""))),
        whole(&format!("[[rule]]\n{}", rule("a", "arm_on = \"agnet:go\""))),
        whole(&format!("[[rule]]\n{}", rule("a", "arm_on = \"agent:\""))),
        whole(&format!("[[rule]]\n{}", rule("a", "arm_on = \"count:0\""))),
        whole(&format!("[[rule]]\n{}", rule("a", "arm_on = \"rule:a\""))),
        whole(&format!("[[rule]]\n{}", rule("a", "arm_on = \"rule:b\""))),
        whole(&format!("[[rule]]\n{}", rule("a", "arm_on = \"count:3\"\ndisarm_on = \"count:3\""))),
        two(&rule("a", "arm_on = \"rule:b\""), &rule("b", "arm_on = \"rule:a\"")),
    ];
    insta::assert_snapshot!(seen.join("\n"));
}

#[test]
fn mistakes_of_the_match() {
    let seen = [
        "7",
        "{ inod = 3 }",
        "{ op = \"raed\" }",
        "{ op = \"frobnicate\" }",
        "{ op = [] }",
        "{ op = 3 }",
        "{ class = \"block_bitmpa\" }",
        "{ class = \"nonsense\" }",
        "{ class = [] }",
        "{ class = \"journal_copy\", of = \"journal_commit\" }",
        "{ class = \"block_bitmap\", of = \"inode_table\" }",
        "{ class = \"superblock\", group = 0 }",
        "{ class = [\"file_data\", \"block_bitmap\"], inode = 13 }",
        "{ of = \"block_bitmap\", inode = 13 }",
        "{ class = \"block_bitmap\", tid = 9 }",
        "{ lblk = 3, depth = 1, tid = 4, backup = true, group = 1 }",
        "{ op = \"flush\", class = \"block_bitmap\" }",
        "{ op = \"flush\", sector = 0 }",
        "{ sector = \"9..=3\" }",
        "{ sector = \"5..5\" }",
        "{ sector = \"..0\" }",
        "{ sector = [] }",
        "{ sector = \"x\" }",
        "{ sector = -4 }",
        "{ sector = 1.5 }",
        "{ group = 4294967296 }",
        "{ inode = 0 }",
        "{ depth = 5 }",
        "{ size = \"1..=511\" }",
        "{ size = 0 }",
        "{ state = \"dirty\" }",
        "{ backup = 1 }",
        "{ times = 0 }",
        "{ every = 0 }",
        "{ nth = 0 }",
        "{ nth = \"once\" }",
        "{ nth = 2, after = 3 }",
        "{ nth = 2, every = 3 }",
        "{ probability = 0 }",
        "{ probability = 1.1 }",
        "{ probability = nan }",
        "{ probability = \"half\" }",
    ];
    let seen: Vec<String> =
        seen.iter().map(|matches| format!("{matches}\n    {}", mistake(matches, DELAY))).collect();
    insta::assert_snapshot!(seen.join("\n"));
}

#[test]
fn mistakes_of_the_action() {
    let seen = [
        "\"80ms\"",
        "{}",
        "{ dealy = \"80ms\" }",
        "{ delay = 80 }",
        "{ delay = \"80\" }",
        "{ delay = \"80 lightyears\" }",
        "{ delay = \"\" }",
        "{ delay = \"-5ms\" }",
        "{ delay = \"0ms\" }",
        "{ delay = \"61s\" }",
        "{ delay = {} }",
        "{ delay = { unifrom = [\"1ms\", \"2ms\"] } }",
        "{ delay = { uniform = \"1ms\" } }",
        "{ delay = { uniform = [\"1ms\"] } }",
        "{ delay = { uniform = [\"3ms\", \"2ms\"] } }",
        "{ delay = { normal = { mean = \"1ms\" } } }",
        "{ delay = { normal = { mean = \"1ms\", sigma = \"1ms\" } } }",
        "{ delay = { exponential = \"1ms\" } }",
        "{ delay = { pareto = { scale = \"1ms\", shape = 0 } } }",
        "{ delay = { histogram = [] } }",
        "{ delay = { histogram = [[\"1ms\", 0]] } }",
        "{ delay = { histogram = [[\"1ms\"]] } }",
        "{ delay = { histogram = [[\"1ms\", 1.5]] } }",
        "{ delay = { histogram = \"disk.hist\" } }",
        "{ hold = \"5s\" }",
        "{ hold = { untill = \"control\" } }",
        "{ hold = { until = \"agnet:x\" } }",
        "{ hold = { until = \"later\" } }",
        "{ hold = { until = \"rule:s\" } }",
        "{ hold = { until = \"request:none\" } }",
        "{ hold = { at_most = \"2min\" } }",
        "{ hold = { at_most = \"0s\" } }",
        "{ hold = {}, delay = \"1ms\" }",
        "{ fail = \"EOI\" }",
        "{ fail = 5 }",
        "{ pass = false }",
        "{ pass = true, fail = \"EIO\" }",
    ];
    let mut seen: Vec<String> =
        seen.iter().map(|action| format!("{action}\n    {}", mistake("{}", action))).collect();
    seen.push(mistake("{ times = 1 }", "{ hold = { until = \"rule:r\" } }"));
    seen.push(mistake("{ nth = \"0..2\" }", "{ hold = { until = \"rule:r\" } }"));
    insta::assert_snapshot!(seen.join("\n"));
}

#[test]
fn sound_rules_in_words() {
    let seen = [
        mistake("{}", DELAY),
        mistake("{ op = \"flush\" }", "{ delay = { uniform = [\"0ms\", \"20 ms\"] } }"),
        mistake(
            "{ op = \"read\", class = \"block_bitmap\", nth = 1 }",
            "{ hold = { until = \"agent:store-parked\", at_most = \"500ms\" } }",
        ),
        mistake("{ of = \"block_bitmap\", group = \"0..4\" }", "{ fail = \"ENOSPC\" }"),
        mistake(
            "{ op = [\"read\", \"write\"], class = \"file_data\", inode = [13, \"20..=22\"], \
             lblk = \"0..=7\", state = \"unwritten\", after = 3, every = 2, times = 5, \
             probability = 0.25 }",
            "{ hold = { until = \"request:8\" }, fail = \"EIO\" }",
        ),
        mistake("{ inode = 13 }", "{ pass = true }"),
        mistake("{ sector = \"0x10\" }", DELAY),
        mistake("{ sector = 0x10, size = \"4096..\" }", "{ fail = \"EOPNOTSUPP\" }"),
        mistake("{ nth = [1, 3] }", "{ delay = { histogram = [[\"1ms\", 90], [\"20ms\", 10]] } }"),
        mistake("{}", "{ delay = { normal = { mean = \"5ms\", stddev = \"1ms\" } } }"),
        mistake("{}", "{ delay = { exponential = { mean = \"2ms\" } } }"),
        mistake("{}", "{ delay = { pareto = { scale = \"1ms\", shape = 1.5 } } }"),
        mistake("{}", "{ hold = {} }"),
    ];
    insta::assert_snapshot!(seen.join("\n"));
}

#[test]
fn holds_until_each_other_are_accepted() {
    let toml = r#"
        [[rule]]
        name = "a"
        match = { op = "read" }
        action = { hold = { until = "rule:b" } }
        [[rule]]
        name = "b"
        match = { op = "write" }
        action = { hold = { until = "rule:a" } }
        tell_agent = true
        arm_on = "agent:go"
        disarm_on = "rule:a"
    "#;
    insta::assert_snapshot!(whole(toml));
}

#[test]
fn histogram_files_are_read_and_kept() {
    let toml = "[[rule]]\nname = \"r\"\nmatch = {}\naction = { delay = { histogram = \"h\" } }\n";
    let parse = |text: &str| {
        RuleSet::parse_with(toml, "x.toml", &mut |name| {
            assert_eq!(name, "h");
            Ok(text.to_owned())
        })
    };
    let set = parse("# measured\n100us 5\n\n1.5 ms  95 # slow\n").expect("a sound file");
    // The text comes along, so that the set can be made again without the file.
    let again = RuleSet::from_text(set.text()).expect("the text of a sound set");
    assert_eq!(format!("{:?}", set.rules), format!("{:?}", again.rules));

    let errors: Vec<String> = ["", "100us", "100us x", "\nx 5", "70s 1", "1ms -1"]
        .iter()
        .map(|text| parse(text).expect_err("not a histogram").to_string())
        .collect();
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn counts_contradictory_only_when_they_are() {
    for matches in ["{ nth = \"2..=5\", times = 1 }", "{ nth = 2, probability = 0.5 }"] {
        let said = mistake(matches, DELAY);
        assert!(said.starts_with("accepted"), "{said}");
    }
    // A rule that a conditional one precedes can still fire.
    let pair = |first: &str, second: &str| {
        whole(&format!(
            "[[rule]]\nname = \"a\"\nmatch = {first}\naction = {DELAY}\n\
             [[rule]]\nname = \"b\"\nmatch = {second}\naction = {DELAY}\n"
        ))
    };
    for (first, second) in [
        ("{ times = 1 }", "{}"),
        ("{ op = \"read\" }", "{}"),
        ("{ class = \"xattr\" }", "{ op = \"read\" }"),
        ("{ sector = \"0..100\" }", "{ sector = \"50..101\" }"),
        ("{ class = \"xattr\", inode = 3 }", "{ class = \"xattr\" }"),
        ("{ of = \"xattr\" }", "{ class = \"journal_copy\" }"),
    ] {
        let said = pair(first, second);
        assert!(said.starts_with("accepted"), "{first} then {second}: {said}");
    }
    for (first, second) in [
        ("{}", "{ op = \"flush\" }"),
        ("{ sector = \"0..100\" }", "{ sector = [3, 99] }"),
        ("{ inode = \"1..100\" }", "{ class = \"xattr\", inode = 3 }"),
        ("{ class = \"journal_copy\" }", "{ of = \"xattr\", tid = 4 }"),
    ] {
        let said = pair(first, second);
        assert!(said.contains("comes first and takes"), "{first} then {second}: {said}");
    }
}

/// Goal: one rule serves a disk and persistent memory.
/// Method: two operations in one rule; the filter of the set lets through both and no third,
/// although the rule is disarmed.
#[test]
fn one_rule_for_disk_and_memory() {
    let bitmap = ext4_layout::Kind::BlockBitmap.bit();
    let text = "[[rule]]\nname = \"slow\"\narmed = false\n\
                match = { op = [\"read\", \"fault\"], class = \"block_bitmap\" }\n\
                action = { delay = \"80ms\" }\n";
    let filter = RuleSet::parse(text, "x.toml").expect("a sound file").filter();
    for op in Op::ALL {
        let wanted = matches!(op, Op::Read | Op::Fault);
        assert_eq!(filter.may_match(op, 8, 8, bitmap), wanted, "{}", op.name());
        assert!(!filter.may_match(op, 8, 8, ext4_layout::Kind::Superblock.bit()));
    }
}
