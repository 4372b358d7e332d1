use super::*;
use crate::kernel::{KernelLine, parse_line};

fn feed(shadow: &mut DelallocShadow, line: &str) -> Option<DelallocFinding> {
    match parse_line(line) {
        KernelLine::Event(event) => shadow.step(&event),
        other => panic!("{other:?}"),
    }
}

/// What 5.10.223 says when page_mkwrite races fallocate: status U, then D over it.
const RACE: [&str; 6] = [
    " allocator-70 [000] .... 1.000100: fallocate: (ext4_fallocate+0x0/0x9d0)",
    " allocator-70 [000] d... 1.000200: es_insert: (f+0x0/0x1) inode=0xa0 ino=13 lblk=0 len=1 pblk=0x47ffffffffffffff",
    " storer-71 [001] .... 1.010000: mkwrite: (ext4_page_mkwrite+0x0/0x4b0)",
    " allocator-70 [000] d... 1.080000: es_insert: (f+0x0/0x1) inode=0xa0 ino=13 lblk=0 len=1 pblk=0x1000000000000841",
    " storer-71 [001] d... 1.080100: es_insert: (f+0x0/0x1) inode=0xa0 ino=13 lblk=0 len=1 pblk=0x27ffffffffffffff",
    " storer-71 [001] .... 1.080200: mkwrite_end: (f+0x1/0x2 <- ext4_page_mkwrite)",
];

#[test]
fn the_founding_bug_is_noticed_when_it_happens() {
    let mut shadow = DelallocShadow::new();
    for line in &RACE[..4] {
        assert_eq!(feed(&mut shadow, line), None, "{line}");
    }
    let finding = feed(&mut shadow, RACE[4]).unwrap();
    assert_eq!(
        finding.to_string(),
        "A4: inode 13, blocks 0+1: a delayed extent went in over allocated blocks; by storer-71 \
         in ext4_page_mkwrite at 1080100 us, allocated by allocator-70 in ext4_fallocate at \
         1080000 us"
    );
    // Once is enough.
    assert_eq!(feed(&mut shadow, RACE[4]), None);
}

#[test]
fn what_was_given_up_may_be_delayed_again() {
    let mut shadow = DelallocShadow::new();
    for line in &RACE[..4] {
        feed(&mut shadow, line);
    }
    let given_up =
        " rm-72 [000] .... 1.080050: es_give_up: (f+0x0/0x1) inode=0xa0 lblk=0 len=4294967295";
    assert_eq!(feed(&mut shadow, given_up), None);
    assert_eq!(feed(&mut shadow, RACE[4]), None);
}

#[test]
fn what_is_unknown_is_no_finding() {
    let mut shadow = DelallocShadow::new();
    assert_eq!(feed(&mut shadow, RACE[4]), None);
    for line in &RACE[..4] {
        feed(&mut shadow, line);
    }
    shadow.lost();
    assert_eq!(feed(&mut shadow, RACE[4]), None);
    assert_eq!(shadow.forgotten(), 1);
}

#[test]
fn a_fallocated_block_that_was_delayed_before_is_legal() {
    // Linux 5.10: unwritten and delayed at once.
    let mut shadow = DelallocShadow::new();
    feed(&mut shadow, RACE[3]);
    let both = RACE[3].replace("0x1000000000000841", "0x3000000000000841");
    assert_eq!(feed(&mut shadow, &both), None);
}

#[test]
fn blocks_that_stay_reserved_are_told_at_the_end() {
    let mut shadow = DelallocShadow::new();
    let end = " rm-72 [000] .... 2.000000: destroy: (f+0x0/0x1) inode=0xa0 ino=13 reserved=1";
    let finding = feed(&mut shadow, end).unwrap();
    assert_eq!(
        finding.to_string(),
        "C1: inode 13: 1 blocks are reserved and the inode is gone; by rm-72 at 2000000 us"
    );
    assert_eq!(feed(&mut shadow, &end.replace("reserved=1", "reserved=0")), None);
}

#[test]
fn memory_is_bounded() {
    let mut shadow = DelallocShadow::new();
    for inode in 0..5000_u64 {
        let line = RACE[3].replace("inode=0xa0", &format!("inode={inode}"));
        assert_eq!(feed(&mut shadow, &line), None);
    }
    assert_eq!(shadow.inodes.len(), MOST_INODES);
    assert_eq!(shadow.forgotten(), 5000 - MOST_INODES as u64);
}
