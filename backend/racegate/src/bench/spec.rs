//! Contenders by name.
//!
//! In: a word or command of the command line. Out: a contender that is ready to run.
//! Must not know: how anything is measured.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use campaign::process;
use tempfile::TempPath;

use super::contender::{Contender, Place};
use super::fio::Fio;
use super::limits::{Memcpy, Ring};
use super::served::Served;

/// Printed below the options.
pub(super) const HELP: &str = "\
Backends by name, KIND@MEDIUM:
  racegate@memory    racegate-blk, the disk in its memory
  racegate@overlay   racegate-blk, an overlay over an image on a disk
  racegate@tmpfs     racegate-blk, a file in /dev/shm
  racegate@file      racegate-blk, a file on a disk through the page cache
  racegate@direct    racegate-blk, a file on a disk with O_DIRECT
  qsd-AIO@MEDIUM     qemu-storage-daemon with a file; AIO: threads, io_uring, native (never @file);
                     MEDIUM: tmpfs, file, direct; qsd-AIO-iothread@MEDIUM: in a thread of its own
  qsd-null@none      qemu-storage-daemon, a disk that moves no data
  qemu-AIO@MEDIUM    QEMU's own virtio-blk in a thread of its own (only with --guest)
Limits of the machine:
  memcpy@memory      one thread that copies blocks
  ring@memory        two threads that share a ring, one copies, both sleep when idle
  fio@direct         fio with io_uring and O_DIRECT, straight on a file
Images are made for the run, filled once through the backend, and removed.
Arguments behind a name are added to the backend's command line: 'racegate@memory --rules my.toml'.
Example:
  racegate bench racegate@memory --vs qsd-native@tmpfs --vs qsd-io_uring@tmpfs --depth 1,32";

/// Opens the contender that `text` names; `index` tells contenders of one run apart.
pub(super) fn open(text: &str, index: usize, place: &Place) -> anyhow::Result<Box<dyn Contender>> {
    if let Some(daemon) = daemon(text, index, place)? {
        return Ok(Box::new(daemon));
    }
    Ok(match text {
        "memcpy@memory" => Box::new(Memcpy::new(place.bytes)?),
        "ring@memory" => Box::new(Ring::new(place.bytes)?),
        "fio@direct" => {
            let (image, guard) = image_in(&place.disk, place)?;
            Box::new(Fio::new(image, guard, place)?)
        }
        _ if text.starts_with("qemu-") => {
            bail!("QEMU's own disk is in a guest: add --guest KERNEL")
        }
        _ => bail!(
            "no such backend: expected a name (racegate bench --help lists them), socket:PATH, or \
             a command with {{socket}} in it"
        ),
    })
}

/// The same, of those that are a process behind a socket; `None` if `text` names something else.
pub(super) fn daemon(text: &str, index: usize, place: &Place) -> anyhow::Result<Option<Served>> {
    if let Some(socket) = text.strip_prefix("socket:") {
        return Ok(Some(Served::attached(text, Path::new(socket), place)));
    }
    let socket = place.folder.join(format!("{index}.sock"));
    let mut words = text.split_whitespace();
    let first = words.next().unwrap_or_default();
    if text.contains("{socket}") {
        return custom(text, &socket, place).map(Some);
    }
    let extra: Vec<OsString> = words.map(OsString::from).collect();
    let Some((kind, medium)) = first.split_once('@') else { return Ok(None) };
    Ok(Some(match (kind, medium) {
        ("racegate", _) => racegate(text, medium, &socket, extra, place)?,
        ("qsd-null", "none") => {
            let node = format!("driver=null-co,size={},read-zeroes=off", place.bytes);
            qsd(text, &node, false, &socket, extra, None, place)?
        }
        _ if kind.starts_with("qsd-") => qsd_file(text, kind, medium, &socket, extra, place)?,
        _ => return Ok(None),
    }))
}

/// Whether QEMU goes past the page cache for that aio mode and medium.
pub(super) fn is_direct(aio: &str, medium: &str) -> anyhow::Result<bool> {
    // Linux has no asynchronous read through the page cache but io_uring's.
    match (aio, medium) {
        ("native", "file") => bail!("aio=native needs O_DIRECT: name the medium direct"),
        ("native", "tmpfs") | ("threads" | "io_uring" | "native", "direct") => Ok(true),
        ("threads" | "io_uring", "tmpfs" | "file") => Ok(false),
        _ => bail!("no such backend: racegate bench --help lists the names"),
    }
}

/// A file of the size of the disk, removed when the guard goes.
pub(super) fn image_in(
    folder: &Path,
    place: &Place,
) -> anyhow::Result<(PathBuf, Option<TempPath>)> {
    if let Some(image) = &place.image {
        return Ok((image.clone(), None));
    }
    let file = tempfile::Builder::new()
        .prefix("racegate-bench-")
        .suffix(".img")
        .tempfile_in(folder)
        .with_context(|| format!("cannot make an image in {} (--dir)", folder.display()))?;
    file.as_file().set_len(place.bytes)?;
    let path = file.into_temp_path();
    Ok((path.to_path_buf(), Some(path)))
}

pub(super) fn folder_of<'a>(medium: &str, place: &'a Place) -> &'a Path {
    if matches!(medium, "memory" | "tmpfs") { Path::new("/dev/shm") } else { &place.disk }
}

fn racegate(
    text: &str,
    medium: &str,
    socket: &Path,
    extra: Vec<OsString>,
    place: &Place,
) -> anyhow::Result<Served> {
    let options: &[&str] = match medium {
        "memory" => &["--storage", "memory"],
        "overlay" => &["--storage", "overlay"],
        "tmpfs" | "file" if place.image.is_some() => &["--read-only"],
        "direct" if place.image.is_some() => &["--direct", "--read-only"],
        "tmpfs" | "file" => &[],
        "direct" => &["--direct"],
        _ => bail!("no such medium: memory, overlay, tmpfs, file or direct"),
    };
    let (image, guard) = image_in(folder_of(medium, place), place)?;
    let this = std::env::current_exe().context("cannot tell where racegate itself is")?;
    let mut command = process::command_at(&this);
    command.arg("blk").arg("--socket-path").arg(socket).arg("--blk-file").arg(image);
    command.args(["--queue-size", "1024", "--num-queues", &place.queues.to_string()]);
    command.args(options).args(extra);
    Served::start(text, command, socket, place, guard)
}

fn qsd_file(
    text: &str,
    kind: &str,
    medium: &str,
    socket: &Path,
    extra: Vec<OsString>,
    place: &Place,
) -> anyhow::Result<Served> {
    let mode = kind.strip_prefix("qsd-").unwrap_or(kind);
    let (aio, iothread) = match mode.strip_suffix("-iothread") {
        Some(aio) => (aio, true),
        None => (mode, false),
    };
    let direct = is_direct(aio, medium)?;
    let (image, guard) = image_in(folder_of(medium, place), place)?;
    let cache = if direct { "on" } else { "off" };
    let read_only = if place.image.is_some() { "on" } else { "off" };
    let node = format!(
        "driver=file,filename={},aio={aio},cache.direct={cache},read-only={read_only}",
        image.display()
    );
    qsd(text, &node, iothread, socket, extra, guard, place)
}

fn qsd(
    text: &str,
    node: &str,
    iothread: bool,
    socket: &Path,
    extra: Vec<OsString>,
    guard: Option<TempPath>,
    place: &Place,
) -> anyhow::Result<Served> {
    let mut command = process::command("qemu-storage-daemon", "qemu-system-common")?;
    let writable = if place.image.is_some() { "off" } else { "on" };
    let mut export = format!(
        "type=vhost-user-blk,id=e0,node-name=f0,addr.type=unix,addr.path={},writable={writable},\
         num-queues={}",
        socket.display(),
        place.queues
    );
    command.arg("--blockdev").arg(format!("{node},node-name=f0"));
    if iothread {
        command.args(["--object", "iothread,id=t0"]);
        export.push_str(",iothread=t0");
    }
    command.arg("--export").arg(export).args(extra);
    Served::start(text, command, socket, place, guard)
}

/// A command of the operator's, with the places of socket and image put in.
fn custom(text: &str, socket: &Path, place: &Place) -> anyhow::Result<Served> {
    let (image, guard) = if text.contains("{image}") {
        let (image, guard) = image_in(&place.disk, place)?;
        (image.display().to_string(), guard)
    } else {
        (String::new(), None)
    };
    let socket_text = socket.display().to_string();
    let mut words = text
        .split_whitespace()
        .map(|word| word.replace("{socket}", &socket_text).replace("{image}", &image));
    let program = words.next().unwrap_or_default();
    let path = process::find_program(&program)
        .or_else(|| Some(PathBuf::from(&program)).filter(|path| process::is_executable(path)))
        .with_context(|| format!("there is no program {program}"))?;
    let mut command: Command = process::command_at(&path);
    command.args(words);
    Served::start(text, command, socket, place, guard)
}
