//! A disk under a write-ahead log: what was committed is visible at once, and durable once it was forced. A crash
//! loses a suffix of what was not forced, never a part of one local transaction and never something from the middle:
//! that is what Postgres and SQLite promise, with `synchronous_commit = off` too.

use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Debug)]
pub(crate) struct Disk<K, V> {
    cells: BTreeMap<K, V>,
    /// For each local transaction that is not durable, oldest first, what its cells held before.
    undo: Vec<Vec<(K, Option<V>)>>,
    /// How many local transactions are durable.
    durable: u64,
    /// The same for the last ones that are durable: for a disk that breaks its promise.
    history: VecDeque<Vec<(K, Option<V>)>>,
    /// So many durable local transactions can be lost by a disk that lies.
    history_max: usize,
}

impl<K: Ord + Clone, V: Clone> Disk<K, V> {
    pub(crate) fn new(history_max: usize) -> Self {
        Self {
            cells: BTreeMap::new(),
            undo: Vec::new(),
            durable: 0,
            history: VecDeque::new(),
            history_max,
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.cells.get(key)
    }

    pub(crate) fn cells(&self) -> impl Iterator<Item = (&K, &V)> {
        self.cells.iter()
    }

    /// Drops what is no part of what is simulated, and long durable.
    pub(crate) fn drop_instrument(&mut self, key: &K) -> Option<V> {
        self.cells.remove(key)
    }

    /// The cells from one on.
    pub(crate) fn cells_from(&self, first: K) -> impl Iterator<Item = (&K, &V)> {
        self.cells.range(first..)
    }

    /// What a crash would leave of this cell at worst.
    pub(crate) fn durable(&self, key: &K) -> Option<&V> {
        for transaction in &self.undo {
            if let Some((_, before)) = transaction.iter().find(|(changed, _)| changed == key) {
                return before.as_ref();
            }
        }
        self.cells.get(key)
    }

    /// Commits a local transaction (`None` deletes); returns its position, to be forced by.
    pub(crate) fn commit(&mut self, writes: Vec<(K, Option<V>)>) -> u64 {
        let mut undo = Vec::with_capacity(writes.len());
        for (key, value) in writes {
            let before = match value {
                Some(value) => self.cells.insert(key.clone(), value),
                None => self.cells.remove(&key),
            };
            undo.push((key, before));
        }
        self.undo.push(undo);
        self.position()
    }

    /// Of the last local transaction that was committed.
    pub(crate) fn position(&self) -> u64 {
        self.durable + self.undo.len() as u64
    }

    pub(crate) fn is_durable(&self, position: u64) -> bool {
        position <= self.durable
    }

    /// Makes everything up to `position` durable; returns the cells whose durable value changed.
    pub(crate) fn force(&mut self, position: u64) -> Vec<K> {
        let count = position.saturating_sub(self.durable) as usize;
        let count = count.min(self.undo.len());
        self.durable += count as u64;
        let forced: Vec<_> = self.undo.drain(..count).collect();
        let mut changed: Vec<K> = forced
            .iter()
            .flatten()
            .map(|(key, _)| key.clone())
            .collect();
        self.history.extend(forced);
        let too_old = self.history.len().saturating_sub(self.history_max);
        self.history.drain(..too_old);
        changed.sort();
        changed.dedup();
        changed
    }

    /// How many local transactions are not forced.
    pub(crate) fn unforced(&self) -> usize {
        self.undo.len()
    }

    /// Loses what was not forced, but for the first `keeping` local transactions; the rest turns out to be durable. Returns the cells that changed back,
    /// and those that became durable.
    pub(crate) fn crash(&mut self, keeping: usize) -> (Vec<K>, Vec<K>) {
        let mut lost = Vec::new();
        while self.undo.len() > keeping {
            let undo = self.undo.pop();
            self.take_back(undo, &mut lost);
        }
        lost.sort();
        lost.dedup();
        let durable = self.force(self.position());
        (lost, durable)
    }

    fn take_back(&mut self, undo: Option<Vec<(K, Option<V>)>>, lost: &mut Vec<K>) {
        for (key, before) in undo.into_iter().flatten().rev() {
            match before {
                Some(before) => self.cells.insert(key.clone(), before),
                None => self.cells.remove(&key),
            };
            lost.push(key);
        }
    }

    /// Breaks the promise: loses all that was not forced and so many that were, as after a restore from a backup or
    /// under a disk that lies about its flushes. Returns the cells whose durable value is another one now.
    pub(crate) fn go_back(&mut self, count: usize) -> Vec<K> {
        let mut not_forced = Vec::new();
        while let Some(undo) = self.undo.pop() {
            self.take_back(Some(undo), &mut not_forced);
        }
        let mut lost = Vec::new();
        for _ in 0..count {
            let undo = self.history.pop_back();
            self.take_back(undo, &mut lost);
        }
        lost.sort();
        lost.dedup();
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loses_a_suffix_of_what_was_not_forced() {
        let mut kept = std::collections::BTreeSet::new();
        for keeping in 0..3 {
            let mut disk = Disk::new(4);
            let first = disk.commit(vec![("a", Some(1)), ("b", Some(1))]);
            disk.force(first);
            disk.commit(vec![("a", Some(2)), ("b", Some(2))]);
            disk.commit(vec![("a", Some(3)), ("b", None)]);
            assert_eq!(disk.durable(&"a"), Some(&1));
            disk.crash(keeping);
            kept.insert((disk.get(&"a").copied(), disk.get(&"b").copied()));
        }
        let expected = [(Some(1), Some(1)), (Some(2), Some(2)), (Some(3), None)];
        assert_eq!(kept, expected.into());
    }
}
