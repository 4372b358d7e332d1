//! `racegate explore list`: what can be named.

use std::io::{self, Write};

use delalloc::{mutants, scenarios, variants};

/// Prints scenarios, kernel versions and mutants.
pub(super) fn list(out: &mut impl Write) -> io::Result<()> {
    let scenarios = scenarios();
    let width = scenarios.iter().map(|scenario| scenario.name.len()).max().unwrap_or(0);
    writeln!(out, "Scenarios:")?;
    for scenario in &scenarios {
        writeln!(out, "  {:width$}  {}", scenario.name, scenario.about)?;
    }
    writeln!(out, "\nKernel versions (--variant):")?;
    for kernel in variants() {
        writeln!(out, "  {}", kernel.name())?;
    }
    writeln!(out, "\nMutants (--mutant), each with its kernel, its scenario and what catches it:")?;
    for mutant in mutants() {
        let caught_by: Vec<&str> = mutant.caught_by.iter().map(|i| i.name()).collect();
        let (id, base, scenario) = (mutant.id, mutant.base, mutant.scenario);
        writeln!(out, "  {id:5} {base:14}  {scenario:width$}  {}", caught_by.join(" "))?;
        writeln!(out, "        {}", mutant.subject)?;
    }
    Ok(())
}
