//! Descriptor chains: any memory, any ring, served by the real worker over a disk in memory.
//!
//! In: how the queue is set up, then pieces of memory, each followed by a kick. Out: nothing; the
//! worker must come to an end with nothing in flight.

use std::cell::OnceCell;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use device::engine::{Engine, EngineOptions};
use device::fuzz::{Guest, Queue, QueueSetup};
use device::storage::Storage;
use device::storage::memory::MemoryStorage;
use pipeline::event::RulesText;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::seed::Seed;

const DISK_BYTES: u64 = 16 << 10;
/// Two regions of guest memory with a hole between them.
const REGIONS: [(u64, usize); 2] = [(0, 0x2000), (0x4000, 0x2000)];
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x200;
const USED: u64 = 0x300;
/// Free for headers and data.
const DATA: u16 = 0x500;
const PIECES_MOST: usize = 8;

const RULES: &str = r#"
[[rule]]
name = "hold"
match = { op = "read", sector = 3 }
action = { hold = { until = "control", at_most = "1s" } }

[[rule]]
name = "delay"
match = { op = "write", sector = 4 }
action = { delay = "1ms" }

[[rule]]
name = "fail"
match = { op = ["flush", "discard"], probability = 0.5 }
action = { fail = "EIO" }
"#;

struct Machine {
    guest: Guest,
    storage: Arc<dyn Storage>,
    engine: Arc<Engine>,
}

impl Machine {
    fn new() -> Machine {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new(DISK_BYTES).expect("a disk"));
        let engine = EngineOptions {
            queues: 1,
            seed: 0,
            storage: Arc::clone(&storage),
            log: None,
            shadow: None,
        };
        let engine = Engine::new(engine).expect("an engine");
        let rules = RulesText { text: RULES.into(), ..RulesText::default() };
        engine.load(&rules).expect("rules");
        Machine { guest: Guest::new(&REGIONS).expect("memory"), storage, engine }
    }
}

pub(crate) fn run(input: &[u8]) {
    thread_local! {
        static MACHINE: OnceCell<Machine> = const { OnceCell::new() };
    }
    MACHINE.with(|machine| {
        // Short of bytes: the input ends there.
        let _ = interpret(machine.get_or_init(Machine::new), &mut Unstructured::new(input));
    });
}

fn interpret(machine: &Machine, u: &mut Unstructured<'_>) -> Result<()> {
    let Machine { guest, storage, engine } = machine;
    let flags = u.arbitrary::<u8>()?;
    let size = 1 << (1 + u.arbitrary::<u8>()? % 5);
    let base = u.arbitrary()?;
    let inflight = if flags & 16 == 0 {
        None
    } else {
        let len = usize::from(u.arbitrary::<u8>()?).min(u.len());
        Some(u.bytes(len)?)
    };
    let setup = QueueSetup {
        size,
        rings: [DESCRIPTORS, AVAILABLE, USED],
        base,
        event_idx: flags & 1 != 0,
        indirect: flags & 2 != 0,
        write_through: flags & 4 != 0,
        inflight,
    };
    guest.clear();
    storage.write_at(0, &[0; DISK_BYTES as usize]).expect("fits");
    let engine = (flags & 8 != 0).then_some(engine);
    let Some(mut queue) = Queue::new(guest, storage, engine, setup) else {
        return Ok(());
    };
    for _ in 0..PIECES_MOST {
        if u.is_empty() {
            break;
        }
        let addr = u.arbitrary::<u16>()? & 0x7FFF;
        let len = usize::from(u.arbitrary::<u16>()?).min(u.len());
        guest.put(addr.into(), u.bytes(len)?);
        if u.arbitrary::<u8>()? & 1 == 0 {
            queue.kick();
        }
    }
    queue.kick();
    queue.stop();
    Ok(())
}

/// A descriptor.
fn descriptor(addr: u16, len: u32, flags: u32, next: u16) -> Vec<u8> {
    let seed = Seed::default().u32(addr.into()).u32(0).u32(len);
    seed.u16(flags as u16).u16(next).done()
}

/// A queue of 16 with one request, as a driver lays it out; `data` is a length, and whether the
/// device writes it.
fn request(flags: u8, kind: u32, sector: u32, data: Option<(u32, bool)>, payload: &[u8]) -> Seed {
    let (next, write) = (VRING_DESC_F_NEXT, VRING_DESC_F_WRITE);
    let mut table = descriptor(DATA, 16, next, 1);
    let mut status = 1;
    if let Some((len, written)) = data {
        let direction = if written { write } else { 0 };
        table.extend(descriptor(DATA + 0x20, len, next | direction, 2));
        status = 2;
    }
    table.extend(descriptor(DATA + 0x18, 1, write, 0));
    debug_assert_eq!(table.len(), 16 * (status + 1));
    let header = Seed::default().u32(kind).u32(0).u32(sector).u32(0).done();
    let seed = Seed::default().u8(flags).u8(3).u16(0);
    let seed = seed.u16(DESCRIPTORS as u16).u16(table.len() as u16).bytes(&table).u8(1);
    let seed = seed.u16(DATA).u16(16).bytes(&header).u8(1);
    let seed = seed.u16(DATA + 0x20).u16(payload.len() as u16).bytes(payload).u8(1);
    // One available, head 0.
    seed.u16(AVAILABLE as u16).u16(6).u16(0).u16(1).u16(0).u8(0)
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let range = Seed::default().u32(2).u32(0).u32(4).u32(0).done();
    let mut seeds = Vec::new();
    for flags in [0, 1, 3, 9, 15] {
        for (kind, sector, data, payload) in [
            (VIRTIO_BLK_T_IN, 3, Some((1024, true)), &[][..]),
            (VIRTIO_BLK_T_OUT, 4, Some((512, false)), &[7; 32]),
            (VIRTIO_BLK_T_FLUSH, 0, None, &[]),
            (VIRTIO_BLK_T_GET_ID, 0, Some((20, true)), &[]),
            (VIRTIO_BLK_T_DISCARD, 0, Some((16, false)), &range),
            (VIRTIO_BLK_T_WRITE_ZEROES, 0, Some((16, false)), &range),
        ] {
            seeds.push(request(flags, kind, sector, data, payload).done());
        }
    }
    // A head that an earlier daemon has taken: entry 0 of the area.
    let area = Seed::default().u32(0).u32(0).u16(1).u16(16).u16(0).u16(0);
    let area = area.u8(1).bytes(&[0; 5]).u16(0).u32(1).u32(0).done();
    let plain = request(16, VIRTIO_BLK_T_IN, 0, Some((512, true)), &[]).done();
    let (setup, rest) = plain.split_at(4);
    seeds.push([setup, &[area.len() as u8], &area, rest].concat());
    // The same table, by way of an indirect one.
    let mut table = descriptor(DATA, 16, VRING_DESC_F_NEXT, 1);
    table.extend(descriptor(DATA + 0x20, 512, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 2));
    table.extend(descriptor(DATA + 0x18, 1, VRING_DESC_F_WRITE, 0));
    let indirect = descriptor(0x1000, table.len() as u32, VRING_DESC_F_INDIRECT, 0);
    let seed = Seed::default().u8(3).u8(3).u16(0);
    let seed = seed.u16(0x1000).u16(table.len() as u16).bytes(&table).u8(1);
    let seed = seed.u16(0).u16(16).bytes(&indirect).u8(1);
    seeds.push(seed.u16(AVAILABLE as u16).u16(6).u16(0).u16(1).u16(0).u8(0).done());
    seeds
}
