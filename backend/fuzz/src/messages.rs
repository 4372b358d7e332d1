//! vhost-user messages: a front-end that sends anything, with any descriptors, on a real socket.
//!
//! In: messages, each with its descriptors. Out: nothing; the conversation must end when the
//! front-end has said everything, and leave no descriptor open.

use std::cell::Cell;
use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use device::blk::{Device, DeviceOptions, Transport};
use device::stop::Stop;
use device::storage::memory::MemoryStorage;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::message::FrontendReq;

use crate::seed::Seed;

const MESSAGES_MOST: usize = 24;
const FDS_MOST: usize = 9;
const MEMORY_BYTES: u64 = 0x1_0000;
/// How often open descriptors are counted.
const COUNT_EVERY: u64 = 256;
/// Where the front-end has its memory mapped.
const USER: u64 = 0x7F00_0000_0000;
const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

pub(crate) fn run(input: &[u8]) {
    // Short of bytes: the input ends there.
    let _ = converse(&mut Unstructured::new(input));
    check_descriptors();
}

fn converse(u: &mut Unstructured<'_>) -> Result<()> {
    let (front, back) = UnixStream::pair().expect("sockets");
    for _ in 0..MESSAGES_MOST {
        if u.is_empty() {
            break;
        }
        say(u, front.as_fd())?;
    }
    front.shutdown(Shutdown::Write).expect("open until now");
    let storage = Arc::new(MemoryStorage::new(16 << 10).expect("a disk"));
    let options = DeviceOptions { num_queues: 2, queue_size: 16, ..DeviceOptions::default() };
    let device = Device::new(options, storage, None).expect("a device");
    let stop = Stop::new().expect("an eventfd");
    device.serve(Transport::Connected(back), stop.as_fd()).expect("the device goes on");
    Ok(())
}

fn say(u: &mut Unstructured<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let request = u32::from(u.arbitrary::<u8>()?);
    let flags = u32::from(u.arbitrary::<u8>()?);
    let fds: Vec<OwnedFd> = (0..usize::from(u.arbitrary::<u8>()?) % (FDS_MOST + 1))
        .map(|_| descriptor(u))
        .collect::<Result<_>>()?;
    let claimed = u.arbitrary::<u16>()?;
    let len = usize::from(u.arbitrary::<u16>()?).min(u.len());
    let payload = u.bytes(len)?;
    // Most messages are as long as they say.
    let size = if claimed == 0 { len as u32 } else { u32::from(claimed) };
    let mut message = Seed::default().u32(request).u32(flags).u32(size).done();
    message.extend_from_slice(payload);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MOST))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    // A socket that is full: the rest is not said.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = sendmsg(to, &[IoSlice::new(&message)], &mut control, flags);
    Ok(())
}

fn descriptor(u: &mut Unstructured<'_>) -> Result<OwnedFd> {
    let event = |count| eventfd(count, EventfdFlags::CLOEXEC).expect("an eventfd");
    let memory = |bytes| {
        let memory = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&memory, bytes).expect("its size");
        memory
    };
    Ok(match u.arbitrary::<u8>()? % 8 {
        0 => memory(MEMORY_BYTES),
        1 => memory(u64::from(u.arbitrary::<u16>()?)),
        // A kick that has come already, and one that has not.
        2 => event(1),
        3 => event(0),
        4 => UnixStream::pair().expect("sockets").0.into(),
        5 => fs::File::open("/dev/null").expect("/dev/null").into(),
        6 => fs::File::open("/").expect("a folder").into(),
        _ => with_request(memory(MEMORY_BYTES)),
    })
}

/// Memory in which a read is available on ring 0x1000 (see [`seeds`]).
fn with_request(memory: OwnedFd) -> OwnedFd {
    let mut bytes = Vec::new();
    for (addr, len, flags, next) in
        [(0x2000_u32, 16_u32, 1_u16, 1_u16), (0x3000, 512, 3, 2), (0x2010, 1, 2, 0)]
    {
        bytes.extend(Seed::default().u32(addr).u32(0).u32(len).u16(flags).u16(next).done());
    }
    let available = Seed::default().u16(0).u16(1).u16(0).done();
    for (at, part) in [(0x1000, &bytes), (0x1200, &available)] {
        rustix::io::pwrite(&memory, part, at).expect("fits");
    }
    memory
}

/// Counts now and then what is open: a conversation leaves nothing behind.
fn check_descriptors() {
    thread_local! {
        static CONVERSATIONS: Cell<u64> = const { Cell::new(0) };
        static OPEN: Cell<Option<usize>> = const { Cell::new(None) };
    }
    let count = CONVERSATIONS.get() + 1;
    CONVERSATIONS.set(count);
    if count % COUNT_EVERY != 1 {
        return;
    }
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    if let Some(before) = OPEN.get() {
        assert!(open <= before, "{open} descriptors are open, {before} were");
    } else {
        OPEN.set(Some(open));
    }
}

fn message(request: FrontendReq, fds: &[u8], payload: &[u8]) -> Vec<u8> {
    let seed = Seed::default().u8(u32::from(request) as u8).u8((VERSION | NEED_REPLY) as u8);
    let seed = seed.u8(fds.len() as u8).bytes(fds).u16(0);
    seed.u16(payload.len() as u16).bytes(payload).done()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let u64s =
        |values: &[u64]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let state = |queue: u32, value: u32| Seed::default().u32(queue).u32(value).done();
    let table = [state(1, 0), u64s(&[0, MEMORY_BYTES, USER, 0])].concat();
    let region = u64s(&[0, 0, MEMORY_BYTES, USER, 0]);
    let addresses = [state(0, 0), u64s(&[USER + 0x1000, USER + 0x1300, USER + 0x1200, 0])].concat();
    let config = |bytes: usize| {
        Seed::default().u32(0).u32(bytes as u32).u32(0).bytes(&vec![0; bytes]).done()
    };
    let start = |memory: Vec<u8>| {
        [
            message(FrontendReq::SET_OWNER, &[], &[]),
            message(FrontendReq::GET_FEATURES, &[], &[]),
            message(FrontendReq::GET_PROTOCOL_FEATURES, &[], &[]),
            message(FrontendReq::SET_PROTOCOL_FEATURES, &[], &u64s(&[0x922B])),
            message(FrontendReq::GET_QUEUE_NUM, &[], &[]),
            message(FrontendReq::GET_CONFIG, &[], &config(60)),
            message(FrontendReq::SET_BACKEND_REQ_FD, &[4], &[]),
            message(FrontendReq::SET_FEATURES, &[], &u64s(&[0x1_7000_0244 | 1 << 30])),
            memory,
            message(FrontendReq::SET_VRING_NUM, &[], &state(0, 16)),
            message(FrontendReq::SET_VRING_BASE, &[], &state(0, 0)),
            message(FrontendReq::SET_VRING_ADDR, &[], &addresses),
            message(FrontendReq::SET_VRING_CALL, &[3], &u64s(&[0])),
            message(FrontendReq::SET_VRING_KICK, &[2], &u64s(&[0])),
            message(FrontendReq::SET_VRING_ERR, &[3], &u64s(&[0])),
            message(FrontendReq::SET_VRING_ENABLE, &[], &state(0, 1)),
        ]
    };
    let area = [u64s(&[0x4000, 0]), Seed::default().u16(2).u16(16).u32(0).done()].concat();
    let tables = start(message(FrontendReq::SET_MEM_TABLE, &[7], &table)).concat();
    let slots = start(message(FrontendReq::ADD_MEM_REG, &[7], &region)).concat();
    let mut seeds = vec![
        [tables.clone(), message(FrontendReq::GET_VRING_BASE, &[], &state(0, 0))].concat(),
        [tables, message(FrontendReq::RESET_DEVICE, &[], &[])].concat(),
        [
            slots,
            message(FrontendReq::GET_INFLIGHT_FD, &[], &area),
            message(FrontendReq::SET_INFLIGHT_FD, &[0], &area),
            message(FrontendReq::SET_LOG_BASE, &[0], &u64s(&[0x1000, 0])),
            message(FrontendReq::REM_MEM_REG, &[], &region),
        ]
        .concat(),
    ];
    for request in [
        FrontendReq::GET_MAX_MEM_SLOTS,
        FrontendReq::GET_INFLIGHT_FD,
        FrontendReq::SET_INFLIGHT_FD,
        FrontendReq::SET_LOG_BASE,
        FrontendReq::GET_STATUS,
        FrontendReq::SET_CONFIG,
    ] {
        seeds.push(message(request, &[0], &config(4)));
    }
    seeds
}
