//! The files of a private apt directory.
//!
//! In: sources. Out: a configuration file for `apt-get -c`.
//! Must not know: packages.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::{AptError, Source};

/// Writes the directory's sources and configuration, and gives the latter's path.
pub(super) fn write(folder: &Path, sources: &[Source]) -> Result<PathBuf, AptError> {
    let save = |path: &Path, text: &str| {
        let io = |source| AptError::Io { path: path.to_owned(), source };
        if fs::read_to_string(path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        // Written beside and renamed, as another racegate may be reading it.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io)?;
        std::io::Write::write_all(&mut file, text.as_bytes()).map_err(io)?;
        file.persist(path).map(drop).map_err(|error| io(error.error))
    };
    for part in ["lists/partial", "state", "cache/archives/partial", "packages"] {
        let path = folder.join(part);
        fs::create_dir_all(&path).map_err(|source| AptError::Io { path, source })?;
    }
    let deb822: Vec<String> = sources.iter().map(Source::to_deb822).collect();
    save(&folder.join("suites.sources"), &deb822.join("\n"))?;
    // Nothing is installed, whatever this machine has: what a package needs is fetched with it.
    let status = folder.join("status");
    save(&status, "")?;

    let config = folder.join("apt.conf");
    save(&config, &text(folder, &status))?;
    Ok(config)
}

/// The configuration. It is read after the machine's own, which stays in force for everything that
/// is not named here: proxies, credentials, trusted keys.
fn text(folder: &Path, status: &Path) -> String {
    let mut text = String::new();
    // The machine's hooks are for the machine's own directories.
    for hooks in [
        "APT::Update::Pre-Invoke",
        "APT::Update::Post-Invoke",
        "APT::Update::Post-Invoke-Success",
        "DPkg::Pre-Invoke",
        "DPkg::Post-Invoke",
        "DPkg::Pre-Install-Pkgs",
    ] {
        let _ = writeln!(text, "#clear {hooks};");
    }
    let below = |name: &str| folder.join(name).display().to_string();
    for (name, value) in [
        // One file in deb822 form; apt goes by its ending.
        ("Dir::Etc::SourceList", below("suites.sources")),
        ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
        ("Dir::Etc::Preferences", "/dev/null".to_owned()),
        ("Dir::Etc::PreferencesParts", "/dev/null".to_owned()),
        ("Dir::State", below("state")),
        ("Dir::State::Lists", below("lists")),
        ("Dir::State::status", status.display().to_string()),
        ("Dir::Cache", below("cache")),
        ("Dir::Cache::Archives", below("cache/archives")),
        // A suite that is no longer updated has a Release file that has expired; its signature
        // holds all the same.
        ("Acquire::Check-Valid-Until", "false".to_owned()),
        ("Acquire::Languages", "none".to_owned()),
        ("Acquire::Retries", "3".to_owned()),
        // The user that apt changes to as root cannot enter root's cache folder.
        ("APT::Sandbox::User", "root".to_owned()),
        ("APT::Architecture", "amd64".to_owned()),
        // Nothing is installed or removed.
        ("Debug::NoLocking", "true".to_owned()),
        ("APT::Get::AllowUnauthenticated", "false".to_owned()),
    ] {
        let _ = writeln!(text, "{name} \"{}\";", value.replace('"', ""));
    }
    text
}
