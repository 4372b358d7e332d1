//! Canaries of every rule: a log that a real kernel has given, with one event altered, must be caught
//! by `racegate check`; as it is, it must not.
//!
//! Each log was recorded with `campaign run --shadow --keep`: a file system with bigalloc; writes,
//! fallocate over delayed blocks and beyond, punch, truncate, SEEK_DATA, fsync, unlink, umount. The
//! plan of the newest is `tour.toml`, whose log has the page cache, too.

use crate::shadow::{Checker, Options};

const OLD: &str = include_str!("tour-5.10.262.jsonl");
const NEW: &str = include_str!("tour-6.12.107.jsonl");
const NEWEST: &str = include_str!("tour-7.3.4.jsonl");

/// The rules that a log breaks, and how many events of the kernel it has.
fn check(log: &str) -> (Vec<String>, u64) {
    let mut checker = Checker::new(Options::default());
    log.lines().for_each(|line| checker.line(line).unwrap());
    let found = checker.finish().unwrap();
    let rules = found.findings.into_iter().map(|(_, finding)| finding.rule).collect();
    (rules, found.kernel.unwrap().events)
}

/// A log with the first line of the kernel that has all of `parts` altered.
fn altered(recorded: &str, parts: &[&str], from: &str, to: &str) -> String {
    let mut done = false;
    let mut log = String::new();
    for line in recorded.lines() {
        let mut pieces: Vec<String> = line.split("\",\"").map(str::to_owned).collect();
        for piece in &mut pieces {
            if !done && parts.iter().all(|part| piece.contains(part)) {
                assert!(piece.contains(from), "{piece}");
                *piece = piece.replacen(from, to, 1);
                done = true;
            }
        }
        log += &(pieces.join("\",\"") + "\n");
    }
    assert!(done, "{parts:?}");
    log
}

#[test]
fn what_real_kernels_do_breaks_no_rule() {
    for log in [OLD, NEW, NEWEST] {
        let (found, events) = check(log);
        assert_eq!(found, Vec::<String>::new());
        assert!(events > 200, "{events}");
    }
}

#[test]
fn one_altered_event_breaks_its_rule() {
    const DELAYED: &str = "pblk=0x27ffffffffffffff";
    let canaries: [(&str, &[&str], &str, &str); 16] = [
        ("A1", &[": es_insert:", "ino=12", "pblk=0x80000000000071c"], "00071c", "00071b"),
        ("A2", &[": es_put:", "ino=12", "lblk=10 "], "status=2", "status=8"),
        ("A2", &[": es_insert:", "ino=12", "lblk=2 len=3", "pblk=0x47"], "len=3", "len=9"),
        ("A3", &[": update_reserve:", "used=3"], ": update_reserve:", ": unseen:"),
        ("A4", &[": es_insert:", "ino=12", "lblk=10 ", DELAYED], "lblk=10", "lblk=9"),
        ("A5", &[": pend_insert:", "lblk=10"], "lblk=10", "lblk=40"),
        ("A6", &[": write_begin:", "ino=13", "disksize=8192"], "disksize=8192", "disksize=9000"),
        ("A8", &[": es_insert:", "ino=13", DELAYED], "0x27", "0x2f"),
        ("A8", &[": es_insert:", "ino=12", "all=2 shk=1", "lblk=9 "], "shk=1", "shk=2"),
        ("A11", &[": update_reserve:", "used=1"], "used=1", "used=2"),
        ("B1", &["quiet=1 dirty=0"], "dirty=0", "dirty=5"),
        ("B4", &[": destroy_size:", "ino=12"], "disksize=50000", "disksize=49999"),
        ("C1", &[": destroy:", "ino=13"], "reserved=0", "reserved=1"),
        ("C2", &[": destroy_io:", "ino=13"], "unwritten=0", "unwritten=1"),
        ("C3", &[": evict:", "ino=13"], "blocks=32", "blocks=0"),
        ("G4", &[": seek_data_end:"], "ret=0x0", "ret=0x5000"),
    ];
    for (rule, parts, from, to) in canaries {
        let (found, _) = check(&altered(NEW, parts, from, to));
        assert!(found.iter().any(|of| of == rule), "{rule} {parts:?}: {found:?}");
    }
    let advanced: &[&str] = &[": es_seq:", "ino=13", "seq=33"];
    let converted: &[&str] = &[": es_insert:", "ino=13", "lblk=0 len=32", "pblk=0x8000"];
    for (rule, parts, from, to) in
        [("A9", advanced, "seq=33", "seq=32"), ("B3", converted, "pblk=0x8", "pblk=0x10")]
    {
        let (found, _) = check(&altered(NEWEST, parts, from, to));
        assert!(found.iter().any(|of| of == rule), "{rule} {parts:?}: {found:?}");
    }
    // The shrinker is about the same entry.
    let name = "ino=12 lblk=2 len=1 pblk=0x27ffffffffffffff";
    let at = NEW.find(name).unwrap();
    let begin = NEW[..at].rfind('"').unwrap() + 1;
    let (head, _) = NEW[begin..].split_once(": es_free:").unwrap();
    let log = format!("{}{head}: reclaim: (f+0x0/0x1)\",\"{}", &NEW[..begin], &NEW[begin..]);
    let (found, _) = check(&log);
    assert!(found.iter().any(|of| of == "A10"), "{found:?}");
}

#[test]
fn a_page_that_is_read_while_it_is_punched_out_breaks_a7() {
    // The same thread reads the pages when the hole is there; as another's, and earlier, it is a bug.
    let of = |name: &str| {
        let at = NEWEST.find(name).unwrap();
        let begin = NEWEST[..at].rfind('"').unwrap() + 1;
        &NEWEST[begin..begin + NEWEST[begin..].find('"').unwrap()]
    };
    let (dropped, read) = (of(": drop_range_end:"), of("page=4 pages=4"));
    let (head, _) = dropped.split_once(": drop_range_end:").unwrap();
    let time = head.rsplit(' ').next().unwrap();
    let (_, what) = read.split_once(": readahead:").unwrap();
    let early = format!(" reader-99 [001] ..... {time}: readahead:{what}");
    let log = NEWEST.replacen(dropped, &format!("{dropped}\",\"{early}"), 1);
    assert_eq!(check(&log).0, ["A7"]);
}
