//! From names on the command line, or in a schedule, to the model that they mean.

use std::path::Path;

use anyhow::{Context, bail};
use delalloc::{BuildError, Kernel, Mutant, Scenario};
use explorer::Schedule;

use super::Model;

/// A model with the names that it was asked for by.
pub(super) struct Picked {
    pub(super) model: Model,
    pub(super) scenario: String,
    pub(super) about: String,
    pub(super) variant: &'static str,
    pub(super) mutant: Option<&'static Mutant>,
    /// The file that the scenario came from, if it is none of the built-in ones.
    file: Option<String>,
}

impl Picked {
    /// Resolves names. Left out: the scenario and the kernel are those of the mutant; without one
    /// the kernel is the newest.
    pub(super) fn new(
        scenario: Option<&str>,
        variant: Option<&str>,
        mutant: Option<&str>,
    ) -> anyhow::Result<Picked> {
        let mutant = mutant.map(Mutant::find).transpose()?;
        let newest = Kernel::NAMES[Kernel::NAMES.len() - 1];
        let kernel = Kernel::find(variant.or(mutant.map(|m| m.base)).unwrap_or(newest))?;
        let name = scenario.or(mutant.map(|m| m.scenario)).ok_or(BuildError::Nothing)?;
        let file = is_file(name).then(|| name.to_owned());
        let scenario = if file.is_some() { read(name)? } else { Scenario::find(name)? };
        Ok(Picked {
            scenario: scenario.name.clone(),
            about: scenario.about.clone(),
            variant: kernel.name(),
            mutant,
            file,
            model: Model::new(scenario, kernel, mutant),
        })
    }

    /// The command that follows a schedule of this model.
    pub(super) fn replay_command(&self, schedule: &Schedule) -> String {
        let file = self.file.as_ref().map(|file| format!("{file} ")).unwrap_or_default();
        format!("racegate explore {file}--replay {schedule}")
    }

    /// `SCENARIO on VARIANT`, with the mutant if there is one.
    pub(super) fn title(&self) -> String {
        let mutant = self.mutant.map(|m| format!(" with {}", m.id)).unwrap_or_default();
        format!("{} on {}{mutant}", self.scenario, self.variant)
    }
}

/// Whether a scenario is given as a file: built-in names have neither dot nor slash.
fn is_file(name: &str) -> bool {
    name.contains(['.', '/'])
}

fn read(path: &str) -> anyhow::Result<Scenario> {
    let text = std::fs::read_to_string(Path::new(path))
        .with_context(|| format!("Cannot read scenario {path}"))?;
    let scenario = Scenario::parse(&text).with_context(|| format!("Cannot use scenario {path}"))?;
    // The name becomes part of schedules, which are split at colons and pasted into shells.
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if scenario.name.is_empty() || !scenario.name.chars().all(plain) {
        bail!(
            "Cannot use scenario {path}: `name` is \"{}\"; use lower-case letters, digits and `-`",
            scenario.name.escape_debug()
        );
    }
    Ok(scenario)
}

/// The parts of a model's name as schedules print it: `SCENARIO@VARIANT[+MUTANT]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Named<'a> {
    pub(super) scenario: Option<&'a str>,
    pub(super) variant: Option<&'a str>,
    pub(super) mutant: Option<&'a str>,
}

impl<'a> Named<'a> {
    pub(super) fn parse(name: &'a str) -> Named<'a> {
        let (scenario, rest) = name.split_once('@').unwrap_or((name, ""));
        let (variant, mutant) = match rest.split_once('+') {
            Some((variant, mutant)) => (variant, Some(mutant)),
            None => (rest, None),
        };
        let present = |text: &'a str| (!text.is_empty()).then_some(text);
        Named { scenario: present(scenario), variant: present(variant), mutant }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_found_again_by_the_name_that_its_schedules_carry() {
        for (scenario, mutant) in [(Some("mkwrite-fallocate"), None), (None, Some("M01"))] {
            let picked = Picked::new(scenario, Some("linux-6.1.192"), mutant).unwrap();
            let name = explorer::Model::name(&picked.model);
            let named = Named::parse(&name);
            let again = Picked::new(named.scenario, named.variant, named.mutant).unwrap();
            assert_eq!(explorer::Model::name(&again.model), name);
            let identity = explorer::Model::identity(&picked.model);
            assert_eq!(explorer::Model::identity(&again.model), identity);
        }
    }

    #[test]
    fn unknown_names_are_refused_with_the_list_of_what_exists() {
        let refusal = |scenario, variant, mutant| {
            let picked = Picked::new(scenario, variant, mutant);
            format!("{:#}", picked.err().expect("must be refused"))
        };
        let known = Some("mkwrite-fallocate");
        assert!(refusal(Some("mkwrite"), None, None).contains("mkwrite-fallocate"));
        assert!(refusal(known, Some("linux-6.1"), None).contains("linux-6.1.192"));
        assert!(refusal(known, None, Some("M99")).contains("M01"));
        assert!(refusal(None, None, None).contains("name a scenario or a mutant"));
        assert!(refusal(Some("no/such.toml"), None, None).contains("no/such.toml"));
    }
}
