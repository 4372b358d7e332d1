//! The map from sectors to classes: an immutable snapshot.

use crate::class::{Class, Home, Kind, Span};

/// What every sector of a device is; immutable, shared between threads, read without locks.
#[derive(Clone, Debug)]
pub struct LayoutMap {
    device_sectors: u64,
}

impl LayoutMap {
    pub(crate) fn blank(device_bytes: u64) -> LayoutMap {
        LayoutMap {
            device_sectors: device_bytes / 512,
        }
    }

    /// Sectors of 512 bytes that the device has.
    pub fn device_sectors(&self) -> u64 {
        self.device_sectors
    }

    /// Calls `out` for the maximal runs of one class in the range, in order; they cover the range
    /// exactly. Allocates nothing.
    pub fn classify(&self, sector: u64, sectors: u64, out: &mut impl FnMut(Span)) {
        if sectors > 0 {
            out(Span {
                first_sector: sector,
                sectors,
                class: Class::Home(Home::Unknown),
            });
        }
    }

    /// The kinds in the range, as an OR of [`Kind::bit`].
    pub fn kinds(&self, sector: u64, sectors: u64) -> u32 {
        let mut kinds = 0;
        self.classify(sector, sectors, &mut |span| {
            kinds |= span.class.kind().bit()
        });
        kinds
    }

    /// Whether a write there can change the map, so that [`crate::Layout`] must see its bytes.
    pub fn wants_bytes(&self, sector: u64, sectors: u64) -> bool {
        self.kinds(sector, sectors) & Kind::Unknown.bit() != 0
    }
}
