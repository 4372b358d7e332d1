//! `racegate kernels`: which kernels there are, and fetching them.
//!
//! In: arguments. Out: a table, or JSON.
//! Must not know: how a package is fetched.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use campaign::cache::Cache;
use campaign::interrupt;
use campaign::kernels::{Entry, Kernel, Kernels, Spec, catalogue};
use serde_json::{Value, json};

/// The file name that means standard output.
const STDOUT: &str = "-";

/// Arguments of `racegate kernels`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// List the packaged kernels that have names, and which of them are here
    List {
        /// Also write the list as JSON to FILE ("-" is standard output, in place of the table)
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Build the newest kernel of a series from Debian's source, with fixes taken out
    Build {
        /// Series: 5.10, 6.1, 6.12 or 7.2
        #[arg(long, value_name = "SERIES")]
        series: String,
        /// Fix to take out, may be repeated: M01 is the one of the founding bug
        #[arg(long, value_name = "FIX")]
        without: Vec<String>,
        /// Also write the result as JSON to FILE ("-" is standard output, in place of the text)
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Fetch kernels into the cache and say where they are
    Fetch {
        /// Kernel: a name of the list, a Debian package (linux-image-X[/SUITE][=VERSION]), or the
        /// path of a bzImage, which is only checked
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Folder with the modules of the bzImage that is given by path
        #[arg(long, value_name = "DIR")]
        modules: Option<PathBuf>,
        /// Also write the result as JSON to FILE ("-" is standard output, in place of the text)
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
}

/// Carries out `racegate kernels`.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    interrupt::install().context("Could not take over the interrupt signals")?;
    let cache = Cache::open()?;
    let kernels = Kernels::new(&cache);
    match args.verb {
        Verb::List { json } => list(&kernels, json.as_deref()),
        Verb::Build { series, without, json } => {
            show(&[kernels.build(&series, &without)?], json.as_deref())
        }
        Verb::Fetch { names, modules, json } => {
            fetch(&kernels, &names, modules.as_deref(), json.as_deref())
        }
    }
}

/// One name of the catalogue with its packages, the one to be preferred first.
struct Named {
    name: String,
    packages: Vec<&'static Entry>,
}

fn named() -> Vec<Named> {
    let mut all: Vec<Named> = Vec::new();
    for entry in catalogue() {
        let name = entry.name();
        match all.last_mut() {
            Some(last) if last.name == name => last.packages.push(entry),
            _ => all.push(Named { name, packages: vec![entry] }),
        }
    }
    all
}

fn list(kernels: &Kernels, json: Option<&Path>) -> anyhow::Result<ExitCode> {
    let all = named();
    if json != Some(Path::new(STDOUT)) {
        let mut table = format!("{:<20} {:<7} {:<20} package\n", "name", "here", "suite");
        for Named { name, packages } in &all {
            // The one that is here, else the one that would be fetched.
            let here = packages.iter().find(|entry| kernels.is_cached(entry));
            let Some(entry) = here.or(packages.first()) else {
                continue;
            };
            let mark = if here.is_some() { "yes" } else { "" };
            // Writing to a String does not fail.
            let _ = writeln!(
                table,
                "{name:<20} {mark:<7} {:<20} {} {}",
                entry.suite, entry.package, entry.version
            );
        }
        print(&table)?;
    }
    if let Some(destination) = json {
        let kernel = |named: &Named| {
            let packages: Vec<Value> = named
                .packages
                .iter()
                .map(|entry| {
                    json!({
                        "suite": entry.suite,
                        "package": entry.package,
                        "version": entry.version,
                        "cached": kernels.is_cached(entry),
                    })
                })
                .collect();
            json!({ "name": named.name, "packages": packages })
        };
        let kernels: Vec<Value> = all.iter().map(kernel).collect();
        write_json(destination, &json!({ "schema": 1, "kernels": kernels }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn fetch(
    kernels: &Kernels,
    names: &[String],
    modules: Option<&Path>,
    json: Option<&Path>,
) -> anyhow::Result<ExitCode> {
    // All names are read before the first is fetched: a mistake costs no download.
    let specs =
        names.iter().map(|name| Spec::parse(name, modules)).collect::<Result<Vec<_>, _>>()?;
    let mut found = Vec::new();
    for spec in &specs {
        found.push(kernels.fetch(spec)?);
    }
    show(&found, json)
}

fn show(kernels: &[Kernel], json: Option<&Path>) -> anyhow::Result<ExitCode> {
    let mut found: Vec<Value> = Vec::new();
    for Kernel { name, identity, image, modules, .. } in kernels {
        if json != Some(Path::new(STDOUT)) {
            let mut text = format!("{name}: {identity}\n    image   {}\n", image.display());
            if let Some(modules) = modules {
                let _ = writeln!(text, "    modules {}", modules.display());
            }
            print(&text)?;
        }
        found.push(json!({
            "name": name, "identity": identity, "image": image, "modules": modules,
        }));
    }
    if let Some(destination) = json {
        write_json(destination, &json!({ "schema": 1, "kernels": found }))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the value of `--json`: a file, or standard output.
pub(crate) fn write_json(destination: &Path, value: &Value) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    if destination == Path::new(STDOUT) {
        return print(&text);
    }
    std::fs::write(destination, text)
        .with_context(|| format!("--json: cannot write {}", destination.display()))
}

/// Writes to standard output; a reader that has seen enough (`| head`) is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("Cannot write to standard output"),
    }
}
