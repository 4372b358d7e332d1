use super::*;

const GOOD: &str = r#"
name = "p"
summary = "s"
trials = 3
rate_if_affected = 0.5
[filesystem]
bytes = 67108864
[[arm]]
name = "rules"
rules = '''
[[rule]]
name = "r"
match = { op = "read", class = "block_bitmap" }
action = { delay = "80ms" }
'''
[workload]
finish = [{ read_value = { path = "/p", name = "after" } }]
[hit]
kernel_log = ["x"]
"#;

fn mistake(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    Plan::parse(&GOOD.replacen(from, to, 1), "p.toml").unwrap_err().to_string()
}

#[test]
fn a_plan_is_read() {
    let plan = Plan::parse(GOOD, "p.toml").unwrap();
    assert_eq!(plan.arms[0].rules.names().collect::<Vec<_>>(), ["r"]);
    assert_eq!(plan.guest.trial_limit, Duration::from_secs(60));
    assert_eq!(plan.guest.isolation, Isolation::Shared);
}

#[test]
fn a_plan_says_how_far_trials_are_kept_apart() {
    for (text, isolation) in [("fresh", Isolation::Fresh), ("shared", Isolation::Shared)] {
        let guest = format!("[guest]\nisolation = \"{text}\"\n[workload]");
        let plan = Plan::parse(&GOOD.replacen("[workload]", &guest, 1), "p.toml").unwrap();
        assert_eq!(plan.guest.isolation, isolation);
        assert_eq!(plan.guest.trial_limit, Duration::from_secs(60), "what is not said stays");
    }
}

/// Plans of bugs that no packaged kernel has the fix of.
const UNFIXED: [&str; 1] = ["journaled-truncate"];

#[test]
fn every_built_in_plan_is_sound() {
    for name in names() {
        let plan = Plan::find(name).unwrap();
        assert_eq!(plan.name, name);
        assert!(!plan.kernels.affected.is_empty());
        assert!(plan.kernels.fixed.is_empty() == UNFIXED.contains(&name), "{name}");
        // What only a shadow sees, or one thread does, may need nothing of the device.
        let rules = &plan.arms.iter().find(|arm| arm.name == RULES_ARM).unwrap().rules;
        let alone = plan.workload.threads.is_empty();
        assert!(!rules.is_empty() || !plan.hit.shadow.is_empty() || alone, "{name}");
    }
}

#[test]
fn mistakes_are_told_with_file_and_line() {
    insta::assert_snapshot!(
        [
            mistake("trials = 3", "trails = 3"),
            mistake("trials = 3", "trials = 0"),
            mistake("trials = 3", "trials = \"many\""),
            mistake("0.5", "0.01"),
            mistake("name = \"rules\"", "name = \"rule\""),
            mistake("block_bitmap", "block_bitmaps"),
            mistake("read_value = {", "read_values = {"),
            mistake("kernel_log = [\"x\"]", ""),
            mistake(
                "kernel_log = [\"x\"]",
                "counter_rises = { before = \"b\", after = \"after\" }"
            ),
            mistake("[workload]", "[[arm]]\nname = \"rules\"\n[workload]"),
            mistake("finish = [", "finish = [{ store = { file = \"f\", value = 1 } }, "),
            mistake("[workload]", "[guest]\ntrial_limit = \"soon\"\n[workload]"),
            mistake("[workload]", "[guest]\nisolation = \"lonely\"\n[workload]"),
            mistake("[workload]", "[guest]\nisolation = true\n[workload]"),
            mistake("[hit]", "[hit"),
            Plan::find("mkwrite-falocate").unwrap_err().to_string(),
            Plan::find("/nonexistent/plan.toml").unwrap_err().to_string(),
        ]
        .join("\n")
    );
}
