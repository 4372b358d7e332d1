//! The catalogue: packaged kernels that are known to have existed.
//!
//! In: `catalogue.tsv`, compiled in. Out: [`Entry`]s.
//! Must not know: which of them the archive still has.

use std::sync::LazyLock;

/// One package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The suite that has it.
    pub suite: &'static str,
    /// The package with the image.
    pub package: &'static str,
    /// The package's version.
    pub version: &'static str,
}

impl Entry {
    /// The kernel's name: "debian-" and the upstream part of the version.
    pub fn name(&self) -> String {
        format!("debian-{}", self.upstream())
    }

    /// The kernel's version without the packaging's part.
    pub fn upstream(&self) -> &'static str {
        self.version.split('-').next().unwrap_or(self.version)
    }
}

/// All packages, oldest kernel first; of one kernel, the one to be preferred first.
pub fn catalogue() -> &'static [Entry] {
    static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| parse(include_str!("catalogue.tsv")));
    &ENTRIES
}

/// The packages of the kernel `name`, the one to be preferred first.
pub(super) fn named(name: &str) -> Vec<&'static Entry> {
    catalogue().iter().filter(|entry| entry.name() == name).collect()
}

fn parse(text: &'static str) -> Vec<Entry> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let (suite, package) = (fields.next()?, fields.next()?);
            Some(Entry { suite, package, version: fields.next()? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_an_entry_and_every_kernel_is_in_one_place() {
        let text = include_str!("catalogue.tsv");
        let lines = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(catalogue().len(), lines);
        let mut names: Vec<String> = catalogue().iter().map(Entry::name).collect();
        names.dedup();
        let runs = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), runs, "a kernel's lines are not together");
    }

    #[test]
    fn the_kernels_of_the_founding_bug_are_there() {
        let package = |name| named(name).first().map(|entry| entry.package);
        assert_eq!(package("debian-5.10.223"), Some("linux-image-5.10.0-32-cloud-amd64"));
        assert_eq!(package("debian-5.10.262"), Some("linux-image-5.10.0-46-cloud-amd64"));
        for name in ["debian-6.1.192", "debian-6.12.107", "debian-7.3.4"] {
            assert!(package(name).is_some(), "{name}");
        }
    }
}
