//! The machine's apt sources, and the source of another suite derived from them.
//!
//! In: `sources.list` (one line an entry) and `*.sources` (deb822), as sources.list(5) gives them.
//! Out: [`Source`]s.
//! Must not know: the name of any mirror.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::AptError;
use crate::process;

/// Names of releases and their aliases, without `-security` and the like.
const RELEASES: &[&str] = &[
    "stretch",
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "unstable",
    "experimental",
    "testing",
    "stable",
    "oldstable",
    "oldoldstable",
];

/// One entry: packages of some suites at some place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Where the archive is.
    pub uri: String,
    /// Its suite.
    pub suite: String,
    /// Its components.
    pub components: Vec<String>,
    /// The `Signed-By` option: paths, fingerprints or a whole key (in deb822's form).
    pub signed_by: Option<String>,
    /// The `Trusted` option.
    pub trusted: Option<String>,
}

impl Source {
    /// The entry as a deb822 stanza that lists binary packages only.
    pub(super) fn to_deb822(&self) -> String {
        let mut text = format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\nTargets: Packages\n",
            self.uri,
            self.suite,
            self.components.join(" "),
        );
        for (name, value) in [("Signed-By", &self.signed_by), ("Trusted", &self.trusted)] {
            if let Some(value) = value {
                let _ = writeln!(text, "{name}: {value}");
            }
        }
        text
    }

    /// Whether this is Debian's archive of security updates.
    fn is_security(&self) -> bool {
        self.suite.contains("-security")
            || self.suite.ends_with("/updates")
            || self.uri.trim_end_matches('/').ends_with("-security")
    }

    /// How much this looks like Debian's own archive; 0 is not at all.
    fn resemblance(&self) -> u32 {
        let release = self.suite.split(['-', '/']).next().unwrap_or_default();
        if !RELEASES.contains(&release) || !self.components.iter().any(|name| name == "main") {
            return 0;
        }
        let path = self.uri.trim_end_matches('/');
        let by_path = path.ends_with("/debian") || path.ends_with("/debian-security");
        let by_key = self.signed_by.as_deref().is_some_and(|key| key.contains("debian-archive"));
        1 + u32::from(by_path) + u32::from(by_key)
    }
}

/// Every entry of the machine's apt.
pub(super) fn of_this_machine() -> Result<Vec<Source>, AptError> {
    let mut command = process::command("apt-config", "apt")?;
    command.args(["shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"]);
    let paths = process::run(command, Duration::from_secs(20))?.text();
    let path = |name: &str| {
        let line = paths.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix("='"))?;
        Some(PathBuf::from(line.strip_suffix('\'')?))
    };
    let mut files: Vec<PathBuf> = path("LIST").into_iter().filter(|file| file.is_file()).collect();
    if let Some(entries) = path("PARTS").and_then(|parts| fs::read_dir(parts).ok()) {
        let mut parts: Vec<PathBuf> =
            entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        parts.sort();
        files.extend(parts);
    }
    let mut sources = Vec::new();
    for path in files {
        let Some(parse) = parser(&path) else { continue };
        let text = fs::read_to_string(&path).map_err(|source| AptError::Io { path, source })?;
        sources.extend(parse(&text));
    }
    Ok(sources)
}

/// How to read the file, by the ending of its name; apt ignores other files.
fn parser(path: &Path) -> Option<fn(&str) -> Vec<Source>> {
    match path.extension()?.to_str()? {
        "list" => Some(parse_one_line),
        "sources" => Some(parse_deb822),
        _ => None,
    }
}

/// The source of `suite` at the mirror that `machine` uses; `None` if it uses none.
///
/// Security updates are another archive, at another path of the same host or at a host of their
/// own: the machine's entry for them is used, and only if it has none, the path is derived.
pub(super) fn for_suite(machine: &[Source], suite: &str) -> Option<Source> {
    let security = suite.ends_with("-security");
    let best = |wanted: bool| {
        machine
            .iter()
            .filter(|source| source.is_security() == wanted && source.resemblance() > 0)
            // The first of the best: `max_by_key` gives the last.
            .rev()
            .max_by_key(|source| (source.suite == suite, source.resemblance()))
    };
    let (source, uri) = if let Some(source) = best(security) {
        (source, source.uri.clone())
    } else {
        let other = best(!security)?;
        let path = other.uri.trim_end_matches('/');
        let path = if security {
            format!("{}/debian-security", path.strip_suffix("/debian")?)
        } else {
            format!("{}/debian", path.strip_suffix("/debian-security")?)
        };
        (other, path)
    };
    Some(Source {
        uri,
        suite: suite.to_owned(),
        components: vec!["main".to_owned()],
        signed_by: source.signed_by.clone(),
        trusted: source.trusted.clone(),
    })
}

/// Reads `deb [option=value ...] uri suite [component ...]` lines.
fn parse_one_line(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let Some(rest) = line.trim().strip_prefix("deb") else {
            continue;
        };
        // "deb-src" is another type.
        if !rest.starts_with([' ', '\t', '[']) {
            continue;
        }
        let rest = rest.trim_start();
        let (options, rest) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let option = |name: &str| {
            let find = |word: &str| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned());
            options.split_whitespace().find_map(find)
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else {
            continue;
        };
        sources.push(Source {
            uri,
            suite,
            components: words.collect(),
            // Commas separate several keys here, spaces in deb822.
            signed_by: option("signed-by").map(|keys| keys.replace(',', " ")),
            trusted: option("trusted"),
        });
    }
    sources
}

/// Reads stanzas of `Name: value` with continuation lines; one entry per URI and suite.
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    let mut finish = |fields: &mut Vec<(String, String)>| {
        let field = |name: &str| {
            fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
        };
        let words = |name| field(name).unwrap_or_default().split_whitespace();
        let enabled = field("enabled").is_none_or(|value| !value.eq_ignore_ascii_case("no"));
        if enabled && words("types").any(|word| word == "deb") {
            for uri in words("uris") {
                for suite in words("suites") {
                    sources.push(Source {
                        uri: uri.to_owned(),
                        suite: suite.to_owned(),
                        components: words("components").map(str::to_owned).collect(),
                        signed_by: field("signed-by").map(str::to_owned),
                        trusted: field("trusted").map(str::to_owned),
                    });
                }
            }
        }
        fields.clear();
    };
    for line in text.lines() {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            finish(&mut fields);
        } else if line.starts_with([' ', '\t']) {
            // Kept with its indentation: a key in place of a path is written so again.
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    finish(&mut fields);
    sources
}

#[cfg(test)]
mod tests;
