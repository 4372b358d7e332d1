//! What a queue thread remembers of the map and the filter, block by block.
//!
//! In: ranges, and a snapshot to look them up in once. Out: that nobody wants to know of a range,
//! and its kinds, by one load for each 4 KiB.
//! Must not know: when a snapshot is replaced (it is told), what a rule is about beyond classes.
//!
//! To find a block in the map takes some 80 ns, which a disk in memory feels at a million requests
//! a second; guests touch the same blocks again and again. What is remembered is exact or absent:
//! blocks of several classes, and those that somebody may want, are looked up each time.

use ext4_layout::{Kind, LayoutMap, Span};
use pipeline::Filter;

use crate::prefetch::prefetch;

/// Sectors of a unit: 4 KiB, whatever the blocks of the file system are.
const UNIT_SECTORS: u64 = 8;
/// Units of a line, which is as long as one of the processor's caches.
const UNITS: usize = 56;
/// Lines of the memo of a large disk: 1 MiB, for 3.5 GiB of the disk. Lines share places when there are
/// too few, and two that are both in use void each other all the time.
const LINES_MAX: u64 = 16_384;
/// Longest range that is looked up in units: for longer ones the map costs less, run by run.
const LONGEST_SECTORS: u64 = 32 * UNIT_SECTORS;

/// A unit that is not remembered.
const NOT_KNOWN: u8 = 0;
/// The kind's place among [`Kind::ALL`], and one.
const KIND: u8 = 0x1f;
/// The layout follows from what is written there.
const WRITES_COUNT: u8 = 0x20;
/// A rule may want it, or it has several classes: it has to be looked up.
const ASK: u8 = 0x40;

const _: () = assert!(Kind::ALL.len() < KIND as usize);

/// Bits of a tag that hold a line's number; above them is when it was filled.
const NUMBER_BITS: u32 = 44;
/// Epochs before they begin anew.
const EPOCHS: u64 = 1 << (64 - NUMBER_BITS);

/// Some units in a row.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line {
    /// Epoch and number of the line that this is; 0: none.
    tag: u64,
    units: [u8; UNITS],
}

/// Why nothing is told of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untold {
    /// It is not remembered.
    NotKnown,
    /// What is remembered of it does not do.
    Ask,
}

/// What one thread remembers.
#[derive(Debug)]
pub(super) struct Memo {
    /// A power of two of them; empty until it is used.
    lines: Vec<Line>,
    /// Lines of another epoch are void. From 1 on.
    epoch: u64,
}

impl Default for Memo {
    fn default() -> Memo {
        Memo { lines: Vec::new(), epoch: 1 }
    }
}

impl Memo {
    /// Map or filter are others now.
    pub(super) fn void(&mut self) {
        self.epoch += 1;
        if self.epoch == EPOCHS {
            *self = Memo::default();
        }
    }

    /// The kinds in a range that no rule by class can want, whatever its operation, and (for
    /// `write`) whose content the layout does not follow from.
    ///
    /// # Errors
    /// It is to be looked up; what is not known can be [`Memo::learn`]ed instead.
    #[inline]
    pub(super) fn kinds(&self, sector: u64, sectors: u64, write: bool) -> Result<u32, Untold> {
        let (first, last) = units(sector, sectors).ok_or(Untold::Ask)?;
        let not = if write { ASK | WRITES_COUNT } else { ASK };
        let (mut kinds, mut unit) = (0, first);
        while unit <= last {
            let (number, at) = (unit / UNITS as u64, (unit % UNITS as u64) as usize);
            let index = self.index(number).ok_or(Untold::Ask)?;
            let line = self.lines.get(index).ok_or(Untold::NotKnown)?;
            if line.tag != self.tag(number) {
                return Err(Untold::NotKnown);
            }
            let rest = (last - unit) as usize;
            for unit in line.units[at..].iter().take(rest + 1) {
                if *unit == NOT_KNOWN {
                    return Err(Untold::NotKnown);
                }
                if unit & not != 0 {
                    return Err(Untold::Ask);
                }
                kinds |= 1_u32 << ((unit & KIND) - 1);
            }
            unit += (UNITS - at) as u64;
        }
        Ok(kinds)
    }

    /// What is remembered of that sector will be asked for soon: with a large disk it lies farther
    /// away than the nearest caches.
    #[inline]
    pub(super) fn prefetch(&self, sector: u64) {
        let number = sector / UNIT_SECTORS / UNITS as u64;
        if let Some(line) = self.index(number).and_then(|index| self.lines.get(index)) {
            prefetch(line);
        }
    }

    /// Looks a range up, to remember it.
    pub(super) fn learn(&mut self, map: &LayoutMap, filter: &Filter, sector: u64, sectors: u64) {
        let Some((first, last)) = units(sector, sectors) else { return };
        if self.lines.is_empty() {
            // Without a file system the map is quick by itself.
            if map.block_bytes().is_none() {
                return;
            }
            let lines = map.device_sectors() / (UNIT_SECTORS * UNITS as u64) + 1;
            let lines = lines.next_power_of_two().min(LINES_MAX) as usize;
            self.lines = vec![Line { tag: 0, units: [NOT_KNOWN; UNITS] }; lines];
        }
        let len = (last - first + 1) * UNIT_SECTORS;
        map.classify(first * UNIT_SECTORS, len, &mut |span: Span| {
            let end = span.first_sector + span.sectors;
            let told = told(map, filter, &span);
            for unit in span.first_sector / UNIT_SECTORS..end.div_ceil(UNIT_SECTORS) {
                let start = unit * UNIT_SECTORS;
                let whole = span.first_sector <= start && start + UNIT_SECTORS <= end;
                self.set(unit, if whole { told } else { ASK });
            }
        });
    }

    fn set(&mut self, unit: u64, value: u8) {
        let (number, at) = (unit / UNITS as u64, (unit % UNITS as u64) as usize);
        let tag = self.tag(number);
        let Some(line) = self.index(number).and_then(|index| self.lines.get_mut(index)) else {
            return;
        };
        if line.tag != tag {
            *line = Line { tag, units: [NOT_KNOWN; UNITS] };
        }
        line.units[at] = value;
    }

    /// Where that line would be; `None` beyond what a tag can hold.
    #[inline]
    fn index(&self, number: u64) -> Option<usize> {
        (number >> NUMBER_BITS == 0).then_some(number as usize & self.lines.len().wrapping_sub(1))
    }

    #[inline]
    fn tag(&self, number: u64) -> u64 {
        self.epoch << NUMBER_BITS | number
    }
}

/// First and last unit of a range that is worth it.
#[inline]
fn units(sector: u64, sectors: u64) -> Option<(u64, u64)> {
    if sectors == 0 || sectors > LONGEST_SECTORS {
        return None;
    }
    let last = sector.checked_add(sectors - 1)?;
    Some((sector / UNIT_SECTORS, last / UNIT_SECTORS))
}

/// What is remembered of units that lie in that span.
fn told(map: &LayoutMap, filter: &Filter, span: &Span) -> u8 {
    let kind = span.class.kind();
    let mut told = kind as u8 + 1;
    if map.wants_bytes_of(span.first_sector, span.sectors, || kind.bit()) {
        told |= WRITES_COUNT;
    }
    if filter.wants_class(span) {
        told |= ASK;
    }
    told
}

#[cfg(test)]
mod tests;
