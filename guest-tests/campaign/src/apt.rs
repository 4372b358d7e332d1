//! Packages of Debian suites other than the machine's own, without touching the machine's apt.
//!
//! In: names of suites and packages. Out: package files that apt checked against the archive's
//! signatures and hashes, and that were checked once more here.
//! Must not know: what is in a package.
//!
//! Each set of suites has an apt directory of its own in the cache: sources, lists, state and
//! archives. Mirror, keyring, proxy and credentials are the machine's, read from its apt
//! configuration at run time.

mod config;
mod record;
mod sources;

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use indicatif::ProgressBar;

pub use record::Record;
pub(crate) use record::hex;
pub use sources::Source;

use record::{check, parse_record};

use crate::cache::{Cache, CacheError, file_name};
use crate::process::{self, ProcessError};

/// Fetching lists or packages; a slow mirror is slow.
const NETWORK_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Everything that only reads what is there.
const LOCAL_LIMIT: Duration = Duration::from_secs(120);

/// Packages cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// This is not a machine with apt.
    #[error(
        "This machine has no {program}, so no packaged kernel can be fetched; give the path \
             of a bzImage instead (and its modules with --modules)"
    )]
    NoApt {
        /// The program.
        program: &'static str,
    },
    /// The machine's apt knows no Debian archive.
    #[error(
        "None of the machine's apt sources is a Debian archive with component main, so there \
             is no mirror to take suite {suite} from; add one to /etc/apt/sources.list.d, or give \
             the path of a bzImage"
    )]
    NoMirror {
        /// The suite wanted.
        suite: String,
    },
    /// The mirror does not have the suite.
    #[error("The machine's Debian mirror has no suite {suite} (any more): {message}")]
    NoSuite {
        /// The suite.
        suite: String,
        /// What apt said.
        message: String,
    },
    /// The mirror cannot be reached.
    #[error(
        "The machine's Debian mirror cannot be reached, and {wanted} is not in the cache: \
             {message}"
    )]
    Offline {
        /// What was wanted.
        wanted: String,
        /// What apt said.
        message: String,
    },
    /// The suite does not have the package.
    #[error("Suite {suite} has no {wanted} (any more); it has {}", few(there_is))]
    NoPackage {
        /// The suite.
        suite: String,
        /// Package and version.
        wanted: String,
        /// What it has instead.
        there_is: Vec<String>,
    },
    /// The lists name the package file, but the mirror does not have it.
    #[error(
        "The machine's Debian mirror lists {wanted} and does not have it (any more): {message}"
    )]
    Gone {
        /// Package and version.
        wanted: String,
        /// What apt said.
        message: String,
    },
    /// The file is not what the archive says it is.
    #[error("{} is not what the archive signed: SHA-256 is {found}, not {expected}; it was \
             removed, try again", file.display())]
    WrongHash {
        /// The file.
        file: PathBuf,
        /// Its hash.
        found: String,
        /// The archive's hash.
        expected: String,
    },
    /// A file could not be read or written.
    #[error("Could not use {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// apt failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// At most ten of `names`, for a message.
fn few(names: &[String]) -> String {
    match names.len() {
        0 => "nothing like it".to_owned(),
        1..=10 => names.join(", "),
        more => format!("{} and {} more", names[more - 10..].join(", "), more - 10),
    }
}

/// An apt directory for a set of suites.
#[derive(Debug)]
pub struct Apt {
    suites: Vec<String>,
    folder: PathBuf,
    config: PathBuf,
    updated: Cell<bool>,
}

impl Apt {
    /// The apt directory for `suites`, made if it is not there; nothing is fetched yet.
    pub fn open(cache: &Cache, suites: &[&str]) -> Result<Apt, AptError> {
        for program in ["apt-get", "apt-cache", "apt-config", "dpkg-deb"] {
            if process::find_program(program).is_none() {
                return Err(AptError::NoApt { program });
            }
        }
        let machine = sources::of_this_machine()?;
        let sources = suites
            .iter()
            .map(|suite| {
                sources::for_suite(&machine, suite)
                    .ok_or_else(|| AptError::NoMirror { suite: (*suite).to_owned() })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let folder = cache.folder(Path::new("apt").join(file_name(&suites.join("+"))))?;
        let config = config::write(&folder, &sources)?;
        let suites = suites.iter().map(|&suite| suite.to_owned()).collect();
        Ok(Apt { suites, folder, config, updated: Cell::new(false) })
    }

    /// The record of `package` (a certain `version`, or the newest), fetching the lists if it is
    /// not in those that are there.
    pub fn find(
        &self,
        package: &str,
        version: Option<&str>,
        progress: &ProgressBar,
    ) -> Result<Record, AptError> {
        if let Some(record) = self.known(package, version)? {
            return Ok(record);
        }
        let wanted = version.map_or_else(
            || package.to_owned(),
            |version| format!("{package} in version {version}"),
        );
        // Once is enough for a program that runs for minutes.
        if !self.updated.replace(true) {
            self.update(&wanted, progress)?;
        }
        self.known(package, version)?.map_or_else(
            || {
                let there_is = self.alike(package)?;
                Err(AptError::NoPackage { suite: self.suites.join(", "), wanted, there_is })
            },
            Ok,
        )
    }

    /// The record of `package` in the lists that are there.
    fn known(&self, package: &str, version: Option<&str>) -> Result<Option<Record>, AptError> {
        let mut command = self.command("apt-cache")?;
        command.args(["show", "--no-all-versions"]);
        command.arg(version.map_or_else(|| package.to_owned(), |v| format!("{package}={v}")));
        // An unknown package is a failure for apt-cache.
        let output = process::capture(command, LOCAL_LIMIT, |_| {})?;
        Ok(parse_record(&output.text()).filter(|record| record.package == package))
    }

    /// Packages whose names begin like `package` does, up to its first digit, with versions.
    fn alike(&self, package: &str) -> Result<Vec<String>, AptError> {
        let stem = package.split(|c: char| c.is_ascii_digit()).next().unwrap_or(package);
        let mut command = self.command("apt-cache")?;
        command.args(["pkgnames", stem]);
        let names = process::run(command, LOCAL_LIMIT)?.text();
        let end = package.rsplit_once('-').map_or("", |(_, end)| end);
        let mut names: Vec<String> = names
            .lines()
            .filter(|name| name.ends_with(end) && !name.ends_with("-dbg"))
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }

    /// Fetches the lists of all suites; `wanted` is for the error.
    fn update(&self, wanted: &str, progress: &ProgressBar) -> Result<(), AptError> {
        progress.set_message(format!("reading the lists of {}", self.suites.join(", ")));
        let mut command = self.command("apt-get")?;
        command.args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]);
        let output = process::capture(command, NETWORK_LIMIT, |_| {})?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let message = first_complaint(&said);
        let gone = ["does not have a Release file", "404", "no longer has a Release file"];
        if gone.iter().any(|words| said.contains(words)) {
            let named = self.suites.iter().find(|suite| message.contains(suite.as_str()));
            let suite = named.map_or_else(|| self.suites.join(", "), Clone::clone);
            return Err(AptError::NoSuite { suite, message });
        }
        Err(AptError::Offline { wanted: wanted.to_owned(), message })
    }

    /// Fetches the package file of `record` and checks it; a file that is there already is not
    /// fetched again, and half a file is completed.
    pub fn download(&self, record: &Record, progress: &ProgressBar) -> Result<PathBuf, AptError> {
        let Record { package, version, .. } = record;
        let folder = self.folder.join("packages").join(file_name(&format!("{package}_{version}")));
        let io = |source| AptError::Io { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(io)?;
        if package_file(&folder).map_err(io)?.is_none_or(|file| check(&file, record).is_err()) {
            match self.fetch(record, &folder, progress) {
                // The lists may be older than what the mirror has now.
                Err(AptError::Gone { .. }) if !self.updated.replace(true) => {
                    self.update(&format!("{package} {version}"), progress)?;
                    self.fetch(record, &folder, progress)?;
                }
                fetched => fetched?,
            }
        }
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let file = package_file(&folder).and_then(|file| file.ok_or_else(missing)).map_err(io)?;
        if let Err(error) = check(&file, record) {
            let _ = fs::remove_file(&file);
            return Err(error);
        }
        Ok(file)
    }

    /// Runs `apt-get download` for `record` in `folder`.
    fn fetch(
        &self,
        record: &Record,
        folder: &Path,
        progress: &ProgressBar,
    ) -> Result<(), AptError> {
        let Record { package, version, .. } = record;
        let mut command = self.command("apt-get")?;
        command.current_dir(folder);
        command.args(["-q", "-o", "APT::Status-Fd=1", "download"]);
        command.arg(format!("{package}={version}"));
        progress.set_message(format!("fetching {package} {version}"));
        progress.set_length(record.bytes);
        let fetched = process::run_lines(command, NETWORK_LIMIT, |line| {
            if let Some(part) = downloaded(line) {
                progress.set_position((record.bytes as f64 * part) as u64);
            }
        });
        match fetched {
            Ok(_) => Ok(()),
            Err(ProcessError::Failed { message, .. }) => {
                let wanted = format!("{package} {version}");
                // The mirror's answer, and apt's when newer lists do not name the version.
                let gone = message.contains("404") || message.contains("was not found");
                Err(if gone {
                    AptError::Gone { wanted, message }
                } else {
                    AptError::Offline { wanted, message }
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets the package file of `record`, once it is unpacked.
    pub fn forget(&self, record: &Record) {
        let name = file_name(&format!("{}_{}", record.package, record.version));
        // What stays behind costs space, nothing else.
        let _ = fs::remove_dir_all(self.folder.join("packages").join(name));
    }

    /// Fetches `packages` with everything that they need, the C library included, and gives the
    /// package files.
    pub fn download_with_needs(
        &self,
        packages: &[&str],
        release: &str,
        progress: &ProgressBar,
    ) -> Result<Vec<PathBuf>, AptError> {
        let archives = self.folder.join("cache/archives");
        // What is in this directory is used once; the newest is wanted.
        if !self.updated.replace(true) {
            self.update(&packages.join(", "), progress)?;
        }
        progress.set_message(format!("fetching {} of {release}", packages.join(", ")));
        let mut command = self.command("apt-get")?;
        command.args(["-q", "-y", "--no-install-recommends", "--download-only"]);
        command.args(["-t", release, "install"]).args(packages);
        process::run(command, NETWORK_LIMIT)?;
        let io = |source| AptError::Io { path: archives.clone(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(&archives).map_err(io)? {
            let path = entry.map_err(io)?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    fn command(&self, program: &'static str) -> Result<Command, AptError> {
        let mut command =
            process::command(program, "apt").map_err(|_| AptError::NoApt { program })?;
        command.arg("-c").arg(&self.config).env("LC_ALL", "C");
        Ok(command)
    }
}

/// Unpacks a package file into `folder`, as files only: nothing of it is run.
pub fn unpack(package: &Path, folder: &Path) -> Result<(), AptError> {
    let mut command = process::command("dpkg-deb", "dpkg")
        .map_err(|_| AptError::NoApt { program: "dpkg-deb" })?;
    command.arg("--extract").arg(package).arg(folder);
    process::run(command, NETWORK_LIMIT)?;
    Ok(())
}

/// The one package file in `folder`.
fn package_file(folder: &Path) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The part of the download that is done, from a line of apt's status descriptor:
/// `dlstatus:1:45.2:Retrieving file 1 of 1`.
fn downloaded(line: &str) -> Option<f64> {
    let percent: f64 = line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()?;
    Some((percent / 100.0).clamp(0.0, 1.0))
}

/// The first error that apt printed, else its last words.
fn first_complaint(said: &str) -> String {
    let complaint = said.lines().find_map(|line| line.strip_prefix("E: "));
    complaint.map_or_else(|| process::last_lines(said.as_bytes(), 2), str::to_owned)
}

#[cfg(test)]
mod tests;
