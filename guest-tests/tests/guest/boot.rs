//! Goal: a kernel that dies while it boots is booted again, and given up after three times.
//! Method: kernel parameters that leave no init to run; and a QEMU that once, asked for a
//! machine, says what a dying kernel says.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::{Result, bail, ensure};
use campaign::guest::{Guest, GuestError};
use campaign::qemu::Qemu;
use libtest_mimic::Trial;

use crate::machine::{Machine, Which};

const KERNEL: &str = "debian-5.10.223";

pub(crate) fn tests(machine: &Machine) -> Vec<Trial> {
    vec![
        machine.test("boot::a_dying_kernel_is_given_up", Which::Own, given_up),
        machine.test("boot::a_kernel_that_died_once_is_booted_anew", Which::Own, booted_anew),
    ]
}

fn given_up(machine: &Machine) -> Result<()> {
    let mut config = machine.guest(Which::Own, KERNEL, &machine.image(64)?)?;
    config.cmdline = vec!["rdinit=/none".to_owned()];
    match Guest::boot(&config) {
        Err(GuestError::Boots { times: 3, source }) => {
            let text = source.to_string();
            ensure!(text.contains("Kernel panic - not syncing"), "{text}");
            Ok(())
        }
        Err(error) => bail!("not the error that was to be expected: {error:#}"),
        Ok(_) => bail!("the guest booted without an init"),
    }
}

fn booted_anew(machine: &Machine) -> Result<()> {
    let mut config = machine.guest(Which::Own, KERNEL, &machine.image(64)?)?;
    let folder = tempfile::tempdir()?;
    let (script, mark) = (folder.path().join("qemu"), folder.path().join("died"));
    let qemu = machine.qemu_for(config.backend.device);
    let real = shell(&qemu.command());
    let mark_path = mark.display();
    let text = format!(
        "#!/bin/sh\n\
         case \"$*\" in *--version*|*,help*) ;; *)\n\
         if [ ! -e '{mark_path}' ]; then\n\
         : > '{mark_path}'; echo 'Kernel panic - not syncing: once'; exit 0\n\
         fi;; esac\n\
         exec {real} \"$@\"\n"
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    config.qemu = Qemu::at(&script)?;
    let guest = Guest::boot(&config)?;
    let died: Vec<String> = guest.failed_boots().iter().map(ToString::to_string).collect();
    ensure!(died.len() == 1 && died[0].contains("not syncing: once"), "{died:?}");
    guest.shutdown()?;
    Ok(())
}

/// A command as a shell takes it: one that was unpacked and not installed has a loader, arguments and
/// variables of its own.
fn shell(command: &Command) -> String {
    let quoted = |text: &OsStr| format!("'{}'", text.to_string_lossy().replace('\'', "'\\''"));
    let variables = command.get_envs().filter_map(|(name, value)| {
        value.map(|value| format!("{}={}", name.to_string_lossy(), quoted(value)))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    std::iter::once("env".to_owned()).chain(variables).chain(words).collect::<Vec<_>>().join(" ")
}
