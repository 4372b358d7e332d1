//! `racegate merge`: databases of several machines into one.
//!
//! In: databases of results. Out: one database, and the report of each campaign in it that grew.
//! Must not know: how a database looks.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use campaign::report;
use campaign::store::{Merged, Source, Store};
use serde_json::json;

use crate::campaign::{existing, write_json};
use crate::report::document;

/// Arguments of `racegate merge`. Campaigns with equal plan, kernels, options and seed become one;
/// what is there already is passed over, so merging twice does no harm.
#[derive(clap::Args)]
pub struct Args {
    /// Databases to merge; they are not changed
    #[arg(required = true, value_name = "DB")]
    sources: Vec<PathBuf>,
    /// Database to merge into; it is made if it is not there
    #[arg(long, value_name = "DB")]
    into: PathBuf,
    /// Write what was merged, and the reports, as JSON to FILE ("-" is standard output, in place of
    /// the text)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Carries out `racegate merge`.
///
/// # Errors
/// A database that is missing or cannot be used; shards that contradict each other.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let sources = args.sources.iter().map(|path| {
        existing(Some(path)).with_context(|| format!("Cannot merge {}", path.display()))
    });
    let sources = sources.collect::<anyhow::Result<Vec<_>>>()?;
    let into = Arc::new(Store::open(&args.into)?);
    let Merged { sources, campaigns } = into.merge(&sources)?;
    let documents = campaigns.iter().map(|id| document(&into, *id));
    let documents = documents.collect::<anyhow::Result<Vec<_>>>()?;
    if let Some(path) = &args.json {
        let of = |Source { path, campaigns, trials, known }: &Source| json!({"db": path, "campaigns": campaigns, "trials": trials, "known": known});
        let value = json!({
            "schema": 1,
            "into": args.into,
            "sources": sources.iter().map(of).collect::<Vec<_>>(),
            "campaigns": documents.iter().map(|document| {
                json!({"id": document.id, "report": report::json(&document.campaign)})
            }).collect::<Vec<_>>(),
        });
        write_json(&value, path)?;
    }
    if args.json.as_deref() != Some(Path::new("-")) {
        for Source { path, campaigns, trials, known } in &sources {
            let known = if *known == 0 { String::new() } else { format!(", {known} were there") };
            println!("{}: {campaigns} campaigns, {trials} trials{known}", path.display());
        }
        for document in &documents {
            let (id, plan) = (document.id, &document.plan.name);
            println!("\ncampaign {id} of {}, plan {plan}:", args.into.display());
            if let Some(ordered) = document.trials_ordered() {
                let trials: usize = document.campaign.arms.iter().map(|arm| arm.trials.len()).sum();
                if (trials as u64) < ordered {
                    println!("{trials} of {ordered} trials are there");
                }
            }
            print!("{}", report::text(&document.campaign));
        }
    }
    Ok(ExitCode::SUCCESS)
}
