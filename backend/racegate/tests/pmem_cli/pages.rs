//! Pages without rules: what the file is, and that nothing is lost.

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;

use device::dax::{Domain, Writer};
use rustix::process::Signal;
use serde_json::json;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::server::{PAGE, PAGES, Server, is_mounted, place_behind, until, word};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("pages::the_file_is_the_image", the_file_is_the_image),
    ("pages::stores_reach_the_image", stores_reach_the_image),
    ("pages::throwing_dirty_pages_out_loses_nothing", throwing_dirty_pages_out_loses_nothing),
    ("pages::a_reset_shows_the_image_again", a_reset_shows_the_image_again),
    ("pages::mapped_as_cloud_hypervisor_does", mapped_as_cloud_hypervisor_does),
    ("pages::read_only", read_only),
    ("pages::the_layout_follows_stores", the_layout_follows_stores),
];

pub(crate) const NAMESPACE_TESTS: &[(&str, fn())] =
    &[("pages::a_namespace_of_its_own", a_namespace_of_its_own)];

pub(crate) const ROOT_TESTS: &[(&str, fn())] =
    &[("pages::for_an_ordinary_user", for_an_ordinary_user)];

fn the_file_is_the_image() {
    for storage in ["file", "memory", "overlay"] {
        let server = Server::start(&["--storage", storage]);
        let image = fs::read(server.place.path("image")).expect("image");
        assert!(fs::read(&server.file).expect("file") == image, "{storage}: read");
        let mapped = server.map();
        let mut page = vec![0; PAGE as usize];
        for (at, expected) in (0..).zip(image.chunks(PAGE as usize)) {
            mapped.read(at * PAGE, &mut page).expect("in the file");
            assert!(page == expected, "{storage}: page {at}");
        }
        drop(mapped);
        let place = server.terminate();
        assert_eq!(place.names(), ["image", "mount"]);
    }
}

/// Through a mapping and msync, through write(2) of odd lengths, and without any sync at all.
fn stores_reach_the_image() {
    let server = Server::start(&[]);
    let mapped = server.map();
    let mut writer = Writer::new(&mapped);
    writer.write(5 * PAGE + 8, b"synced").expect("stored");
    writer.drain().expect("durable");
    let image = fs::File::open(server.place.path("image")).expect("image");
    let mut bytes = [0; 6];
    image.read_exact_at(&mut bytes, 5 * PAGE + 8).expect("read");
    assert_eq!(&bytes, b"synced");
    let file = fs::File::options().write(true).open(&server.file).expect("opens");
    file.write_all_at(b"written", 7 * PAGE - 3).expect("written");
    mapped.store(9 * PAGE, b"neither").expect("stored");
    drop((file, mapped));
    let place = server.terminate();
    let image = fs::read(place.path("image")).expect("image");
    let at = |offset: u64, len: usize| &image[offset as usize..offset as usize + len];
    assert_eq!(at(7 * PAGE - 3, 7), b"written");
    assert_eq!(at(9 * PAGE, 7), b"neither");
}

/// cloud-hypervisor's `--pmem file=` (`vmm/src/device_manager.rs`, `make_virtio_pmem_device`): the
/// whole file, with its own library and flags; a guest's flush is sync_all().
fn mapped_as_cloud_hypervisor_does() {
    let server = Server::start(&[]);
    let file = fs::File::options().read(true).write(true).open(&server.file).expect("opens");
    let bytes = file.metadata().expect("its size").len();
    assert_eq!(bytes % (2 << 20), 0, "which cloud-hypervisor asks for");
    let region = MmapRegion::<()>::build(
        Some(FileOffset::new(file.try_clone().expect("a descriptor"), 0)),
        bytes as usize,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_NORESERVE | libc::MAP_SHARED,
    )
    .expect("mapped");
    let image = fs::read(server.place.path("image")).expect("image");
    let memory = region.as_volatile_slice();
    let mut found = vec![0; image.len()];
    memory.copy_to(&mut found);
    assert!(found == image, "the memory is not the image");
    for page in 0..PAGES {
        let at = (page * PAGE) as usize;
        memory.get_ref::<u64>(at + 8).expect("inside").store(page + 1);
    }
    file.sync_all().expect("flushed");
    let image = fs::read(server.place.path("image")).expect("image");
    for page in 0..PAGES {
        let at = (page * PAGE) as usize + 8;
        assert_eq!(image[at..at + 8], (page + 1).to_ne_bytes(), "page {page}");
    }
    drop((region, file));
    server.terminate();
}

/// Every page is watched, and thrown out while it is stored to.
fn throwing_dirty_pages_out_loses_nothing() {
    let rules = "[[rule]]\nname = 'all'\nmatch = { op = 'fault' }\naction = { delay = '1us' }\n";
    let place = crate::server::place();
    fs::write(place.path("rules.toml"), rules).expect("rules");
    let server = Server::start_in(place, &["--rules=rules.toml"]);
    let mapped = server.map();
    let mut control = server.control();
    let mut expected = vec![None; PAGES as usize];
    // A step that meets every page of a small prime's multiples more than once.
    for turn in 0..2000_u64 {
        let page = turn * 37 % 101;
        mapped.store_word(page * PAGE + 8 * (turn % 512), turn).expect("stored");
        expected[page as usize] = Some((turn, page * PAGE + 8 * (turn % 512)));
        if turn % 4 == 0 {
            assert_eq!(control.ask(&json!({ "command": "rearm" }))["reply"], "done");
        }
    }
    for (turn, at) in expected.iter().flatten() {
        assert_eq!(mapped.read_word(*at), Ok(*turn), "in memory");
    }
    assert!(server.count("all", "fired") > 500, "hardly a page was thrown out");
    drop(mapped);
    let image = fs::read(server.terminate().path("image")).expect("image");
    for (turn, at) in expected.iter().flatten() {
        let at = *at as usize;
        assert_eq!(image[at..at + 8], turn.to_ne_bytes(), "in the image");
    }
}

fn a_reset_shows_the_image_again() {
    let server = Server::start(&["--storage=overlay"]);
    let mapped = server.map();
    let image = fs::read(server.place.path("image")).expect("image");
    let in_image = |page: u64| {
        let at = (page * PAGE) as usize;
        u64::from_ne_bytes(image[at..at + 8].try_into().expect("8 bytes"))
    };
    for round in 0..20 {
        for page in [0, 1, 700] {
            assert_eq!(word(&mapped, page), Ok(in_image(page)), "page {page}, round {round}");
            mapped.store_word(page * PAGE, 0x5eed + round).expect("stored");
        }
        // One page was written back before, the others are dirty.
        if round % 2 == 0 {
            let mut writer = Writer::new(&mapped);
            writer.write(PAGE, &[1; 8]).expect("stored");
            writer.drain().expect("durable");
        }
        server.command("reset");
    }
    drop(mapped);
    let place = server.terminate();
    assert!(fs::read(place.path("image")).expect("image") == image, "the image has changed");
}

fn read_only() {
    let server = Server::start(&["--read-only"]);
    assert_eq!(fs::read(&server.file).expect("read").len() as u64, PAGES * PAGE);
    let refused = fs::File::options().write(true).open(&server.file);
    assert_eq!(refused.expect_err("writable").kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    server.terminate();
}

/// A file system that is made through the mapping is known when somebody asks.
fn the_layout_follows_stores() {
    let server = Server::start(&["--storage=overlay"]);
    let bitmap = server.page_of("block_bitmap");
    let mapped = server.map();
    let mut magic = [0; 2];
    mapped.read(1024 + 0x38, &mut magic).expect("read");
    assert_eq!(magic, [0x53, 0xef], "the superblock's magic number");
    mapped.store(1024 + 0x38, &[0, 0]).expect("stored");
    let sectors = server.command("layout")["sectors"].clone();
    assert_eq!(sectors, json!({ "unknown": PAGES * PAGE / 512 }));
    mapped.store(1024 + 0x38, &magic).expect("stored");
    assert_eq!(server.page_of("block_bitmap"), bitmap);
    drop(mapped);
    server.terminate();
}

fn a_namespace_of_its_own() {
    let server = Server::start(&["--own-namespace", "--storage=overlay"]);
    assert!(server.file.starts_with("/proc/"), "{}", server.file.display());
    assert!(!server.is_mounted(), "seen from outside");
    let image = fs::read(server.place.path("image")).expect("image");
    assert!(fs::read(&server.file).expect("readable from outside") == image);
    let mapped = server.map();
    mapped.store_word(PAGE, 7).expect("stored");
    assert_eq!(word(&mapped, 1), Ok(7));
    drop(mapped);
    server.terminate();

    let mut server = Server::start(&["--own-namespace"]);
    server.daemon().signal(Signal::KILL);
    server.end();
    until("the file is gone", || fs::metadata(&server.file).is_err());
    assert!(!is_mounted(&server.place.path("mount")));
}

/// Somebody without any right but to open /dev/fuse: the same user may open the file, whoever
/// else may not (`fuse_allow_current_process`).
fn for_an_ordinary_user() {
    const USER: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let place = place_behind(&[
        "unshare",
        "--mount",
        "sh",
        "-c",
        r#"mknod node c 10 229 && chmod a+rw node && mount --bind node /dev/fuse && rm -f node &&
           chmod a+rwx . && chown 65534:65534 image mount &&
           exec setpriv --reuid=65534 --regid=65534 --clear-groups "$0" "$@""#,
    ]);
    let server = Server::start_in(place, &["--storage=overlay"]);
    assert!(server.file.starts_with("/proc/"), "{}", server.file.display());
    let head = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(&server.file).output().expect("head")
    };
    let own = head(&[&USER[..], &["head", "-c", "65536"]].concat());
    let image = fs::read(server.place.path("image")).expect("image");
    assert!(own.stdout == image[..65536], "{}", String::from_utf8_lossy(&own.stderr));
    let other = ["setpriv", "--reuid=65533", "--regid=65534", "--clear-groups", "head", "-c", "1"];
    assert!(!head(&other).status.success());
    server.terminate();
}
