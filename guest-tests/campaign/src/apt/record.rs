//! What the archive says about a package file, and whether a file is that one.
//!
//! In: `apt-cache show`, a file. Out: a [`Record`], a yes or an error.
//! Must not know: where either comes from.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::AptError;

/// What the archive says about one version of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// Length of the package file.
    pub bytes: u64,
    /// SHA-256 of the package file, in hexadecimal.
    pub sha256: String,
    /// The `Depends` field.
    pub depends: String,
}

/// Reads the first stanza of `apt-cache show`.
pub(super) fn parse_record(text: &str) -> Option<Record> {
    let stanza = text.split("\n\n").next()?;
    let field =
        |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Some(Record {
        package: field("Package")?.to_owned(),
        version: field("Version")?.to_owned(),
        bytes: field("Size")?.parse().ok()?,
        sha256: field("SHA256")?.to_owned(),
        depends: field("Depends").unwrap_or_default().to_owned(),
    })
}

/// Whether `file` has the archive's hash.
pub(super) fn check(file: &Path, record: &Record) -> Result<(), AptError> {
    let io = |source| AptError::Io { path: file.to_owned(), source };
    let mut hash = Sha256::new();
    io::copy(&mut fs::File::open(file).map_err(io)?, &mut HashWriter(&mut hash)).map_err(io)?;
    let found = hex(&hash.finalize());
    if found == record.sha256 {
        return Ok(());
    }
    let expected = record.sha256.clone();
    Err(AptError::WrongHash { file: file.to_owned(), found, expected })
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `bytes` in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
