//! However the server ends: nobody hangs, nothing stays mounted.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use device::dax::{Domain, Writer};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::server::{PAGE, PAGES, Server, is_mounted, place, until, word};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("ends::killed_with_a_page_held", killed_with_a_page_held),
    ("ends::killed_while_it_throws_pages_out", killed_while_it_throws_pages_out),
    ("ends::signals_let_go", signals_let_go),
    ("ends::unmounted_from_outside", unmounted_from_outside),
    ("ends::shutdown_by_command", shutdown_by_command),
];

pub(crate) const ROOT_TESTS: &[(&str, fn())] = &[("ends::full_disk", full_disk)];

const HELD: &str = "[[rule]]\nname = 'held'\nmatch = { op = 'fault', sector = 800 }\n\
                    action = { hold = { until = 'control', at_most = '60s' } }\n";

fn gone(server: &Server) {
    let point = server.place.path("mount");
    until("unmounted", || !is_mounted(&point));
    assert_eq!(fs::read_dir(&point).expect("the folder is a folder again").count(), 0);
}

/// kill -9: who waits for a page gets SIGBUS, and so does who touches one that is not cached.
fn killed_with_a_page_held() {
    let mut server = Server::with_rules(HELD, &[]);
    let toucher = server.touch_elsewhere(100);
    until("held", || server.count("held", "parked") == 1);
    server.daemon().signal(Signal::KILL);
    server.end();
    assert!(toucher.died(), "there was nobody to give it a page");
    gone(&server);
}

/// kill -9 while a thread of the server waits for a write-back that its own rule holds: that
/// thread cannot be killed before the connection ends.
fn killed_while_it_throws_pages_out() {
    let rules = "[[rule]]\nname = 'held'\nmatch = { op = 'store', sector = 800 }\n\
                 action = { hold = { until = 'control', at_most = '60s' } }\n";
    let mut server = Server::with_rules(rules, &[]);
    let mapped = server.map();
    mapped.store_word(100 * PAGE, 1).expect("stored");
    until("held", || server.count("held", "parked") == 1);
    server.daemon().signal(Signal::KILL);
    server.end();
    gone(&server);
}

/// SIGTERM and Ctrl-C: who waits for a page gets it.
fn signals_let_go() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Server::with_rules(HELD, &[]);
        let toucher = server.touch_elsewhere(100);
        until("held", || server.count("held", "parked") == 1);
        server.daemon().signal(signal);
        assert_eq!(toucher.word(), 0);
        let output = server.end();
        assert!(output.status.success(), "{output:?}");
        gone(&server);
    }
}

fn unmounted_from_outside() {
    let mut server = Server::start(&["--storage=overlay"]);
    let point = server.place.path("mount");
    if !is_mounted(&point) {
        // In a namespace of its own nobody can.
        return drop(server.terminate());
    }
    let unmounted = Command::new("umount").arg(&point).status().expect("umount");
    assert!(unmounted.success());
    let output = server.end();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("unmounted from outside"), "{text}");
    gone(&server);
}

fn shutdown_by_command() {
    let mut server = Server::start(&["--storage=overlay"]);
    server.command("shutdown");
    assert!(server.end().status.success());
    gone(&server);
}

/// A small file system, unmounted at the end.
struct Small(PathBuf);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// The image is sparse, and its file system has no room for all of it.
fn full_disk() {
    let place = place();
    let small = Small(place.path("small"));
    fs::create_dir(&small.0).expect("folder");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4M", "none"])
        .arg(&small.0)
        .status()
        .expect("mount");
    assert!(mounted.success());
    fs::File::create(small.0.join("image"))
        .and_then(|file| file.set_len(PAGES * PAGE))
        .expect("image");
    let mut args = vec!["--pmem-file=small/image", "--mount-point=mount"];
    args.push("--control-socket=c");
    let mut server = Server::start_at(place, &args);
    let mapped = server.map();
    for page in 0..PAGES {
        mapped.store_word(page * PAGE, page + 1).expect("stored");
    }
    let mut writer = Writer::new(&mapped);
    writer.note(0..PAGES * PAGE);
    let errno = writer.drain().expect_err("16 MiB do not fit into 4");
    assert!(matches!(errno, Errno::NOSPC | Errno::IO), "{errno}");
    // It still answers.
    assert_eq!(word(&mapped, PAGES - 1).map(|word| word > 0), Ok(true));
    assert_eq!(server.command("list")["reply"], "rules");
    drop(writer);
    drop(mapped);
    server.daemon().signal(Signal::TERM);
    let _ = server.end();
    gone(&server);
}
