//! The writer under the store-order checker, and on real mappings.

use std::fs;

use proptest::prelude::*;
use tempfile::tempdir;

use super::checker::{Recorder, Step, check};
use super::{DaxError, DaxFile, Domain, Durability, STREAM_FROM_BYTES, WriteBack, Writer};

/// Where the number of published records is.
const HEAD: u64 = 0;
/// Where records begin.
const RECORDS: u64 = 64;

/// A record as the protocol writes it: `len` bytes that tell which record they belong to.
fn record(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (number as u8).wrapping_mul(37).wrapping_add(i as u8) | 1).collect()
}

/// Where each record is, without gaps.
fn places(lens: &[usize]) -> Vec<u64> {
    let begin = |at: &mut u64, len: &usize| {
        let here = *at;
        *at += *len as u64;
        Some(here)
    };
    lens.iter().scan(RECORDS, begin).collect()
}

/// The protocol: each record is written in two parts, then published by its number.
fn log<D: Domain>(domain: &D, lens: &[usize], mut done: impl FnMut()) {
    let mut writer = Writer::new(domain);
    for (number, (&len, at)) in lens.iter().zip(places(lens)).enumerate() {
        let bytes = record(number, len);
        let (first, second) = bytes.split_at(len / 3);
        writer.write_cached(at, first).expect("inside");
        writer.write_streamed(at + first.len() as u64, second).expect("inside");
        writer.publish(HEAD, number as u64 + 1).expect("inside");
        done();
    }
}

fn memory_bytes(lens: &[usize]) -> u64 {
    (RECORDS + lens.iter().sum::<usize>() as u64).next_multiple_of(64)
}

fn recorded(lens: &[usize]) -> Vec<Step> {
    let recorder = Recorder::new(memory_bytes(lens));
    log(&recorder, lens, || recorder.done());
    recorder.steps()
}

/// What must hold after a crash: published records are whole, and what was done is published.
fn holds(image: &[u8], done: usize, lens: &[usize]) -> Result<(), String> {
    let head = u64::from_le_bytes(image[..8].try_into().expect("8 bytes")) as usize;
    if head < done || head > lens.len() {
        return Err(format!("{head} records are published, {done} were done"));
    }
    for (number, (&len, at)) in lens.iter().zip(places(lens)).take(head).enumerate() {
        if image[at as usize..][..len] != record(number, len) {
            return Err(format!("record {number} is published and torn"));
        }
    }
    Ok(())
}

fn check_log(lens: &[usize], steps: &[Step]) -> Result<(), String> {
    check(memory_bytes(lens), steps, |image, done| holds(image, done, lens))
}

/// Goal: no crash exposes a torn record or loses a published one.
#[test]
fn a_published_record_is_whole_after_any_crash() {
    for lens in [&[8][..], &[24, 24], &[40, 3, 61], &[64, 200]] {
        check_log(lens, &recorded(lens)).unwrap_or_else(|why| panic!("{lens:?}: {why}"));
    }
}

/// Canary: every write-back and every fence is needed, and the checker notices when one is gone.
#[test]
fn every_write_back_and_every_fence_counts() {
    for lens in [&[24][..], &[24, 24], &[40, 3, 61], &[64, 200]] {
        let steps = recorded(lens);
        let mut removed = 0;
        for (number, step) in steps.iter().enumerate() {
            if matches!(step, Step::WriteBack(_) | Step::Fence) {
                let mut without = steps.clone();
                without.remove(number);
                check_log(lens, &without)
                    .expect_err(&format!("{lens:?} without {number} {step:?}"));
                removed += 1;
            }
        }
        assert!(removed >= 4 * lens.len(), "{lens:?}: {steps:?}");
    }
}

/// Canaries: the mistakes that people make.
#[test]
fn wrong_protocols_are_caught() {
    let lens = [24];
    let bytes = record(0, 24);
    let wrong = |steps: &[Step], part: &str| {
        let why = check_log(&lens, steps).expect_err(part);
        assert!(why.contains(part), "{why}");
    };
    let store = |offset: u64, bytes: &[u8]| Step::Store { offset, bytes: bytes.to_vec() };
    let head = store(HEAD, &1_u64.to_le_bytes());
    let data = store(RECORDS, &bytes);
    let (data_out, head_out) = (Step::WriteBack(64..128), Step::WriteBack(0..64));
    // Published with the data, under one fence.
    let one_fence =
        [data.clone(), head.clone(), data_out.clone(), head_out.clone(), Step::Fence, Step::Done];
    wrong(&one_fence, "torn");
    // Written back before it was stored.
    let early = [
        data_out.clone(),
        data.clone(),
        Step::Fence,
        head.clone(),
        head_out.clone(),
        Step::Fence,
        Step::Done,
    ];
    wrong(&early, "torn");
    // The neighbouring line.
    let neighbour = [data.clone(), head_out.clone(), Step::Fence, head.clone(), Step::Done];
    wrong(&neighbour, "torn");
    // Said to be done before the last fence.
    let hasty =
        [data.clone(), data_out.clone(), Step::Fence, head.clone(), head_out.clone(), Step::Done];
    wrong(&hasty, "0 records are published, 1 were done");
    // A stream without a fence.
    let streamed = Step::Stream { offset: RECORDS, bytes: [bytes.clone(), vec![0; 40]].concat() };
    wrong(&[streamed.clone(), head.clone()], "torn");
    let right = [streamed, Step::Fence, head, head_out, Step::Fence, Step::Done];
    check_log(&lens, &right).expect("a stream and a fence");
    // A word that is not aligned is no word.
    let recorder = Recorder::new(128);
    Writer::new(&recorder).publish(4, 1).expect_err("not aligned");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// As above with records of any length: most crashes of the longer ones are samples.
    #[test]
    fn records_of_any_length(lens in prop::collection::vec(1_usize..400, 1..5)) {
        let steps = recorded(&lens);
        prop_assert_eq!(check_log(&lens, &steps), Ok(()));
        let first_fence = steps.iter().position(|step| *step == Step::Fence);
        let mut without = steps.clone();
        without.remove(first_fence.expect("a fence"));
        prop_assert!(check_log(&lens, &without).is_err());
    }

    /// Bytes end up where they belong, whatever path they take, and on every kind of mapping.
    #[test]
    fn real_mappings_hold_what_was_written(
        writes in prop::collection::vec((0_u64..20_000, 0_usize..9_000, 0_u8..3), 1..12),
    ) {
        let dir = tempdir().expect("a folder");
        let path = dir.path().join("memory");
        fs::write(&path, vec![0; 30_001]).expect("a file");
        for persistent in [false, true] {
            let file = if persistent {
                DaxFile::open_as_persistent(&path).expect("maps")
            } else {
                DaxFile::open(&path).expect("maps")
            };
            let mut expected = fs::read(&path).expect("the file");
            let mut writer = Writer::new(&file);
            for (number, &(offset, len, how)) in writes.iter().enumerate() {
                let bytes = record(number + usize::from(persistent), len);
                match how {
                    0 => writer.write(offset, &bytes),
                    1 => writer.write_cached(offset, &bytes),
                    _ => writer.write_streamed(offset, &bytes),
                }
                .expect("inside");
                expected[offset as usize..][..len].copy_from_slice(&bytes);
            }
            writer.drain().expect("drains");
            writer.publish(24_000, 7).expect("publishes");
            expected[24_000..24_008].copy_from_slice(&7_u64.to_le_bytes());
            prop_assert_eq!(file.read_word(24_000), Ok(7));
            let mut seen = vec![0; expected.len()];
            file.read(0, &mut seen).expect("inside");
            prop_assert!(seen == expected);
            prop_assert!(fs::read(&path).expect("the file") == expected);
        }
    }
}

/// The same protocol, on real instructions.
#[test]
fn the_log_on_a_mapping() {
    let dir = tempdir().expect("a folder");
    let path = dir.path().join("memory");
    let lens = [24, 5000, 64, 3, 4096];
    fs::write(&path, vec![0; memory_bytes(&lens) as usize]).expect("a file");
    let file = DaxFile::open_as_persistent(&path).expect("maps");
    let mut published = 0;
    log(&file, &lens, || {
        published += 1;
        assert_eq!(file.read_word(HEAD), Ok(published));
    });
    drop(file);
    holds(&fs::read(&path).expect("the file"), lens.len(), &lens).expect("whole");
}

#[test]
fn a_file_that_is_no_persistent_memory_says_so() {
    let dir = tempdir().expect("a folder");
    let path = dir.path().join("memory");
    fs::write(&path, [0; 100]).expect("a file");
    let file = DaxFile::open(&path).expect("maps");
    assert_eq!((file.durability(), file.bytes()), (Durability::Msync, 100));
    let forced = DaxFile::open_as_persistent(&path).expect("maps").durability();
    match WriteBack::detect() {
        Some(write_back) => assert_eq!(forced, Durability::Lines(write_back)),
        None => assert_eq!(forced, Durability::Msync),
    }
    fs::write(&path, []).expect("a file");
    assert!(matches!(DaxFile::open(&path), Err(DaxError::NoBytes { .. })));
    assert!(matches!(DaxFile::open("/dev/null".as_ref()), Err(DaxError::NoBytes { .. })));
    assert!(matches!(DaxFile::open(dir.path()), Err(DaxError::Open { .. })));
}

#[test]
fn what_is_outside_is_refused() {
    let dir = tempdir().expect("a folder");
    let path = dir.path().join("memory");
    let big = 2 * 4096;
    assert!(big > STREAM_FROM_BYTES);
    fs::write(&path, vec![0; big]).expect("a file");
    for file in [DaxFile::open(&path), DaxFile::open_as_persistent(&path)] {
        let file = file.expect("maps");
        let mut writer = Writer::new(&file);
        let bytes = vec![1; big];
        for offset in [1, big as u64, u64::MAX, u64::MAX - big as u64] {
            writer.write(offset, &bytes).expect_err("outside");
            writer.write_cached(offset, &bytes).expect_err("outside");
            writer.write_streamed(offset, &bytes).expect_err("outside");
            file.read(offset, &mut bytes.clone()).expect_err("outside");
        }
        writer.publish(big as u64, 1).expect_err("outside");
        writer.publish(u64::MAX - 7, 1).expect_err("outside");
        writer.publish(4, 1).expect_err("not aligned");
        file.write_back(0..big as u64 * 2).expect_err("outside");
        file.write_back(1..65).expect_err("no granules");
        file.stream(1, &[0; 64]).expect_err("no granules");
        file.stream(0, &[0; 63]).expect_err("no granules");
    }
}
