//! Control messages: a client of the control socket that sends anything.
//!
//! In: bytes. Out: nothing; each line that is answered is answered with a response.

use std::cell::OnceCell;
use std::sync::Arc;

use device::control::{Front, Target};
use device::engine::{Engine, EngineOptions};
use device::link::Mailbox;
use device::stop::Stop;
use device::storage::memory::MemoryStorage;
use device::storage::{Storage, StorageError};
use pipeline::control::Response;
use pipeline::event::RulesText;

use crate::recorded;

/// A device that can change its size.
struct Resizable(Arc<dyn Storage>);

impl Front for Resizable {
    fn resize(&self, bytes: u64) -> Result<(), StorageError> {
        self.0.resize(bytes)
    }
}

fn target() -> Target {
    let base = recorded::disk(0);
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(base.device_bytes).expect("disk"));
    for (sector, bytes) in &base.sectors {
        storage.write_at(sector * recorded::SECTOR as u64, &**bytes).expect("on the disk");
    }
    let engine = EngineOptions {
        queues: 2,
        seed: 0,
        storage: Arc::clone(&storage),
        log: None,
        shadow: None,
    };
    Target {
        engine: Engine::new(engine).expect("an engine"),
        front: Arc::new(Resizable(storage)),
        mailbox: Some(Mailbox::new()),
        stop: Arc::new(Stop::new().expect("an eventfd")),
    }
}

pub(crate) fn run(input: &[u8]) {
    thread_local! {
        static TARGET: OnceCell<Target> = const { OnceCell::new() };
    }
    TARGET.with(|made| {
        let target = made.get_or_init(target);
        let answers = device::fuzz::control(target, input).expect("sockets");
        for line in answers.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            // Events follow the answers on the same connection.
            let known = serde_json::from_slice::<Response>(line).is_ok()
                || serde_json::from_slice::<pipeline::Event>(line).is_ok();
            assert!(known, "not an answer: {}", String::from_utf8_lossy(line));
        }
        // The next input finds no rules of this one.
        let nothing = RulesText::default();
        target.engine.load(&nothing).expect("no rules are rules");
        if let Some(mailbox) = &target.mailbox {
            mailbox.clear();
        }
    });
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    const LINES: [&str; 16] = [
        r#"{"command":"list"}"#,
        r#"{"command":"load","file":"r","text":"[[rule]]\nname='a'\nmatch={op='read',class='block_bitmap'}\naction={delay='5ms'}\n"}"#,
        r#"{"command":"arm","rule":"a"}"#,
        r#"{"command":"disarm","rule":"a"}"#,
        r#"{"command":"release"}"#,
        r#"{"command":"release","rule":"a"}"#,
        r#"{"command":"stats"}"#,
        r#"{"command":"layout"}"#,
        r#"{"command":"layout","sector":2,"sectors":64}"#,
        r#"{"command":"events"}"#,
        r#"{"command":"send","message":{"kind":"signal","name":"x"}}"#,
        r#"{"command":"send","message":{"kind":"ping","id":4}}"#,
        r#"{"command":"reset"}"#,
        r#"{"command":"rearm"}"#,
        r#"{"command":"resize","bytes":4194304}"#,
        r#"{"command":"shutdown"}"#,
    ];
    let mut seeds: Vec<Vec<u8>> =
        LINES.iter().map(|line| [line.as_bytes(), b"\n"].concat()).collect();
    seeds.push([LINES[1], LINES[2], LINES[6], LINES[3], LINES[0]].join("\n").into_bytes());
    seeds
}
