//! What clients and branches are told: it must be so, and durable.

use unanimous_protocol::{
    id::{ParticipantName, TransactionId},
    life::Judgement,
    message::{Inform, RequestKind},
    operations::BodyDigest,
    record::{AbortCode, IdempotencyKey, Outcome, Part, Verdict},
};

use super::{Checker, is_without_effects};

impl Checker {
    /// Whether nobody who answers can know that it ends in an abort: it may yet commit, be issued, or is not ours.
    pub(super) fn may_still_commit(&self, id: TransactionId) -> bool {
        if self.over.contains(&id) {
            return false;
        }
        match self.transactions.get(&id).filter(|known| known.begun) {
            Some(known) => known.undecided && known.decision.is_none() && !self.is_fenced(id),
            None => !self.is_fenced(id) || !self.is_of_this_log(id),
        }
    }

    pub(super) fn is_of_this_log(&self, id: TransactionId) -> bool {
        self.epochs
            .keys()
            .any(|prefix| prefix.identity == id.identity())
    }

    /// A client is told that the retention of a transaction is over.
    pub(crate) fn told_forgotten(&mut self, id: TransactionId) {
        let may_still_commit = self.may_still_commit(id);
        self.require(!may_still_commit, || {
            format!("a client is told that {id} is forgotten, which may still commit")
        });
    }

    /// A client that asks by a key is told of a transaction: it must have been begun with the same request.
    pub(crate) fn told_by_key(&mut self, id: TransactionId, request: BodyDigest) {
        let known = self.transactions.get(&id);
        let same = known.is_some_and(|known| known.request == Some(request));
        self.require(same, || {
            format!("a client is told of {id} by its key, which was begun with another request")
        });
    }

    /// Nothing is known of an id that was issued: only after the log lost the epoch it was issued in.
    pub(crate) fn judged_unknown(&mut self, id: TransactionId, judgement: Judgement) {
        let issued = self.transactions.get(&id).is_some_and(|known| known.begun);
        let excused = !issued || self.went_back;
        self.require(excused, || {
            format!("an id that was issued is {judgement:?}: {id}")
        });
    }

    /// A coordinator calls a branch.
    pub(crate) fn coordinator_asks(
        &mut self,
        id: TransactionId,
        participant: &ParticipantName,
        kind: RequestKind,
    ) {
        match kind {
            RequestKind::Prepare => self.seen(id, participant).asked = true,
            RequestKind::Commit => self.told_branch(id, participant, Inform::Committed),
            RequestKind::Abort => self.told_branch(id, participant, Inform::Aborted),
        }
    }

    /// A coordinator tells a branch its outcome.
    pub(crate) fn told_branch(
        &mut self,
        id: TransactionId,
        participant: &ParticipantName,
        inform: Inform,
    ) {
        if self.over.contains(&id) {
            return;
        }
        let may_still_commit = self.may_still_commit(id);
        let known = self.transactions.entry(id).or_default();
        // Rule 16: of a name that a committed transaction does not have, nobody knows anything.
        let no_such_name = known.decision.as_ref().is_some_and(|decision| {
            let part = decision.branches.get(participant);
            decision.verdict == Verdict::Commit && !known.forgotten && part.is_none()
        });
        let seen = known.branches.entry(participant.clone()).or_default();
        let updates = known.decision.as_ref().is_some_and(|decision| {
            decision.verdict == Verdict::Commit
                && decision.branches.get(participant) == Some(&Part::Updates)
        });
        match inform {
            Inform::Pending => {}
            Inform::Committed => self.require(updates, || {
                format!("{participant} is told that {id} is committed, without a durable record")
            }),
            Inform::Aborted => {
                seen.told_aborted = true;
                // After the branch has acknowledged and the record is gone, "aborted" moves nothing.
                let gone = known.forgotten || known.lost;
                let over = gone && seen.said_committed || known.betrayed;
                self.require(!updates || over, || {
                    format!("AC1: {participant} is told that {id} is aborted, but it is committed")
                });
                self.require(!may_still_commit, || {
                    format!("{participant} is told that {id} is aborted, which may still commit")
                });
                self.require(!no_such_name || gone, || {
                    format!("{participant} is told that {id} is aborted, which commits without it")
                });
            }
        }
    }

    /// A coordinator tells a client; by the key, or by the id.
    pub(crate) fn told_client(
        &mut self,
        id: TransactionId,
        outcome: Outcome,
        code: Option<AbortCode>,
        by_key: Option<&IdempotencyKey>,
    ) {
        if self.over.contains(&id) {
            return;
        }
        let fenced = self.is_fenced(id);
        let may_still_commit = self.may_still_commit(id);
        let known = self.transactions.entry(id).or_default();
        // A reading from before the retention ended may be told after it, when the key is free again.
        let key_is_free = known.refused || known.forgotten || known.lost;
        let refused = known.refused;
        let durable = known.decision.as_ref();
        let unforced = known.key.is_none() && durable.is_none_or(is_without_effects);
        match outcome {
            Outcome::Committed => {
                known.told_committed = true;
                // Without a durable record it must be one without effects: no branch of it may be in doubt. But for one that
                // voted read-only, and yes to a late duplicate: it is told "aborted" (rule 16).
                let holds = durable.is_some_and(|d| d.verdict == Verdict::Commit)
                    || (unforced
                        && !known
                            .branches
                            .values()
                            .any(|seen| seen.said_yes && !seen.said_read_only));
                self.require(holds, || {
                    format!("a client is told that {id} is committed, without a durable record")
                });
            }
            Outcome::Aborted => {
                known.told_aborted = true;
                let committed = durable.is_some_and(|d| d.verdict == Verdict::Commit);
                // Until somebody notices that the log went back, its silence is believed (docs/PROOF.md).
                let holds = !committed || unforced || known.lost;
                let recorded = durable.is_some();
                let keyed = known.key.clone();
                self.require(holds && !may_still_commit, || {
                    format!("a client is told that {id} is aborted, but it is or may be committed")
                });
                // Rule 21: with a key an abort is durable before it is told.
                if let Some(key) = keyed {
                    let winner = self.keys.get(&key).and_then(|facts| facts.holder);
                    let lost = code == Some(AbortCode::Duplicate)
                        && winner.is_none_or(|winner| winner != id);
                    self.require(recorded || fenced || lost || refused, || {
                        format!("a client is told that {id} (key {key}) is aborted: not durable")
                    });
                }
            }
        }
        if let Some(key) = by_key
            && !key_is_free
        {
            let facts = self.keys.entry(key.clone()).or_default();
            let holder = facts.holder;
            let first = *facts.told.get_or_insert((id, outcome));
            self.require(first == (id, outcome), || {
                format!("by key {key} clients are told {first:?} and {id} {outcome:?}")
            });
            self.require(holder.is_none_or(|holder| holder == id), || {
                format!("by key {key} a client is told of {id}, but {holder:?} holds it")
            });
        }
    }
}
