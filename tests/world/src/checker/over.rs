//! Transactions of which nothing is left, in a world that goes on and on.

use unanimous_protocol::{
    id::{ParticipantName, TransactionId},
    record::{Outcome, Verdict},
};

use super::Checker;

impl Checker {
    /// How many transactions may still have something left somewhere.
    pub(crate) fn not_over(&self) -> usize {
        self.transactions.len()
    }

    /// What was applied of a transaction of which nothing else is left.
    pub(crate) fn applied_in_the_end(
        &mut self,
        id: TransactionId,
        participant: &ParticipantName,
        applied: u32,
    ) {
        let decision = self
            .transactions
            .get(&id)
            .and_then(|known| known.decision.as_ref());
        let updates = decision.is_some_and(|decision| {
            decision.verdict == Verdict::Commit
                && decision.updating().any(|name| name == participant)
        });
        self.require(applied == u32::from(updates), || {
            format!("{participant} has applied {id} {applied} times in the end")
        });
    }

    /// Nothing is left of it; and how it ended, where there was a record.
    pub(crate) fn is_over(&mut self, id: TransactionId) -> Option<Outcome> {
        let known = self.transactions.remove(&id)?;
        let open = known.decision.as_ref().is_some_and(|decision| {
            let acknowledged = |name| {
                known
                    .branches
                    .get(name)
                    .is_some_and(|seen| seen.said_committed)
            };
            decision.verdict == Verdict::Commit && !decision.updating().all(acknowledged)
        });
        self.require(!open, || {
            format!("nothing of {id} is left, and not everybody has acknowledged the commit")
        });
        self.over.insert(id);
        if let Some(key) = known.key {
            let run = (key.clone(), id.prefix(), id.epoch());
            if self.running.get(&run) == Some(&id) {
                self.running.remove(&run);
            }
            let facts = self.keys.get(&key);
            if facts.is_some_and(|facts| facts.holder.is_none_or(|holder| holder == id)) {
                self.keys.remove(&key);
            }
        }
        known.decision.map(|decision| decision.verdict.outcome())
    }

    /// Nothing comes so late any more.
    pub(crate) fn forget_that_it_was(&mut self, id: TransactionId) {
        self.over.remove(&id);
    }
}
