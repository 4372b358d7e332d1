//! What the bytes of the watched file are, as its ext4 said when it was read last.
//!
//! In: the file. Out: the class of a byte.
//! Must not know: who stores.
//!
//! The bytes of a store are not seen, so the layout cannot follow them; it is read again, from the
//! memory itself, when something else than file data was stored to.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ext4_layout::{Class, Home, Kind, Layout, LayoutMap, ReadAt, ReadError};
use pipeline::event::{ClassRecord, LayoutChange};

use crate::storage::SECTOR_BYTES;

/// The file and its map.
pub(super) struct Classes<'a> {
    file: &'a File,
    layout: Option<Layout>,
    map: Arc<LayoutMap>,
    stale: bool,
}

struct Reader<'a>(&'a File);

impl ReadAt for Reader<'_> {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), ReadError> {
        let length = buf.len();
        let read = self.0.read_exact_at(buf, offset);
        read.map_err(|source| ReadError { offset, length, source: source.into() })
    }
}

impl<'a> Classes<'a> {
    /// Nothing is known until [`Classes::read`].
    pub(super) fn new(file: &'a File) -> Classes<'a> {
        Classes { file, layout: None, map: Layout::blank(0).map(), stale: false }
    }

    /// Reads the layout; with the reason if there is no ext4 to be read.
    pub(super) fn read(&mut self) -> (LayoutChange, Option<String>) {
        let bytes = self.file.metadata().map_or(0, |metadata| metadata.len());
        let first = self.layout.is_none();
        let layout = self.layout.get_or_insert_with(|| Layout::blank(bytes));
        let opened = layout.reopen(&mut Reader(self.file), bytes);
        self.map = layout.map();
        self.stale = false;
        match opened {
            Ok(()) if first => (LayoutChange::Opened, None),
            Ok(()) => (LayoutChange::Reopened, None),
            Err(error) => (LayoutChange::Lost, Some(error.to_string())),
        }
    }

    /// The class of the sector that a store goes to.
    pub(super) fn of(&mut self, offset: u64) -> ClassRecord {
        let mut class = Class::Home(Home::Unknown);
        self.map.classify(offset / SECTOR_BYTES, 1, &mut |span| class = span.class);
        self.stale |= !matches!(class.kind(), Kind::FileData | Kind::Free);
        class.into()
    }

    /// Whether the layout may have changed since it was read.
    pub(super) fn stale(&self) -> bool {
        self.stale
    }
}
