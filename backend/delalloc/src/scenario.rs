//! Scenarios: a small file, a few threads, what may go wrong.
//!
//! In: TOML (`scenarios/*.toml`, compiled in, or a user's own). Out: [`Scenario`], checked: every
//! operation lies within the file, every number within the model's limits.
//! Must not know: kernel versions.

use serde::Deserialize;

use crate::exec::Fault;
use crate::geometry::{BLOCKS_MAX, Geometry, PBLKS_MAX, bit, each, span};
use crate::ops::{Op, Range};
use crate::state::{Content, SLOTS, State};

/// What happens: an initial file and the threads that work on it.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// Short name, in kebab case.
    pub name: String,
    /// One line: what races with what.
    pub about: String,
    /// The file system.
    #[serde(default)]
    pub fs: FsSpec,
    /// The file before the first step.
    #[serde(default)]
    pub file: FileSpec,
    /// The threads: each a list of operations.
    pub thread: Vec<ThreadSpec>,
    /// What may fail, by name.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// How many such failures one run may have.
    #[serde(default)]
    pub faults_max: u8,
    /// How many entries the shrinker may take.
    #[serde(default)]
    pub shrinks_max: u8,
}

/// Sizes and mount options.
#[allow(clippy::struct_excessive_bools, reason = "independent switches")]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FsSpec {
    /// Bytes in a block, at most those of a page (4096).
    pub block_bytes: u32,
    /// Blocks in a cluster (bigalloc), 1 without.
    pub cluster_blocks: u8,
    /// Clusters that the file can have.
    pub clusters: u8,
    /// Blocks described by one extent leaf; 0: extents in the inode.
    pub leaf_blocks: u8,
    /// Map blocks by indirect blocks.
    pub indirect: bool,
    /// Writeback allocates unwritten blocks.
    pub dioread_nolock: bool,
    /// Semaphores are granted first come, first served.
    pub fair: bool,
    /// The block bitmap is in memory already.
    pub bitmap_cached: bool,
    /// The running transaction has changed the bitmap, so that a commit writes its copy.
    pub bitmap_in_transaction: bool,
}

impl Default for FsSpec {
    fn default() -> FsSpec {
        FsSpec {
            block_bytes: 4096,
            cluster_blocks: 1,
            clusters: 8,
            leaf_blocks: 0,
            indirect: false,
            dioread_nolock: true,
            fair: false,
            bitmap_cached: true,
            bitmap_in_transaction: false,
        }
    }
}

/// The file before the first step. Ranges are lists of `{ at, len }` in blocks.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FileSpec {
    /// Blocks modelled.
    pub blocks: u8,
    /// Size in blocks.
    pub size: u8,
    /// The last block of the size is half full.
    pub half: bool,
    /// `i_disksize` in blocks, if it is behind.
    pub disksize: Option<u8>,
    /// Written extents.
    pub written: Vec<Range>,
    /// Unwritten extents.
    pub unwritten: Vec<Range>,
    /// Delayed blocks, dirty in the page cache.
    pub delayed: Vec<Range>,
    /// Blocks of U+D (kernels that allow it; U elsewhere).
    pub unwritten_delayed: Vec<Range>,
    /// Mapped blocks that are in extent status.
    pub known: Vec<Range>,
    /// Holes that are in extent status.
    pub known_holes: Vec<Range>,
    /// Folios in the page cache, clean and up to date, by number.
    pub cached: Vec<u8>,
    /// Mapped blocks that are dirty in the page cache.
    pub dirty: Vec<Range>,
    /// Extent leaves not in memory, by number.
    pub leaves_on_disk: Vec<u8>,
    /// The inline-data flag is still set.
    pub inline: bool,
}

/// One thread.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThreadSpec {
    /// What it does, in order.
    pub ops: Vec<Op>,
}

/// A scenario that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Not TOML, or not these fields.
    #[error("scenario does not parse")]
    Parse(#[source] toml::de::Error),
    /// A value out of range.
    #[error("scenario `{scenario}`: `{field}` is {value}; {mend}")]
    Value {
        /// Scenario.
        scenario: String,
        /// Field.
        field: &'static str,
        /// Value found.
        value: String,
        /// What would do.
        mend: &'static str,
    },
}

/// No scenario of that name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown scenario `{name}`; known: {}", names().join(", "))]
pub struct UnknownScenario {
    /// What was asked for.
    pub name: String,
}

macro_rules! built_in {
    ($($file:literal,)*) => {
        /// The TOML of every built-in scenario.
        const BUILT_IN: &[&str] = &[$(include_str!(concat!("../scenarios/", $file, ".toml")),)*];
    };
}

built_in! {
    "delayed-beside-hole",
    "delayed-insert-enomem",
    "dio-split-enomem",
    "dio-split-enospc",
    "dio-split-second",
    "fallocate-over-delayed",
    "indirect-seek-data",
    "mkwrite-fallocate",
    "mkwrite-fallocate-shadow",
    "mkwrite-fallocate-shrinker",
    "mkwrite-read",
    "pending-enomem",
    "punch-before-delayed",
    "punch-delayed-enomem",
    "punch-delayed-front",
    "punch-mkwrite-nonda",
    "punch-read",
    "reclaim-half-mapped",
    "remount-nodelalloc",
    "truncate-behind-eof",
    "truncate-fiemap",
    "truncate-inline",
    "truncate-precache",
    "truncate-restart-writeback",
    "truncate-writeback",
    "writeback-bails-out",
    "writeback-eio",
    "writeback-error-bigalloc",
    "writeback-fallocate",
    "writeback-gives-up",
}

/// Data of initially written block `b`.
pub const fn initial_data(block: u8) -> Content {
    1 + block % 4
}

/// Every built-in scenario.
pub fn scenarios() -> Vec<Scenario> {
    // A built-in scenario that does not parse is left out here and fails the test `all_parse`.
    BUILT_IN.iter().filter_map(|text| Scenario::parse(text).ok()).collect()
}

fn names() -> Vec<String> {
    scenarios().into_iter().map(|s| s.name).collect()
}

impl Scenario {
    /// The built-in scenario called `name`, or the list of what exists.
    pub fn find(name: &str) -> Result<Scenario, UnknownScenario> {
        scenarios()
            .into_iter()
            .find(|scenario| scenario.name == name)
            .ok_or_else(|| UnknownScenario { name: name.to_owned() })
    }

    /// Reads and checks a scenario.
    pub fn parse(text: &str) -> Result<Scenario, ScenarioError> {
        let scenario: Scenario = toml::from_str(text).map_err(ScenarioError::Parse)?;
        scenario.validate()?;
        Ok(scenario)
    }

    fn refuse<T: ToString>(
        &self,
        ok: bool,
        field: &'static str,
        value: &T,
        mend: &'static str,
    ) -> Result<(), ScenarioError> {
        if ok {
            return Ok(());
        }
        Err(ScenarioError::Value {
            scenario: self.name.clone(),
            field,
            value: value.to_string(),
            mend,
        })
    }

    fn validate(&self) -> Result<(), ScenarioError> {
        let (fs, file) = (&self.fs, &self.file);
        let blocks = file.blocks;
        self.refuse((1..=BLOCKS_MAX).contains(&blocks), "file.blocks", &blocks, "use 1 to 16")?;
        self.refuse(
            [1024, 2048, 4096].contains(&fs.block_bytes),
            "fs.block-bytes",
            &fs.block_bytes,
            "use 1024, 2048 or 4096",
        )?;
        self.refuse(
            [1, 2, 4].contains(&fs.cluster_blocks),
            "fs.cluster-blocks",
            &fs.cluster_blocks,
            "use 1, 2 or 4",
        )?;
        let space = u16::from(fs.clusters) * u16::from(fs.cluster_blocks);
        self.refuse(
            space <= u16::from(PBLKS_MAX - fs.cluster_blocks),
            "fs.clusters",
            &fs.clusters,
            "all clusters together have less than 32 blocks",
        )?;
        self.refuse(
            fs.leaf_blocks == 0 || blocks.div_ceil(fs.leaf_blocks) <= 16,
            "fs.leaf-blocks",
            &fs.leaf_blocks,
            "use more blocks a leaf",
        )?;
        self.refuse(
            (1..SLOTS).contains(&self.thread.len()),
            "thread",
            &self.thread.len(),
            "use one to three threads",
        )?;
        let within = |range: &Range| range.len > 0 && range.end() <= blocks;
        let lists = [
            &file.written,
            &file.unwritten,
            &file.delayed,
            &file.unwritten_delayed,
            &file.known,
            &file.known_holes,
            &file.dirty,
        ];
        self.refuse(
            lists.iter().all(|list| list.iter().all(within)) && file.size <= blocks,
            "file",
            &"a range beyond the file",
            "keep every range within file.blocks",
        )?;
        self.refuse(
            !file.half || file.size > 0,
            "file.half",
            &file.half,
            "a file without blocks has no last one",
        )?;
        for op in self.thread.iter().flat_map(|thread| &thread.ops) {
            let fits = op.range().is_none_or(|range| within(&range));
            let size_fits = !matches!(op, Op::Truncate { size } if *size > blocks);
            self.refuse(
                fits && size_fits,
                "thread.ops",
                &op.label(),
                "keep it within file.blocks",
            )?;
            let data = op.data().unwrap_or(1);
            self.refuse((1..=13).contains(&data), "data", &data, "use a number from 1 to 13")?;
        }
        Ok(())
    }

    /// Sizes and options.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.file.blocks,
            block_bytes: self.fs.block_bytes,
            page_shift: (4096 / self.fs.block_bytes).trailing_zeros() as u8,
            cluster_shift: self.fs.cluster_blocks.trailing_zeros() as u8,
            leaf_blocks: self.fs.leaf_blocks,
            clusters: self.fs.clusters,
            indirect: self.fs.indirect,
            dioread_nolock: self.fs.dioread_nolock,
            fair: self.fs.fair,
            referenced: self.shrinks_max > 0,
        }
    }

    /// The state before the first step. `combined`: whether the kernel knows U+D.
    pub fn initial(&self, combined: bool) -> State {
        let (geo, file) = (self.geometry(), &self.file);
        let mut state = State::new(&geo);
        let all = |list: &[Range]| list.iter().fold(0, |set, range| set | range.set());
        let unwritten_delayed = all(&file.unwritten_delayed);
        let unwritten = all(&file.unwritten) | unwritten_delayed;
        let mapped = all(&file.written) | unwritten;
        for block in each(mapped) {
            place(&mut state, &geo, block, unwritten & bit(block) != 0);
        }
        for block in each(all(&file.known) & mapped) {
            let pblk = state.disk.pblk[usize::from(block)];
            let is_unwritten = unwritten & bit(block) != 0;
            state.es.insert_mapped(block, block + 1, pblk, is_unwritten, false);
        }
        for block in each(unwritten_delayed) {
            let pblk = state.disk.pblk[usize::from(block)];
            state.es.insert_mapped(block, block + 1, pblk, true, combined);
        }
        state.es.insert_hole(all(&file.known_holes));
        let delayed = all(&file.delayed);
        state.es.insert_delayed(delayed);
        let allocated = geo.clusters_of(mapped) & geo.clusters_of(delayed);
        state.es.pending = if geo.cluster_shift == 0 { 0 } else { allocated };
        state.inode.reserved = state.reservation_due(&geo);
        state.fs.dirty = state.inode.reserved;
        let size = geo.bytes(file.size) - if file.half { geo.block_bytes / 2 } else { 0 };
        state.inode.i_size = size;
        state.inode.i_disksize = file.disksize.map_or(size, |blocks| geo.bytes(blocks));
        state.inode.inline_data = file.inline;
        // Whoever has written the file has been through `file_modified`.
        state.inode.nosec = true;
        for &folio in &file.cached {
            self.fill_folio(&mut state, &geo, folio);
        }
        let dirty = all(&file.dirty) | delayed;
        for folio in each(geo.folios_of(dirty)) {
            self.fill_folio(&mut state, &geo, folio);
            state.cache.dirty |= bit(folio);
        }
        state.cache.mapped |= dirty;
        state.cache.uptodate |= dirty;
        state.cache.buf_dirty |= dirty;
        state.cache.delay |= delayed;
        state.cache.unwritten |= dirty & unwritten;
        for block in each(dirty) {
            state.cache.data.set(block, initial_data(block) + 4);
            state.want.set(block, initial_data(block) + 4);
        }
        for &leaf in &file.leaves_on_disk {
            state.disk.leaves &= !bit(leaf);
        }
        state.fs.bitmap = self.fs.bitmap_cached;
        state.fs.bitmap_in_tx = self.fs.bitmap_in_transaction;
        state.fs.faults = self.faults_max;
        state.fs.shrinks = self.shrinks_max;
        state
    }

    fn fill_folio(&self, state: &mut State, geo: &Geometry, folio: u8) {
        let blocks = geo.folio_blocks(folio) & geo.all();
        state.cache.present |= bit(folio);
        state.cache.uptodate |= blocks;
        for block in each(blocks) {
            state.cache.data.set(block, state.read_disk(block));
        }
        let inside = span(0, self.file.size);
        state.cache.mapped |= blocks & state.disk.written() & inside;
    }
}

/// Gives a block of the initial file its place on disk, with data if it is written.
fn place(state: &mut State, geo: &Geometry, block: u8, unwritten: bool) {
    let cluster = geo.cluster_set(geo.cluster(block));
    let first = geo.cluster(block) << geo.cluster_shift;
    let neighbour = state.disk.mapped & cluster;
    let base = if neighbour == 0 {
        let Some(pblk) = state.disk.lowest_free(geo, 1) else {
            return;
        };
        state.disk.free &= !crate::state::Disk::cluster_bits(geo, pblk);
        state.fs.free -= 1;
        state.inode.i_blocks += 1;
        pblk
    } else {
        let other = neighbour.trailing_zeros() as u8;
        state.disk.pblk[usize::from(other)] - (other - first)
    };
    let pblk = base + (block - first);
    state.disk.map(block, pblk, unwritten);
    if !unwritten {
        state.disk.set_media(pblk, initial_data(block));
        state.want.set(block, initial_data(block));
    }
}
