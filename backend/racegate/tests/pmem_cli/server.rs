//! A page server under test: an ext4 image, a mount, a mapping, children that touch pages.
//!
//! In: arguments. Out: a [`Server`].

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitCode, Output, Stdio};
use std::time::Instant;

use device::dax::DaxFile;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::TOUCH;
use crate::support::{Control, Daemon, PATIENCE, Place, end, readable};

pub(crate) const PAGE: u64 = 4096;

/// Pages of the image.
pub(crate) const PAGES: u64 = 4096;

/// What only the user of a mount namespace sees in it is not mounted for anybody else.
const MOUNTS: &str = "/proc/self/mountinfo";

/// A folder with an ext4 image of 16 MiB, blocks of 4 KiB, and a mount point in it.
pub(crate) fn place() -> Place {
    place_behind(&[])
}

/// The same, for a server that another program starts.
pub(crate) fn place_behind(words: &[&str]) -> Place {
    let words = [words, &[env!("CARGO_BIN_EXE_racegate-pmem")]].concat();
    let place = Place::for_program(&words);
    place.file("image", PAGES * PAGE);
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-b", "4096"])
        .arg(place.path("image"))
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .expect("mkfs.ext4 (e2fsprogs)");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::create_dir(place.path("mount")).expect("mount point");
    place
}

/// A running server.
pub(crate) struct Server {
    pub(crate) place: Place,
    daemon: Option<Daemon>,
    /// The file, as others open it.
    pub(crate) file: PathBuf,
}

impl Server {
    pub(crate) fn start(more: &[&str]) -> Server {
        Server::start_in(place(), more)
    }

    pub(crate) fn start_in(place: Place, more: &[&str]) -> Server {
        let mut args = vec!["--pmem-file=image", "--mount-point=mount", "--control-socket=c"];
        args.extend(more);
        Server::start_at(place, &args)
    }

    /// With these arguments alone.
    pub(crate) fn start_at(place: Place, args: &[&str]) -> Server {
        let (daemon, file) = place.start(args);
        assert!(file.ends_with("/mount/pmem"), "{file:?}");
        Server { place, daemon: Some(daemon), file: file.into() }
    }

    /// With these rules, over the image.
    pub(crate) fn with_rules(rules: &str, more: &[&str]) -> Server {
        let place = place();
        fs::write(place.path("rules.toml"), rules).expect("rules");
        let mut args = vec!["--storage=overlay", "--rules=rules.toml"];
        args.extend(more);
        Server::start_in(place, &args)
    }

    /// Maps the file here: for pages that are sure to come.
    pub(crate) fn map(&self) -> DaxFile {
        DaxFile::open(&self.file).expect("the file can be mapped")
    }

    /// Touches a page in a child, which says first that it has mapped the file.
    pub(crate) fn touch_elsewhere(&self, page: u64) -> Toucher {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg(TOUCH)
            .arg(&self.file)
            .arg(page.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program");
        let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        said.read_line(&mut line).expect("a line");
        assert_eq!(line, "mapped\n");
        Toucher { child, said }
    }

    pub(crate) fn control(&self) -> Control {
        Control::connect(&self.place)
    }

    /// Asks and expects no error.
    pub(crate) fn ask(&self, command: &Value) -> Value {
        let answer = self.control().ask(command);
        assert_ne!(answer["reply"], "error", "{command}: {answer}");
        answer
    }

    pub(crate) fn command(&self, name: &str) -> Value {
        self.ask(&json!({ "command": name }))
    }

    /// A count of a rule: `matched`, `fired`, `parked`.
    pub(crate) fn count(&self, rule: &str, what: &str) -> u64 {
        let rules = self.command("list");
        let rules = rules["rules"].as_array().expect("rules");
        let found = rules.iter().find(|found| found["name"] == rule).expect("the rule");
        found[what].as_u64().expect("a count")
    }

    /// The first page of a class.
    pub(crate) fn page_of(&self, class: &str) -> u64 {
        let answer =
            self.ask(&json!({ "command": "layout", "sector": 0, "sectors": PAGES * PAGE / 512 }));
        let ranges = answer["ranges"].as_array().expect("ranges").clone();
        let range = ranges.iter().find(|range| range["class"] == class);
        let range = range.unwrap_or_else(|| panic!("no {class} in {ranges:?}"));
        range["sector"].as_u64().expect("a sector") * 512 / PAGE
    }

    pub(crate) fn is_mounted(&self) -> bool {
        is_mounted(&self.place.path("mount"))
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("running")
    }

    /// Waits for its end; it must not be a panic.
    pub(crate) fn end(&mut self) -> Output {
        let output = self.daemon.take().expect("running").end();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!text.contains("panicked"), "{text}");
        output
    }

    /// Ends it as it should be ended: nothing is left.
    pub(crate) fn terminate(mut self) -> Place {
        let output = self.daemon.take().expect("running").terminate();
        assert!(output.status.success(), "{output:?}");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!self.is_mounted(), "still mounted");
        self.place
    }
}

pub(crate) fn is_mounted(point: &Path) -> bool {
    let mounts = fs::read_to_string(MOUNTS).expect("mounts");
    let point = point.canonicalize().unwrap_or_else(|_| point.to_owned());
    let point = point.to_str().expect("UTF-8");
    mounts.lines().any(|line| line.split(' ').nth(4) == Some(point))
}

/// Waits for a condition that comes about by itself.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    let mounts = fs::File::open(MOUNTS).expect("mounts");
    let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        // The kernel tells of every change of the mounts; what else is waited for is asked for
        // again after a moment.
        poll(&mut [PollFd::new(&mounts, PollFlags::PRI)], Some(&moment)).expect("poll");
    }
}

/// The first word of a page of a mapping.
pub(crate) fn word(file: &DaxFile, page: u64) -> Result<u64, Errno> {
    file.read_word(page * PAGE)
}

/// A child that touches a page.
pub(crate) struct Toucher {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Toucher {
    /// Whether it has got its page.
    pub(crate) fn has_said(&self) -> bool {
        !self.said.buffer().is_empty() || {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let said = PollFd::new(self.said.get_ref(), PollFlags::IN);
            poll(&mut [said], Some(&now)).expect("poll") > 0
        }
    }

    /// Waits until it has got its page: the first word of it.
    pub(crate) fn word(mut self) -> u64 {
        assert!(!self.said.buffer().is_empty() || readable(self.said.get_ref().as_fd()));
        let mut line = String::new();
        self.said.read_line(&mut line).expect("a line");
        let output = end(self.child);
        assert!(output.status.success(), "{output:?}");
        line.trim().parse().unwrap_or_else(|_| panic!("no word: {line:?}"))
    }

    /// Waits until it has died of what it touched, or got its page; tells which.
    pub(crate) fn died(self) -> bool {
        use std::os::unix::process::ExitStatusExt;
        let status = end(self.child).status;
        let bus_error = rustix::process::Signal::BUS.as_raw();
        assert!(status.success() || status.signal() == Some(bus_error), "{status}");
        !status.success()
    }
}

/// The child's side.
pub(crate) fn touch(words: &[String]) -> ExitCode {
    let [file, page] = words else { return ExitCode::FAILURE };
    let file = DaxFile::open(Path::new(file)).expect("the file can be mapped");
    println!("mapped");
    println!("{}", word(&file, page.parse().expect("a page")).expect("in the file"));
    ExitCode::SUCCESS
}
