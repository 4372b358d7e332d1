//! How a user names a kernel.
//!
//! In: a word of the command line. Out: a [`Spec`].
//! Must not know: whether the kernel can be had.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{build, catalogue};

/// The word names no kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Neither a name of the catalogue, nor a package, nor a file.
    #[error(
        "There is no kernel {name}{}; see `racegate kernels list`, or give the name of a \
             Debian package (linux-image-...) or the path of a bzImage",
        nearest(near)
    )]
    Unknown {
        /// The word.
        name: String,
        /// Names that are like it.
        near: Vec<String>,
    },
    /// A path to nothing.
    #[error("There is no file {}; give the path of a bzImage", path.display())]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// Modules were given for a kernel that brings its own.
    #[error("--modules goes with the path of a bzImage; {name} brings its own modules")]
    Modules {
        /// The kernel.
        name: String,
    },
}

fn nearest(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!(" (there is {})", near.join(", ")) }
}

/// One kernel, named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// By its name in the catalogue: `debian-5.10.223`.
    Catalogue(String),
    /// By the name of one that `racegate kernels build` made: `built-6.1.192-without-M01`.
    Built(String),
    /// By Debian package, as apt writes it: `linux-image-X[/SUITE][=VERSION]`.
    Package {
        /// The package.
        package: String,
        /// Its version; the newest if absent.
        version: Option<String>,
        /// Where to look; if absent, where the catalogue says, else everywhere.
        suite: Option<String>,
    },
    /// The user's own.
    File {
        /// The bzImage.
        image: PathBuf,
        /// The folder with its modules.
        modules: Option<PathBuf>,
    },
}

impl Spec {
    /// Reads the word `name`; `modules` is the folder given with it.
    pub fn parse(name: &str, modules: Option<&Path>) -> Result<Spec, SpecError> {
        let packaged = |spec: Spec| match modules {
            None => Ok(spec),
            Some(_) => Err(SpecError::Modules { name: name.to_owned() }),
        };
        if !catalogue::named(name).is_empty() {
            return packaged(Spec::Catalogue(name.to_owned()));
        }
        if build::parse(name).is_some() && !Path::new(name).exists() {
            return packaged(Spec::Built(name.to_owned()));
        }
        if name.starts_with("linux-") && !Path::new(name).exists() {
            let (rest, version) = match name.split_once('=') {
                Some((rest, version)) => (rest, Some(version.to_owned())),
                None => (name, None),
            };
            let (package, suite) = match rest.split_once('/') {
                Some((package, suite)) => (package, Some(suite.to_owned())),
                None => (rest, None),
            };
            let plain = |c: char| c.is_ascii_alphanumeric() || "+-.~".contains(c);
            let words = [Some(package), suite.as_deref()];
            if words.into_iter().flatten().all(|word| !word.is_empty() && word.chars().all(plain)) {
                return packaged(Spec::Package { package: package.to_owned(), version, suite });
            }
        }
        let path = PathBuf::from(name);
        if path.is_file() {
            return Ok(Spec::File { image: path, modules: modules.map(Path::to_owned) });
        }
        if name.contains('/') {
            return Err(SpecError::NoFile { path });
        }
        Err(SpecError::Unknown { name: name.to_owned(), near: near(name) })
    }
}

/// Kernels of the same series as `name`.
fn near(name: &str) -> Vec<String> {
    let series = |name: &str| {
        let numbers: Vec<&str> = name.trim_start_matches("debian-").split('.').take(2).collect();
        numbers.join(".")
    };
    let wanted = series(name);
    let mut names: Vec<String> = catalogue::catalogue().iter().map(super::Entry::name).collect();
    names.dedup();
    names.retain(|other| series(other) == wanted);
    names
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Spec::Catalogue(name) | Spec::Built(name) => f.write_str(name),
            Spec::Package { package, version, suite } => {
                f.write_str(package)?;
                if let Some(suite) = suite {
                    write!(f, "/{suite}")?;
                }
                version.as_ref().map_or(Ok(()), |version| write!(f, "={version}"))
            }
            Spec::File { image, .. } => image.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(package: &str, suite: Option<&str>, version: Option<&str>) -> Spec {
        Spec::Package {
            package: package.to_owned(),
            version: version.map(str::to_owned),
            suite: suite.map(str::to_owned),
        }
    }

    #[test]
    fn each_way_to_name_a_kernel() {
        let parse = |name| Spec::parse(name, None).unwrap();
        assert_eq!(parse("debian-5.10.223"), Spec::Catalogue("debian-5.10.223".to_owned()));
        assert_eq!(
            parse("linux-image-6.1.0-55-cloud-amd64"),
            package("linux-image-6.1.0-55-cloud-amd64", None, None)
        );
        assert_eq!(
            parse("linux-image-1/sid=6.1-1~deb11u1"),
            package("linux-image-1", Some("sid"), Some("6.1-1~deb11u1"))
        );
        assert!(matches!(parse("/bin/true"), Spec::File { .. }));
    }

    #[test]
    fn a_spec_prints_as_it_was_written() {
        for name in
            ["debian-5.10.223", "built-6.1.192-without-M01", "linux-image-x/sid=1-1", "/bin/true"]
        {
            assert_eq!(Spec::parse(name, None).unwrap().to_string(), name);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let error = |name| Spec::parse(name, None).unwrap_err();
        let SpecError::Unknown { near, .. } = error("debian-5.10.224") else { panic!() };
        assert!(near.contains(&"debian-5.10.223".to_owned()), "{near:?}");
        assert!(matches!(error("/no/such/bzImage"), SpecError::NoFile { .. }));
        assert!(matches!(error("linux-image/../x"), SpecError::NoFile { .. }));
        let modules = Spec::parse("debian-5.10.223", Some(Path::new("/m"))).unwrap_err();
        assert!(matches!(modules, SpecError::Modules { .. }));
    }
}
