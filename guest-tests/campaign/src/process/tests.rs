//! Children that end, do not end, fork, and lose their parent.

use std::io::{BufRead as _, BufReader};

use super::*;

/// Much longer than any of this takes; a test that fails says so and does not hang.
const LIMIT: Duration = Duration::from_secs(60);

fn sh(script: &str) -> Command {
    let mut command = command("sh", "dash").unwrap();
    command.args(["-c", script]);
    command
}

/// Waits until process `pid`, which need not be a child of this one, is gone.
fn wait_gone(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { panic!("{pid} is no process") };
    // A process that is gone already cannot be opened, which is what is waited for.
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    assert!(poll_until(&mut fds, Some(Instant::now() + LIMIT)).unwrap(), "{pid:?} lives on");
}

#[test]
fn output_status_and_lines_of_a_short_command() {
    let mut lines = Vec::new();
    let script = "echo one; echo two >&2; printf three; exit 3";
    let output = capture(sh(script), LIMIT, |line| lines.push(line.to_owned())).unwrap();
    assert_eq!(output.text(), "one\nthree");
    assert_eq!(output.stderr, b"two\n");
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(lines, ["one"]);
}

#[test]
fn more_output_than_a_pipe_holds_arrives_whole() {
    let output =
        run(sh("head -c 3000000 /dev/zero; head -c 1000000 /dev/zero >&2"), LIMIT).unwrap();
    assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_000, 1_000_000));
}

#[test]
fn a_failure_is_told_in_the_programs_own_words() {
    let error = run(sh("echo first >&2; echo why >&2; exit 1"), LIMIT).unwrap_err();
    assert_eq!(error.to_string(), "sh failed (exit status: 1): first; why");
}

#[test]
fn a_program_that_is_missing_is_told_with_its_package() {
    let error = command("no-such-program", "its-package").unwrap_err().to_string();
    assert_eq!(
        error,
        "no-such-program is not installed; install it with: apt-get install its-package"
    );
}

#[test]
fn a_command_that_does_not_end_is_killed_with_all_that_it_started() {
    let script = "tail -f /dev/null & echo $!; wait";
    let mut grandchild = 0;
    let limit = Duration::from_millis(500);
    let error = capture(sh(script), limit, |line| grandchild = line.parse().unwrap()).unwrap_err();
    assert!(matches!(error, ProcessError::TimedOut { .. }), "{error}");
    wait_gone(grandchild);
}

#[test]
fn a_command_that_ended_is_not_waited_for_because_its_child_keeps_the_pipe() {
    let output = capture(sh("tail -f /dev/null & echo done"), LIMIT, |_| {}).unwrap();
    assert_eq!(output.text(), "done\n");
}

#[test]
fn the_end_is_seen_and_the_group_is_gone_after_drop() {
    let mut command = sh("tail -f /dev/null & echo $!; wait");
    command.stdout(Stdio::piped());
    let mut running = Running::start(command).unwrap();
    let mut lines = BufReader::new(running.take_pipes().0.unwrap()).lines();
    let grandchild: i32 = lines.next().unwrap().unwrap().parse().unwrap();
    let (sender, exits) = mpsc::channel();
    running.on_exit(move |status| sender.send(status).unwrap()).unwrap();
    assert_eq!(running.status(), None);
    drop(running);
    assert_eq!(exits.recv_timeout(LIMIT).unwrap().signal(), Some(9));
    wait_gone(grandchild);
}

#[test]
fn sigterm_reaches_the_child() {
    let running = Running::start(sh("exec tail -f /dev/null")).unwrap();
    running.terminate();
    assert_eq!(running.wait(LIMIT).unwrap().signal(), Some(15));
}

/// Set for the process that [`a_child_dies_with_its_parent`] kills.
const PARENT: &str = "RACEGATE_TEST_PARENT";

#[test]
fn a_child_dies_with_its_parent() {
    if std::env::var_os(PARENT).is_some() {
        // The thread that asks for the child ends; only the death of the process may kill it.
        let start = || Running::start(sh("exec tail -f /dev/null")).unwrap();
        let running = std::thread::spawn(start).join().unwrap();
        println!("\nchild {}", running.pid());
        running.wait(LIMIT).unwrap();
        return;
    }
    let name = "process::tests::a_child_dies_with_its_parent";
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(PARENT, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let child = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("child ").map(|pid| pid.parse().unwrap()));
    let child = child.expect("the parent says which child it has");
    assert!(Path::new(&format!("/proc/{child}")).exists());
    parent.kill().unwrap();
    parent.wait().unwrap();
    wait_gone(child);
}

#[test]
fn lines_end_at_line_ends_and_endless_ones_are_cut() {
    let mut text = b"one\r\n\ntwo".to_vec();
    let mut lines = Vec::new();
    read_lines(text.as_slice(), |line| lines.push(line));
    assert_eq!(lines, ["one", "", "two"]);
    text = vec![b'x'; 150_000];
    lines.clear();
    read_lines(text.as_slice(), |line| lines.push(line));
    assert!(lines.iter().all(|line| line.len() <= 65_536));
    assert_eq!(lines.iter().map(String::len).sum::<usize>(), 150_000);
}
