//! The kernel's type information (BTF; kernel: `Documentation/bpf/btf.rst`), as far as it takes
//! to find the offset of a member.
//!
//! In: the bytes of `/sys/kernel/btf/vmlinux`. Out: offsets.
//! Must not know: what they are for.

use anyhow::{Context as _, ensure};

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Bytes of a type before what its kind adds.
const TYPE_BYTES: usize = 12;
/// Bytes of one member of a structure.
const MEMBER_BYTES: usize = 12;
/// Anonymous structures within each other, at most: the kernel's types are finite, but this file
/// is read, not trusted.
const DEEPEST: u32 = 16;

/// Parsed as far as the place of every type.
pub(super) struct Btf<'a> {
    types: Vec<Type<'a>>,
    strings: &'a [u8],
}

struct Type<'a> {
    name: u32,
    kind: u32,
    bit_fields: bool,
    members: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Finds all types.
    pub(super) fn parse(bytes: &'a [u8]) -> anyhow::Result<Btf<'a>> {
        let magic = bytes.get(..2).context("too short")?;
        ensure!(magic == MAGIC.to_le_bytes(), "no type information");
        let header = |at| word(bytes, at).context("the header is cut");
        let length = header(4)?;
        let section = |offset: u32, bytes_: u32| {
            let start = length as usize + offset as usize;
            bytes.get(start..start + bytes_ as usize).context("a section is cut")
        };
        let mut rest = section(header(8)?, header(12)?)?;
        let strings = section(header(16)?, header(20)?)?;
        // Type 0 is void.
        let mut types = vec![Type { name: 0, kind: 0, bit_fields: false, members: &[] }];
        while !rest.is_empty() {
            let field = |at| word(rest, at).context("a type is cut");
            let (name, info) = (field(0)?, field(4)?);
            let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            let extra = match kind {
                STRUCT | UNION | 15 | 19 => count * MEMBER_BYTES,
                3 => 12,
                6 | 13 => count * 8,
                1 | 14 | 17 => 4,
                _ => 0,
            };
            let end = TYPE_BYTES + extra;
            let members = rest.get(TYPE_BYTES..end).context("a type is cut")?;
            types.push(Type { name, kind, bit_fields: info >> 31 == 1, members });
            rest = &rest[end..];
        }
        Ok(Btf { types, strings })
    }

    /// Offset in bytes of a member of a structure, also of one inside an anonymous structure.
    pub(super) fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        self.types
            .iter()
            .filter(|kind| kind.kind == STRUCT && self.is(kind.name, structure))
            .find_map(|kind| self.bits(kind, member, DEEPEST))
            .map(|bits| bits / 8)
    }

    fn bits(&self, within: &Type<'_>, member: &str, depth: u32) -> Option<u32> {
        let depth = depth.checked_sub(1)?;
        within.members.chunks_exact(MEMBER_BYTES).find_map(|one| {
            let (name, kind, offset) = (word(one, 0)?, word(one, 4)?, word(one, 8)?);
            let offset = if within.bit_fields { offset & 0x00ff_ffff } else { offset };
            if name != 0 {
                return self.is(name, member).then_some(offset);
            }
            let inner = self.types.get(kind as usize)?;
            let is_structure = inner.kind == STRUCT || inner.kind == UNION;
            let inside = is_structure.then(|| self.bits(inner, member, depth))??;
            offset.checked_add(inside)
        })
    }

    fn is(&self, name: u32, text: &str) -> bool {
        self.strings
            .get(name as usize..)
            .and_then(|rest| rest.strip_prefix(text.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct s { int a; struct { int b; } ; int c : 3; }`, by hand.
    fn sample() -> Vec<u8> {
        let strings = b"\0s\0a\0b\0c\0int\0";
        let mut types: Vec<u32> = vec![
            // 1: int
            9,
            1 << 24,
            4,
            32, //
            // 2: struct { int b }
            0,
            4 << 24 | 1,
            4,
            5,
            1,
            0, //
            // 3: struct s, with bit fields
            1,
            1 << 31 | 4 << 24 | 3,
            12,
            3,
            1,
            0,
            0,
            2,
            32,
            7,
            1,
            3 << 24 | 64,
        ];
        let types_bytes = types.len() as u32 * 4;
        let mut header = vec![u32::from(MAGIC) | 1 << 16, 24, 0, types_bytes, types_bytes];
        header.push(strings.len() as u32);
        header.append(&mut types);
        let mut bytes: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
        bytes.extend_from_slice(strings);
        bytes
    }

    #[test]
    fn offsets_of_members() {
        let bytes = sample();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.offset("s", "a"), Some(0));
        assert_eq!(btf.offset("s", "b"), Some(4));
        assert_eq!(btf.offset("s", "c"), Some(8));
        assert_eq!(btf.offset("s", "d"), None);
        assert_eq!(btf.offset("t", "a"), None);
        let filled = super::super::offsets::fill_in("x={s.b}(%di) y={s.a-s.c}(%si)", &btf);
        assert_eq!(filled.unwrap(), "x=+4(%di) y=-8(%si)");
    }

    #[test]
    fn what_is_cut_is_refused() {
        let bytes = sample();
        for end in 0..bytes.len() {
            if let Ok(btf) = Btf::parse(&bytes[..end]) {
                btf.offset("s", "c");
            }
        }
        assert!(Btf::parse(b"not type information, but long enough to be").is_err());
    }
}
