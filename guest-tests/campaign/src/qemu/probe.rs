//! Which accelerator works here: found out by running guest code, not by looking for `/dev/kvm`.
//!
//! In: a [`Qemu`]. Out: an [`Accel`].
//! Must not know: kernels, virtual machines.
//!
//! The guest is a firmware of 64 KiB that enters protected mode and writes one byte to QEMU's
//! `isa-debug-exit` port; QEMU then ends with the status (byte << 1) | 1. Some nested KVMs run real
//! mode and nothing beyond, and would hang a kernel (seen with QEMU 11.1).

use std::io::Write as _;
use std::time::Duration;

use super::{Qemu, QemuError};
use crate::process;

/// How guest code is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The processor runs it.
    Kvm,
    /// QEMU translates it, one host thread per virtual CPU.
    Tcg,
}

impl Accel {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        }
    }

    /// QEMU's arguments for it.
    pub(super) fn arguments(self) -> &'static [&'static str] {
        match self {
            Accel::Kvm => &["-accel", "kvm", "-cpu", "host"],
            // QEMU 7.2 mixes up the flags when an interrupt comes right after CMPXCHG16B, which the
            // kernel's allocator uses where it can: 3 of 13 boots of 6.12.107 on 2 processors
            // panicked, 0 of 25 without it.
            Accel::Tcg => &["-accel", "tcg,thread=multi", "-cpu", "qemu64,-cx16"],
        }
    }
}

const FIRMWARE_BYTES: usize = 64 << 10;
const PORT: u8 = 0xf4;
const SIGN: u8 = 0x31;
const EXIT_CODE: i32 = ((SIGN as i32) << 1) | 1;

/// What the firmware has where; the last 64 KiB below 4 GiB are its home, so an offset is also the
/// low half of an address. Everything else is `hlt`.
const FIRMWARE: [(usize, &[u8]); 5] = [
    // `cli; lgdtl cs:[0xff40]; mov eax, cr0; or al, 1; mov cr0, eax; ljmpl 8:0xffffff60`
    (
        0xff00,
        &[
            0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0x40, 0xff, 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f,
            0x22, 0xc0, 0x66, 0xea, 0x60, 0xff, 0xff, 0xff, 0x08, 0x00,
        ],
    ),
    // Limit and address of the descriptor table.
    (0xff40, &[0x0f, 0x00, 0x80, 0xff, 0xff, 0xff]),
    // `mov al, SIGN; out PORT, al; hlt; jmp` back to the `hlt`.
    (0xff60, &[0xb0, SIGN, 0xe6, PORT, 0xf4, 0xeb, 0xfd]),
    // The second descriptor: 32-bit code, all 4 GiB (the first, of zeroes, is never used).
    (0xff88, &[0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xcf, 0x00]),
    // Where the processor starts: `jmp 0xff00`.
    (0xfff0, &[0xe9, 0x0d, 0xff]),
];

/// KVM where it runs guest code, else TCG.
pub(super) fn accel(qemu: &Qemu) -> Result<Accel, QemuError> {
    let openable = rustix::fs::access("/dev/kvm", rustix::fs::Access::READ_OK).is_ok()
        && rustix::fs::access("/dev/kvm", rustix::fs::Access::WRITE_OK).is_ok();
    if openable && runs(qemu, Accel::Kvm)?.is_ok() {
        return Ok(Accel::Kvm);
    }
    match runs(qemu, Accel::Tcg)? {
        Ok(()) => Ok(Accel::Tcg),
        Err(message) => Err(QemuError::NoAccel { path: qemu.program().to_owned(), message }),
    }
}

/// Whether guest code runs; if not, what QEMU said.
fn runs(qemu: &Qemu, accel: Accel) -> Result<Result<(), String>, QemuError> {
    let mut firmware = vec![0xf4; FIRMWARE_BYTES];
    for (at, bytes) in FIRMWARE {
        firmware[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let write = |source| QemuError::Write { path: std::env::temp_dir(), source };
    let mut file = tempfile::NamedTempFile::new().map_err(write)?;
    file.write_all(&firmware).map_err(write)?;

    let mut command = qemu.command();
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    // As the machine that is started later: some hosts have a KVM that runs a plain processor and
    // fails on registers that the host's own model has.
    command.args(["-machine", "q35"]).args(accel.arguments());
    command.args(["-device", &format!("isa-debug-exit,iobase={PORT:#x},iosize=1")]);
    command.arg("-bios").arg(file.path());
    let limit = Duration::from_secs(if accel == Accel::Kvm { 3 } else { 30 });
    match process::capture(command, limit, |_| {}) {
        Ok(output) if output.status.code() == Some(EXIT_CODE) => Ok(Ok(())),
        Ok(output) => {
            let said = process::last_lines(&output.stderr, 2);
            Ok(Err(format!("{said} ({})", output.status)))
        }
        Err(process::ProcessError::TimedOut { .. }) => {
            Ok(Err(format!("no guest code ran within {limit:?}")))
        }
        Err(error) => Err(error.into()),
    }
}
