//! A timeline as a picture: threads, locks and the device's requests, one lane each, on one axis.
//!
//! In: a [`Timeline`]. Out: SVG that takes its colours from the page.
//! Must not know: where the bars come from.

use maud::{Markup, html};

use crate::report::clean;
use crate::timeline::{Kind, Span, Timeline};

const WIDTH: f64 = 960.0;
const LEFT: f64 = 180.0;
const RIGHT: f64 = 945.0;
const TOP: f64 = 24.0;
const ROW: f64 = 22.0;
const GAP: f64 = 8.0;
/// About what a letter takes.
const LETTER: f64 = 6.4;
/// A bar that is shorter cannot be seen, or hit with a pointer.
const MIN_BAR: f64 = 3.0;
/// Most rows of one lane; what does not fit is drawn over the last.
const MOST_ROWS: usize = 12;

/// One lane: its name, and its bars by row.
struct Lane<'a> {
    name: &'a str,
    rows: Vec<Vec<&'a Span>>,
}

pub(super) fn draw(timeline: &Timeline) -> Markup {
    if timeline.spans.is_empty() {
        return html! { p.soft { "An older racegate stored it, without what a picture needs." } };
    }
    let last_us = timeline.spans.iter().map(|span| span.end_us).max().unwrap_or(1).max(1);
    let x = |us: i64| LEFT + (RIGHT - LEFT) * (us.max(0) as f64 / last_us as f64).min(1.0);
    let lanes = lanes(timeline, &x);
    let height = |lane: &Lane<'_>| lane.rows.len() as f64 * ROW + GAP;
    let bottom = TOP + lanes.iter().map(height).sum::<f64>();
    let has = |kind: Kind| timeline.spans.iter().any(|span| span.kind == kind);
    let above = |at: usize| TOP + lanes[..at].iter().map(height).sum::<f64>();
    html! {
        div.wide {
            svg viewBox={ "0 0 " (WIDTH) " " (bottom + 40.0) } role="img"
                aria-label="what threads, locks and the device did, by time" {
                @for us in ticks(last_us) {
                    line.grid x1=(px(x(us))) x2=(px(x(us))) y1=(TOP - 6.0) y2=(bottom) {}
                    text.soft x=(px(x(us))) y=(bottom + 18.0) text-anchor="middle" { (milliseconds(us)) }
                }
                text.soft x=(RIGHT) y=(bottom + 34.0) text-anchor="end" { "ms" }
                @for parked in timeline.spans.iter().filter_map(|span| span.parked.as_ref()) {
                    rect.window x=(px(x(parked.begin_us))) y=(TOP - 6.0)
                        width=(px((x(parked.end_us) - x(parked.begin_us)).max(0.0)))
                        height=(bottom - TOP + 6.0) {}
                }
                @for (at, lane) in lanes.iter().enumerate() {
                    @let top = above(at);
                    line.grid x1="0" x2=(RIGHT) y1=(top - GAP / 2.0) y2=(top - GAP / 2.0) {}
                    text x="4" y=(top + 15.0) { (cut(&clean::line(lane.name), LEFT - 10.0)) }
                    @for (row, spans) in lane.rows.iter().enumerate() {
                        @for (at, span) in spans.iter().enumerate() {
                            @let next = spans.get(at + 1).map_or(RIGHT, |next| x(next.begin_us));
                            (bar(span, top + row as f64 * ROW, &x, next))
                        }
                    }
                }
                line.axis x1=(LEFT) x2=(RIGHT) y1=(bottom) y2=(bottom) {}
            }
        }
        div.key {
            span.operation { "operation of the workload" }
            @if has(Kind::Function) { span.function { "function of the guest's kernel" } }
            @if has(Kind::Lock) { span.lock { "thread waits for a lock" } }
            span.request { "request at the device" }
            span.parked { "request that a rule has parked" }
            @if has(Kind::Mark) { span.mark { "message of the agent, or to it" } }
        }
        p.soft {
            "Guest times are within " (timeline.error_us) " us of the device's clock. "
            @if !has(Kind::Lock) && !has(Kind::Function) {
                "With --shadow the kernel's own functions and the locks that threads wait for are \
                 drawn, too."
            }
        }
    }
}

/// Threads with their functions below them, then locks, then the device.
fn lanes<'a>(timeline: &'a Timeline, x: &dyn Fn(i64) -> f64) -> Vec<Lane<'a>> {
    let spans = &timeline.spans;
    let mut names: Vec<&str> = timeline.columns.iter().map(String::as_str).collect();
    // The device is the last column; locks stand before it.
    let device = names.pop();
    for span in spans.iter().filter(|span| span.kind == Kind::Lock) {
        if !names.contains(&span.lane.as_str()) {
            names.push(&span.lane);
        }
    }
    names.extend(device);
    let lane = |name: &'a str| {
        let of = |kinds: &'static [Kind]| {
            let all = spans.iter().filter(move |span| span.lane == name);
            stacked(all.filter(move |span| kinds.contains(&span.kind)).collect(), x)
        };
        let mut rows = of(&[Kind::Operation]);
        rows.extend(of(&[Kind::Function]));
        rows.extend(of(&[Kind::Lock]));
        rows.extend(of(&[Kind::Request]));
        rows.extend(of(&[Kind::Mark]));
        Lane { name, rows }
    };
    names.into_iter().map(lane).filter(|lane| !lane.rows.is_empty()).collect()
}

/// Each bar in the first row in which it, and what is written in it, has room.
fn stacked<'a>(mut spans: Vec<&'a Span>, x: &dyn Fn(i64) -> f64) -> Vec<Vec<&'a Span>> {
    spans.sort_by_key(|span| (span.begin_us, span.end_us));
    let mut rows: Vec<(f64, Vec<&Span>)> = Vec::new();
    for span in spans {
        let begin = x(span.begin_us);
        // Text of a short bar stands behind it, a few words of it at least.
        let text = LETTER * span.text.chars().count().min(14) as f64;
        let end = x(span.end_us).max(begin + MIN_BAR).max((begin + text).min(RIGHT)) + 4.0;
        let free = rows.iter().position(|(free, _)| *free <= begin);
        if free.is_none() && rows.len() < MOST_ROWS {
            rows.push((end, vec![span]));
        } else if let Some((until, row)) = rows.get_mut(free.unwrap_or(MOST_ROWS - 1)) {
            *until = end.max(*until);
            row.push(span);
        }
    }
    rows.into_iter().map(|(_, row)| row).collect()
}

/// One bar; `next` is where the next one of its row begins.
fn bar(span: &Span, top: f64, x: &dyn Fn(i64) -> f64, next: f64) -> Markup {
    let (begin, end) = (x(span.begin_us), x(span.end_us));
    let width = (end - begin).max(MIN_BAR);
    let class = match span.kind {
        Kind::Operation => "operation",
        Kind::Function => "function",
        Kind::Lock => "lock",
        Kind::Request => "request",
        Kind::Mark => "mark",
    };
    let text = clean::line(&span.text);
    let room = (next - begin).min(RIGHT - begin) - 6.0;
    // At the right edge there is room on the left only.
    let (at, anchor, room) = if room < 60.0 && width < 60.0 && begin > f64::midpoint(LEFT, RIGHT) {
        (begin - 4.0, "end", 120.0)
    } else {
        (begin + 4.0, "start", room)
    };
    let lasted = milliseconds(span.end_us.saturating_sub(span.begin_us));
    html! {
        g {
            title {
                (text) ", from " (milliseconds(span.begin_us)) " ms, " (lasted) " ms"
                @if let Some(parked) = &span.parked {
                    "; " (clean::line(&parked.by)) ", until " (clean::line(&parked.until))
                }
            }
            @if span.kind == Kind::Mark {
                circle.mark cx=(px(begin)) cy=(px(top + 9.0)) r="5" {}
                text x=(px(if anchor == "end" { at - 4.0 } else { at + 5.0 })) y=(px(top + 13.0))
                    text-anchor=(anchor) { (cut(&text, room - 8.0)) }
            } @else {
                rect class=(class) x=(px(begin)) y=(px(top)) width=(px(width)) height="18" rx="2" {}
                @if let Some(parked) = &span.parked {
                    rect.parked x=(px(x(parked.begin_us))) y=(px(top)) height="18" rx="2"
                        width=(px((x(parked.end_us) - x(parked.begin_us)).max(MIN_BAR))) {}
                }
                text x=(px(at)) y=(px(top + 13.0)) text-anchor=(anchor) { (cut(&text, room)) }
            }
        }
    }
}

/// As much of a text as has room.
fn cut(text: &str, room: f64) -> String {
    let letters = (room / LETTER).max(0.0) as usize;
    if text.chars().count() <= letters {
        text.to_owned()
    } else if letters < 3 {
        String::new()
    } else {
        text.chars().take(letters - 1).chain(std::iter::once('\u{2026}')).collect()
    }
}

fn px(at: f64) -> String {
    format!("{at:.1}")
}

fn milliseconds(us: i64) -> String {
    let text = format!("{:.3}", us as f64 / 1000.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Some six marks at round times.
fn ticks(last_us: i64) -> impl Iterator<Item = i64> {
    let rough = (last_us / 6).max(1);
    let power = 10_i64.pow(rough.ilog10());
    let step = [1, 2, 5, 10].into_iter().map(|times| times * power).find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    (0..=last_us / step).map(move |at| at * step)
}
