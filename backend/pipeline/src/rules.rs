//! Rules: which requests are delayed, held or failed.
//!
//! In: the text of a rules file. Out: [`RuleSet`], checked, in the order of the file.
//! Must not know: requests in flight, time, files (the caller reads them).
//!
//! # The language
//!
//! A rules file is TOML: a list of `[[rule]]`, asked in their order. The first rule that fires
//! decides; every rule that matches counts the request, whether or not an earlier one fired.
//!
//! ```toml
//! [[rule]]
//! name = "hold-first-bitmap-read"      # unique
//! match = { op = "read", class = "block_bitmap", nth = 1 }
//! action = { hold = { until = "agent:store-parked", at_most = "500ms" } }
//! tell_agent = true                    # "held:NAME", "released:NAME", "fired:NAME"
//! armed = false                        # default: true, or false if arm_on is given
//! arm_on = "agent:ready"               # "agent:MARK", "rule:NAME", "count:REQUESTS"
//! disarm_on = "rule:other"
//! ```
//!
//! `match`: every field given must hold. Numbers are `7`, a range `"0..=9"`, `"0..10"`, `"7.."`,
//! or a list of these.
//!
//! | field | holds if |
//! |---|---|
//! | `op` | the request is one of `read`, `write`, `flush`, `discard`, `write_zeroes`, `fault`, `store` (one or a list) |
//! | `class` | a block it touches is of this class (one or a list) |
//! | `group`, `inode`, `lblk`, `state`, `depth`, `backup`, `tid` | the same block has this; `inode` also holds for the part of the inode table that stores it; a log copy has what the block it is a copy of has |
//! | `of` | the block is a log copy of this class |
//! | `sector` | it touches these 512-byte sectors (with a class: the block of that class does) |
//! | `size` | it has this many bytes |
//! | `nth` | it is the n-th to match, from 1, since the rule was armed |
//! | `after` | at least that many matched before, since the rule was armed |
//! | `every` | of those, it is the first, or a multiple of this many further on |
//! | `probability` | a draw says so; drawn from seed, rule name and match number alone |
//! | `times` | the rule has fired less often than this, since it was armed |
//!
//! `action`: one of `delay`, `hold`, `pass`, and `fail`, which may stand with a delay or a hold
//! (the request fails when its time has come). `pass = true` submits at once and keeps later
//! rules away.
//!
//! - `delay = "80ms"`, `{ uniform = ["1ms", "20ms"] }`, `{ normal = { mean = "5ms", stddev =
//!   "1ms" } }`, `{ exponential = { mean = "2ms" } }`, `{ pareto = { scale = "1ms", shape = 1.5
//!   } }`, `{ histogram = [["1ms", 90], ["20ms", 10]] }` or `{ histogram = "FILE" }` with a
//!   value and a weight a line. Draws are cut to 0 and 60 s.
//! - `hold = { until = "agent:MARK" | "rule:NAME" | "request:N" | "control", at_most = "5s" }`:
//!   until the mark is passed, the rule fires, the N-th request after it arrives, or the
//!   operator says so; whatever comes first of that, `at_most` (default 5 s, at most 60 s), and
//!   `racegate ctl release`. What came before the request arrived does not count.
//! - `fail = "EIO"`: see [`crate::Errno`].
//!
//! Two rules may hold until the other fires: firing is the start of a hold, not its end, so
//! they do not wait for each other, and `at_most` bounds them in any case.

mod action;
mod check;
mod error;
mod matching;
mod parse;
mod read;
mod words;

use std::sync::Arc;

pub use error::{RulesError, RulesProblem};
pub(crate) use matching::concerns;

use crate::delay::Delay;
use crate::errno::Errno;
use crate::event::RulesText;
use crate::filter::Filter;
use crate::ranges::Ranges;
use ext4_layout::Written;

/// The longest delay and the longest hold, in nanoseconds: 60 s. A guest gives up on a request
/// at some point (virtio_blk has no timeout of its own, but the hung-task detector complains
/// after 120 s).
pub const LIMIT_NS: u64 = 60_000_000_000;

/// How long a hold lasts if the rule does not say, in nanoseconds: 5 s.
pub const DEFAULT_HOLD_NS: u64 = 5_000_000_000;

/// The most rules in a set; each has histograms of its own.
pub const RULES_MAX: usize = 128;

/// Checked rules, in the order in which they are asked.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    pub(crate) rules: Vec<Rule>,
    pub(crate) text: RulesText,
}

/// One rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) name: Arc<str>,
    /// Where it begins in the file, from 1.
    pub(crate) line: usize,
    pub(crate) matches: Match,
    pub(crate) action: RuleAction,
    pub(crate) tell_agent: bool,
    /// Armed from the start.
    pub(crate) armed: bool,
    pub(crate) arm_on: Option<Trigger>,
    pub(crate) disarm_on: Option<Trigger>,
}

/// Which requests.
#[derive(Clone, Debug)]
pub(crate) struct Match {
    /// [`Op::bit`](crate::Op::bit)s; never 0.
    pub(crate) ops: u8,
    /// [`Kind::bit`](ext4_layout::Kind::bit)s of the classes that can match; 0: classes do not
    /// matter.
    pub(crate) kinds: u32,
    /// The same for what a log copy is of; 0: it does not matter.
    pub(crate) of: u32,
    pub(crate) group: Option<Ranges>,
    pub(crate) inode: Option<Ranges>,
    pub(crate) lblk: Option<Ranges>,
    pub(crate) depth: Option<Ranges>,
    pub(crate) tid: Option<Ranges>,
    pub(crate) state: Option<Written>,
    pub(crate) backup: Option<bool>,
    /// 512-byte sectors.
    pub(crate) sector: Option<Ranges>,
    /// Bytes.
    pub(crate) size: Option<Ranges>,
    pub(crate) when: When,
}

/// Which of the requests that match.
#[derive(Clone, Debug)]
pub(crate) struct When {
    pub(crate) nth: Option<Ranges>,
    pub(crate) after: u64,
    pub(crate) every: u64,
    pub(crate) times: Option<u64>,
    /// In (0, 1].
    pub(crate) probability: f64,
}

/// What becomes of them.
#[derive(Clone, Debug)]
pub(crate) struct RuleAction {
    pub(crate) wait: Wait,
    pub(crate) fail: Option<Errno>,
}

/// How long they wait.
#[derive(Clone, Debug)]
pub(crate) enum Wait {
    None,
    Delay(Delay),
    Hold { until: Until, spelling: Arc<str>, at_most_ns: u64 },
}

/// What ends a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    Control,
    Agent(Arc<str>),
    /// Index of a rule of the set.
    Rule(usize),
    /// That many requests arrived after it; at least 1.
    Requests(u64),
}

/// What arms or disarms a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trigger {
    Agent(Arc<str>),
    /// Index of a rule of the set.
    Rule(usize),
    /// That many requests arrived since the rules were loaded; at least 1.
    Count(u64),
}

impl RuleSet {
    /// Parses and checks the text of a rules file. `file` is its name, for messages.
    ///
    /// # Errors
    /// The first mistake, with its line, field and mend. A rule with `histogram = "FILE"` is
    /// one: use [`RuleSet::parse_with`].
    pub fn parse(toml: &str, file: &str) -> Result<RuleSet, RulesError> {
        RuleSet::parse_with(toml, file, &mut |_| Err("the file did not come along".to_owned()))
    }

    /// The same, where `read` gives the text of each file that the rules name, or says why it
    /// cannot.
    ///
    /// # Errors
    /// As [`RuleSet::parse`], and what `read` says.
    pub fn parse_with(
        toml: &str,
        file: &str,
        read: &mut dyn FnMut(&str) -> Result<String, String>,
    ) -> Result<RuleSet, RulesError> {
        parse::parse(toml, file, read)
    }

    /// The same from a text that brings along the files it names.
    ///
    /// # Errors
    /// As [`RuleSet::parse`], and a file that `text.files` does not have.
    pub fn from_text(text: &RulesText) -> Result<RuleSet, RulesError> {
        let mut set = RuleSet::parse_with(&text.text, &text.file, &mut |name| {
            text.files.get(name).cloned().ok_or_else(|| "the file did not come along".to_owned())
        })?;
        set.text.seed = text.seed;
        Ok(set)
    }

    /// The text it was made from.
    pub fn text(&self) -> &RulesText {
        &self.text
    }

    /// Names of the rules, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.rules.iter().map(|rule| &*rule.name)
    }

    /// Names of the rules that can match one of those operations ([`Op::bit`](crate::Op::bit)s).
    pub fn names_for(&self, ops: u8) -> impl Iterator<Item = &str> {
        self.rules.iter().filter(move |rule| rule.matches.ops & ops != 0).map(|rule| &*rule.name)
    }

    /// How many rules.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether a rule, armed or not, goes by class: then the layout of the disk must be known.
    pub fn needs_classes(&self) -> bool {
        self.rules.iter().any(|rule| rule.matches.kinds != 0)
    }

    /// What the rules can want, whether they are armed now or not, and whether or not somebody
    /// reads the events: a page of persistent memory whose first touch is to be seen must be
    /// kept out of caches before the rule that wants it is armed.
    pub fn filter(&self) -> Filter {
        Filter::new(|| self.rules.iter(), false)
    }

    /// No rules at all.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

#[cfg(test)]
mod tests;
