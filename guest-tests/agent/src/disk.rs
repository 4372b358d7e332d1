//! Finding the two disks: by their serial numbers, or the main one by the name that the kernel's
//! command line gives it (persistent memory has no serial number).
//!
//! In: /sys/block, /proc/cmdline, notifications about /dev. Out: kernel names (`vda`), device nodes in place.

use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use agent::{DISK_PARAMETER, DISK_SERIAL, LINK_SERIAL};
use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

/// How long disks may take to appear after their drivers are loaded. Generous: an emulated
/// machine on a loaded host probes slowly.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Kernel names of the disks.
pub(crate) struct Disks {
    /// The disk under test.
    pub(crate) main: String,
    /// The link to the host.
    pub(crate) link: String,
}

/// Waits until both disks are there. A disk is there when `/sys/block/NAME/serial` is one of
/// ours, or NAME is what the command line says, and `/dev/NAME` exists; the kernel creates the
/// node last.
pub(crate) fn wait_for_both(limit: Duration) -> anyhow::Result<Disks> {
    let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .context("asking for notifications about /dev")?;
    inotify::add_watch(&events, "/dev", WatchFlags::CREATE).context("watching /dev")?;
    let deadline = Instant::now() + limit;
    let named = named_disk()?;
    let find_main = || match &named {
        Some(name) => Path::new("/dev").join(name).exists().then(|| name.clone()),
        None => find(DISK_SERIAL),
    };
    loop {
        let (main, link) = (find_main(), find(LINK_SERIAL));
        if let (Some(main), Some(link)) = (&main, &link) {
            return Ok(Disks { main: main.clone(), link: link.clone() });
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let seen = |name: &Option<String>| name.clone().unwrap_or_else(|| "missing".into());
            bail!(
                "no disk after {} s: {}: {}, serial \"{LINK_SERIAL}\": {}",
                limit.as_secs(),
                named.unwrap_or_else(|| format!("serial \"{DISK_SERIAL}\"")),
                seen(&main),
                seen(&link)
            );
        }
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&timeout))
            .or_else(|error| if error == Errno::INTR { Ok(0) } else { Err(error) })
            .context("waiting for /dev")?;
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&events, &mut room);
        while reader.next().is_ok() {}
    }
}

/// The name of the main disk on the kernel's command line.
fn named_disk() -> anyhow::Result<Option<String>> {
    let text = fs::read_to_string("/proc/cmdline").context("/proc/cmdline")?;
    let value = |word: &str| Some(word.strip_prefix(DISK_PARAMETER)?.strip_prefix('=')?.to_owned());
    Ok(text.split_whitespace().find_map(value))
}

fn find(serial: &str) -> Option<String> {
    fs::read_dir("/sys/block").ok()?.flatten().find_map(|entry| {
        let has = fs::read_to_string(entry.path().join("serial")).ok()?;
        let name = entry.file_name().into_string().ok()?;
        (has.trim() == serial && Path::new("/dev").join(&name).exists()).then_some(name)
    })
}
