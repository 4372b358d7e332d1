//! Counts and latencies from a queue to whoever looks: `racegate ctl stats`, `racegate top`, the
//! metrics endpoint.
//!
//! Goal: what a client did is what is told, by queue, operation, class and rule; and a terminal is
//! left as it was. Method: the real programs, a real front-end, a terminal of our own.

mod support {
    #![allow(dead_code)]
    pub(crate) mod daemon;
}

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use device::client::{Client, ClientOptions, ClientQueue};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use support::daemon::{Control, Daemon, PATIENCE, Place, end};

/// A disk whose sectors nobody knows, and two rules about it.
const RULES: &str = r#"
[[rule]]
name = "slow"
match = { op = "read", class = "unknown", sector = "0..1024" }
action = { delay = "20ms" }

[[rule]]
name = "held"
match = { op = "write", class = "unknown", sector = "2048..4096" }
action = { hold = { until = "control", at_most = "60s" } }
"#;

fn started() -> (Place, Daemon, Vec<ClientQueue>) {
    let place = Place::for_program(&[env!("CARGO_BIN_EXE_racegate-blk")]);
    place.file("disk", 8 << 20);
    fs::write(place.path("rules.toml"), RULES).expect("rules");
    let args = [
        "--blk-file=disk",
        "--socket-path=s",
        "--control-socket=c",
        "--metrics-socket=m",
        "--rules=rules.toml",
        "--num-queues=2",
    ];
    let (daemon, said) = place.start(&args);
    assert_eq!(said, "");
    let options = ClientOptions { queues: 2, slots: 16, slot_bytes: 4096 };
    let client = Client::connect(&place.path("s"), options).expect("connects");
    (place, daemon, client.into_queues())
}

/// Waits for that many requests to end, well.
fn finish(queue: &mut ClientQueue, requests: usize) {
    queue.kick().expect("kick");
    let mut ended = 0;
    queue.want_call(true);
    while ended < requests {
        match queue.next_ended() {
            Some((_, well)) => {
                assert!(well, "a request failed");
                ended += 1;
            }
            None => queue.wait().expect("a call"),
        }
    }
}

fn racegate(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_racegate"));
    command.current_dir(place.path("")).args(args).stdin(Stdio::null());
    command
}

fn stats(place: &Place) -> Value {
    Control::connect(place).ask(&json!({"command": "stats"}))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The one of `list` whose `key` is `name`.
fn named<'a>(list: &'a Value, key: &str, name: &str) -> &'a Value {
    let mut found = list.as_array().expect("a list").iter().filter(|of| of[key] == name);
    let first = found.next().unwrap_or_else(|| panic!("no {key} {name} in {list}"));
    assert!(found.next().is_none(), "two of {name}");
    first
}

/// Goal: queues, operations, classes and rules have what was done, and the delay is in the
/// latency of what was delayed alone.
#[test]
fn what_was_done_is_told() {
    let (place, daemon, mut queues) = started();
    for slot in 0..4 {
        queues[0].read(slot, u64::from(slot) * 4096, 4096).expect("room");
    }
    finish(&mut queues[0], 4);
    for slot in 0..3 {
        queues[1].read(slot, (2 << 20) + u64::from(slot) * 4096, 512).expect("room");
        queues[1].write(slot + 4, 4 << 20, 1024).expect("room");
    }
    queues[1].flush(8).expect("room");
    finish(&mut queues[1], 7);

    let told = stats(&place);
    let traffic = &told["traffic"];
    let first = &traffic["queues"][0];
    assert_eq!((&first["in_flight"], &first["parked"]), (&json!(0), &json!(0)), "{first}");
    let slow = named(&first["ops"], "op", "read");
    assert_eq!((&slow["requests"], &slow["bytes"]), (&json!(4), &json!(16384)), "{slow}");
    let delay_ns = 20_000_000;
    assert!(slow["latency"]["min_ns"].as_u64().is_some_and(|ns| ns >= delay_ns / 5 * 4), "{slow}");
    let second = &traffic["queues"][1]["ops"];
    let fast = named(second, "op", "read");
    assert_eq!((&fast["requests"], &fast["bytes"]), (&json!(3), &json!(1536)), "{fast}");
    assert_eq!(named(second, "op", "write")["bytes"], 3072);
    assert_eq!(named(second, "op", "flush")["requests"], 1);
    // Both queues' reads were looked at, because a rule goes by the class of reads.
    let reads: Vec<&Value> = traffic["classes"].as_array().expect("a list").iter().collect();
    let reads = reads.iter().find(|of| of["op"] == "read").expect("reads by class");
    assert_eq!((&reads["class"], &reads["requests"]), (&json!("unknown"), &json!(7)), "{reads}");
    assert_eq!(named(&told["rules"], "name", "slow")["fired"], 4);

    let output = racegate(&place, &["ctl", "--socket", "c", "stats"]).output().expect("runs");
    let printed = text(&output);
    assert!(printed.contains("queue 0: in flight 0, parked 0, refused 0\n    read: 4 requests"));
    assert!(printed.contains("read unknown: 7 requests"), "{printed}");

    let mut client = UnixStream::connect(place.path("m")).expect("connects");
    client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("asks");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    for line in [
        "racegate_queue_requests_total{queue=\"0\",op=\"read\"} 4",
        "racegate_queue_bytes_total{queue=\"1\",op=\"write\"} 3072",
        "racegate_class_requests_total{class=\"unknown\",op=\"read\"} 7",
        "racegate_queue_latency_seconds_count{queue=\"0\",op=\"read\"} 4",
        "racegate_rule_fired_total{rule=\"slow\"} 4",
    ] {
        assert!(answer.lines().any(|of| of == line), "no {line} in {answer}");
    }
    drop(queues);
    // Counts outlive the connection that made them.
    assert_eq!(stats(&place)["traffic"]["queues"][0]["ops"][0]["requests"], 4);
    assert!(daemon.terminate().status.success());
}

/// Goal: what is held is seen as held; rates are those of the interval.
#[test]
fn top_shows_what_is_held_and_what_moves() {
    let (place, daemon, mut queues) = started();
    queues[1].write(0, 1 << 20, 4096).expect("room");
    queues[1].kick().expect("kick");
    let until = Instant::now() + PATIENCE;
    while stats(&place)["parked"] != 1 {
        assert!(Instant::now() < until, "nothing is parked");
    }
    let once = ["top", "c", "--once", "--json", "--interval", "300ms"];
    let mut top = racegate(&place, &once).stdout(Stdio::piped()).spawn().expect("runs");
    // Load until it has seen enough of it.
    let (mut rounds, until) = (0, Instant::now() + PATIENCE);
    while top.try_wait().expect("a child").is_none() {
        assert!(Instant::now() < until, "it does not end");
        queues[0].write(1, 4 << 20, 4096).expect("room");
        finish(&mut queues[0], 1);
        rounds += 1;
    }
    let output = top.wait_with_output().expect("its output");
    let rates: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    assert_eq!((&rates["schema"], &rates["parked"]), (&json!(1), &json!(1)), "{rates}");
    assert_eq!(rates["queues"][1]["parked"], 1);
    assert_eq!(rates["queues"][1]["in_flight"], 1);
    let moved = rates["requests_per_s"].as_f64().expect("a number");
    assert!(moved > 0.0 && moved <= f64::from(rounds) / 0.3, "{moved} of {rounds} rounds");
    assert!(rates["queues"][0]["ops"][0]["latency"]["p50_ns"].is_u64());
    assert_eq!(named(&rates["rules"], "name", "held")["parked"], 1);

    let once = ["top", "c", "--once", "--interval", "20ms"];
    let printed = text(&racegate(&place, &once).output().expect("runs"));
    assert!(printed.contains("parked 1") && printed.contains("held"), "{printed}");
    assert!(!printed.contains('\u{1b}'), "no control sequences in a file");
    Control::connect(&place).ask(&json!({"command": "release", "rule": "held"}));
    finish(&mut queues[1], 1);
    assert!(daemon.terminate().status.success());
}

/// Both ends of a new terminal.
fn terminal() -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&ours).expect("its other end");
    unlockpt(&ours).expect("its other end");
    let path = ptsname(&ours, Vec::new()).expect("its name");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let theirs = rustix::fs::open(path, flags, Mode::empty()).expect("its other end");
    (File::from(ours), theirs)
}

/// What a program wrote to a terminal, until `wanted` was in it.
fn until_shown(terminal: &mut File, wanted: &str) -> String {
    let (mut shown, mut part) = (String::new(), [0; 4096]);
    let until = Instant::now() + PATIENCE;
    while !shown.contains(wanted) {
        assert!(Instant::now() < until, "no {wanted:?} in {shown:?}");
        // Fails when the program has closed its end.
        let Ok(read) = terminal.read(&mut part) else { break };
        shown += &String::from_utf8_lossy(&part[..read]);
    }
    shown
}

fn on_a_terminal(place: &Place) -> (Child, File) {
    let (ours, theirs) = terminal();
    let mut top = racegate(place, &["top", "c", "--interval", "20ms"]);
    top.stdout(theirs).stderr(Stdio::piped());
    (top.spawn().expect("runs"), ours)
}

const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";

/// Goal: however it ends, the terminal is as it was.
#[test]
fn top_leaves_the_terminal_as_it_was() {
    let (place, daemon, _queues) = started();
    let (top, mut terminal) = on_a_terminal(&place);
    let shown = until_shown(&mut terminal, "requests/s");
    assert!(shown.starts_with(ENTER), "{shown:?}");
    kill_process(Pid::from_child(&top), Signal::INT).expect("signal");
    let shown = until_shown(&mut terminal, LEAVE);
    assert!(shown.ends_with(LEAVE), "{shown:?}");
    assert!(end(top).status.success(), "Ctrl-C is how it ends");

    let (top, mut terminal) = on_a_terminal(&place);
    until_shown(&mut terminal, "requests/s");
    assert!(daemon.terminate().status.success());
    assert!(until_shown(&mut terminal, LEAVE).ends_with(LEAVE));
    let output = end(top);
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.lines().count() == 1 && said.contains("the backend went away"), "{said}");
    let output = racegate(&place, &["top", "c", "--once"]).output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("c: no such socket"), "{output:?}");
}
