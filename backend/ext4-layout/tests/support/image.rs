//! Images made by the real mkfs.ext4 and filled by the real debugfs.
//!
//! In: options of mkfs.ext4. Out: an image file with fragmented and preallocated files, long and
//! short symbolic links, large directories, extended attributes and deleted files.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// An image in a folder of its own, removed with it.
pub(crate) struct Image {
    folder: TempDir,
    /// `?offset=` for e2fsprogs, in bytes.
    offset: u64,
}

impl Image {
    /// Runs mkfs.ext4 with `options` on a sparse file of `bytes`.
    pub(crate) fn make(bytes: u64, options: &[&str]) -> Image {
        Image::make_at(bytes, 0, options)
    }

    /// The same, with the file system `offset` bytes into the image.
    pub(crate) fn make_at(bytes: u64, offset: u64, options: &[&str]) -> Image {
        let image = Image { folder: tempfile::tempdir().unwrap(), offset };
        File::create(image.path()).unwrap().set_len(bytes).unwrap();
        let extended = format!("offset={offset},lazy_journal_init=1,root_owner=0:0");
        let kib = format!("{}k", (bytes - offset) / 1024);
        let path = image.path();
        let mut args = vec!["-q", "-F"];
        if !options.contains(&"-E") {
            args.extend(["-E", &extended]);
        }
        args.extend(options);
        args.push(path.to_str().unwrap());
        args.push(&kib);
        tool("mkfs.ext4", &args);
        image
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    /// Runs commands of debugfs that may write; each must succeed.
    pub(crate) fn debugfs(&self, commands: &str) {
        let script = self.folder.path().join("commands");
        fs::write(&script, commands).unwrap();
        let name = format!("{}?offset={}", self.path().display(), self.offset);
        let output = tool("debugfs", &["-w", "-f", script.to_str().unwrap(), &name]);
        let complaints = String::from_utf8_lossy(&output.stderr);
        let complaints: Vec<&str> =
            complaints.lines().filter(|line| !line.starts_with("debugfs 1.")).collect();
        assert!(complaints.is_empty(), "debugfs: {complaints:?}");
    }

    /// A host file with `bytes` bytes that no one takes for metadata.
    pub(crate) fn host_file(&self, name: &str, bytes: usize) -> PathBuf {
        let path = self.folder.path().join(name);
        let text: Vec<u8> = (0..bytes).map(|at| b'a' + (at % 23) as u8).collect();
        fs::write(&path, text).unwrap();
        path
    }

    /// Fills the file system with a little of everything. `block` is its block size.
    pub(crate) fn fill(&self, block: usize, extents: bool) {
        let small = self.host_file("small", 3 * block);
        let large = self.host_file("large", 300 * block);
        let attribute = self.host_file("attribute", block / 2);
        let (small, large) = (small.display(), large.display());
        let mut commands = String::new();
        let mut say = |line: std::fmt::Arguments<'_>| writeln!(commands, "{line}").unwrap();
        say(format_args!("mkdir holes\nmkdir many\nmkdir deep\nmkdir deep/er"));
        for file in 0..80 {
            say(format_args!("write {small} holes/{file}"));
        }
        for file in (0..80).step_by(2) {
            say(format_args!("rm holes/{file}"));
        }
        say(format_args!("write {large} fragmented\nwrite {large} deep/er/straight"));
        if extents {
            say(format_args!("fallocate deep/er/straight 400 450"));
            say(format_args!("write {small} preallocated\nfallocate preallocated 10 40"));
        }
        let long = "x".repeat(59 + 30);
        say(format_args!("symlink short /target\nsymlink long /{long}"));
        let name = "n".repeat(180);
        for file in 0..60 {
            say(format_args!("write /dev/null many/{name}{file}"));
        }
        say(format_args!("ea_set -f {} fragmented user.large", attribute.display()));
        say(format_args!("ea_set many user.small value"));
        say(format_args!("mknod deep/pipe p\nmknod deep/device c 1 3"));
        self.debugfs(&commands);
    }
}

/// Runs a tool of e2fsprogs that must succeed.
pub(crate) fn tool(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .env("LC_ALL", "C")
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program} (package e2fsprogs): {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {complaint}");
    output
}

/// The bytes of an image, for tests that change some.
pub(crate) fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}
