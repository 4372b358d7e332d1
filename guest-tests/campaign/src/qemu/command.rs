//! QEMU's command line.
//!
//! In: a [`VmConfig`]. Out: arguments.
//! Must not know: processes.

use std::ffi::OsString;
use std::process::Command;

use super::{Disk, Pmem, VHOST_USER_DEVICE, VmConfig};
use crate::device::Device;

/// Parameters for a guest that boots fast, says everything on its serial console, and ends QEMU
/// (with `-no-reboot`) when it panics.
const CMDLINE: &[&str] = &[
    "console=ttyS0",
    "earlyprintk=ttyS0",
    "panic=-1",
    // Under TCG the TSC and the HPET drift apart under load; without this the kernel changes its
    // clock in the middle of a trial.
    "tsc=reliable",
    "mitigations=off",
    // The virtual timer is late on a busy host, which this check takes for broken hardware.
    "no_timer_check",
    "random.trust_cpu=on",
    "8250.nr_uarts=1",
];

/// MiB of address space above the guest's memory, besides the pmem itself.
const PMEM_ROOM_MIB: u64 = 1024;

/// What [`VHOST_USER_DEVICE`] needs to know: 27 is virtio-pmem (virtio 1.3, section 5), with one
/// queue and `struct virtio_pmem_config` of 16 bytes.
const VHOST_USER_PMEM: &str = "id=pmem0,chardev=pmem0-socket,virtio-id=27,num_vqs=1,vq_size=64,\
                               config_size=16";

/// What QEMU calls a device.
pub(super) fn model(device: Device) -> &'static str {
    match device {
        Device::Blk => "vhost-user-blk-pci",
        Device::Nvdimm => "nvdimm",
        Device::VirtioPmem => "virtio-pmem-pci",
        Device::VhostUserPmem => VHOST_USER_DEVICE,
    }
}

/// The arguments for `config`, without the program.
pub(super) fn arguments(config: &VmConfig) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));

    add(&["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    // Threads that say which virtual processor they are.
    add(&["-name", "racegate,debug-threads=on"]);
    let nvdimm = matches!(config.pmem, Some(Pmem::Mapped { device: Device::Nvdimm, .. }));
    let machine = if nvdimm { ",nvdimm=on" } else { "" };
    add(&["-machine", &format!("q35,memory-backend=memory{machine}")]);
    add(config.accel.arguments());
    let memory = config.memory_mib;
    match &config.pmem {
        Some(Pmem::Mapped { bytes, .. }) => {
            // Room for the pmem above the guest's memory, with its alignment.
            let room = u64::from(memory) + (bytes >> 20) + PMEM_ROOM_MIB;
            add(&["-m", &format!("{memory}M,slots=1,maxmem={room}M")]);
        }
        _ => add(&["-m", &format!("{memory}M")]),
    }
    // vhost-user backends map the guest's memory, so it must be shareable.
    let backend = match &config.memory {
        Some(path) => format!("memory-backend-file,mem-path={}", escape(&path.to_string_lossy())),
        None => "memory-backend-memfd".to_owned(),
    };
    add(&["-object", &format!("{backend},id=memory,size={memory}M,share=on")]);
    add(&["-smp", &config.vcpus.to_string()]);
    add(&["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    for disk in &config.disks {
        let Disk { id, socket, queues, queue_size } = disk;
        let socket = escape(&socket.to_string_lossy());
        add(&["-chardev", &format!("socket,id={id}-socket,path={socket}")]);
        add(&[
            "-device",
            &format!(
                "{},id={id},chardev={id}-socket,num-queues={queues},queue-size={queue_size}",
                model(Device::Blk)
            ),
        ]);
    }
    match &config.pmem {
        Some(Pmem::Mapped { device, path, bytes }) => {
            let path = escape(&path.to_string_lossy());
            add(&[
                "-object",
                &format!("memory-backend-file,id=pmem,share=on,mem-path={path},size={bytes}"),
            ]);
            add(&["-device", &format!("{},id=pmem0,memdev=pmem", model(*device))]);
        }
        Some(Pmem::VhostUser { socket }) => {
            let socket = escape(&socket.to_string_lossy());
            add(&["-chardev", &format!("socket,id=pmem0-socket,path={socket}")]);
            add(&["-device", &format!("{VHOST_USER_DEVICE},{VHOST_USER_PMEM}")]);
        }
        None => {}
    }
    if let Some(path) = &config.qmp {
        let path = escape(&path.to_string_lossy());
        add(&["-qmp", &format!("unix:{path}")]);
    }
    if config.incoming {
        add(&["-incoming", "defer"]);
    }
    let cmdline: Vec<&str> =
        CMDLINE.iter().copied().chain(config.cmdline.iter().map(String::as_str)).collect();
    add(&["-append", &cmdline.join(" ")]);
    arguments.extend(["-kernel".into(), config.kernel.clone().into()]);
    arguments.extend(["-initrd".into(), config.initramfs.clone().into()]);
    arguments.extend(config.extra.iter().cloned());
    arguments
}

/// `value` inside a QEMU option list, where a comma is written twice.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

/// `command` as a line for a shell.
pub(super) fn printable(command: &Command) -> String {
    let quote = |word: &std::ffi::OsStr| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    let environment = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_string_lossy(), quote(value?))));
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quote);
    environment.chain(words).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_a_comma_stays_one_option() {
        assert_eq!(escape("/tmp/a,b/disk.sock"), "/tmp/a,,b/disk.sock");
    }

    #[test]
    fn a_printed_command_can_be_pasted() {
        let mut command = Command::new("qemu");
        command.args(["-append", "a=1 b", "-m", "512M", "it's", ""]).env("X", "y z");
        let line = printable(&command);
        assert_eq!(line, r"X='y z' qemu -append 'a=1 b' -m 512M 'it'\''s' ''");
    }
}
