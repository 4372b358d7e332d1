//! Goal: every seed and every input that once broke something runs.
//! Method: each target on its seeds, on their beginnings, and on `regressions/TARGET/`; the
//! canaries on inputs that trip them.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use fuzz::{TARGETS, Target, find};

#[test]
fn seeds_run() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        target.check(&[]);
        for seed in &seeds {
            assert!(seed.len() <= target.longest, "{}: a seed of {}", target.name, seed.len());
            target.check(seed);
            target.check(&seed[..seed.len() / 2]);
        }
    }
}

#[test]
fn regressions_run() {
    for target in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(target.name);
        let Ok(files) = fs::read_dir(folder) else { continue };
        for file in files {
            let path = file.expect("a folder").path();
            println!("{}", path.display());
            target.check(&fs::read(&path).expect("an input"));
        }
    }
}

/// The counting of bytes works without a fuzzer around it.
#[test]
fn leaks_and_balloons_are_noticed() {
    for (name, input) in [("canary-leak", b"L"), ("canary-balloon", b"B")] {
        let target: &Target = find(name).expect("a canary");
        target.check(b"harmless");
        assert!(catch_unwind(|| target.check(input)).is_err(), "{name} was not noticed");
    }
}
