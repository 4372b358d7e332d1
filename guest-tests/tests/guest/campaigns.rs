//! Goal: a campaign that was stopped goes on where it was, a campaign stops when its verdict is
//! certain, and a bisection without the plan's rules has no answer.
//! Method: the founding plan on its affected kernel, few trials, a database of its own.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use campaign::bisect::{self, Settings};
use campaign::plan::Plan;
use campaign::runner::{self, Order, Outcome, TrialRecord, UntilSure};
use campaign::sequential::Sequential;
use campaign::store::Store;
use campaign::verdict::Verdict;
use libtest_mimic::Trial;

use crate::machine::{Machine, Which};

const PLAN: &str = "mkwrite-fallocate";
const GATED: &str = "mkwrite-fallocate-gated";
const AFFECTED: &str = "debian-5.10.223";

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    vec![
        machine.test("campaigns::resumed_and_sure", Which::Own, resumed_and_sure),
        machine.test("campaigns::no_rules_no_answer", Which::Own, no_rules_no_answer),
        machine.test("campaigns::replayed", Which::Own, |_| replayed()),
        machine.test("campaigns::minimised", Which::Own, |_| minimised()),
        machine.test("campaigns::git_bisect", Which::Own, |_| git_bisect()),
        machine.test("campaigns::killed_and_resumed", Which::Own, |_| killed_and_resumed()),
    ]
}

fn order(machine: &Machine, trials: u32) -> Result<Order> {
    let plan = Plan::find(PLAN)?;
    let affected = plan.kernels.affected.clone();
    let mut order = machine.campaign(plan, affected.iter().map(String::as_str), trials)?;
    order.only_arms = vec!["rules".to_owned()];
    Ok(order)
}

fn resumed_and_sure(machine: &Machine) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = Arc::new(Store::open(&folder.path().join("results.db"))?);
    // Stopped after one trial of six.
    let mut order = order(machine, 1)?;
    let running = store.begin(PLAN, order.seed, "settings", "")?;
    order.limits.results = Some(running.clone());
    runner::run(&order, &|_| ())?;
    let earlier = running.earlier()?;
    ensure!(earlier.trials.len() == 1 && earlier.timelines.len() == 1, "{earlier:?}");

    order.trials = 6;
    order.limits.earlier = earlier.clone();
    order.limits.until_sure = Some(UntilSure {
        arm: "rules".to_owned(),
        test: Sequential::new(order.plan.rate_if_affected, 0.001),
        at_least: 0,
    });
    let campaign = runner::run(&order, &|_| ())?;
    let arm = campaign.arms.first().context("an arm")?;
    // The first trial is that of before, to the microsecond: it was not run again.
    ensure!(arm.trials.first() == earlier.trials.first(), "{:?}", arm.trials);
    ensure!(arm.trials.len() < 6, "{} trials, though fewer are certain", arm.trials.len());
    ensure!(campaign.verdicts.iter().all(|(_, verdict, _)| *verdict == Verdict::Affected));
    ensure!(campaign.timelines.len() == 1, "the first hit's timeline is lost");
    ensure!(running.earlier()?.trials == arm.trials, "not every trial is stored, once");
    Ok(())
}

fn no_rules_no_answer(machine: &Machine) -> Result<()> {
    let order = order(machine, 1)?;
    let kernels = order.plan.kernels.clone();
    let names: Vec<&str> =
        kernels.affected.iter().chain(&kernels.fixed).map(String::as_str).collect();
    let settings =
        |arm: &str| Settings { arm: arm.to_owned(), error: 0.05, calibrate: 8, most_trials: 20 };
    let mut fetch = |name: &str| machine.kernel(name).map_err(|error| format!("{error:#}"));
    let found = bisect::run(&order, &names, &settings("rules"), &mut fetch, &|_| ())?;
    let change = found.change.with_context(|| format!("no answer: {:?}", found.reason))?;
    ensure!(kernels.fixed.contains(&change.first) && kernels.affected.contains(&change.last));
    ensure!(found.error <= 0.05, "{}", found.error);

    let found = bisect::run(&order, &names, &settings("none"), &mut fetch, &|_| ())?;
    ensure!(found.change.is_none(), "{:?}", found.change);
    let reason = found.reason.unwrap_or_default();
    ensure!(reason.contains("arm none hit"), "{reason}");
    Ok(())
}

/// Names the database to everything that a runner starts.
const MARK: &str = "RACEGATE_TEST_MARK";

/// The tool as a process of its own.
pub(crate) fn racegate(args: &[&str], db: &Path) -> Result<Command> {
    let mut command = racegate_alone()?;
    command.args(args).arg("--db").arg(db).env(MARK, db);
    Ok(command)
}

/// The same, without results.
pub(crate) fn racegate_alone() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Ok(command)
}

fn replayed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (db, json) = (folder.path().join("results.db"), folder.path().join("replay.json"));
    let hit = ["campaign", "run", GATED, "--kernel", AFFECTED, "--trials", "2", "--seed", "1"];
    // An affected kernel is exit status 1.
    let status = racegate(&hit, &db)?.status()?;
    ensure!(status.code() == Some(1), "recording a hit: {status}");
    let mut replay = racegate(&["replay", "1", "--times", "8"], &db)?;
    let status = replay.arg("--json").arg(&json).status()?;
    let told: serde_json::Value = serde_json::from_slice(&std::fs::read(&json)?)?;
    let times = told["repetitions"].as_array().map_or(0, Vec::len);
    ensure!(times == 8 && told["recorded"] == "hit" && told["kernel"] == AFFECTED, "{told}");
    ensure!(status.success() && told["same"] == 8, "{status}: {told}");
    // What is repeated is the trial, not some trial: its seed draws what it drew.
    let stored = Store::open(&db)?.result(1)?;
    ensure!(stored.record.seed == runner::trial_seed(1, 0), "{stored:?}");
    let status = racegate(&["replay", "9"], &db)?.status()?;
    ensure!(status.code() == Some(2), "a result that is not there: {status}");
    Ok(())
}

/// A rule that has nothing to do with the race goes first, whatever the time allows.
fn minimised() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (padded, output) = (folder.path().join("padded.toml"), folder.path().join("small.toml"));
    let useless = "[[rule]]\nname = \"useless\"\nmatch = { op = \"read\", class = \"superblock\" }\n\
                   action = { delay = \"1ms\" }\n\n";
    let text = campaign::plan::text(PLAN).context("the plan")?;
    let text = text.replacen("'''\n[[rule]]", &format!("'''\n{useless}[[rule]]"), 1);
    std::fs::write(&padded, &text)?;
    let (padded, small) = (padded.display().to_string(), output.display().to_string());
    let args = ["minimise", &padded, "--output", &small, "--budget", "60s", "--seed", "1"];
    let status = racegate(&args, &folder.path().join("results.db"))?.status()?;
    ensure!(status.success(), "{status}");
    let small = Plan::find(&small)?;
    let rules = |plan: &Plan| -> Vec<String> {
        plan.arms.iter().flat_map(|arm| arm.rules.names().map(str::to_owned)).collect()
    };
    ensure!(rules(&Plan::find(&padded)?).contains(&"useless".to_owned()), "the canary is there");
    ensure!(rules(&small) == ["delay-bitmap-read"], "{:?}", rules(&small));
    ensure!(small.source.contains("What is raced"), "the comments are gone");
    Ok(())
}

/// Outcome by kernel, arm and trial: what the table of a campaign is made from.
type Table = BTreeMap<(String, String, u32), (u64, &'static str)>;

fn table(db: &Path) -> Result<Table> {
    let mut table = Table::new();
    let store = Arc::new(Store::open(db)?);
    let campaigns = store.campaigns()?;
    ensure!(campaigns.len() == 1, "{campaigns:?}: each start began a campaign of its own");
    for TrialRecord { kernel, arm, trial, seed, outcome, .. } in
        store.earlier(campaigns[0].id)?.trials
    {
        let outcome = match outcome {
            Outcome::Hit { .. } => "hit",
            Outcome::Miss { .. } => "miss",
            Outcome::Invalid { .. } => "invalid",
        };
        let twice = table.insert((kernel, arm, trial), (seed, outcome));
        ensure!(twice.is_none(), "a trial is there twice: {twice:?}");
    }
    Ok(table)
}

/// The runner is killed with SIGKILL at random moments, and started again with `--resume`, until it
/// ends by itself: the table is that of a campaign that nobody disturbed. `RACEGATE_KILLS=20` is
/// the long run.
fn killed_and_resumed() -> Result<()> {
    let kills = std::env::var("RACEGATE_KILLS").map_or(Ok(3), |text| text.parse::<u32>())?;
    let trials = (8 * kills).to_string();
    // Without luck in its timing: an undisturbed run and a disturbed one hit the same trials.
    let run = ["campaign", "run", GATED, "--seed", "7", "--trials", &trials];
    let folder = tempfile::tempdir()?;
    let whole = folder.path().join("whole.db");
    let begun = Instant::now();
    let status = racegate(&run, &whole)?.status()?;
    ensure!(status.code() == Some(1), "undisturbed: {status}");
    // The first half: a machine may be twice as quick the next time, and there is less left to do.
    let half_ms = (begun.elapsed() / 2).as_millis() as u64;

    let parts = folder.path().join("parts.db");
    let mut draw = 0x5eed_u64;
    let mut cut = 0;
    for kill in 0..kills {
        let mut child = racegate(&run, &parts)?.arg("--resume").spawn()?;
        draw = runner::trial_seed(draw, kill);
        // Anywhere from the start over boots to the trials of both guests.
        let until = Instant::now() + Duration::from_millis(draw % half_ms.max(1));
        let ended = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() >= until {
                break None;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        };
        if ended.is_none() {
            child.kill()?;
            child.wait()?;
            cut += 1;
        }
        nothing_is_left(&parts)?;
    }
    let status = racegate(&run, &parts)?.arg("--resume").status()?;
    ensure!(status.code() == Some(1), "resumed to the end: {status}");
    ensure!(cut > 0, "the campaign was over before it was killed once");
    let (whole, parts) = (table(&whole)?, table(&parts)?);
    ensure!(!whole.is_empty() && whole == parts, "{cut} kills:\n{whole:?}\n{parts:?}");
    eprintln!("campaigns::killed_and_resumed: {cut} kills, {} trials", parts.len());
    Ok(())
}

/// Waits until no guest and no backend of a dead runner is left: what it started has the path of
/// its database in its environment.
pub(crate) fn nothing_is_left(db: &Path) -> Result<()> {
    let mark = format!("{MARK}={}\0", db.display());
    let has_mark = |process: &Path| {
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&mark)
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let processes = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.path());
        let left: Vec<_> = processes.filter(|process| has_mark(process)).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "left behind by a killed runner: {left:?}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// A real repository whose commits select a kernel each, and a real `git bisect run`: it names the
/// commit that fixed the bug, and passes over one whose kernel nobody can have (exit status 125).
fn git_bisect() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (repository, db) = (folder.path().join("linux"), folder.path().join("results.db"));
    std::fs::create_dir(&repository)?;
    let git = |args: &[&str]| -> Result<String> {
        let mut command = Command::new("git");
        let who = ["-c", "user.name=t", "-c", "user.email=t@example.org"];
        command.arg("-C").arg(&repository).args(who).args(args);
        let output = command.output().context("git")?;
        let (out, err) = (output.stdout, output.stderr);
        let text = format!("{}{}", String::from_utf8_lossy(&out), String::from_utf8_lossy(&err));
        ensure!(output.status.success(), "git {args:?}: {}: {text}", output.status);
        Ok(text.trim().to_owned())
    };
    git(&["init", "-q"])?;
    // Oldest first; the fix is between 5.10.223 and 5.10.251.
    let history = [AFFECTED, AFFECTED, "debian-5.10.0", "debian-5.10.262", "debian-5.10.262"];
    let mut commits = Vec::new();
    for (number, kernel) in history.iter().enumerate() {
        std::fs::write(repository.join("kernel"), kernel)?;
        git(&["add", "kernel"])?;
        git(&["commit", "-q", "--allow-empty", "-m", &format!("{number}: {kernel}")])?;
        commits.push(git(&["rev-parse", "HEAD"])?);
    }
    let fix = &commits[3];
    // One step, each of its three answers, as git asks for it; quotes keep paths with spaces whole.
    let program = std::env::current_exe()?;
    let step = format!(
        "'{}' bisect {PLAN} --first fixed --seed 1 --db '{}' --kernel \"$(cat kernel)\"",
        program.display(),
        db.display()
    );
    let mut statuses = Vec::new();
    for commit in [&commits[0], &commits[2], &commits[4]] {
        git(&["checkout", "-q", commit])?;
        let mut shell = Command::new("sh");
        let status = shell.arg("-c").arg(&step).current_dir(&repository).status()?;
        statuses.push(status.code());
    }
    ensure!(statuses == [Some(0), Some(125), Some(1)], "good, cannot tell, bad: {statuses:?}");
    // A commit that cannot be told beside the fix: git says that it is one of two.
    git(&["bisect", "start", &commits[4], &commits[0]])?;
    let mut run = Command::new("git");
    run.arg("-C").arg(&repository).args(["bisect", "run", "sh", "-c", &step]);
    let output = run.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (skipped, named) = (commits[2].as_str(), fix.as_str());
    ensure!(text.contains(skipped) && text.contains(named), "{}: {text}", output.status);
    git(&["bisect", "reset"])?;
    // Without it there is one answer.
    git(&["checkout", "-q", &commits[1]])?;
    std::fs::write(repository.join("kernel"), "debian-5.10.262")?;
    git(&["commit", "-q", "-am", "the fix"])?;
    let fix = git(&["rev-parse", "HEAD"])?;
    git(&["commit", "-q", "--allow-empty", "-m", "later"])?;
    git(&["bisect", "start", "HEAD", &commits[0]])?;
    let output = run.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}: {text}", output.status);
    ensure!(text.contains(&format!("{fix} is the first bad commit")), "{text}");
    Ok(())
}
