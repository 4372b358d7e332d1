//! A7, A9 and B3: pages, numbers and conversions.

use super::*;

/// A puncher that has dropped bytes 4096..=16383 and is about to free blocks 1+3.
fn dropped() -> Story {
    let mut story = Story::on("6.1.0");
    life(&mut story);
    story.say("puncher-74", "fallocate", "");
    story.say("puncher-74", "drop_range", "inode=0xa0 from=0x1000 to=0x3fff");
    story.say("puncher-74", "drop_range_end", "");
    story
}

fn changes(story: &mut Story, thread: &str) -> Vec<&'static str> {
    story.say(thread, "es_give_up", "inode=0xa0 lblk=1 len=3")
}

#[test]
fn a7_a_page_that_is_read_between_its_drop_and_the_change() {
    for (reader, page, pages, found) in [
        ("reader-75", 1, 1, vec!["A7"]),
        ("reader-75", 3, 1, vec!["A7"]),
        ("reader-75", 0, 2, vec!["A7"]),
        ("reader-75", 3, 9, vec!["A7"]),
        // Not of the range.
        ("reader-75", 0, 1, vec![]),
        ("reader-75", 4, 9, vec![]),
        // Its own reads are of what it zeroes itself.
        ("puncher-74", 1, 1, vec![]),
    ] {
        let mut story = dropped();
        let fields = format!("inode=0xa0 page={page} pages={pages}");
        assert_eq!(story.say(reader, "readahead", &fields), NOTHING);
        assert_eq!(changes(&mut story, "puncher-74"), found, "{reader} {page}+{pages}");
    }
    let mut story = dropped();
    story.say("reader-75", "read_page", "inode=0xa0 page=2");
    // Somebody else's change is no sign.
    assert_eq!(changes(&mut story, "flush-9"), NOTHING);
    let put = "inode=0xa0 ino=13 lblk=1 len=3 status=2";
    assert_eq!(story.say("puncher-74", "es_put", put), ["A7"]);
}

#[test]
fn a7_reads_before_the_drop_and_after_the_change_are_free() {
    let mut story = Story::on("6.1.0");
    life(&mut story);
    let read = |story: &mut Story| story.say("reader-75", "read_page", "inode=0xa0 page=2");
    story.say("puncher-74", "fallocate", "");
    read(&mut story);
    story.say("puncher-74", "drop", "inode=0xa0 from=0x1000");
    read(&mut story);
    story.say("puncher-74", "drop_end", "");
    assert_eq!(changes(&mut story, "puncher-74"), NOTHING);
    read(&mut story);
    story.say("puncher-74", "fallocate_end", "");
    read(&mut story);
    assert_eq!(changes(&mut story, "puncher-74"), NOTHING);
    // A drop of somebody who changes no blocks.
    story.say("puncher-74", "drop", "inode=0xa0 from=0x1000");
    story.say("puncher-74", "drop_end", "");
    read(&mut story);
    assert_eq!(changes(&mut story, "puncher-74"), NOTHING);
}

#[test]
fn a7_pages_that_are_cut_through_stay() {
    let mut story = Story::on("6.1.0");
    life(&mut story);
    story.say("cutter-74", "setattr", "");
    story.say("cutter-74", "drop", "inode=0xa0 from=0x1800");
    story.say("cutter-74", "drop_end", "");
    story.say("reader-75", "read_page", "inode=0xa0 page=1");
    assert_eq!(changes(&mut story, "cutter-74"), NOTHING);
    story.say("reader-75", "read_page", "inode=0xa0 page=2");
    assert_eq!(changes(&mut story, "cutter-74"), ["A7"]);
}

/// A change of extent status by a function that is to advance `i_es_seq`, or, with no `probe`, not.
fn change(story: &mut Story, probe: Option<&str>, seq: u32) -> Vec<&'static str> {
    if let Some(probe) = probe {
        story.say("writer-71", probe, "inode=0xa0 ino=13 lblk=4 len=1 status=1");
    }
    story.say("writer-71", "es_seq", &format!("inode=0xa0 ino=13 seq={seq}"))
}

#[test]
fn a9_every_change_advances_the_number() {
    for probe in ["es_put", "es_delay", "es_give_up"] {
        let mut story = Story::on("7.3.0");
        assert_eq!(change(&mut story, Some("es_delay"), 5), NOTHING);
        // One that caches, and another pass of the same: not advanced, and not to be.
        assert_eq!(change(&mut story, None, 6), NOTHING);
        assert_eq!(change(&mut story, None, 6), NOTHING);
        assert_eq!(change(&mut story, Some(probe), 6), NOTHING);
        assert_eq!(change(&mut story, Some(probe), 6), ["A9"], "{probe}");
    }
    let mut story = Story::on("7.3.0");
    assert_eq!(change(&mut story, Some("es_put"), u32::MAX), NOTHING);
    assert_eq!(change(&mut story, Some("es_put"), 1), NOTHING);
    assert_eq!(change(&mut story, Some("es_put"), 0), ["A9"]);
}

#[test]
fn a9_a_change_of_no_blocks_is_none() {
    let mut story = Story::on("7.3.0");
    assert_eq!(change(&mut story, Some("es_put"), 5), NOTHING);
    story.say("writer-71", "es_put", "inode=0xa0 ino=13 lblk=4 len=0 status=1");
    assert_eq!(change(&mut story, None, 5), NOTHING);
    assert_eq!(change(&mut story, Some("es_put"), 6), NOTHING);
}

/// Two delayed blocks get unwritten space from `thread`'s `probe`.
fn space(thread: &str, probe: &str) -> Story {
    let mut story = Story::on("6.1.0");
    story.delay("writer-71", 0);
    story.delay("writer-71", 1);
    story.over("writer-71");
    story.say(thread, probe, "inode=0xa0");
    story.update(thread, "update_reserve", 2);
    story.say(thread, "es_put", "inode=0xa0 ino=13 lblk=0 len=2 status=2");
    story.remove(thread, 0, 1);
    story.counts = (0, 0);
    assert_eq!(story.insert(thread, 0, 2, U + 100), NOTHING);
    story.say(thread, &format!("{probe}_end"), "ret=0");
    story
}

fn quiet(story: &mut Story) -> Vec<&'static str> {
    story.say("agent-60", "tracing_mark_write", "quiet=1 dirty=0")
}

#[test]
fn b3_what_was_written_back_is_written() {
    let mut story = space("flush-9", "writepages");
    story.remove("kworker-8", 0, 0);
    story.insert("kworker-8", 0, 1, W + 100);
    assert_eq!(quiet(&mut story), ["B3"]);
    let mut story = space("flush-9", "writepages");
    story.remove("kworker-8", 0, 1);
    story.insert("kworker-8", 0, 2, W + 100);
    assert_eq!(quiet(&mut story), NOTHING);
    // Given up instead.
    let mut story = space("flush-9", "writepages");
    story.give_up(0, 2);
    assert_eq!(quiet(&mut story), NOTHING);
    // An extent that is cut in two by its conversion is put back in parts first.
    let mut story = space("flush-9", "writepages");
    story.remove("kworker-8", 0, 0);
    story.insert("kworker-8", 1, 1, U + 101);
    story.insert("kworker-8", 0, 1, W + 100);
    assert_eq!(quiet(&mut story), ["B3"]);
}

#[test]
fn b3_space_without_data_and_data_that_could_not_be_written_stay_unwritten() {
    let mut story = space("allocator-70", "fallocate");
    assert_eq!(quiet(&mut story), NOTHING);
    let mut story = space("flush-9", "writepages");
    story.say("kworker-8", "wb_error", "inode=0xa0");
    assert_eq!(quiet(&mut story), NOTHING);
}
