//! The open files of a trial, by name.
//!
//! In: names. Out: files and mappings that several threads may use at once.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::background::Background;
use crate::mapping::Mapping;

/// One open file; closed and unmapped when the last user lets go of it.
pub(super) struct OpenFile {
    /// The mapping, once there is one. Dropped before the file is closed.
    pub(super) mapping: OnceLock<Mapping>,
    /// The write that is under way.
    pub(super) background: Mutex<Option<Background>>,
    /// The file.
    pub(super) file: File,
}

/// All of them.
#[derive(Default)]
pub(super) struct Files {
    by_name: Mutex<BTreeMap<String, Arc<OpenFile>>>,
}

impl Files {
    /// Enters a file; one of the same name is let go.
    pub(super) fn insert(&self, name: &str, file: File) {
        let open =
            Arc::new(OpenFile { mapping: OnceLock::new(), background: Mutex::default(), file });
        self.table(|table| table.insert(name.to_owned(), open));
    }

    /// The file of that name.
    pub(super) fn get(&self, name: &str) -> io::Result<Arc<OpenFile>> {
        self.table(|table| table.get(name).cloned()).ok_or_else(|| not_open(name))
    }

    /// Lets go of a file.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        self.table(|table| table.remove(name)).map(drop).ok_or_else(|| not_open(name))
    }

    /// Lets go of all files.
    pub(super) fn clear(&self) {
        drop(self.table(std::mem::take));
    }

    fn table<T>(&self, f: impl FnOnce(&mut BTreeMap<String, Arc<OpenFile>>) -> T) -> T {
        f(&mut self.by_name.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn not_open(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("the file \"{name}\" is not open"))
}
