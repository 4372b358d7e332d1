//! What the sources say: in which version a bug came, and in which it went.
//!
//! In: a file (TOML). Out: whether a kernel of a version has a bug, and the cells of a [`Matrix`] that
//! say otherwise. Must not know: how a verdict came about.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Cell, Matrix};
use crate::verdict::Verdict;

/// What is known of the built-in plans.
pub const BUILT_IN: &str = include_str!("fixes.toml");

/// What the sources say of several bugs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// One for each plan.
    #[serde(rename = "bug")]
    bugs: Vec<Bug>,
}

/// What the sources say of one bug.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bug {
    /// The plan that races it.
    plan: String,
    /// The commit that mends it, for people.
    #[serde(default)]
    commit: Option<String>,
    /// The versions that brought it; none if it was always there.
    #[serde(default)]
    since: Vec<Version>,
    /// The versions that mended it; none if nothing has.
    #[serde(default)]
    fixed: Vec<Version>,
    /// Kernels that have it, whatever their version says.
    #[serde(default)]
    affected: Vec<String>,
    /// Kernels that do not have it, whatever their version says.
    #[serde(default)]
    not_affected: Vec<String>,
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExpectError {
    /// It is not what it should be.
    #[error("{file}:{line}: {problem}")]
    Syntax {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A plan is there twice.
    #[error("{file}: plan \"{plan}\" is there twice; put its versions into one [[bug]]")]
    Twice {
        /// The file.
        file: String,
        /// The plan.
        plan: String,
    },
}

/// `6.11` is all kernels from 6.11 on that are no stable series of their own; `6.1.106` is the series
/// 6.1 from that version on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Version {
    major: u32,
    minor: u32,
    patch: Option<u32>,
}

impl Version {
    fn parse(text: &str) -> Option<Version> {
        let numbers: Option<Vec<u32>> = text.split('.').map(|part| part.parse().ok()).collect();
        match numbers?[..] {
            [major, minor] => Some(Version { major, minor, patch: None }),
            [major, minor, patch] => Some(Version { major, minor, patch: Some(patch) }),
            _ => None,
        }
    }

    fn series(self) -> (u32, u32) {
        (self.major, self.minor)
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Version, String> {
        Version::parse(&text).ok_or_else(|| {
            format!("\"{text}\" is no version; write \"6.11\" or, of a stable series, \"6.1.106\"")
        })
    }
}

/// Whether a change that went into these versions is in `version`.
fn has(change: &[Version], version: Version) -> bool {
    let own = change.iter().find(|at| at.patch.is_some() && at.series() == version.series());
    match own {
        Some(at) => version.patch.unwrap_or(0) >= at.patch.unwrap_or(0),
        None => change.iter().any(|at| at.patch.is_none() && version.series() >= at.series()),
    }
}

/// A cell that says otherwise, or nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Disagreement {
    /// The plan.
    pub plan: String,
    /// The kernel.
    pub kernel: String,
    /// What the sources say.
    pub expected: Verdict,
    /// What the trials say.
    pub verdict: Verdict,
    /// Why the trials do not tell.
    pub reason: Option<String>,
    /// The commit that makes the difference.
    pub commit: Option<String>,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Disagreement { plan, kernel, expected, verdict, reason, commit } = self;
        write!(f, "{plan} on {kernel}: {verdict}, but {expected} by the sources")?;
        if let Some(commit) = commit {
            write!(f, " (\"{commit}\")")?;
        }
        reason.as_ref().map_or(Ok(()), |reason| write!(f, ": {reason}"))
    }
}

impl Expected {
    /// Reads a file; `file` is its name, for messages.
    ///
    /// # Errors
    /// The first mistake, with its line.
    pub fn parse(text: &str, file: &str) -> Result<Expected, ExpectError> {
        let expected: Expected = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            ExpectError::Syntax {
                file: file.to_owned(),
                line: 1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count(),
                problem: error.message().trim().replace('\n', "; "),
            }
        })?;
        for (index, bug) in expected.bugs.iter().enumerate() {
            if expected.bugs[..index].iter().any(|other| other.plan == bug.plan) {
                return Err(ExpectError::Twice { file: file.to_owned(), plan: bug.plan.clone() });
            }
        }
        Ok(expected)
    }

    /// The plans that it tells of.
    pub fn plans(&self) -> impl Iterator<Item = &str> {
        self.bugs.iter().map(|bug| bug.plan.as_str())
    }

    /// What the sources say of a kernel; `None` if they say nothing of the plan, or the kernel is not
    /// named by its version (`debian-6.1.192`).
    pub fn of(&self, plan: &str, kernel: &str) -> Option<Verdict> {
        let bug = self.bugs.iter().find(|bug| bug.plan == plan)?;
        let named = |names: &[String]| names.iter().any(|name| name == kernel);
        if named(&bug.affected) {
            return Some(Verdict::Affected);
        }
        if named(&bug.not_affected) {
            return Some(Verdict::NotAffected);
        }
        let version = Version::parse(kernel.strip_prefix("debian-")?)?;
        let came = bug.since.is_empty() || has(&bug.since, version);
        let is = came && !has(&bug.fixed, version);
        Some(if is { Verdict::Affected } else { Verdict::NotAffected })
    }

    /// Every cell that does not say what the sources say.
    pub fn disagreements(&self, matrix: &Matrix) -> Vec<Disagreement> {
        let differs = |cell: &Cell| {
            let expected = self.of(&cell.plan, &cell.kernel)?;
            let bug = self.bugs.iter().find(|bug| bug.plan == cell.plan);
            (expected != cell.verdict).then(|| Disagreement {
                plan: cell.plan.clone(),
                kernel: cell.kernel.clone(),
                expected,
                verdict: cell.verdict,
                reason: cell.reason.clone(),
                commit: bug.and_then(|bug| bug.commit.clone()),
            })
        };
        matrix.cells.iter().filter_map(differs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
[[bug]]
plan = "old"
commit = "ext4: mend it"
fixed = ["5.10.226", "6.1.106", "6.11"]

[[bug]]
plan = "young"
since = ["6.10"]
fixed = ["6.12.110", "7.3"]
affected = ["built-6.1.192-without-M42"]
not_affected = ["debian-7.2.13"]
"#;

    fn says(plan: &str, kernel: &str) -> Option<bool> {
        let expected = Expected::parse(FILE, "e.toml").unwrap();
        expected.of(plan, kernel).map(|verdict| verdict == Verdict::Affected)
    }

    #[test]
    fn versions_of_stable_series_and_of_mainline() {
        for (kernel, affected) in [
            ("debian-5.10.223", true),
            ("debian-5.10.226", false),
            ("debian-6.1.105", true),
            ("debian-6.1.106", false),
            // A series between with no fix of its own.
            ("debian-6.6.1", true),
            ("debian-6.11.0", false),
            ("debian-6.12.1", false),
            ("debian-7.0.4", false),
        ] {
            assert_eq!(says("old", kernel), Some(affected), "{kernel}");
        }
        for (kernel, affected) in [
            ("debian-6.1.192", false),
            ("debian-6.9.9", false),
            ("debian-6.12.107", true),
            ("debian-6.12.110", false),
            ("debian-6.16.1", true),
            ("debian-7.2.12", true),
            ("debian-7.2.13", false),
            ("debian-7.3.4", false),
            ("built-6.1.192-without-M42", true),
        ] {
            assert_eq!(says("young", kernel), Some(affected), "{kernel}");
        }
        assert_eq!(says("old", "built-6.1.192"), None);
        assert_eq!(says("none", "debian-6.1.192"), None);
    }

    #[test]
    fn a_cell_that_differs_or_does_not_tell_is_named() {
        let cell = |plan: &str, kernel: &str, verdict, reason: Option<&str>| Cell {
            plan: plan.to_owned(),
            kernel: kernel.to_owned(),
            verdict,
            error: 0.0,
            hits: 0,
            trials: 7,
            invalid: 0,
            reason: reason.map(str::to_owned),
        };
        let matrix = Matrix {
            seed: 1,
            error: 0.05,
            plans: Vec::new(),
            kernels: Vec::new(),
            passed_over: Vec::new(),
            cells: vec![
                cell("old", "debian-5.10.223", Verdict::Affected, None),
                cell("old", "debian-5.10.262", Verdict::Affected, None),
                cell("old", "debian-6.1.106", Verdict::Inconclusive, Some("does not boot")),
            ],
        };
        let expected = Expected::parse(FILE, "e.toml").unwrap();
        let told: Vec<String> =
            expected.disagreements(&matrix).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "old on debian-5.10.262: affected, but not-affected by the sources \
                 (\"ext4: mend it\")",
                "old on debian-6.1.106: inconclusive, but not-affected by the sources \
                 (\"ext4: mend it\"): does not boot",
            ]
        );
    }

    #[test]
    fn mistakes_are_told_with_file_and_line() {
        let error = |text: &str| Expected::parse(text, "e.toml").unwrap_err().to_string();
        let version = error("[[bug]]\nplan = \"a\"\nfixed = [\"six\"]\n");
        assert!(version.starts_with("e.toml:3: ") && version.contains("6.1.106"), "{version}");
        assert!(error("[[bug]]\nplan = \"a\"\nfixd = []\n").contains("fixd"));
        assert!(error("[[bug]]\nplan = \"a\"\n[[bug]]\nplan = \"a\"\n").contains("twice"));
    }

    #[test]
    fn the_built_in_file_tells_of_built_in_plans_as_they_do() {
        let expected = Expected::parse(BUILT_IN, "fixes.toml").unwrap();
        for plan in expected.plans() {
            let of = crate::plan::Plan::find(plan).unwrap();
            for (kernels, verdict) in [
                (&of.kernels.affected, Verdict::Affected),
                (&of.kernels.fixed, Verdict::NotAffected),
            ] {
                for kernel in kernels.iter().filter(|kernel| kernel.starts_with("debian-")) {
                    assert_eq!(expected.of(plan, kernel), Some(verdict), "{plan} on {kernel}");
                }
            }
        }
    }
}
