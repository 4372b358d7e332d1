//! What a shadow counts.
//!
//! In: nothing. Out: [`ShadowStats`], for control clients and reports.
//! Must not know: how anything is counted.

use std::collections::BTreeMap;

use ext4_layout::Tid;
use serde::{Deserialize, Serialize};

/// Counts of a shadow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShadowStats {
    /// Requests looked at.
    pub requests: u64,
    /// Transactions checked.
    pub commits: u64,
    /// Extents, inodes and groups checked at commits.
    pub checked: u64,
    /// Things that could not be checked.
    pub unknown: u64,
    /// Findings, told or not.
    pub findings: u64,
    /// Findings by rule.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rules: BTreeMap<String, u64>,
    /// Bytes of memory, the map of the disk not included.
    pub heap_bytes: u64,
    /// Bytes of memory of the map and what keeps it current; 0 where nobody has counted them.
    #[serde(default)]
    pub layout_bytes: u64,
    /// What a power cut would leave.
    pub survivors: Survivors,
}

/// What would be on the disk after a power cut now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survivors {
    /// The newest transaction that recovery certainly finds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certain: Option<Tid>,
    /// The newest that it may find: its commit record is stored or on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub possible: Option<Tid>,
    /// Blocks that recovery would restore from the log.
    pub replayed: u64,
}
