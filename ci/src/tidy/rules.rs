//! The rules, each a function of a path and a text.

use std::fmt;
use std::path::Path;
use std::process::Command;

/// Lines of a source file beyond which it must be split.
const LINES_MAX: usize = 600;
/// Crates that do no I/O, read no clock and start no thread.
const PURE: [&str; 4] = ["ext4-layout", "pipeline", "delalloc", "explorer"];
/// What a pure crate must not name outside its tests.
const IMPURE: [&str; 6] =
    ["std::fs", "std::net", "std::thread", "std::time::Instant", "SystemTime", "std::process"];
/// Where `unsafe` may stand.
const UNSAFE_HOMES: [&str; 7] = [
    "backend/device/",
    // Loaded into QEMU, which cannot carry all of `device`.
    "backend/store-shim/",
    // A store that faults.
    "guest-tests/agent/src/background.rs",
    "guest-tests/agent/src/mapping.rs",
    // Requests that rustix does not wrap.
    "guest-tests/agent/src/ioctl.rs",
    // The driver's side of a queue: its buffers are shared with the backend.
    "benches/latency/client.rs",
    "benches/shadow/client.rs",
];

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Breach {
    path: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.rule)
    }
}

/// Host names of the package archives this machine is set up for: none may be in the tree.
pub(super) fn archive_hosts() -> Vec<String> {
    let listed = Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]).output();
    let Ok(listed) = listed else {
        return Vec::new();
    };
    let mut hosts: Vec<String> = String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter_map(|uri| Some(uri.split_once("://")?.1.split('/').next()?.to_owned()))
        .filter(|host| host.contains('.'))
        .collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

/// Applies every rule to one file.
pub(super) fn apply(path: &str, text: &str, hosts: &[String], breaches: &mut Vec<Breach>) {
    let mut breach = |line: usize, rule: String| {
        breaches.push(Breach { path: path.to_owned(), line, rule });
    };
    if path != "Cargo.lock" {
        for (index, line) in text.lines().enumerate() {
            if let Some(host) = hosts.iter().find(|host| line.contains(host.as_str())) {
                breach(index + 1, format!("names an archive host ({host})"));
            }
        }
    }
    if Path::new(path).extension().is_none_or(|extension| extension != "rs") {
        return;
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        breach(LINES_MAX, format!("{lines} lines; split it ({LINES_MAX} at most)"));
    }
    let is_test = is_test(path);
    if !text.starts_with("//!") && !is_test {
        breach(1, "no module header (`//!`)".to_owned());
    }
    let pure = PURE.iter().any(|name| path.starts_with(&format!("backend/{name}/src/")));
    let mut in_tests = is_test;
    for (index, line) in text.lines().enumerate() {
        in_tests |= line.trim_start().starts_with("#[cfg(test)]");
        let code = line.split("//").next().unwrap_or_default();
        if !path.starts_with("ci/") {
            // A bench may pace its load; nothing may wait by sleeping.
            for call in ["thread::sleep(", "time::sleep(", "#[ignore"] {
                if code.contains(call) && !path.starts_with("benches/") {
                    breach(index + 1, format!("`{call}`: wait for a named condition instead"));
                }
            }
            let has_unsafe = code.contains("unsafe {") || code.contains("unsafe impl");
            if has_unsafe && !UNSAFE_HOMES.iter().any(|home| path.starts_with(home)) {
                breach(index + 1, "unsafe code outside `device`".to_owned());
            }
        }
        if let Some(name) = IMPURE.iter().find(|name| pure && !in_tests && code.contains(**name)) {
            breach(index + 1, format!("`{name}` in a pure crate"));
        }
    }
    if pure && path.ends_with("src/lib.rs") && !text.contains("#![forbid(unsafe_code)]") {
        breach(1, "a pure crate without `#![forbid(unsafe_code)]`".to_owned());
    }
}

/// Whether the whole file is test code.
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

#[cfg(test)]
mod tests {
    use super::{Breach, apply};

    fn breaches(path: &str, text: &str) -> Vec<Breach> {
        let mut found = Vec::new();
        apply(path, text, &["mirror.example".to_owned()], &mut found);
        found
    }

    fn rules(path: &str, text: &str) -> Vec<String> {
        breaches(path, text).into_iter().map(|breach| breach.rule).collect()
    }

    #[test]
    fn clean_source_passes() {
        assert_eq!(breaches("backend/device/src/a.rs", "//! Header.\nfn a() {}\n"), []);
    }

    #[test]
    fn missing_header_is_caught() {
        assert_eq!(rules("backend/device/src/a.rs", "fn a() {}\n"), ["no module header (`//!`)"]);
    }

    #[test]
    fn long_file_is_caught() {
        let text = format!("//! Header.\n{}", "fn a() {}\n".repeat(600));
        assert_eq!(rules("ci/src/a.rs", &text), ["601 lines; split it (600 at most)"]);
    }

    #[test]
    fn archive_host_is_caught() {
        assert_eq!(
            rules("README.md", "see http://mirror.example/debian\n"),
            ["names an archive host (mirror.example)"]
        );
    }

    #[test]
    fn sleep_is_caught_and_comments_are_not() {
        let text = "//! Header.\n// thread::sleep( is banned\nstd::thread::sleep(d);\n";
        assert_eq!(
            rules("guest-tests/campaign/src/a.rs", text),
            ["`thread::sleep(`: wait for a named condition instead"]
        );
    }

    #[test]
    fn unsafe_is_caught_outside_its_homes() {
        let text = "//! Header.\nfn a() { unsafe { b() } }\n";
        assert_eq!(rules("backend/racegate/src/a.rs", text), ["unsafe code outside `device`"]);
        assert_eq!(breaches("backend/device/src/a.rs", text), []);
    }

    #[test]
    fn impure_call_is_caught_outside_tests() {
        let text = "//! Header.\nuse std::fs;\n#[cfg(test)]\nuse std::thread;\n";
        assert_eq!(rules("backend/explorer/src/a.rs", text), ["`std::fs` in a pure crate"]);
    }

    #[test]
    fn pure_crate_must_forbid_unsafe() {
        assert_eq!(
            rules("backend/pipeline/src/lib.rs", "//! Header.\n"),
            ["a pure crate without `#![forbid(unsafe_code)]`"]
        );
    }
}
