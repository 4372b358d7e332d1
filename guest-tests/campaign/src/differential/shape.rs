//! The file systems on which kernel and engine are compared.
//!
//! In: a name. Out: arguments of mkfs.ext4, and the engine's sizes for the same file system.

use delalloc::{Flag, Geometry, Kernel};

/// Bytes of a page of the guests.
const PAGE_BYTES: u32 = 4096;

/// One kind of file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Blocks as long as a page.
    Blocks4k,
    /// Four blocks in a page.
    Blocks1k,
    /// Blocks as long as a page, four in a cluster.
    Bigalloc,
}

impl Shape {
    /// Every kind.
    pub const ALL: [Shape; 3] = [Shape::Blocks4k, Shape::Blocks1k, Shape::Bigalloc];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Blocks4k => "4k",
            Shape::Blocks1k => "1k",
            Shape::Bigalloc => "bigalloc",
        }
    }

    /// Arguments of mkfs.ext4.
    pub fn mkfs(self) -> Vec<String> {
        let words: &[&str] = match self {
            Shape::Blocks4k => &["-b", "4096"],
            Shape::Blocks1k => &["-b", "1024"],
            Shape::Bigalloc => &["-b", "4096", "-O", "bigalloc", "-C", "16384"],
        };
        words.iter().map(ToString::to_string).collect()
    }

    /// Bytes of the image.
    pub fn bytes(self) -> u64 {
        128 << 20
    }

    /// The engine's sizes. As many physical clusters as the model can tell apart: a file that uses
    /// all of its blocks must not come near the end of space.
    pub fn geometry(self, kernel: &Kernel) -> Geometry {
        let (blocks, block_bytes, cluster_shift) = match self {
            Shape::Blocks4k => (10, 4096, 0),
            Shape::Blocks1k => (12, 1024, 0),
            Shape::Bigalloc => (16, 4096, 2),
        };
        let page_shift = (PAGE_BYTES / block_bytes).ilog2() as u8;
        Geometry {
            blocks,
            block_bytes,
            page_shift,
            cluster_shift,
            clusters: (32 >> cluster_shift) - 1,
            dioread_nolock: page_shift == 0 || kernel.has(Flag::NolockSmallBlocks),
            ..Geometry::default()
        }
    }
}
