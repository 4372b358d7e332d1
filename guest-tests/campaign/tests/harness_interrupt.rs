//! Goal: one Ctrl-C ends every wait of the harness, and what was running is gone.
//! Method: this test runs itself as a program of its own, which waits in two ways, and interrupts
//! it; interrupts are of the whole process, so nothing else may run in it.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use campaign::interrupt;
use campaign::notice::{Inbox, WaitError};
use campaign::process::{self, ProcessError};
use rustix::process::{Pid, Signal, kill_process};

const WAITER: &str = "RACEGATE_TEST_WAITER";
const LIMIT: Duration = Duration::from_secs(60);

/// Waits for what never happens, in both ways, and says how the waits end.
fn wait() {
    interrupt::install().unwrap();
    let inbox = std::thread::spawn(|| {
        let error = Inbox::new().wait_for("never", LIMIT, |_| None::<()>).unwrap_err();
        assert!(matches!(error, WaitError::Interrupted { .. }), "{error}");
    });
    let mut command = process::command("sh", "dash").unwrap();
    command.args(["-c", "echo $$; exec tail -f /dev/null"]);
    let error = process::run_lines(command, LIMIT, |pid| println!("\nchild {pid}")).unwrap_err();
    assert!(matches!(error, ProcessError::Interrupted { .. }), "{error}");
    inbox.join().unwrap();
    println!("both waits ended");
}

#[test]
fn one_signal_ends_every_wait() {
    if std::env::var_os(WAITER).is_some() {
        return wait();
    }
    let mut waiter = Command::new(std::env::current_exe().unwrap())
        .args(["one_signal_ends_every_wait", "--exact", "--nocapture"])
        .env(WAITER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(waiter.stdout.take().unwrap()).lines().map_while(Result::ok);
    let child = lines.find_map(|line| line.strip_prefix("child ").map(str::to_owned));
    let child = child.expect("the waiter says which child it has");
    kill_process(Pid::from_child(&waiter), Signal::INT).unwrap();
    assert!(lines.any(|line| line == "both waits ended"));
    assert!(waiter.wait().unwrap().success());
    assert!(!std::path::Path::new(&format!("/proc/{child}")).exists());
}
