//! What earlier trials taught, and which case is worth the next one.
//!
//! In: what came of each trial. Out: the next [`Case`]; all of it as JSON, for the next hunt.
//! Must not know: guests, plans.
//!
//! A window that never opens (the operation causes no such request) is given up after
//! [`CHANCES`] trials, whatever the later operation is: that is most of the grammar. In those that
//! open every later operation is tried once, first where the later one has been seen to wait: it
//! wants what the earlier one holds. When there is nothing new, other blocks are tried of the cases
//! that behaved in a way that others of their operations did not.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::grammar::{Action, Case, Operation, Range, Window};
use crate::runner::trial_seed;

/// Trials after which a window that did not open is given up.
const CHANCES: u32 = 2;
/// Of so many trials, one looks for windows as long as there are some that nobody has tried.
const LOOKS: u64 = 3;
/// How much likelier a case is where the later operation has been seen to wait.
const WAITED: u64 = 4;

/// What came of a trial.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Behaviour {
    /// The device stopped the request.
    pub opened: bool,
    /// The later operation was under way until the request went on.
    pub waited: bool,
    /// What failed, if something did.
    pub errors: Vec<(String, i32)>,
    /// What was found.
    pub found: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Chances {
    tried: u32,
    opened: u32,
}

/// Everything that is known of one kernel and format.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    #[serde(with = "pairs")]
    windows: BTreeMap<Window, Chances>,
    /// How often each case was tried.
    #[serde(with = "pairs")]
    cases: BTreeMap<Case, u32>,
    /// Which operation waited in the window of which.
    waits: BTreeSet<(Operation, Operation)>,
    /// How two operations have behaved so far.
    behaviours: BTreeSet<(Operation, Operation, Behaviour)>,
    /// Cases that did what their operations had not done before.
    lively: Vec<Case>,
    trials: u64,
}

impl Memory {
    /// Windows that have opened.
    pub fn open(&self) -> usize {
        self.windows.values().filter(|window| window.opened > 0).count()
    }

    /// Trials so far.
    pub fn trials(&self) -> u64 {
        self.trials
    }

    /// Ways to behave that were seen.
    pub fn behaviours(&self) -> usize {
        self.behaviours.len()
    }

    /// Takes in what came of a trial; whether it is new for its operations.
    pub fn learn(&mut self, case: Case, behaviour: Behaviour) -> bool {
        self.trials += 1;
        let chances = self.windows.entry(case.window).or_default();
        chances.tried += 1;
        chances.opened += u32::from(behaviour.opened);
        *self.cases.entry(case).or_default() += 1;
        let (earlier, later) = (case.window.earlier, case.later);
        if behaviour.waited {
            self.waits.insert((earlier, later));
        }
        let new = behaviour.opened && self.behaviours.insert((earlier, later, behaviour));
        if new {
            self.lively.push(case);
        }
        new
    }

    /// The next case; `None` when `windows` are all given up. The same seed and past give the same.
    pub fn choose(&self, windows: &[Window], laters: &[Operation], seed: u64) -> Option<Case> {
        let mut draws = Draws { seed, count: 0 };
        let of = |window: &Window| self.windows.get(window).copied().unwrap_or_default();
        let untried = |action: Action| -> Vec<&Window> {
            let untried = windows.iter().filter(|window| {
                window.action == action && of(window).opened == 0 && of(window).tried < CHANCES
            });
            untried.collect()
        };
        // What fails damages the file system, and the next trial waits for a new guest.
        let held = untried(Action::Hold);
        let untried = if held.is_empty() { untried(Action::Fail) } else { held };
        let looks = !untried.is_empty() && draws.below(LOOKS) == 0;
        let open: Vec<Case> = windows
            .iter()
            .filter(|window| of(window).opened > 0)
            .flat_map(|&window| laters.iter().map(move |&later| plain(window, later)))
            .filter(|case| !self.cases.contains_key(case))
            .collect();
        if !looks && let Some(case) = self.weighted(&open, &mut draws) {
            return Some(case);
        }
        if let Some(window) = draws.pick(&untried) {
            return Some(plain(**window, *draws.pick(laters)?));
        }
        if let Some(case) = self.weighted(&open, &mut draws) {
            return Some(case);
        }
        // Nothing new is left but other blocks.
        let lively: Vec<Case> = self
            .lively
            .iter()
            .filter(|case| windows.contains(&case.window) && laters.contains(&case.later))
            .copied()
            .collect();
        let mut case = *draws.pick(&lively)?;
        case.earlier_range = *draws.pick(Range::ALL)?;
        case.later_range = *draws.pick(Range::ALL)?;
        Some(case)
    }

    fn weighted(&self, cases: &[Case], draws: &mut Draws) -> Option<Case> {
        let weight = |case: &Case| {
            let waited = self.waits.contains(&(case.window.earlier, case.later));
            if waited { WAITED } else { 1 }
        };
        let all: u64 = cases.iter().map(weight).sum();
        let mut left = if all == 0 { return None } else { draws.below(all) };
        for case in cases {
            match left.checked_sub(weight(case)) {
                Some(rest) => left = rest,
                None => return Some(*case),
            }
        }
        None
    }
}

/// Both operations on the same blocks, which is where they are most likely to meet.
fn plain(window: Window, later: Operation) -> Case {
    Case { window, earlier_range: Range::Middle, later, later_range: Range::Middle }
}

/// Draws that a seed decides.
struct Draws {
    seed: u64,
    count: u32,
}

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.count += 1;
        trial_seed(self.seed, self.count) % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() {
            return None;
        }
        let place = self.below(from.len() as u64);
        from.get(usize::try_from(place).unwrap_or(0))
    }
}

/// Maps whose keys are no texts, as JSON has it.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub(super) fn deserialize<'de, K, V, D>(from: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(from)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::grammar::{Request, State};
    use super::*;

    const BITMAP: Window = Window {
        state: State::Hole,
        earlier: Operation::Allocate,
        request: Request::ReadBitmap,
        action: Action::Hold,
    };

    /// A kernel in which one window opens, and one operation waits in it.
    fn hunt(trials: u32, memory: &mut Memory) -> Vec<Case> {
        let windows: Vec<Window> = Window::all().collect();
        (0..trials)
            .map_while(|trial| {
                let seed = trial_seed(7, trial);
                let case = memory.choose(&windows, Operation::ALL, seed)?;
                let opened = case.window == BITMAP;
                let waited = opened && case.later == Operation::Store;
                memory.learn(case, Behaviour { opened, waited, ..Behaviour::default() });
                Some(case)
            })
            .collect()
    }

    #[test]
    fn what_never_opens_is_given_up_and_what_opens_is_tried_with_everything() {
        let mut memory = Memory::default();
        let windows = Window::all().count();
        let cases = hunt(20 * windows as u32, &mut memory);
        for window in Window::all().filter(|window| *window != BITMAP) {
            let tried = cases.iter().filter(|case| case.window == window).count();
            assert_eq!(tried, CHANCES as usize, "{window:?}");
        }
        for later in Operation::ALL {
            let tried = |case: &&Case| case.window == BITMAP && case.later == *later;
            assert!(cases.iter().any(|case| tried(&case)), "{later:?}");
        }
        assert_eq!(memory.open(), 1);
        // Other blocks come last, where something new was seen.
        let other = cases.iter().position(|case| case.later_range != Range::Middle).unwrap();
        assert!(other > windows, "{other}");
    }

    #[test]
    fn the_same_past_and_seed_choose_the_same_and_the_past_outlives_the_hunt() {
        let (mut one, mut two) = (Memory::default(), Memory::default());
        assert_eq!(hunt(300, &mut one), hunt(300, &mut two));
        let text = serde_json::to_string(&one).unwrap();
        let mut again: Memory = serde_json::from_str(&text).unwrap();
        assert_eq!(hunt(50, &mut again), hunt(50, &mut one));
        assert_eq!(again.trials(), 350);
    }

    #[test]
    fn nothing_to_try_is_told() {
        assert_eq!(Memory::default().choose(&[], Operation::ALL, 1), None);
        assert_eq!(Memory::default().choose(&[BITMAP], &[], 1), None);
    }
}
