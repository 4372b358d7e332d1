//! `racegate-pmem` as a program: its pages, its rules, its errors, its ends.
//!
//! Goal: a page is slow when a rule says so and whenever it is armed, nothing that was stored is
//! lost, nobody hangs and nothing stays mounted, however the server ends. Method: the real
//! program, the kernel's FUSE, files mapped here and in children that may die of it.
//!
//! A machine on which FUSE cannot be mounted skips all tests but those of the command line; how
//! many is counted, and the reason told.

#[path = "../support/daemon.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod support;

mod ends;
mod errors;
mod machine;
mod pages;
mod rules;
mod server;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

/// Mode of this program in which it touches a page, and may die of it.
const TOUCH: &str = "touch-a-page";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().is_some_and(|mode| mode == TOUCH) {
        return server::touch(&words.collect::<Vec<_>>());
    }
    let machine = machine::Machine::look();
    let mut trials = Vec::new();
    // A panic is the failure, as in other tests.
    let mut add = |why_not: Option<&str>, tests: &[(&'static str, fn())]| {
        for (name, test) in tests {
            let (name, test) = (*name, *test);
            let run = move || -> Result<(), Failed> {
                test();
                Ok(())
            };
            trials.push(Trial::test(name, run).with_ignored_flag(why_not.is_some()));
            if let Some(why) = why_not {
                println!("skipped {name}: {why}");
            }
        }
    };
    add(None, errors::TESTS);
    add(machine.no_fuse(), pages::TESTS);
    add(machine.no_fuse(), rules::TESTS);
    add(machine.no_fuse(), ends::TESTS);
    add(machine.no_namespace(), pages::NAMESPACE_TESTS);
    add(machine.not_root(), pages::ROOT_TESTS);
    add(machine.not_root(), ends::ROOT_TESTS);
    add(machine.not_root(), errors::ROOT_TESTS);
    let conclusion = libtest_mimic::run(&Arguments::from_args(), trials);
    println!("page server: {} skipped", conclusion.num_ignored);
    conclusion.exit_code()
}
