//! Operations one after the other: for the differential test and the shadow.
//!
//! In: a kernel, sizes, operations. Out: what the kernel would show after each.
//! Device requests are answered at once, writeback ends and is converted before the next
//! operation starts, and blocks freed by an earlier operation are there to be used again (the
//! kernel commits and tries again when it needs them).

use crate::exec::Engine;
use crate::geometry::{Geometry, PBLKS_MAX, Set, bit, each};
use crate::invariant::Finding;
use crate::kernel::{Flag, Kernel};
use crate::ops::Op;
use crate::state::{ANY, Content, Disk, Errno, STALE, State, Status, Thread};

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Its failure, or [`Errno::Ok`].
    pub errno: Errno,
    /// The first rule broken on the way.
    pub broken: Option<Finding>,
}

/// One entry of extent status: a maximal run of equal cells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EsExtent {
    /// First block.
    pub lblk: u8,
    /// Blocks.
    pub len: u8,
    /// Type.
    pub status: Status,
    /// Whether a mapped entry carries D too (U+D).
    pub with_delayed: bool,
    /// Physical block (the model's numbering) if mapped.
    pub pblk: Option<u8>,
}

/// One extent on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First block.
    pub lblk: u8,
    /// Blocks.
    pub len: u8,
    /// Physical block, in the model's numbering.
    pub pblk: u8,
    /// In an unwritten extent.
    pub unwritten: bool,
}

/// A file on which operations run one by one.
#[derive(Clone, Debug)]
pub struct Driver {
    kernel: Kernel,
    geo: Geometry,
    state: State,
}

impl Driver {
    /// An empty file.
    pub fn new(kernel: Kernel, geo: Geometry) -> Driver {
        Driver { kernel, geo, state: State::new(&geo) }
    }

    /// Runs one operation to its end.
    pub fn run_op(&mut self, op: Op) -> Outcome {
        run_op(&self.kernel, &self.geo, &mut self.state, op)
    }

    /// The state, to look at or to correct where the kernel was free to choose.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// The state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// `i_size` in bytes.
    pub fn size(&self) -> u32 {
        self.state.inode.i_size
    }

    /// `i_reserved_data_blocks`, in clusters.
    pub fn reserved(&self) -> i8 {
        self.state.inode.reserved
    }

    /// `s_dirtyclusters_counter`, what `delayed_allocation_blocks` shows (in clusters).
    pub fn dirty_clusters(&self) -> i8 {
        self.state.fs.dirty
    }

    /// Clusters accounted to the inode (`i_blocks`, of data).
    pub fn owned_clusters(&self) -> i8 {
        self.state.inode.i_blocks
    }

    /// What a user reads from a block; `None` if that is not decided.
    pub fn content(&self, lblk: u8) -> Option<Content> {
        Some(self.state.want.get(lblk)).filter(|&content| content < ANY)
    }

    /// Tells the engine which physical blocks the kernel has chosen, by any numbering: `chosen`
    /// has one number for each mapped block, in order. Only which blocks are neighbours, and how
    /// they lie in clusters, is taken over. Does nothing if the model's blocks cannot show that.
    pub fn place(&mut self, chosen: &[u64]) {
        let blocks: Vec<u8> = each(self.state.disk.mapped).collect();
        let ratio = u64::from(self.geo.cluster_blocks());
        let mut clusters: Vec<u64> = chosen.iter().map(|pblk| pblk / ratio).collect();
        clusters.sort_unstable();
        clusters.dedup();
        // Cluster 0 is never used; neighbours stay neighbours, others get a gap between them.
        let mut labels = Vec::with_capacity(clusters.len());
        let mut label = 0;
        for (index, &cluster) in clusters.iter().enumerate() {
            let follows = index > 0 && clusters[index - 1] + 1 == cluster;
            label += if follows || index == 0 { 1 } else { 2 };
            labels.push(label);
        }
        if blocks.len() != chosen.len() || label > self.geo.clusters {
            return;
        }
        let place = |pblk: u64| {
            let index = clusters.partition_point(|&cluster| cluster < pblk / ratio);
            labels[index] * ratio as u8 + (pblk % ratio) as u8
        };
        let moves: Vec<(u8, u8, u8)> = blocks
            .iter()
            .zip(chosen)
            .map(|(&lblk, &pblk)| (lblk, self.state.disk.pblk[usize::from(lblk)], place(pblk)))
            .collect();
        let free = Disk::new(&self.geo).free;
        let old = self.state.disk;
        self.state.disk.free = free;
        self.state.disk.commit();
        for pblk in 0..PBLKS_MAX {
            self.state.disk.set_media(pblk, STALE);
        }
        for (lblk, from, to) in moves {
            self.state.disk.pblk[usize::from(lblk)] = to;
            self.state.disk.free &= !Disk::cluster_bits(&self.geo, to);
            self.state.disk.set_media(to, old.media(from));
            if self.state.es.mapped() & bit(lblk) != 0 {
                self.state.es.pblk[usize::from(lblk)] = to;
            }
        }
    }

    /// Tells the engine whether the extents are in a leaf: when the kernel moves them back into
    /// the inode is its own choice.
    pub fn tell_leaf(&mut self, leaf: bool) {
        if self.geo.leaf_blocks == 0 && (self.state.disk.leaves != 0) != leaf {
            self.state.disk.leaves = if leaf { Disk::KNOWN_LEAF } else { 0 };
        }
    }

    /// Whether the extents are in a leaf.
    pub fn leaf(&self) -> bool {
        self.geo.leaf_blocks == 0 && self.state.disk.leaves != 0
    }

    /// Blocks whose buffers wait for writeback to map them.
    pub fn unwritten_back(&self) -> Set {
        self.state.cache.buf_dirty & (self.state.cache.delay | self.state.cache.unwritten)
    }

    /// Tells the engine whether a block's extent is cached in extent status: what the kernel has
    /// cached there while extents were in a leaf is its own choice, as far as it is true. False,
    /// and nothing done, if the block is delayed: that is never a matter of caching.
    pub fn tell_cached(&mut self, lblk: u8, cached: bool) -> bool {
        let (es, disk, block) = (&mut self.state.es, &self.state.disk, bit(lblk));
        if es.delayed & block != 0 {
            return false;
        }
        if !cached {
            es.remove(block);
        } else if disk.mapped & block != 0 {
            let pblk = disk.pblk[usize::from(lblk)];
            es.insert_mapped(lblk, lblk + 1, pblk, disk.unwritten & block != 0, false);
        } else {
            es.insert_hole(block);
        }
        true
    }

    /// Tells the engine that an unwritten block shares an extent with a delayed one, which made its
    /// entry U+D: what is one extent follows from where blocks are, which U+D hides. False, and
    /// nothing done, if that cannot be.
    pub fn tell_joined(&mut self, lblk: u8) -> bool {
        let (es, block) = (&mut self.state.es, bit(lblk));
        let run = |mut at: u8, by: i8| {
            while let Some(next) = at.checked_add_signed(by).filter(|&next| next < self.geo.blocks)
            {
                if es.unwritten & bit(next) == 0 {
                    break;
                }
                if es.delayed & bit(next) != 0 {
                    return true;
                }
                at = next;
            }
            false
        };
        let joined = !self.kernel.has(Flag::ExclusiveTypes)
            && es.unwritten & block != 0
            && (run(lblk, 1) || run(lblk, -1));
        if joined {
            es.delayed |= block;
        }
        joined
    }

    /// Extent status, as `EXT4_IOC_GET_ES_CACHE` shows it.
    pub fn es_extents(&self) -> Vec<EsExtent> {
        let es = &self.state.es;
        let mut extents = Vec::new();
        let mut lblk = 0;
        while lblk < self.geo.blocks {
            let end = es.entry_end(lblk, self.geo.blocks);
            let status = es.status(lblk);
            let mapped = matches!(status, Status::Written | Status::Unwritten);
            if status != Status::None {
                extents.push(EsExtent {
                    lblk,
                    len: end - lblk,
                    status,
                    with_delayed: mapped && es.delayed & bit(lblk) != 0,
                    pblk: mapped.then(|| es.pblk[usize::from(lblk)]),
                });
            }
            lblk = end;
        }
        extents
    }

    /// The extent tree.
    pub fn extents(&self) -> Vec<Extent> {
        let disk = &self.state.disk;
        let mut extents = Vec::new();
        let mut lblk = 0;
        while lblk < self.geo.blocks {
            if disk.mapped & bit(lblk) == 0 {
                lblk += 1;
                continue;
            }
            let end = disk.extent_end(lblk, self.geo.blocks);
            extents.push(Extent {
                lblk,
                len: end - lblk,
                pblk: disk.pblk[usize::from(lblk)],
                unwritten: disk.unwritten & bit(lblk) != 0,
            });
            lblk = end;
        }
        extents
    }
}

/// Runs one operation of one thread to its end, with the device answering at once and every write
/// converted.
pub fn run_op(kernel: &Kernel, geo: &Geometry, state: &mut State, op: Op) -> Outcome {
    let engine = Engine::unanalysed(*kernel, *geo, 1, &[], |_, asm| op.emit_body(asm));
    state.threads = [Thread::default(); crate::state::SLOTS];
    state.disk.commit();
    engine.settle_all(state);
    let mut broken = None;
    let mut errno = Errno::Ok;
    loop {
        let mut next = None;
        // The first step listed: the user's, then the worker's, then the device's.
        engine.enabled(state, |thread, choice| {
            next.get_or_insert((thread, choice));
        });
        let Some((thread, choice)) = next else {
            break;
        };
        engine.apply(state, thread, choice);
        errno = state.threads[0].errno;
        broken = broken.or_else(|| engine.check(state).err());
        state.broken = crate::state::Broken::default();
    }
    Outcome { errno, broken }
}
