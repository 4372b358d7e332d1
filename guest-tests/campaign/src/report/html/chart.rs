//! Plots: rates with their intervals, response by dose, lateness of delays.
//!
//! In: numbers. Out: SVG that takes its colours from the page.
//! Must not know: what a trial is.

use maud::{Markup, html};

use crate::delays::Delayed;
use crate::report::document::{Document, Dose};
use crate::report::{clean, duration};
use crate::stats::Tally;

/// Colours that the style sheet has for series.
const COLOURS: usize = 6;

/// A rate and its interval, from 0 to 1.
pub(super) fn interval(rate: f64, low: f64, high: f64) -> Markup {
    let x = |share: f64| format!("{:.1}", 6.0 + 188.0 * share.clamp(0.0, 1.0));
    let label = format!("rate {rate:.3}, between {low:.3} and {high:.3}");
    html! {
        svg viewBox="0 0 200 20" width="200" height="20" role="img" aria-label=(label) {
            title { (label) }
            line.grid x1=(x(0.0)) y1="10" x2=(x(1.0)) y2="10" {}
            line.grid x1=(x(0.0)) y1="4" x2=(x(0.0)) y2="16" {}
            line.grid x1=(x(1.0)) y1="4" x2=(x(1.0)) y2="16" {}
            line.ci x1=(x(low)) y1="10" x2=(x(high)) y2="10" {}
            circle.dot cx=(x(rate)) cy="10" r="4" {}
        }
    }
}

/// Where things are in a plot of 960 by 300.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 920.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 250.0;

/// The kernel and arm of a curve, and its points: length of the delay, hits and trials.
type Series = ((String, String), Vec<(u64, Tally)>);

/// Hits and trials by kernel and arm; equal lengths are put together. An arm without any delay
/// begins the curve of each arm of its kernel that has some.
fn series(doses: &[Dose]) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for dose in doses.iter().filter(|dose| dose.asked_ns > 0) {
        let key = (dose.kernel.clone(), dose.arm.clone());
        if !series.iter().any(|(known, _)| *known == key) {
            series.push((key, Vec::new()));
        }
    }
    for ((kernel, arm), points) in &mut series {
        let of = |dose: &&Dose| dose.kernel == *kernel && (dose.arm == *arm || dose.asked_ns == 0);
        for dose in doses.iter().filter(of) {
            let same = points.iter_mut().find(|(asked_ns, _)| *asked_ns == dose.asked_ns);
            match same {
                Some((_, tally)) => {
                    tally.hits += dose.tally.hits;
                    tally.trials += dose.tally.trials;
                }
                None => points.push((dose.asked_ns, dose.tally)),
            }
        }
        points.sort_by_key(|(asked_ns, _)| *asked_ns);
    }
    series
}

/// Rates by length of delay; nothing unless some arm has two lengths besides none.
pub(super) fn doses(doses: &[Dose]) -> Option<Markup> {
    let series = series(doses);
    let lengths = |points: &Vec<(u64, Tally)>| points.iter().filter(|(ns, _)| *ns > 0).count();
    if !series.iter().any(|(_, points)| lengths(points) >= 2) {
        return None;
    }
    let asked = series.iter().flat_map(|(_, points)| points).map(|(ns, _)| *ns);
    let asked: Vec<u64> = asked.filter(|ns| *ns > 0).collect();
    let axis = Log::over(&asked)?;
    // Zero has no place on a logarithmic axis: it gets one of its own, to the left.
    let x = |ns: u64| if ns == 0 { LEFT + 20.0 } else { axis.place(ns, LEFT + 80.0, RIGHT) };
    let y = |rate: f64| BOTTOM - (BOTTOM - TOP) * rate;
    Some(html! {
        div.wide { svg viewBox="0 0 960 300" role="img" aria-label="rate by length of delay" {
            @for tenth in [0.0, 0.25, 0.5, 0.75, 1.0] {
                line.grid x1=(LEFT) x2=(RIGHT) y1=(y(tenth)) y2=(y(tenth)) {}
                text.soft x=(LEFT - 8.0) y=(y(tenth) + 4.0) text-anchor="end" { (tenth) }
            }
            text.soft x=(x(0)) y=(BOTTOM + 20.0) text-anchor="middle" { "none" }
            @for ns in axis.ticks() {
                line.grid x1=(x(ns)) x2=(x(ns)) y1=(TOP) y2=(BOTTOM) {}
                text.soft x=(x(ns)) y=(BOTTOM + 20.0) text-anchor="middle" { (duration(ns)) }
            }
            text.soft x=(f64::midpoint(LEFT, RIGHT)) y="292" text-anchor="middle" { "length of the delay" }
            @for (at, ((kernel, arm), points)) in series.iter().enumerate() {
                @let colour = at % COLOURS;
                // Side by side, so that intervals of several curves can be told apart.
                @let aside = (at as f64 - (series.len() as f64 - 1.0) / 2.0) * 4.0;
                @let path = points.iter().map(|(ns, tally)| {
                    format!("{:.1},{:.1}", x(*ns) + aside, y(tally.rate()))
                }).collect::<Vec<_>>().join(" ");
                // A line between none and one length would tell of lengths that nobody tried.
                @if lengths(points) >= 2 { polyline class={ "curve s" (colour) } points=(path) {} }
                @for (ns, tally) in points {
                    @let (low, high) = tally.wilson95();
                    @let at_x = format!("{:.1}", x(*ns) + aside);
                    line class={ "s" (colour) } stroke-width="2" x1=(at_x) x2=(at_x)
                        y1=(format!("{:.1}", y(low))) y2=(format!("{:.1}", y(high))) {}
                    circle class={ "f" (colour) } cx=(at_x) cy=(format!("{:.1}", y(tally.rate()))) r="4" {
                        title {
                            (clean::line(kernel)) ", " (clean::line(arm)) ", " (duration(*ns)) ": "
                            (tally.hits) " of " (tally.trials)
                        }
                    }
                }
            }
        } }
        div.key {
            @for (at, ((kernel, arm), _)) in series.iter().enumerate() {
                span class={ "s" (at % COLOURS) } { (clean::line(kernel)) ", " (clean::line(arm)) }
            }
        }
    })
}

/// Most points of one plot.
const MOST_POINTS: usize = 2000;

/// Requested against achieved, both logarithmic; on the diagonal a delay is exact.
pub(super) fn latency(document: &Document) -> Markup {
    let arms = &document.delays;
    let all: Vec<&Delayed> = arms.iter().flat_map(|(.., delays)| delays).collect();
    let asked: Vec<u64> = all.iter().map(|delay| delay.asked_ns).collect();
    // A microsecond is as exact as anybody needs; below it the axis would go on to nothing.
    let given: Vec<u64> = all.iter().map(|delay| delay.late_ns().max(1000)).collect();
    let (Some(x_axis), Some(y_axis)) = (Log::over(&asked), Log::over(&given)) else {
        return html! {};
    };
    let x = |ns: u64| x_axis.place(ns, LEFT + 20.0, RIGHT - 20.0);
    let y = |ns: u64| y_axis.place(ns, BOTTOM, TOP);
    let each = MOST_POINTS / arms.len().max(1);
    html! {
        svg viewBox="0 0 960 300" role="img" aria-label="how late delays are, by length" {
            @for ns in y_axis.ticks() {
                line.grid x1=(LEFT) x2=(RIGHT) y1=(y(ns)) y2=(y(ns)) {}
                text.soft x=(LEFT - 8.0) y=(y(ns) + 4.0) text-anchor="end" { (duration(ns)) }
            }
            @for ns in x_axis.ticks() {
                line.grid x1=(x(ns)) x2=(x(ns)) y1=(TOP) y2=(BOTTOM) {}
                text.soft x=(x(ns)) y=(BOTTOM + 20.0) text-anchor="middle" { (duration(ns)) }
            }
            text.soft x=(f64::midpoint(LEFT, RIGHT)) y="292" text-anchor="middle" { "requested" }
            text.soft x=(LEFT) y="11" { "achieved, later than requested by" }
            @for (at, (.., delays)) in arms.iter().enumerate() {
                @let step = delays.len().div_ceil(each.max(1)).max(1);
                // Equal requests would hide each other: each arm has its place beside the length.
                @let aside = (at as f64 - (arms.len() as f64 - 1.0) / 2.0) * 9.0;
                @for delay in delays.iter().step_by(step) {
                    circle class={ "f" (at % COLOURS) } fill-opacity="0.45" r="3"
                        cx=(format!("{:.1}", x(delay.asked_ns) + aside))
                        cy=(format!("{:.1}", y(delay.late_ns()))) {}
                }
            }
        }
        div.key {
            @for (at, (kernel, arm, _)) in arms.iter().enumerate() {
                span class={ "s" (at % COLOURS) } { (clean::line(kernel)) ", " (clean::line(arm)) }
            }
        }
    }
}

/// A logarithmic axis over durations in nanoseconds, from a power of ten to a power of ten.
struct Log {
    low: u32,
    high: u32,
}

impl Log {
    /// Wide enough for all of these; `None` for nothing.
    fn over(values: &[u64]) -> Option<Log> {
        let (min, max) = (*values.iter().min()?, *values.iter().max()?);
        let low = min.max(1).ilog10();
        let high = max.max(1).ilog10();
        let exact = 10_u64.checked_pow(high).is_some_and(|power| power == max);
        Some(Log { low, high: (high + u32::from(!exact)).max(low + 1) })
    }

    fn place(&self, ns: u64, from: f64, to: f64) -> f64 {
        let share =
            ((ns.max(1) as f64).log10() - f64::from(self.low)) / f64::from(self.high - self.low);
        from + (to - from) * share.clamp(0.0, 1.0)
    }

    fn ticks(&self) -> impl Iterator<Item = u64> {
        (self.low..=self.high).filter_map(|power| 10_u64.checked_pow(power))
    }
}
