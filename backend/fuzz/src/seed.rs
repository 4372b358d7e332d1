//! Writes seeds: what an input reads back, in the same order.
//!
//! In: numbers and bytes. Out: an input.

/// An input under construction; numbers are little-endian, as `arbitrary` reads them.
#[derive(Default)]
pub(crate) struct Seed(Vec<u8>);

impl Seed {
    pub(crate) fn u8(mut self, value: u8) -> Seed {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(mut self, value: u16) -> Seed {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Seed {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Seed {
        self.0.extend(bytes);
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}
