//! Goal: every mutant is found in its own scenario by an invariant that the catalogue names, and
//! every real kernel shows exactly the bugs that its source has.
//! Method: exhaustive searches; the presence table is section 4 of the study of the sources.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use delalloc::{DelallocModel, Kernel, Mutant, Scenario, mutants, scenarios};
use explorer::{OneWorker, Options, Report, explore};

fn search(model: &DelallocModel) -> Report {
    let options =
        Options { stop_at_first: false, shrink_states: 0, count_states: 0, ..Options::default() };
    explore(model, &options, &OneWorker, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Names of the invariants broken, after a search that nothing cut.
fn broken(model: &DelallocModel) -> BTreeSet<String> {
    let report = search(model);
    assert!(report.coverage.complete(), "{:?}", report.coverage);
    report.violations.into_iter().map(|v| v.name).collect()
}

fn own_scenario(mutant: &Mutant) -> Scenario {
    Scenario::find(mutant.scenario).unwrap()
}

fn named(mutant: &Mutant) -> BTreeSet<String> {
    let names = mutant.caught_by.iter().map(|invariant| invariant.name());
    names.map(str::to_owned).collect()
}

#[test]
fn every_mutant_is_found_by_nothing_but_the_invariants_of_the_catalogue() {
    for mutant in mutants() {
        let base = Kernel::find(mutant.base).unwrap();
        let model = DelallocModel::new(own_scenario(mutant), base, Some(mutant));
        let found = broken(&model);
        let expected = named(mutant);
        assert!(
            !found.is_empty() && found.is_subset(&expected),
            "{mutant}: found {found:?}, the catalogue has {expected:?}; \
             replay: racegate explore --mutant {mutant}"
        );
    }
}

#[test]
fn the_fix_makes_the_difference() {
    for mutant in mutants() {
        let base = Kernel::find(mutant.base).unwrap();
        // What the bug needs besides, and later kernels have, is no bug in this scenario.
        let kernel = base.without(mutant.also);
        let model = DelallocModel::with_flags(own_scenario(mutant), kernel);
        assert_eq!(broken(&model), BTreeSet::new(), "{mutant} without the mutation");
    }
}

/// Which of [`Kernel::NAMES`] has which bug. Bugs of kernels older than these are in none.
const PRESENT: &[(&str, [bool; 5])] = &[
    ("M01", [true, false, false, false, false]),
    ("M14", [true, false, false, false, false]),
    ("M15", [true, false, true, true, false]),
    ("M16", [true, true, true, true, false]),
    ("M17", [true, true, true, true, false]),
    ("M20", [true, false, false, false, false]),
    ("M22", [true, false, false, false, false]),
    ("M24", [true, true, true, true, false]),
    ("M25", [true, true, true, false, false]),
    ("M28", [true, false, false, false, false]),
    ("M30", [true, true, true, false, false]),
    ("M32", [true, true, false, false, false]),
    ("M33", [true, true, true, true, false]),
    ("M36", [true, true, false, false, false]),
    ("M42", [false, false, false, true, false]),
    ("M45", [true, true, true, true, false]),
];

#[test]
fn real_kernels_show_the_bugs_of_their_sources() {
    for mutant in mutants() {
        let row = PRESENT.iter().find(|(id, _)| *id == mutant.id);
        let present = row.map_or([false; 5], |(_, present)| *present);
        for (kernel, present) in Kernel::all().into_iter().zip(present) {
            let found = broken(&DelallocModel::new(own_scenario(mutant), kernel, None));
            let expected = match (mutant.id, kernel.name()) {
                // Same race, looked at through the shrinker.
                ("M01s", "linux-5.10.223") => true,
                // The reader of this scenario meets M32 there. (5.10.223 has M19 too, but flushes
                // before it punches, which hides it in this scenario.)
                ("M19", "linux-5.10.223" | "linux-5.10.262") => {
                    assert_eq!(found, BTreeSet::from(["A7".to_owned()]));
                    continue;
                }
                _ => present,
            };
            assert_eq!(!found.is_empty(), expected, "{mutant} on {kernel}: {found:?}");
            assert!(found.is_subset(&named(mutant)), "{mutant} on {kernel}: {found:?}");
        }
    }
}

#[test]
fn every_scenario_parses_and_every_mutant_has_one_of_its_own() {
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios")).unwrap();
    let files: BTreeSet<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .map(|name| name.trim_end_matches(".toml").to_owned())
        .collect();
    let built_in: BTreeSet<String> = scenarios().into_iter().map(|s| s.name).collect();
    assert_eq!(built_in, files);
    let own: BTreeSet<String> = mutants().iter().map(|m| m.scenario.to_owned()).collect();
    assert_eq!(own.len(), mutants().len());
    assert!(own.is_subset(&built_in));
}

#[test]
fn names_that_do_not_exist_are_refused_with_what_does() {
    use delalloc::Selection;
    let select = |scenario, variant, mutant| {
        DelallocModel::select(Selection { scenario, variant, mutant }).unwrap_err().to_string()
    };
    assert_eq!(
        select(Some("mkwrite-fallocate"), Some("linux-5.10.1"), None),
        "unknown variant `linux-5.10.1`; known: linux-5.10.223, linux-5.10.262, linux-6.1.192, \
         linux-6.12.107, linux-7.3.4"
    );
    assert!(
        select(None, None, Some("M99")).starts_with("unknown mutant `M99`; known: M01, M01s, ")
    );
    assert!(select(Some("x"), None, None).contains("mkwrite-fallocate, "));
    assert_eq!(select(None, None, None), "nothing to explore: name a scenario or a mutant");
}
