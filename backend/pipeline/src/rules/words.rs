//! Rules in words, for `racegate ctl list` and `racegate rules check`.
//!
//! In: rules. Out: one line each. Must not know: requests.

use std::fmt::Write as _;
use std::time::Duration;

use ext4_layout::Written;

use super::matching::{BLOCK_OPS, kind_names};
use super::{Match, Rule, RuleAction, RuleSet, Trigger, Until, Wait, When};
use crate::delay::Delay;
use crate::errno::{Errno, outcome_of};
use crate::request::{Op, Outcome};

impl RuleSet {
    /// What each rule does, in words, in their order.
    pub fn meanings(&self) -> Vec<String> {
        self.rules.iter().map(|rule| self.meaning(rule)).collect()
    }

    fn meaning(&self, rule: &Rule) -> String {
        let mut words = which(&rule.matches);
        words += &which_of_them(&rule.matches.when);
        words += ": ";
        words += &self.what(&rule.action);
        if rule.tell_agent {
            words += "; the agent is told";
        }
        if !rule.armed {
            words += "; starts disarmed";
        }
        for (verb, trigger) in [("armed", &rule.arm_on), ("disarmed", &rule.disarm_on)] {
            if let Some(trigger) = trigger {
                let _ = write!(words, "; {verb} when {}", self.trigger(trigger));
            }
        }
        words
    }

    fn trigger(&self, trigger: &Trigger) -> String {
        match trigger {
            Trigger::Agent(mark) => format!("the agent passes `{mark}`"),
            Trigger::Rule(index) => format!("`{}` fires", self.rules[*index].name),
            Trigger::Count(count) => format!("{count} requests have arrived"),
        }
    }

    fn what(&self, action: &RuleAction) -> String {
        let wait = match &action.wait {
            Wait::None => None,
            Wait::Delay(delay) => Some(format!("delayed by {}", how_long(delay))),
            Wait::Hold { until, at_most_ns, .. } => {
                let until = match until {
                    Until::Control => "the operator lets go".to_owned(),
                    Until::Agent(mark) => format!("the agent passes `{mark}`"),
                    Until::Rule(index) => format!("`{}` fires", self.rules[*index].name),
                    Until::Requests(1) => "the next request arrives".to_owned(),
                    Until::Requests(count) => format!("{count} more requests arrived"),
                };
                Some(format!("held until {until}, at most {}", duration(*at_most_ns)))
            }
        };
        match (wait, action.fail) {
            (None, None) => "submitted at once, later rules are not asked".to_owned(),
            (Some(wait), None) => wait,
            (None, Some(errno)) => failed(errno),
            (Some(wait), Some(errno)) => format!("{wait}, then {}", failed(errno)),
        }
    }
}

fn failed(errno: Errno) -> String {
    let seen = match outcome_of(errno.number()) {
        Outcome::Unsupported => "EOPNOTSUPP",
        Outcome::Ok | Outcome::IoErr => "EIO",
    };
    match errno.name() {
        name if name == seen => format!("failed with {name}"),
        name => format!("failed with {name} (a virtio-blk guest sees {seen})"),
    }
}

fn which(matches: &Match) -> String {
    let ops: Vec<&str> =
        Op::ALL.iter().filter(|op| matches.ops & op.bit() != 0).map(|op| op.name()).collect();
    // Where blocks are asked for, flushes are left out anyway.
    let mut words = if matches.ops & BLOCK_OPS == BLOCK_OPS {
        "every request".to_owned()
    } else {
        format!("each {}", ops.join(" or "))
    };
    let kinds = kind_names(matches.kinds);
    if !kinds.is_empty() {
        let _ = write!(words, " of {}", kinds.join(" or "));
    }
    if matches.of != 0 {
        let _ = write!(words, " (copy of {})", kind_names(matches.of).join(" or "));
    }
    let state = matches.state.map(|state| match state {
        Written::Written => "written",
        Written::Unwritten => "unwritten",
    });
    let fields = [
        ("group", matches.group.as_ref().map(ToString::to_string)),
        ("inode", matches.inode.as_ref().map(ToString::to_string)),
        ("lblk", matches.lblk.as_ref().map(ToString::to_string)),
        ("depth", matches.depth.as_ref().map(ToString::to_string)),
        ("tid", matches.tid.as_ref().map(ToString::to_string)),
        ("state", state.map(str::to_owned)),
        ("backup", matches.backup.map(|backup| backup.to_string())),
        ("sector", matches.sector.as_ref().map(ToString::to_string)),
        ("size", matches.size.as_ref().map(|size| format!("{size} bytes"))),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            let _ = write!(words, ", {name} {value}");
        }
    }
    words
}

fn which_of_them(when: &When) -> String {
    let mut words = String::new();
    if let Some(nth) = &when.nth {
        let _ = write!(words, ", number {nth} of them");
    }
    if when.after > 0 {
        let _ = write!(words, ", after the first {}", when.after);
    }
    if when.every > 1 {
        let _ = write!(words, ", one in {}", when.every);
    }
    if when.probability < 1.0 {
        let _ = write!(words, ", with probability {}", when.probability);
    }
    match when.times {
        Some(1) => words += ", once",
        Some(times) => {
            let _ = write!(words, ", {times} times");
        }
        None => {}
    }
    words
}

fn how_long(delay: &Delay) -> String {
    let about = |ns: &f64| duration(*ns as u64);
    match delay {
        Delay::Fixed { ns } => duration(*ns),
        Delay::Uniform { from_ns, to_ns } => {
            format!("{} to {} (uniform)", duration(*from_ns), duration(*to_ns))
        }
        Delay::Normal { mean_ns, stddev_ns } => {
            format!("{} on average (normal, stddev {})", about(mean_ns), about(stddev_ns))
        }
        Delay::Exponential { mean_ns } => format!("{} on average (exponential)", about(mean_ns)),
        Delay::Pareto { scale_ns, shape } => {
            format!("{} or more (Pareto, shape {shape})", about(scale_ns))
        }
        Delay::Histogram { steps } => format!("one of {} values (histogram)", steps.len()),
    }
}

fn duration(ns: u64) -> String {
    humantime::format_duration(Duration::from_nanos(ns)).to_string()
}
