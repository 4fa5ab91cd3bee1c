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

mod branches;
mod over;
mod told;

use std::collections::{BTreeMap, BTreeSet};

use unanimous_protocol::{
    branch::State,
    coordinator::Alarm,
    id::{Epoch, LogIdentity, ParticipantName, Prefix, TransactionId},
    life::Writer,
    operations::BodyDigest,
    record::{Decision, IdempotencyKey, KeyClaim, Outcome, Part, Record, Verdict},
};

/// What is known of one branch.
#[derive(Debug, Default)]
struct Seen {
    /// A coordinator asked it to prepare.
    asked: bool,
    /// What a crash would leave of its row.
    durable: Option<State>,
    said_yes: bool,
    said_no: bool,
    /// A coordinator heard an answer after its call was given up.
    heard_late: bool,
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

    /// A machine raised an alarm; in this world nobody lies, so there is no cause for one.
    pub(crate) fn alarm(&mut self, id: TransactionId, what: &Alarm) {
        if self.expects_alarms {
            return;
        }
        // A zombie may see a branch change its mind: the branch asked the successor in between.
        let fenced = self.is_fenced(id);
        // And an answer may come here after its call was given up, also the vote that was asked for again, and turned to
        // another one. No courier hears such an answer.
        let overtaken = match what {
            Alarm::VoteChanged(name) => self.was_overtaken(id, name),
            Alarm::VoteLost(_)
            | Alarm::OutcomeDiffers(_)
            | Alarm::BelowLowWater(_)
            | Alarm::DecisionContradicted => false,
        };
        let excused = fenced || overtaken || self.is_betrayed(id);
        self.require(excused, || format!("alarm for {id}: {what:?}"));
    }

    /// Every transaction and its durable decision, where it has one.
    pub(crate) fn decisions(&self) -> impl Iterator<Item = (TransactionId, Option<&Decision>)> {
        self.transactions
            .iter()
            .map(|(id, known)| (*id, known.decision.as_ref()))
    }
}
