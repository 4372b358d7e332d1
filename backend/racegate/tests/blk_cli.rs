//! `racegate-blk` as a program: its conventions, its errors, its end.
//!
//! Goal: a user's mistake costs one line that says what to do, and nothing is left behind; a
//! started daemon ends promptly and cleanly. Method: the real program, real files and sockets.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use device::client::{Client, ClientOptions};
use rustix::process::Signal;

#[path = "support/daemon.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod support;

use support::{Control, Daemon, Place, end};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_racegate-blk"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// A folder with an image of 8 MiB in it.
fn place() -> Place {
    let place = Place::for_program(&[env!("CARGO_BIN_EXE_racegate-blk")]);
    place.file("disk", 8 << 20);
    place
}

/// Starts the daemon and waits until it is ready.
fn start(place: &Place, args: &[&str]) -> Daemon {
    let (daemon, said) = place.start(args);
    assert_eq!(said, "");
    daemon
}

fn fails(place: &Place, args: &[&str], words: &[&str]) {
    place.fails(args, words);
}

#[test]
fn capabilities_whatever_else() {
    for args in [vec![], vec!["--blk-file"], vec!["--nonsense", "--fd=x"]] {
        let output = program().args(args).arg("--print-capabilities").output().expect("runs");
        assert!(output.status.success());
        assert!(output.stderr.is_empty());
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let expected =
            serde_json::json!({ "type": "block", "features": ["blk-file", "read-only"] });
        assert_eq!(printed, expected);
    }
}

/// The JSON that is shipped for management programs has the fields of QEMU's vhost-user.json.
#[test]
fn description_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("50-racegate-blk.json");
    let text = fs::read_to_string(path).expect("the description file");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(json["type"], "block");
    assert!(json["description"].is_string());
    assert!(json["binary"].as_str().is_some_and(|path| path.ends_with("/racegate-blk")));
}

#[test]
fn wrong_command_lines() {
    let place = place();
    fails(&place, &[], &["--blk-file", "--help"]);
    fails(&place, &["--blk-file=disk"], &["--socket-path", "--fd"]);
    fails(&place, &["--blk-file=disk", "--socket-path=s", "--fd=3"], &["--socket-path", "--fd"]);
    fails(&place, &["--blk-file=disk", "--socket-path=s", "--nonsense"], &["--nonsense"]);
    fails(&place, &["--blk-file=disk", "--socket-path=s", "--storage=tape"], &["tape"]);
    fails(&place, &["--blk-file=disk", "--socket-path=s", "--num-queues=0"], &["--num-queues"]);
    fails(&place, &["--blk-file=disk", "--socket-path=s", "--num-queues=17"], &["--num-queues"]);
    fails(&place, &["--blk-file=disk", "--socket-path=s", "--queue-size=100"], &["--queue-size"]);
    let long = "--serial=012345678901234567890";
    fails(&place, &["--blk-file=disk", "--socket-path=s", long], &["--serial", "20"]);
    let both = ["--blk-file=disk", "--socket-path=s", "--storage=overlay", "--read-only"];
    fails(&place, &both, &["--read-only", "--storage file"]);
    fails(&place, &["--blk-file=disk", "--fd=77"], &["--fd", "77"]);
    fails(&place, &["--blk-file=disk", "--fd=1"], &["--fd", "0 to 2"]);
    fails(&place, &["--blk-file=disk", "--socket-path=s", "--ready-fd=78"], &["--ready-fd", "78"]);
}

#[test]
fn bad_images() {
    let place = place();
    place.file("empty", 0);
    place.file("odd", 1000);
    fs::create_dir(place.path("folder")).expect("folder");
    for storage in ["file", "memory", "overlay"] {
        let storage = format!("--storage={storage}");
        let bad = |image: &str, words: &[&str]| {
            let image = format!("--blk-file={image}");
            fails(&place, &[&image, "--socket-path=s", &storage], words);
        };
        bad("missing", &["missing", "does not exist"]);
        bad("empty", &["empty", "truncate"]);
        bad("odd", &["odd", "multiple of 512"]);
        bad("folder", &["folder", "disk image"]);
        bad("/dev/null", &["/dev/null", "disk image"]);
    }
}

#[test]
fn locked_image() {
    let place = place();
    let first = start(&place, &["--blk-file=disk", "--socket-path=first"]);
    fails(&place, &["--blk-file=disk", "--socket-path=s"], &["disk", "in use"]);
    fails(
        &place,
        &["--blk-file=disk", "--socket-path=s", "--storage=overlay"],
        &["disk", "in use"],
    );
    assert!(first.terminate().status.success());
    let second = start(&place, &["--blk-file=disk", "--socket-path=s", "--storage=overlay"]);
    let third = start(&place, &["--blk-file=disk", "--socket-path=t", "--storage=overlay"]);
    assert!(second.terminate().status.success());
    assert!(third.terminate().status.success());
}

#[test]
fn bad_sockets() {
    let place = place();
    place.file("plain", 3);
    let _live = UnixListener::bind(place.path("live")).expect("socket");
    let long = "x".repeat(120);
    for option in ["--socket-path", "--control-socket", "--link-socket"] {
        let bad = |path: &str, words: &[&str]| {
            let socket = format!("{option}={path}");
            let mut args = vec!["--blk-file=disk", &socket];
            if option != "--socket-path" {
                args.push("--socket-path=s");
            }
            fails(&place, &args, &[&[option], words].concat());
        };
        bad("plain", &["plain", "not a socket"]);
        bad("live", &["live", "in use"]);
        bad("no/such/s", &["no/such", "folder"]);
        bad(&long, &["too long"]);
    }
    assert_eq!(fs::read(place.path("plain")).expect("still there").len(), 3);
    let nowhere = ["--blk-file=disk", "--socket-path=s", "--event-log=no/log"];
    fails(&place, &nowhere, &["no/log", "event log"]);
    let (ours, _theirs) = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| {
            let stream = std::net::TcpStream::connect(listener.local_addr()?)?;
            Ok((stream, listener))
        })
        .expect("TCP");
    let output = end(place.spawn(&["--blk-file=disk"], &[("--fd", ours.into())]));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("not a Unix stream socket"), "{text}");
}

#[test]
fn bad_rules() {
    let place = place();
    fs::write(place.path("blank.toml"), "").expect("rules");
    let bad = |text: &str, words: &[&str]| {
        fs::write(place.path("rules.toml"), text).expect("rules");
        let args = ["--blk-file=disk", "--socket-path=s", "--rules=rules.toml"];
        fails(&place, &args, words);
    };
    bad("[[rule", &["rules.toml:1"]);
    bad("\n[[rule]]\nname = 3\n", &["rules.toml:3", "name"]);
    bad("[[rule]]\nname='a'\nmach={op='read'}\naction={delay='1s'}\n", &["rules.toml:3", "mach"]);
    bad(
        "[[rule]]\nname='a'\nmatch={op='read',class='blok_bitmap'}\naction={delay='1s'}\n",
        &["rules.toml:3", "blok_bitmap", "block_bitmap"],
    );
    bad(
        "[[rule]]\nname='a'\nmatch={op='read'}\naction={hold={until='rule:b'}}\n",
        &["rules.toml:4", "b"],
    );
    bad("[[rule]]\nname='a'\nmatch={op='read'}\naction={fail='EWHAT'}\n", &["rules.toml:4"]);
    bad("[[rule]]\nname='a'\nmatch={op='read'}\naction={delay='2h'}\n", &["rules.toml:4"]);
    fails(
        &place,
        &["--blk-file=disk", "--socket-path=s", "--rules=none.toml"],
        &["none.toml", "rules file"],
    );
}

/// Rules by class on a disk that is not ext4: the daemon serves, and says once what that means.
#[test]
fn not_ext4_is_a_warning() {
    let place = place();
    let rule = "[[rule]]\nname='a'\nmatch={op='read',class='block_bitmap'}\naction={delay='1ms'}\n";
    fs::write(place.path("rules.toml"), rule).expect("rules");
    let daemon = start(&place, &["--blk-file=disk", "--socket-path=s", "--rules=rules.toml"]);
    let output = daemon.terminate();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success());
    assert_eq!(text.matches("there is no ext4").count(), 1, "{text}");
}

#[test]
fn signals_end_it_cleanly() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = place();
        let daemon = start(
            &place,
            &[
                "--blk-file=disk",
                "--socket-path=s",
                "--control-socket=c",
                "--link-socket=l",
                "--event-log=log",
            ],
        );
        let _idle = UnixStream::connect(place.path("s")).expect("a front-end that says nothing");
        daemon.signal(signal);
        let output = daemon.end();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(place.names(), ["disk", "log"], "the sockets are gone");
    }
}

/// A killed daemon leaves its sockets; the next one takes their place.
#[test]
fn dead_sockets_are_replaced() {
    let place = place();
    let args = ["--blk-file=disk", "--socket-path=s", "--control-socket=c", "--link-socket=l"];
    let killed = start(&place, &args);
    killed.signal(Signal::KILL);
    killed.end();
    assert_eq!(place.names(), ["c", "disk", "l", "s"]);
    let daemon = start(&place, &args);
    assert!(daemon.terminate().status.success());
    assert_eq!(place.names(), ["disk"]);
}

#[test]
fn inherited_sockets() {
    let place = place();
    // Connected: the daemon ends with the connection.
    let (ours, theirs) = UnixStream::pair().expect("socket pair");
    let child = place.spawn(&["--blk-file=disk"], &[("--fd", theirs.into())]);
    ours.shutdown(Shutdown::Both).expect("shutdown");
    drop(ours);
    let output = end(child);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Listening: it goes on, and does not remove what it did not make.
    let listener = UnixListener::bind(place.path("given")).expect("socket");
    let (ready, theirs) = UnixStream::pair().expect("socket pair");
    let inherited = [("--fd", listener.into()), ("--ready-fd", theirs.into())];
    let daemon = Daemon::of(place.spawn(&["--blk-file=disk"], &inherited));
    drop(inherited);
    let mut line = String::new();
    BufReader::new(ready).read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    for _ in 0..3 {
        drop(UnixStream::connect(place.path("given")).expect("connects"));
    }
    let output = daemon.terminate();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(place.names(), ["disk", "given"]);
}

/// Goal: the metrics endpoint tells what `ctl stats` tells, from within the sandbox; the log is
/// JSON if asked for.
#[test]
fn metrics_and_json_log() {
    let place = place();
    let rules = "[[rule]]\nname='a'\nmatch={op='read'}\naction={delay='1ms'}\n";
    fs::write(place.path("rules.toml"), rules).expect("rules");
    let daemon = start(
        &place,
        &[
            "--blk-file=disk",
            "--socket-path=s",
            "--rules=rules.toml",
            "--metrics-socket=m",
            "--log=json:info",
        ],
    );
    let mut client = UnixStream::connect(place.path("m")).expect("connects");
    client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("asks");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\nracegate_requests_total 0\n"), "{answer}");
    assert!(answer.contains("\nracegate_rule_armed{rule=\"a\"} 1\n"), "{answer}");
    // The daemon takes it in, and says so.
    let front_end = UnixStream::connect(place.path("s")).expect("connects");
    front_end.shutdown(Shutdown::Write).expect("hangs up");
    let mut nothing = Vec::new();
    (&front_end).read_to_end(&mut nothing).expect("the daemon hangs up");
    let output = daemon.terminate();
    assert!(!place.path("m").exists());
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("front-end connected"), "{log}");
    for line in log.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
}

#[test]
fn control_from_end_to_end() {
    use serde_json::json;
    let place = place();
    let daemon = start(
        &place,
        &["--blk-file=disk", "--socket-path=s", "--control-socket=c", "--storage=overlay"],
    );
    let mut control = Control::connect(&place);
    assert_eq!(control.ask(&json!({"command": "list"}))["rules"], json!([]));
    let good = "[[rule]]\nname='a'\nmatch={op='read'}\naction={delay='1ms'}\n";
    let loaded = control.ask(&json!({"command": "load", "file": "x.toml", "text": good}));
    assert_eq!(loaded["rules"][0]["name"], "a");
    let bad = "[[rule]]\nname='b'\n";
    let refused = control.ask(&json!({"command": "load", "file": "y.toml", "text": bad}));
    assert!(refused["message"].as_str().is_some_and(|text| text.starts_with("y.toml:")));
    let kept = control.ask(&json!({"command": "list"}));
    assert_eq!((&kept["file"], &kept["rules"][0]["name"]), (&json!("x.toml"), &json!("a")));
    assert_eq!(control.ask(&json!({"command": "disarm", "rule": "a"}))["reply"], "done");
    assert_eq!(control.ask(&json!({"command": "list"}))["rules"][0]["armed"], false);
    assert_eq!(control.ask(&json!({"command": "arm", "rule": "a"}))["reply"], "done");
    assert_eq!(control.ask(&json!({"command": "arm", "rule": "zz"}))["reply"], "error");
    assert_eq!(control.ask(&json!({"command": "release"}))["requests"], 0);
    let sectors = &control.ask(&json!({"command": "layout"}))["sectors"];
    assert_eq!(*sectors, json!({"unknown": (8 << 20) / 512}));
    assert_eq!(control.ask(&json!({"command": "layout", "sector": 1_u64 << 40}))["reply"], "error");
    assert_eq!(control.ask(&json!({"command": "reset"}))["reply"], "done");
    let ping = json!({"command": "send", "message": {"kind": "ping", "id": 1}});
    let refused = control.ask(&ping);
    assert!(refused["message"].as_str().is_some_and(|text| text.contains("--link-socket")));
    assert_eq!(control.ask(&json!("nonsense"))["reply"], "error");

    // A hostile client: a line without end is cut off, and nobody else notices.
    let mut hostile = Control::connect(&place);
    let chunk = vec![b'x'; 1 << 20];
    while hostile.reader.get_mut().write_all(&chunk).is_ok() {}
    // Clients that ask and never read.
    let mut deaf: Vec<Control> = (0..20).map(|_| Control::connect(&place)).collect();
    for client in &mut deaf {
        client.reader.get_mut().set_nonblocking(true).expect("nonblocking");
        while client.reader.get_mut().write(b"{\"command\":\"list\"}\n").is_ok() {}
    }
    // Too many clients: the rest are refused, and served again when others have gone.
    let crowd: Vec<UnixStream> =
        (0..100).map(|_| UnixStream::connect(place.path("c")).expect("connects")).collect();
    assert_eq!(control.ask(&json!({"command": "list"}))["rules"][0]["name"], "a");
    drop((crowd, deaf, hostile));

    assert_eq!(control.ask(&json!({"command": "events"}))["reply"], "done");
    assert_eq!(control.line()["event"], "log");
    let mut other = loop {
        // Those who left are noticed one after the other.
        let mut other = Control::connect(&place);
        if other.ask(&json!({"command": "stats"}))["reply"] == "stats" {
            break other;
        }
    };
    assert_eq!(other.ask(&json!({"command": "release", "rule": "a"}))["reply"], "released");
    let next = std::iter::repeat_with(|| control.line()).find(|line| line["event"] == "release");
    assert_eq!(next.expect("an endless iterator")["rule"], "a");
    assert_eq!(other.ask(&json!({"command": "shutdown"}))["reply"], "done");
    assert_eq!(daemon.end().status.code(), Some(0));
    assert_eq!(place.names(), ["disk"]);
}

#[test]
fn sockets_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let place = place();
    let daemon = start(&place, &["--blk-file=disk", "--socket-path=s", "--control-socket=c"]);
    for socket in ["s", "c"] {
        let mode = fs::metadata(place.path(socket)).expect("socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    assert!(daemon.terminate().status.success());
}

/// Goal: size, write cache and read-only change by command, each word of `racegate ctl` is the
/// one that the daemon knows, and what cannot be is refused with its reason.
#[test]
fn ctl_changes_the_disk() {
    let place = place();
    let ctl = |words: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_racegate"));
        command.args(["ctl", "--socket"]).arg(place.path("c")).args(words.split(' '));
        let output = command.output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let arguments = ["--blk-file=disk", "--socket-path=s", "--control-socket=c"];
    let daemon = start(&place, &arguments);
    for words in ["write-cache off", "write-cache on", "read-only on", "read-only off"] {
        let (good, said) = ctl(words);
        assert!(good, "{words}: {said}");
    }
    for (words, bytes) in [("resize 16777216", 16 << 20), ("resize 4194304", 4 << 20)] {
        assert!(ctl(words).0, "{words}");
        assert_eq!(fs::metadata(place.path("disk")).expect("the image").len(), bytes);
    }
    assert!(!ctl("resize 1000").0, "no multiple of 512");
    assert!(!ctl("read-only maybe").0);
    assert!(daemon.terminate().status.success());

    let daemon = start(&place, &[&arguments[..], &["--read-only"]].concat());
    let (good, said) = ctl("read-only off");
    assert!(!good && said.contains("--read-only"), "{said}");
    assert!(daemon.terminate().status.success());
}

/// Goal: an image that is cut while the daemon, in its sandbox, reads it through its mapping is an
/// error for the guest, and nothing else.
/// Method: the same pages often enough for all that a daemon does to read them; then most are gone.
#[test]
fn an_image_that_is_cut_under_it() {
    const PAGES: u64 = 16;
    let place = place();
    let daemon = start(&place, &["--blk-file=disk", "--socket-path=s"]);
    let options = ClientOptions { queues: 1, slots: 16, slot_bytes: 4096 };
    let client = Client::connect(&place.path("s"), options).expect("connects");
    let mut queue = client.into_queues().pop().expect("a queue");
    let mut reads = |page: u64| {
        queue.read(0, page * 4096, 4096).expect("room");
        queue.kick().expect("kick");
        // A daemon that has died calls nobody.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some((_, well)) = queue.next_ended() {
                break well;
            }
            assert!(Instant::now() < deadline, "no answer for page {page}");
            std::thread::yield_now();
        }
    };
    for _ in 0..16 {
        assert!((0..PAGES).all(&mut reads));
    }
    let disk = fs::File::options().write(true).open(place.path("disk")).expect("the image");
    disk.set_len(4096).expect("cut");
    for page in (1..PAGES).rev() {
        assert!(!reads(page), "page {page} is gone");
    }
    assert!(reads(0), "and the first one is not");
    assert!(daemon.terminate().status.success());
}
