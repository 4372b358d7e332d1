//! End-to-end tests: real kernels, real QEMU, racegate's own disk.
//!
//! In: the command line of any Rust test program. Out: its usual report, and one line with how
//! many guest tests passed, failed and were skipped.
//!
//! What cannot run here (a QEMU that is not to be had, a package that is gone) is listed as
//! ignored with the reason, and counted. In CI, nothing executed is a failure.

mod benched;
mod boot;
mod bugs;
mod campaigns;
mod differential;
mod durable;
mod explored;
mod faults;
mod founding;
mod hunts;
mod integrity;
mod isolation;
mod layout;
mod machine;
mod moved;
mod pmem_dax;
mod pmem_ends;
mod pmem_errors;
mod pmem_latency;
mod pmem_pages;
mod shadow;
mod shadow_delalloc;
mod stores;
mod survive;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use machine::Machine;

fn main() -> ExitCode {
    // The harness starts its backends as `THIS_PROGRAM blk ...` and the like; a word that stands
    // alone is a filter of tests.
    let own = || std::env::args_os().skip(1);
    let mode = own().next().filter(|_| own().len() > 1);
    match mode.as_ref().and_then(|mode| mode.to_str()) {
        Some("blk") => return racegate::blk::main(own()),
        Some("pmem") => return racegate::pmem::main(own()),
        Some("pmem-vhost") => return racegate::pmem_vhost::main(own()),
        Some("stores") => return racegate::stores::main(own()),
        // Tests of the tool itself start it as a process of its own, to kill it.
        Some("campaign" | "replay" | "bisect" | "minimise" | "explore" | "bench") => {
            return racegate::cli::main();
        }
        _ => {}
    }
    let args = Arguments::from_args();
    let machine = match Machine::prepare() {
        Ok(machine) => machine,
        Err(error) => {
            eprintln!("guest tests: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut tests: Vec<Trial> = Vec::new();
    tests.extend(boot::tests(&machine));
    tests.extend(integrity::tests(&machine));
    tests.extend(layout::tests(&machine));
    tests.extend(faults::tests(&machine));
    tests.extend(durable::tests(&machine));
    tests.extend(survive::tests(&machine));
    tests.extend(moved::tests(&machine));
    tests.extend(pmem_errors::tests(&machine));
    tests.extend(pmem_ends::tests(&machine));
    tests.extend(pmem_pages::tests(&machine));
    tests.extend(pmem_dax::tests(&machine));
    tests.extend(pmem_latency::tests(&machine));
    tests.extend(founding::tests(&machine));
    tests.extend(campaigns::tests(&machine));
    tests.extend(isolation::tests(&machine));
    tests.extend(benched::tests(&machine));
    tests.extend(bugs::tests(&machine));
    tests.extend(explored::tests(&machine));
    tests.extend(hunts::tests(&machine));
    tests.extend(shadow_delalloc::tests(&machine));
    tests.extend(shadow::tests(&machine));
    tests.extend(stores::tests(&machine));
    tests.extend(differential::tests(&machine));

    let conclusion = libtest_mimic::run(&args, tests);
    let (passed, failed) = (conclusion.num_passed, conclusion.num_failed);
    println!("guest tests: {passed} passed, {failed} failed, {} skipped", conclusion.num_ignored);
    if passed + failed == 0 && std::env::var_os("CI").is_some() {
        eprintln!("guest tests: none was executed; in CI that is a failure");
        return ExitCode::FAILURE;
    }
    if conclusion.has_failed() {
        eprintln!("guest tests: repeat one with: cargo test --package guest-tests -- --exact NAME");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
