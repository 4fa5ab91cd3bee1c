//! What a participant stores and says.

use std::collections::BTreeSet;

use unanimous_protocol::{
    branch::State,
    id::{ParticipantName, TransactionId},
    message::{Reply, Vote},
    record::{Decision, Part, Verdict},
};

use super::{Checker, Seen};

impl Checker {
    /// A coordinator calls the branch to prepare.
    pub(crate) fn was_asked(&self, id: TransactionId, participant: &ParticipantName) -> bool {
        let known = self.transactions.get(&id);
        let seen = known.and_then(|known| known.branches.get(participant));
        seen.is_some_and(|seen| seen.asked)
    }

    /// Whether a branch answered read-only: a late duplicate of its prepare may find something to do.
    pub(crate) fn said_read_only(&self, id: TransactionId, name: &ParticipantName) -> bool {
        let known = self.transactions.get(&id);
        known
            .and_then(|known| known.branches.get(name))
            .is_some_and(|seen| seen.said_read_only)
    }

    /// A coordinator hears an answer of a branch whose call it had given up.
    pub(crate) fn hears_late(&mut self, id: TransactionId, participant: &ParticipantName) {
        if !self.over.contains(&id) {
            self.seen(id, participant).heard_late = true;
        }
    }

    /// Whether a branch gave two different votes, and one of them was heard after its call was given up. A read-only vote is
    /// not stored, and a *no* not forced: a repeat of the prepare, after a crash, may find something else.
    pub(crate) fn was_overtaken(&self, id: TransactionId, name: &ParticipantName) -> bool {
        let known = self.transactions.get(&id);
        known
            .and_then(|known| known.branches.get(name))
            .is_some_and(|seen| {
                let votes = [seen.said_yes, seen.said_no, seen.said_read_only];
                seen.heard_late && votes.into_iter().filter(|said| *said).count() > 1
            })
    }

    /// A participant answers; called when the answer leaves.
    pub(crate) fn participant_says(
        &mut self,
        id: TransactionId,
        participant: &ParticipantName,
        reply: &Reply,
        visible: Option<&State>,
        durable: Option<&State>,
    ) {
        if self.over.contains(&id) {
            return;
        }
        let betrayed = self.is_betrayed(id);
        let expected = self.expects_alarms;
        let committed = self.transactions.get(&id).is_some_and(|known| {
            let decision = known.decision.as_ref();
            decision.is_some_and(|decision| {
                decision.verdict == Verdict::Commit
                    && decision.updating().any(|name| name == participant)
            })
        });
        let seen = self.seen(id, participant);
        let holds = match reply {
            Reply::Vote(Vote::Yes) => {
                seen.said_yes = true;
                // `Aborted` where the coordinator's word overtook the answer, and nothing where pruning did, too.
                let overtaken = seen.pruned && matches!(visible, Some(State::Pruned { .. }));
                overtaken
                    || matches!(
                        durable,
                        Some(State::Prepared { .. } | State::Committed { .. } | State::Aborted)
                    )
            }
            Reply::Vote(Vote::ReadOnly) => {
                seen.said_read_only = true;
                true
            }
            Reply::Vote(Vote::No(_)) => {
                seen.said_no = true;
                // A no after a yes is only repeated news of an abort.
                !matches!(
                    durable,
                    Some(State::Prepared { .. } | State::Committed { .. })
                ) || matches!(visible, Some(State::Aborted))
                    || betrayed
            }
            Reply::Committed => {
                seen.said_committed = true;
                let overtaken = seen.pruned && matches!(visible, Some(State::Pruned { .. }));
                matches!(durable, Some(State::Committed { .. })) || (overtaken && committed)
            }
            // Below the mark the absence of a row says so, of what did not commit.
            Reply::Aborted => match visible {
                Some(State::Pruned { .. }) => !committed,
                Some(State::Aborted | State::Refused { .. } | State::Tombstone) => true,
                Some(
                    State::Absent
                    | State::Active { .. }
                    | State::Working { .. }
                    | State::Prepared { .. }
                    | State::Applying { .. }
                    | State::Undoing
                    | State::Committed { .. },
                )
                | None => false,
            },
            // To a late duplicate of a commit that was acknowledged long ago.
            Reply::VoteLost if seen.pruned && seen.said_committed => true,
            // Where nobody loses a durable row, nobody answers these.
            Reply::VoteLost | Reply::OutcomeDiffers => betrayed || expected,
        };
        self.require(holds, || {
            format!("{participant} says {reply:?} of {id}: row {visible:?}, durably {durable:?}")
        });
    }

    pub(super) fn seen(&mut self, id: TransactionId, participant: &ParticipantName) -> &mut Seen {
        let known = self.transactions.entry(id).or_default();
        known.branches.entry(participant.clone()).or_default()
    }

    /// A client is told that a piece of interactive work is done.
    pub(crate) fn work_done(
        &mut self,
        id: TransactionId,
        participant: &ParticipantName,
        piece: u32,
    ) {
        if !self.over.contains(&id) {
            self.seen(id, participant).done.insert(piece);
        }
    }

    /// A local transaction of a participant has changed a row.
    pub(crate) fn row_changed(
        &mut self,
        id: TransactionId,
        participant: &ParticipantName,
        before: Option<&State>,
        after: &State,
        applied: u32,
        work: &BTreeSet<u32>,
    ) {
        if self.over.contains(&id) {
            // A late duplicate of its prepare may find a mark that is not durable yet, and asks then.
            let committed = matches!(after, State::Committed { .. });
            return self.require(!committed, || {
                format!("{participant} commits {id}, of which nothing was left")
            });
        }
        let betrayed = self.is_betrayed(id);
        let decision = self
            .transactions
            .get(&id)
            .and_then(|known| known.decision.clone());
        let updates = decision.as_ref().is_some_and(|decision| {
            decision.verdict == Verdict::Commit
                && decision.branches.get(participant) == Some(&Part::Updates)
        });
        let seen = self.seen(id, participant);
        if matches!(after, State::Prepared { .. }) {
            seen.prepared.clone_from(work);
        }
        let told_aborted = seen.told_aborted;
        // A lost row can be refused where the log has committed; it can not commit where the log has not.
        let updates = updates && (!betrayed || matches!(after, State::Committed { .. }));
        let moves = match (before, after) {
            (None, State::Prepared { .. } | State::Refused { .. } | State::Tombstone) => true,
            (Some(State::Prepared { .. }), State::Committed { .. } | State::Aborted) => true,
            (before, after) => before == Some(after),
        };
        self.require(moves, || {
            format!("AC2: {participant}'s row of {id} goes from {before:?} to {after:?}")
        });
        let committed = matches!(after, State::Committed { .. });
        self.require(applied == u32::from(committed), || {
            format!("{participant} has applied {id} {applied} times, its row is {after:?}")
        });
        match after {
            State::Committed { .. } => self.require(updates, || {
                format!("AC1: {participant} commits {id}, which the log has not committed")
            }),
            State::Aborted => {
                self.require(!updates, || {
                    format!("AC1: {participant} aborts {id}, which is committed")
                });
                self.require(told_aborted, || {
                    format!("{participant} aborts {id} after its yes, without being told")
                });
            }
            State::Refused { .. } | State::Tombstone => self.require(!updates, || {
                format!("AC1: {participant} refuses {id}, which is committed")
            }),
            State::Prepared { .. } => {}
            State::Absent
            | State::Pruned { .. }
            | State::Active { .. }
            | State::Working { .. }
            | State::Applying { .. }
            | State::Undoing => self.violated(format!("{participant} stores {after:?} for {id}")),
        }
    }

    /// What a crash would leave of a row.
    pub(crate) fn row_durable(
        &mut self,
        id: TransactionId,
        participant: &ParticipantName,
        state: Option<&State>,
    ) {
        if !self.over.contains(&id) {
            self.seen(id, participant).durable = state.cloned();
        }
    }

    /// A row with an outcome is dropped below the low-water mark: nobody may need it any more (rule 15).
    pub(crate) fn pruned(&mut self, id: TransactionId, participant: &ParticipantName) {
        if self.over.contains(&id) {
            return;
        }
        let excused = self.went_back || self.is_betrayed(id);
        let fenced = self.is_fenced(id);
        let Some(known) = self.transactions.get_mut(&id) else {
            return self.violated(format!("{participant} drops {id}, which nobody began"));
        };
        let may_still_commit = known.undecided && known.decision.is_none() && !fenced;
        let commit = known
            .decision
            .iter()
            .filter(|decision| decision.verdict == Verdict::Commit);
        let open = commit.flat_map(Decision::updating).any(|name| {
            !known
                .branches
                .get(name)
                .is_some_and(|seen| seen.said_committed)
        });
        known
            .branches
            .entry(participant.clone())
            .or_default()
            .pruned = true;
        self.require(!may_still_commit && !open || excused, || {
            format!("{participant} drops its row of {id}, which is not finished")
        });
    }

    /// A prepare is refused because of the low-water mark: only a late one may be.
    pub(crate) fn refused_below_the_mark(
        &mut self,
        id: TransactionId,
        participant: &ParticipantName,
    ) {
        if self.over.contains(&id) {
            return;
        }
        let fenced = self.is_fenced(id);
        let excused = self.went_back;
        let known = self.transactions.entry(id).or_default();
        let is_live = known.undecided && known.decision.is_none() && !fenced;
        self.require(!is_live || excused, || {
            format!("{participant} refuses a live prepare of {id} as below its low-water mark")
        });
    }
}
