use std::os::unix::process::ExitStatusExt as _;

use super::*;

const LIMIT: Duration = Duration::from_secs(60);

fn say(inbox: &Inbox, text: &str) {
    let line = Line { at: Instant::now(), source: Source::Guest, text: text.to_owned() };
    inbox.sender().send(Notice::Console(line)).unwrap();
}

#[test]
fn a_wait_takes_what_it_waits_for_and_passes_over_the_rest() {
    let mut inbox = Inbox::new();
    say(&inbox, "booting");
    inbox.sender().send(Notice::EventsEnded).unwrap();
    say(&inbox, "ready 7");
    let ready = inbox.wait_for("ready", LIMIT, |notice| match notice {
        Notice::Console(line) => line.text.strip_prefix("ready ")?.parse::<u32>().ok(),
        _ => None,
    });
    assert_eq!(ready.unwrap(), 7);
}

#[test]
fn a_wait_without_end_names_its_condition_and_quotes_the_console() {
    let mut inbox = Inbox::new();
    for number in 0..30 {
        say(&inbox, &format!("line {number}"));
    }
    let error = inbox.wait_for("the guest's hello", Duration::ZERO, |_| None::<()>);
    // With no time at all it may have read none of the lines; with a little, all of them.
    assert!(matches!(error, Err(WaitError::TimedOut { what: "the guest's hello", .. })));
    let error = inbox.wait_for("it", Duration::from_millis(200), |_| None::<()>).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("\n    line 29") && text.contains("\n    line 10"), "{text}");
    assert!(!text.contains("line 9\n"), "{text}");
}

#[test]
fn an_end_that_nobody_asked_for_is_an_error_and_one_that_is_is_not() {
    let status = ExitStatus::from_raw(256);
    let mut inbox = Inbox::new();
    inbox.sender().send(Notice::VmExited(status)).unwrap();
    inbox.sender().send(Notice::VmExited(status)).unwrap();
    let error = inbox.wait_for("it", LIMIT, |_| None::<()>).unwrap_err();
    assert!(matches!(error, WaitError::VmExited { .. }), "{error}");
    let end = inbox.wait_for("the end", LIMIT, |notice| match notice {
        Notice::VmExited(status) => Some(*status),
        _ => None,
    });
    assert_eq!(end.unwrap(), status);
}

#[test]
fn a_machine_that_is_to_end_may_be_outrun_by_its_backend() {
    let ended = |code: i32| Notice::BackendExited {
        status: ExitStatus::from_raw(code << 8),
        stderr: "no room".to_owned(),
    };
    let gone = Notice::VmExited(ExitStatus::from_raw(0));
    let mut inbox = Inbox::new();
    for notice in [ended(0), ended(0), gone.clone()] {
        inbox.sender().send(notice).unwrap();
    }
    let mut seen = 0;
    inbox.wait_machine_gone("off", LIMIT, |_| seen += 1).unwrap();
    assert_eq!(seen, 3);
    // One that failed is told.
    for notice in [ended(1), gone] {
        inbox.sender().send(notice).unwrap();
    }
    let error = inbox.wait_machine_gone("off", LIMIT, |_| {}).unwrap_err();
    assert!(matches!(error, WaitError::BackendExited { .. }), "{error}");
}

#[test]
fn a_panic_is_told_in_the_kernels_words() {
    let mut inbox = Inbox::new();
    say(&inbox, "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs");
    say(&inbox, "[    1.1] Rebooting in 1 seconds..");
    inbox.sender().send(Notice::VmExited(ExitStatus::from_raw(0))).unwrap();
    let error = inbox.wait_for("hello", LIMIT, |_| None::<()>).unwrap_err();
    let WaitError::Panicked { panic, .. } = &error else { panic!("{error}") };
    assert!(panic.ends_with("Unable to mount root fs"));
}

#[test]
fn a_backend_that_ends_brings_its_last_words() {
    let mut inbox = Inbox::new();
    let stderr = "image is locked".to_owned();
    let status = ExitStatus::from_raw(256);
    inbox.sender().send(Notice::BackendExited { status, stderr }).unwrap();
    let error = inbox.wait_for("it", LIMIT, |_| None::<()>).unwrap_err();
    assert!(error.to_string().ends_with("image is locked"), "{error}");
}
