//! The grammar of a hunt: a file in some state, a request that the device stops, and two operations.
//!
//! In: choices. Out: a [`Case`], and the text of its plan.
//! Must not know: which cases are worth a trial, what a trial found.
//!
//! Every case has one form: a thread carries out the *earlier* operation, the device stops the first
//! request of a kind that it causes, and a second thread carries out the *later* operation
//! meanwhile. The request goes on when that one is done, or, if it waits for what the first thread
//! holds, after [`AT_MOST_MS`].

use std::fmt::Write as _;

use pipeline::delalloc_shadow::RULES;
use pipeline::shadow::Rule;
use serde::{Deserialize, Serialize};

/// Bytes of a block.
const BLOCK: u32 = 4096;
/// Blocks of the file.
const BLOCKS: u32 = 16;
/// How long a request is held whose release the later operation waits for, in milliseconds.
const AT_MOST_MS: u32 = 120;
/// How long the later operation waits for the request, in milliseconds: no window opens then.
const PATIENCE_MS: u32 = 400;

/// Parts of a line of the kernel log that are shorter may be numbers or addresses.
const SHORTEST_PART: usize = 6;

/// Declares a list of choices, each with the name that it has in plans and in what is learned.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$what:meta])* $choice:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name { $($(#[$what])* $choice,)* }

        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$choice,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $($name::$choice => $text,)* }
            }
        }
    };
}

choices! {
    /// How the file system is made.
    Format {
        /// Extents and a journal.
        Extents = "extents",
        /// Blocks in indirect blocks.
        Indirect = "indirect",
        /// Clusters of four blocks.
        Bigalloc = "bigalloc",
        /// Small files in their inodes.
        InlineData = "inline-data",
        /// No journal.
        NoJournal = "no-journal",
    }
}

choices! {
    /// The file before the two operations, and what of it is in memory.
    State {
        /// One hole; nothing but the inode is in memory.
        Hole = "hole",
        /// Written and on disk; its pages are not in memory.
        Written = "written",
        /// Allocated and not written.
        Unwritten = "unwritten",
        /// Written and not allocated yet.
        Delayed = "delayed",
    }
}

choices! {
    /// An operation.
    Operation {
        /// `fallocate`.
        Allocate = "allocate",
        /// `FALLOC_FL_PUNCH_HOLE`.
        Punch = "punch",
        /// `FALLOC_FL_ZERO_RANGE`.
        Zero = "zero",
        /// `FALLOC_FL_COLLAPSE_RANGE`.
        Collapse = "collapse",
        /// `FALLOC_FL_INSERT_RANGE`.
        Insert = "insert",
        /// `ftruncate` to where the range begins.
        Truncate = "truncate",
        /// A store through a mapping, into the first block.
        Store = "store",
        /// `pwrite`.
        Write = "write",
        /// `pwrite` with O_DIRECT.
        WriteDirect = "write-direct",
        /// `pread`.
        Read = "read",
        /// `fsync`.
        Fsync = "fsync",
        /// `syncfs`.
        Syncfs = "syncfs",
        /// SEEK_DATA from where the range begins.
        Seek = "seek",
        /// `mount -o remount,nodelalloc`.
        RemountNodelalloc = "remount-nodelalloc",
    }
}

choices! {
    /// The kind of request that is stopped.
    Request {
        /// A read of a block bitmap.
        ReadBitmap = "read-block-bitmap",
        /// A read of an inode table.
        ReadInodes = "read-inode-table",
        /// A read of a node of an extent tree.
        ReadNode = "read-extent-node",
        /// A read of an indirect block.
        ReadIndirect = "read-indirect-block",
        /// A read of file data.
        ReadData = "read-file-data",
        /// A write of file data.
        WriteData = "write-file-data",
        /// A write to blocks that are free as far as the disk knows: data of a delayed allocation.
        WriteFree = "write-free",
        /// A write of a copy to the journal.
        WriteCopy = "write-journal-copy",
        /// A write of a commit record.
        WriteCommit = "write-journal-commit",
        /// A write of an inode table in place.
        WriteInodes = "write-inode-table",
        /// A write of a block bitmap in place.
        WriteBitmap = "write-block-bitmap",
    }
}

choices! {
    /// What is done to it.
    Action {
        /// It is held until the later operation is done.
        Hold = "hold",
        /// It fails.
        Fail = "fail",
    }
}

choices! {
    /// Blocks of an operation.
    Range {
        /// 4 to 7.
        Middle = "4+4",
        /// 4 alone.
        First = "4+1",
        /// All.
        Whole = "0+16",
        /// 6 to 9: half of the middle, and as much behind.
        Across = "6+4",
    }
}

impl Range {
    /// First block and number of blocks.
    const fn blocks(self) -> (u32, u32) {
        match self {
            Range::Middle => (4, 4),
            Range::First => (4, 1),
            Range::Whole => (0, BLOCKS),
            Range::Across => (6, 4),
        }
    }
}

/// What may open a window: whether it does is the same whatever the later operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Window {
    /// The file.
    pub state: State,
    /// The operation that causes the request.
    pub earlier: Operation,
    /// The request.
    pub request: Request,
    /// What is done to it.
    pub action: Action,
}

/// One plan of the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Case {
    /// The window.
    #[serde(flatten)]
    pub window: Window,
    /// Blocks of the earlier operation.
    pub earlier_range: Range,
    /// The operation in the window.
    pub later: Operation,
    /// Its blocks.
    pub later_range: Range,
}

/// What counts as a hit in the plan of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Whatever a shadow tells.
    Anything,
    /// A rule that a shadow tells of.
    Rule(String),
    /// A line of the kernel log that has all of these.
    Line(Vec<String>),
}

impl Window {
    /// Every window of the grammar.
    pub fn all() -> impl Iterator<Item = Window> {
        State::ALL.iter().flat_map(|&state| {
            Operation::ALL.iter().flat_map(move |&earlier| {
                Request::ALL.iter().flat_map(move |&request| {
                    let window = move |&action| Window { state, earlier, request, action };
                    Action::ALL.iter().map(window)
                })
            })
        })
    }
}

impl Format {
    /// Arguments of mkfs.ext4.
    fn mkfs(self) -> &'static str {
        match self {
            Format::Extents => "",
            Format::Indirect => ", \"-O\", \"^extents,^64bit,^metadata_csum\"",
            Format::Bigalloc => ", \"-O\", \"bigalloc\", \"-C\", \"16384\"",
            Format::InlineData => ", \"-O\", \"inline_data\"",
            Format::NoJournal => ", \"-O\", \"^has_journal\"",
        }
    }
}

impl Request {
    /// Operation and class of the rules language.
    fn of(self) -> (&'static str, &'static str) {
        let (op, class) = self.name().split_once('-').unwrap_or_default();
        (op, class)
    }
}

impl Case {
    /// Its name, as a plan has it.
    pub fn name(self, format: Format) -> String {
        let Case { window, earlier_range, later, later_range } = self;
        let Window { state, earlier, request, action } = window;
        let place = |range: Range| range.name().replace('+', "-");
        format!(
            "{}-{}-{}-{}-{}-{}-{}-{}",
            format.name(),
            state.name(),
            earlier.name(),
            place(earlier_range),
            action.name(),
            request.name(),
            later.name(),
            place(later_range)
        )
    }

    /// What it does, in one line.
    pub fn summary(self) -> String {
        let Case { window, earlier_range, later, later_range } = self;
        let Window { state, earlier, request, action } = window;
        let done = if action == Action::Hold { "is held" } else { "fails" };
        format!(
            "{} {} in a file that is {}; the first {} {done}; {} {} meanwhile",
            earlier.name(),
            earlier_range.name(),
            state.name(),
            request.name().replace(['-', '_'], " "),
            later.name(),
            later_range.name()
        )
    }

    /// The text of its plan.
    pub fn plan(self, format: Format, sign: &Sign) -> String {
        let (op, class) = self.window.request.of();
        let class = class.replace('-', "_");
        let (action, signal) = match self.window.action {
            Action::Hold => (
                format!("{{ hold = {{ until = \"agent:done\", at_most = \"{AT_MOST_MS}ms\" }} }}"),
                "held:window",
            ),
            Action::Fail => ("{ fail = \"EIO\" }".to_owned(), "fired:window"),
        };
        let mut text = format!(
            "name = \"{}\"\nsummary = \"{}\"\ntrials = 20\nrate_if_affected = 0.9\n\n\
             [filesystem]\nbytes = 67108864\nmkfs = [\"-b\", \"{BLOCK}\", \"-I\", \"256\"{}]\n\n\
             [guest]\ntrial_limit = \"20s\"\n\n[[arm]]\nname = \"rules\"\nrules = '''\n\
             [[rule]]\nname = \"window\"\n\
             match = {{ op = \"{op}\", class = \"{class}\", times = 1 }}\naction = {action}\n\
             arm_on = \"agent:ready\"\ntell_agent = true\n'''\n\n[workload]\nsetup = [\n",
            self.name(format),
            self.summary(),
            format.mkfs(),
        );
        self.setup(&mut text);
        let (earlier, later) =
            (step(self.window.earlier, self.earlier_range), step(self.later, self.later_range));
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "    {{ open = {{ file = \"direct\", path = \"raced\", direct = true }} }},\n\
             \x20   {{ map = {{ file = \"raced\", bytes = {} }} }},\n\
             \x20   {{ mark = {{ name = \"ready\" }} }},\n]\n\
             finish = [{{ try_fsync = {{ file = \"raced\", name = \"fsync\" }} }}]\n\
             cleanup = [\n\
             \x20   {{ close = {{ file = \"raced\" }} }},\n\
             \x20   {{ close = {{ file = \"direct\" }} }},\n\
             \x20   {{ unlink = {{ path = \"raced\" }} }},\n\
             \x20   {{ umount = {{}} }},\n]\n\n\
             [[workload.thread]]\nname = \"earlier\"\ncpu = 0\nops = [\n\
             \x20   {{ barrier = {{ name = \"go\" }} }},\n{earlier}]\n\n\
             [[workload.thread]]\nname = \"later\"\ncpu = 1\nops = [\n\
             \x20   {{ barrier = {{ name = \"go\" }} }},\n\
             \x20   {{ await = {{ signal = \"{signal}\", limit_ms = {PATIENCE_MS} }} }},\n\
             {later}\x20   {{ mark = {{ name = \"done\" }} }},\n]\n\n[hit]\n{}\n",
            BLOCKS * BLOCK,
            sign.hit(),
        );
        text
    }

    fn setup(self, text: &mut String) {
        let all = BLOCKS * BLOCK;
        let mount = "    { mount = { options = \"noatime,5.13+no_prefetch_block_bitmaps\" } },\n";
        let open = |file: &str| {
            format!("    {{ open = {{ file = \"{file}\", path = \"raced\", create = true }} }},\n")
        };
        let write = |file: &str| {
            format!("    {{ write = {{ file = \"{file}\", bytes = {all}, fill = 165 }} }},\n")
        };
        // What is to be on the disk and not in memory is made by a mount of its own.
        let on_disk = match self.window.state {
            State::Hole => {
                Some(format!("    {{ truncate = {{ file = \"made\", bytes = {all} }} }},\n"))
            }
            State::Written => Some(write("made")),
            State::Unwritten => {
                Some(format!("    {{ fallocate = {{ file = \"made\", bytes = {all} }} }},\n"))
            }
            State::Delayed => None,
        };
        *text += mount;
        if let Some(made) = on_disk {
            *text += &open("made");
            *text += &made;
            *text += "    { fsync = { file = \"made\" } },\n    { close = { file = \"made\" } },\n";
            *text += "    { umount = {} },\n";
            *text += mount;
            *text += &open("raced");
        } else {
            *text += &open("raced");
            *text += &write("raced");
        }
    }
}

impl Sign {
    /// That a line of the kernel log comes again: numbers and addresses in it need not.
    pub fn of_line(line: &str) -> Sign {
        let same =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_uppercase() || " _/.:,-".contains(c);
        let parts =
            line.split(|c| !same(c)).map(str::trim).filter(|part| part.len() >= SHORTEST_PART);
        let parts: Vec<String> = parts.map(str::to_owned).collect();
        if parts.is_empty() { Sign::Anything } else { Sign::Line(parts) }
    }

    /// As a plan has it.
    fn hit(&self) -> String {
        match self {
            Sign::Anything => {
                let of_kernel = RULES.iter().map(|(rule, _)| rule.name());
                let all: Vec<&str> =
                    of_kernel.chain(Rule::ALL.iter().map(|rule| rule.id())).collect();
                format!("shadow = {all:?}")
            }
            Sign::Rule(rule) => format!("shadow = [{rule:?}]"),
            Sign::Line(parts) => format!("kernel_log = {parts:?}"),
        }
    }
}

/// An operation, as a line of a plan.
fn step(operation: Operation, range: Range) -> String {
    let (first, count) = range.blocks();
    let (offset, bytes) = (first * BLOCK, count * BLOCK);
    let fallocate = |mode: &str| {
        format!(
            "fallocate = {{ file = \"raced\", mode = \"{mode}\", offset = {offset}, bytes = {bytes} }}"
        )
    };
    let line = match operation {
        Operation::Allocate => fallocate("allocate"),
        Operation::Punch => fallocate("punch_hole"),
        Operation::Zero => fallocate("zero_range"),
        Operation::Collapse => fallocate("collapse_range"),
        Operation::Insert => fallocate("insert_range"),
        Operation::Truncate => format!("truncate = {{ file = \"raced\", bytes = {offset} }}"),
        Operation::Store => {
            format!("store = {{ file = \"raced\", offset = {offset}, value = 90 }}")
        }
        Operation::Write => {
            format!("write = {{ file = \"raced\", offset = {offset}, bytes = {bytes}, fill = 90 }}")
        }
        Operation::WriteDirect => {
            format!(
                "write = {{ file = \"direct\", offset = {offset}, bytes = {bytes}, fill = 60 }}"
            )
        }
        Operation::Read => {
            format!("read = {{ file = \"raced\", offset = {offset}, bytes = {bytes} }}")
        }
        Operation::Fsync => "try_fsync = { file = \"raced\", name = \"synced\" }".to_owned(),
        Operation::Syncfs => "syncfs = {}".to_owned(),
        Operation::Seek => {
            format!("seek_data = {{ file = \"raced\", offset = {offset}, name = \"data\" }}")
        }
        Operation::RemountNodelalloc => {
            "remount = { options = \"nodelalloc\", may_fail = true }".to_owned()
        }
    };
    format!("    {{ {line} }},\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    /// Every operation, state, request, action and range is a plan that can be read.
    #[test]
    fn each_case_is_a_plan() {
        let mut names = std::collections::BTreeSet::new();
        for window in Window::all() {
            for (later, range) in Operation::ALL.iter().zip(Range::ALL.iter().cycle()) {
                let case = Case {
                    window,
                    earlier_range: *range,
                    later: *later,
                    later_range: Range::Middle,
                };
                let text = case.plan(Format::Extents, &Sign::Anything);
                let plan = Plan::parse(&text, "grammar").unwrap_or_else(|e| panic!("{e}\n{text}"));
                assert_eq!(plan.workload.threads.len(), 2);
                assert!(names.insert(plan.name));
            }
        }
        for format in Format::ALL {
            let case = Case {
                window: Window::all().next().unwrap(),
                earlier_range: Range::Whole,
                later: Operation::Store,
                later_range: Range::Across,
            };
            let text = case.plan(*format, &Sign::Rule("A4".into()));
            assert_eq!(Plan::parse(&text, "grammar").unwrap().hit.shadow, ["A4"]);
        }
    }

    #[test]
    fn a_complaint_is_known_by_what_is_no_number() {
        let line =
            "WARNING: CPU: 1 PID: 71 at fs/ext4/inode.c:2719 ext4_writepages+0x1a/0xc0 \"x\"";
        let sign = Sign::of_line(line);
        let Sign::Line(parts) = &sign else { panic!("{sign:?}") };
        assert_eq!(parts, &["WARNING: CPU:", "at fs/ext", "/inode.c:", "_writepages"]);
        assert!(parts.iter().all(|part| line.contains(part)));
        let case = Case {
            window: Window::all().next().unwrap(),
            earlier_range: Range::Whole,
            later: Operation::Store,
            later_range: Range::Across,
        };
        let plan = Plan::parse(&case.plan(Format::Extents, &sign), "grammar").unwrap();
        assert_eq!(&plan.hit.kernel_log, parts);
        assert_eq!(Sign::of_line("12 34"), Sign::Anything);
    }
}
