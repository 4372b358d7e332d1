//! `racegate campaign jobs`: a campaign in shards, as a job of a scheduler that is there already.
//!
//! In: a plan, options of `racegate campaign run`, a number of shards. Out: a Slurm array script, or a
//! Kubernetes Indexed Job.
//! Must not know: how a shard runs.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use campaign::plan::Plan;
use serde_json::json;

/// Arguments of `racegate campaign jobs`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Plan: a name that `list` shows, or a TOML file, under a path that every node has
    plan: String,
    /// How many shards
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    shards: u32,
    /// Seed of every random draw: all shards must have the same
    #[arg(long, value_name = "N")]
    seed: u64,
    /// Print a Slurm array script
    #[arg(long, required_unless_present = "kubernetes", conflicts_with = "kubernetes")]
    slurm: bool,
    /// Print a Kubernetes Indexed Job (kubectl apply -f -)
    #[arg(long)]
    kubernetes: bool,
    /// Folder for the databases that every node has
    #[arg(long, value_name = "DIR", default_value = "racegate-shards")]
    folder: PathBuf,
    /// The racegate that nodes, or containers, start
    #[arg(long, value_name = "PATH", default_value = "racegate")]
    program: String,
    /// Image of the containers: one with racegate, QEMU and e2fsprogs
    #[arg(long, value_name = "IMAGE", required_if_eq("kubernetes", "true"))]
    image: Option<String>,
    /// Claim of a volume for the databases, written by all shards
    #[arg(long, value_name = "NAME", default_value = "racegate-shards")]
    claim: String,
    /// Processors of a shard: one for each guest that runs side by side
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Memory of a shard, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    memory_mib: u32,
    /// Options of `racegate campaign run`, after "--"
    #[arg(last = true, value_name = "OPTION")]
    options: Vec<String>,
}

/// Options that the job itself gives.
const OWN: [&str; 5] = ["--seed", "--shard", "--db", "--resume", "--jobs"];

/// Prints the job.
pub(super) fn print(args: &Args) -> anyhow::Result<ExitCode> {
    Plan::find(&args.plan)?;
    let given =
        |own: &&&str| args.options.iter().any(|option| option.split('=').next() == Some(**own));
    if let Some(own) = OWN.iter().find(given) {
        bail!("{own} is given to each shard by the job; leave it out after \"--\"");
    }
    let text = if args.kubernetes { kubernetes(args)? } else { slurm(args) };
    print!("{text}");
    Ok(ExitCode::SUCCESS)
}

/// A word for a shell.
pub(super) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A script for `sbatch`. A shard that is killed and queued again goes on where it stopped.
fn slurm(args: &Args) -> String {
    let Args { plan, shards, seed, program, cpus, memory_mib, .. } = args;
    let folder = quote(&args.folder.to_string_lossy());
    let options = args.options.iter().fold(String::new(), |text, word| text + " " + &quote(word));
    let (program, plan) = (quote(program), quote(plan));
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write!(
        text,
        "#!/bin/sh
# {shards} shards of one campaign. Submit with: sbatch FILE
# When all are over: {program} merge {folder}/shard-*.db --into {folder}/all.db
#SBATCH --job-name=racegate
#SBATCH --array=1-{shards}
#SBATCH --cpus-per-task={cpus}
#SBATCH --mem={memory_mib}M
#SBATCH --requeue
#SBATCH --signal=B:INT@60
#SBATCH --output=racegate-%A-%a.log

mkdir -p {folder} || exit 2
# Slurm's signal reaches this shell, which passes it on.
{program} campaign run {plan} --seed {seed} --shard \"$SLURM_ARRAY_TASK_ID/{shards}\" \\
    --jobs {cpus} --resume --db {folder}/shard-\"$SLURM_ARRAY_TASK_ID\".db{options} &
shard=$!
trap 'kill -TERM \"$shard\"' INT TERM
wait \"$shard\"
status=$?
# A wait that a signal ended is followed by one for the shard itself.
while kill -0 \"$shard\" 2>/dev/null; do wait \"$shard\"; status=$?; done
exit \"$status\"
"
    );
    text
}

/// A manifest for `kubectl apply`, as JSON, which is YAML. A pod that fails is started again and goes
/// on where it stopped.
fn kubernetes(args: &Args) -> anyhow::Result<String> {
    let Args { plan, shards, seed, program, claim, cpus, memory_mib, .. } = args;
    let Some(image) = &args.image else {
        bail!("give --image: the containers need one with racegate, QEMU and e2fsprogs");
    };
    let options = args.options.iter().fold(String::new(), |text, word| text + " " + &quote(word));
    let (program, plan) = (quote(program), quote(plan));
    // The index counts from 0, shards from 1.
    let command = format!(
        "n=$((JOB_COMPLETION_INDEX + 1)); exec {program} campaign run {plan} --seed {seed} \
         --shard \"$n/{shards}\" --jobs {cpus} --resume --db \"/shards/shard-$n.db\"{options}"
    );
    let resources = json!({"cpu": cpus.to_string(), "memory": format!("{memory_mib}Mi")});
    let manifest = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "racegate"},
        "spec": {
            "completionMode": "Indexed",
            "completions": shards,
            "parallelism": shards,
            "backoffLimitPerIndex": 3,
            "template": {"spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "shard",
                    "image": image,
                    "command": ["/bin/sh", "-c", command],
                    "resources": {"requests": resources, "limits": resources},
                    "volumeMounts": [{"name": "shards", "mountPath": "/shards"}],
                }],
                "volumes": [{
                    "name": "shards",
                    "persistentVolumeClaim": {"claimName": claim},
                }],
            }},
        },
    });
    Ok(format!("{manifest:#}\n"))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Bare {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Args {
        let common = ["jobs", "mkwrite-fallocate", "--shards", "8", "--seed", "7"];
        Bare::parse_from([&common[..], line].concat()).args
    }

    #[test]
    fn a_slurm_script_is_one_that_a_shell_takes() {
        let odd = ["--slurm", "--folder", "a b", "--", "--kernel", "it's", "--trials", "16"];
        let script = slurm(&args(&odd));
        assert!(script.contains("#SBATCH --array=1-8\n"), "{script}");
        assert!(script.contains("--kernel 'it'\\''s' --trials 16 &"), "{script}");
        assert!(script.contains("mkdir -p 'a b'"), "{script}");
        let mut shell = std::process::Command::new("sh");
        let status = shell.args(["-n", "-c", &script]).status().unwrap();
        assert!(status.success());
    }

    #[test]
    fn an_indexed_job_has_a_pod_for_each_shard() {
        let text = kubernetes(&args(&["--kubernetes", "--image", "racegate:1"])).unwrap();
        let job: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(job["spec"]["completionMode"], "Indexed");
        assert_eq!(job["spec"]["completions"], 8);
        let container = &job["spec"]["template"]["spec"]["containers"][0];
        let command = container["command"][2].as_str().unwrap();
        assert!(command.contains("--shard \"$n/8\"") && command.contains("--resume"), "{command}");
    }

    #[test]
    fn what_the_job_gives_is_not_given_twice() {
        for own in ["--seed", "--shard=1/2", "--db"] {
            let error = print(&args(&["--slurm", "--", own])).unwrap_err().to_string();
            assert!(error.contains("leave it out"), "{error}");
        }
    }
}
