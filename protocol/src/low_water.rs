//! The low-water mark (design rule 15): how a participant comes to forget, without ever asking.
//!
//! Every call carries a mark L, an id. It promises of all ids of L's prefix below it that they are finished, and that
//! their finish is durable: no crash brings one of them back. So a participant may drop the rows of such ids that have an
//! outcome, and once it has, a missing row below the mark means "finished" where it would else mean "never heard of"
//! ([`crate::branch::State::without_row`]).
//!
//! This is the coordinator's half. L is the smallest id that may still need its branches, or the next one to be issued.
//! It never falls: ids are issued in rising order, and each is registered as it is issued, before anybody can see it.
//!
//! What makes "finished" true:
//! - a decided abort is finished at once, for nobody's absence can make a commit of it;
//! - a commit is finished once every updating branch has acknowledged *and* its finish is durable. Before that a crash
//!   brings it back, and its branches, whose rows would be gone, would answer `vote-lost`;
//! - what an earlier life left is in memory before the first mark leaves, and nothing is published before a forced write
//!   that began after it was read has returned: the finishes that were read are only then known to be durable.
//!
//! Left out: marks for other prefixes than the life's own (adopted nodes, former identities). Their rows are pruned once
//! their node has a coordinator of its own again, or never.

use std::collections::BTreeSet;

use crate::id::TransactionId;

/// The mark, where it says something of `id`: a mark speaks of its own prefix only.
#[must_use]
pub fn about(id: TransactionId, mark: Option<TransactionId>) -> Option<TransactionId> {
    mark.filter(|mark| mark.prefix() == id.prefix())
}

/// The mark, where it says that `id` is finished.
#[must_use]
pub fn above(id: TransactionId, mark: Option<TransactionId>) -> Option<TransactionId> {
    about(id, mark).filter(|mark| id < *mark)
}

/// Which ids a mark may not pass. See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LowWater {
    /// Of the life's own prefix.
    unfinished: BTreeSet<TransactionId>,
    /// What an earlier life left is in `unfinished`.
    recovered: bool,
    /// What was read of earlier lives' finishes is durable.
    proven: bool,
}

impl LowWater {
    /// All that earlier lives left unfinished, as the log had it when it was read.
    pub fn recovered(&mut self, unfinished: impl IntoIterator<Item = TransactionId>) {
        self.unfinished.extend(unfinished);
        self.recovered = true;
    }

    /// A forced write that began after [`Self::recovered`] has returned.
    pub fn forced(&mut self) {
        self.proven = self.recovered;
    }

    /// An id was issued. Nobody has seen it yet.
    pub fn issued(&mut self, id: TransactionId) {
        self.unfinished.insert(id);
    }

    /// The transaction is a decided abort, or a commit whose finish is durable.
    pub fn finished(&mut self, id: TransactionId) {
        self.unfinished.remove(&id);
    }

    /// The mark; `next` is the id that would be issued now. `None` while nothing may be promised.
    #[must_use]
    pub fn mark(&self, next: Option<TransactionId>) -> Option<TransactionId> {
        if !self.proven {
            return None;
        }
        self.unfinished.first().copied().or(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Epoch, LogIdentity, Node, Prefix, Sequence};

    fn id(epoch: u32, sequence: u64) -> TransactionId {
        id_of(1, epoch, sequence)
    }

    fn id_of(node: u16, epoch: u32, sequence: u64) -> TransactionId {
        let prefix = Prefix {
            identity: LogIdentity(7),
            node: Node(node),
        };
        TransactionId::new(
            prefix,
            Epoch::new(epoch).unwrap(),
            Sequence::new(sequence).unwrap(),
        )
    }

    /// Of a life that found nothing, and has written once.
    fn proven() -> LowWater {
        let mut low_water = LowWater::default();
        low_water.recovered([]);
        low_water.forced();
        low_water
    }

    #[test]
    fn a_mark_speaks_of_its_own_prefix_only_and_is_itself_unfinished() {
        let mark = Some(id(2, 10));
        assert_eq!(about(id(1, 90), mark), mark);
        assert_eq!(about(id(2, 11), mark), mark);
        assert_eq!(about(id_of(0, 2, 9), mark), None);
        assert_eq!(above(id(1, 90), mark), mark);
        assert_eq!(above(id(2, 9), mark), mark);
        assert_eq!(above(id(2, 10), mark), None);
        assert_eq!(above(id_of(0, 2, 9), mark), None);
        assert_eq!(above(id(2, 9), None), None);
    }

    #[test]
    fn the_mark_is_the_smallest_unfinished_id_or_the_next_one() {
        let mut low_water = proven();
        assert_eq!(low_water.mark(Some(id(2, 10))), Some(id(2, 10)));
        low_water.issued(id(2, 10));
        low_water.issued(id(2, 11));
        assert_eq!(low_water.mark(Some(id(2, 12))), Some(id(2, 10)));
        low_water.finished(id(2, 11));
        assert_eq!(low_water.mark(Some(id(2, 12))), Some(id(2, 10)));
        low_water.finished(id(2, 10));
        assert_eq!(low_water.mark(Some(id(2, 12))), Some(id(2, 12)));
    }

    #[test]
    fn what_an_earlier_epoch_left_unfinished_holds_the_mark() {
        let mut low_water = LowWater::default();
        low_water.recovered([id(1, 90)]);
        low_water.forced();
        low_water.issued(id(2, 10));
        assert_eq!(low_water.mark(Some(id(2, 11))), Some(id(1, 90)));
        low_water.finished(id(1, 90));
        assert_eq!(low_water.mark(Some(id(2, 11))), Some(id(2, 10)));
    }

    #[test]
    fn nothing_is_published_before_what_is_unfinished_is_loaded_and_a_later_write_has_returned() {
        let mut low_water = LowWater::default();
        low_water.issued(id(2, 10));
        assert_eq!(low_water.mark(Some(id(2, 11))), None);
        // A write that began before the log was read proves nothing of what was read.
        low_water.forced();
        assert_eq!(low_water.mark(Some(id(2, 11))), None);
        low_water.recovered([id(1, 90)]);
        assert_eq!(low_water.mark(Some(id(2, 11))), None);
        low_water.forced();
        assert_eq!(low_water.mark(Some(id(2, 11))), Some(id(1, 90)));
    }
}
