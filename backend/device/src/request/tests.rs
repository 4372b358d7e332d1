//! Goal: every way the spec allows to lay a request out gives the same request; everything else
//! gets an error status, or is known to be beyond answering.
//! Method: random splits of header, data and status over descriptors, in the ring and in
//! indirect tables, against the bytes that went in; then one lie at a time.

use std::sync::Arc;

use proptest::prelude::*;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::segments::Snapshot;

const QUEUE: usize = 256;
const RING: u64 = 0x1000;
const INDIRECT: u64 = 0x8000;
/// Two regions that touch: ranges may cross the border at 1 MiB.
const MEMORY: [(GuestAddress, usize); 2] =
    [(GuestAddress(0), 1 << 20), (GuestAddress(1 << 20), 1 << 20)];
const END: u64 = 2 << 20;
const LIMITS: Limits = Limits { capacity_sectors: 4096, read_only: false, can_discard: true };

fn memory() -> Snapshot {
    Snapshot::new(Arc::new(GuestMemoryMmap::from_ranges(&MEMORY).expect("memory")))
}

/// A descriptor before it has its flags: address, length, writable.
type Piece = (u64, u32, bool);

/// Puts descriptors one after the other into a table and links them.
fn link(memory: &Snapshot, table: u64, pieces: &[Piece]) {
    for (i, &(addr, len, write)) in pieces.iter().enumerate() {
        let next = if i + 1 < pieces.len() { VRING_DESC_F_NEXT } else { 0 };
        let flags = next | if write { VRING_DESC_F_WRITE } else { 0 };
        put(memory, table, i, addr, len, flags as u16, i as u16 + 1);
    }
}

fn put(memory: &Snapshot, table: u64, i: usize, addr: u64, len: u32, flags: u16, next: u16) {
    let descriptor = RawDescriptor::from(Descriptor::new(addr, len, flags, next));
    memory
        .memory()
        .write_obj(descriptor, GuestAddress(table + 16 * i as u64))
        .expect("a table in memory");
}

/// Lays `pieces` out in the ring, the part from `indirect_from` on in an indirect table.
fn lay_out(memory: &Snapshot, pieces: &[Piece], indirect_from: Option<usize>) {
    let Some(from) = indirect_from else {
        return link(memory, RING, pieces);
    };
    link(memory, INDIRECT, &pieces[from..]);
    link(memory, RING, &pieces[..from]);
    if from > 0 {
        let (addr, len, write) = pieces[from - 1];
        let flags = VRING_DESC_F_NEXT | if write { VRING_DESC_F_WRITE } else { 0 };
        put(memory, RING, from - 1, addr, len, flags as u16, from as u16);
    }
    let bytes = 16 * (pieces.len() - from) as u32;
    put(memory, RING, from, INDIRECT, bytes, VRING_DESC_F_INDIRECT as u16, 0);
}

fn parse_at(
    memory: &Snapshot,
    head: u16,
    limits: Limits,
) -> Result<Result<Request, Refused>, BrokenChain> {
    let table = Table::new(memory, GuestAddress(RING), QUEUE)?;
    parse(Chain::walk(memory, &table, head, true)?, limits)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

/// Splits `len` bytes at the given fractions into lengths that may be 0.
fn split(len: usize, cuts: &[u16]) -> Vec<usize> {
    let mut at: Vec<usize> = cuts.iter().map(|cut| len * usize::from(*cut) / 65536).collect();
    at.push(0);
    at.push(len);
    at.sort_unstable();
    at.windows(2).map(|w| w[1] - w[0]).collect()
}

/// Places pieces of those lengths at descending, odd addresses with gaps, some of them across
/// the border of the regions.
fn place(lens: &[usize], write: bool, cursor: &mut u64, pieces: &mut Vec<Piece>) {
    for &len in lens {
        *cursor -= len as u64 + 3;
        // An address that does not exist must not matter for no bytes at all.
        let addr = if len == 0 { u64::MAX - 7 } else { *cursor };
        pieces.push((addr, len as u32, write));
    }
}

fn bytes_of(segments: &Segments) -> Vec<u8> {
    let mut bytes = vec![0; segments.len() as usize];
    segments.read(0, &mut bytes);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 512 }))]

    /// Any layout of a write's 16 + n bytes and status is the same write; of a read, the same
    /// place for the same bytes.
    #[test]
    fn any_layout_is_the_same_request(
        out: bool,
        sector in 0_u64..4096 - 64,
        sectors in 0_usize..64,
        header_cuts in prop::collection::vec(any::<u16>(), 0..6),
        data_cuts in prop::collection::vec(any::<u16>(), 0..40),
        merge_header: bool,
        merge_status: bool,
        indirect in prop::option::of(0_usize..64),
        seed: u64,
    ) {
        let memory = memory();
        let n = sectors * 512;
        let data: Vec<u8> = (0..n).map(|i| (seed >> (i % 57)) as u8 ^ i as u8).collect();
        let kind = if out { VIRTIO_BLK_T_OUT } else { VIRTIO_BLK_T_IN };
        let mut readable = header(kind, sector);
        let mut writable_len = 1;
        if out { readable.extend(&data) } else { writable_len += n }

        // Where the bytes are cut: anywhere, or so that header and status stand alone.
        let mut cuts = if merge_header { vec![] } else { vec![16] };
        let mut all = split(readable.len(), &data_cuts);
        if !out { all = split(readable.len(), &header_cuts) }
        let mut at = 0;
        cuts.extend(all.iter().map(|len| { at += len; at }));
        cuts.push(0);
        cuts.push(readable.len());
        cuts.sort_unstable();
        let read_lens: Vec<usize> = cuts.windows(2).map(|w| w[1] - w[0]).collect();
        let mut write_lens = if out { vec![] } else { split(writable_len - 1, &data_cuts) };
        if merge_status && let Some(last) = write_lens.last_mut() { *last += 1 }
        else { write_lens.push(1) }

        let mut pieces = Vec::new();
        let mut cursor = END - 100;
        place(&read_lens, false, &mut cursor, &mut pieces);
        // Written back to front through the table, to check it byte by byte below.
        let mut offset = 0;
        for &(addr, len, _) in &pieces {
            if len > 0 {
                memory.memory()
                    .write_slice(&readable[offset..offset + len as usize], GuestAddress(addr))
                    .expect("in memory");
                offset += len as usize;
            }
        }
        let first_writable = pieces.len();
        place(&write_lens, true, &mut cursor, &mut pieces);
        lay_out(&memory, &pieces, indirect.map(|at| at % pieces.len()));

        let request = parse_at(&memory, 0, LIMITS).expect("answerable").expect("not refused");
        match request.verb {
            Verb::Write { sector: s, from } => {
                prop_assert!(out);
                prop_assert_eq!(s, sector);
                prop_assert_eq!(bytes_of(&from), data);
            }
            Verb::Read { sector: s, to } => {
                prop_assert!(!out);
                prop_assert_eq!(s, sector);
                prop_assert_eq!(to.len(), n as u64);
                to.write(0, &data);
                request.status.write(0xA5);
                // What the driver sees: the data, then the status.
                let mut seen = Vec::new();
                for &(addr, len, _) in &pieces[first_writable..] {
                    let mut part = vec![0; len as usize];
                    if len > 0 {
                        memory.memory()
                            .read_slice(&mut part, GuestAddress(addr))
                            .expect("in memory");
                    }
                    seen.extend(part);
                }
                prop_assert_eq!(seen.pop(), Some(0xA5));
                prop_assert_eq!(seen, data);
            }
            other => prop_assert!(false, "{other:?}"),
        }
    }

    /// Random descriptors, random header: an answer of some kind, and never a panic. What is
    /// accepted is inside the disk.
    #[test]
    fn nonsense_is_survived(
        descriptors in prop::collection::vec(
            (any::<u16>(), prop_oneof![0_u32..5000, any::<u32>()], 0_u16..8, 0_u16..20), 1..16),
        head in 0_u16..20,
        kind in prop_oneof![0_u32..16, any::<u32>()],
        sector in prop_oneof![0_u64..5000, u64::MAX - 10..=u64::MAX],
        fill: u8,
    ) {
        let memory = memory();
        for (i, &(addr, len, flags, next)) in descriptors.iter().enumerate() {
            let addr = u64::from(addr) * 40;
            put(&memory, RING, i, addr, len, flags, next);
            put(&memory, INDIRECT, i, addr.rotate_left(3), len / 3, flags & 3, next);
            memory.memory().write_slice(&header(kind, sector), GuestAddress(addr.min(END - 16)))
                .expect("in memory");
        }
        memory.memory().write_obj(fill, GuestAddress(0)).expect("in memory");
        if let Ok(Ok(request)) = parse_at(&memory, head, LIMITS) {
            let end = match &request.verb {
                Verb::Read { sector, to: data } | Verb::Write { sector, from: data } => {
                    sector + data.len() / 512
                }
                Verb::Discard(ranges) | Verb::WriteZeroes(ranges) => {
                    ranges.iter().map(|r| r.sector + u64::from(r.sectors)).max().unwrap_or(0)
                }
                Verb::Flush | Verb::GetId { .. } => 0,
            };
            prop_assert!(end <= LIMITS.capacity_sectors);
        }
    }
}

/// Lays out a request of `kind` with readable data at 0x20000 and writable at 0x40000.
fn request(memory: &Snapshot, kind: u32, sector: u64, data: &[u8], writable: u32) {
    let mut readable = header(kind, sector);
    readable.extend(data);
    memory.memory().write_slice(&readable, GuestAddress(0x2_0000)).expect("in memory");
    lay_out(memory, &[(0x2_0000, readable.len() as u32, false), (0x4_0000, writable, true)], None);
}

fn refusal(kind: u32, sector: u64, data: &[u8], writable: u32, limits: Limits) -> Refusal {
    let memory = memory();
    request(&memory, kind, sector, data, writable);
    parse_at(&memory, 0, limits).expect("answerable").expect_err("refused").why
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn lies_about_the_request_are_refused() {
    let (read, write) = (VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT);
    let check = |kind, sector, data: &[u8], writable| refusal(kind, sector, data, writable, LIMITS);
    assert_eq!(check(read, 0, &[], 514), Refusal::Length(513));
    assert_eq!(check(write, 0, &[0; 511], 1), Refusal::Length(511));
    assert_eq!(check(read, 0, &[0; 512], 513), Refusal::Direction(512));
    assert_eq!(check(write, 0, &[], 513), Refusal::Direction(512));
    assert_eq!(check(read, 4096, &[], 513), Refusal::PastEnd { sector: 4096, sectors: 1 });
    let top = u64::MAX;
    assert_eq!(check(write, top, &[0; 512], 1), Refusal::PastEnd { sector: top, sectors: 1 });
    // A sector whose byte offset would wrap to 0.
    let wraps = 1 << 55;
    assert_eq!(check(read, wraps, &[], 513), Refusal::PastEnd { sector: wraps, sectors: 1 });
    assert_eq!(check(77, 0, &[], 1), Refusal::Type(77));
    let read_only = Limits { read_only: true, ..LIMITS };
    assert_eq!(refusal(write, 0, &[0; 512], 1, read_only), Refusal::ReadOnly);
}

#[test]
fn lies_about_ranges_are_refused() {
    let (discard, zeroes) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
    let check = |kind, data: &[u8]| refusal(kind, 0, data, 1, LIMITS);
    assert_eq!(check(discard, &[]), Refusal::Ranges(0));
    assert_eq!(check(discard, &[0; 15]), Refusal::Ranges(15));
    assert_eq!(check(zeroes, &[0; 33 * 16]), Refusal::Ranges(33 * 16));
    assert_eq!(check(discard, &range(0, 8, 1)), Refusal::Flags(1));
    assert_eq!(check(discard, &range(0, 8, 1)).status(), 2);
    assert_eq!(check(zeroes, &range(0, 8, 2)), Refusal::Flags(2));
    let past = Refusal::PastEnd { sector: 4095, sectors: 2 };
    assert_eq!(check(zeroes, &[range(0, 8, 1), range(4095, 2, 1)].concat()), past);
    let long = MAX_RANGE_SECTORS + 1;
    assert_eq!(check(discard, &range(0, long, 0)), Refusal::RangeTooLong(long));
    let none = Limits { can_discard: false, ..LIMITS };
    assert_eq!(refusal(discard, 0, &range(0, 8, 0), 1, none), Refusal::NoDiscard);
}

#[test]
fn ranges_are_read_in_order() {
    let memory = memory();
    let data = [range(7, 8, 1), range(100, 0, 0), range(4088, 8, 0)].concat();
    request(&memory, VIRTIO_BLK_T_WRITE_ZEROES, 0, &data, 1);
    let request = parse_at(&memory, 0, LIMITS).expect("answerable").expect("not refused");
    let Verb::WriteZeroes(ranges) = request.verb else { panic!("{:?}", request.verb) };
    let seen: Vec<_> = ranges.iter().map(|r| (r.sector, r.sectors, r.unmap)).collect();
    assert_eq!(seen, [(7, 8, true), (100, 0, false), (4088, 8, false)]);
}

#[test]
fn a_short_header_is_refused() {
    let memory = memory();
    lay_out(&memory, &[(0x2_0000, 15, false), (0x4_0000, 513, true)], None);
    let refused = parse_at(&memory, 0, LIMITS).expect("answerable").expect_err("refused");
    assert_eq!(refused.why, Refusal::ShortHeader(15));
    // All writable: no header at all.
    lay_out(&memory, &[(0x2_0000, 16, true), (0x4_0000, 513, true)], None);
    let refused = parse_at(&memory, 0, LIMITS).expect("answerable").expect_err("refused");
    assert_eq!(refused.why, Refusal::ShortHeader(0));
}

#[test]
fn data_outside_memory_is_refused_where_the_status_is_known() {
    for (pieces, answerable) in [
        ([(0x2_0000, 16, false), (END, 512, true), (0x4_0000, 1, true)], true),
        ([(0x2_0000, 16, false), (END - 100, 512, true), (0x4_0000, 1, true)], true),
        ([(u64::MAX - 3, 16, false), (0x4_0000, 512, true), (0x4_0000, 1, true)], true),
        ([(0x2_0000, 16, false), (0x4_0000, 512, true), (END, 1, true)], false),
        ([(0x2_0000, 16, false), (0x4_0000, 512, true), (u64::MAX, 1, true)], false),
    ] {
        let memory = memory();
        lay_out(&memory, &pieces, None);
        match parse_at(&memory, 0, LIMITS) {
            Ok(Err(Refused { why: Refusal::Address(_), .. })) => assert!(answerable, "{pieces:?}"),
            Err(BrokenChain::StatusAddress(_)) => assert!(!answerable, "{pieces:?}"),
            other => panic!("{pieces:?}: {other:?}"),
        }
    }
}

#[test]
fn chains_without_an_end_or_a_status_are_broken() {
    let memory = memory();
    let broken = |head| parse_at(&memory, head, LIMITS).expect_err("broken");
    // To itself; in a circle; past the table.
    put(&memory, RING, 0, 0x2_0000, 16, VRING_DESC_F_NEXT as u16, 0);
    assert_eq!(broken(0), BrokenChain::Endless);
    put(&memory, RING, 0, 0x2_0000, 16, VRING_DESC_F_NEXT as u16, 1);
    put(&memory, RING, 1, 0x2_0000, 16, VRING_DESC_F_NEXT as u16, 0);
    assert_eq!(broken(0), BrokenChain::Endless);
    put(&memory, RING, 1, 0x2_0000, 16, VRING_DESC_F_NEXT as u16, 256);
    assert_eq!(broken(0), BrokenChain::Index { index: 256, len: QUEUE });
    assert_eq!(broken(999), BrokenChain::Index { index: 999, len: QUEUE });
    // Nothing writable; nothing at all.
    lay_out(&memory, &[(0x2_0000, 528, false)], None);
    assert_eq!(broken(0), BrokenChain::NoStatus);
    lay_out(&memory, &[(0x2_0000, 0, false), (0x2_0000, 0, true)], None);
    assert_eq!(broken(0), BrokenChain::NoStatus);
    // The wrong order.
    lay_out(&memory, &[(0x4_0000, 1, true), (0x2_0000, 16, false)], None);
    assert_eq!(broken(0), BrokenChain::Order);
    // 2^32 bytes and more, all of them in memory.
    lay_out(&memory, &[(0, u32::MAX, false), (0, 1, true)], None);
    assert_eq!(broken(0), BrokenChain::Overlong);
}

#[test]
fn lies_about_indirect_tables_are_broken() {
    let memory = memory();
    let indirect = VRING_DESC_F_INDIRECT as u16;
    let broken = |allowed| {
        let table = Table::new(&memory, GuestAddress(RING), QUEUE).expect("the ring");
        Chain::walk(&memory, &table, 0, allowed).expect_err("broken")
    };
    link(&memory, INDIRECT, &[(0x2_0000, 16, false), (0x4_0000, 1, true)]);
    put(&memory, RING, 0, INDIRECT, 32, indirect, 0);
    assert_eq!(broken(false), BrokenChain::IndirectNotNegotiated);
    put(&memory, RING, 0, INDIRECT, 33, indirect, 0);
    assert_eq!(broken(true), BrokenChain::IndirectLength(33));
    put(&memory, RING, 0, INDIRECT, 0, indirect, 0);
    assert_eq!(broken(true), BrokenChain::IndirectLength(0));
    put(&memory, RING, 0, INDIRECT, 32, indirect | VRING_DESC_F_NEXT as u16, 1);
    assert_eq!(broken(true), BrokenChain::IndirectNotLast);
    put(&memory, RING, 0, END - 16, 32, indirect, 0);
    assert!(matches!(broken(true), BrokenChain::Table(_)));
    put(&memory, RING, 0, INDIRECT, 16, indirect, 0);
    assert_eq!(broken(true), BrokenChain::Endless);
    put(&memory, INDIRECT, 1, INDIRECT, 32, indirect, 0);
    put(&memory, RING, 0, INDIRECT, 32, indirect, 0);
    assert_eq!(broken(true), BrokenChain::IndirectNested);
}

#[test]
fn get_id_and_flush() {
    let memory = memory();
    request(&memory, VIRTIO_BLK_T_GET_ID, 0, &[], 21);
    let request_ = parse_at(&memory, 0, LIMITS).expect("answerable").expect("not refused");
    assert!(matches!(request_.verb, Verb::GetId { to } if to.len() == 20));
    request(&memory, VIRTIO_BLK_T_FLUSH, 0, &[], 1);
    let request_ = parse_at(&memory, 0, LIMITS).expect("answerable").expect("not refused");
    assert!(matches!(request_.verb, Verb::Flush));
}
