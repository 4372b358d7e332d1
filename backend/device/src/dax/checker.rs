//! The store-order checker: a persistence domain that remembers, and every memory that a power cut
//! may leave at any moment.
//!
//! In: what a protocol does to a [`Recorder`]. Out: a list of primitives, and the images after a
//! crash behind each of them.
//! Must not know: the protocol.
//!
//! The model is that of x86 (Intel SDM volume 3, 9.2 and volume 1, 11.4.4). Stores to one cache
//! line become durable in their order, each line on its own, at any time, or never. The bytes of
//! one longer store do so in any order, in aligned words of 8. Streams do so in any order, until
//! a fence. A write-back covers what was stored to its lines before it, and holds from the next
//! fence on.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use rustix::io::Errno;

use super::{Domain, LINE_BYTES};

/// Aligned bytes that are durable as a whole.
const WORD_BYTES: u64 = 8;

/// Images after a crash that are looked at one by one; of more a sample is taken.
const EXHAUSTIVE: u64 = 1 << 12;
/// Images of a sample.
const SAMPLE: u64 = 1 << 9;

/// One primitive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Bytes stored as one operation.
    Store { offset: u64, bytes: Vec<u8> },
    /// Bytes streamed.
    Stream { offset: u64, bytes: Vec<u8> },
    /// Lines on their way.
    WriteBack(Range<u64>),
    /// What was on its way has arrived.
    Fence,
    /// The protocol says that something is done.
    Done,
}

/// A domain that only remembers.
#[derive(Debug)]
pub(super) struct Recorder {
    bytes: u64,
    steps: RefCell<Vec<Step>>,
}

impl Recorder {
    pub(super) fn new(bytes: u64) -> Recorder {
        Recorder { bytes, steps: RefCell::default() }
    }

    pub(super) fn done(&self) {
        self.steps.borrow_mut().push(Step::Done);
    }

    pub(super) fn steps(self) -> Vec<Step> {
        self.steps.into_inner()
    }

    fn push(&self, offset: u64, len: u64, step: Step) -> Result<(), Errno> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.bytes);
        if !inside {
            return Err(Errno::INVAL);
        }
        self.steps.borrow_mut().push(step);
        Ok(())
    }
}

impl Domain for Recorder {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn granule(&self) -> u64 {
        LINE_BYTES
    }

    fn stream_bypasses_cache(&self) -> bool {
        true
    }

    fn store(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.push(offset, bytes.len() as u64, Step::Store { offset, bytes: bytes.to_vec() })
    }

    fn store_word(&self, offset: u64, word: u64) -> Result<(), Errno> {
        if !offset.is_multiple_of(WORD_BYTES) {
            return Err(Errno::INVAL);
        }
        self.store(offset, &word.to_le_bytes())
    }

    fn stream(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let len = bytes.len() as u64;
        if !(offset | len).is_multiple_of(LINE_BYTES) {
            return Err(Errno::INVAL);
        }
        self.push(offset, len, Step::Stream { offset, bytes: bytes.to_vec() })
    }

    fn write_back(&self, range: Range<u64>) -> Result<(), Errno> {
        let len = range.end.checked_sub(range.start).ok_or(Errno::INVAL)?;
        if !(range.start | len).is_multiple_of(LINE_BYTES) {
            return Err(Errno::INVAL);
        }
        self.push(range.start, len, Step::WriteBack(range))
    }

    fn fence(&self) {
        self.steps.borrow_mut().push(Step::Fence);
    }
}

/// Bytes inside one aligned word.
type Piece = (u64, Vec<u8>);

/// What was stored to one line and is not durable for certain.
#[derive(Clone, Debug, Default)]
struct Line {
    /// Each store in pieces; stores in order, pieces in any.
    stores: Vec<Vec<Piece>>,
    /// How many of them are on their way.
    leaving: usize,
    /// Streamed pieces, in any order.
    streamed: Vec<Piece>,
}

impl Line {
    /// In how many ways the line may be found after a crash.
    fn ways(&self) -> u64 {
        // A whole number of stores, or a proper part of the next.
        let parts = |pieces: &Vec<Piece>| (1_u64 << pieces.len().min(62)) - 1;
        let stores: u64 = self.stores.iter().map(parts).sum::<u64>() + 1;
        stores.saturating_mul(1 << self.streamed.len().min(62))
    }

    /// Puts one of the ways into an image.
    fn apply(&self, mut way: u64, image: &mut [u8]) {
        let streams = 1_u64 << self.streamed.len().min(62);
        let chosen = way % streams;
        way /= streams;
        for pieces in &self.stores {
            let parts = (1_u64 << pieces.len().min(62)) - 1;
            if way < parts {
                put_some(pieces, way, image);
                break;
            }
            put_some(pieces, u64::MAX, image);
            way -= parts;
        }
        put_some(&self.streamed, chosen, image);
    }
}

fn put_some(pieces: &[Piece], chosen: u64, image: &mut [u8]) {
    for (i, (at, bytes)) in pieces.iter().enumerate() {
        if chosen >> i & 1 != 0 {
            let at = *at as usize;
            image[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

/// Memory under the model.
#[derive(Clone, Debug)]
struct Model {
    /// Durable for certain.
    durable: Vec<u8>,
    lines: BTreeMap<u64, Line>,
}

impl Model {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Store { offset, bytes } => {
                for (line, pieces) in by_line(*offset, bytes) {
                    self.lines.entry(line).or_default().stores.push(pieces);
                }
            }
            Step::Stream { offset, bytes } => {
                for (line, pieces) in by_line(*offset, bytes) {
                    self.lines.entry(line).or_default().streamed.extend(pieces);
                }
            }
            Step::WriteBack(range) => {
                for (_, line) in self.lines.range_mut(range.start..range.end) {
                    line.leaving = line.stores.len();
                }
            }
            Step::Fence => {
                for line in self.lines.values_mut() {
                    for pieces in line.stores.drain(..line.leaving) {
                        put_some(&pieces, u64::MAX, &mut self.durable);
                    }
                    line.leaving = 0;
                    for piece in line.streamed.drain(..) {
                        put_some(&[piece], u64::MAX, &mut self.durable);
                    }
                }
                self.lines.retain(|_, line| !line.stores.is_empty());
            }
            Step::Done => {}
        }
    }

    /// Calls `look` with every image that a crash may leave now, or with a sample of them.
    fn crashes(&self, random: &mut u64, mut look: impl FnMut(&[u8])) {
        let ways: Vec<(&Line, u64)> = self.lines.values().map(|l| (l, l.ways())).collect();
        let all = ways.iter().fold(1_u64, |all, (_, ways)| all.saturating_mul(*ways));
        let mut image = Vec::with_capacity(self.durable.len());
        let mut put = |pick: &mut dyn FnMut(u64) -> u64| {
            image.clone_from(&self.durable);
            for (line, ways) in &ways {
                line.apply(pick(*ways), &mut image);
            }
            look(&image);
        };
        if all <= EXHAUSTIVE {
            for mut number in 0..all {
                put(&mut |ways| {
                    let way = number % ways;
                    number /= ways;
                    way
                });
            }
            return;
        }
        for round in 0..SAMPLE {
            // Lines that arrived whole or not at all are what a real machine mostly leaves; parts
            // of lines are drawn in every other round.
            put(&mut |ways| match (round % 2, next(random)) {
                (0, drawn) => drawn % ways,
                (_, drawn) if drawn & 1 == 0 => 0,
                _ => ways - 1,
            });
        }
    }
}

/// The pieces of some bytes, by line.
fn by_line(offset: u64, bytes: &[u8]) -> BTreeMap<u64, Vec<Piece>> {
    let mut lines: BTreeMap<u64, Vec<Piece>> = BTreeMap::new();
    let (mut at, mut rest) = (offset, bytes);
    while !rest.is_empty() {
        let len = (WORD_BYTES - at % WORD_BYTES).min(rest.len() as u64) as usize;
        let (piece, after) = rest.split_at(len);
        lines.entry(at / LINE_BYTES * LINE_BYTES).or_default().push((at, piece.to_vec()));
        at += len as u64;
        rest = after;
    }
    lines
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// Runs the steps over zeroed memory of `bytes` bytes, with a crash behind each of them, and asks
/// `holds` about each image and how much the protocol had said to be done. The error names the
/// step after which it did not hold.
pub(super) fn check(
    bytes: u64,
    steps: &[Step],
    mut holds: impl FnMut(&[u8], usize) -> Result<(), String>,
) -> Result<(), String> {
    let mut model = Model { durable: vec![0; bytes as usize], lines: BTreeMap::new() };
    let mut random = 1;
    let mut done = 0;
    for (number, step) in steps.iter().enumerate() {
        model.step(step);
        done += usize::from(*step == Step::Done);
        let mut failed = None;
        model.crashes(&mut random, |image| {
            if failed.is_none() {
                failed = holds(image, done).err();
            }
        });
        if let Some(why) = failed {
            return Err(format!("a crash after step {number} ({step:?}): {why}"));
        }
    }
    Ok(())
}
