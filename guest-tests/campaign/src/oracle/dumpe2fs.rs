//! What `dumpe2fs` prints, as values.

use super::OracleError;

/// Inclusive range of block or inode numbers.
pub(super) type Range = (u64, u64);

/// One group.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    pub(super) blocks: Range,
    pub(super) superblock: Option<u64>,
    pub(super) descriptors: Option<Range>,
    pub(super) reserved: Option<Range>,
    pub(super) block_bitmap: u64,
    pub(super) inode_bitmap: u64,
    pub(super) inode_table: Range,
    pub(super) free_blocks: Vec<Range>,
    pub(super) free_inodes: Vec<Range>,
}

/// The whole of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Dump {
    pub(super) features: Vec<String>,
    pub(super) block_count: u64,
    pub(super) block_bytes: u64,
    /// Blocks in a cluster; 1 without bigalloc.
    pub(super) cluster_blocks: u64,
    pub(super) inode_bytes: u64,
    pub(super) inodes_per_group: u64,
    pub(super) journal_inode: u64,
    pub(super) orphan_inode: u64,
    pub(super) mmp_block: Option<u64>,
    pub(super) groups: Vec<Group>,
}

impl Dump {
    pub(super) fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|name| name == feature)
    }

    pub(super) fn parse(text: &str) -> Result<Dump, OracleError> {
        let mut dump = Dump::default();
        for line in text.lines() {
            let bad = || OracleError::Output { tool: "dumpe2fs", line: line.to_owned() };
            if line.starts_with("Group ")
                && let Some((_, range)) = line.split_once(": (Blocks ")
            {
                let blocks = range_at(range).ok_or_else(bad)?;
                dump.groups.push(Group { blocks, ..Group::default() });
            } else if let Some(group) = dump.groups.last_mut() {
                group_line(group, line.trim()).ok_or_else(bad)?;
            } else if let Some((key, value)) = line.split_once(':') {
                dump.header_line(key, value.trim()).ok_or_else(bad)?;
            }
        }
        Ok(dump)
    }

    fn header_line(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "Filesystem features" => {
                self.features = value.split_whitespace().map(str::to_owned).collect();
            }
            "Block count" => self.block_count = value.parse().ok()?,
            "Block size" => self.block_bytes = value.parse().ok()?,
            "Fragment size" => self.cluster_blocks = 1,
            "Cluster size" => {
                self.cluster_blocks = value.parse::<u64>().ok()? / self.block_bytes.max(1);
            }
            "Inode size" => self.inode_bytes = value.parse().ok()?,
            "Inodes per group" => self.inodes_per_group = value.parse().ok()?,
            "Journal inode" => self.journal_inode = value.parse().ok()?,
            "Orphan file inode" => self.orphan_inode = value.parse().ok()?,
            "MMP block number" => self.mmp_block = Some(value.parse().ok()?),
            _ => {}
        }
        Some(())
    }
}

fn group_line(group: &mut Group, line: &str) -> Option<()> {
    if let Some(list) = line.strip_prefix("Free blocks:") {
        group.free_blocks = ranges(list)?;
        return Some(());
    }
    if let Some(list) = line.strip_prefix("Free inodes:") {
        group.free_inodes = ranges(list)?;
        return Some(());
    }
    // Up to two places in one line, each "NAME at RANGE".
    for item in line.split(", ") {
        let Some((name, at)) = item.split_once(" at ") else {
            continue;
        };
        let range = range_at(at);
        match name.trim() {
            "Primary superblock" | "Backup superblock" => group.superblock = Some(range?.0),
            "Group descriptors" | "Group descriptor" => group.descriptors = Some(range?),
            "Reserved GDT blocks" => group.reserved = Some(range?),
            "Block bitmap" => group.block_bitmap = range?.0,
            "Inode bitmap" => group.inode_bitmap = range?.0,
            "Inode table" => group.inode_table = range?,
            _ => {}
        }
    }
    Some(())
}

fn ranges(list: &str) -> Option<Vec<Range>> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty()).map(range_at).collect()
}

/// The range, or single number, that a text starts with.
pub(super) fn range_at(text: &str) -> Option<Range> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(text.len());
    let (first, last) = text[..end].split_once('-').unwrap_or((&text[..end], &text[..end]));
    Some((first.parse().ok()?, last.parse().ok()?))
}
