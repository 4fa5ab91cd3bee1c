//! What must hold, by the textbook's numbers (Bernstein, Hadzilacos, Goodman 1987, ch. 7) and our own rules: the same
//! that [`crate::checker`] asks of a simulated world.
//!
//! What a step does wrong is noted in the state that it leads to, which has no successors. What anybody *could* be told
//! is a property of the state itself (the search sees every state, so nobody needs to ask): what is told is true, and
//! stays true, for a commit becomes durable only where nothing else may have been told.

use std::sync::LazyLock;

use unanimous_protocol::{
    branch::{Answer, Branch, Effect, Event, State as RowState},
    id::{Epoch, LogIdentity, ParticipantName, Prefix, Sequence, TransactionId},
    life::{Judgement, Life, Snapshot, Standing},
    message::{Inform, Reply},
    operations::BodyDigest,
    record::{AbortCode, Decision, Outcome, Part, Verdict},
};

use super::state::{
    FORMER, IDENTITY, NAMES, NODES_MAX, Participant, Row, Said, State, node_of, prefix,
};

/// Which of the checks failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Ac1,
    Ac2,
    Ac3,
    Ac4,
    Told,
    Effects,
    Key,
    LowWater,
    Alarm,
}

/// A step that was wrong.
#[derive(Clone, Debug)]
pub(super) struct Wrong {
    pub(super) rule: Rule,
    pub(super) what: String,
}

/// What a coordinator says of a transaction.
pub(super) enum Known<'a> {
    /// It could tell this, to whoever asks.
    Decision(Outcome, Option<AbortCode>, Option<&'a Decision>),
    /// Its memory holds it, undecided.
    Undecided,
    /// Its memory does not hold it, and it says nothing of the outcome.
    Judged(Judgement),
}

impl State {
    pub(super) fn require(&mut self, holds: bool, rule: Rule, what: impl FnOnce() -> String) {
        if !holds && self.wrong.is_none() {
            self.wrong = Some(Box::new(Wrong { rule, what: what() }));
        }
    }

    pub(super) fn is_fenced(&self, transaction: usize) -> bool {
        let id = self.transactions[transaction].id;
        id.epoch().number() < self.log.durable.epochs[node_of(id)]
    }

    /// The durable decision.
    pub(super) fn decided(&self, transaction: usize) -> Option<&Decision> {
        let record = self.log.durable.records[transaction].as_ref();
        record.map(|record| &*record.decision)
    }

    pub(super) fn is_committed(&self, transaction: usize) -> bool {
        let decision = self.decided(transaction);
        decision.is_some_and(|decision| decision.verdict == Verdict::Commit)
    }

    /// Whether the branch is to commit, durably decided.
    pub(super) fn updates(&self, transaction: usize, participant: usize) -> bool {
        let decision = self.decided(transaction);
        decision.is_some_and(|decision| updates(decision, participant))
    }

    pub(super) fn may_still_commit(&self, transaction: usize) -> bool {
        let begun = &self.transactions[transaction];
        (begun.undecided && !begun.refused)
            && self.decided(transaction).is_none()
            && !self.is_fenced(transaction)
    }

    /// Whether the branch was told, or may be told any moment by what is on its way, that it is aborted.
    pub(super) fn was_told_aborted(&self, transaction: usize, participant: usize) -> bool {
        self.participants[participant].was_told_aborted(transaction)
    }

    /// Whether some participant lost its durable row of it: it may end differently in different places, but it may not look
    /// finished, nothing may be acknowledged that is not so, and somebody must be told.
    pub(super) fn is_betrayed(&self, transaction: usize) -> bool {
        let participants = self.participants.iter();
        participants.clone().any(|p| p.betrayed.has(transaction))
    }

    /// A record is about to become durable.
    pub(super) fn check_decision(&mut self, transaction: usize, decision: &Decision) {
        if decision.verdict != Verdict::Commit || self.is_betrayed(transaction) {
            return;
        }
        let without_effects = decision.updating().next().is_none();
        let may = self.may_still_commit(transaction);
        self.require(may || without_effects, Rule::Ac2, || {
            format!("transaction {transaction} commits after it may have been called aborted")
        });
        for participant in 0..self.participants.len() {
            let part = decision.branches.get(&NAMES[participant]).copied();
            let p = self.participants[participant].clone();
            let is_prepared = matches!(
                p.durable.rows[transaction].state,
                Some(RowState::Prepared { .. })
            );
            let name = &NAMES[participant];
            match part {
                Some(Part::Updates) => {
                    self.require(p.said_yes.has(transaction), Rule::Ac3, || {
                        format!("{transaction} commits without a yes of {name}")
                    });
                    self.require(is_prepared, Rule::Ac3, || {
                        format!("{transaction} commits, {name}'s durable row is not prepared")
                    });
                    let told = self.was_told_aborted(transaction, participant);
                    self.require(!told, Rule::Ac1, || {
                        format!("{transaction} commits, {name} was told aborted")
                    });
                }
                Some(Part::ReadOnly) => {
                    self.require(p.said_read_only.has(transaction), Rule::Ac3, || {
                        format!("{transaction} commits without a vote of {name}")
                    });
                }
                Some(Part::Refused | Part::Unanswered | Part::Untouched) => {
                    self.require(false, Rule::Ac3, || {
                        format!("{transaction} commits, {name} is {part:?}")
                    });
                }
                // Who is not in it has nothing of it.
                None => self.require(!p.said_yes.has(transaction), Rule::Ac3, || {
                    format!("{transaction} commits without the branch of {name}")
                }),
            }
            // Interactive work that a client was told is done is in the commit.
            let worked_in = usize::from(p.durable.rows[transaction].worked_in);
            let all_there = p.done.iter().all(|session| session == worked_in);
            self.require(
                all_there && (p.done.is_empty() || part.is_some()),
                Rule::Effects,
                || format!("{transaction} commits without work that {name} had done"),
            );
        }
    }

    /// A commit is finished in the log.
    pub(super) fn check_finish(&mut self, transaction: usize) {
        for participant in 0..self.participants.len() {
            let p = &self.participants[participant];
            let has_committed = matches!(
                p.durable.rows[transaction].state,
                Some(RowState::Committed { .. })
            );
            let gone = p.pruned.has(transaction) || p.betrayed.has(transaction);
            let over = gone && p.said_committed.has(transaction);
            let holds = has_committed || over || !self.updates(transaction, participant);
            self.require(holds, Rule::Ac1, || {
                format!("{transaction} is finished, {participant} has not committed durably")
            });
        }
    }

    /// A coordinator tells a branch its outcome.
    pub(super) fn check_told(&mut self, transaction: usize, participant: usize, inform: Inform) {
        let updates = self.updates(transaction, participant);
        match inform {
            Inform::Pending => {}
            Inform::Committed => self.require(updates, Rule::Told, || {
                format!("{participant} is told committed of {transaction}, without a record")
            }),
            Inform::Aborted => {
                let excused = self.is_betrayed(transaction);
                self.require(!updates || excused, Rule::Ac1, || {
                    format!("{participant} is told aborted of {transaction}, which is committed")
                });
                let may = self.may_still_commit(transaction);
                self.require(!may, Rule::Told, || {
                    format!("{participant} is told aborted of {transaction}, which may commit")
                });
            }
        }
    }

    /// A participant's answer leaves.
    pub(super) fn check_said(&mut self, participant: usize, transaction: usize, said: Said) {
        let updates = self.updates(transaction, participant);
        let p = &self.participants[participant];
        let (visible, durable) = (&p.visible.rows[transaction], &p.durable.rows[transaction]);
        let is_pruned = p.pruned.has(transaction) && visible.state.is_none();
        let acknowledged = p.said_committed.has(transaction);
        let betrayed = p.betrayed.has(transaction);
        let holds = match said {
            Said::Yes => {
                is_pruned
                    || matches!(
                        durable.state,
                        Some(
                            RowState::Prepared { .. }
                                | RowState::Committed { .. }
                                | RowState::Aborted
                        )
                    )
            }
            Said::ReadOnly => true,
            Said::No | Said::NoBelowLowWater => {
                !matches!(
                    durable.state,
                    Some(RowState::Prepared { .. } | RowState::Committed { .. })
                ) || visible.state == Some(RowState::Aborted)
                    || (said == Said::NoBelowLowWater && is_pruned)
                    || betrayed
            }
            Said::Committed => {
                matches!(durable.state, Some(RowState::Committed { .. })) || (is_pruned && updates)
            }
            Said::Aborted => match visible.state {
                Some(RowState::Aborted | RowState::Refused { .. } | RowState::Tombstone) => true,
                None => p.is_below_mark(self.transactions[transaction].id) && !updates,
                Some(_) => false,
            },
            // To a late duplicate of a commit that was acknowledged long ago.
            Said::VoteLost => (p.pruned.has(transaction) && acknowledged) || betrayed,
            Said::CommitDiffers | Said::AbortDiffers => betrayed,
        };
        let row = visible.state.clone();
        self.require(holds, Rule::Told, || {
            format!("{participant} says {said:?} of {transaction}, its row is {row:?}")
        });
        if said == Said::NoBelowLowWater {
            let live = self.may_still_commit(transaction);
            self.require(!live, Rule::LowWater, || {
                format!("{participant} refuses a live prepare of {transaction} below the mark")
            });
        }
    }

    /// A local transaction has changed a row, or left it.
    pub(super) fn check_row(&mut self, participant: usize, transaction: usize, before: &Row) {
        let told_aborted = self.was_told_aborted(transaction, participant);
        let betrayed = self.participants[participant].betrayed.has(transaction);
        let after = self.participants[participant].visible.rows[transaction].clone();
        let moves = match (&before.state, &after.state) {
            (
                None,
                Some(RowState::Prepared { .. } | RowState::Refused { .. } | RowState::Tombstone),
            )
            | (
                Some(RowState::Prepared { .. }),
                Some(RowState::Committed { .. } | RowState::Aborted),
            ) => true,
            (before, after) => before == after,
        };
        self.require(moves, Rule::Ac2, || {
            format!(
                "{participant}'s row of {transaction} goes from {:?} to {:?}",
                before.state, after.state
            )
        });
        let is_prepared = matches!(after.state, Some(RowState::Prepared { .. }));
        let has_committed = matches!(after.state, Some(RowState::Committed { .. }));
        let as_it_should = after.applied == u8::from(has_committed)
            && after.reserved == is_prepared
            && after.key == is_prepared;
        self.require(as_it_should, Rule::Effects, || {
            format!("{participant} has of {transaction} {after:?}")
        });
        if before.state == after.state {
            return;
        }
        let p = &self.participants[participant];
        let id = self.transactions[transaction].id;
        let anew = p.pruned.has(transaction) && p.is_below_mark(id);
        self.require(!anew, Rule::Effects, || {
            format!("{participant} begins anew with {transaction}, which it had dropped")
        });
        // A lost row can be refused where the log has committed; it can not commit where the log has not.
        let updates = self.updates(transaction, participant) && (!betrayed || has_committed);
        let holds = match after.state {
            Some(RowState::Committed { .. }) => updates,
            Some(RowState::Aborted) => !updates && told_aborted,
            Some(RowState::Refused { .. } | RowState::Tombstone) => !updates,
            Some(_) | None => true,
        };
        self.require(holds, Rule::Ac1, || {
            format!(
                "{participant}'s row of {transaction} becomes {:?}",
                after.state
            )
        });
    }

    /// A row with an outcome is dropped: nobody may need it any more.
    pub(super) fn check_pruned(&mut self, participant: usize, transaction: usize) {
        let open = (0..self.participants.len()).any(|other| {
            self.updates(transaction, other)
                && !self.participants[other].said_committed.has(transaction)
        });
        let may = self.may_still_commit(transaction);
        self.require(!may && !open, Rule::LowWater, || {
            format!("{participant} drops its row of {transaction}, which is not finished")
        });
    }

    /// What a life could tell of a transaction now.
    pub(super) fn known_at(&self, life: usize, transaction: usize) -> Option<Known<'_>> {
        let running = self.running(life)?;
        let id = self.transactions[transaction].id;
        if let Some(machine) = self.machine(life, transaction) {
            return Some(match machine.told() {
                None => Known::Undecided,
                Some(decision) => of_decision(decision),
            });
        }
        let judgement = running
            .life
            .judge(running.life.ask(id), &self.snapshot(transaction));
        Some(self.known_by(judgement, transaction))
    }

    fn known_by(&self, judgement: Judgement, transaction: usize) -> Known<'_> {
        let record = self.log.visible.records[transaction].as_ref();
        match (judgement, record) {
            (Judgement::Recorded, Some(record)) => of_decision(&record.decision),
            (Judgement::Aborted(code), _) => Known::Decision(Outcome::Aborted, Some(code), None),
            (judgement, _) => Known::Judged(judgement),
        }
    }

    /// What the log says of a transaction.
    pub(super) fn snapshot(&self, transaction: usize) -> Snapshot {
        let content = &self.log.visible;
        let epoch = content.epochs[node_of(self.transactions[transaction].id)];
        Snapshot {
            recorded: content.records[transaction].is_some(),
            epoch: Epoch::new(epoch),
            identity: IDENTITY,
            former: vec![FORMER],
            forgotten_through: None,
        }
    }

    /// Whether all that clients could be told now is true.
    pub(super) fn tells_the_truth(&self) -> Result<(), String> {
        for life in 0..self.lives.len() {
            let Some(running) = self.running(life) else {
                continue;
            };
            if let Standing::WentBack(why) = running.life.standing() {
                return Err(format!("the log did not go back, but: {why}"));
            }
            self.guesses(&running.life)?;
            for transaction in 0..self.transactions.len() {
                self.forgotten(&running.life, life, transaction)?;
                self.by_key(life, transaction)?;
                match self.known_at(life, transaction) {
                    None | Some(Known::Undecided) => {}
                    Some(Known::Judged(judgement)) => {
                        if matches!(judgement, Judgement::NeverIssued | Judgement::Foreign) {
                            return Err(format!(
                                "{transaction}, which was issued, is {judgement:?}"
                            ));
                        }
                    }
                    Some(Known::Decision(outcome, code, decision)) => {
                        self.may_be_told(transaction, outcome, code, decision)
                            .map_err(|why| format!("{why} by life {}", life + 1))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Anybody can make up an id. One that nobody has issued yet, or that another log knows, may commit.
    fn guesses(&self, life: &Life) -> Result<(), String> {
        let first = Sequence::new(100).ok_or("a sequence")?;
        let mut snapshot = Snapshot {
            recorded: false,
            epoch: None,
            identity: IDENTITY,
            former: vec![FORMER],
            forgotten_through: None,
        };
        let mut guess = |newest: u32, id: TransactionId| {
            snapshot.epoch = Some(newest).filter(|e| *e > 0).and_then(Epoch::new);
            for mark in [None, Some(after(id))] {
                snapshot.forgotten_through = mark;
                let judgement = life.judge(life.ask(id), &snapshot);
                if judgement.inform() == Some(Inform::Aborted) {
                    return Err(format!("{id}, which may yet commit, is {judgement:?}"));
                }
            }
            Ok(())
        };
        for number in 0..NODES_MAX {
            let newest = self.log.visible.epochs[number];
            let next = Epoch::new(newest + 1).ok_or("an epoch")?;
            guess(newest, TransactionId::new(prefix(number), next, first))?;
        }
        let issued = self.transactions.iter().map(|begun| begun.id);
        let last = issued.filter(|id| life.writer().owns(*id)).max();
        let next = last.map_or(
            TransactionId::new(life.prefix(), life.writer().epoch, first),
            after,
        );
        let newest = self.log.visible.epochs[node_of(next)];
        // A newer life calls it aborted, and it is.
        if newest == next.epoch().number() {
            guess(newest, next)?;
        }
        for identity in [FORMER, LogIdentity(8)] {
            let prefix = Prefix {
                identity,
                ..prefix(0)
            };
            let epoch = Epoch::new(1).ok_or("an epoch")?;
            guess(2, TransactionId::new(prefix, epoch, first))?;
        }
        Ok(())
    }

    /// Whoever asks by the key is answered with the transaction that holds it.
    fn by_key(&self, life: usize, transaction: usize) -> Result<(), String> {
        let Some(machine) = self.machine(life, transaction) else {
            return Ok(());
        };
        let tells = machine.told().is_some() && !machine.lost_its_key();
        let holds = self.log.visible.holder == Some(transaction);
        let refused = self.transactions[transaction].refused;
        if self.is_keyed() && tells && !holds && !refused {
            return Err(format!(
                "by the key clients are told of {transaction}, which does not hold it"
            ));
        }
        Ok(())
    }

    /// Retention may be over, also of a later transaction than one without a record, with the mark above both. What would
    /// be called aborted without a record may have committed then: clients are told that it is forgotten, and branches, which
    /// have acknowledged, that they are aborted. Of what may still commit the mark says nothing.
    fn forgotten(&self, asked: &Life, life: usize, transaction: usize) -> Result<(), String> {
        let record = self.log.visible.records[transaction].as_ref();
        let is_kept = record.is_some_and(|record| !record.is_finished);
        if is_kept || self.machine(life, transaction).is_some() {
            return Ok(());
        }
        let id = self.transactions[transaction].id;
        let mut snapshot = Snapshot {
            recorded: false,
            ..self.snapshot(transaction)
        };
        let by_absence = asked.judge(asked.ask(id), &snapshot);
        snapshot.forgotten_through = Some(after(id));
        let judgement = asked.judge(asked.ask(id), &snapshot);
        let aborted = judgement.inform() == Some(Inform::Aborted);
        if aborted && self.may_still_commit(transaction) {
            return Err(format!("{transaction} is {judgement:?}, and may commit"));
        }
        let ends = judgement == Judgement::Forgotten && aborted;
        if matches!(by_absence, Judgement::Aborted(_)) && !ends {
            return Err(format!("{transaction} is {judgement:?}, and was forgotten"));
        }
        Ok(())
    }

    fn may_be_told(
        &self,
        transaction: usize,
        outcome: Outcome,
        code: Option<AbortCode>,
        told: Option<&Decision>,
    ) -> Result<(), String> {
        let durable = self.decided(transaction);
        let recorded = durable.or_else(|| {
            // Whoever tells from a record forces it first.
            let visible = self.log.visible.records[transaction].as_ref();
            visible.map(|record| &*record.decision)
        });
        let is_keyed = self.is_keyed();
        if let Some(told) = told
            && told.verdict == Verdict::Commit
            && told.inform(&STRANGER) != Inform::Pending
        {
            return Err(format!(
                "a name that {transaction} does not have is told an outcome"
            ));
        }
        match outcome {
            Outcome::Committed => {
                let without_effects = told.is_some_and(|d| d.updating().next().is_none());
                let in_doubt = self
                    .participants
                    .iter()
                    .any(|p| p.said_yes.has(transaction) && !p.said_read_only.has(transaction));
                let holds = recorded.is_some_and(|d| d.verdict == Verdict::Commit)
                    || (!is_keyed && without_effects && !in_doubt);
                if !holds {
                    return Err(format!(
                        "{transaction} is called committed without a record"
                    ));
                }
            }
            Outcome::Aborted => {
                let commits = durable.is_some_and(|d| {
                    d.verdict == Verdict::Commit && (is_keyed || d.updating().next().is_some())
                });
                if commits || self.may_still_commit(transaction) {
                    return Err(format!("{transaction} is called aborted, and may commit"));
                }
                let holder = self.log.visible.holder;
                let lost = code == Some(AbortCode::Duplicate) && holder != Some(transaction);
                let refused = self.transactions[transaction].refused;
                let excused = self.is_fenced(transaction) || lost || refused;
                if is_keyed && recorded.is_none() && !excused {
                    return Err(format!(
                        "{transaction} has a key and is called aborted: no record"
                    ));
                }
            }
        }
        Ok(())
    }

    /// What no coordinator ever sends moves no row, and is answered as `docs/API.md` says.
    pub(super) fn bears_forgery(&self) -> bool {
        let mut rows = self.participants.iter().flat_map(|p| &p.visible.rows);
        rows.all(|row| {
            let Some(state) = &row.state else {
                return true;
            };
            let answer = |event| {
                let mut effects = Vec::new();
                Branch::from_row(state.clone()).step(event, &mut effects);
                match effects.as_slice() {
                    [Effect::Answer { reply, .. }] => Some(reply.clone()),
                    _ => None,
                }
            };
            let differs = Some(Answer::Reply(Reply::OutcomeDiffers));
            let is_prepared = matches!(state, RowState::Prepared { .. });
            let has_committed = matches!(state, RowState::Committed { .. });
            let refused = matches!(state, RowState::Refused { .. });
            let changed = answer(Event::PrepareReceived {
                digest: BodyDigest([3; 32]),
                session: None,
                in_time: true,
            });
            let keeps = is_prepared || has_committed || refused;
            (!keeps || changed == Some(Answer::PrepareChanged))
                && (!has_committed || answer(Event::AbortReceived) == differs)
                && (is_prepared || has_committed || answer(Event::CommitReceived) == differs)
        })
    }

    fn is_keyed(&self) -> bool {
        self.log.is_keyed
    }
}

impl Participant {
    pub(super) fn is_below_mark(&self, id: TransactionId) -> bool {
        let mark = self.visible.low_water[node_of(id)];
        mark.is_some_and(|mark| id < mark)
    }

    pub(super) fn was_told_aborted(&self, transaction: usize) -> bool {
        use super::state::{Asked, TRANSACTIONS_MAX, slot};
        let abort = |life| slot(life, transaction) * Asked::COUNT + Asked::Abort.code();
        let lives = 128 / (TRANSACTIONS_MAX * Asked::COUNT);
        (0..lives).any(|life| self.requests.has(abort(life)))
            || self.informs.has(transaction * 3 + 1)
    }
}

/// The id that comes next but one.
fn after(id: TransactionId) -> TransactionId {
    let later = id.sequence().next().unwrap_or(id.sequence());
    TransactionId::new(id.prefix(), id.epoch(), later)
}

/// Some participant that has no branch.
static STRANGER: LazyLock<ParticipantName> =
    LazyLock::new(|| "stranger".parse().expect("a participant's name"));

fn of_decision(decision: &Decision) -> Known<'_> {
    let code = decision.verdict.reason().map(|reason| reason.code);
    Known::Decision(decision.verdict.outcome(), code, Some(decision))
}

fn updates(decision: &Decision, participant: usize) -> bool {
    decision.verdict == Verdict::Commit
        && decision.branches.get(&NAMES[participant]) == Some(&Part::Updates)
}
