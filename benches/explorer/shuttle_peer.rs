//! The threads of the toy as shuttle takes them: real closures over shuttle's own locks and
//! atomics, with the fix.
//!
//! Writeback is left out: it waits for folios that it then finds clean, which shuttle, without
//! states to compare, would unroll.

use std::sync::atomic::{AtomicU64, Ordering as StdOrdering};
use std::sync::{Arc as StdArc, PoisonError};

use shuttle::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use shuttle::sync::{Arc, Mutex, MutexGuard};
use shuttle::thread;

const NONE: u8 = 0;
const HOLE: u8 = 1;
const DELAYED: u8 = 2;
const UNWRITTEN: u8 = 3;

#[derive(Default)]
struct Block {
    status: AtomicU8,
    dirty: AtomicBool,
    folio: Mutex<()>,
}

struct File {
    blocks: Vec<Block>,
    i_data_sem: Mutex<()>,
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn store(file: &File, block: usize) {
    let block = &file.blocks[block];
    let folio = lock(&block.folio);
    if block.status.load(Ordering::SeqCst) < DELAYED {
        let sem = lock(&file.i_data_sem);
        if block.status.load(Ordering::SeqCst) < DELAYED {
            block.status.store(DELAYED, Ordering::SeqCst);
        }
        drop(sem);
    }
    block.dirty.store(true, Ordering::SeqCst);
    drop(folio);
}

fn fallocate(file: &File) {
    for block in &file.blocks {
        match block.status.load(Ordering::SeqCst) {
            NONE => block.status.store(HOLE, Ordering::SeqCst),
            UNWRITTEN => continue,
            _ => {}
        }
        let sem = lock(&file.i_data_sem);
        block.status.store(UNWRITTEN, Ordering::SeqCst);
        drop(sem);
    }
}

/// One execution: all stores and fallocate; at the end every block is allocated.
fn execute(stores: u8) {
    let blocks = (0..stores).map(|_| Block::default()).collect();
    let file = Arc::new(File { blocks, i_data_sem: Mutex::new(()) });
    let threads: Vec<_> = (0..usize::from(stores))
        .map(|block| {
            let file = Arc::clone(&file);
            thread::spawn(move || store(&file, block))
        })
        .collect();
    fallocate(&file);
    for thread in threads {
        thread.join().expect("a store does not panic");
    }
    for block in &file.blocks {
        assert_eq!(block.status.load(Ordering::SeqCst), UNWRITTEN);
    }
}

fn counted(stores: u8, check: impl FnOnce(Box<dyn Fn() + Send + Sync>)) -> u64 {
    let executions = StdArc::new(AtomicU64::new(0));
    let counter = StdArc::clone(&executions);
    check(Box::new(move || {
        counter.fetch_add(1, StdOrdering::Relaxed);
        execute(stores);
    }));
    executions.load(StdOrdering::Relaxed)
}

/// Runs so many random schedules; their number.
pub(crate) fn random(stores: u8, schedules: usize) -> u64 {
    counted(stores, |test| shuttle::check_random(test, schedules))
}

/// Runs every schedule; their number.
pub(crate) fn exhaustive(stores: u8) -> u64 {
    counted(stores, |test| shuttle::check_dfs(test, None))
}
