//! What virtio-blk promises beyond data: durability, ranges, identity, used lengths.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use device::blk::{Device, DeviceOptions, Transport};
use device::control::Front;
use device::storage::memory::MemoryStorage;
use device::storage::{Channel, Io, IoResult, Storage, StorageError, Submitted};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::front_ends::{Setting, bring_up, connect, disk_works, rings, setting};
use crate::raw::{Guest, Ring};
use crate::served::Served;

const MIB: u64 = 1 << 20;
const HEADER: u64 = 0x20_0000;
const STATUS: u64 = 0x20_0020;
const DATA: u64 = 0x20_1000;

/// A memory disk that notes whether writes have to be durable.
struct Noting {
    inner: MemoryStorage,
    notes: Arc<Mutex<Vec<bool>>>,
}

struct NotingChannel {
    inner: Box<dyn Channel>,
    notes: Arc<Mutex<Vec<bool>>>,
}

impl Storage for Noting {
    fn capacity_sectors(&self) -> u64 {
        self.inner.capacity_sectors()
    }

    fn channel(&self) -> Result<Box<dyn Channel>, StorageError> {
        let (inner, notes) = (self.inner.channel()?, self.notes.clone());
        Ok(Box::new(NotingChannel { inner, notes }))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.inner.write_at(offset, bytes)
    }

    fn sync(&self) -> IoResult {
        self.inner.sync()
    }
}

impl Channel for NotingChannel {
    fn submit(&mut self, token: u64, io: Io) -> Submitted {
        if let Io::Write { durable, .. } | Io::WriteZeroes { durable, .. } = &io {
            self.notes.lock().expect("notes").push(*durable);
        }
        self.inner.submit(token, io)
    }
}

/// Writes and zeroes a sector.
fn write_and_zero(guest: &Guest, ring: &mut Ring) {
    guest.put_header(HEADER, VIRTIO_BLK_T_OUT, 1);
    let write = [(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)];
    assert_eq!(ring.run(guest, &write), (0, 1));
    guest.put_header(HEADER, VIRTIO_BLK_T_WRITE_ZEROES, 0);
    guest.put(DATA, &range(1, 1, 0));
    let zero = [(HEADER, 16, false), (DATA, 16, false), (STATUS, 1, true)];
    assert_eq!(ring.run(guest, &zero), (0, 1));
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Goal: where the driver cannot flush, or turned the cache off, writes are durable when they
/// complete (virtio 1.3, 5.2.5.2).
#[test]
fn writes_are_durable_where_there_is_no_cache() {
    let notes = Arc::new(Mutex::new(Vec::new()));
    let inner = MemoryStorage::new(4 * MIB).expect("memory");
    let storage = Arc::new(Noting { inner, notes: notes.clone() });
    let served = Served::start(DeviceOptions::default(), storage, None);
    let guest = Guest::new(4 * MIB);
    let mut rings = rings(1);
    let flush = 1 << VIRTIO_BLK_F_FLUSH;
    let cache_control = 1 << VIRTIO_BLK_F_CONFIG_WCE;
    let asked = |ring: &mut Ring| {
        write_and_zero(&guest, ring);
        std::mem::take(&mut *notes.lock().expect("notes"))
    };

    for (features, durable) in [(0, true), (flush, false), (cache_control, true)] {
        rings[0].reset(&guest);
        let _frontend = bring_up(&served, &guest, &rings, features);
        assert_eq!(asked(&mut rings[0]), [durable; 2], "features {features:#x}");
    }
    rings[0].reset(&guest);
    let mut frontend = bring_up(&served, &guest, &rings, flush | cache_control);
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    assert_eq!(asked(&mut rings[0]), [false; 2]);
    for cache in [0, 1] {
        frontend
            .set_config(32, VhostUserConfigFlags::empty(), &[cache])
            .expect("SET_CONFIG of writeback");
        assert_eq!(asked(&mut rings[0]), [cache == 0; 2], "writeback {cache}");
    }
    // The operator has the last word.
    for on in [false, true] {
        served.device.set_write_cache(on).expect("a flush of memory");
        let (_, config) = frontend
            .get_config(32, 1, VhostUserConfigFlags::empty(), &[0])
            .expect("GET_CONFIG of writeback");
        assert_eq!(config, [u8::from(on)]);
        assert_eq!(asked(&mut rings[0]), [!on; 2], "write cache {on}");
    }
}

/// Goal: a request of many ranges does all of them, and completes once.
#[test]
fn many_ranges_in_one_request() {
    let Setting { served, guest, storage, .. } = setting(1, "file");
    let mut rings = rings(1);
    let _frontend = bring_up(&served, &guest, &rings, 0);
    let ring = &mut rings[0];
    for sector in 0..64 {
        guest.put_header(HEADER, VIRTIO_BLK_T_OUT, sector);
        guest.put(DATA, &[0xC0 | sector as u8; 512]);
        let write = [(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)];
        assert_eq!(ring.run(&guest, &write), (0, 1));
    }
    // Every other sector, 32 ranges, one of them empty.
    let ranges: Vec<u8> =
        (0..32).flat_map(|i| range(2 * i, u32::from(i != 7), (i % 2) as u32)).collect();
    guest.put_header(HEADER, VIRTIO_BLK_T_WRITE_ZEROES, 0);
    guest.put(DATA, &ranges);
    let len = ranges.len() as u32;
    let zero = [(HEADER, 16, false), (DATA, len, false), (STATUS, 1, true)];
    assert_eq!(ring.run(&guest, &zero), (0, 1));
    let mut seen = vec![0; 64 * 512];
    storage.read_at(0, &mut seen).expect("read");
    for (sector, bytes) in seen.chunks(512).enumerate() {
        let zeroed = sector % 2 == 0 && sector != 14;
        let want = if zeroed { 0 } else { 0xC0 | sector as u8 };
        assert!(bytes.iter().all(|b| *b == want), "sector {sector}");
    }
    // One more than is offered.
    let zero = [(HEADER, 16, false), (DATA, len + 16, false), (STATUS, 1, true)];
    assert_eq!(ring.run(&guest, &zero), (1, 1));
    // Discard has no flags.
    guest.put_header(HEADER, VIRTIO_BLK_T_DISCARD, 0);
    guest.put(DATA, &range(0, 8, 1));
    let discard = [(HEADER, 16, false), (DATA, 16, false), (STATUS, 1, true)];
    assert_eq!(ring.run(&guest, &discard), (2, 1));
}

#[test]
fn identity_and_flush() {
    let Setting { served, guest, .. } = setting(1, "memory");
    let mut rings = rings(1);
    let _frontend = bring_up(&served, &guest, &rings, 0);
    guest.put_header(HEADER, VIRTIO_BLK_T_GET_ID, 0);
    let get_id = [(HEADER, 16, false), (DATA, 20, true), (STATUS, 1, true)];
    assert_eq!(rings[0].run(&guest, &get_id), (0, 21));
    assert_eq!(guest.get(DATA, 20), b"racegate\0\0\0\0\0\0\0\0\0\0\0\0");
    // Less room, in pieces.
    let get_id = [(HEADER, 16, false), (DATA, 3, true), (DATA + 8, 3, true), (STATUS, 1, true)];
    assert_eq!(rings[0].run(&guest, &get_id), (0, 7));
    assert_eq!(guest.get(DATA + 8, 2), b"eg");
    guest.put_header(HEADER, VIRTIO_BLK_T_FLUSH, 0);
    assert_eq!(rings[0].run(&guest, &[(HEADER, 16, false), (STATUS, 1, true)]), (0, 1));
}

/// Goal: a socket that is connected already (`--fd`) is served, and serving ends with it.
#[test]
fn a_connected_socket() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let storage = Arc::new(MemoryStorage::new(MIB).expect("memory"));
    let device = Device::new(DeviceOptions::default(), storage, None).expect("a device");
    let never = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| device.serve(Transport::Connected(theirs), never.as_fd()));
        let mut frontend = Frontend::from_stream(ours, 4);
        vhost::VhostBackend::get_features(&frontend).expect("GET_FEATURES");
        let protocol = frontend.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
        frontend.set_protocol_features(protocol).expect("SET_PROTOCOL_FEATURES");
        assert_eq!(frontend.get_queue_num().expect("GET_QUEUE_NUM"), 4);
        drop(frontend);
        serving.join().expect("no panic").expect("serving ends well");
    });
}

/// Goal: where io_uring is not permitted, a file is served all the same.
/// Method: a seccomp filter on this thread, as a sandbox would have it.
#[test]
fn a_file_without_io_uring() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = crate::served::image(&dir, MIB);
    std::thread::spawn(move || {
        forbid_io_uring();
        let storage = crate::storages::open("file", &path);
        // Channels are opened by the thread that serves, which inherits the filter.
        let served = Served::start(DeviceOptions::default(), storage, None);
        let guest = Guest::new(4 * MIB);
        let mut rings = rings(1);
        let _frontend = bring_up(&served, &guest, &rings, 0);
        disk_works(&guest, &mut rings[0], 0, 0x61);
        drop(connect(&served.socket, 1));
    })
    .join()
    .expect("the disk works");
}

/// Makes io_uring_setup(2) fail with EPERM in this thread and those that it starts.
fn forbid_io_uring() {
    let statement =
        |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        // The number of the system call is the first word of struct seccomp_data.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            libc::SYS_io_uring_setup as u32,
            0,
            1,
        ),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: both calls only read their arguments; `program` names a filter of its length.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
    };
    assert_eq!(result, 0, "seccomp");
    // SAFETY: fails before it looks at its arguments.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, 0) };
    assert_eq!((result, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EPERM)));
}
