//! Layer by layer, on any number of workers: layer n holds the states first reached in n steps.
//!
//! In: a model, options, workers. Out: coverage and a schedule of fewest steps for each broken
//! invariant. Nothing in the answer depends on which worker did what: a state's record, the count
//! of schedules that lead to it and its sleep set are combined from the arrivals of one layer by
//! operations that commute (minimum, sum, intersection), and a layer is closed before the next
//! begins.
//!
//! Layers are what a bound on steps or preemptions needs, too: a state is reached by the fewest
//! steps first, so no state below the bound is missed.
//!
//! The files: `shard` keeps what is known of states, `expand` takes the steps of one state.

mod expand;
mod shard;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::found::{Found, State};
use crate::model::{Model, Step};
use crate::report::{Bound, Coverage, OnProgress, Options, Progress, Strategy};
use crate::rng::mix;
use crate::workers::Workers;

use expand::{Expansion, Tally};
use shard::{Arrival, Shard};

/// States that a worker takes at a time.
const CHUNK: usize = 256;
/// States expanded between two calls of the progress callback.
const SLAB_CHUNKS: usize = 512;
/// States that can be numbered. A shard has fewer.
const NUMBERS_MAX: u64 = u32::MAX as u64;
/// Layers smaller than this are not worth waking other workers for.
const ALONE_BELOW: usize = 8 * CHUNK;

/// A state to expand.
struct Node<S> {
    state: S,
    key: u64,
    /// The thread of the last step, and the preemptions so far. Only under a preemption bound;
    /// otherwise `None` and 0, so that they do not tell states apart.
    last: Option<u8>,
    preemptions: u32,
}

/// What the schedules that lead to a state have in common. Apart from the state, because it
/// changes with each arrival, and is small enough to stay in the cache.
#[derive(Clone, Copy)]
struct Lineage {
    /// Number of schedules that lead here, saturating.
    paths: u128,
    /// Threads asleep here.
    sleep: u32,
    /// Threads that were asleep at an earlier visit: all, at the first.
    slept: u32,
}

/// The part of a layer that a shard gave: states and, by the same index, their lineages.
struct Part<S> {
    nodes: Vec<Node<S>>,
    lineages: Vec<Lineage>,
}

impl<S> Part<S> {
    /// Cuts the part into pieces for workers.
    fn chunks(&self) -> impl Iterator<Item = (&[Node<S>], &[Lineage])> {
        self.nodes.chunks(CHUNK).zip(self.lineages.chunks(CHUNK))
    }
}

/// What stays the same for a whole search.
struct Setting<'a, M: Model> {
    model: &'a M,
    options: &'a Options,
    reduce: bool,
    shards: Vec<Mutex<Shard<State<M>>>>,
}

impl<M: Model> Setting<'_, M> {
    /// Which shard a state belongs to. The number of shards is a power of two.
    fn shard_index(&self, key: u64) -> usize {
        // The table of a shard uses the low bits of the mix: take high ones here.
        (mix(key) >> 48) as usize & (self.shards.len() - 1)
    }

    fn with_shard<R>(&self, key: u64, f: impl FnOnce(&mut Shard<State<M>>) -> R) -> R {
        let shard = &self.shards[self.shard_index(key)];
        f(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Searches until everything is visited, a bound is met or the callback says stop.
pub(crate) fn search<M: Model>(
    model: &M,
    options: &Options,
    workers: &dyn Workers,
    on_progress: OnProgress<'_>,
) -> (Found, Coverage) {
    let shards = if workers.count() > 1 { (workers.count() * 4).next_power_of_two() } else { 1 };
    let setting = Setting {
        model,
        options,
        reduce: options.strategy == Strategy::PartialOrder,
        shards: (0..shards).map(|_| Mutex::new(Shard::new())).collect(),
    };
    let initial = model.initial();
    let key = model.fingerprint(&initial);
    let root = Arrival {
        key,
        parent: key,
        step: Step::default(),
        paths: 1,
        sleep: 0,
        last: None,
        preemptions: 0,
        state: 0,
    };
    setting.with_shard(key, |shard| shard.arrive(&root, &[initial]));

    let mut tally = Tally::default();
    let mut found = Found::default();
    let mut coverage = Coverage::default();
    for depth in 0_u32.. {
        let layer = close_layer(&setting, &mut tally);
        if layer.iter().all(|part| part.nodes.is_empty()) {
            break;
        }
        coverage.depth_max = depth;
        let cancelled = expand_layer(&setting, workers, &layer, depth, &mut tally, on_progress);
        // Across layers the shorter schedule wins: it was found first.
        for (invariant, (parent, last)) in std::mem::take(&mut tally.violations) {
            let schedule = || schedule_to(&setting, parent).into_iter().chain(last).collect();
            found.shorter(invariant, schedule, depth as usize);
        }
        if cancelled {
            coverage.cut(Bound::Cancelled);
            break;
        }
        if options.stop_at_first && found.any() {
            coverage.cut(Bound::FirstViolation);
            break;
        }
        let states = states(&setting);
        if states >= options.states_max.unwrap_or(u64::MAX).min(NUMBERS_MAX) {
            coverage.cut(Bound::States);
            break;
        }
    }
    coverage.states = Some(states(&setting));
    tally.report(&mut coverage);
    (found, coverage)
}

/// Ends the layer that is being filled and takes its states out, one list a shard.
fn close_layer<M: Model>(setting: &Setting<'_, M>, tally: &mut Tally) -> Vec<Part<State<M>>> {
    let close = |shard: &Mutex<Shard<State<M>>>| {
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        tally.uneven |= shard.uneven();
        shard.close_layer()
    };
    setting.shards.iter().map(close).collect()
}

/// Expands all states of a layer; true if the callback said stop.
fn expand_layer<M: Model>(
    setting: &Setting<'_, M>,
    workers: &dyn Workers,
    layer: &[Part<State<M>>],
    depth: u32,
    tally: &mut Tally,
    on_progress: OnProgress<'_>,
) -> bool {
    let chunks: Vec<_> = layer.iter().flat_map(Part::chunks).collect();
    let mut waiting: usize = layer.iter().map(|part| part.nodes.len()).sum();
    for slab in chunks.chunks(SLAB_CHUNKS) {
        let nodes: usize = slab.iter().map(|(nodes, _)| nodes.len()).sum();
        if workers.count() == 1 || nodes < ALONE_BELOW {
            let mut expansion = Expansion::new(setting, depth);
            for &chunk in slab {
                expansion.expand_all_of(chunk);
            }
            tally.merge(expansion.finish());
        } else {
            let next_chunk = AtomicUsize::new(0);
            let merged = Mutex::new(std::mem::take(tally));
            workers.run(&|_worker| {
                let mut expansion = Expansion::new(setting, depth);
                while let Some(&chunk) = slab.get(next_chunk.fetch_add(1, Ordering::Relaxed)) {
                    expansion.expand_all_of(chunk);
                }
                let own = expansion.finish();
                merged.lock().unwrap_or_else(PoisonError::into_inner).merge(own);
            });
            *tally = merged.into_inner().unwrap_or_else(PoisonError::into_inner);
        }
        waiting -= nodes;
        let progress = Progress {
            states: states(setting),
            transitions: tally.transitions,
            waiting: waiting as u64,
            depth,
            shrinking: false,
        };
        if on_progress(progress) == ControlFlow::Break(()) {
            return true;
        }
    }
    false
}

fn states<M: Model>(setting: &Setting<'_, M>) -> u64 {
    let count = |shard: &Mutex<Shard<State<M>>>| {
        shard.lock().unwrap_or_else(PoisonError::into_inner).states()
    };
    setting.shards.iter().map(count).sum()
}

/// The steps that lead from the initial state to the state behind `key`.
fn schedule_to<M: Model>(setting: &Setting<'_, M>, mut key: u64) -> Vec<Step> {
    let mut steps = Vec::new();
    // Ends: a record's parent lies in an earlier layer, the initial state is its own parent.
    while let Some((parent, step)) = setting.with_shard(key, |shard| shard.origin(key)) {
        if parent == key {
            break;
        }
        steps.push(step);
        key = parent;
    }
    steps.reverse();
    steps
}
