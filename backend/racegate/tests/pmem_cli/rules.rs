//! Rules on pages: delayed, held and failed by what they are, again and again.
//!
//! No time is asserted but that a delay is never shorter than asked for; what was not delayed is
//! told by the rules' counts.

use std::time::{Duration, Instant};

use device::dax::{Domain, Writer};
use rustix::io::Errno;
use serde_json::json;

use crate::server::{PAGE, Server, until, word};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("rules::a_bitmap_is_slow_and_nothing_else", a_bitmap_is_slow_and_nothing_else),
    ("rules::a_page_is_slow_again", a_page_is_slow_again),
    ("rules::a_cached_page_is_slow_after_loading", a_cached_page_is_slow_after_loading),
    ("rules::a_held_page_holds_up_nobody_else", a_held_page_holds_up_nobody_else),
    ("rules::a_failed_page_is_a_bus_error", a_failed_page_is_a_bus_error),
    ("rules::stores_and_flushes", stores_and_flushes),
    ("rules::two_pages_wait_at_the_same_time", two_pages_wait_at_the_same_time),
];

const SLOW: &str = "[[rule]]\nname = 'slow'\n\
                    match = { op = ['read', 'fault'], class = 'block_bitmap' }\n\
                    action = { delay = '30ms' }\n";

const HELD: &str = "[[rule]]\nname = 'held'\n\
                    match = { op = 'fault', class = 'block_bitmap' }\n\
                    action = { hold = { until = 'control', at_most = '60s' } }\n";

fn a_bitmap_is_slow_and_nothing_else() {
    let server = Server::with_rules(SLOW, &[]);
    let bitmap = server.page_of("block_bitmap");
    let mapped = server.map();
    for page in [0, bitmap + 1, bitmap - 1, bitmap + 500] {
        word(&mapped, page).expect("read");
    }
    assert_eq!(server.count("slow", "matched"), 0);
    let start = Instant::now();
    word(&mapped, bitmap).expect("read");
    assert!(start.elapsed() >= Duration::from_millis(30), "{:?}", start.elapsed());
    assert_eq!(server.count("slow", "fired"), 1);
    drop(mapped);
    server.terminate();
}

fn a_page_is_slow_again() {
    let server = Server::with_rules(SLOW, &[]);
    let bitmap = server.page_of("block_bitmap");
    let mapped = server.map();
    // By itself.
    until("touched five times", || {
        word(&mapped, bitmap).expect("read");
        server.count("slow", "fired") >= 5
    });
    // When told to, at once.
    word(&mapped, bitmap).expect("read");
    for _ in 0..3 {
        let before = server.count("slow", "fired");
        server.command("rearm");
        word(&mapped, bitmap).expect("read");
        assert_eq!(server.count("slow", "fired"), before + 1);
    }
    drop(mapped);
    server.terminate();
}

fn a_cached_page_is_slow_after_loading() {
    let server = Server::start(&["--storage=overlay"]);
    let mapped = server.map();
    for page in 0..64 {
        mapped.store_word(page * PAGE + 4088, page).expect("stored");
    }
    let answer = server.ask(&json!({ "command": "load", "file": "x.toml", "text": SLOW }));
    assert_eq!(answer["rules"][0]["name"], "slow");
    let bitmap = server.page_of("block_bitmap");
    word(&mapped, bitmap).expect("read");
    assert_eq!(server.count("slow", "fired"), 1);
    for page in 0..64 {
        assert_eq!(mapped.read_word(page * PAGE + 4088), Ok(page), "nothing is lost");
    }
    drop(mapped);
    server.terminate();
}

fn a_held_page_holds_up_nobody_else() {
    let server = Server::with_rules(HELD, &[]);
    let bitmap = server.page_of("block_bitmap");
    let toucher = server.touch_elsewhere(bitmap);
    until("held", || server.count("held", "parked") == 1);
    let mapped = server.map();
    for page in (0..1000).filter(|page| *page != bitmap) {
        word(&mapped, page).expect("read");
    }
    mapped.store_word(2000 * PAGE, 1).expect("stored");
    Writer::new(&mapped).drain().expect("drained");
    // Other pages are thrown out meanwhile, the held one is not waited for.
    server.command("rearm");
    server.command("layout");
    assert!(!toucher.has_said());
    assert_eq!(server.command("release")["requests"], 1);
    toucher.word();
    drop(mapped);
    server.terminate();
}

fn a_failed_page_is_a_bus_error() {
    let rules = "[[rule]]\nname = 'worn'\nmatch = { op = 'fault', class = 'inode_bitmap' }\n\
                 action = { fail = 'EIO' }\n";
    let server = Server::with_rules(rules, &[]);
    let bitmap = server.page_of("inode_bitmap");
    assert!(server.touch_elsewhere(bitmap).died(), "it should have died of it");
    assert!(!server.touch_elsewhere(bitmap - 1).died(), "its neighbour is whole");
    assert!(server.touch_elsewhere(bitmap).died(), "it stays failed");
    server.ask(&json!({ "command": "disarm", "rule": "worn" }));
    assert!(!server.touch_elsewhere(bitmap).died(), "and is whole again");
    server.terminate();
}

/// Write-backs and flushes are delayed and failed like faults.
fn stores_and_flushes() {
    let rules = "[[rule]]\nname = 'slow'\nmatch = { op = 'store', sector = 8000 }\n\
                 action = { delay = '20ms' }\n\
                 [[rule]]\nname = 'worn'\nmatch = { op = 'store', sector = 8800 }\n\
                 action = { fail = 'ENOSPC' }\n\
                 [[rule]]\nname = 'flush'\nmatch = { op = 'flush' }\n\
                 action = { delay = '20ms' }\n";
    let server = Server::with_rules(rules, &[]);
    let mapped = server.map();
    let mut writer = Writer::new(&mapped);
    let start = Instant::now();
    writer.write(8000 * 512, &[1; 8]).expect("stored");
    writer.drain().expect("durable");
    assert!(start.elapsed() >= Duration::from_millis(40), "{:?}", start.elapsed());
    assert_eq!((server.count("slow", "fired"), server.count("flush", "fired")), (1, 1));
    writer.write(8800 * 512, &[1; 8]).expect("stored");
    assert_eq!(writer.drain(), Err(Errno::NOSPC));
    assert!(server.count("worn", "fired") >= 1);
    drop(writer);
    drop(mapped);
    server.terminate();
}

/// Two delays run side by side: both touchers wait before the first has its page.
fn two_pages_wait_at_the_same_time() {
    let rules = "[[rule]]\nname = 'both'\nmatch = { op = 'fault', sector = [800, 1600] }\n\
                 action = { hold = { until = 'control', at_most = '60s' } }\n";
    let server = Server::with_rules(rules, &[]);
    let touchers = [server.touch_elsewhere(100), server.touch_elsewhere(200)];
    until("both held", || server.count("both", "parked") == 2);
    assert_eq!(server.command("release")["requests"], 2);
    for toucher in touchers {
        toucher.word();
    }
    server.terminate();
}
