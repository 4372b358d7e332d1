use super::super::fixture::{calm, hostile};
use super::*;

#[test]
fn the_summary() {
    insta::assert_snapshot!(summary(&calm()));
}

#[test]
fn no_line_is_wider_than_a_mail() {
    for document in [calm(), hostile()] {
        for line in summary(&document).lines() {
            assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        }
    }
}

#[test]
fn a_guest_cannot_write_a_heading_or_end_a_block() {
    let structure = |text: &str| -> Vec<String> {
        let plain = text.lines().filter(|line| !line.starts_with("    ") && !line.is_empty());
        plain.map(str::to_owned).collect()
    };
    let (calm, hostile) = (summary(&calm()), summary(&hostile()));
    let headings = |lines: &[String]| -> Vec<String> {
        lines.iter().filter(|line| line.starts_with('#')).cloned().collect()
    };
    let (calm, evil) = (structure(&calm), structure(&hostile));
    assert_eq!(headings(&calm), headings(&evil));
    assert!(evil.iter().all(|line| !line.starts_with("```") && !line.starts_with("ok 99")));
    assert!(hostile.contains("<script>"), "it is shown, as text");
}
