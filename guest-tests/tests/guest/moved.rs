//! Goal: a machine that is moved to another process while it works on its disk loses nothing, and the
//! daemon behind it, in its sandbox, serves both.
//! Method: a boot sector of our own counts on the disk: it writes a number, reads it back, and
//! compares it and the one of before, each in a page that only the disk writes to. So a page that
//! the daemon wrote and did not tell of (the dirty log) is an old one in the second machine, which
//! then says so on the disk and stops.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use campaign::process::Running;
use campaign::qemu::Qemu;
use libtest_mimic::Trial;
use serde_json::json;

use crate::machine::{Machine, Which};
use crate::survive::{LIMIT, Qmp, start};

/// Sectors of the disk.
const SECTORS: u64 = 2048;
/// The sector that is counted on.
const COUNTED: u64 = 1;
/// Rounds before the move, and after it.
const ROUNDS: u32 = 100;
/// What it says when it finds another number than it wrote.
const BAD: &[u8; 4] = b"BAD!";
/// Between two looks at what another process does.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The boot sector, 16-bit code at 0x7c00; `int 0x13` as SeaBIOS has it, by packets of 16 bytes.
#[rustfmt::skip]
const PROGRAM: [u8; 137] = [
    0xfa,                                           // cli
    0x31, 0xc0,                                     // xor ax, ax
    0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0,             // mov ds, ax; mov es, ax; mov ss, ax
    0xbc, 0x00, 0x7c,                               // mov sp, 0x7c00
    0xfb,                                           // sti
    0x88, 0x16, 0x00, 0x70,                         // mov [0x7000], dl         the drive
    // again:
    0x66, 0xff, 0x06, 0x00, 0x80,                   // inc dword [0x8000]       the number
    0xbe, 0x69, 0x7c, 0xb8, 0x00, 0x43,             // mov si, write; mov ax, 0x4300
    0x8a, 0x16, 0x00, 0x70, 0xcd, 0x13, 0x72, 0x2d, // mov dl, [0x7000]; int 0x13; jc bad
    0x81, 0x36, 0x7d, 0x7c, 0x00, 0x30,             // xor word [read + 4], 0x3000: the other page
    0xbe, 0x79, 0x7c, 0xb4, 0x42,                   // mov si, read; mov ah, 0x42
    0x8a, 0x16, 0x00, 0x70, 0xcd, 0x13, 0x72, 0x1a, // mov dl, [0x7000]; int 0x13; jc bad
    0x8b, 0x1e, 0x7d, 0x7c,                         // mov bx, [read + 4]
    0x66, 0xa1, 0x00, 0x80,                         // mov eax, [0x8000]
    0x66, 0x3b, 0x07, 0x75, 0x0d,                   // cmp eax, [bx]; jne bad
    0x66, 0x48, 0x74, 0xc9,                         // dec eax; jz again        the first round
    0x81, 0xf3, 0x00, 0x30,                         // xor bx, 0x3000
    0x66, 0x3b, 0x07, 0x74, 0xc0,                   // cmp eax, [bx]; je again  the one of before
    // bad:
    0x66, 0xc7, 0x06, 0x04, 0x80,                   // mov dword [0x8004], "BAD!"
    0x42, 0x41, 0x44, 0x21,
    0xbe, 0x69, 0x7c, 0xb8, 0x00, 0x43,             // mov si, write; mov ax, 0x4300
    0x8a, 0x16, 0x00, 0x70, 0xcd, 0x13,             // mov dl, [0x7000]; int 0x13
    0xf4, 0xeb, 0xfd,                               // hlt, for ever
    // write: one sector, from 0:0x8000, to sector 1
    0x10, 0, 1, 0, 0x00, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
    // read: one sector, to 0:0xa000 or 0:0x9000, from sector 1
    0x10, 0, 1, 0, 0x00, 0xa0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
];

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    vec![machine.test("moved::counting_machine", Which::Own, counting_machine)]
}

fn counting_machine(machine: &Machine) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut sector = [0; 512];
    sector[..PROGRAM.len()].copy_from_slice(&PROGRAM);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let disk =
        File::options().read(true).write(true).create_new(true).open(folder.path().join("disk"))?;
    disk.set_len(SECTORS * 512)?;
    disk.write_all_at(&sector, 0)?;
    std::fs::write(folder.path().join("rules.toml"), "")?;
    let daemon = start(&folder)?;

    let (first, mut qmp) = boot(machine.qemu(), folder.path(), "first", None)?;
    until(&first, &disk, ROUNDS)?;
    let to = json!({ "execute": "migrate", "arguments": { "uri": "exec:cat > state" } });
    qmp.ask(&to)?;
    wait(&first, || {
        let told = qmp.ask(&json!({ "execute": "query-migrate" }))?;
        match told["status"].as_str() {
            Some("failed" | "cancelled") => bail!("the machine cannot be moved: {told}"),
            status => Ok((status == Some("completed")).then_some(())),
        }
    })
    .context("the machine's state")?;
    let moved = counted(&disk)?;
    qmp.order("quit")?;
    first.wait(LIMIT)?;

    let from = Some("exec:cat state");
    let (second, mut qmp) = boot(machine.qemu(), folder.path(), "second", from)?;
    until(&second, &disk, moved + ROUNDS).context("after the move")?;
    qmp.order("quit")?;
    second.wait(LIMIT)?;
    daemon.terminate();
    let status = daemon.wait(LIMIT)?;
    ensure!(status.success(), "the daemon ended with {status}");
    eprintln!("moved: counted to {moved}, moved, and on to {}", counted(&disk)?);
    Ok(())
}

/// A machine with nothing but the disk, maybe one that waits for the state of another.
fn boot(qemu: &Qemu, folder: &Path, name: &str, from: Option<&str>) -> Result<(Running, Qmp)> {
    let mut command = qemu.command();
    command.current_dir(folder).stdout(Stdio::null());
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-m", "64"]);
    command.args(["-machine", "pc,accel=tcg,memory-backend=memory"]);
    command.args(["-object", "memory-backend-memfd,id=memory,size=64M,share=on"]);
    command.args(["-chardev", "socket,id=disk,path=s"]);
    command.args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=1,bootindex=1"]);
    command.args(["-qmp", &format!("unix:{name},server=on,wait=off")]);
    if let Some(from) = from {
        command.args(["-incoming", from]);
    }
    let running = Running::start(command)?;
    let socket = folder.join(name);
    wait(&running, || Ok(socket.exists().then_some(()))).context("QEMU's monitor")?;
    Ok((running, Qmp::connect(&socket)?))
}

/// The number on the disk.
fn counted(disk: &File) -> Result<u32> {
    let mut bytes = [0; 8];
    disk.read_exact_at(&mut bytes, COUNTED * 512)?;
    let (number, verdict) = bytes.split_at(4);
    let number = u32::from_le_bytes(number.try_into()?);
    ensure!(verdict != BAD, "at {number} the machine found another number than it wrote");
    Ok(number)
}

fn until(machine: &Running, disk: &File, number: u32) -> Result<()> {
    wait(machine, || Ok((counted(disk)? >= number).then_some(())))
        .with_context(|| format!("{number} rounds, there were {:?}", counted(disk)))
}

/// Waits for something that happens while a machine runs.
fn wait(machine: &Running, mut what: impl FnMut() -> Result<Option<()>>) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    while what()?.is_none() {
        ensure!(Instant::now() < deadline, "not within {LIMIT:?}");
        if let Ok(status) = machine.wait(LOOK_AGAIN) {
            bail!("QEMU ended with {status}");
        }
    }
    Ok(())
}
