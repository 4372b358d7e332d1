use super::super::fixture::{EVIL, calm, hostile, swept};
use super::*;

/// Names of the elements of a page, as a browser would see them: what stands between `<` and the
/// next space or `>`. The style sheet has neither.
fn elements(page: &str) -> std::collections::BTreeSet<String> {
    let opened = page.split('<').skip(1);
    let name = |text: &str| {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '!' && c != '/')
            .next()
            .map(str::to_owned)
    };
    opened.filter_map(name).collect()
}

#[test]
fn the_page() {
    let page = page(&[calm()]).replace(STYLE, "(style.css)");
    // A line for each element, so that a change is seen where it is.
    insta::assert_snapshot!(page.replace("><", ">\n<"));
}

#[test]
fn what_a_guest_says_is_text_and_nothing_else() {
    let (calm, hostile) = (page(&[calm()]), page(&[hostile()]));
    assert_eq!(elements(&calm), elements(&hostile));
    assert!(hostile.contains("&lt;script&gt;alert(1)"), "it is shown");
    let hidden = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202e}' | '\u{fffe}');
    assert!(!hostile.contains(hidden));
    // The canary: the same check must see what is not escaped.
    let raw =
        calm.replacen("not cleared!", EVIL, 1).replacen("</main>", &format!("{EVIL}</main>"), 1);
    assert_ne!(elements(&calm), elements(&raw));
}

#[test]
fn the_page_needs_no_network_and_runs_nothing() {
    let page = page(&[calm(), hostile()]);
    let page = page.replace(&clean::line(EVIL), "");
    for (at, _) in page.match_indices("http") {
        // The policy's own header; nothing else may name a place.
        assert!(page[at..].starts_with("http-equiv"), "{}", &page[at..at + 40]);
    }
    assert!(page.contains("default-src 'none'"));
    for name in ["script", "img", "link", "iframe", "object", "a"] {
        assert!(!elements(&page).contains(name), "{name}");
    }
    assert!(!STYLE.contains("url(") && !STYLE.contains("@import"));
}

#[test]
fn every_bar_is_within_the_picture() {
    let page = page(&[calm()]);
    let numbers = |name: &str| -> Vec<f64> {
        let before = format!(" {name}=\"");
        let parts = page.split(&before).skip(1);
        parts.filter_map(|part| part.split('"').next()?.parse().ok()).collect()
    };
    let (x, width) = (numbers("x"), numbers("width"));
    assert!(!width.is_empty());
    assert!(x.iter().chain(&width).all(|at| (0.0..=960.0).contains(at)), "{x:?} {width:?}");
}

#[test]
fn a_curve_is_drawn_when_there_are_lengths_to_compare() {
    let one = page(&swept(&[(80, 20)]));
    assert!(!one.contains("Dose and response"), "one length is no curve");
    let several = swept(&[(1, 2), (5, 9), (80, 20)]);
    insta::assert_snapshot!(dose_response(&several).into_string().replace("><", ">\n<"));
}

#[test]
fn the_arms_of_a_sweep_are_one_curve() {
    let mut document = swept(&[(1, 2)]).remove(0);
    for (arm, name) in document.campaign.arms.iter_mut().zip(["delay=1ms", "delay=20ms"]) {
        arm.kernel = "a-kernel".to_owned();
        arm.arm = name.to_owned();
    }
    // None came: the names of the arms say how long they would have been.
    document.delays.clear();
    let page = page(&[document]);
    assert_eq!(page.matches("<polyline").count(), 1, "{page}");
}
