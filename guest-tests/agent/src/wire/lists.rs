//! Lists of calls on one file each, and what the kernel shows after every call.
//!
//! For the comparison of a kernel with a model of it: nothing runs side by side, each list has a
//! fresh file, and one order carries many lists.
//! Must not know: how a call is carried out, what a kernel should show.

use serde::{Deserialize, Serialize};

use super::message::KernelLine;
use super::workload::FallocateMode;

/// Most blocks of a file that are looked at.
pub const MOST_BLOCKS: u64 = 64;

/// Lists to carry out on the mounted file system, one after the other. Each is answered by a
/// [`ListResult`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lists {
    /// Chosen by the host.
    pub id: u64,
    /// Blocks of each file that are looked at, from block 0; at most [`MOST_BLOCKS`].
    pub blocks: u64,
    /// The lists.
    pub lists: Vec<List>,
}

/// What is done to one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Number, unique within the boot: the file's name comes from it.
    pub number: u64,
    /// Ask for the extent map (FIEMAP) after every call. Asking fills the extent status tree.
    pub map: bool,
    /// The calls, in order; one that fails does not end the list.
    pub calls: Vec<Call>,
}

/// One call. Offsets and lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// pwrite: offset, length, the byte written.
    Write(u64, u64, u8),
    /// Stores through a shared mapping made for this call: offset, length, the byte stored.
    /// Refused beyond the end of the file.
    Store(u64, u64, u8),
    /// pread, of what the file has: offset, length.
    Read(u64, u64),
    /// fallocate: offset, length.
    Fallocate(FallocateMode, u64, u64),
    /// ftruncate.
    Truncate(u64),
    /// pwrite with O_DIRECT: offset, length, the byte written.
    DirectWrite(u64, u64, u8),
    /// pread with O_DIRECT, of what the file has: offset, length.
    DirectRead(u64, u64),
    /// fsync.
    Fsync,
    /// msync(MS_SYNC) of a range: offset, length. Writes that range back, then commits.
    Msync(u64, u64),
    /// FIEMAP without FIEMAP_FLAG_SYNC.
    Fiemap,
    /// EXT4_IOC_CLEAR_ES_CACHE.
    ClearEs,
}

/// What came of one list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListResult {
    /// That of the order.
    pub id: u64,
    /// That of the list.
    pub number: u64,
    /// One for each call.
    pub steps: Vec<Seen>,
    /// Delayed blocks of the file system after the file was removed.
    pub left: u64,
    /// New lines of the kernel log.
    pub kernel: Vec<KernelLine>,
    /// Why the list could not be carried out or looked at; `None` if it was.
    pub error: Option<String>,
}

/// What the kernel showed after one call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// `errno` of the call; 0 if it succeeded.
    pub errno: i32,
    /// Size of the file in bytes (`st_size`).
    pub size: u64,
    /// 512-byte sectors accounted to the file (`st_blocks`).
    pub sectors: u64,
    /// Delayed blocks of the file system (`delayed_allocation_blocks`).
    pub delayed: u64,
    /// Extent status as EXT4_IOC_GET_ES_CACHE shows it.
    pub status: Vec<Run>,
    /// The extent map, if it was asked for; the extent status is from before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<Vec<Run>>,
    /// One number for each block that was read: its byte if all of its bytes are equal, else -1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub data: Vec<i16>,
}

/// Blocks in one state: first block, length, first physical block, `fe_flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run(pub u64, pub u64, pub u64, pub u32);

impl Run {
    /// FIEMAP_EXTENT_DELALLOC.
    pub const DELAYED: u32 = 0x0004;
    /// FIEMAP_EXTENT_UNWRITTEN.
    pub const UNWRITTEN: u32 = 0x0800;
    /// EXT4_FIEMAP_EXTENT_HOLE.
    pub const HOLE: u32 = 0x0800_0000;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_fits_a_frame_many_times() {
        let worst = Call::Fallocate(FallocateMode::ZeroRangeKeepSize, 61440, 61440);
        let list = List { number: u64::MAX, map: true, calls: vec![worst; 20] };
        let json = serde_json::to_string(&list).unwrap();
        assert!(json.len() < 1200, "{}", json.len());
        assert_eq!(serde_json::from_str::<List>(&json).unwrap(), list);
        assert_eq!(
            serde_json::to_string(&Call::Write(0, 4096, 7)).unwrap(),
            r#"{"write":[0,4096,7]}"#
        );
    }
}
