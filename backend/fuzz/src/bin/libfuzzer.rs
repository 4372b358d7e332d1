//! The fuzzer: libFuzzer over one target, named by `RACEGATE_FUZZ_TARGET`.
//!
//! In: libFuzzer's own command line; with `RACEGATE_FUZZ_SEEDS`, a folder to put seeds into first.
//! Out: libFuzzer's report. `cargo ci fuzz` builds and runs it.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<&'static Target> = OnceLock::new();

fn target() -> &'static Target {
    TARGET.get_or_init(|| {
        device::fuzz::ignore_broken_pipes();
        let name = std::env::var("RACEGATE_FUZZ_TARGET").unwrap_or_default();
        let target = fuzz::find(&name)
            .unwrap_or_else(|| panic!("RACEGATE_FUZZ_TARGET={name}: no such target"));
        if let Ok(folder) = std::env::var("RACEGATE_FUZZ_SEEDS") {
            for (index, seed) in (target.seeds)().iter().enumerate() {
                let path = Path::new(&folder).join(format!("seed-{index}"));
                std::fs::write(&path, seed).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            }
        }
        target
    })
}

fuzz_target!(init: { target(); }, |input: &[u8]| {
    target().check(input);
});
