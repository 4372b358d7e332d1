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

/// Names of the packaged kernels of each series ("5.10"), series and kernels from old to new. A kernel
/// that is no release of its series (7.3~rc7) is left out.
pub fn series() -> Vec<(String, Vec<String>)> {
    let number = |text: &str| text.parse::<u32>().ok();
    let mut kernels: Vec<((u32, u32), u32, String)> = catalogue()
        .iter()
        .filter_map(|entry| {
            let mut numbers = entry.upstream().split('.');
            let (major, minor) = (number(numbers.next()?)?, number(numbers.next()?)?);
            Some(((major, minor), number(numbers.next()?)?, entry.name()))
        })
        .collect();
    kernels.sort();
    kernels.dedup();
    let mut series: Vec<(String, Vec<String>)> = Vec::new();
    for ((major, minor), _, kernel) in kernels {
        let name = format!("{major}.{minor}");
        match series.last_mut().filter(|(last, _)| *last == name) {
            Some((_, kernels)) => kernels.push(kernel),
            None => series.push((name, vec![kernel])),
        }
    }
    series
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
    fn series_go_from_old_to_new() {
        let series = series();
        let names: Vec<&str> = series.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names[..3], ["5.10", "6.1", "6.12"]);
        let (_, kernels) = &series[0];
        assert!(kernels.len() >= 6, "{kernels:?}");
        assert_eq!(kernels[0], "debian-5.10.218");
        assert!(series[1].1.iter().all(|name| name.starts_with("debian-6.1.")), "{series:?}");
        assert!(series.iter().all(|(_, kernels)| !kernels.iter().any(|k| k.contains('~'))));
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
