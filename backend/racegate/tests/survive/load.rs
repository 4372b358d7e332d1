//! A load whose every completion is checked: that it was outstanding, that it was carried out,
//! that its data is right; and, at the end, what is on the disk.
//!
//! In: a [`Vmm`] whose rings may stand still at any time. Out: counts; a panic that says what was
//! lost, doubled or corrupt.
//! Must not know: who dies, and when.
//!
//! A block has one request at a time, so its content is known: that of the last write that was
//! completed, or, for a write that nobody heard of any more, of that one or the one before.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use agent::draws::Draws;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};

use crate::vmm::{DATA_BYTES, QUEUES, SLOTS, Vmm};

const BLOCK_BYTES: u64 = 4096;
const SECTORS_PER_BLOCK: u64 = 8;
pub(crate) const BLOCKS: u64 = 2048;
pub(crate) const IMAGE_BYTES: u64 = BLOCKS * BLOCK_BYTES;
/// Most blocks of one request.
const MOST_BLOCKS: u64 = DATA_BYTES / BLOCK_BYTES;
/// How long a request may take once the daemon serves.
const PATIENCE: Duration = Duration::from_secs(30);

/// Half of the disk is held, delayed or failed. Writes to the last 64 blocks always fail.
pub(crate) const RULES: &str = r#"
[[rule]]
name = "hold"
match = { op = ["read", "write"], sector = "8192..10240" }
action = { hold = { until = "control", at_most = "250ms" } }

[[rule]]
name = "delay"
match = { op = ["read", "write", "write_zeroes", "flush"], sector = "10240..14336" }
action = { delay = { uniform = ["1ms", "60ms"] } }

[[rule]]
name = "fail"
match = { op = ["write", "write_zeroes"], sector = "15872.." }
action = { fail = "EIO" }
"#;
const FAILING_FROM: u64 = 15872 / SECTORS_PER_BLOCK;

/// What a block holds: the number of the write that filled it, 0 for zeroes.
type Content = u64;

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    content: Content,
    /// A write that was under way when its machine died: it may be there, or not.
    maybe: Option<Content>,
    busy: bool,
}

#[derive(Clone, Copy, Debug)]
enum Verb {
    Read,
    Write,
    Zero,
    Flush,
}

#[derive(Clone, Copy, Debug)]
struct Outstanding {
    verb: Verb,
    first: u64,
    blocks: u64,
    content: Content,
    since: Instant,
}

/// The load, and what it knows.
pub(crate) struct Load {
    draws: Draws,
    blocks: Vec<Block>,
    slots: Vec<Vec<Option<Outstanding>>>,
    next_content: Content,
    pub(crate) completed: u64,
    pub(crate) outstanding: u64,
}

impl Load {
    pub(crate) fn new(seed: u64) -> Load {
        Load {
            draws: Draws::new(seed, "load"),
            blocks: vec![Block::default(); BLOCKS as usize],
            slots: vec![vec![None; usize::from(SLOTS)]; QUEUES],
            next_content: 1,
            completed: 0,
            outstanding: 0,
        }
    }

    /// Fills up the free slots of every queue and takes what was completed, until `until`; waits
    /// where there is nothing to do.
    pub(crate) fn run(&mut self, vmm: &mut Vmm, until: Instant) {
        while Instant::now() < until {
            self.issue(vmm);
            if !self.reap(vmm) {
                wait(vmm, until);
            }
        }
    }

    /// Takes what is outstanding until nothing is.
    pub(crate) fn drain(&mut self, vmm: &mut Vmm) {
        let deadline = Instant::now() + PATIENCE;
        while self.outstanding > 0 {
            if !self.reap(vmm) {
                wait(vmm, deadline);
            }
            if Instant::now() >= deadline {
                let stuck = self.slots.iter().flatten().flatten().min_by_key(|it| it.since);
                panic!("lost: {} requests never completed, such as {stuck:?}", self.outstanding);
            }
        }
    }

    fn issue(&mut self, vmm: &mut Vmm) {
        for queue in 0..QUEUES {
            let mut any = false;
            for slot in 0..SLOTS {
                if self.slots[queue][usize::from(slot)].is_none() {
                    any |= self.issue_one(vmm, queue, slot);
                }
            }
            if any {
                vmm.kick(queue);
            }
        }
    }

    fn issue_one(&mut self, vmm: &mut Vmm, queue: usize, slot: u16) -> bool {
        let first = self.draws.between(0, BLOCKS - MOST_BLOCKS);
        let blocks = self.draws.between(1, MOST_BLOCKS);
        // Nothing that is failed in part.
        let crosses = first < FAILING_FROM && first + blocks > FAILING_FROM;
        let range = first as usize..(first + blocks) as usize;
        if crosses || self.blocks[range.clone()].iter().any(|block| block.busy) {
            return false;
        }
        let verb = match self.draws.between(0, 99) {
            0..45 => Verb::Write,
            45..90 => Verb::Read,
            90..95 => Verb::Zero,
            _ => Verb::Flush,
        };
        // One doubt at a time.
        let doubt = self.blocks[range].iter().any(|block| block.maybe.is_some());
        let verb = if doubt { Verb::Read } else { verb };
        let addr = Vmm::slot_addr(queue, slot);
        let header =
            |kind: u32, sector: u64| [u64::from(kind).to_le_bytes(), sector.to_le_bytes()].concat();
        let data = addr + 0x1000;
        let bytes = blocks * BLOCK_BYTES;
        vmm.put(addr + 0x20, &[0xFF]);
        let (blocks, content) = match verb {
            Verb::Read => {
                vmm.put(addr, &header(VIRTIO_BLK_T_IN, first * SECTORS_PER_BLOCK));
                // What no block holds.
                vmm.put(data, &vec![0xEE; bytes as usize]);
                vmm.offer(queue, slot, bytes as u32, true);
                (blocks, 0)
            }
            Verb::Write => {
                let content = self.next_content;
                self.next_content += 1;
                vmm.put(addr, &header(VIRTIO_BLK_T_OUT, first * SECTORS_PER_BLOCK));
                for block in 0..blocks {
                    let filled = fill(content, first + block);
                    vmm.put(data + block * BLOCK_BYTES, &filled);
                }
                vmm.offer(queue, slot, bytes as u32, false);
                (blocks, content)
            }
            Verb::Zero => {
                vmm.put(addr, &header(VIRTIO_BLK_T_WRITE_ZEROES, 0));
                let mut range = (first * SECTORS_PER_BLOCK).to_le_bytes().to_vec();
                range.extend(((blocks * SECTORS_PER_BLOCK) as u32).to_le_bytes());
                range.extend(0_u32.to_le_bytes());
                vmm.put(data, &range);
                vmm.offer(queue, slot, 16, false);
                (blocks, 0)
            }
            Verb::Flush => {
                vmm.put(addr, &header(VIRTIO_BLK_T_FLUSH, 0));
                vmm.offer(queue, slot, 0, false);
                (0, 0)
            }
        };
        for block in &mut self.blocks[first as usize..(first + blocks) as usize] {
            block.busy = true;
        }
        let since = Instant::now();
        let request = Outstanding { verb, first, blocks, content, since };
        self.slots[queue][usize::from(slot)] = Some(request);
        self.outstanding += 1;
        true
    }

    /// Takes what was completed: true if anything was.
    pub(crate) fn reap(&mut self, vmm: &mut Vmm) -> bool {
        let mut any = false;
        for queue in 0..QUEUES {
            let _ = rustix::io::read(&vmm.rings[queue].call, &mut [0_u8; 8]);
            let there = vmm.used_in_memory(queue).wrapping_sub(vmm.rings[queue].used_idx);
            let out = self.slots[queue].iter().flatten().count();
            assert!(usize::from(there) <= out, "doubled: {there} completions of {out} requests");
            while let Some((head, len)) = vmm.next_used(queue) {
                any = true;
                self.complete(vmm, queue, head, len);
            }
        }
        any
    }

    fn complete(&mut self, vmm: &Vmm, queue: usize, head: u32, len: u32) {
        let slot = (head / 3) as usize;
        let known = head.is_multiple_of(3) && slot < usize::from(SLOTS);
        let request = known.then(|| self.slots[queue][slot].take()).flatten();
        let Some(Outstanding { verb, first, blocks, content, .. }) = request else {
            panic!("doubled: queue {queue}: head {head} is not outstanding");
        };
        let addr = Vmm::slot_addr(queue, slot as u16);
        let status = vmm.get(addr + 0x20, 1)[0];
        let fails = first >= FAILING_FROM && matches!(verb, Verb::Write | Verb::Zero);
        let range = first as usize..(first + blocks) as usize;
        assert_eq!(status, u8::from(fails), "{verb:?} of block {first}+{blocks}: status {status}");
        let written = if matches!(verb, Verb::Read) { (blocks * BLOCK_BYTES) as u32 } else { 0 };
        assert_eq!(len, written + 1, "{verb:?} of block {first}+{blocks}: used length");
        for (index, block) in range.clone().zip(&mut self.blocks[range]) {
            match verb {
                Verb::Read => {
                    let at = addr + 0x1000 + (index as u64 - first) * BLOCK_BYTES;
                    let bytes = vmm.get(at, BLOCK_BYTES as usize);
                    if let Err(corrupt) = check(block, index as u64, &bytes) {
                        panic!("{corrupt}");
                    }
                }
                Verb::Write | Verb::Zero if !fails => {
                    (block.content, block.maybe) = (content, None);
                }
                Verb::Write | Verb::Zero | Verb::Flush => {}
            }
            block.busy = false;
        }
        self.completed += 1;
        self.outstanding -= 1;
    }

    /// The machine is dead: nobody will hear of what was outstanding. Nothing may be under way
    /// any more when this is called, but for what the next connection waits for.
    pub(crate) fn forget(&mut self) {
        for request in self.slots.iter_mut().flatten().filter_map(Option::take) {
            let range = request.first as usize..(request.first + request.blocks) as usize;
            for block in &mut self.blocks[range] {
                block.busy = false;
                if matches!(request.verb, Verb::Write | Verb::Zero) {
                    block.maybe = Some(request.content);
                }
            }
        }
        self.outstanding = 0;
    }

    /// Compares the image with what is known; gives how many blocks were ever written, or what
    /// is corrupt.
    pub(crate) fn check_image(&mut self, path: &Path) -> Result<usize, String> {
        let image = File::open(path).expect("the image");
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        for (index, block) in self.blocks.iter_mut().enumerate() {
            assert!(!block.busy);
            image.read_exact_at(&mut bytes, index as u64 * BLOCK_BYTES).expect("a block");
            check(block, index as u64, &bytes)?;
        }
        Ok(self.blocks.iter().filter(|block| block.content != 0).count())
    }

    /// A canary: the image is not what it would be if one more write had been made.
    pub(crate) fn forge(&mut self) {
        let block = self.blocks.iter_mut().find(|block| block.maybe.is_none());
        block.expect("a block").content = self.next_content;
    }
}

fn fill(content: Content, block: u64) -> Vec<u8> {
    if content == 0 {
        return vec![0; BLOCK_BYTES as usize];
    }
    [content.to_le_bytes(), block.to_le_bytes()].concat().repeat(BLOCK_BYTES as usize / 16)
}

/// Checks the content of a block; one that was in doubt is not any more.
fn check(block: &mut Block, index: u64, bytes: &[u8]) -> Result<(), String> {
    if bytes == fill(block.content, index) {
        block.maybe = None;
        return Ok(());
    }
    if let Some(maybe) = block.maybe.take()
        && bytes == fill(maybe, index)
    {
        block.content = maybe;
        return Ok(());
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    Err(format!(
        "corrupt: block {index} holds write {} of block {}, not {block:?}",
        word(0),
        word(8)
    ))
}

fn wait(vmm: &Vmm, until: Instant) {
    let left = until.saturating_duration_since(Instant::now()).min(Duration::from_millis(20));
    let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
    let mut fds: Vec<PollFd<'_>> = vmm
        .rings
        .iter()
        .map(|ring| PollFd::from_borrowed_fd(ring.call.as_fd(), PollFlags::IN))
        .collect();
    let _ = poll(&mut fds, Some(&limit));
}
