//! Dose response: the plan's delays at several lengths, each an arm of its own.
//!
//! In: the text of `--sweep`, a plan. Out: a plan with an arm for each length, and which arms run.
//! Must not know: how a trial runs, how a report looks.

use std::fmt;
use std::time::Duration;

use anyhow::bail;
use campaign::plan::Plan;
use campaign::plan::edit::PlanText;

/// Most lengths of one sweep.
const MOST: usize = 64;
/// The arm that is a delay of no length.
const BARE_ARM: &str = "none";

/// Lengths, in the order in which each round of trials visits them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sweep {
    doses: Vec<Duration>,
}

/// Reads `delay=1ms,5ms` or `delay=1ms..64ms`.
pub(crate) fn parse(text: &str) -> Result<Sweep, String> {
    let Some(lengths) = text.strip_prefix("delay=") else {
        return Err("give \"delay=1ms,5ms,20ms\" or \"delay=1ms..64ms\"".to_owned());
    };
    let length = |text: &str| {
        let length = humantime::parse_duration(text.trim());
        let length = length.map_err(|error| format!("\"{text}\" is no length of time: {error}"))?;
        if length.is_zero() {
            return Err(format!("\"{text}\" is no delay; the arm `none` has none"));
        }
        Ok(length)
    };
    let doses = if let Some((first, last)) = lengths.split_once("..") {
        let (first, last) = (length(first)?, length(last)?);
        if first > last {
            return Err(format!("{first:?} is longer than {last:?}; give the shorter one first"));
        }
        let double = |dose: &Duration| dose.checked_mul(2).filter(|dose| *dose <= last);
        std::iter::successors(Some(first), double).take(MOST + 1).collect()
    } else {
        lengths.split(',').map(length).collect::<Result<Vec<_>, _>>()?
    };
    if doses.len() > MOST {
        return Err(format!("{} lengths are too many; give at most {MOST}", doses.len()));
    }
    let doubled = doses.iter().enumerate().find(|(index, dose)| doses[..*index].contains(dose));
    match doubled {
        Some((_, dose)) => Err(format!("{dose:?} is there twice")),
        None => Ok(Sweep { doses }),
    }
}

impl Sweep {
    /// `plan` with an arm for each length; `arms` becomes the arms that are to run.
    pub(crate) fn apply(&self, plan: &Plan, arms: &mut Vec<String>) -> anyhow::Result<Plan> {
        let mut text = PlanText::of(plan)?;
        let Some(doses) = text.sweep(&self.doses) else {
            bail!(
                "plan {} has no rule in its arm `rules` with a fixed delay or a hold; there is \
                 nothing to sweep",
                plan.name
            );
        };
        if arms.is_empty() && plan.arms.iter().any(|arm| arm.name == BARE_ARM) {
            arms.push(BARE_ARM.to_owned());
        }
        arms.extend(doses);
        Ok(text.plan()?)
    }
}

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = |dose: &Duration| humantime::format_duration(*dose).to_string();
        let lengths: Vec<_> = self.doses.iter().map(|dose| length(dose).replace(' ', "")).collect();
        write!(f, "delay={}", lengths.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        for (text, doses) in [
            ("delay=1ms,5ms, 20ms", "delay=1ms,5ms,20ms"),
            ("delay=1ms..10ms", "delay=1ms,2ms,4ms,8ms"),
            ("delay=500us..500us", "delay=500us"),
            ("delay=1s500ms", "delay=1s500ms"),
        ] {
            let sweep = parse(text).unwrap();
            assert_eq!(sweep.to_string(), doses);
            assert_eq!(parse(doses).unwrap(), sweep);
        }
        for (text, says) in [
            ("1ms", "delay=1ms,5ms"),
            ("delay=", "no length"),
            ("delay=0ms", "`none`"),
            ("delay=5ms..1ms", "shorter one first"),
            ("delay=1ms,1ms", "twice"),
            ("delay=1ns..1000years", "too many"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
    }

    #[test]
    fn only_the_doses_and_the_bare_arm_run() {
        let plan = Plan::find("mkwrite-fallocate").unwrap();
        let mut arms = Vec::new();
        let swept = parse("delay=1ms,2ms").unwrap().apply(&plan, &mut arms).unwrap();
        assert_eq!(arms, ["none", "delay=1ms", "delay=2ms"]);
        assert!(arms.iter().all(|arm| swept.arms.iter().any(|known| known.name == *arm)));
        let mut arms = vec!["rules".to_owned()];
        parse("delay=1ms").unwrap().apply(&plan, &mut arms).unwrap();
        assert_eq!(arms, ["rules", "delay=1ms"]);
        let bare = Plan::find("inline-truncate").unwrap();
        let error = parse("delay=1ms").unwrap().apply(&bare, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("nothing to sweep"), "{error}");
    }
}
