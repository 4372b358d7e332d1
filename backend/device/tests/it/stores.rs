//! Goal: the first store to each page is told once, in order, with its byte, its thread and its
//! ext4 class; and again after a protection. Method: a file on tmpfs, mapped here and announced as
//! the preloaded library does, stored to by two threads in turns; the log against what they did.
//! The library in QEMU, under a real guest, is tested in `guest-tests`.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use device::stop::Stop;
use device::stores::{PAGE_BYTES, Seen, StoresError, Times, Watch, protect};
use pipeline::event::Protection;
use pipeline::{Event, What};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use store_shim::preload::{announce, ask};
use store_shim::wire::{Message, Target};

const LIMIT: Duration = Duration::from_secs(20);
const PAGES: u64 = 1024;

/// The file, mapped and watched.
struct Watched {
    base: NonNull<u8>,
    connection: UnixStream,
    socket: PathBuf,
    events: Receiver<Event>,
    stop: Arc<Stop>,
    reader: JoinHandle<Result<Seen, StoresError>>,
    _folder: tempfile::TempDir,
}

/// A folder on tmpfs.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a folder on tmpfs")
}

/// A sparse file of [`PAGES`] pages.
fn file(folder: &Path) -> PathBuf {
    let path = folder.join("pmem");
    File::create(&path).expect("a file").set_len(PAGES * PAGE_BYTES).expect("its size");
    path
}

fn target(path: &Path, socket: &Path) -> Target {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).expect("the file");
    Target { device: metadata.dev(), inode: metadata.ino(), socket: socket.to_owned() }
}

fn watched(times: Times, prepare: impl FnOnce(&Path)) -> Watched {
    let folder = folder();
    let path = file(folder.path());
    prepare(&path);
    let socket = folder.path().join("stores.sock");
    let watch = Watch::new(&path, &socket).expect("a file that can be watched");
    let (log, events) = channel();
    let stop = Arc::new(Stop::new().expect("a stop"));
    let until = Arc::clone(&stop);
    let reader = std::thread::spawn(move || {
        watch.run(times, until.as_fd(), &mut |event| {
            let _ = log.send(event);
        })
    });
    let opened = File::options().read(true).write(true).open(&path).expect("opens");
    let (bytes, access) = (PAGES * PAGE_BYTES, ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a new mapping at an address of the kernel's choice, which lives as long as the
    // process.
    let base = unsafe { mmap(null_mut(), bytes as usize, access, MapFlags::SHARED, &opened, 0) };
    let base = NonNull::new(base.expect("maps").cast()).expect("an address");
    let target = target(&path, &socket);
    let connection =
        announce(&target, base.as_ptr() as u64, bytes, 0).expect("a mapping that is watched");
    Watched { base, connection, socket, events, stop, reader, _folder: folder }
}

/// A place to store to, from any thread.
#[derive(Clone, Copy)]
struct Place(*mut u8);

// SAFETY: only `write_volatile` is done with it, at places inside the mapping.
unsafe impl Send for Place {}

impl Place {
    fn store(self, offset: u64, value: u8) {
        // SAFETY: tests name offsets inside the mapping, which is never unmapped and has no
        // references into it.
        unsafe { self.0.add(offset as usize).write_volatile(value) };
    }
}

/// What a test is interested in.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Store { offset: u64, thread: u32 },
    Protected(Protection, u64),
}

impl Watched {
    fn place(&self) -> Place {
        Place(self.base.as_ptr())
    }

    /// The next event, as far as it is about stores.
    fn next(&self) -> Told {
        loop {
            match self.events.recv_timeout(LIMIT).expect("an event").what {
                What::FirstStore { offset, thread, .. } => return Told::Store { offset, thread },
                What::Protected { cause, stores } => return Told::Protected(cause, stores),
                _ => {}
            }
        }
    }

    fn end(self) -> Seen {
        self.stop.set();
        let seen = self.reader.join().expect("the reader does not panic").expect("ends well");
        // The reader is gone, so there is an end to them.
        let more = self.events.iter().find(|event| matches!(event.what, What::FirstStore { .. }));
        assert_eq!(more, None);
        seen
    }
}

fn tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

/// Where the n-th store goes: scattered pages, a byte of its own in each.
fn nth(n: u64) -> u64 {
    n * 37 % PAGES * PAGE_BYTES + n * 11 % PAGE_BYTES
}

/// Two threads store in turns; which thread made each store.
fn store_in_turns(place: Place, count: u64) -> Vec<u32> {
    std::thread::scope(|scope| {
        let (to_other, from_first) = channel::<()>();
        let (to_first, from_other) = channel::<()>();
        let take_turns = |from: Receiver<()>, to: std::sync::mpsc::Sender<()>, parity: u64| {
            move || {
                for n in (parity..count).step_by(2) {
                    from.recv_timeout(LIMIT).expect("my turn");
                    // Moved in whole: it is what may be sent.
                    let place: Place = place;
                    place.store(nth(n), 1);
                    let _ = to.send(());
                }
                tid()
            }
        };
        to_first.send(()).expect("the first turn");
        let first = scope.spawn(take_turns(from_other, to_other, 0));
        let second = scope.spawn(take_turns(from_first, to_first, 1));
        let tids = [first, second].map(|thread| thread.join().expect("no panic"));
        (0..count).map(|n| tids[(n % 2) as usize]).collect()
    })
}

#[test]
fn first_stores_in_order_with_byte_and_thread() {
    const COUNT: u64 = 200;
    // Half of the pages have bytes already, a quarter is in the page tables too.
    let watched = watched(Times::default(), |path| {
        std::fs::write(path, vec![7; (PAGES * PAGE_BYTES / 2) as usize]).expect("bytes");
        File::options()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(PAGES * PAGE_BYTES))
            .expect("its size");
    });
    for page in 0..PAGES / 4 {
        // SAFETY: inside the mapping; nobody stores there now.
        let byte = unsafe { watched.base.add((page * PAGE_BYTES) as usize).read_volatile() };
        assert_eq!(byte, 7);
    }
    assert_eq!(watched.next(), Told::Protected(Protection::Mapped, 0));
    let expect = |by: &[u32]| {
        for n in 0..COUNT {
            let told = watched.next();
            assert_eq!(told, Told::Store { offset: nth(n), thread: by[n as usize] }, "store {n}");
        }
    };
    expect(&store_in_turns(watched.place(), COUNT));
    // The same again: not one of them is a first store, until the pages are protected.
    store_in_turns(watched.place(), COUNT);
    ask(&watched.connection, Message::Flush, None).expect("the reader answers");
    assert_eq!(watched.next(), Told::Protected(Protection::Flush, COUNT));
    expect(&store_in_turns(watched.place(), COUNT));
    protect(&watched.socket).expect("the reader answers");
    assert_eq!(watched.next(), Told::Protected(Protection::Control, COUNT));
    assert_eq!(watched.end(), Seen { mappings: 1, stores: 2 * COUNT });
}

#[test]
fn an_interval_protects_again() {
    let every = Some(Duration::from_millis(5));
    let watched = watched(Times { every, ..Times::default() }, |_| {});
    for _ in 0..3 {
        watched.place().store(PAGE_BYTES + 1, 1);
        // Intervals without a store may come first; not for ever.
        let told = (0..1000).map(|_| watched.next()).find(|t| matches!(t, Told::Store { .. }));
        assert_eq!(told, Some(Told::Store { offset: PAGE_BYTES + 1, thread: tid() }));
        assert_eq!(watched.next(), Told::Protected(Protection::Interval, 1));
    }
    watched.end();
}

#[test]
fn a_store_has_its_ext4_class() {
    let mut bitmap = None;
    let watched = watched(Times::default(), |path| {
        let made = Command::new("mkfs.ext4").args(["-q", "-b", "4096"]).arg(path).output();
        assert!(made.expect("mkfs.ext4 runs").status.success());
        let dumped = Command::new("dumpe2fs").arg(path).output().expect("dumpe2fs runs").stdout;
        let dumped = String::from_utf8(dumped).expect("text");
        let (_, after) = dumped.split_once("Block bitmap at ").expect("a block bitmap");
        let digits = after.split(|c: char| !c.is_ascii_digit()).next();
        bitmap = digits.and_then(|digits| digits.parse::<u64>().ok());
    });
    let offset = bitmap.expect("a number") * PAGE_BYTES + 77;
    watched.place().store(offset, 1);
    let touches = loop {
        match watched.events.recv_timeout(LIMIT).expect("an event").what {
            What::FirstStore { offset: at, touches, .. } if at == offset => break touches,
            _ => {}
        }
    };
    let text = serde_json::to_string(&touches).expect("JSON");
    assert_eq!(text, r#"{"class":"block_bitmap","group":0}"#);
    watched.end();
}

#[test]
fn what_cannot_be_watched_says_why() {
    let folder = folder();
    let socket = folder.path().join("s");
    let refused = Watch::new(Path::new("/proc/version"), &socket);
    assert!(matches!(refused, Err(StoresError::NotOnTmpfs { .. })), "{refused:?}");
    let path = file(folder.path());
    let watch = Watch::new(&path, &socket).expect("a file that can be watched");
    let times = Times { mapped_within: Some(Duration::from_millis(20)), every: None };
    let stop = Stop::new().expect("a stop");
    let ended = watch.run(times, stop.as_fd(), &mut |_| {});
    assert!(matches!(ended, Err(StoresError::NeverMapped { .. })), "{ended:?}");
}
