//! A device in memory, and a layout that follows what is written to it as the backend does.

use ext4_layout::{Change, Layout, LayoutMap, Span};

/// What a guest writes to, with the layout that follows.
pub(crate) struct Device {
    pub(crate) bytes: Vec<u8>,
    pub(crate) layout: Layout,
    pub(crate) reopened: usize,
}

impl Device {
    pub(crate) fn new(bytes: Vec<u8>) -> Device {
        let layout = Layout::open(&mut bytes.as_slice(), bytes.len() as u64).unwrap();
        Device { bytes, layout, reopened: 0 }
    }

    /// A write: it arrives, is classified, is stored.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let sector = offset as u64 / 512;
        let wanted = self.layout.map().wants_bytes(sector, bytes.len() as u64 / 512);
        if wanted {
            let change = self.layout.write_arrived(sector, bytes);
            assert_ne!(change, Change::Reopen, "nothing is stored yet");
        }
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        if wanted {
            let change = self.layout.write_done(sector, bytes);
            self.follow(change);
        }
    }

    pub(crate) fn zero(&mut self, offset: usize, len: usize) {
        self.bytes[offset..offset + len].fill(0);
        let change = self.layout.zeroed(offset as u64 / 512, len as u64 / 512);
        self.follow(change);
    }

    fn follow(&mut self, change: Change) {
        if change == Change::Reopen {
            self.reopened += 1;
            let len = self.bytes.len() as u64;
            // A device without ext4 gives an error and a blank layout.
            drop(self.layout.reopen(&mut self.bytes.as_slice(), len));
        }
    }

    /// The layout that followed is the one that opening the device gives.
    pub(crate) fn check(&self, when: &str) {
        let fresh = Layout::open(&mut self.bytes.as_slice(), self.bytes.len() as u64).unwrap();
        let (followed, fresh) = (spans(&self.layout.map()), spans(&fresh.map()));
        let differing = followed.iter().zip(&fresh).find(|(followed, fresh)| followed != fresh);
        assert!(
            followed == fresh,
            "{when}: followed and opened differ, first at {differing:?} (`racegate inspect` shows \
             the image's map)"
        );
    }
}

/// Every span of a device; checks that they cover it once and are maximal.
pub(crate) fn spans(map: &LayoutMap) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut next = 0;
    map.classify(0, map.device_sectors(), &mut |span| {
        assert_eq!(span.first_sector, next, "a gap or an overlap");
        assert!(span.sectors > 0);
        assert!(spans.last().is_none_or(|last| last.class != span.class), "not merged");
        next += span.sectors;
        spans.push(span);
    });
    assert_eq!(next, map.device_sectors());
    spans
}
