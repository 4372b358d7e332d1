//! The entry to all strategies: run the search, then make each counterexample small and readable.

use crate::found::Found;
use crate::model::{InvariantId, Model, Step, THREADS_MAX};
use crate::replay::{Outcome, invariant_name, replay};
use crate::report::{Coverage, OnProgress, Options, OptionsError, Report, Strategy, Violation};
use crate::schedule::Schedule;
use crate::workers::Workers;
use crate::{dfs, layers, shrink, walk};

/// Looks for schedules of `model` that break an invariant.
///
/// The answer depends on the model and the options only, not on the number of workers or on time.
/// One exception: where [`Options::states_max`] or the callback cuts an exhaustive search, one
/// worker has seen another part of the graph than several.
pub fn explore<M: Model>(
    model: &M,
    options: &Options,
    workers: &dyn Workers,
    on_progress: OnProgress<'_>,
) -> Result<Report, OptionsError> {
    refuse(model, options)?;
    let bounded = options.steps_max.is_some() || options.preemptions_max.is_some();
    let (found, mut coverage) = match options.strategy {
        Strategy::Exhaustive if workers.count() == 1 && !bounded => {
            let searched = dfs::search(model, options, on_progress);
            if options.stop_at_first && searched.0.any() {
                // Which violation comes first depends on the way; several workers go by layers.
                layers::search(model, options, workers, on_progress)
            } else {
                searched
            }
        }
        Strategy::Exhaustive | Strategy::PartialOrder => {
            layers::search(model, options, workers, on_progress)
        }
        Strategy::Random { .. } | Strategy::Pct { .. } => {
            walk::search(model, options, workers, on_progress)
        }
    };
    let countable = options.strategy == Strategy::Exhaustive && coverage.complete();
    if countable
        && coverage.interleavings.is_none()
        && coverage.states <= Some(options.count_states)
    {
        count(model, options, &mut coverage, on_progress);
    }
    Ok(report(model, options, found, coverage, on_progress))
}

/// Counts the interleavings of a search that was complete without a bound.
fn count<M: Model>(
    model: &M,
    options: &Options,
    coverage: &mut Coverage,
    on_progress: OnProgress<'_>,
) {
    let options = Options { stop_at_first: false, ..options.clone() };
    let (_, counted) = dfs::search(model, &options, on_progress);
    coverage.depth_max = counted.depth_max;
    coverage.interleavings = counted.interleavings;
    coverage.interleavings_violating = counted.interleavings_violating;
}

fn refuse<M: Model>(model: &M, options: &Options) -> Result<(), OptionsError> {
    let threads = model.threads();
    if threads > THREADS_MAX {
        return Err(OptionsError::TooManyThreads { threads });
    }
    match options.strategy {
        Strategy::PartialOrder if options.preemptions_max.is_some() => {
            Err(OptionsError::PreemptionsWithPartialOrder)
        }
        Strategy::Pct { depth: 0, .. } => Err(OptionsError::PctDepth),
        _ => Ok(()),
    }
}

fn report<M: Model>(
    model: &M,
    options: &Options,
    found: Found,
    coverage: Coverage,
    on_progress: OnProgress<'_>,
) -> Report {
    let violations = found
        .into_schedules()
        .map(|(invariant, steps)| {
            let (steps, minimal) = if options.shrink_states == 0 {
                (steps, false)
            } else {
                let shrunk =
                    shrink::shrink(model, invariant, steps, options.shrink_states, on_progress);
                (shrunk.steps, shrunk.minimal)
            };
            violation(model, invariant, steps, minimal)
        })
        .collect();
    Report { violations, coverage }
}

fn violation<M: Model>(
    model: &M,
    invariant: InvariantId,
    steps: Vec<Step>,
    minimal: bool,
) -> Violation {
    let schedule = Schedule::new(model, steps);
    let detail = match replay(model, &schedule) {
        Ok(trace) => match trace.outcome {
            Outcome::Violation { detail, .. } => detail,
            Outcome::End | Outcome::Open => {
                "the schedule does not break it again: the model is not deterministic".to_owned()
            }
        },
        Err(error) => format!("the model is not deterministic: {error}"),
    };
    Violation { invariant, name: invariant_name(model, invariant), detail, schedule, minimal }
}
