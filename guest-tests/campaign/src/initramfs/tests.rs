//! The archive is read back by the `cpio` crate, a reader that was not written here.

use std::collections::BTreeMap;
use std::io::{Cursor, Read as _};

use super::*;

/// Mode, device (major, minor) and data.
type Member = (u32, (u32, u32), Vec<u8>);

/// Every member by its name.
fn unpack(archive: Vec<u8>) -> BTreeMap<String, Member> {
    let mut rest = Cursor::new(archive);
    let mut members = BTreeMap::new();
    loop {
        let mut member = ::cpio::newc::Reader::new(rest).unwrap();
        if member.entry().is_trailer() {
            return members;
        }
        let entry = member.entry();
        let name = entry.name().to_owned();
        let (mode, device) = (entry.mode(), (entry.rdev_major(), entry.rdev_minor()));
        let mut data = Vec::new();
        member.read_to_end(&mut data).unwrap();
        assert!(members.insert(name, (mode, device, data)).is_none());
        rest = member.finish().unwrap();
    }
}

#[test]
fn an_independent_reader_finds_every_member() {
    let mut initramfs = Initramfs::new(b"program").unwrap();
    for length in 0..9 {
        initramfs.file(format!("/a/b/{length}"), 0o640, vec![7; length]).unwrap();
    }
    let members = unpack(initramfs.build().unwrap());
    assert_eq!(members["init"], (0o100_755, (0, 0), b"program".to_vec()));
    assert_eq!(members["dev/console"], (0o020_600, (5, 1), vec![]));
    assert_eq!(members["a/b"].0, 0o040_755);
    assert_eq!(members["etc/mtab"], (0o120_777, (0, 0), b"/proc/self/mounts".to_vec()));
    for length in 0..9 {
        let expected = (0o100_640, (0, 0), vec![7; length]);
        assert_eq!(members[&format!("a/b/{length}")], expected);
    }
}

#[test]
fn folders_come_before_what_is_in_them() {
    let mut initramfs = Initramfs::new(b"").unwrap();
    initramfs.file("/a-b", 0o644, vec![]).unwrap();
    initramfs.file("/a/c", 0o644, vec![]).unwrap();
    let paths: Vec<_> = initramfs.entries.keys().collect();
    for (at, path) in paths.iter().enumerate() {
        let parent = path.parent().unwrap();
        assert!(parent == Path::new("/") || paths[..at].iter().any(|other| *other == parent));
    }
}

#[test]
fn equal_input_gives_equal_bytes() {
    let build = |names: [&str; 3]| {
        let mut initramfs = Initramfs::new(b"program").unwrap();
        for name in names {
            initramfs.file(name, 0o644, name.as_bytes().to_vec()).unwrap();
        }
        initramfs.build().unwrap()
    };
    assert_eq!(build(["/x", "/y/z", "/w"]), build(["/w", "/x", "/y/z"]));
}

#[test]
fn a_path_that_leaves_the_archive_is_refused() {
    for path in ["relative", "/a/../b", "/"] {
        let mut initramfs = Initramfs::new(b"").unwrap();
        let error = initramfs.file(path, 0o644, vec![]).unwrap_err();
        assert!(matches!(error, InitramfsError::Path { .. }), "{path}");
    }
}

#[test]
fn ldd_lines() {
    let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                \tlibe2p.so.2 => /lib/x86_64-linux-gnu/libe2p.so.2 (0x00007f8)\n\
                \t/lib64/ld-linux-x86-64.so.2 (0x00007f9)\n";
    let expected = ["/lib/x86_64-linux-gnu/libe2p.so.2", "/lib64/ld-linux-x86-64.so.2"];
    assert_eq!(parse_ldd(text).unwrap(), expected.map(PathBuf::from));
    assert_eq!(parse_ldd("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
    assert_eq!(parse_ldd("\tliba.so.1 => not found\n").unwrap_err(), "liba.so.1");
}

#[test]
fn a_program_brings_its_loader_and_its_libraries() {
    let mut initramfs = Initramfs::new(b"").unwrap();
    initramfs.program("mkfs.ext4", "e2fsprogs").unwrap();
    let members = unpack(initramfs.build().unwrap());
    assert!(members["bin/mkfs.ext4"].2.starts_with(b"\x7fELF"));
    for library in ["libext2fs.so.2", "libc.so.6", "ld-linux-x86-64.so.2"] {
        let found = members.iter().find(|(name, _)| name.ends_with(&format!("/{library}")));
        assert!(found.is_some_and(|(_, member)| member.2.starts_with(b"\x7fELF")), "{library}");
    }
}
