//! Kernels: packaged ones by name, fetched and unpacked without installing, or the user's own.
//!
//! In: a [`Spec`] (catalogue name, Debian package, or path). Out: a [`Kernel`]: a bzImage that QEMU
//! boots, and its modules in load order, uncompressed.
//! Must not know: QEMU, the guest.

mod build;
mod catalogue;
mod modules;
mod spec;
mod tree;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

pub use build::{BuildError, EditError, Fix};
pub use catalogue::{Entry, catalogue, series};
pub use modules::Module;
pub use spec::{Spec, SpecError};

use crate::apt::{self, Apt, AptError, Record};
use crate::cache::{Cache, CacheError, file_name};
use crate::process::ProcessError;
use crate::progress;
use crate::setup::SetupError;

/// Suites that are asked for a package that the catalogue does not know.
const SUITES: &[&str] = &[
    "bullseye",
    "bullseye-security",
    "bookworm",
    "bookworm-security",
    "bookworm-backports",
    "trixie",
    "trixie-security",
    "trixie-backports",
    "sid",
];

/// A kernel cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The name says nothing.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The packages cannot be had.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// It cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// It has not been built, or from other edits or another configuration.
    #[error(
        "{name} is not in the cache; build the newest kernel of that series with: racegate kernels \
             build --series {series}{without}"
    )]
    NotBuilt {
        /// The kernel.
        name: String,
        /// Its series.
        series: String,
        /// The options that name its fixes.
        without: String,
    },
    /// What building takes is not installed.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// A program failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// No kernel image where one should be.
    #[error("{} holds no kernel image (vmlinuz)", path.display())]
    NoImage {
        /// The folder.
        path: PathBuf,
    },
    /// The file is not a kernel that QEMU can boot.
    #[error("{} is not a bzImage; give the compressed x86 kernel image (arch/x86/boot/bzImage, \
             or vmlinuz-VERSION of a package)", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
    },
    /// A module that the guest needs is not there.
    #[error("Kernel {kernel} has no module {module}, and it is not built in")]
    NoModule {
        /// The kernel.
        kernel: String,
        /// The module.
        module: String,
    },
    /// A module is not what it should be.
    #[error("{} is not a kernel module", path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
    },
    /// A compressed module could not be unpacked.
    #[error("Could not unpack {}", path.display())]
    Unpack {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ProcessError,
    },
    /// A file could not be written.
    #[error("Could not write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("Could not read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A kernel on this machine, ready to boot.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The name by which it was asked for, for tables and reports.
    pub name: String,
    /// Package and version, or the path: what it is exactly.
    pub identity: String,
    /// The bzImage.
    pub image: PathBuf,
    /// The folder with its modules (`lib/modules/RELEASE`); none if everything is built in.
    pub modules: Option<PathBuf>,
    cache: Cache,
}

impl Kernel {
    /// The modules `wanted` and those that they need, in load order, uncompressed.
    ///
    /// A module that is built in is left out; one that is neither there nor built in is an error.
    /// A kernel without modules is taken to have all built in.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<Module>, KernelError> {
        match &self.modules {
            Some(folder) => {
                let tree = tree::Tree::read(folder)?;
                modules::resolve(&self.name, &tree, wanted, &self.cache)
            }
            None => Ok(Vec::new()),
        }
    }
}

/// The kernels that can be had, and those that are here.
#[derive(Debug)]
pub struct Kernels {
    cache: Cache,
    archives: RefCell<BTreeMap<String, Apt>>,
}

impl Kernels {
    /// Kernels kept in `cache`.
    pub fn new(cache: &Cache) -> Kernels {
        Kernels { cache: cache.clone(), archives: RefCell::default() }
    }

    /// Whether a package of the catalogue is in the cache.
    pub fn is_cached(&self, entry: &Entry) -> bool {
        self.cache.path(place(entry.package, entry.version)).is_dir()
    }

    /// The kernel `spec`, fetched if it is not in the cache.
    pub fn fetch(&self, spec: &Spec) -> Result<Kernel, KernelError> {
        match spec {
            Spec::File { image, modules } => self.own(image, modules.as_deref()),
            Spec::Built(name) => self.built(name),
            Spec::Catalogue(name) => {
                let entries = catalogue::named(name);
                if let Some(entry) = entries.iter().find(|entry| self.is_cached(entry)) {
                    return self.unpacked(name, entry.package, entry.version);
                }
                let tries = entries.iter().map(|e| (e.suite, e.package, Some(e.version)));
                self.first_of(name, tries)
            }
            Spec::Package { package, version, suite } => {
                let version = version.as_deref();
                let known = |entry: &&Entry| {
                    entry.package == package && version.is_none_or(|v| v == entry.version)
                };
                let entry = catalogue().iter().find(known);
                if let Some(version) = version.or(entry.map(|entry| entry.version))
                    && self.cache.path(place(package, version)).is_dir()
                {
                    return self.unpacked(&spec.to_string(), package, version);
                }
                let suites: Vec<&str> = match (suite, entry) {
                    (Some(suite), _) => vec![suite],
                    (None, Some(entry)) => vec![entry.suite],
                    (None, None) => SUITES.to_vec(),
                };
                let tries = suites.into_iter().map(|suite| (suite, package.as_str(), version));
                self.first_of(&spec.to_string(), tries)
            }
        }
    }

    /// The first of `tries` (suite, package, version) that the archive has.
    fn first_of<'a>(
        &self,
        name: &str,
        tries: impl Iterator<Item = (&'a str, &'a str, Option<&'a str>)>,
    ) -> Result<Kernel, KernelError> {
        let bar = progress::bar(name);
        let mut missing = None;
        for (suite, package, version) in tries {
            let mut archives = self.archives.borrow_mut();
            if !archives.contains_key(suite) {
                let apt = Apt::open(&self.cache, &[suite])?;
                archives.insert(suite.to_owned(), apt);
            }
            let apt = &archives[suite];
            // Lists and packages of a suite are one racegate's at a time.
            let _lock = self.cache.lock(&format!("apt-{suite}"))?;
            let record = apt.find(package, version, &bar).map_err(KernelError::from);
            match record.and_then(|record| self.install(name, apt, &record, &bar)) {
                Ok(kernel) => return Ok(kernel),
                // The first package of a name is the best, and what is said about it tells most.
                Err(KernelError::Apt(
                    error @ (AptError::NoPackage { .. }
                    | AptError::NoSuite { .. }
                    | AptError::Gone { .. }),
                )) => {
                    missing.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        let none = || SpecError::Unknown { name: name.to_owned(), near: Vec::new() };
        Err(missing.map_or_else(|| none().into(), KernelError::from))
    }

    /// Fetches and unpacks the package of `record`, with the packages that hold the rest of the
    /// same kernel.
    fn install(
        &self,
        name: &str,
        apt: &Apt,
        record: &Record,
        bar: &ProgressBar,
    ) -> Result<Kernel, KernelError> {
        let place = place(&record.package, &record.version);
        if !self.cache.path(&place).is_dir() {
            let mut records = vec![record.clone()];
            for package in companions(record) {
                records.push(apt.find(&package, Some(&record.version), bar)?);
            }
            let scratch = self.cache.scratch()?;
            let root = scratch.path().join("root");
            for record in &records {
                let file = apt.download(record, bar)?;
                bar.set_message(format!("unpacking {}", record.package));
                apt::unpack(&file, &root)?;
            }
            tree::image_in(&root)?;
            self.cache.publish(&root, &place)?;
            for record in &records {
                apt.forget(record);
            }
        }
        bar.finish_and_clear();
        self.unpacked(name, &record.package, &record.version)
    }

    fn unpacked(&self, name: &str, package: &str, version: &str) -> Result<Kernel, KernelError> {
        let root = self.cache.path(place(package, version));
        Ok(Kernel {
            name: name.to_owned(),
            identity: format!("{package} {version}"),
            image: tree::image_in(&root)?,
            modules: tree::modules_in(&root),
            cache: self.cache.clone(),
        })
    }

    /// The user's own kernel.
    fn own(&self, image: &Path, modules: Option<&Path>) -> Result<Kernel, KernelError> {
        tree::check_image(image)?;
        if let Some(folder) = modules {
            fs::read_dir(folder)
                .map_err(|source| KernelError::Read { path: folder.to_owned(), source })?;
        }
        let absolute = |path: &Path| {
            path.canonicalize()
                .map_err(|source| KernelError::Read { path: path.to_owned(), source })
        };
        let image = absolute(image)?;
        let folder = image.parent().and_then(Path::file_name).unwrap_or_default();
        let file = image.file_name().unwrap_or_default();
        Ok(Kernel {
            name: Path::new(folder).join(file).display().to_string(),
            identity: image.display().to_string(),
            modules: modules.map(absolute).transpose()?,
            image,
            cache: self.cache.clone(),
        })
    }
}

/// Where a package is unpacked, inside the cache.
fn place(package: &str, version: &str) -> PathBuf {
    Path::new("kernels").join(file_name(&format!("{package}_{version}")))
}

/// The other packages of a kernel that is split: up to 7.1 or so `linux-image-X` has all (in some
/// series before too it is empty), else image and modules are in `linux-binary-X` and
/// `linux-modules-X`.
fn companions(record: &Record) -> Vec<String> {
    let Some((_, release)) = ["linux-image-", "linux-binary-unsigned-", "linux-binary-"]
        .iter()
        .find_map(|&stem| record.package.strip_prefix(stem).map(|release| (stem, release)))
    else {
        return Vec::new();
    };
    let mut names: Vec<String> = ["linux-binary-", "linux-modules-"]
        .iter()
        .map(|stem| format!("{stem}{release}"))
        .filter(|name| {
            record.depends.split(", ").any(|need| need.split(' ').next() == Some(name.as_str()))
        })
        .collect();
    let modules = format!("linux-modules-{release}");
    if record.package.starts_with("linux-binary-") && !names.contains(&modules) {
        names.push(modules);
    }
    names
}

#[cfg(test)]
mod tests;
