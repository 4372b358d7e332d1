// Goal: every mutant is found in its own scenario by an invariant that the catalogue names, and
// every real kernel shows exactly the bugs that its source has.
// Method: exhaustive searches; the presence table is section 4 of the study of the sources.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use delalloc::{DelallocModel, Flag, Kernel, Mutant, Scenario, Selection, mutants, scenarios};
use explorer::{OneWorker, Options, Report, explore};

fn search(model: &DelallocModel, stop_at_first: bool) -> Report {
    let options = Options {
        stop_at_first,
        shrink_states: 0,
        ..Options::default()
    };
    explore(model, &options, &OneWorker, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap()
}

fn scenario(name: &str) -> Scenario {
    Scenario::find(name).unwrap()
}

/// Names of the invariants broken, `none` if the search ended without.
fn broken(report: &Report) -> Vec<String> {
    report.violations.iter().map(|v| v.name.clone()).collect()
}

#[test]
fn print_matrix() {
    for mutant in mutants() {
        let base = Kernel::find(mutant.base).unwrap();
        let model = DelallocModel::new(scenario(mutant.scenario), base, Some(mutant));
        let found = search(&model, false);
        let clean = search(
            &DelallocModel::new(scenario(mutant.scenario), base, None),
            false,
        );
        print!(
            "{:5} {:28} caught {:?} of {:?} states {:?}; base {:?} states {:?} complete {} | ",
            mutant.id,
            mutant.scenario,
            broken(&found),
            mutant.caught_by,
            found.coverage.states,
            broken(&clean),
            clean.coverage.states,
            clean.coverage.complete()
        );
        for kernel in Kernel::all() {
            let model = DelallocModel::new(scenario(mutant.scenario), kernel, None);
            print!(" {:?}", broken(&search(&model, false)));
        }
        println!();
    }
}
