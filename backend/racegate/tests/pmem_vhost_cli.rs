//! `racegate pmem-vhost` as a program: on a plain file, and on the file of a page server.
//!
//! Goal: a flush of the guest is a flush at the page server, where rules delay, hold and fail it;
//! a page server that dies leaves errors, not a hang; a mistake costs one line.
//! Method: the real programs, each a process of its own; a front-end written here.

#[path = "support/daemon.rs"]
mod daemon;
#[path = "../../device/tests/it/pmem/front_end.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod front_end;
#[path = "../../device/tests/it/raw.rs"]
#[expect(dead_code, reason = "shared with tests that need more of it")]
mod raw;

/// What `raw` and `front_end` wait with.
mod client {
    use std::os::fd::BorrowedFd;
    use std::time::Duration;

    pub(crate) use crate::daemon::PATIENCE;

    pub(crate) fn readable(fd: BorrowedFd<'_>, _patience: Duration) -> bool {
        crate::daemon::readable(fd)
    }
}

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::json;

use daemon::{Control, Daemon, Place, of_threads};
use front_end::{Qemu, SHMEM_REGION};

const BYTES: u64 = 4 << 20;

/// The page server with these rules, the front on its file, and a front-end at that.
struct Stack {
    server: Daemon,
    front: Daemon,
    qemu: Qemu,
    place: Place,
    _front_place: Place,
}

fn front_place() -> Place {
    Place::for_program(&[env!("CARGO_BIN_EXE_racegate"), "pmem-vhost"])
}

impl Stack {
    fn start(rules: &str) -> Stack {
        let place = Place::for_program(&[env!("CARGO_BIN_EXE_racegate-pmem")]);
        place.file("image", BYTES);
        fs::create_dir(place.path("m")).expect("folder");
        fs::write(place.path("rules.toml"), rules).expect("rules");
        let args = "--pmem-file=image --mount-point=m --rules=rules.toml --control-socket=c";
        let (server, file) = place.start(&args.split(' ').collect::<Vec<_>>());
        let (front, front_place, qemu) = front_on(Path::new(&file));
        Stack { server, front, qemu, place, _front_place: front_place }
    }
}

fn front_on(file: &Path) -> (Daemon, Place, Qemu) {
    let place = front_place();
    let file_option = format!("--pmem-file={}", file.display());
    let (front, said) = place.start(&["--socket-path=s", &file_option]);
    assert_eq!(said, "");
    let mut qemu = Qemu::construct(&place.path("s"), BYTES, false);
    qemu.start(SHMEM_REGION);
    qemu.map(file);
    (front, place, qemu)
}

#[test]
fn a_plain_file_and_a_clean_end() {
    let folder = tempfile::tempdir().expect("folder");
    let file: PathBuf = folder.path().join("memory");
    fs::File::create(&file).and_then(|file| file.set_len(BYTES)).expect("file");
    let (front, place, mut qemu) = front_on(&file);
    assert_eq!(qemu.flush(), 0);
    let threads = of_threads(front.pid(), "Seccomp");
    assert!(threads.len() > 3 && threads.iter().all(|mode| mode == "2"), "{threads:?}");
    assert!(of_threads(front.pid(), "NoNewPrivs").iter().all(|has| has == "1"));
    let output = front.terminate();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(place.names(), [""; 0], "the socket is gone");
}

#[test]
fn without_a_sandbox() {
    let place = front_place();
    place.file("memory", BYTES);
    let (front, _) = place.start(&["--socket-path=s", "--pmem-file=memory", "--sandbox=off"]);
    assert!(of_threads(front.pid(), "Seccomp").iter().all(|mode| mode == "0"));
    assert!(front.terminate().status.success());
}

#[test]
fn a_rule_fails_one_flush() {
    let rules = "[[rule]]\nname = \"second\"\nmatch = { op = \"flush\", nth = 2 }\n\
                 action = { fail = \"EIO\" }\n";
    let mut stack = Stack::start(rules);
    assert_eq!((stack.qemu.flush(), stack.qemu.flush(), stack.qemu.flush()), (0, 1, 0));
    let stats = Control::connect(&stack.place).ask(&json!({ "command": "stats" }));
    assert!(stats.to_string().contains("\"second\""), "{stats}");
    drop(stack.qemu);
    assert!(stack.front.terminate().status.success());
    assert!(stack.server.terminate().status.success());
}

#[test]
fn a_held_flush_waits_for_its_release() {
    let rules = "[[rule]]\nname = \"hold\"\nmatch = { op = \"flush\", nth = 1 }\n\
                 action = { hold = { until = \"control\", at_most = \"25s\" } }\n";
    let mut stack = Stack::start(rules);
    let mut control = Control::connect(&stack.place);
    let mut events = Control::connect(&stack.place);
    assert_eq!(events.ask(&json!({ "command": "events" }))["reply"], "done");
    let qemu = &mut stack.qemu;
    qemu.guest.put(0x8_0000, &0_u32.to_le_bytes());
    qemu.guest.put(0x8_0010, &[0xff; 4]);
    let head = qemu.ring.add(&qemu.guest, &[(0x8_0000, 4, false), (0x8_0010, 4, true)]);
    qemu.ring.kick();
    let decided = |event: serde_json::Value| event.to_string().contains("\"decision\"");
    while !decided(events.line()) {}
    assert_eq!(qemu.ring.try_used(&qemu.guest), None);
    control.ask(&json!({ "command": "release", "rule": "hold" }));
    assert_eq!(qemu.ring.wait_used(&qemu.guest), (head, 4));
    assert_eq!(qemu.guest.get(0x8_0010, 4), [0; 4]);
    assert_eq!(qemu.flush(), 0);
}

/// The front of a page server that was killed: flushes fail, and the front ends when it is told.
#[test]
fn a_dead_page_server_is_an_error_not_a_hang() {
    let mut stack = Stack::start("");
    assert_eq!(stack.qemu.flush(), 0);
    stack.server.signal(Signal::KILL);
    stack.server.end();
    assert_eq!(stack.qemu.flush(), 1);
    let output = stack.front.terminate();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn mistakes_cost_one_line() {
    let place = front_place();
    place.file("odd", 3 << 20);
    place.file("good", BYTES);
    place.file("taken", 1);
    let fails =
        |args: &str, words: &[&str]| place.fails(&args.split(' ').collect::<Vec<_>>(), words);
    assert_eq!(fails("--pmem-file=good", &["--socket-path"]), 2);
    assert_eq!(fails("--socket-path=s", &["--pmem-file"]), 2);
    assert_eq!(fails("--socket-path=s --pmem-file=good --region-start=here", &["here"]), 2);
    fails("--socket-path=s --pmem-file=none", &["none", "No such file"]);
    fails("--socket-path=s --pmem-file=odd", &["odd", "3145728", "truncate -s 4194304"]);
    fails("--socket-path=taken --pmem-file=good", &["taken", "not a socket"]);
    fails("--socket-path=s --pmem-file=good --region-start=0x1000", &["0x1000", "2 MiB"]);
}
