//! Kernels built from Debian's source, with fixes taken out.
//!
//! In: a series, names of fixes. Out: a [`Kernel`] in the cache, named
//! `built-VERSION[-without-FIX...]`, that needs no modules.
//! Must not know: what a fix is about, QEMU.
//!
//! One tree per source package stays in the cache with its objects, so that after the first build
//! only the edited files are compiled. Before each build every file that was ever edited is put
//! back, and every edit is checked before the first is written.

mod edits;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};

pub use edits::{EditError, Fix};

use super::{Kernel, KernelError, Kernels, tree};
use crate::apt::{self, Apt, AptError, Record};
use crate::cache::{Cache, file_name};
use crate::process::{self, ProcessError};
use crate::{progress, setup};

/// What is switched on, besides `make tinyconfig`.
const CONFIG: &str = include_str!("build/guest.config");

/// Switches without which no guest boots; a source that dropped one needs another [`CONFIG`].
const VITAL: [&str; 4] =
    ["CONFIG_EXT4_FS=y", "CONFIG_VIRTIO_BLK=y", "CONFIG_VIRTIO_PCI=y", "CONFIG_BLK_DEV_INITRD=y"];

/// Suites that have the source of a series, the newest first.
const SERIES: [(&str, &[&str]); 4] = [
    ("5.10", &["bullseye-security", "bullseye"]),
    ("6.1", &["bookworm-security", "bookworm"]),
    ("6.12", &["trixie-security", "trixie", "bookworm-backports"]),
    ("7.2", &["sid", "trixie-backports"]),
];

/// A whole kernel on a busy machine.
const BUILD_LIMIT: Duration = Duration::from_secs(3 * 3600);
/// Unpacking 1.5 GB.
const UNPACK_LIMIT: Duration = Duration::from_secs(1800);

/// A kernel cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No suite has the source of that series.
    #[error("no source of series {series} is known; there are {}", SERIES.map(|(name, _)| name).join(", "))]
    Series {
        /// The series.
        series: String,
    },
    /// No fix of that name.
    #[error("no fix is named \"{name}\"; there are {}", Fix::names().collect::<Vec<_>>().join(", "))]
    Fix {
        /// The name.
        name: String,
    },
    /// The fix cannot be taken out of that series.
    #[error("{fix} cannot be taken out of series {series}, only of {known}")]
    NoVariant {
        /// The fix.
        fix: String,
        /// The series.
        series: String,
        /// Series for which there are edits.
        known: String,
    },
    /// The edits do not fit the source.
    #[error("{fix} cannot be taken out of {source_package}: nothing was built")]
    Edit {
        /// The fix.
        fix: String,
        /// The source.
        source_package: String,
        /// Which edit, and how.
        source: Box<EditError>,
    },
    /// The source lacks a switch of the configuration.
    #[error("the source has no {switch}: its configuration needs another name for it")]
    Switch {
        /// The switch.
        switch: &'static str,
    },
    /// The compiler or make failed.
    #[error("the kernel did not build; the whole output is in {}", log.display())]
    Make {
        /// Where the output is.
        log: PathBuf,
        /// The end of it.
        source: ProcessError,
    },
}

/// The name of a kernel of that version without those fixes.
fn name(upstream: &str, fixes: &[String]) -> String {
    let without: Vec<&str> = fixes.iter().map(String::as_str).collect();
    if without.is_empty() {
        format!("built-{upstream}")
    } else {
        format!("built-{upstream}-without-{}", without.join("-"))
    }
}

/// Where a built kernel is in the cache. The place goes by everything that it was made from, so
/// that another configuration or other edits are another kernel.
fn place(name: &str, version: &str, series: &str, fixes: &[Fix]) -> PathBuf {
    let mut hash = Sha256::new();
    hash.update(CONFIG);
    for edit in fixes.iter().filter_map(|fix| fix.edits(series)).flatten() {
        hash.update(format!("{edit:?}"));
    }
    let hash = apt::hex(&hash.finalize());
    Path::new("kernels").join(file_name(&format!("{name}_{version}_{}", &hash[..12])))
}

/// Whether `name` is that of a built kernel; its series and fixes.
pub(super) fn parse(name: &str) -> Option<(String, Vec<String>)> {
    let rest = name.strip_prefix("built-")?;
    let (version, fixes) = match rest.split_once("-without-") {
        Some((version, fixes)) => (version, fixes.split('-').map(str::to_owned).collect()),
        None => (rest, Vec::new()),
    };
    let series: Vec<&str> = version.split('.').take(2).collect();
    let numbers = series.len() == 2 && series.iter().all(|part| part.parse::<u32>().is_ok());
    numbers.then(|| (series.join("."), fixes))
}

fn fixes_of(series: &str, names: &[String]) -> Result<Vec<Fix>, BuildError> {
    let mut names = names.to_vec();
    names.sort();
    names.dedup();
    let find = |name: &String| {
        let fix = Fix::named(name).ok_or_else(|| BuildError::Fix { name: name.clone() })?;
        if fix.edits(series).is_none() {
            let (fix, known) = (name.clone(), fix.series().join(", "));
            return Err(BuildError::NoVariant { fix, series: series.to_owned(), known });
        }
        Ok(fix)
    };
    names.iter().map(find).collect()
}

impl Kernels {
    /// The kernel that was built under that name.
    pub(super) fn built(&self, name: &str) -> Result<Kernel, KernelError> {
        let missing = || {
            let (series, fixes) = parse(name).unwrap_or_default();
            let option = |text: String, fix: &String| text + " --without " + fix;
            let without = fixes.iter().fold(String::new(), option);
            KernelError::NotBuilt { name: name.to_owned(), series, without }
        };
        let (series, names) = parse(name).ok_or_else(missing)?;
        let fixes = fixes_of(&series, &names)?;
        let folder = self.cache.path("kernels");
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut versions: Vec<String> = entries
            .filter_map(|entry| {
                let file = entry.file_name().into_string().ok()?;
                let rest = file.strip_prefix(&format!("{name}_"))?;
                let (version, _) = rest.rsplit_once('_')?;
                let here = file_name(&place(name, version, &series, &fixes).display().to_string());
                (here == file_name(&format!("kernels/{file}"))).then(|| version.to_owned())
            })
            .collect();
        versions.sort();
        let version = versions.pop().ok_or_else(missing)?;
        self.made(name, &version, &series, &fixes)
    }

    /// Builds the newest kernel of `series` that the archive has, without the fixes of those names;
    /// gives it at once if it is in the cache.
    ///
    /// # Errors
    /// Programs or packages that are missing, a source that the edits do not fit, a build that
    /// fails.
    pub fn build(&self, series: &str, without: &[String]) -> Result<Kernel, KernelError> {
        let fixes = fixes_of(series, without)?;
        let names: Vec<String> = fixes.iter().map(|fix| fix.name.clone()).collect();
        let bar = progress::bar("kernels build");
        let (apt, record) = self.source_of(series, &bar)?;
        let upstream = record.version.split('-').next().unwrap_or(&record.version);
        let name = name(upstream, &names);
        let place = place(&name, &record.version, series, &fixes);
        if !self.cache.path(&place).is_dir() {
            setup::ensure_more(setup::BUILD_NEEDS, true)?;
            let _lock = self.cache.lock(&format!("build-{series}"))?;
            let tree = SourceTree::unpacked(&self.cache, &apt, &record, &bar)?;
            tree.configure(&bar)?;
            tree.edit(series, &fixes)?;
            let image = tree.make(&name, &self.cache, &bar)?;
            let scratch = self.cache.scratch()?;
            let root = scratch.path().join("root");
            let io = |source| KernelError::Write { path: root.clone(), source };
            fs::create_dir_all(root.join("boot")).map_err(io)?;
            fs::copy(&image, root.join("boot").join(format!("vmlinuz-{name}"))).map_err(io)?;
            tree::image_in(&root)?;
            self.cache.publish(&root, &place)?;
        }
        bar.finish_and_clear();
        self.made(&name, &record.version, series, &fixes)
    }

    fn made(
        &self,
        name: &str,
        version: &str,
        series: &str,
        fixes: &[Fix],
    ) -> Result<Kernel, KernelError> {
        let root = self.cache.path(place(name, version, series, fixes));
        let without: Vec<&str> = fixes.iter().map(|fix| fix.name.as_str()).collect();
        let without = match without.join(", ") {
            none if none.is_empty() => String::new(),
            fixes => format!(" without {fixes}"),
        };
        Ok(Kernel {
            name: name.to_owned(),
            identity: format!("linux-source-{series} {version}{without}"),
            image: tree::image_in(&root)?,
            modules: None,
            cache: self.cache.clone(),
        })
    }

    /// The newest source package of a series, and the archive that has it.
    fn source_of(&self, series: &str, bar: &ProgressBar) -> Result<(Apt, Record), KernelError> {
        let known = SERIES.iter().find(|(known, _)| *known == series);
        let (_, suites) = known.ok_or_else(|| BuildError::Series { series: series.to_owned() })?;
        let mut missing = None;
        for suite in *suites {
            let apt = Apt::open(&self.cache, &[suite])?;
            let _lock = self.cache.lock(&format!("apt-{suite}"))?;
            match apt.find(&format!("linux-source-{series}"), None, bar) {
                Ok(record) => return Ok((apt, record)),
                Err(error @ (AptError::NoPackage { .. } | AptError::NoSuite { .. })) => {
                    missing.get_or_insert(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let none = || BuildError::Series { series: series.to_owned() };
        Err(missing.map_or_else(|| none().into(), KernelError::from))
    }
}

/// A kernel's source with its objects.
struct SourceTree {
    path: PathBuf,
    /// Package and version.
    package: String,
}

impl SourceTree {
    /// The tree of `record`, fetched and unpacked if it is not in the cache.
    fn unpacked(
        cache: &Cache,
        apt: &Apt,
        record: &Record,
        bar: &ProgressBar,
    ) -> Result<SourceTree, KernelError> {
        let package = format!("{} {}", record.package, record.version);
        let place = Path::new("sources").join(file_name(&package.replace(' ', "_")));
        let path = cache.path(&place);
        if !path.is_dir() {
            let file = apt.download(record, bar)?;
            bar.set_message(format!("unpacking {package}"));
            let scratch = cache.scratch()?;
            apt::unpack(&file, scratch.path())?;
            let archive = scratch.path().join(format!("usr/src/{}.tar.xz", record.package));
            let mut command = process::command("tar", "tar")?;
            command.arg("--extract").arg("--file").arg(&archive).arg("--directory");
            command.arg(scratch.path());
            process::run(command, UNPACK_LIMIT)?;
            cache.publish(&scratch.path().join(&record.package), &place)?;
            apt.forget(record);
        }
        Ok(SourceTree { path, package })
    }

    /// Configures the tree unless it is.
    fn configure(&self, bar: &ProgressBar) -> Result<(), KernelError> {
        let stamp = self.path.join(".racegate-config");
        if fs::read_to_string(&stamp).is_ok_and(|text| text == CONFIG) {
            return Ok(());
        }
        bar.set_message(format!("configuring {}", self.package));
        self.run(&["tinyconfig"])?;
        let config = self.path.join(".config");
        let tiny = read(&config)?;
        write(&config, &merged(&tiny))?;
        self.run(&["olddefconfig"])?;
        let made = read(&config)?;
        let has = |switch: &str| made.lines().any(|line| line == switch);
        if let Some(switch) = VITAL.into_iter().find(|switch| !has(switch)) {
            return Err(BuildError::Switch { switch }.into());
        }
        write(&stamp, CONFIG)
    }

    /// Puts every file back that was ever edited, then takes the fixes out.
    fn edit(&self, series: &str, fixes: &[Fix]) -> Result<(), KernelError> {
        let originals = self.path.join(".racegate-originals");
        let mut texts: Vec<(PathBuf, String)> = Vec::new();
        let edited = Fix::all().flat_map(|fix| fix.edits(series).unwrap_or_default().to_vec());
        for file in edited.map(|edit| edit.file) {
            let (path, original) = (self.path.join(&file), originals.join(file_name(&file)));
            if !original.is_file() {
                let text = read(&path)?;
                fs::create_dir_all(&originals)
                    .map_err(|source| KernelError::Write { path: originals.clone(), source })?;
                write(&original, &text)?;
            }
            if !texts.iter().any(|(known, _)| *known == path) {
                texts.push((path, read(&original)?));
            }
        }
        for fix in fixes {
            for edit in fix.edits(series).unwrap_or_default() {
                let path = self.path.join(&edit.file);
                for (_, text) in texts.iter_mut().filter(|(known, _)| *known == path) {
                    *text = edit.apply(text).map_err(|source| BuildError::Edit {
                        fix: fix.name.clone(),
                        source_package: self.package.clone(),
                        source: source.into(),
                    })?;
                }
            }
        }
        for (path, text) in texts {
            // A file that does not change is not compiled again.
            if read(&path)? != text {
                write(&path, &text)?;
            }
        }
        Ok(())
    }

    /// Builds the image.
    fn make(&self, name: &str, cache: &Cache, bar: &ProgressBar) -> Result<PathBuf, KernelError> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut command = self.command(&[&format!("-j{jobs}"), "bzImage"])?;
        // The same source gives the same image, whoever builds it.
        for (variable, value) in [
            ("KBUILD_BUILD_TIMESTAMP", "1970-01-01"),
            ("KBUILD_BUILD_USER", "racegate"),
            ("KBUILD_BUILD_HOST", "racegate"),
        ] {
            command.env(variable, value);
        }
        let mut output = String::new();
        let (package, mut steps) = (&self.package, 0);
        let built = process::run_lines(command, BUILD_LIMIT, |line| {
            steps += 1;
            bar.set_message(format!("{package}, step {steps}: {}", line.trim()));
            output.push_str(line);
            output.push('\n');
        });
        if let Err(source) = built {
            if matches!(source, ProcessError::Interrupted { .. }) {
                return Err(source.into());
            }
            let log =
                cache.write(Path::new("sources").join(format!("{name}.log")), output.as_bytes())?;
            return Err(BuildError::Make { log, source }.into());
        }
        Ok(self.path.join("arch/x86/boot/bzImage"))
    }

    fn run(&self, targets: &[&str]) -> Result<(), KernelError> {
        process::run(self.command(targets)?, BUILD_LIMIT)?;
        Ok(())
    }

    fn command(&self, targets: &[&str]) -> Result<std::process::Command, ProcessError> {
        let mut command = process::command("make", "make")?;
        command.arg("--directory").arg(&self.path).arg("ARCH=x86_64").args(targets);
        // Make passes its own options on in these; an outer make's are not for this one.
        command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env("LC_ALL", "C");
        Ok(command)
    }
}

fn read(path: &Path) -> Result<String, KernelError> {
    fs::read_to_string(path).map_err(|source| KernelError::Read { path: path.to_owned(), source })
}

fn write(path: &Path, text: &str) -> Result<(), KernelError> {
    fs::write(path, text).map_err(|source| KernelError::Write { path: path.to_owned(), source })
}

/// `tiny` with the lines of [`CONFIG`] in place of its own on the same switches.
fn merged(tiny: &str) -> String {
    let switch = |line: &str| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        line.split(['=', ' ']).next().unwrap_or_default().to_owned()
    };
    let ours: Vec<String> =
        CONFIG.lines().filter(|line| line.starts_with("CONFIG_")).map(switch).collect();
    let kept = tiny.lines().filter(|line| !ours.contains(&switch(line)));
    kept.chain(CONFIG.lines()).fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_was_built() {
        let fixes = ["M01".to_owned(), "M31".to_owned()];
        assert_eq!(name("6.1.192", &[]), "built-6.1.192");
        assert_eq!(name("6.1.192", &fixes), "built-6.1.192-without-M01-M31");
        let parsed = parse("built-6.1.192-without-M01-M31").unwrap();
        assert_eq!(parsed, ("6.1".to_owned(), fixes.to_vec()));
        assert_eq!(parse("built-6.12.107"), Some(("6.12".to_owned(), Vec::new())));
        assert_eq!(parse("debian-6.1.192"), None);
        assert_eq!(parse("built-x"), None);
    }

    #[test]
    fn another_configuration_or_edit_is_another_place() {
        let fix = |name| fixes_of("6.1", &[String::from(name)]).unwrap();
        let with = place("k", "6.1.192-1", "6.1", &[]);
        assert_ne!(with, place("k", "6.1.192-1", "6.1", &fix("M01")));
        assert_ne!(with, place("k", "6.1.193-1", "6.1", &[]));
    }

    #[test]
    fn a_fix_that_is_not_there_is_named() {
        let error = |series, name: &str| fixes_of(series, &[name.to_owned()]).unwrap_err();
        assert!(matches!(error("6.1", "M99"), BuildError::Fix { .. }));
        let text = error("4.19", "M01").to_string();
        assert!(text.contains("M01") && text.contains("6.1"), "{text}");
    }

    #[test]
    fn our_switches_win() {
        let merged = merged("# CONFIG_SMP is not set\nCONFIG_A=y\nCONFIG_HZ_250=n\n");
        assert!(!merged.contains("CONFIG_SMP is not set") && !merged.contains("CONFIG_HZ_250=n"));
        assert!(merged.contains("CONFIG_A=y") && merged.contains("CONFIG_SMP=y"));
    }
}
