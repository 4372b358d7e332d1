//! A model of ext4's delayed allocation, by kernel version.
//!
//! ```text
//!  scenario (TOML) ──► ops ──► programs ──► exec ◄──► state
//!                       ▲ flags                │
//!                    kernel, mutant            ▼
//!                                          invariant ──► finding
//! ```
//!
//! In: a scenario, a kernel version, a mutant. Out: [`DelallocModel`], which the explorer searches,
//! and [`Driver`], which runs operations one after the other.
//! Must not know: devices, clocks, files, threads, how a search goes about it.
//!
//! # Limits
//!
//! Small scope: one inode of at most 16 blocks, at most three user threads, operations on whole
//! blocks. Writeback maps one folio at a time. Not modelled: quota, preallocation, the extent tree
//! beyond whether it fits the inode, zeroing instead of splitting
//! (`extent_max_zeroout_kb`), readahead, large folios, `move_extent`, fast commit.

#![forbid(unsafe_code)]

pub mod driver;
pub mod exec;
mod footprint;
pub mod geometry;
pub mod invariant;
pub mod kernel;
mod label;
pub mod model;
pub mod mutant;
pub mod ops;
pub mod program;
pub mod scenario;
pub mod state;

pub use driver::{Driver, EsExtent, Extent, Outcome};
pub use exec::{Engine, Fault};
pub use geometry::Geometry;
pub use invariant::Invariant;
pub use kernel::{Flag, Kernel, UnknownKernel};
pub use model::{BuildError, DelallocModel, Selection, variants};
pub use mutant::{Mutant, UnknownMutant, mutants};
pub use ops::Op;
pub use scenario::{Scenario, ScenarioError, UnknownScenario, scenarios};
pub use state::State;
