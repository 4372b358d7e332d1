//! Which QEMU, and which version it is.
//!
//! In: `PATH` or a path. Out: a [`Qemu`].
//! Must not know: virtual machines.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::QemuError;
use crate::cache::Cache;
use crate::device::Device;
use crate::process;
use crate::unpacked::Unpacked;

/// The program that is looked up in `PATH`.
pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// A version of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Micro number.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// One QEMU of this machine.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    version: Version,
    /// Where it was unpacked and not installed, with everything that it needs.
    private: Option<Unpacked>,
}

impl Qemu {
    /// The machine's own QEMU: that of `PATH`, else the one that [`Qemu::beside`] has unpacked.
    pub fn find(cache: &Cache) -> Result<Qemu, QemuError> {
        if let Some(program) = process::find_program(PROGRAM) {
            return Qemu::probed(program, None);
        }
        Qemu::unpacked_beside(cache).unwrap_or(Err(QemuError::Missing))
    }

    /// The QEMU at `path`.
    pub fn at(path: &Path) -> Result<Qemu, QemuError> {
        if !process::is_executable(path) {
            return Err(QemuError::NotAProgram { path: path.to_owned() });
        }
        Qemu::probed(path.to_owned(), None)
    }

    /// The QEMU that was unpacked (not installed) in `folder` with all its libraries; `None` if
    /// there is none, or not all of it.
    pub(super) fn unpacked(folder: &Path) -> Option<Result<Qemu, QemuError>> {
        let program = folder.join("usr/bin").join(PROGRAM);
        let private = Unpacked::at(folder)?;
        process::is_executable(&program).then(|| Qemu::probed(program, Some(private)))
    }

    fn probed(program: PathBuf, private: Option<Unpacked>) -> Result<Qemu, QemuError> {
        let mut qemu = Qemu { program, version: Version { major: 0, minor: 0, micro: 0 }, private };
        let mut command = qemu.command();
        command.arg("--version");
        let output = process::run(command, Duration::from_secs(20))?;
        let text = output.text();
        qemu.version = parse_version(&text).ok_or_else(|| QemuError::NotQemu {
            path: qemu.program.clone(),
            said: text.lines().next().unwrap_or_default().to_owned(),
        })?;
        Ok(qemu)
    }

    /// KVM where it runs guest code on this machine, else TCG.
    pub fn accel(&self) -> Result<super::Accel, QemuError> {
        super::probe::accel(self)
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Whether it has the device `name`, as `-device` takes it.
    pub fn has_device(&self, name: &str) -> Result<bool, QemuError> {
        let mut command = self.command();
        // A list of all devices would load every module of QEMU; this loads that of the device.
        command.args(["-machine", "none", "-device"]).arg(format!("{name},help"));
        let output = process::capture(command, Duration::from_secs(20), |_| {})?;
        // The status is 0 for an unknown device too (seen with 7.2).
        Ok(output.text().starts_with(&format!("{name} options:")))
    }

    /// Checks that it can give a guest that device.
    ///
    /// # Errors
    /// It cannot, or cannot be asked.
    pub fn check(&self, device: Device) -> Result<(), QemuError> {
        let model = super::command::model(device);
        if self.has_device(model)? {
            return Ok(());
        }
        let (path, version) = (self.program.clone(), self.version);
        Err(QemuError::Lacks { path, version, model, device })
    }

    /// A command that runs it, in a process group of its own.
    pub fn command(&self) -> Command {
        let Some(private) = &self.private else {
            return process::command_at(&self.program);
        };
        // Started by the loader of its own C library, which may be newer than the machine's, and
        // with its own libraries only.
        let mut command = private.loader();
        command.args(["--argv0", PROGRAM]).arg(&self.program);
        let folder = private.folder();
        command.env("QEMU_MODULE_DIR", folder.join("usr/lib/x86_64-linux-gnu/qemu"));
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(folder.join(data));
        }
        command
    }
}

/// Reads "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)".
fn parse_version(text: &str) -> Option<Version> {
    let words = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
    let mut numbers = words.split([' ', '.']).map(|number| number.parse().ok());
    Some(Version {
        major: numbers.next()??,
        minor: numbers.next()??,
        micro: numbers.next().flatten().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright\n";
        assert_eq!(parse_version(debian).unwrap().to_string(), "7.2.22");
        let plain = "QEMU emulator version 11.1.0\n";
        assert_eq!(parse_version(plain).unwrap().to_string(), "11.1.0");
        assert_eq!(parse_version("bash 5.2"), None);
    }

    #[test]
    fn a_program_that_is_not_qemu_is_refused() {
        let error = Qemu::at(Path::new("/bin/true")).unwrap_err();
        assert!(matches!(error, QemuError::NotQemu { .. }), "{error}");
        let error = Qemu::at(Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, QemuError::NotAProgram { .. }), "{error}");
    }
}
