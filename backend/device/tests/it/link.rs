//! The link disk through the virtio-driver client.
//!
//! Goal: the agent's messages arrive, its polls are answered in order and in time, and nothing
//! that a guest writes does harm. Method: a link device in this process, frames as the agent
//! makes them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent::wire::{
    self, MAX_FRAME, POLL_LIMIT_MS, TO_GUEST_SECTOR, TO_HOST_SECTOR, ToGuest, ToHost,
};
use device::blk::DeviceOptions;
use device::engine::{Engine, EngineOptions, Interest};
use device::link::{Link, Mailbox};
use device::sink::Subscription;
use device::storage::memory::MemoryStorage;
use pipeline::Op;
use pipeline::event::{Event, RulesText, What};

use crate::client::{Client, all_features};
use crate::served::Served;

const DISK_BYTES: u64 = 1 << 20;
const TO_HOST: u64 = TO_HOST_SECTOR * 512;
const TO_GUEST: u64 = TO_GUEST_SECTOR * 512;
/// Room for the frames of this many polls in the client's memory.
const POLLS: usize = 4;
/// Where the client builds what it writes.
const OUT: usize = POLLS * MAX_FRAME;

struct Setting {
    engine: Arc<Engine>,
    mailbox: Arc<Mailbox>,
    link: Arc<Link>,
    served: Served,
}

impl Setting {
    fn new() -> Setting {
        let storage = Arc::new(MemoryStorage::new(DISK_BYTES).expect("memory"));
        let options = EngineOptions { queues: 1, seed: 0, storage, log: None, shadow: None };
        let engine = Engine::new(options).expect("engine");
        let mailbox = Mailbox::new();
        engine.attach_agent(Arc::clone(&mailbox));
        let link = Arc::new(Link::new(Arc::clone(&engine), Arc::clone(&mailbox)));
        let options = DeviceOptions {
            num_queues: 1,
            queue_size: 64,
            serial: "link".into(),
            ..DeviceOptions::default()
        };
        let served = Served::start(options, link.clone(), None);
        Setting { engine, mailbox, link, served }
    }

    fn client(&self) -> Client {
        Client::connect(&self.served.socket, all_features(), 1, 64, OUT + MAX_FRAME)
    }
}

fn write(client: &mut Client, message: &ToHost, seq: u32) -> i32 {
    let mut frame = Vec::new();
    wire::encode_message(seq, message, &mut frame).expect("fits");
    client.bytes(OUT, frame.len()).copy_from_slice(&frame);
    client.write(0, TO_HOST, OUT, frame.len())
}

fn poll(client: &mut Client, number: usize) {
    let to = client.address(number * MAX_FRAME);
    // SAFETY: MAX_FRAME bytes of the arena, which outlives the client.
    unsafe { client.queues[0].read_raw(TO_GUEST, to, MAX_FRAME, number as u64) }.expect("room");
    client.kick(0);
}

/// Number and message of the next poll that is answered.
fn answered(client: &mut Client) -> (u64, Option<ToGuest>) {
    let (number, result) = client.next(0);
    assert_eq!(result, 0);
    let bytes = client.bytes(number as usize * MAX_FRAME, MAX_FRAME);
    (number, wire::decode_message(bytes).expect("a frame"))
}

fn mark(name: &str) -> ToHost {
    ToHost::Mark { name: name.into(), guest_ns: 5, thread: "t".into(), trial: 1 }
}

fn events(engine: &Engine, subscription: &Subscription) -> Vec<Event> {
    engine.settle_events();
    let mut bytes = Vec::new();
    subscription.take(&mut bytes);
    let text = String::from_utf8(bytes).expect("JSON");
    text.lines().map(|line| serde_json::from_str(line).expect("an event")).collect()
}

#[test]
fn messages_both_ways() {
    let setting = Setting::new();
    let subscription = setting.engine.subscribe().expect("subscription");
    let mut client = setting.client();
    assert_eq!(write(&mut client, &mark("here"), 0), 0);
    let seen = events(&setting.engine, &subscription);
    assert!(seen.iter().any(|event| matches!(&event.what,
        What::Agent { message } if message["kind"] == "mark" && message["name"] == "here")));
    assert!(seen.iter().any(|event| matches!(&event.what,
        What::AgentMark { name, guest_ns: 5 } if name == "here")));

    // Polls first, then messages: answered in the order of the polls.
    for number in 0..3 {
        poll(&mut client, number);
    }
    assert!(!client.queues[0].completions().has_next());
    for id in 0..2 {
        setting.mailbox.send(&ToGuest::Ping { id }).expect("room");
    }
    assert_eq!(answered(&mut client), (0, Some(ToGuest::Ping { id: 0 })));
    assert_eq!(answered(&mut client), (1, Some(ToGuest::Ping { id: 1 })));
    setting.mailbox.signal("held:x");
    assert_eq!(answered(&mut client), (2, Some(ToGuest::Signal { name: "held:x".into() })));
    // A message first, then the poll.
    setting.mailbox.send(&ToGuest::Sync { rounds: 3 }).expect("room");
    poll(&mut client, 3);
    assert_eq!(answered(&mut client), (3, Some(ToGuest::Sync { rounds: 3 })));
}

#[test]
fn a_poll_ends_in_time() {
    let setting = Setting::new();
    let mut client = setting.client();
    let began = Instant::now();
    poll(&mut client, 0);
    poll(&mut client, 1);
    assert_eq!(answered(&mut client), (0, None));
    assert_eq!(answered(&mut client), (1, None));
    assert!(began.elapsed() >= Duration::from_millis(POLL_LIMIT_MS));
}

/// A rule tells the agent, the agent's mark ends the hold: the two halves of a gate.
#[test]
fn rules_and_agent_meet() {
    let setting = Setting::new();
    let rule = "[[rule]]\nname='gate'\nmatch={op='flush'}\ntell_agent=true\n\
                action={hold={until='agent:parked',at_most='60s'}}";
    let text = RulesText { file: "r".into(), text: rule.into(), ..RulesText::default() };
    setting.engine.load(&text).expect("rules");
    let disk = Served::start(
        DeviceOptions { num_queues: 1, ..DeviceOptions::default() },
        Arc::new(MemoryStorage::new(DISK_BYTES).expect("memory")),
        Some(Arc::clone(&setting.engine)),
    );
    assert_eq!(setting.engine.interest(Op::Flush, 0, 0), Interest::Event);
    let mut main = Client::connect(&disk.socket, all_features(), 1, 16, 4096);
    let mut link = setting.client();
    poll(&mut link, 0);
    poll(&mut link, 1);
    main.queues[0].flush(9).expect("room");
    main.kick(0);
    assert_eq!(answered(&mut link).1, Some(ToGuest::Signal { name: "held:gate".into() }));
    assert!(!main.queues[0].completions().has_next(), "nobody let it go");
    assert_eq!(write(&mut link, &mark("parked"), 0), 0);
    assert_eq!(main.next(0), (9, 0));
    assert_eq!(answered(&mut link).1, Some(ToGuest::Signal { name: "released:gate".into() }));
}

#[test]
fn what_is_no_frame_fails_and_is_reported() {
    let setting = Setting::new();
    let subscription = setting.engine.subscribe().expect("subscription");
    let mut client = setting.client();
    let mut frame = Vec::new();
    wire::encode_message(0, &mark("x"), &mut frame).expect("fits");
    let mut foreign = frame.clone();
    foreign[0] ^= 1;
    let mut long = frame.clone();
    long[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut other = Vec::new();
    wire::encode(0, b"{\"kind\":\"unheard_of\"}", &mut other).expect("fits");
    let mut binary = Vec::new();
    wire::encode(0, &[0xff; 100], &mut binary).expect("fits");
    let bad = [vec![0; 512], foreign, long, other, binary];
    for bytes in &bad {
        client.bytes(OUT, bytes.len()).copy_from_slice(bytes);
        assert_ne!(client.write(0, TO_HOST, OUT, bytes.len()), 0);
    }
    // A frame, but not where frames go.
    client.bytes(OUT, frame.len()).copy_from_slice(&frame);
    assert_ne!(client.write(0, 512, OUT, frame.len()), 0);
    assert_eq!(setting.link.malformed(), bad.len() as u64);
    let seen = events(&setting.engine, &subscription);
    let reports = seen.iter().filter(|event| {
        matches!(&event.what,
            What::Agent { message } if message["kind"] == "malformed_frame")
    });
    assert_eq!(reports.count(), bad.len());
    // It goes on: an empty frame, and a good one.
    let mut empty = Vec::new();
    wire::encode_empty(1, &mut empty);
    client.bytes(OUT, empty.len()).copy_from_slice(&empty);
    assert_eq!(client.write(0, TO_HOST, OUT, empty.len()), 0);
    assert_eq!(write(&mut client, &mark("y"), 2), 0);
    // Elsewhere the disk reads as zeroes: no partition table.
    client.bytes(0, 4096).fill(7);
    assert_eq!(client.read(0, 0, 0, 4096), 0);
    assert!(client.bytes(0, 4096).iter().all(|byte| *byte == 0));
}

/// A guest that goes away with polls pending: the next one gets what is meant for it, and not
/// what was meant for the first.
#[test]
fn the_next_guest() {
    let setting = Setting::new();
    let mut first = setting.client();
    for number in 0..POLLS {
        poll(&mut first, number);
    }
    drop(first);
    setting.mailbox.signal("stale");
    let mut second = setting.client();
    let hello = ToHost::Hello {
        protocol: wire::VERSION,
        kernel: "6.12".into(),
        cpus: 1,
        page_bytes: 4096,
        disk: "vda".into(),
    };
    assert_eq!(write(&mut second, &hello, 0), 0);
    setting.mailbox.send(&ToGuest::Ping { id: 7 }).expect("room");
    poll(&mut second, 0);
    assert_eq!(answered(&mut second).1, Some(ToGuest::Ping { id: 7 }));
}

/// A message longer than the guest's buffer fails that poll and waits for one with room.
#[test]
fn a_poll_without_room() {
    let setting = Setting::new();
    let mut client = setting.client();
    let long = ToGuest::Signal { name: "n".repeat(1000) };
    setting.mailbox.send(&long).expect("room");
    assert_ne!(client.read(0, TO_GUEST, 0, 512), 0);
    poll(&mut client, 0);
    assert_eq!(answered(&mut client).1, Some(long));
    let endless = ToGuest::Signal { name: "n".repeat(MAX_FRAME) };
    assert!(setting.mailbox.send(&endless).is_err());
}
