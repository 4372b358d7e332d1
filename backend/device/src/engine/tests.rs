//! The engine with the real core and layout over images of the real mkfs.ext4, driven as a queue
//! thread drives it.

use std::io::Write;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ext4_layout::{Kind, Layout};
use pipeline::event::{Event, RulesText, What};
use pipeline::replay;
use pipeline::{Op, Outcome, RequestId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{ArrivingRequest, Disposition, Engine, EngineOptions, Interest, Release};
use crate::sink::{Log, Subscription};
use crate::storage::SECTOR_BYTES;
use crate::storage::Storage;
use crate::storage::memory::MemoryStorage;

const DISK_BYTES: u64 = 64 << 20;
/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A log that a test can read.
#[derive(Clone, Default)]
struct Shelf(Arc<Mutex<Vec<u8>>>);

impl Write for Shelf {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Shelf {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8(bytes).expect("lines of JSON")
    }
}

/// The bytes of a fresh ext4 file system.
fn mkfs() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("image");
    std::fs::File::create(&path).and_then(|file| file.set_len(DISK_BYTES)).expect("image");
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-b", "1024"]).arg(&path).output();
    let made = made.expect("mkfs.ext4 (apt install e2fsprogs)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(&path).expect("image")
}

fn disk(bytes: &[u8]) -> Arc<MemoryStorage> {
    let storage = MemoryStorage::new(DISK_BYTES).expect("memory");
    storage.write_at(0, bytes).expect("fits");
    Arc::new(storage)
}

fn engine(storage: Arc<MemoryStorage>, log: Option<Log>) -> Arc<Engine> {
    Engine::new(EngineOptions { queues: 2, seed: 7, storage, log, shadow: None }).expect("engine")
}

fn load(engine: &Engine, rules: &str) {
    let text = RulesText { file: "test.toml".into(), text: rules.into(), ..RulesText::default() };
    engine.load(&text).expect("rules");
}

/// First sector of the block bitmap of a group.
fn bitmap(engine: &Engine, group: u32) -> u64 {
    let spans = engine.layout(0, DISK_BYTES / SECTOR_BYTES).expect("layout");
    let span = spans.iter().find(|span| {
        span.class.home.class == Kind::BlockBitmap && span.class.home.group == Some(group)
    });
    span.expect("every group has one").sector
}

fn arrive(engine: &Engine, queue: u16, op: Op, sector: u64) -> (RequestId, Disposition) {
    assert_eq!(engine.interest(op, sector, 2), Interest::Event);
    let id = engine.next_id();
    let request = ArrivingRequest { id, queue, head: 0, op, sector, sectors: 2 };
    (id, engine.arrive(&request, None))
}

/// Waits until the inbox of a queue has something.
fn released(engine: &Engine, queue: u16) -> Vec<(RequestId, Release)> {
    let inbox = engine.inbox(queue).expect("a queue");
    let limit = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    let mut fds = [PollFd::from_borrowed_fd(inbox.as_fd(), PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&limit)), Ok(1), "nothing was released");
    let mut list = Vec::new();
    inbox.drain(&mut list);
    list
}

#[test]
fn nothing_loaded_nothing_asked() {
    let engine = engine(disk(&mkfs()), None);
    for op in Op::ALL {
        assert_eq!(engine.interest(op, 0, 8), Interest::None);
    }
    load(
        &engine,
        "[[rule]]\nname='r'\nmatch={op='read',class='block_bitmap'}\naction={delay='1s'}",
    );
    assert_eq!(engine.interest(Op::Read, bitmap(&engine, 0), 2), Interest::Event);
    assert_eq!(engine.interest(Op::Read, 2, 2), Interest::None, "the superblock");
    assert_eq!(engine.interest(Op::Flush, 0, 0), Interest::None);
    assert_eq!(engine.interest(Op::Write, 2, 2), Interest::EventWithBytes, "the superblock");
}

#[test]
fn delay_by_class() {
    let engine = engine(disk(&mkfs()), None);
    load(
        &engine,
        "[[rule]]\nname='slow'\nmatch={op='read',class='block_bitmap',group=1}\n\
         action={delay='30ms'}",
    );
    let sector = bitmap(&engine, 1);
    let began = Instant::now();
    let (id, disposition) = arrive(&engine, 1, Op::Read, sector);
    assert_eq!(disposition, Disposition::Park);
    assert_eq!(released(&engine, 1), [(id, Release::Submit)]);
    assert!(began.elapsed() >= Duration::from_millis(30));
    engine.complete(id, Outcome::Ok, Op::Read, sector, 2, None);
    let stats = engine.stats();
    let achieved = stats.rules[0].achieved.as_ref().expect("one delay is over");
    assert_eq!((stats.parked, achieved.count), (0, 1));
    assert!(achieved.min_ns >= 30_000_000);
}

/// A delay that is over early (released) leaves the timer set for a time at which nothing is
/// due; the next one must still come.
#[test]
fn a_delay_after_one_that_was_cut_short() {
    let engine = engine(disk(&mkfs()), None);
    load(
        &engine,
        "[[rule]]\nname='short'\nmatch={op='read',sector='0..8'}\naction={delay='60ms'}\n\
         [[rule]]\nname='long'\nmatch={op='read',sector='8..16'}\naction={delay='90ms'}",
    );
    let (short, _) = arrive(&engine, 0, Op::Read, 0);
    let (long, _) = arrive(&engine, 0, Op::Read, 8);
    assert_eq!(engine.release(Some("short")), Ok(1));
    assert_eq!(released(&engine, 0), [(short, Release::Submit)]);
    assert_eq!(released(&engine, 0), [(long, Release::Submit)]);
}

#[test]
fn holds_end_by_mark_rule_control_limit_and_disconnect() {
    let engine = engine(disk(&mkfs()), None);
    load(
        &engine,
        "[[rule]]\nname='mark'\nmatch={op='read',sector='0..8'}\n\
         action={hold={until='agent:go',at_most='60s'}}\n\
         [[rule]]\nname='gate'\nmatch={op='read',sector='8..16'}\n\
         action={hold={until='rule:key',at_most='60s'}}\n\
         [[rule]]\nname='key'\nmatch={op='flush'}\naction={fail='EIO'}\n\
         [[rule]]\nname='operator'\nmatch={op='read',sector='16..24'}\n\
         action={fail='EIO',hold={until='control',at_most='60s'}}\n\
         [[rule]]\nname='limit'\nmatch={op='read',sector='24..32'}\n\
         action={hold={until='control',at_most='20ms'}}",
    );
    let (mark, disposition) = arrive(&engine, 0, Op::Read, 0);
    assert_eq!(disposition, Disposition::Park);
    engine.agent_mark("go", 1);
    assert_eq!(released(&engine, 0), [(mark, Release::Submit)]);

    let (gate, _) = arrive(&engine, 0, Op::Read, 8);
    let id = engine.next_id();
    let flush = ArrivingRequest { id, queue: 1, head: 0, op: Op::Flush, sector: 0, sectors: 0 };
    assert_eq!(engine.arrive(&flush, None), Disposition::Fail { errno: 5 });
    assert_eq!(released(&engine, 0), [(gate, Release::Submit)], "from another queue");

    let (operator, _) = arrive(&engine, 0, Op::Read, 16);
    assert!(engine.release(Some("nobody")).is_err());
    assert_eq!(engine.release(Some("operator")), Ok(1));
    assert_eq!(released(&engine, 0), [(operator, Release::Fail { errno: 5 })]);

    let (limit, _) = arrive(&engine, 1, Op::Read, 24);
    assert_eq!(released(&engine, 1), [(limit, Release::Submit)]);

    let (first, _) = arrive(&engine, 0, Op::Read, 0);
    let (second, _) = arrive(&engine, 1, Op::Read, 0);
    engine.disconnect();
    assert_eq!(released(&engine, 0), [(first, Release::Submit)]);
    assert_eq!(released(&engine, 1), [(second, Release::Submit)]);
    assert_eq!(engine.stats().parked, 0);
}

/// A blank disk whose guest runs mkfs: the layout must be known once its writes are done, from
/// nothing but those.
#[test]
fn the_layout_follows_mkfs_in_the_guest() {
    let image = mkfs();
    let storage = disk(&[]);
    let engine = engine(storage.clone(), None);
    load(
        &engine,
        "[[rule]]\nname='r'\nmatch={op='read',class='block_bitmap'}\naction={delay='1s'}",
    );
    assert!(!engine.layout_summary().contains_key(&Kind::BlockBitmap));
    let chunk = 64 << 10;
    for (index, bytes) in image.chunks(chunk).enumerate() {
        let (offset, sectors) = ((index * chunk) as u64, chunk as u64 / SECTOR_BYTES);
        let sector = offset / SECTOR_BYTES;
        let interest = engine.interest(Op::Write, sector, sectors);
        if interest == Interest::None {
            storage.write_at(offset, bytes).expect("fits");
            continue;
        }
        let data = (interest == Interest::EventWithBytes).then_some(bytes);
        let id = engine.next_id();
        let request = ArrivingRequest { id, queue: 0, head: 0, op: Op::Write, sector, sectors };
        assert_eq!(engine.arrive(&request, data), Disposition::Submit);
        storage.write_at(offset, bytes).expect("fits");
        engine.complete(id, Outcome::Ok, Op::Write, sector, sectors, data);
    }
    let oracle = Layout::open(&mut image.as_slice(), DISK_BYTES).expect("ext4").map();
    let mut expected = std::collections::BTreeMap::new();
    oracle.classify(0, DISK_BYTES / SECTOR_BYTES, &mut |span| {
        *expected.entry(span.class.kind()).or_insert(0) += span.sectors;
    });
    assert_eq!(engine.layout_summary(), expected);
}

/// Four threads at once: the log has every event, in order, and replays to the same decisions.
#[test]
fn the_log_is_complete_and_replays() {
    const EACH: u64 = 3000;
    let shelf = Shelf::default();
    let log: Log = Box::new(shelf.clone());
    let storage = disk(&[]);
    let engine =
        Engine::new(EngineOptions { queues: 4, seed: 3, storage, log: Some(log), shadow: None })
            .expect("engine");
    load(
        &engine,
        "[[rule]]\nname='some'\nmatch={op='read',probability=0.2}\n\
         action={delay={uniform=['10us','2ms']}}\n\
         [[rule]]\nname='few'\nmatch={op='read',every=50}\naction={fail='EIO'}",
    );
    std::thread::scope(|scope| {
        for queue in 0..4 {
            let engine = &engine;
            scope.spawn(move || {
                let mut parked = 0;
                let finish = |list: Vec<(RequestId, Release)>| {
                    let count = list.len() as u64;
                    for (id, release) in list {
                        assert_eq!(release, Release::Submit);
                        engine.complete(id, Outcome::Ok, Op::Read, 0, 2, None);
                    }
                    count
                };
                for number in 0..EACH {
                    let (id, disposition) = arrive(engine, queue, Op::Read, number * 2);
                    match disposition {
                        Disposition::Park => parked += 1,
                        Disposition::Submit => {
                            engine.complete(id, Outcome::Ok, Op::Read, number * 2, 2, None);
                        }
                        Disposition::Fail { .. } => {
                            engine.complete(id, Outcome::IoErr, Op::Read, number * 2, 2, None);
                        }
                    }
                    if parked > 32 {
                        parked -= finish(released(engine, queue));
                    }
                }
                while parked > 0 {
                    parked -= finish(released(engine, queue));
                }
            });
        }
    });
    engine.settle_events();
    let text = shelf.text();
    let events: Vec<Event> =
        text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    for (before, event) in events.iter().zip(&events[1..]) {
        assert_eq!(event.seq, before.seq + 1);
        assert!(event.at >= before.at);
    }
    let requests = events.iter().filter(|event| matches!(event.what, What::Request { .. })).count();
    let completions =
        events.iter().filter(|event| matches!(event.what, What::Complete { .. })).count();
    assert_eq!((requests as u64, completions as u64), (4 * EACH, 4 * EACH));
    let replayed = replay(text.lines()).expect("a log");
    assert_eq!(replayed.differences, []);
    // The canary: a log with one decision taken out must not pass.
    let victim = text.lines().position(|line| line.contains("\"decision\"")).expect("a decision");
    let forged = text.lines().enumerate().filter(|(index, _)| *index != victim);
    let caught = replay(forged.map(|(_, line)| line)).expect("a log");
    assert!(!caught.differences.is_empty());
}

fn lines(subscription: &Subscription) -> Vec<Event> {
    let mut bytes = Vec::new();
    subscription.take(&mut bytes);
    let text = String::from_utf8(bytes).expect("JSON");
    text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect()
}

/// A subscriber that does not read loses events, is told how many, and harms nobody.
#[test]
fn a_slow_subscriber_is_told_what_it_lost() {
    let engine = engine(disk(&[]), None);
    let slow = engine.subscribe().expect("subscription");
    let mut made = 0_u64;
    let mut push = |count: u64| {
        for number in 0..count {
            let text = "x".repeat(1000);
            engine.agent_message(serde_json::json!({ "number": number, "text": text }));
        }
        engine.settle_events();
        made += count;
    };
    push(20_000);
    let mut seen = lines(&slow);
    assert!(matches!(seen.remove(0).what, What::Log { .. }));
    push(10);
    seen.extend(lines(&slow));
    let is_message = |event: &&Event| matches!(event.what, What::Agent { .. });
    let got = seen.iter().filter(is_message).count() as u64;
    let lost: u64 = seen
        .iter()
        .map(|event| if let What::Lost { events } = event.what { events } else { 0 })
        .sum();
    assert!(lost > 0, "twenty megabytes do not fit");
    let layout_notes =
        seen.iter().filter(|event| matches!(event.what, What::Layout { .. })).count() as u64;
    assert_eq!(got + lost, made, "and {layout_notes} notes of the layout");
    engine.unsubscribe(&slow);
    assert_eq!(engine.interest(Op::Read, 0, 2), Interest::None, "nobody wants events now");
}
