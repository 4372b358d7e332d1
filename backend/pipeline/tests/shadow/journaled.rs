//! Goal: under `data=journal` the copies in the log are the data (D3), except where nobody can read
//! it after a power cut.
//! Method: a recorded guest whose data goes through the log; in each of its descriptors, one tag at
//! a time is sent to another block, so that the log has no copy of the one that it named.

use pipeline::event::Event;
use pipeline::shadow::Rule;

use crate::recording::{bytes, caught, check, recorded, with_bytes, writes};

/// A block of the recorded disk that is never in use.
const ELSEWHERE: u32 = 7900;

fn journaled() -> Vec<Event> {
    recorded("guest-journaled.jsonl")
}

/// The logs in which one copy is of another block: a tag is eight bytes, the first of a descriptor
/// has a UUID of sixteen behind it.
fn misdirected(events: &[Event]) -> impl Iterator<Item = Vec<Event>> {
    writes(events)
        .into_iter()
        .filter(|of| of.is_log() && of.bytes.is_some())
        .flat_map(|write| {
            let raw = bytes(events, &write);
            let blocks = raw.chunks(1024).zip((0..).step_by(1024));
            let descriptors: Vec<usize> = blocks
                .filter(|(block, _)| block.starts_with(&[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 1]))
                .flat_map(|(block, at)| {
                    let tags = block[36..].chunks_exact(8).zip((at + 36..).step_by(8));
                    let tags: Vec<_> = tags.map(|(tag, at)| (tag[7], at)).collect();
                    let first = std::iter::once((block[19], at + 12));
                    let mut last = false;
                    first
                        .chain(tags)
                        .take_while(move |(flags, _)| !std::mem::replace(&mut last, flags & 8 != 0))
                })
                .map(|(_, at)| at)
                .collect();
            let events = events.to_vec();
            descriptors.into_iter().map(move |at| {
                with_bytes(&events, &write, |bytes| {
                    bytes[at..at + 4].copy_from_slice(&ELSEWHERE.to_be_bytes());
                })
            })
        })
        .collect::<Vec<_>>()
        .into_iter()
}

/// Alters every regular file with an extent tree in every copy of an inode table.
fn files(events: Vec<Event>, edit: impl Fn(&mut [u8])) -> Vec<Event> {
    let found = writes(&events).into_iter().filter(|of| of.is_log() && of.bytes.is_some());
    found.fold(events, |events, write| {
        with_bytes(&events, &write, |bytes| {
            for inode in bytes.chunks_exact_mut(256) {
                if inode[1] & 0xf0 == 0x80 && inode[0x28..0x2a] == [0x0a, 0xf3] {
                    edit(inode);
                }
            }
        })
    })
}

fn is_stale(events: &[Event]) -> bool {
    check(events).findings.iter().any(|(_, finding)| finding.rule == Rule::StaleData.id())
}

#[test]
fn a_copy_that_is_missing_is_stale_data() {
    caught(Rule::StaleData, misdirected(&journaled()));
}

#[test]
fn data_that_nobody_can_read_need_not_be_there() {
    let size = |inode: &mut [u8]| inode[0x4..0x8].fill(0);
    let orphan = |inode: &mut [u8]| inode[0x14..0x18].copy_from_slice(&12_u32.to_le_bytes());
    let mut stale = 0;
    for events in misdirected(&journaled()).filter(|events| is_stale(events)).take(8) {
        stale += 1;
        let unlinked = files(events.clone(), |inode| inode[0x1a..0x1c].fill(0));
        assert!(!is_stale(&unlinked), "no name leads to any file");
        let cut = |inode: &mut [u8]| {
            size(inode);
            orphan(inode);
        };
        assert!(!is_stale(&files(events.clone(), cut)), "recovery cuts the files to nothing");
        assert!(is_stale(&files(events.clone(), size)), "they are no orphans");
        assert!(is_stale(&files(events, orphan)), "recovery cuts the files to their sizes");
    }
    assert!(stale > 0, "no copy was missed");
}
