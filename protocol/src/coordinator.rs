//! One global transaction: the coordinator's half of the protocol.
//!
//! ```text
//!   Active ──commit──> Preparing ──all yes──> Deciding ──durable──> Completing(commit) ──all acked──> Ended
//!     │                   │                      └─key lost to another─┐
//!     └──abort, deadline──┴──a no, abort, deadline───────────────────> Completing(abort) ───────────> Ended
//! ```
//!
//! - **The commit point** (rules 1, 2) is [`Event::Forced`] with [`Standing::Proposed`] in [`State::Deciding`]. No arm
//!   of `Deciding` sends a commit, so "logged before told" needs no trust.
//! - The deadline and a client's abort act until the decision has been handed to the log; in `Deciding` and after it
//!   they change nothing (rule 12).
//! - Unknown is not no (rule 9): a branch that did not answer is asked again, before the decision until the deadline,
//!   after it without an end.
//! - An abort needs no forced write, for "not in the log" already means abort; one with an idempotency key is forced
//!   all the same, and clients are told only once it is durable (rule 21). Branches may be told at once: they learn
//!   nothing that could turn out otherwise.
//! - `recover` takes a commit record and yields `Completing`. Nothing else survives a crash, or needs to.

use std::{
    hash::{Hash, Hasher},
    mem,
};

use serde::{Deserialize, Serialize};

use crate::{
    by_name::ByName,
    id::{ParticipantName, TransactionId},
    message::{
        Delivery, Inform, Prepare, Refusal, RefusalCode, Reply, Request, RequestKind, Session,
        Vote, bounded_reason,
    },
    operations::{BodyDigest, Operations},
    record::{AbortCode, AbortReason, Decision, Outcome, Part, Standing, Verdict},
    tally::{Tally, tally},
};

/// Branches of one transaction, at most (design rule 20).
pub const BRANCHES_MAX: usize = 32;

/// Where a global transaction stands, and what the log holds at that point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Collecting branches. Nothing is logged, so a crash here means abort.
    Active,
    /// Asked every branch to prepare; still nothing logged.
    Preparing,
    /// All said yes and the commit record is on its way to disk. The commit point is the moment it is durable
    /// ([`Event::Forced`]), not this state: after a crash here the log says which it was.
    Deciding {
        /// What was handed to the log.
        decision: Decision,
    },
    /// Decided; repeating the decision until every branch it concerns has acknowledged.
    Completing {
        /// What was decided.
        decision: Decision,
        /// Whether clients may be told: not before an idempotency key's outcome is durable.
        told: bool,
    },
    /// Nothing left to tell any branch.
    Ended {
        /// What was decided.
        decision: Decision,
    },
}

/// A transaction's state, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum TransactionState {
    /// Collecting branches.
    Active,
    /// Asking for votes.
    Preparing,
    /// The decision is on its way to the log.
    Deciding,
    /// Committed, and not everywhere yet.
    Committing,
    /// Committed everywhere.
    Committed,
    /// Aborted, and not everywhere told.
    Aborting,
    /// Aborted.
    Aborted,
}

/// A branch's state at the coordinator, as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum BranchPhase {
    /// Named, or enlisted by itself.
    Enlisted,
    /// Asked for its vote.
    Preparing,
    /// Voted yes.
    Prepared,
    /// Voted read-only.
    ReadOnly,
    /// Voted no. It stays so while it is sent the abort.
    Refused,
    /// Told "committed", has not acknowledged.
    Committing,
    /// Acknowledged the commit.
    Committed,
    /// Told "aborted", has not acknowledged.
    Aborting,
    /// Acknowledged the abort, or never held anything.
    Aborted,
}

/// What happens to a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A client names a branch, or a participant enlists itself (then with its session).
    Enlist {
        /// Whose branch.
        participant: ParticipantName,
        /// What it is to do at prepare.
        operations: Operations,
        /// The participant's own.
        session: Option<Session>,
    },
    /// A client asks for the commit.
    CommitRequested,
    /// A client asks for the abort.
    AbortRequested {
        /// The client's words.
        detail: Option<String>,
    },
    /// The timer of [`Effect::StartDeadline`] went off.
    DeadlinePassed,
    /// A call to a branch ended.
    Delivered {
        /// Whose branch.
        participant: ParticipantName,
        /// What was asked.
        kind: RequestKind,
        /// How it ended.
        delivery: Delivery<Reply>,
    },
    /// The forced write of [`Effect::Force`] is durable, and this is what stands.
    Forced(Standing),
    /// A write of [`Effect::Append`] or [`Effect::Finish`] has become durable.
    Appended,
    /// The log went back (rule 11): this life decides nothing any more, the deadline included. What it had decided
    /// before is still delivered.
    LogWentBack,
    /// The shell has reached its bound of undelivered aborts and drops this transaction's; the branches will ask.
    AbortsDropped,
}

/// What the shell does, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Call a branch; report [`Event::Delivered`], once.
    Send {
        /// Whose branch.
        participant: ParticipantName,
        /// What to ask.
        request: Request,
        /// 1 for the first call of this phase; from 2 on the shell waits first, longer each time.
        attempt: u32,
        /// How long it waits.
        pace: Pace,
    },
    /// Write the decision so that it is durable; report [`Event::Forced`]. Repeated by the log's writer until it is
    /// clear (rule 10).
    Force(Decision),
    /// Write the decision with the next write, unforced; report [`Event::Appended`] when it has become durable. A
    /// record of it carries no idempotency key.
    Append(Decision),
    /// Write, unforced, that every updating branch has acknowledged; report [`Event::Appended`].
    Finish,
    /// Start the timer of the deadline; report [`Event::DeadlinePassed`].
    StartDeadline,
    /// Answer the [`Event::Enlist`] of this step.
    Answer(Result<Enlisted, EnlistRefused>),
    /// Somebody has to look.
    Alarm(Alarm),
}

/// How long the shell waits before it calls again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Capped backoff with jitter, by the attempt.
    Backoff,
    /// The longest interval at once: an alarm was raised, and only an operator can mend it.
    Longest,
}

/// An enlist that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enlisted {
    /// 201
    New,
    /// 200: it was there.
    Repeated,
}

/// An enlist that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnlistRefused {
    /// Commit or abort has begun.
    #[error("commit or abort of the transaction has begun")]
    NotActive,
    /// The participant has a branch with other operations: they are given once.
    #[error("the participant is enlisted with other operations")]
    AlreadyEnlisted,
    /// The transaction has [`BRANCHES_MAX`].
    #[error("the transaction has {BRANCHES_MAX} branches, the most there may be")]
    TooManyBranches,
    /// The participant enlisted with another session before: work is lost, and the transaction aborts (rule 22).
    #[error(
        "the participant enlisted with another session before, so earlier work of this branch is lost"
    )]
    WorkLost,
}

/// What a machine noticed and a person has to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// To commit a branch answered `vote-lost` (rule 6).
    VoteLost(ParticipantName),
    /// A branch ended the other way (rule 6).
    OutcomeDiffers(ParticipantName),
    /// A branch took back a vote.
    VoteChanged(ParticipantName),
    /// A live prepare was refused as `below-low-water` (rule 11).
    BelowLowWater(ParticipantName),
    /// The log holds a commit of a transaction that this life aborted.
    DecisionContradicted,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Branch {
    operations: Operations,
    session: Option<Session>,
    /// Of the operations that came with the session when it joined a branch that a client had named: the repeat of
    /// that request is a repeat.
    joined_with: Option<BodyDigest>,
    phase: BranchPhase,
    /// Calls handed to the courier in the present phase.
    attempts: u32,
    /// Whether some call may have reached it.
    reached: bool,
    /// Whether an acknowledgement is still owed.
    unacked: bool,
    last_error: Option<String>,
}

impl Branch {
    /// Whether it may hold anything: it was asked, or enlisted itself.
    fn may_hold(&self) -> bool {
        self.attempts > 0 || self.session.is_some()
    }

    fn part(&self) -> Part {
        match self.phase {
            BranchPhase::Prepared | BranchPhase::Committing | BranchPhase::Committed => {
                Part::Updates
            }
            BranchPhase::ReadOnly => Part::ReadOnly,
            BranchPhase::Refused => Part::Refused,
            BranchPhase::Enlisted
            | BranchPhase::Preparing
            | BranchPhase::Aborting
            | BranchPhase::Aborted => {
                if self.may_hold() {
                    Part::Unanswered
                } else {
                    Part::Untouched
                }
            }
        }
    }
}

/// What clients are shown of one branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchProgress<'a> {
    /// Whose branch.
    pub participant: &'a ParticipantName,
    /// Where it stands.
    pub phase: BranchPhase,
    /// Calls of the present phase.
    pub attempts: u32,
    /// How the last one ended, where it was no answer.
    pub last_error: Option<&'a str>,
}

/// One global transaction at its coordinator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    id: TransactionId,
    keyed: bool,
    branches: ByName<Branch>,
    state: State,
    /// Unforced writes that are not durable yet. Until then this memory is what answers for the transaction.
    unrecorded: u32,
    /// Whether nothing is to be decided any more.
    frozen: bool,
}

impl Transaction {
    /// A new transaction; `keyed` if a client named it by an idempotency key.
    pub fn begin(id: TransactionId, keyed: bool, effects: &mut Vec<Effect>) -> Self {
        effects.push(Effect::StartDeadline);
        Self {
            id,
            keyed,
            branches: ByName::new(),
            state: State::Active,
            unrecorded: 0,
            frozen: false,
        }
    }

    /// A transaction of an unfinished commit record: every updating branch is told again, also one that acknowledged
    /// before the crash, for that was not logged.
    pub fn recover(id: TransactionId, decision: Decision, effects: &mut Vec<Effect>) -> Self {
        let branches = decision.branches.iter().map(|(participant, part)| {
            let phase = match part {
                Part::Updates => BranchPhase::Prepared,
                Part::ReadOnly => BranchPhase::ReadOnly,
                Part::Refused => BranchPhase::Refused,
                Part::Unanswered | Part::Untouched => BranchPhase::Aborted,
            };
            let branch = Branch {
                operations: Operations::none(),
                session: None,
                joined_with: None,
                phase,
                attempts: 0,
                reached: false,
                unacked: false,
                last_error: None,
            };
            (participant.clone(), branch)
        });
        let branches = branches.collect();
        let mut recovered = Self {
            id,
            keyed: false,
            branches,
            state: State::Preparing,
            unrecorded: 0,
            frozen: false,
        };
        match decision.verdict {
            Verdict::Commit => recovered.commit(decision, effects),
            // An abort's record is finished at once and never unfinished; if one is handed to us, nothing is owed.
            Verdict::Abort(_) => recovered.state = State::Ended { decision },
        }
        recovered
    }

    /// The transaction's id.
    #[must_use]
    pub fn id(&self) -> TransactionId {
        self.id
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whether a decision is neither made nor handed to the log (design rule 20 bounds these).
    #[must_use]
    pub fn is_undecided(&self) -> bool {
        matches!(
            self.state,
            State::Active | State::Preparing | State::Deciding { .. }
        )
    }

    /// Whether it can leave the coordinator's memory: nothing is owed and its record is durable.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Ended { .. }) && self.unrecorded == 0
    }

    /// Whether a low-water mark may not pass it yet: it may still commit, or it did and its finish is not durable (design
    /// rule 15). An abort that clients may be told never holds the mark, whichever branches are still to be told.
    #[must_use]
    pub fn holds_low_water(&self) -> bool {
        match &self.state {
            State::Active
            | State::Preparing
            | State::Deciding { .. }
            | State::Completing { told: false, .. } => true,
            State::Completing { decision, .. } | State::Ended { decision } => {
                decision.verdict == Verdict::Commit && !self.is_over()
            }
        }
    }

    /// Whether it decides nothing any more, because the log went back.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Whether the commit's second phase is under way: the transaction is unfinished in the log's sense.
    #[must_use]
    pub fn is_committing(&self) -> bool {
        matches!(&self.state, State::Completing { decision, .. }
            if decision.verdict == Verdict::Commit)
    }

    /// Whether some branch voted yes and has not acknowledged the outcome.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt().next().is_some()
    }

    /// The branches that voted yes and have not acknowledged the outcome, by name.
    pub fn in_doubt(&self) -> impl Iterator<Item = &ParticipantName> {
        let is_in_doubt = |(participant, branch): &(&ParticipantName, &Branch)| match branch.phase {
            BranchPhase::Prepared | BranchPhase::Committing => true,
            BranchPhase::Aborting => match &self.state {
                State::Completing { decision, .. } | State::Ended { decision } => {
                    decision.branches.get(*participant) == Some(&Part::Updates)
                }
                State::Active | State::Preparing | State::Deciding { .. } => false,
            },
            BranchPhase::Enlisted
            | BranchPhase::Preparing
            | BranchPhase::ReadOnly
            | BranchPhase::Refused
            | BranchPhase::Committed
            | BranchPhase::Aborted => false,
        };
        self.branches
            .iter()
            .filter(is_in_doubt)
            .map(|(participant, _)| participant)
    }

    /// Whether something is still to come of its branches: it is undecided, or a commit is owed.
    #[must_use]
    pub fn is_unfinished(&self) -> bool {
        self.is_undecided() || self.is_committing()
    }

    /// Whether aborts are still being delivered, which may be dropped at a bound. A keyed one whose record is not
    /// durable yet may stay `Completing` with nothing left to drop.
    #[must_use]
    pub fn is_delivering_aborts(&self) -> bool {
        let aborts = matches!(&self.state, State::Completing { decision, .. }
            if decision.verdict != Verdict::Commit);
        aborts && self.branches.values().any(|branch| branch.unacked)
    }

    /// The decision that clients may be told, once there is one.
    #[must_use]
    pub fn told(&self) -> Option<&Decision> {
        match &self.state {
            State::Completing {
                decision,
                told: true,
            }
            | State::Ended { decision } => Some(decision),
            State::Active
            | State::Preparing
            | State::Deciding { .. }
            | State::Completing { told: false, .. } => None,
        }
    }

    /// Whether the outcome is told and, for a commit, every updating branch has acknowledged.
    #[must_use]
    pub fn is_applied(&self) -> bool {
        self.told().is_some_and(|decision| match decision.verdict {
            Verdict::Abort(_) => true,
            Verdict::Commit => matches!(self.state, State::Ended { .. }),
        })
    }

    /// Whether another transaction holds the idempotency key that this one was begun with: whoever asks by the key is
    /// answered with that one (rule 21).
    #[must_use]
    pub fn lost_its_key(&self) -> bool {
        self.told().is_some_and(|decision| match &decision.verdict {
            Verdict::Abort(reason) => reason.code == AbortCode::Duplicate,
            Verdict::Commit => false,
        })
    }

    /// What a client sees.
    #[must_use]
    pub fn transaction_state(&self) -> TransactionState {
        match &self.state {
            State::Active => TransactionState::Active,
            State::Preparing => TransactionState::Preparing,
            State::Deciding { .. } | State::Completing { told: false, .. } => {
                TransactionState::Deciding
            }
            State::Completing {
                decision,
                told: true,
            } => match decision.verdict.outcome() {
                Outcome::Committed => TransactionState::Committing,
                Outcome::Aborted => TransactionState::Aborting,
            },
            State::Ended { decision } => match decision.verdict.outcome() {
                Outcome::Committed => TransactionState::Committed,
                Outcome::Aborted => TransactionState::Aborted,
            },
        }
    }

    /// Its branches, by name.
    pub fn branches(&self) -> impl Iterator<Item = BranchProgress<'_>> {
        self.branches
            .iter()
            .map(|(participant, branch)| BranchProgress {
                participant,
                phase: branch.phase,
                attempts: branch.attempts,
                last_error: branch.last_error.as_deref(),
            })
    }

    /// What an inquiry of `participant`'s branch is told while this transaction is in memory (rules 3 and 16).
    #[must_use]
    pub fn inform(&self, participant: &ParticipantName) -> Inform {
        match &self.state {
            State::Active | State::Preparing | State::Deciding { .. } => Inform::Pending,
            State::Completing { decision, .. } | State::Ended { decision } => {
                decision.inform(participant)
            }
        }
    }

    /// Feeds a hasher with what decides how this machine goes on, apart from its single branches (see
    /// [`Self::hash_branch`]). An exhaustive search takes two machines for one that differ only in what people are
    /// shown: reasons, errors, how often a branch was called.
    pub fn hash_whole(&self, hasher: &mut impl Hasher) {
        (self.id, self.keyed, self.unrecorded, self.frozen).hash(hasher);
        mem::discriminant(&self.state).hash(hasher);
        if let State::Completing { told, .. } = &self.state {
            told.hash(hasher);
        }
        if let Some(decision) = self.decided() {
            decision.verdict.outcome().hash(hasher);
            let winner = decision.verdict.reason().and_then(|reason| reason.winner);
            winner.hash(hasher);
        }
    }

    /// Feeds a hasher with what one branch adds to [`Self::hash_whole`]. The participant's name is not part of it.
    pub fn hash_branch(&self, participant: &ParticipantName, hasher: &mut impl Hasher) {
        if let Some(branch) = self.branches.get(participant) {
            (branch.phase, branch.may_hold(), branch.unacked).hash(hasher);
            (&branch.session, branch.joined_with).hash(hasher);
            branch.operations.digest().hash(hasher);
        }
        let decision = self.decided();
        let part = decision.and_then(|decision| decision.branches.get(participant));
        part.hash(hasher);
    }

    /// The decision, also one that is still on its way to the log.
    fn decided(&self) -> Option<&Decision> {
        match &self.state {
            State::Active | State::Preparing => None,
            State::Deciding { decision }
            | State::Completing { decision, .. }
            | State::Ended { decision } => Some(decision),
        }
    }

    /// Takes one event. What means nothing in a state changes nothing: the network repeats, delays and reorders.
    pub fn step(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::Enlist {
                participant,
                operations,
                session,
            } => {
                let answer = self.enlist(participant.clone(), operations, session);
                effects.push(Effect::Answer(answer));
                if answer == Err(EnlistRefused::WorkLost) {
                    let reason = AbortReason {
                        participant: Some(participant),
                        detail: Some(EnlistRefused::WorkLost.to_string()),
                        ..AbortReason::new(AbortCode::WorkLost)
                    };
                    self.abort(reason, effects);
                }
            }
            Event::CommitRequested => {
                if self.state == State::Active && !self.frozen {
                    self.prepare(effects);
                }
            }
            Event::AbortRequested { detail } => {
                let reason = AbortReason {
                    detail,
                    ..AbortReason::new(AbortCode::Requested)
                };
                self.abort(reason, effects);
            }
            Event::DeadlinePassed => {
                let reason = self.timeout_reason();
                self.abort(reason, effects);
            }
            Event::Delivered {
                participant,
                kind,
                delivery,
            } => match kind {
                RequestKind::Prepare => self.prepare_delivered(participant, delivery, effects),
                RequestKind::Commit => self.commit_delivered(participant, delivery, effects),
                RequestKind::Abort => self.abort_delivered(participant, delivery, effects),
            },
            Event::Forced(standing) => self.forced(standing, effects),
            Event::Appended => self.unrecorded = self.unrecorded.saturating_sub(1),
            Event::LogWentBack => self.frozen = true,
            Event::AbortsDropped => {
                if self.is_delivering_aborts() {
                    self.branches
                        .values_mut()
                        .for_each(|branch| branch.unacked = false);
                    self.end_if_nothing_is_owed(effects);
                }
            }
        }
    }

    fn enlist(
        &mut self,
        participant: ParticipantName,
        operations: Operations,
        session: Option<Session>,
    ) -> Result<Enlisted, EnlistRefused> {
        if self.state != State::Active {
            return Err(EnlistRefused::NotActive);
        }
        let branches = self.branches.len();
        let Some(branch) = self.branches.get_mut(&participant) else {
            if branches == BRANCHES_MAX {
                return Err(EnlistRefused::TooManyBranches);
            }
            let branch = Branch {
                operations,
                session,
                joined_with: None,
                phase: BranchPhase::Enlisted,
                attempts: 0,
                reached: false,
                unacked: false,
                last_error: None,
            };
            self.branches.insert(participant, branch);
            return Ok(Enlisted::New);
        };
        match (&branch.session, session) {
            (Some(first), Some(session)) if *first != session => Err(EnlistRefused::WorkLost),
            (None, Some(session)) => {
                // A client named the branch, now the participant enlists it: the operations stay the client's.
                branch.session = Some(session);
                branch.joined_with = Some(operations.digest());
                Ok(Enlisted::Repeated)
            }
            (first, session) => {
                // The request that brought the session may have named other operations than the branch kept.
                let expected = match (first, &session, branch.joined_with) {
                    (Some(_), Some(_), Some(joined_with)) => joined_with,
                    _ => branch.operations.digest(),
                };
                if operations.digest() == expected {
                    Ok(Enlisted::Repeated)
                } else {
                    Err(EnlistRefused::AlreadyEnlisted)
                }
            }
        }
    }

    fn prepare(&mut self, effects: &mut Vec<Effect>) {
        self.state = State::Preparing;
        for (participant, branch) in self.branches.iter_mut() {
            branch.phase = BranchPhase::Preparing;
            branch.attempts = 1;
            effects.push(prepare_call(participant, branch, Pace::Backoff));
        }
        // Without branches there is nothing to wait for.
        self.count(effects);
    }

    /// Decides once the votes are in.
    fn count(&mut self, effects: &mut Vec<Effect>) {
        if self.state != State::Preparing || self.frozen {
            return;
        }
        match tally(self.branches.values().map(|branch| branch.phase)) {
            // A veto has its reason from the vote that brought it; see `prepare_delivered`.
            Tally::Pending | Tally::Vetoed => {}
            Tally::Unanimous => {
                let decision = self.decision(Verdict::Commit);
                if decision.is_finished_at_once() && !self.keyed {
                    // Nobody has anything to commit, so there is no commit point to force.
                    self.append(decision.clone(), effects);
                    self.state = State::Ended { decision };
                } else {
                    effects.push(Effect::Force(decision.clone()));
                    self.state = State::Deciding { decision };
                }
            }
        }
    }

    fn decision(&self, verdict: Verdict) -> Decision {
        let parts = self
            .branches
            .iter()
            .map(|(name, branch)| (name.clone(), branch.part()));
        Decision {
            verdict,
            branches: parts.collect(),
        }
    }

    fn append(&mut self, decision: Decision, effects: &mut Vec<Effect>) {
        self.unrecorded += 1;
        effects.push(Effect::Append(decision));
    }

    fn prepare_delivered(
        &mut self,
        participant: ParticipantName,
        delivery: Delivery<Reply>,
        effects: &mut Vec<Effect>,
    ) {
        let may_still_abort = self.state == State::Preparing;
        let Some(branch) = self.branches.get_mut(&participant) else {
            return;
        };
        let vote = match delivery {
            Delivery::Answered(Reply::Vote(vote)) => vote,
            Delivery::Answered(
                Reply::Committed | Reply::Aborted | Reply::VoteLost | Reply::OutcomeDiffers,
            ) => {
                return self.ask_again(&participant, true, "the answer is no vote".into(), effects);
            }
            Delivery::Refused(error) => return self.ask_again(&participant, false, error, effects),
            Delivery::Unknown(error) => return self.ask_again(&participant, true, error, effects),
        };
        let voted = match vote {
            Vote::Yes => BranchPhase::Prepared,
            Vote::ReadOnly => BranchPhase::ReadOnly,
            Vote::No(_) => BranchPhase::Refused,
        };
        // The first vote counts. A yes that changes is a `VoteChanged`, because a branch may not take back a promise; a
        // read-only vote may, for it is not stored and a late duplicate does the work again. A no is believed in both
        // cases while that is still safe: aborting harms nobody.
        match branch.phase {
            BranchPhase::Preparing => {
                branch.phase = voted;
                branch.last_error = None;
            }
            BranchPhase::Prepared | BranchPhase::ReadOnly => {
                if branch.phase == BranchPhase::Prepared && voted != BranchPhase::Prepared {
                    effects.push(Effect::Alarm(Alarm::VoteChanged(participant.clone())));
                }
                if may_still_abort && voted == BranchPhase::Refused {
                    branch.phase = voted;
                }
            }
            BranchPhase::Enlisted
            | BranchPhase::Refused
            | BranchPhase::Committing
            | BranchPhase::Committed
            | BranchPhase::Aborting
            | BranchPhase::Aborted => {}
        }
        match vote {
            Vote::No(refusal) if may_still_abort => {
                if refusal.code == RefusalCode::BelowLowWater {
                    effects.push(Effect::Alarm(Alarm::BelowLowWater(participant.clone())));
                }
                self.abort(refusal_reason(participant, refusal), effects);
            }
            Vote::Yes | Vote::ReadOnly | Vote::No(_) => self.count(effects),
        }
    }

    fn commit_delivered(
        &mut self,
        participant: ParticipantName,
        delivery: Delivery<Reply>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(branch) = self.branches.get_mut(&participant) else {
            return;
        };
        if branch.phase != BranchPhase::Committing {
            return;
        }
        match delivery {
            Delivery::Answered(Reply::Committed) => {
                branch.phase = BranchPhase::Committed;
                branch.unacked = false;
                branch.last_error = None;
                self.end_if_nothing_is_owed(effects);
            }
            Delivery::Answered(Reply::VoteLost) => {
                effects.push(Effect::Alarm(Alarm::VoteLost(participant.clone())));
                branch.call_again(
                    &participant,
                    Request::Commit,
                    Pace::Longest,
                    "vote-lost",
                    effects,
                );
            }
            Delivery::Answered(Reply::OutcomeDiffers) => {
                effects.push(Effect::Alarm(Alarm::OutcomeDiffers(participant.clone())));
                let error = "outcome-differs";
                branch.call_again(&participant, Request::Commit, Pace::Longest, error, effects);
            }
            Delivery::Answered(Reply::Vote(_) | Reply::Aborted) => {
                let error = "the answer acknowledges nothing";
                branch.call_again(&participant, Request::Commit, Pace::Backoff, error, effects);
            }
            Delivery::Refused(error) | Delivery::Unknown(error) => {
                branch.call_again(
                    &participant,
                    Request::Commit,
                    Pace::Backoff,
                    &error,
                    effects,
                );
            }
        }
    }

    fn abort_delivered(
        &mut self,
        participant: ParticipantName,
        delivery: Delivery<Reply>,
        effects: &mut Vec<Effect>,
    ) {
        let Some(branch) = self.branches.get_mut(&participant) else {
            return;
        };
        if !branch.unacked || !matches!(branch.phase, BranchPhase::Aborting | BranchPhase::Refused)
        {
            return;
        }
        match delivery {
            Delivery::Answered(Reply::Aborted) => {
                branch.unacked = false;
                branch.last_error = None;
                if branch.phase == BranchPhase::Aborting {
                    branch.phase = BranchPhase::Aborted;
                }
                self.end_if_nothing_is_owed(effects);
            }
            Delivery::Answered(Reply::OutcomeDiffers) => {
                effects.push(Effect::Alarm(Alarm::OutcomeDiffers(participant.clone())));
                let error = "outcome-differs";
                branch.call_again(&participant, Request::Abort, Pace::Longest, error, effects);
            }
            Delivery::Answered(Reply::Vote(_) | Reply::Committed | Reply::VoteLost) => {
                let error = "the answer acknowledges nothing";
                branch.call_again(&participant, Request::Abort, Pace::Backoff, error, effects);
            }
            Delivery::Refused(error) | Delivery::Unknown(error) => {
                branch.call_again(&participant, Request::Abort, Pace::Backoff, &error, effects);
            }
        }
    }

    /// Asks for a vote again, where one is still wanted.
    fn ask_again(
        &mut self,
        participant: &ParticipantName,
        reached: bool,
        error: String,
        effects: &mut Vec<Effect>,
    ) {
        if self.state != State::Preparing {
            return;
        }
        let Some(branch) = self.branches.get_mut(participant) else {
            return;
        };
        if branch.phase == BranchPhase::Preparing {
            branch.reached |= reached;
            branch.attempts += 1;
            branch.last_error = Some(bounded_reason(&error));
            effects.push(prepare_call(participant, branch, Pace::Backoff));
        }
    }

    fn forced(&mut self, standing: Standing, effects: &mut Vec<Effect>) {
        match (&mut self.state, standing) {
            (State::Deciding { decision }, Standing::Proposed) => {
                let decision = decision.clone();
                self.commit(decision, effects);
            }
            (State::Deciding { .. }, Standing::Earlier(earlier)) => match earlier.verdict {
                Verdict::Commit => self.commit(earlier, effects),
                Verdict::Abort(_) => self.tell_abort(earlier, true, effects),
            },
            (State::Deciding { .. }, Standing::KeyHeldBy(winner)) => {
                let decision = self.decision(Verdict::Abort(duplicate_of(winner)));
                self.append(decision.clone(), effects);
                self.tell_abort(decision, true, effects);
            }
            (State::Deciding { .. }, Standing::Refused(why)) => {
                // No record, for certain: aborted, as whoever asks after us will read it too.
                self.tell_abort(
                    self.decision(Verdict::Abort(unwritable(why))),
                    true,
                    effects,
                );
            }
            (
                State::Completing {
                    decision,
                    told: told @ false,
                },
                Standing::Refused(why),
            ) => {
                decision.verdict = Verdict::Abort(unwritable(why));
                *told = true;
                self.end_if_nothing_is_owed(effects);
            }
            (State::Completing { told, .. }, Standing::Proposed) => {
                *told = true;
                self.end_if_nothing_is_owed(effects);
            }
            (
                State::Completing {
                    decision,
                    told: told @ false,
                },
                Standing::KeyHeldBy(winner),
            ) => {
                decision.verdict = Verdict::Abort(duplicate_of(winner));
                *told = true;
                let decision = decision.clone();
                self.append(decision, effects);
                self.end_if_nothing_is_owed(effects);
            }
            (
                State::Completing {
                    decision,
                    told: told @ false,
                },
                Standing::Earlier(earlier),
            ) => {
                if earlier.verdict == Verdict::Commit {
                    // Branches were told "aborted". Nothing that is said now can be true everywhere, so nothing is.
                    effects.push(Effect::Alarm(Alarm::DecisionContradicted));
                } else {
                    decision.verdict = earlier.verdict;
                    *told = true;
                    self.end_if_nothing_is_owed(effects);
                }
            }
            // No forced write is under way in these.
            (
                State::Active
                | State::Preparing
                | State::Completing { told: true, .. }
                | State::Ended { .. },
                Standing::Proposed
                | Standing::Earlier(_)
                | Standing::KeyHeldBy(_)
                | Standing::Refused(_),
            ) => {}
        }
    }

    /// The commit point is passed: tells every updating branch.
    fn commit(&mut self, decision: Decision, effects: &mut Vec<Effect>) {
        for participant in decision.updating() {
            let Some(branch) = self.branches.get_mut(participant) else {
                continue;
            };
            branch.phase = BranchPhase::Committing;
            branch.attempts = 1;
            branch.unacked = true;
            branch.last_error = None;
            // Nobody will be asked to prepare again.
            branch.operations = Operations::none();
            effects.push(call(participant, Request::Commit, 1, Pace::Backoff));
        }
        if decision.is_finished_at_once() {
            self.state = State::Ended { decision };
        } else {
            self.state = State::Completing {
                decision,
                told: true,
            };
        }
    }

    /// Decides abort, where that is still open (rule 12).
    fn abort(&mut self, reason: AbortReason, effects: &mut Vec<Effect>) {
        if !matches!(self.state, State::Active | State::Preparing) || self.frozen {
            return;
        }
        let decision = self.decision(Verdict::Abort(reason));
        if self.keyed {
            effects.push(Effect::Force(decision.clone()));
        } else {
            self.append(decision.clone(), effects);
        }
        self.tell_abort(decision, !self.keyed, effects);
    }

    /// Tells every branch that may hold something, also one that did not answer or refused (rule 9). A read-only one
    /// holds nothing.
    fn tell_abort(&mut self, decision: Decision, told: bool, effects: &mut Vec<Effect>) {
        for (participant, branch) in self.branches.iter_mut() {
            if branch.phase == BranchPhase::ReadOnly {
                continue;
            }
            let may_hold = branch.may_hold();
            if branch.phase != BranchPhase::Refused {
                branch.phase = if may_hold {
                    BranchPhase::Aborting
                } else {
                    BranchPhase::Aborted
                };
            }
            branch.operations = Operations::none();
            if may_hold {
                branch.attempts = 1;
                branch.unacked = true;
                effects.push(call(participant, Request::Abort, 1, Pace::Backoff));
            }
        }
        self.state = State::Completing { decision, told };
        self.end_if_nothing_is_owed(effects);
    }

    fn end_if_nothing_is_owed(&mut self, effects: &mut Vec<Effect>) {
        let State::Completing {
            decision,
            told: true,
        } = &self.state
        else {
            return;
        };
        if self.branches.values().any(|branch| branch.unacked) {
            return;
        }
        if decision.verdict == Verdict::Commit {
            self.unrecorded += 1;
            effects.push(Effect::Finish);
        }
        self.state = State::Ended {
            decision: decision.clone(),
        };
    }

    /// Why the deadline ends this transaction: the first branch, by name, that did not answer.
    fn timeout_reason(&self) -> AbortReason {
        let silent = self
            .branches
            .iter()
            .find(|(_, branch)| branch.phase == BranchPhase::Preparing);
        let Some((participant, branch)) = silent else {
            return AbortReason::new(AbortCode::Timeout);
        };
        // The call under way is counted in `attempts` and has not ended; one that was refused came before it.
        let never_connected = !branch.reached && branch.attempts > 1;
        let code = if never_connected {
            AbortCode::Unreachable
        } else {
            AbortCode::Timeout
        };
        AbortReason {
            participant: Some(participant.clone()),
            detail: branch.last_error.clone(),
            ..AbortReason::new(code)
        }
    }
}

impl Branch {
    fn call_again(
        &mut self,
        participant: &ParticipantName,
        request: Request,
        pace: Pace,
        error: &str,
        effects: &mut Vec<Effect>,
    ) {
        self.attempts += 1;
        self.last_error = Some(bounded_reason(error));
        effects.push(call(participant, request, self.attempts, pace));
    }
}

fn call(participant: &ParticipantName, request: Request, attempt: u32, pace: Pace) -> Effect {
    Effect::Send {
        participant: participant.clone(),
        request,
        attempt,
        pace,
    }
}

fn prepare_call(participant: &ParticipantName, branch: &Branch, pace: Pace) -> Effect {
    let prepare = Prepare {
        operations: branch.operations.clone(),
        session: branch.session.clone(),
    };
    call(
        participant,
        Request::Prepare(prepare),
        branch.attempts,
        pace,
    )
}

fn duplicate_of(winner: TransactionId) -> AbortReason {
    AbortReason {
        winner: Some(winner),
        ..AbortReason::new(AbortCode::Duplicate)
    }
}

fn unwritable(why: String) -> AbortReason {
    AbortReason {
        detail: Some(bounded_reason(&why)),
        ..AbortReason::new(AbortCode::Unrecorded)
    }
}

fn refusal_reason(participant: ParticipantName, refusal: Refusal) -> AbortReason {
    let code = match refusal.code {
        RefusalCode::Refused | RefusalCode::Aborted | RefusalCode::BelowLowWater => {
            AbortCode::Refused
        }
        RefusalCode::Conflict => AbortCode::Conflict,
        RefusalCode::WorkLost => AbortCode::WorkLost,
        RefusalCode::Deadline => AbortCode::Timeout,
    };
    AbortReason {
        participant: Some(participant),
        detail: Some(bounded_reason(&refusal.reason)),
        ..AbortReason::new(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_aborts_are_not_delivered_any_more_also_while_the_record_is_on_its_way() {
        let id = "00000001-0001-8000-8000-100000000001".parse().unwrap();
        let mut effects = Vec::new();
        let mut keyed = Transaction::begin(id, true, &mut effects);
        for event in [
            Event::Enlist {
                participant: "east".parse().unwrap(),
                operations: Operations::none(),
                session: None,
            },
            Event::CommitRequested,
            Event::DeadlinePassed,
        ] {
            keyed.step(event, &mut effects);
        }
        assert!(keyed.is_delivering_aborts());
        keyed.step(Event::AbortsDropped, &mut effects);
        assert!(
            !keyed.is_delivering_aborts(),
            "or a shell would drop them for ever"
        );
        assert_eq!(keyed.told(), None, "its record is not durable");
    }
}
