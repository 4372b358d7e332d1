//! Frames of the link disk: a guest's agent that writes anything, and the probes of its kernel.
//!
//! In: frames, as bytes or as the payload of a sound frame. Out: nothing; the engine must take
//! every mark and message, the delalloc shadow every line of the kernel.

use std::cell::OnceCell;
use std::sync::Arc;

use agent::wire::{self, ToGuest, ToHost};
use arbitrary::{Result, Unstructured};
use device::engine::{Engine, EngineOptions};
use device::link::{Link, Mailbox};
use device::segments::{AlignedBuf, Segments};
use device::storage::memory::MemoryStorage;
use device::storage::{Channel, Io, SECTOR_BYTES, Storage, Submitted};
use pipeline::delalloc_shadow::Follower;
use pipeline::event::RulesText;
use pipeline::{Event, Nanos, What};
use serde_json::{Value, json};

use crate::seed::Seed;

const FRAMES_MOST: usize = 16;
const RULES: &str = r#"
[[rule]]
name = "a"
match = { op = "read" }
action = { hold = { until = "agent:go", at_most = "1s" } }
disarm_on = "agent:stop"
arm_on = "agent:go"
tell_agent = true
"#;

struct Host {
    link: Link,
    mailbox: Arc<Mailbox>,
}

impl Host {
    fn new() -> Host {
        let storage = Arc::new(MemoryStorage::new(1 << 20).expect("a disk"));
        let engine = EngineOptions { queues: 1, seed: 0, storage, log: None, shadow: None };
        let engine = Engine::new(engine).expect("an engine");
        let rules = RulesText { text: RULES.into(), ..RulesText::default() };
        engine.load(&rules).expect("rules");
        let mailbox = Mailbox::new();
        engine.attach_agent(Arc::clone(&mailbox));
        Host { link: Link::new(engine, Arc::clone(&mailbox)), mailbox }
    }
}

pub(crate) fn run(input: &[u8]) {
    thread_local! {
        static HOST: OnceCell<Host> = const { OnceCell::new() };
    }
    HOST.with(|made| {
        let host = made.get_or_init(Host::new);
        let mut channel = host.link.channel().expect("a channel");
        // Short of bytes: the input ends there.
        let _ = interpret(&mut *channel, &mut Unstructured::new(input));
        host.mailbox.clear();
    });
}

fn interpret(channel: &mut dyn Channel, u: &mut Unstructured<'_>) -> Result<()> {
    // A kernel that is watched from the start.
    let mut follower = Follower::new();
    follow(&mut follower, json!({"kind": "hello", "kernel": "6.1.0"}));
    follow(&mut follower, json!({"kind": "trace_started", "missing": []}));
    for seq in 0..FRAMES_MOST as u32 {
        if u.is_empty() {
            break;
        }
        let raw = u.arbitrary::<u8>()? % 8 == 0;
        let len = usize::from(u.arbitrary::<u16>()?).min(u.len());
        let bytes = u.bytes(len)?;
        let mut frame = Vec::new();
        if raw {
            frame.extend_from_slice(bytes);
        } else if wire::encode(seq, bytes, &mut frame).is_err() {
            continue;
        }
        // The agent's own side of the wire.
        let _ = wire::decode_message::<ToGuest>(&frame);
        if let Ok(Some(_)) = wire::decode_message::<ToHost>(&frame)
            && let Ok(message) = serde_json::from_slice(bytes)
        {
            follow(&mut follower, message);
        }
        let ended = store(channel, &frame);
        assert!(ended, "a frame is answered at once");
    }
    Ok(())
}

/// What the engine does with a message, when somebody reads its events.
fn follow(follower: &mut Follower, message: Value) {
    follower.observe(&[Event { seq: 0, at: Nanos(1_000_000), what: What::Agent { message } }]);
    for finding in follower.take_findings() {
        assert!(!finding.to_string().is_empty());
    }
}

fn store(channel: &mut dyn Channel, frame: &[u8]) -> bool {
    let mut buf = AlignedBuf::zeroed(frame.len().next_multiple_of(SECTOR_BYTES as usize));
    buf.as_mut_slice()[..frame.len()].copy_from_slice(frame);
    let from = Segments::private(Arc::new(buf));
    let offset = wire::TO_HOST_SECTOR * SECTOR_BYTES;
    let io = Io::Write { offset, from, durable: false };
    matches!(channel.submit(0, io), Submitted::Done(_))
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    const PAYLOADS: [&str; 9] = [
        r#"{"kind":"hello","protocol":2,"kernel":"6.1","cpus":2,"page_bytes":4096,"disk":"vda"}"#,
        r#"{"kind":"clock","round":1,"previous":{"sent_ns":1,"returned_ns":2}}"#,
        r#"{"kind":"mark","name":"go","guest_ns":5,"thread":"a","trial":1}"#,
        r#"{"kind":"mark","name":"stop","guest_ns":6,"thread":"a","trial":1}"#,
        r#"{"kind":"pong","id":1,"guest_ns":7}"#,
        r#"{"kind":"output","id":1,"stream":"stdout","text":"x"}"#,
        r#"{"kind":"trace","batch":0,"lines":[" a-1 [000] d..1. 7.000001: es_insert: (f+0x0/0x10) inode=0xff ino=12 lblk=0 len=4 pblk=0x800000000000001"," a-1 [000] d..1. 7.000002: es_insert: (f+0x0/0x10) inode=0xff ino=12 lblk=1 len=1 pblk=0x2000000000000000","CPU:1 [LOST 12 EVENTS]"," a-1 [000] d..1. 8.0: es_give_up: (f) inode=0xff lblk=0 len=2"," a-1 [000] d..1. 9.0: destroy: (f) inode=0xff ino=12 reserved=1"]}"#,
        r#"{"kind":"signal","name":"held:a"}"#,
        r#"{"kind":"bye"}"#,
    ];
    let framed = |payload: &str| {
        Seed::default().u8(1).u16(payload.len() as u16).bytes(payload.as_bytes()).done()
    };
    let mut seeds: Vec<Vec<u8>> = PAYLOADS.iter().map(|payload| framed(payload)).collect();
    seeds.push(seeds.concat());
    let mut frame = Vec::new();
    wire::encode_empty(3, &mut frame);
    seeds.push(Seed::default().u8(0).u16(frame.len() as u16).bytes(&frame).done());
    seeds
}
