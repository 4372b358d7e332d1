//! A sparse array whose copies share what they have in common.
//!
//! In: an index. Out: a page. A copy costs one reference; a change after a copy costs the page, a
//! branch of 256 references and the top level, whatever the size of the rest.

use std::sync::Arc;

const FANOUT: usize = 256;

type Branch<T> = [Option<Arc<T>>; FANOUT];

/// Pages by index; an absent page is `None`.
#[derive(Debug)]
pub(crate) struct Radix<T> {
    top: Arc<Vec<Option<Arc<Branch<T>>>>>,
}

impl<T> Clone for Radix<T> {
    fn clone(&self) -> Self {
        Radix { top: Arc::clone(&self.top) }
    }
}

impl<T: Clone + Default> Radix<T> {
    /// Room for `pages` pages, all absent.
    pub(crate) fn new(pages: u64) -> Self {
        Radix { top: Arc::new(vec![None; pages.div_ceil(FANOUT as u64) as usize]) }
    }

    pub(crate) fn get(&self, index: u64) -> Option<&T> {
        let (branch, leaf) = split(index)?;
        self.top.get(branch)?.as_ref()?.get(leaf)?.as_deref()
    }

    /// The page to change, made if absent; `None` beyond the room.
    pub(crate) fn get_mut(&mut self, index: u64) -> Option<&mut T> {
        let (branch, leaf) = split(index)?;
        if branch >= self.top.len() {
            return None;
        }
        let branch = Arc::make_mut(&mut self.top).get_mut(branch)?;
        let branch = branch.get_or_insert_with(|| Arc::new([const { None }; FANOUT]));
        let page = Arc::make_mut(branch).get_mut(leaf)?.get_or_insert_default();
        Some(Arc::make_mut(page))
    }

    /// Makes `page` the page at `index`, shared with whoever else has it. Nothing happens beyond
    /// the room.
    pub(crate) fn put(&mut self, index: u64, page: &Arc<T>) {
        let Some((branch, leaf)) = split(index).filter(|(branch, _)| *branch < self.top.len())
        else {
            return;
        };
        if let Some(branch) = Arc::make_mut(&mut self.top).get_mut(branch) {
            let branch = branch.get_or_insert_with(|| Arc::new([const { None }; FANOUT]));
            Arc::make_mut(branch)[leaf] = Some(Arc::clone(page));
        }
    }

    pub(crate) fn remove(&mut self, index: u64) {
        if self.get(index).is_none() {
            return;
        }
        let Some((branch, leaf)) = split(index) else {
            return;
        };
        if let Some(Some(branch)) = Arc::make_mut(&mut self.top).get_mut(branch) {
            Arc::make_mut(branch)[leaf] = None;
        }
    }

    /// The first present page at or after `index`, if it is before `end`. Skips absent branches
    /// whole, and looks at none beyond `end`: what asks group by group must not pay for all groups
    /// each time.
    pub(crate) fn next_present(&self, index: u64, end: u64) -> Option<u64> {
        let (mut branch, mut leaf) = split(index)?;
        let (last, _) = split(end.checked_sub(1)?)?;
        while branch < self.top.len() && branch <= last {
            if let Some(pages) = &self.top[branch]
                && let Some(found) = (leaf..FANOUT).find(|leaf| pages[*leaf].is_some())
            {
                return Some((branch * FANOUT + found) as u64).filter(|found| *found < end);
            }
            branch += 1;
            leaf = 0;
        }
        None
    }

    /// Bytes on the heap, `bytes_of` giving those of a page, [`page_bytes`] of them its own.
    pub(crate) fn heap_bytes(&self, bytes_of: impl Fn(&T) -> usize) -> usize {
        let branches = self.top.iter().flatten();
        let pages = branches.clone().flat_map(|branch| branch.iter().flatten());
        self.top.capacity() * size_of::<usize>()
            + branches.count() * (size_of::<Branch<T>>() + 16)
            + pages.map(|page| bytes_of(page)).sum::<usize>()
    }
}

/// Bytes of a page without what it owns.
pub(crate) const fn page_bytes<T>() -> usize {
    // The two counts of a reference.
    size_of::<T>() + 2 * size_of::<usize>()
}

fn split(index: u64) -> Option<(usize, usize)> {
    let index = usize::try_from(index).ok()?;
    Some((index / FANOUT, index % FANOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_keeps_what_it_saw() {
        let mut pages = Radix::<u32>::new(1000);
        *pages.get_mut(700).unwrap() = 7;
        let before = pages.clone();
        *pages.get_mut(700).unwrap() = 8;
        *pages.get_mut(3).unwrap() = 1;
        assert_eq!((before.get(700), before.get(3)), (Some(&7), None));
        assert_eq!((pages.get(700), pages.get(3)), (Some(&8), Some(&1)));
        assert_eq!(pages.next_present(4, 1000), Some(700));
        assert_eq!(pages.next_present(4, 701), Some(700));
        assert_eq!(pages.next_present(4, 700), None);
        assert_eq!(pages.next_present(0, 0), None);
        assert_eq!(pages.next_present(701, u64::MAX), None);
        pages.remove(700);
        assert_eq!(pages.get(700), None);
        assert!(pages.get_mut(5000).is_none());
    }
}
