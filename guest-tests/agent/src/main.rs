//! Init of the guest: brings up what a trial needs, then serves the host over the link disk.
//!
//! In: the initramfs (modules, list of modules), two virtio disks, commands from the host.
//! Out: messages to the host; lines with a fixed prefix on the console.
//! Must not know: plans, rules, what counts as a hit.

mod background;
mod boot;
mod clock;
mod console;
mod disk;
mod exec;
mod ioctl;
mod kmsg;
mod link;
mod lists;
mod mapping;
mod meeting;
mod power;
mod serve;
mod trace;
mod trial;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("this program is the init of a racegate guest; boot a kernel with it as /init");
        return ExitCode::from(2);
    }
    power::off_on_panic();
    if let Err(error) = run() {
        console::say(&format!("failed: {error:#}"));
    }
    power::off()
}

fn run() -> anyhow::Result<()> {
    boot::mount_kernel_file_systems()?;
    console::open();
    boot::load_modules().context("loading the modules of the initramfs")?;
    let disks = disk::wait_for_both(disk::LIMIT)?;
    let link = Arc::new(link::Link::open(&disks.link)?);
    power::report_panics_to(Arc::clone(&link));
    serve::greet(&link, &disks.main).context("greeting the host")?;
    console::say("ready");
    serve::serve(&link, &disks.main)
}
