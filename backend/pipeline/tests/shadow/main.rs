//! Goal: every rule of the on-disk shadow catches what it is for, and a sound log breaks none.
//! Method: logs of a real guest (Linux 6.12.107 on small disks, recorded by the guest test
//! `shadow::recorded`); in each, one event at a time is altered, left out or moved in a way that
//! breaks a rule, at every place where that can be done; some place must make the shadow say so.

mod hostile;
mod journaled;
mod recording;

use ext4_layout::Kind;
use pipeline::event::{Event, What};
use pipeline::shadow::Rule;
use pipeline::{Op, RequestId};

use recording::{
    Write, bytes, caught, check, commits, copies, inodes, moved, next_commit, plain, recorded,
    with_bytes, without, writes,
};

#[test]
fn sound_logs_are_silent() {
    for name in ["guest-plain.jsonl", "guest-checksums.jsonl", "guest-journaled.jsonl"] {
        let checked = check(&recorded(name));
        assert_eq!(checked.findings, [], "{name}");
        assert!(checked.stats.commits > 10 && checked.stats.checked > 50, "{:?}", checked.stats);
    }
}

#[test]
fn data_that_is_missing_late_or_not_flushed() {
    let events = plain();
    let writes = writes(&events);
    let data = || writes.iter().filter(|write| write.has(Kind::Free) || write.has(Kind::FileData));
    caught(Rule::StaleData, data().map(|write| without(&events, write)));
    caught(
        Rule::StaleData,
        data().filter_map(|write| {
            let commit = next_commit(&events, &writes, write.complete)?;
            Some(moved(&events, write.complete, commit))
        }),
    );
}

#[test]
fn a_commit_record_that_comes_too_early() {
    let events = plain();
    let writes = writes(&events);
    let logged = writes.iter().filter(|write| write.has(Kind::JournalCopy));
    caught(
        Rule::CommitOrder,
        logged.filter_map(|write| {
            let commit = next_commit(&events, &writes, write.complete)?;
            Some(moved(&events, write.complete, commit))
        }),
    );
    // A flush that is left out.
    let flushes = events.iter().enumerate().skip(events.len() / 2).filter_map(|(at, event)| {
        let What::Request { id, op: Op::Flush, .. } = &event.what else { return None };
        let (at, id) = (at, *id);
        let kept = events.iter().enumerate().filter(|(index, event)| {
            *index != at && !matches!(&event.what, What::Complete { id: of, .. } if *of == id)
        });
        Some(kept.map(|(_, event)| event.clone()).collect())
    });
    caught(Rule::CommitOrder, flushes);
}

/// The guest mounts twice; without the flushes of the second mount it is one with `nobarrier`.
#[test]
fn whether_flushes_are_relied_on_is_a_matter_of_the_mount() {
    let events = plain();
    let writes = writes(&events);
    let emptied = writes.iter().filter(|write| {
        write.has(Kind::JournalSuperblock) && bytes(&events, write)[0x1c..0x20] == [0; 4]
    });
    let commits = |from: usize, to: usize| {
        let within = |write: &&Write| (from..to).contains(&write.request);
        writes.iter().filter(within).filter(|write| write.has(Kind::JournalCommit)).count()
    };
    let ends: Vec<usize> = emptied
        .map(|write| write.complete)
        .filter(|end| commits(0, *end) > 1 && commits(*end, events.len()) > 1)
        .collect();
    assert!(!ends.is_empty(), "the guest unmounts once between its mounts");
    let without_flushes_after = |end: usize| -> Vec<Event> {
        let mut left_out = Vec::new();
        let late = events.iter().enumerate().filter(|(at, event)| match &event.what {
            What::Request { id, op: Op::Flush, .. } if *at > end => {
                left_out.push(*id);
                false
            }
            What::Complete { id, .. } => !left_out.contains(id),
            _ => true,
        });
        late.map(|(_, event)| event.clone()).collect()
    };
    for end in &ends {
        assert_eq!(check(&without_flushes_after(*end)).findings, [], "after event {end}");
    }
    // Within a mount the same is a mistake.
    let found = check(&without_flushes_after(ends[0] / 2)).findings;
    assert!(found.iter().any(|(_, finding)| finding.rule == Rule::CommitOrder.id()), "{found:?}");
}

#[test]
fn metadata_in_place_before_its_commit() {
    let events = plain();
    let writes = writes(&events);
    let early = writes.iter().filter(|write| write.in_place()).filter_map(|write| {
        let commits =
            writes.iter().filter(|of| commits(&events, of) && of.complete < write.request);
        let commit = commits.max_by_key(|of| of.request)?;
        // All three events right behind the arrival of the commit record.
        let mut altered = without(&events, write);
        for (place, at) in (1..).zip([write.bytes?, write.request, write.complete]) {
            altered.insert(commit.request + place, events[at].clone());
        }
        Some(altered)
    });
    caught(Rule::InPlaceEarly, early);
}

#[test]
fn metadata_in_place_that_was_not_committed() {
    let events = plain();
    let writes = writes(&events);
    let in_place = writes.iter().filter(|write| write.in_place());
    caught(
        Rule::NotCommitted,
        in_place.map(|write| with_bytes(&events, write, |bytes| bytes[1000] ^= 1)),
    );
}

#[test]
fn a_checkpoint_that_is_missing() {
    let events = plain();
    let writes = writes(&events);
    let in_place = writes.iter().filter(|write| write.in_place());
    caught(Rule::TailTooFar, in_place.map(|write| without(&events, write)));
}

#[test]
fn the_live_log_overwritten() {
    let events = plain();
    let log: Vec<Write> =
        writes(&events).into_iter().filter(|of| of.is_log() && of.bytes.is_some()).collect();
    let pairs = log.windows(4).map(|of| {
        let (first, last) = (&of[0], &of[3]);
        let mut events = events.clone();
        if let What::Request { sector, .. } = &mut events[last.request].what {
            *sector = first.sector;
        }
        if let What::Bytes { offset, .. } = &mut events[last.bytes.unwrap()].what {
            *offset = first.sector * 512;
        }
        events
    });
    caught(Rule::LogOverwritten, pairs);
}

/// Log writes with a revoke record: where it is, and in the same write the first block that is
/// copied.
fn revokes(events: &[Event]) -> Vec<(Write, usize, [u8; 4])> {
    let mut found = Vec::new();
    let mut copied = None;
    for write in writes(events).into_iter().filter(|of| of.is_log() && of.bytes.is_some()) {
        for (place, block) in bytes(events, &write).chunks(1024).enumerate() {
            if block.starts_with(&[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 1]) {
                copied = block[12..16].try_into().ok();
            }
            if block.starts_with(&[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 5]) {
                found.push((write.clone(), place * 1024, copied.unwrap_or_default()));
            }
        }
    }
    found
}

#[test]
fn revokes_that_are_missing_or_too_many() {
    let events = plain();
    let revokes = revokes(&events);
    assert!(!revokes.is_empty(), "the log has no revoke record");
    // The record names a block that the transaction logs: one of those around it.
    let named = writes(&events)
        .into_iter()
        .filter(|of| of.is_log() && of.bytes.is_some())
        .flat_map(|of| {
            let raw = bytes(&events, &of);
            raw.chunks(1024)
                .filter(|block| block.starts_with(&[0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 1]))
                .map(|block| <[u8; 4]>::try_from(&block[12..16]).unwrap())
                .collect::<Vec<_>>()
        })
        .collect::<Vec<_>>();
    let own =
        revokes.iter().flat_map(|(write, at, _)| named.iter().map(move |of| (write, *at, of)));
    caught(
        Rule::RevokedCopy,
        own.map(|(write, at, of)| {
            with_bytes(&events, write, |bytes| bytes[at + 16..at + 20].copy_from_slice(of))
        }),
    );
    // The record is empty, and data is written to the block that it named.
    let reused = revokes.iter().map(|(write, at, _)| {
        let raw = bytes(&events, write);
        let block = u32::from_be_bytes(raw[at + 16..at + 20].try_into().unwrap());
        let mut altered = with_bytes(&events, write, |bytes| {
            bytes[at + 12..at + 16].copy_from_slice(&16_u32.to_be_bytes());
        });
        let commit = next_commit(&events, &writes(&events), write.request);
        let commit = commit.unwrap_or(write.request);
        let after = writes(&events).iter().find(|of| of.request == commit).unwrap().complete;
        altered.insert(after + 1, data_write(&events, u64::from(block) * 2));
        altered
    });
    caught(Rule::NotRevoked, reused);
}

fn data_write(events: &[Event], sector: u64) -> Event {
    let what = What::Request {
        id: RequestId(1 << 40),
        queue: 0,
        head: 0,
        op: Op::Write,
        sector,
        sectors: 2,
        classes: Vec::new(),
    };
    Event { what, ..events[0].clone() }
}

#[test]
fn bitmaps_that_do_not_fit() {
    let events = plain();
    let bitmaps = || copies(&writes(&events), Kind::BlockBitmap).into_iter();
    let set = |(write, at): (Write, usize)| {
        with_bytes(&events, &write, |bytes| {
            let block = &mut bytes[at..at + 1000];
            let clear = block.iter().rposition(|byte| *byte == 0).unwrap();
            block[clear] = 0x10;
        })
    };
    caught(Rule::Leak, bitmaps().map(set));
    caught(Rule::Counts, bitmaps().map(set));
    let cleared = bitmaps()
        .map(|(write, at)| with_bytes(&events, &write, |bytes| bytes[at..at + 1024].fill(0)));
    caught(Rule::MappedFree, cleared);
    let counts = copies(&writes(&events), Kind::GroupDescriptors);
    caught(
        Rule::Counts,
        counts.iter().map(|(write, at)| with_bytes(&events, write, |bytes| bytes[at + 0xc] ^= 1)),
    );
}

#[test]
fn inodes_that_cannot_be() {
    let events = plain();
    caught(Rule::Tree, inodes(&events, |inode| inode[0x2a] = 5));
    caught(Rule::Tree, inodes(&events, |inode| inode[0x3c..0x40].fill(0xff)));
    caught(Rule::BlockCount, inodes(&events, |inode| inode[0x1c..0x20].fill(0)));
    caught(Rule::PastSize, inodes(&events, |inode| inode[0x4..0x8].fill(0)));
    let places = |block: u32| {
        inodes(&events, move |inode| inode[0x3c..0x40].copy_from_slice(&block.to_le_bytes()))
    };
    caught(Rule::MapsMetadata, places(1));
    let mut owned = Vec::new();
    for (write, at) in copies(&writes(&events), Kind::InodeTable) {
        let raw = bytes(&events, &write);
        for inode in raw[at..at + 1024].chunks(256).filter(|inode| inode[0x28] == 0x0a) {
            owned.push(u32::from_le_bytes(inode[0x3c..0x40].try_into().unwrap()));
        }
    }
    owned.sort_unstable();
    owned.dedup();
    caught(Rule::TwoOwners, owned.into_iter().filter(|of| *of != 0).flat_map(places));
    // A folder that is sent to a free block.
    caught(Rule::NoContent, places(7000).into_iter().chain(places(7900)));
}

#[test]
fn a_superblock_that_is_not_clean() {
    let events = plain();
    let writes = writes(&events);
    let superblocks = writes.iter().filter(|of| of.has(Kind::Superblock) && of.bytes.is_some());
    caught(
        Rule::NotClean,
        superblocks.map(|write| with_bytes(&events, write, |bytes| bytes[0xc] ^= 1)),
    );
}

#[test]
fn metadata_writes_that_outlive_their_block() {
    let events = plain();
    let writes = writes(&events);
    let in_place = || writes.iter().filter(|write| write.in_place());
    // Still in flight when the block is written to again.
    let held = in_place().filter_map(|write| {
        let again =
            in_place().find(|of| of.request > write.complete && of.sector == write.sector)?;
        Some(moved(&events, write.complete, again.request))
    });
    caught(Rule::LateMetadata, held);
    // Still in flight when the block is freed.
    let nodes = || in_place().filter(|write| write.has(Kind::ExtentNode));
    caught(
        Rule::LateMetadata,
        nodes().map(|write| moved(&events, write.complete, events.len() - 1)),
    );
    // Written again after the block was freed: at the end of the log, with another number.
    let ghosts = nodes().map(|write| {
        let mut altered = events.clone();
        let new = RequestId(1 << 40);
        for at in [write.bytes.unwrap(), write.request] {
            let mut event = events[at].clone();
            match &mut event.what {
                What::Bytes { id, .. } => *id = Some(new),
                What::Request { id, .. } => *id = new,
                _ => {}
            }
            altered.push(event);
        }
        altered
    });
    caught(Rule::LateMetadata, ghosts);
}

#[test]
fn checksums_that_do_not_fit() {
    let events = recorded("guest-checksums.jsonl");
    let writes = writes(&events);
    let logged =
        writes.iter().filter(|write| write.has(Kind::JournalCopy) && write.bytes.is_some());
    caught(
        Rule::Checksum,
        logged.map(|write| {
            with_bytes(&events, write, |bytes| {
                let last = bytes.len() - 9;
                bytes[last] ^= 1;
            })
        }),
    );
}

/// Every rule is named by a canary above.
#[test]
fn every_rule_has_a_canary() {
    let source = include_str!("main.rs");
    for rule in Rule::ALL {
        let name = format!("Rule::{rule:?}");
        assert!(
            source.matches(&format!("caught({name}")).count()
                + source.matches(&format!("        {name},")).count()
                > 0,
            "{name}"
        );
    }
}
