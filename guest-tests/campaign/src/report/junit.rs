//! JUnit XML, as Jenkins, GitLab and others read it (Jenkins xUnit plugin, `junit-10.xsd`).
//!
//! In: [`Document`]s. Out: XML. One suite for each kernel, with one case: whether the kernel is free
//! of the bug; numbers that the format has no place for are properties of the suite.
//! Must not know: where a document comes from.

use std::io;

use quick_xml::Writer;
use quick_xml::events::{BytesDecl, BytesText, Event};

use super::answer::{Answer, Case, cases};
use super::clean;
use super::document::Document;

/// The report. Writing to memory does not fail; what cannot be escaped was made visible before.
pub fn report(documents: &[Document]) -> String {
    let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
    // An error would leave the text short, and every reader would say so.
    let _ = write(&mut writer, documents);
    let mut bytes = writer.into_inner();
    bytes.push(b'\n');
    String::from_utf8_lossy(&bytes).into_owned()
}

fn write(writer: &mut Writer<Vec<u8>>, documents: &[Document]) -> io::Result<()> {
    let all: Vec<(&Document, Case)> =
        documents.iter().flat_map(|of| cases(of).into_iter().map(move |case| (of, case))).collect();
    writer.write_event(Event::Decl(BytesDecl::new("1.0", Some("UTF-8"), None)))?;
    let count = |wanted: fn(&Answer) -> bool| {
        all.iter().filter(|(_, case)| wanted(&case.answer)).count().to_string()
    };
    let time = all.iter().map(|(_, case)| case.seconds).sum();
    writer
        .create_element("testsuites")
        .with_attribute(("name", "racegate"))
        .with_attribute(("tests", all.len().to_string().as_str()))
        .with_attribute(("failures", count(is_failure).as_str()))
        .with_attribute(("errors", count(is_error).as_str()))
        .with_attribute(("time", seconds(time).as_str()))
        .write_inner_content(|writer| {
            all.iter().try_for_each(|(document, case)| suite(writer, document, case))
        })?;
    Ok(())
}

fn is_failure(answer: &Answer) -> bool {
    matches!(answer, Answer::Bad { .. })
}

fn is_error(answer: &Answer) -> bool {
    matches!(answer, Answer::None { .. })
}

fn is_expected(answer: &Answer) -> bool {
    matches!(answer, Answer::ExpectedBad)
}

fn seconds(of: f64) -> String {
    // The sum of nothing is -0.
    format!("{:.3}", of + 0.0)
}

fn suite(writer: &mut Writer<Vec<u8>>, document: &Document, case: &Case) -> io::Result<()> {
    let plan = clean::line(&document.plan.name);
    let kernel = clean::line(&case.kernel);
    let one = |it: bool| if it { "1" } else { "0" };
    let timestamp = super::date(document.started);
    writer
        .create_element("testsuite")
        .with_attribute(("name", format!("racegate.{plan}.{kernel}").as_str()))
        .with_attribute(("tests", "1"))
        .with_attribute(("failures", one(is_failure(&case.answer))))
        .with_attribute(("errors", one(is_error(&case.answer))))
        .with_attribute(("skipped", one(is_expected(&case.answer))))
        .with_attribute(("time", seconds(case.seconds).as_str()))
        // Without the zone, as the format has it: UTC.
        .with_attribute(("timestamp", timestamp.trim_end_matches('Z')))
        .write_inner_content(|writer| {
            writer.create_element("properties").write_inner_content(|writer| {
                for (name, value) in &case.properties {
                    writer
                        .create_element("property")
                        .with_attribute(("name", name.as_str()))
                        .with_attribute(("value", clean::line(value).as_str()))
                        .write_empty()?;
                }
                Ok(())
            })?;
            let element = writer
                .create_element("testcase")
                .with_attribute(("name", kernel.as_str()))
                .with_attribute(("classname", format!("racegate.{plan}").as_str()))
                .with_attribute(("time", seconds(case.seconds).as_str()));
            element.write_inner_content(|writer| outcome(writer, case))?;
            Ok(())
        })?;
    Ok(())
}

fn outcome(writer: &mut Writer<Vec<u8>>, case: &Case) -> io::Result<()> {
    let details = clean::lines(&case.details.join("\n"));
    let (element, kind) = match &case.answer {
        Answer::Good => (None, ""),
        Answer::ExpectedBad => (Some("skipped"), "expected"),
        Answer::Bad { .. } => (Some("failure"), "affected"),
        Answer::None { .. } => (Some("error"), "inconclusive"),
    };
    if let Some(element) = element {
        writer
            .create_element(element)
            .with_attribute(("type", kind))
            .with_attribute(("message", clean::line(&case.message()).as_str()))
            .write_text_content(BytesText::new(&details))?;
    }
    writer.create_element("system-out").write_text_content(BytesText::new(&details))?;
    Ok(())
}

#[cfg(test)]
mod tests;
