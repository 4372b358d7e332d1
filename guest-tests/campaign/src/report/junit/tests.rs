use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use roxmltree::{Document as Xml, Node};

use super::super::fixture::{calm, hostile};
use super::*;

/// What the format has: for each element its attributes (`!` before those that must be there) and the
/// elements that it may hold. Facts of the Jenkins xUnit plugin's `junit-10.xsd`.
const GRAMMAR: [(&str, &str, &str); 9] = [
    ("testsuites", "name time tests failures errors", "testsuite"),
    (
        "testsuite",
        "!name !tests !failures !errors group time skipped timestamp hostname id package file log url",
        "testsuite properties testcase system-out system-err",
    ),
    ("properties", "", "property"),
    ("property", "!name !value", ""),
    ("testcase", "!name time classname group", "skipped error failure system-out system-err"),
    ("skipped", "type message", ""),
    ("error", "type message", ""),
    ("failure", "type message", ""),
    ("system-out", "", ""),
];

/// The first breach of the grammar.
fn breach(node: Node<'_, '_>) -> Option<String> {
    let name = node.tag_name().name();
    let Some((_, attributes, children)) = GRAMMAR.iter().find(|(known, ..)| *known == name) else {
        return Some(format!("no element is named {name}"));
    };
    let known: BTreeMap<&str, bool> = attributes
        .split_whitespace()
        .map(|word| (word.trim_start_matches('!'), word.starts_with('!')))
        .collect();
    if let Some(strange) = node.attributes().find(|a| !known.contains_key(a.name())) {
        return Some(format!("{name} has no attribute {}", strange.name()));
    }
    if let Some((missing, _)) = known.iter().find(|(a, must)| **must && !node.has_attribute(**a)) {
        return Some(format!("{name} lacks {missing}"));
    }
    if let Some(time) = node.attribute("time") {
        let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
        if !time.split_once('.').is_some_and(|(whole, part)| digits(whole) && digits(part)) {
            return Some(format!("{name} has the time {time}"));
        }
    }
    node.children().filter(Node::is_element).find_map(|child| {
        let within = child.tag_name().name();
        if !children.split_whitespace().any(|known| known == within) {
            return Some(format!("{within} in {name}"));
        }
        breach(child)
    })
}

/// That the numbers of suites are those of their cases.
fn miscounted(xml: &Xml<'_>) -> Option<String> {
    let suites = xml.descendants().filter(|node| node.has_tag_name("testsuite"));
    suites.into_iter().find_map(|suite| {
        let held = |name: &str| suite.descendants().filter(|n| n.has_tag_name(name)).count();
        [
            ("tests", "testcase"),
            ("failures", "failure"),
            ("errors", "error"),
            ("skipped", "skipped"),
        ]
        .into_iter()
        .find(|(attribute, name)| {
            suite.attribute(*attribute) != Some(held(name).to_string().as_str())
        })
        .map(|(attribute, _)| format!("{attribute} of {:?}", suite.attribute("name")))
    })
}

fn check(text: &str) -> Result<(), String> {
    let xml = Xml::parse(text).map_err(|error| error.to_string())?;
    breach(xml.root_element()).or_else(|| miscounted(&xml)).map_or(Ok(()), Err)
}

#[test]
fn the_report_of_a_campaign() {
    insta::assert_snapshot!(report(&[calm()]));
}

#[test]
fn the_report_is_junit() {
    check(&report(&[calm(), calm()])).unwrap();
    check(&report(&[hostile()])).unwrap();
    check(&report(&[])).unwrap();
}

#[test]
fn a_guest_cannot_forge_a_case() {
    let structure = |text: &str| -> Vec<String> {
        let xml = Xml::parse(text).unwrap();
        let elements = xml.descendants().filter(Node::is_element);
        elements
            .map(|node| format!("{node:?}").split('{').next().unwrap_or("").to_owned())
            .collect()
    };
    let names = |text: &str| -> Vec<String> {
        let xml = Xml::parse(text).unwrap();
        xml.descendants().map(|node| node.tag_name().name().to_owned()).collect()
    };
    let (calm, evil) = (report(&[calm()]), report(&[hostile()]));
    assert_eq!(structure(&calm).len(), structure(&evil).len());
    let elements = |names: Vec<String>| -> Vec<String> {
        names.into_iter().filter(|name| !name.is_empty()).collect()
    };
    assert_eq!(elements(names(&calm)), elements(names(&evil)));
    assert!(evil.contains("&lt;script&gt;"), "it is shown");
}

#[test]
fn the_check_sees_mistakes() {
    let good = report(&[calm()]);
    for (from, to) in [
        ("tests=\"1\"", "tests=\"2\""),
        ("<skipped ", "<xfail "),
        ("classname", "class"),
        ("time=\"", "time=\"about "),
        ("</testcase>", ""),
        ("<property name", "<property id"),
    ] {
        assert!(good.contains(from), "{from}");
        assert!(check(&good.replacen(from, to, 1)).is_err(), "{from} -> {to}");
    }
}

/// libxml2 has nothing to complain of either, where it is installed.
#[test]
fn libxml2_reads_it() {
    let mut command = Command::new("xmllint");
    command.args(["--noout", "--nonet", "-"]).stdin(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        eprintln!("skipped: xmllint (libxml2-utils) is not installed");
        return;
    };
    child.stdin.take().unwrap().write_all(report(&[hostile()]).as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}
