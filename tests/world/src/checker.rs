//! Watches everything that becomes durable and everything that is said, and is asked after every event. It knows the
//! textbook (Bernstein, Hadzilacos, Goodman 1987, ch. 7), and nothing of the machines:
//!
//! - **AC1** all branches that decide decide alike (read-only ones are exempt), and as the log says;
//! - **AC2** nobody reverses: a durable decision, a row with an outcome, an answer that was given;
//! - **AC3** commit only where every branch voted yes, with a durable row, or read-only;
//! - **AC4** (in [`crate::world`]) a world without faults commits what everybody agreed to;
//! - **AC5** (in [`crate::world`]) once healed, everything ends.
//!
//! And what our own rules add: nothing is told before it is durable, nothing told is false, an effect is applied
//! once, a key has one commit.
//!
//! A participant that loses a durable row can not be helped: such a transaction may end differently in different
//! places, but it may not look finished, nothing may be acknowledged that is not so, and somebody must be told.
//!
//! One exemption: a commit in which no branch updates anything, without an idempotency key, is unforced. It may be
//! told "committed", be lost, and be told "aborted": for a transaction without effects both say the same.

use std::collections::{BTreeMap, BTreeSet};

use unanimous_protocol::{
    branch::State,
    id::{Epoch, LogIdentity, ParticipantName, Prefix, TransactionId},
    life::{Judgement, Writer},
    message::{Inform, Reply, RequestKind, Vote},
    operations::BodyDigest,
    record::{AbortCode, Decision, IdempotencyKey, KeyClaim, Outcome, Part, Record, Verdict},
};

/// What is known of one branch.
#[derive(Debug, Default)]
struct Seen {
    /// A coordinator asked it to prepare.
    asked: bool,
    /// What a crash would leave of its row.
    durable: Option<State>,
    said_yes: bool,
    said_read_only: bool,
    said_committed: bool,
    told_aborted: bool,
    /// Its row was dropped, below a low-water mark.
    pruned: bool,
    /// Pieces of interactive work that a client was told are done.
    done: BTreeSet<u32>,
    /// Pieces of interactive work in the prepared row.
    prepared: BTreeSet<u32>,
}

/// What is known of one transaction.
#[derive(Debug, Default)]
struct Known {
    /// A life issued the id. Others are made up.
    begun: bool,
    key: Option<IdempotencyKey>,
    /// What it was begun with.
    request: Option<BodyDigest>,
    /// The durable decision; it outlives the record.
    decision: Option<Decision>,
    told_aborted: bool,
    told_committed: bool,
    forgotten: bool,
    /// A participant lost its durable row of it.
    betrayed: bool,
    /// Its owner, if it still lives, may yet commit it.
    undecided: bool,
    /// The log can never hold a record of it.
    refused: bool,
    /// The log had a record of it and went back.
    lost: bool,
    branches: BTreeMap<ParticipantName, Seen>,
}

#[derive(Debug, Default)]
struct KeyFacts {
    /// The transaction whose durable record holds the key.
    holder: Option<TransactionId>,
    told: Option<(TransactionId, Outcome)>,
}

#[derive(Debug, Default)]
pub(crate) struct Checker {
    violation: Option<String>,
    transactions: BTreeMap<TransactionId, Known>,
    keys: BTreeMap<IdempotencyKey, KeyFacts>,
    /// The last transaction that each life began for a key.
    /// Transactions of which nothing is left, and which this checker has forgotten.
    over: BTreeSet<TransactionId>,
    running: BTreeMap<(IdempotencyKey, Prefix, Epoch), TransactionId>,
    epochs: BTreeMap<Prefix, u32>,
    /// The log's identity, once it has been given a new one.
    identity: Option<LogIdentity>,
    /// The log has gone back, and may be found out.
    went_back: bool,
    /// A script shows what raises one.
    pub(crate) expects_alarms: bool,
}

/// Whether losing this commit is only losing history.
fn is_without_effects(decision: &Decision) -> bool {
    decision.verdict == Verdict::Commit && decision.updating().next().is_none()
}

impl Checker {
    pub(crate) fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violated(what());
        }
    }

    pub(crate) fn begun(&mut self, id: TransactionId, claim: Option<&KeyClaim>) {
        let repeated = self.transactions.get(&id).is_some_and(|known| known.begun);
        self.require(!repeated, || format!("id {id} was issued twice"));
        let known = self.transactions.entry(id).or_default();
        known.begun = true;
        known.key = claim.map(|claim| claim.key.clone());
        known.request = claim.map(|claim| claim.request);
        known.undecided = true;
        let Some(claim) = claim else {
            return;
        };
        // Rule 21: a repeat does no work twice, in one life.
        let runs = self
            .running
            .insert((claim.key.clone(), id.prefix(), id.epoch()), id);
        let other = runs.filter(|other| self.transactions[other].undecided);
        self.require(other.is_none(), || {
            format!(
                "{id} is begun for key {}, which {other:?} of this life runs",
                claim.key
            )
        });
    }

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

    /// A coordinator calls the branch to prepare.
    pub(crate) fn was_asked(&self, id: TransactionId, participant: &ParticipantName) -> bool {
        let known = self.transactions.get(&id);
        let seen = known.and_then(|known| known.branches.get(participant));
        seen.is_some_and(|seen| seen.asked)
    }

    /// Whether nobody who answers can know that it ends in an abort: it may yet commit, be issued, or is not ours.
    fn may_still_commit(&self, id: TransactionId) -> bool {
        if self.over.contains(&id) {
            return false;
        }
        match self.transactions.get(&id).filter(|known| known.begun) {
            Some(known) => known.undecided && known.decision.is_none() && !self.is_fenced(id),
            None => !self.is_fenced(id) || !self.is_of_this_log(id),
        }
    }

    fn is_of_this_log(&self, id: TransactionId) -> bool {
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

    /// Whether its owner has still to decide it.
    pub(crate) fn stands(&mut self, id: TransactionId, undecided: bool) {
        if self.over.contains(&id) {
            return;
        }
        self.transactions.entry(id).or_default().undecided = undecided;
    }

    pub(crate) fn epoch_durable(&mut self, prefix: Prefix, epoch: u32) {
        let highest = self.epochs.entry(prefix).or_default();
        let before = *highest;
        // What was fenced stays so: a log goes back only where no older life is left to write again.
        *highest = before.max(epoch);
        let excused = self.went_back;
        self.require(before <= epoch || excused, || {
            format!("the epoch of {prefix} fell")
        });
    }

    /// Durable writes of the log are gone; which records, is told by [`Checker::record_lost`].
    pub(crate) fn log_went_back(&mut self) {
        self.went_back = true;
    }

    /// Its key may go to another one: nobody can know that it is taken.
    pub(crate) fn record_lost(&mut self, id: TransactionId) {
        if let Some(known) = self.transactions.get_mut(&id) {
            known.lost = true;
            if let Some(key) = &known.key {
                self.keys.remove(key);
            }
        }
    }

    pub(crate) fn is_lost(&self, id: TransactionId) -> bool {
        self.transactions.get(&id).is_some_and(|known| known.lost)
    }

    pub(crate) fn new_identity(&mut self, identity: LogIdentity) {
        self.identity = Some(identity);
    }

    /// A life says that the log went back.
    pub(crate) fn found_that_it_went_back(&mut self, why: &str) {
        let went_back = self.went_back;
        self.require(went_back, || format!("the log did not go back, but: {why}"));
    }

    /// Nothing is known of an id that was issued: only after the log lost the epoch it was issued in.
    pub(crate) fn judged_unknown(&mut self, id: TransactionId, judgement: Judgement) {
        let issued = self.transactions.get(&id).is_some_and(|known| known.begun);
        let excused = !issued || self.went_back;
        self.require(excused, || {
            format!("an id that was issued is {judgement:?}: {id}")
        });
    }

    fn is_fenced(&self, id: TransactionId) -> bool {
        self.identity
            .is_some_and(|identity| identity != id.identity())
            || self
                .epochs
                .get(&id.prefix())
                .is_some_and(|epoch| id.epoch().number() < *epoch)
    }

    /// A life ends itself because somebody newer rules: there must be somebody.
    pub(crate) fn ends_as_fenced(&mut self, writer: &Writer) {
        let prefix = Prefix {
            identity: writer.identity,
            node: writer.node,
        };
        let renamed = self
            .identity
            .is_some_and(|identity| identity != writer.identity);
        let newest = self.epochs.get(&prefix).copied().unwrap_or_default();
        self.require(renamed || newest > writer.epoch.number(), || {
            format!("a life ends as fenced, and nobody has fenced {writer}")
        });
    }

    /// A record has become durable.
    pub(crate) fn log_durable(&mut self, record: &Record) {
        let id = record.header.id;
        let decision = &record.decision;
        let known = self.transactions.get_mut(&id).filter(|known| known.begun);
        let Some(known) = known else {
            return self.violated(format!("a record of {id}, which nobody began"));
        };
        if let Some(earlier) = &known.decision {
            if earlier != decision {
                self.violated(format!("AC2: the log's decision of {id} changed"));
            }
            return;
        }
        known.decision = Some(decision.clone());
        if decision.verdict != Verdict::Commit {
            if let Some(claim) = &record.header.key {
                self.key_held(&claim.key, id);
            }
            return;
        }
        let told_aborted = known.told_aborted;
        let mut wrong = Vec::new();
        for (participant, part) in &decision.branches {
            let seen = known.branches.entry(participant.clone()).or_default();
            match part {
                Part::Updates => {
                    if !seen.said_yes {
                        wrong.push(format!("AC3: {id} commits without a yes of {participant}"));
                    }
                    if !matches!(seen.durable, Some(State::Prepared { .. })) {
                        wrong.push(format!(
                            "AC3: {id} commits while {participant}'s durable row is {:?}",
                            seen.durable
                        ));
                    }
                    if seen.told_aborted {
                        wrong.push(format!("AC1: {id} commits, {participant} was told aborted"));
                    }
                    if !seen.done.is_subset(&seen.prepared) {
                        wrong.push(format!(
                            "{id} commits without work that {participant} had done for a client"
                        ));
                    }
                }
                Part::ReadOnly => {
                    if !seen.said_read_only {
                        wrong.push(format!("AC3: {id} commits without a vote of {participant}"));
                    }
                }
                Part::Refused | Part::Unanswered | Part::Untouched => {
                    wrong.push(format!("AC3: {id} commits, {participant} is {part:?}"));
                }
            }
        }
        let missing: Vec<_> = known
            .branches
            .iter()
            .filter(|(name, seen)| !seen.done.is_empty() && !decision.branches.contains_key(*name))
            .map(|(name, _)| name.clone())
            .collect();
        if !missing.is_empty() {
            wrong.push(format!("{id} commits without the branches {missing:?}"));
        }
        if told_aborted && !(is_without_effects(decision) && record.header.key.is_none()) {
            wrong.push(format!("{id} commits, and a client was told aborted"));
        }
        let betrayed = known.betrayed;
        if let Some(first) = wrong.into_iter().next()
            && !betrayed
        {
            self.violated(first);
        }
        if let Some(claim) = &record.header.key {
            self.key_held(&claim.key, id);
        }
    }

    fn key_held(&mut self, key: &IdempotencyKey, id: TransactionId) {
        let facts = self.keys.entry(key.clone()).or_default();
        let other = facts.holder.filter(|holder| *holder != id);
        facts.holder = Some(id);
        self.require(other.is_none(), || {
            format!("key {key} is held by {other:?} and by {id}")
        });
    }

    /// A participant has lost its durable row: from now on this transaction may end differently in different places,
    /// but it may not look finished, and everybody has to say so.
    pub(crate) fn betrayed(&mut self, id: TransactionId) {
        self.transactions.entry(id).or_default().betrayed = true;
    }

    pub(crate) fn is_betrayed(&self, id: TransactionId) -> bool {
        self.transactions
            .get(&id)
            .is_some_and(|known| known.betrayed)
    }

    /// A branch will answer `vote-lost` for ever: its row was lost; or it was pruned, and the log that had it finished went
    /// back.
    pub(crate) fn waits_for_an_operator(&self, id: TransactionId) -> bool {
        let known = self.transactions.get(&id);
        known.is_some_and(|known| {
            let pruned = known.branches.values().any(|seen| seen.pruned);
            known.betrayed || (self.went_back && pruned)
        })
    }

    pub(crate) fn anybody_betrayed(&self) -> bool {
        self.transactions.values().any(|known| known.betrayed)
    }

    /// The log clearly refused the record: no record of it can ever be. So an outcome by its key does not last.
    pub(crate) fn record_refused(&mut self, id: TransactionId) {
        self.transactions.entry(id).or_default().refused = true;
    }

    /// Retention is over: the key is free again.
    pub(crate) fn forgotten(&mut self, id: TransactionId) {
        if let Some(known) = self.transactions.get_mut(&id) {
            known.forgotten = true;
            if let Some(key) = &known.key {
                self.keys.remove(key);
            }
        }
    }

    /// The log is told that all acknowledged.
    pub(crate) fn finished(&mut self, id: TransactionId) {
        let Some(known) = self.transactions.get(&id) else {
            return;
        };
        let open: Vec<_> = known
            .decision
            .iter()
            .flat_map(Decision::updating)
            .filter(|name| {
                // Where a row was lost: it must have acknowledged, durably, before.
                !known.branches.get(*name).is_some_and(|seen| {
                    // Or it was pruned: an older life may come late with a finish that its successor has written.
                    matches!(seen.durable, Some(State::Committed { .. }))
                        || ((known.betrayed || seen.pruned) && seen.said_committed)
                })
            })
            .cloned()
            .collect();
        self.require(open.is_empty(), || {
            format!("{id} is finished while {open:?} have not committed durably")
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

    /// Whether a branch answered read-only and then yes: a late duplicate of its prepare found something to do.
    pub(crate) fn changed_from_read_only(&self, id: TransactionId, name: &ParticipantName) -> bool {
        let known = self.transactions.get(&id);
        known
            .and_then(|known| known.branches.get(name))
            .is_some_and(|seen| seen.said_read_only)
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

    fn seen(&mut self, id: TransactionId, participant: &ParticipantName) -> &mut Seen {
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

    /// A machine raised an alarm; in this world nobody lies, so there is no cause for one.
    pub(crate) fn alarm(&mut self, id: TransactionId, what: String) {
        if self.expects_alarms {
            return;
        }
        // A zombie may see a branch change its mind: the branch asked the successor in between.
        let fenced = self.is_fenced(id);
        let excused = fenced || self.is_betrayed(id);
        self.require(excused, || format!("alarm for {id}: {what}"));
    }

    /// Every transaction and its durable decision, where it has one.
    pub(crate) fn decisions(&self) -> impl Iterator<Item = (TransactionId, Option<&Decision>)> {
        self.transactions
            .iter()
            .map(|(id, known)| (*id, known.decision.as_ref()))
    }
}
