//! The probes that the shadow needs, and which rules cannot be checked without one.
//!
//! In: nothing. Out: lines for `kprobe_events` of tracefs, as [`agent`'s order][order] takes them.
//! Must not know: what the events mean.
//!
//! Members of structures stand in braces; arguments are those of x86-64. ` if EXPRESSION` at the end
//! is a filter. Functions are chosen so that one text serves Linux 5.10 to 7.x; where none does,
//! ` || ` stands between the texts, the newest first.
//!
//! [order]: ../../../agent/wire/struct.TraceOrder.html

use delalloc::Invariant;

/// Names and numbers that every change of extent status carries: the inode, its counters, the
/// cluster ratio of its file system.
macro_rules! with_inode {
    ($probe:literal) => {
        concat!(
            "p:racegate/",
            $probe,
            " inode=%di:x64 ino={inode.i_ino}(%di):u64 \
             reserved={ext4_inode_info.i_reserved_data_blocks-ext4_inode_info.vfs_inode}(%di):u32 \
             all={ext4_inode_info.i_es_all_nr-ext4_inode_info.vfs_inode}(%di):u32 \
             shk={ext4_inode_info.i_es_shk_nr-ext4_inode_info.vfs_inode}(%di):u32 \
             ratio={ext4_sb_info.s_cluster_ratio}({super_block.s_fs_info}({inode.i_sb}(%di))):u32"
        )
    };
    ($probe:literal, $more:literal) => {
        concat!(with_inode!($probe), " ", $more)
    };
}

/// The probes. Instances of return probes: more threads than ever sleep in one function.
pub const PROBES: &[&str] = &[
    // Extent status, under i_es_lock held for writing.
    with_inode!(
        "es_insert __es_insert_extent",
        "lblk={extent_status.es_lblk}(%si):u32 len={extent_status.es_len}(%si):u32 \
         pblk={extent_status.es_pblk}(%si):x64"
    ),
    "r64:racegate/es_insert_end __es_insert_extent ret=$retval:s32 if ret != 0",
    with_inode!("es_remove __es_remove_extent", "lblk=%si:u32 end=%dx:u32"),
    "r64:racegate/es_remove_end __es_remove_extent ret=$retval:s32 if ret != 0",
    // Under i_data_sem, before i_es_lock.
    "p:racegate/es_put ext4_es_insert_extent inode=%di:x64 ino={inode.i_ino}(%di):u64 lblk=%si:u32 \
     len=%dx:u32 status=%r8:u8",
    "p:racegate/es_give_up ext4_es_remove_extent inode=%di:x64 lblk=%si:u32 len=%dx:u32",
    // The number of changes of extent status, under i_es_lock.
    "p:racegate/es_seq __es_remove_extent inode=%di:x64 ino={inode.i_ino}(%di):u64 \
     seq={ext4_inode_info.i_es_seq-ext4_inode_info.vfs_inode}(%di):u32",
    "p:racegate/es_delay ext4_es_insert_delayed_extent inode=%di:x64 len=%dx:u32",
    // The shrinker and EXT4_IOC_CLEAR_ES_CACHE.
    "p:racegate/reclaim es_do_reclaim_extents",
    "r64:racegate/reclaim_end es_do_reclaim_extents",
    "p:racegate/clear_es ext4_clear_inode_es",
    "r64:racegate/clear_es_end ext4_clear_inode_es",
    "p:racegate/es_free ext4_es_free_extent inode=%di:x64 ino={inode.i_ino}(%di):u64 \
     lblk={extent_status.es_lblk}(%si):u32 len={extent_status.es_len}(%si):u32 \
     pblk={extent_status.es_pblk}(%si):x64",
    // Reservations.
    with_inode!("update_reserve ext4_da_update_reserve_space", "used=%si:u32"),
    with_inode!("release ext4_da_release_space", "used=%si:u32"),
    "p:racegate/rereserve ext4_rereserve_cluster inode=%di:x64 lblk=%si:u32",
    "p:racegate/pend_insert __insert_pending inode=%di:x64 lblk=%si:u32",
    "r64:racegate/pend_insert_end __insert_pending ret=$retval:s32 if ret < 0",
    "p:racegate/pend_remove __remove_pending inode=%di:x64 lblk=%si:u32",
    // Blocks.
    "p:racegate/free ext4_free_blocks inode=%si:x64 ino={inode.i_ino}(%si):u64 block=%cx:u64 \
     count=%r8:u64",
    // The life of an inode.
    "r64:racegate/alloc ext4_alloc_inode inode=$retval:x64",
    "p:racegate/evict ext4_evict_inode inode=%di:x64 ino={inode.i_ino}(%di):u64 \
     nlink={inode.i_nlink}(%di):u32 blocks={inode.i_blocks}(%di):u64",
    with_inode!(
        "destroy ext4_destroy_inode",
        "pending={ext4_inode_info.i_pending_tree-ext4_inode_info.vfs_inode}(%di):x64"
    ),
    // Linux 7.3 does not count the writes to unwritten blocks any more.
    "p:racegate/destroy_io ext4_destroy_inode inode=%di:x64 ino={inode.i_ino}(%di):u64 \
     unwritten={ext4_inode_info.i_unwritten-ext4_inode_info.vfs_inode}(%di):u32 \
     dio={inode.i_dio_count}(%di):u32 || \
     p:racegate/destroy_io ext4_destroy_inode inode=%di:x64 ino={inode.i_ino}(%di):u64 \
     dio={inode.i_dio_count}(%di):u32",
    "p:racegate/destroy_size ext4_destroy_inode inode=%di:x64 ino={inode.i_ino}(%di):u64 \
     nlink={inode.i_nlink}(%di):u32 mode={inode.i_mode}(%di):u16 size={inode.i_size}(%di):u64 \
     disksize={ext4_inode_info.i_disksize-ext4_inode_info.vfs_inode}(%di):u64",
    "p:racegate/put_super ext4_put_super",
    // What users do, and the ends of sections under i_data_sem.
    "p:racegate/write_begin ext4_da_write_begin inode={address_space.host}(%si):x64 \
     ino={inode.i_ino}({address_space.host}(%si)):u64 \
     size={inode.i_size}({address_space.host}(%si)):u64 \
     disksize={ext4_inode_info.i_disksize-ext4_inode_info.vfs_inode}({address_space.host}(%si)):u64",
    "p:racegate/seek_data iomap_seek_data inode=%di:x64 ino={inode.i_ino}(%di):u64 \
     size={inode.i_size}(%di):u64 from=%si:x64 bits={inode.i_blkbits}(%di):u8",
    "r64:racegate/seek_data_end iomap_seek_data ret=$retval:x64",
    "p:racegate/seek_hole iomap_seek_hole inode=%di:x64 ino={inode.i_ino}(%di):u64 \
     size={inode.i_size}(%di):u64 from=%si:x64 bits={inode.i_blkbits}(%di):u8",
    "r64:racegate/seek_hole_end iomap_seek_hole ret=$retval:x64",
    "p:racegate/truncate ext4_truncate inode=%di:x64 ino={inode.i_ino}(%di):u64 \
     size={inode.i_size}(%di):u64 bits={inode.i_blkbits}(%di):u8",
    "r64:racegate/truncate_end ext4_truncate ret=$retval:s32",
    "r64:racegate/map_end ext4_map_blocks ret=$retval:s32",
    "r64:racegate/prep_end ext4_da_get_block_prep ret=$retval:s32",
    "p:racegate/mkwrite ext4_page_mkwrite",
    "r64:racegate/mkwrite_end ext4_page_mkwrite",
    "p:racegate/fallocate ext4_fallocate",
    "r64:racegate/fallocate_end ext4_fallocate",
    "p:racegate/write ext4_file_write_iter",
    "r64:racegate/write_end ext4_file_write_iter",
    "p:racegate/writepages ext4_writepages inode={address_space.host}(%di):x64",
    "r64:racegate/writepages_end ext4_writepages ret=$retval:s32",
    "p:racegate/wb_error __filemap_set_wb_err inode={address_space.host}(%di):x64",
    // The page cache: what is dropped from it, and what is read into it.
    "p:racegate/setattr ext4_setattr",
    "r64:racegate/setattr_end ext4_setattr",
    "p:racegate/drop truncate_pagecache inode=%di:x64 from=%si:x64",
    "r64:racegate/drop_end truncate_pagecache",
    "p:racegate/drop_range truncate_pagecache_range inode=%di:x64 from=%si:x64 to=%dx:x64",
    "r64:racegate/drop_range_end truncate_pagecache_range",
    "p:racegate/readahead ext4_readahead inode={address_space.host}({readahead_control.mapping}(%di)):x64 \
     page={readahead_control._index}(%di):u64 pages={readahead_control._nr_pages}(%di):u32",
    "p:racegate/read_page ext4_read_folio inode={address_space.host}({folio.mapping}(%si)):x64 \
     page={folio.index}(%si):u64 || \
     p:racegate/read_page ext4_readpage inode={address_space.host}({page.mapping}(%si)):x64 \
     page={page.index}(%si):u64",
];

/// Probes of what only some series have: a kernel without one of these has nothing that it could be
/// about.
const OF_SOME: &[&str] = &["es_seq", "es_delay"];

/// Whether the shadow sees less than it should of a kernel that lacks a probe, given as the agent
/// names it.
pub fn needed(missing: &str) -> bool {
    name(missing).is_none_or(|name| !OF_SOME.contains(&name))
}

/// What the agent writes after `syncfs` with nobody at work: `dirty=N`, of
/// `delayed_allocation_blocks`.
pub const QUIET: &str = "quiet";

/// The rules that the shadow checks, and the probes without which each is not.
pub const RULES: &[(Invariant, &[&str])] = &[
    (Invariant::A1, &["es_insert", "es_remove", "es_give_up", "es_free", "reclaim", "clear_es"]),
    (Invariant::A2, &["es_insert", "es_put", "es_remove", "es_give_up"]),
    (Invariant::A3, &["es_insert", "es_remove", "update_reserve", "release"]),
    (Invariant::A4, &["es_insert", "es_give_up"]),
    (Invariant::A5, &["es_insert", "es_remove", "pend_insert", "pend_remove", "rereserve"]),
    (Invariant::A6, &["write_begin"]),
    (
        Invariant::A7,
        &[
            "fallocate",
            "fallocate_end",
            "setattr",
            "setattr_end",
            "drop",
            "drop_end",
            "drop_range",
            "drop_range_end",
            "readahead",
            "read_page",
            "es_give_up",
            "es_put",
        ],
    ),
    (Invariant::A8, &["es_insert"]),
    (Invariant::A9, &["es_seq", "es_delay", "es_put", "es_give_up"]),
    (Invariant::A10, &["es_free", "reclaim", "reclaim_end", "clear_es", "clear_es_end"]),
    (Invariant::A11, &["update_reserve", "release"]),
    (Invariant::B1, &[]),
    (Invariant::B3, &["es_put", "es_insert", "es_remove", "writepages", "wb_error"]),
    (Invariant::B4, &["destroy_size", "writepages_end", "wb_error"]),
    (Invariant::C1, &["destroy"]),
    (Invariant::C2, &["destroy_io"]),
    (Invariant::C3, &["evict", "es_insert", "es_give_up"]),
    (Invariant::G4, &["seek_data", "seek_data_end", "seek_hole", "seek_hole_end"]),
];

/// The rules that cannot be checked on a kernel that lacks these probes, given as the agent names
/// them: the text of the probe, a colon and the reason.
pub(super) fn out_of_reach<'a>(missing: impl Iterator<Item = &'a str>) -> Vec<Invariant> {
    let missing: Vec<&str> = missing.filter_map(name).collect();
    let lacks = |needs: &[&str]| needs.iter().any(|need| missing.contains(need));
    RULES.iter().filter(|(_, needs)| lacks(needs)).map(|(rule, _)| *rule).collect()
}

/// The name of the first probe in a text.
pub(super) fn name(text: &str) -> Option<&str> {
    text.split_once("racegate/")?.1.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_that_a_rule_needs_is_there() {
        let names: Vec<&str> = PROBES.iter().map(|probe| name(probe).unwrap()).collect();
        for probe in PROBES {
            let all: Vec<_> = probe.split(" || ").map(name).collect();
            assert!(all.iter().all(|of| *of == all[0]), "{probe}");
        }
        for (rule, needs) in RULES {
            assert!(needs.iter().all(|need| names.contains(need)), "{}", rule.name());
        }
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len());
    }

    #[test]
    fn a_missing_probe_takes_its_rules_along() {
        let missing = ["p:racegate/seek_data iomap_seek_data inode=%di:x64: No such file"];
        assert_eq!(out_of_reach(missing.into_iter()), [Invariant::G4]);
        assert!(out_of_reach(["nonsense"].into_iter()).is_empty());
        assert!(needed(missing[0]) && needed("nonsense"));
        assert!(!needed("p:racegate/es_seq __es_remove_extent seq={a.b}(%di):u32: no a.b"));
    }
}
