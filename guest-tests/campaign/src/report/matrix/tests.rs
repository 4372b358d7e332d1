use super::super::fixture::EVIL;
use super::super::html::POLICY;
use super::*;
use crate::matrix::Expected;

const EXPECTED: &str = r#"
[[bug]]
plan = "mkwrite-fallocate"
commit = "ext4: check the extent status again"
fixed = ["5.10.226"]
[[bug]]
plan = "short-copy"
fixed = ["6.4"]
"#;

fn matrix(reason: &str) -> Matrix {
    let plans = [("mkwrite-fallocate", "store | fallocate"), ("short-copy", "a short copy")];
    let kernels = ["debian-5.10.223", "debian-5.10.262"];
    let verdicts = [
        (Verdict::Affected, 3, 3),
        (Verdict::Affected, 2, 2),
        // Not what the sources say.
        (Verdict::Affected, 4, 5),
        (Verdict::Inconclusive, 0, 0),
    ];
    let places =
        kernels.iter().flat_map(|kernel| plans.iter().map(move |(plan, _)| (*kernel, *plan)));
    let cells = places.zip(verdicts).map(|((kernel, plan), (verdict, hits, trials))| Cell {
        plan: plan.to_owned(),
        kernel: kernel.to_owned(),
        verdict,
        error: 1e-4,
        hits,
        trials,
        invalid: 0,
        reason: (verdict == Verdict::Inconclusive).then(|| reason.to_owned()),
    });
    Matrix {
        seed: 7,
        error: 0.05,
        plans: plans.map(|(name, summary)| (name.to_owned(), summary.to_owned())).to_vec(),
        kernels: kernels.map(str::to_owned).to_vec(),
        passed_over: vec![("debian-6.19.6".to_owned(), "the archive does not have it".to_owned())],
        cells: cells.collect(),
    }
}

fn differs(matrix: &Matrix) -> Vec<Disagreement> {
    Expected::parse(EXPECTED, "e.toml").unwrap().disagreements(matrix)
}

#[test]
fn the_table() {
    let matrix = matrix("the kernel does not boot");
    insta::assert_snapshot!(text(&matrix, Some(&differs(&matrix))));
}

#[test]
fn the_table_in_markdown() {
    let matrix = matrix("the kernel does not boot");
    insta::assert_snapshot!(markdown(&matrix, Some(&differs(&matrix))));
}

#[test]
fn the_json_has_every_cell_and_each_that_differs() {
    let matrix = matrix("the kernel does not boot");
    let value = json(&matrix, Some(&differs(&matrix)));
    assert_eq!(value["schema"], 1);
    assert_eq!(value["cells"].as_array().map(Vec::len), Some(4));
    assert_eq!(value["cells"][2]["verdict"], "affected");
    assert_eq!(value["cells"][3]["reason"], "the kernel does not boot");
    assert_eq!(value["disagreements"][0]["kernel"], "debian-5.10.262");
    assert_eq!(value["disagreements"][0]["expected"], "not-affected");
    assert_eq!(json(&matrix, None)["disagreements"], Value::Null);
}

#[test]
fn what_a_guest_says_is_text_in_every_format() {
    let matrix = matrix(EVIL);
    let differs = differs(&matrix);
    let page = page(&matrix, Some(&differs));
    assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "it is shown as text");
    let calm = super::super::html::page(&[]);
    assert!(calm.contains(POLICY) && page.contains(POLICY));
    let hidden = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    for text in [page, text(&matrix, Some(&differs)), markdown(&matrix, Some(&differs))] {
        assert!(!text.contains(hidden));
    }
}
