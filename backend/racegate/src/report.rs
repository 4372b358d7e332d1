//! `racegate report`: what is stored of campaigns, for browsers, mailing lists and CI systems.
//!
//! In: arguments, a database of results. Out: files, or text on standard output.
//! Must not know: how a report looks, how a database looks.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use campaign::device::Device;
use campaign::plan::Plan;
use campaign::report::{self, Document};
use campaign::store::Store;

use crate::campaign::{Settings, existing};

/// The file name that means standard output.
const STDOUT: &str = "-";

/// Which reports are wanted.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Formats {
    /// Write one HTML file: verdicts, rates, delays, timelines; it needs no network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write a plain-text summary for a mailing list, 72 columns wide, in Markdown
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    pub markdown: Option<PathBuf>,
    /// Write JUnit XML: one case for each kernel
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Write KTAP, version 1: one test for each kernel
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = STDOUT)]
    pub ktap: Option<PathBuf>,
}

/// Arguments of `racegate report`. "-" for FILE is standard output. Without any format: the text
/// that `racegate campaign run` prints.
#[derive(clap::Args)]
pub struct Args {
    /// Number of a campaign that `racegate campaign results` shows, may be repeated; default: the
    /// newest
    #[arg(long = "campaign", value_name = "ID")]
    campaigns: Vec<i64>,
    /// Every campaign of the database
    #[arg(long, conflicts_with = "campaigns")]
    all: bool,
    /// Database of results; default: racegate/results.db in $XDG_STATE_HOME or ~/.local/state
    #[arg(long, value_name = "FILE")]
    db: Option<PathBuf>,
    #[command(flatten)]
    formats: Formats,
    /// Write the report as JSON, as `racegate campaign run` does; of several campaigns, a list
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Carries out `racegate report`.
///
/// # Errors
/// No database, no such campaign, or a file that cannot be written.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let store = existing(args.db.as_deref())?;
    let known = store.campaigns()?;
    let wanted: Vec<i64> = match (&args.campaigns[..], args.all) {
        ([], true) => known.iter().rev().map(|summary| summary.id).collect(),
        ([], false) => known.first().map(|summary| summary.id).into_iter().collect(),
        (some, _) => some.to_vec(),
    };
    if wanted.is_empty() {
        bail!("{} has no campaign yet; run one with racegate campaign run", store.path().display());
    }
    let documents = wanted.iter().map(|id| document(&store, *id)).collect::<Result<Vec<_>, _>>()?;
    write(&documents, &args.formats)?;
    if let Some(path) = &args.json {
        let mut values: Vec<_> =
            documents.iter().map(|document| report::json(&document.campaign)).collect();
        let value = if values.len() == 1 { values.remove(0) } else { values.into() };
        put(path, &format!("{value:#}\n"))?;
    }
    if args.json.is_none() && !args.formats.any() {
        let texts: Vec<_> =
            documents.iter().map(|document| report::text(&document.campaign)).collect();
        put(Path::new(STDOUT), &texts.join("\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Formats {
    /// Whether there is one.
    pub(crate) fn any(&self) -> bool {
        self.files().next().is_some()
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.html, &self.markdown, &self.junit, &self.ktap].into_iter().flatten()
    }
}

/// Writes what is wanted.
pub(crate) fn write(documents: &[Document], formats: &Formats) -> anyhow::Result<()> {
    let on_screen = formats.files().filter(|path| *path == Path::new(STDOUT)).count();
    if on_screen > 1 {
        bail!("only one report can go to standard output; give the others a FILE");
    }
    if let Some(path) = &formats.html {
        put(path, &report::html::page(documents))?;
    }
    if let Some(path) = &formats.markdown {
        let all: Vec<_> = documents.iter().map(report::markdown::summary).collect();
        put(path, &all.join("\n"))?;
    }
    if let Some(path) = &formats.junit {
        put(path, &report::junit::report(documents))?;
    }
    if let Some(path) = &formats.ktap {
        put(path, &report::ktap::report(documents))?;
    }
    Ok(())
}

/// A campaign of the database.
pub(crate) fn document(store: &Store, id: i64) -> anyhow::Result<Document> {
    let stored = store.stored(id)?;
    let settings = Settings::read(&stored.settings)?;
    let plan = Plan::parse(&settings.plan, "the stored plan")?;
    let device = Device::parse(&settings.device).unwrap_or_default();
    let kernels: Vec<&str> = settings.kernels.split(", ").collect();
    Ok(Document::new(stored, plan, device, &kernels))
}

fn put(path: &Path, text: &str) -> anyhow::Result<()> {
    if path == Path::new(STDOUT) {
        std::io::stdout().write_all(text.as_bytes()).context("Could not write the report")
    } else {
        fs::write(path, text).with_context(|| format!("Could not write {}", path.display()))
    }
}
