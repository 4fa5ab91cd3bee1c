//! One branch at a participant: the participant's half of the protocol.
//!
//! **The branch's state is its row** in the participant's own database, and every message is one local transaction:
//! insert the row (or, where it exists, lock it), rebuild the [`Branch`] from it, [`Branch::step`], carry the effects
//! out, commit, answer. So there is no recovery to write: a restart finds the rows, and what is [`State::Prepared`]
//! is in doubt and inquires.
//!
//! ```text
//!            prepare: work ──yes──> Prepared ──commit──> Committed
//!   Absent ──┤                        │
//!            ├────────no───> Refused  └──────abort────> Aborted
//!            └─read-only──> Absent (nothing is stored)
//!   Absent ──abort──> Tombstone          (all of which have an outcome, below the low-water mark:) ──> Pruned
//! ```
//!
//! What holds in every state:
//! - Before its yes a branch may abort freely; after it, never alone (rule 4): no timer leaves `Prepared`.
//! - "Not found" is never success (rule 6): a commit without a vote is [`Reply::VoteLost`], one that differs from
//!   what the row says [`Reply::OutcomeDiffers`], and neither changes the row.
//! - An abort of the unknown leaves a tombstone, to which a late prepare loses (rule 7).
//! - A stored row answers first, and the same way every time (rule 8).
//! - A row is dropped only when it has an outcome and lies below the low-water mark (rule 15). Then its absence says
//!   "finished", and nothing that comes late begins anything ([`State::Pruned`]).
//!
//! Left out: a read-only vote is not stored. Its late duplicate does the work again, at most up to a yes that the
//! coordinator does not count; it then inquires and is told "aborted" (rule 16).

use crate::{
    id::TransactionId,
    low_water,
    message::{Inform, Refusal, RefusalCode, Reply, Session, Vote},
    operations::BodyDigest,
};

/// Where a branch stands. All but the three that wait for the service's code are what a row holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no row: never heard of, or its work was rolled back, or it voted read-only.
    Absent,
    /// Interactive work is held in memory or an open database transaction, not voted on. There is no row; the work
    /// ends with its session, and a crash here means abort.
    Active {
        /// Names the work that is held.
        session: Session,
    },
    /// The service is preparing; its answer comes back as [`Event::Worked`]. Never stored.
    Working {
        /// Of the operations being prepared.
        digest: BodyDigest,
    },
    /// Voted yes: in doubt. Only the coordinator's word leads out of here.
    Prepared {
        /// Of the operations that were prepared.
        digest: BodyDigest,
    },
    /// The service is applying the effects; comes back as [`Event::Applied`]. Never stored.
    Applying {
        /// Of the operations that were prepared.
        digest: BodyDigest,
    },
    /// The service is giving back what it reserved; comes back as [`Event::Undone`]. Never stored.
    Undoing,
    /// Applied, in the same local transaction as this row.
    Committed {
        /// Of the operations that were applied.
        digest: BodyDigest,
    },
    /// Aborted by its own *no*, which is repeated to whoever asks again.
    Refused {
        /// Of the operations that were refused.
        digest: BodyDigest,
        /// The answer that was given.
        refusal: Refusal,
    },
    /// Aborted after a yes, by the coordinator's word.
    Aborted,
    /// An abort came for a branch that was not known. A late prepare loses to it.
    Tombstone,
    /// There is no row, and the id is below the participant's low-water mark: the transaction has ended, and if there was
    /// a row, it had its outcome. Reads as a tombstone. Never stored.
    Pruned {
        /// The mark.
        low_water: TransactionId,
    },
}

impl State {
    /// Where the branch of `transaction` stands that has no row. `session` names the interactive work that is held of it.
    ///
    /// `low_water` is the participant's mark for the id's prefix, read *after* it was seen that there is no row, by an
    /// insert that found none in its way: read before, the row could have been pruned between the two, and a late
    /// duplicate would do its work a second time.
    #[must_use]
    pub fn without_row(
        transaction: TransactionId,
        session: Option<Session>,
        low_water: Option<TransactionId>,
    ) -> Self {
        match (low_water::above(transaction, low_water), session) {
            (Some(low_water), _) => Self::Pruned { low_water },
            (None, Some(session)) => Self::Active { session },
            (None, None) => Self::Absent,
        }
    }
}

/// What happens to a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The coordinator asks for the work and the vote.
    PrepareReceived {
        /// Of the operations it sent.
        digest: BodyDigest,
        /// Set for a branch that enlisted itself.
        session: Option<Session>,
        /// Whether the participant can still make the deadline.
        in_time: bool,
    },
    /// The service's code answered [`Effect::Work`].
    Worked(Vote),
    /// The coordinator says "committed".
    CommitReceived,
    /// The service's code carried [`Effect::Apply`] out.
    Applied,
    /// The coordinator says "aborted".
    AbortReceived,
    /// The service's code carried [`Effect::Undo`] out.
    Undone,
    /// The coordinator answered this branch's inquiry.
    Informed(Inform),
    /// The deadline told at enlisting has passed.
    DeadlinePassed,
}

/// What the shell does, in this order, inside the message's local transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Run the service's prepare; report [`Event::Worked`].
    Work,
    /// Run the service's commit; report [`Event::Applied`].
    Apply,
    /// Run the service's abort; report [`Event::Undone`].
    Undo,
    /// Undo whatever the service's code wrote in this local transaction. What a session holds goes too, but after a
    /// read-only vote: it is not stored, and a repeat of its prepare must find the work still there.
    RollBackWork,
    /// Release the keys that the branch holds.
    ReleaseKeys,
    /// Write the row so. What is not a row's state is never stored.
    Store(State),
    /// Answer after the local transaction has committed; with `forced` only once that commit is durable, which
    /// makes everything durable that was visible to it.
    Answer {
        /// The answer.
        reply: Answer,
        /// Whether the commit before it must be a forced one.
        forced: bool,
    },
}

/// What a branch answers to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// One of the protocol's answers.
    Reply(Reply),
    /// The same branch was prepared before with other operations: a clear refusal of *this* request.
    PrepareChanged,
    /// *No*, code `below-low-water`: the transaction has ended, says the mark.
    BelowLowWater {
        /// The mark.
        low_water: TransactionId,
    },
}

/// A branch, rebuilt from its row for one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    state: State,
}

impl Branch {
    /// A branch as its row says ([`State::Absent`] without one).
    #[must_use]
    pub fn from_row(state: State) -> Self {
        Self { state }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Takes one event. Events that mean nothing in a state change nothing: the network repeats and reorders.
    pub fn step(&mut self, event: Event, effects: &mut Vec<Effect>) {
        match event {
            Event::PrepareReceived {
                digest,
                session,
                in_time,
            } => {
                self.prepare(digest, session, in_time, effects);
            }
            Event::Worked(vote) => self.worked(vote, effects),
            Event::CommitReceived => self.commit(effects),
            Event::Applied => {
                if let State::Applying { digest } = self.state {
                    effects.push(Effect::ReleaseKeys);
                    self.store(State::Committed { digest }, effects);
                    forced(Reply::Committed, effects);
                }
            }
            Event::AbortReceived => self.abort(effects),
            Event::Undone => {
                if self.state == State::Undoing {
                    effects.push(Effect::ReleaseKeys);
                    self.store(State::Aborted, effects);
                    unforced(Reply::Aborted, effects);
                }
            }
            Event::Informed(inform) => self.informed(inform, effects),
            Event::DeadlinePassed => {
                // Only work that was never voted on may go by a timer (rule 4).
                match self.state {
                    State::Active { .. } => {
                        effects.push(Effect::RollBackWork);
                        self.store(State::Tombstone, effects);
                    }
                    State::Pruned { .. } => effects.push(Effect::RollBackWork),
                    State::Absent
                    | State::Working { .. }
                    | State::Prepared { .. }
                    | State::Applying { .. }
                    | State::Undoing
                    | State::Committed { .. }
                    | State::Refused { .. }
                    | State::Aborted
                    | State::Tombstone => {}
                }
            }
        }
    }

    fn prepare(
        &mut self,
        digest: BodyDigest,
        session: Option<Session>,
        in_time: bool,
        effects: &mut Vec<Effect>,
    ) {
        let held = match &self.state {
            State::Absent => None,
            State::Active { session } => Some(session.clone()),
            State::Prepared { digest: first } | State::Committed { digest: first } => {
                // A stored row answers first. Its commit is forced once more: that the row is visible
                // does not say that it is durable (rule 8).
                if *first == digest {
                    forced(Reply::Vote(Vote::Yes), effects);
                } else {
                    effects.push(Effect::Answer {
                        reply: Answer::PrepareChanged,
                        forced: false,
                    });
                }
                return;
            }
            State::Refused {
                digest: first,
                refusal,
            } => {
                let reply = if *first == digest {
                    Answer::Reply(Reply::Vote(Vote::No(refusal.clone())))
                } else {
                    Answer::PrepareChanged
                };
                effects.push(Effect::Answer {
                    reply,
                    forced: false,
                });
                return;
            }
            State::Aborted | State::Tombstone => {
                let refusal = Refusal {
                    code: RefusalCode::Aborted,
                    reason: "an abort of this branch came before the prepare".to_owned(),
                };
                unforced(Reply::Vote(Vote::No(refusal)), effects);
                return;
            }
            State::Pruned { low_water } => {
                // No tombstone is stored: the mark is one for all.
                let reply = Answer::BelowLowWater {
                    low_water: *low_water,
                };
                effects.push(Effect::RollBackWork);
                effects.push(Effect::Answer {
                    reply,
                    forced: false,
                });
                return;
            }
            State::Working { .. } | State::Applying { .. } | State::Undoing => return,
        };
        // Interactive work is all there or the vote is no (rule 22): also where the prepare knows of no session, for
        // then the coordinator never learnt of the work that is held here.
        if session != held {
            let reason = "the interactive work of this branch is gone: the service was restarted, or lost the \
                          connection that held it";
            self.refuse(digest, RefusalCode::WorkLost, reason, effects);
        } else if in_time {
            self.state = State::Working { digest };
            effects.push(Effect::Work);
        } else {
            self.refuse(
                digest,
                RefusalCode::Deadline,
                "the deadline has passed",
                effects,
            );
        }
    }

    fn refuse(
        &mut self,
        digest: BodyDigest,
        code: RefusalCode,
        reason: &str,
        effects: &mut Vec<Effect>,
    ) {
        self.state = State::Working { digest };
        self.worked(
            Vote::No(Refusal {
                code,
                reason: reason.to_owned(),
            }),
            effects,
        );
    }

    fn worked(&mut self, vote: Vote, effects: &mut Vec<Effect>) {
        let State::Working { digest } = self.state else {
            return;
        };
        match vote {
            Vote::Yes => {
                self.store(State::Prepared { digest }, effects);
                forced(Reply::Vote(Vote::Yes), effects);
            }
            Vote::No(refusal) => {
                effects.push(Effect::RollBackWork);
                self.store(
                    State::Refused {
                        digest,
                        refusal: refusal.clone(),
                    },
                    effects,
                );
                unforced(Reply::Vote(Vote::No(refusal)), effects);
            }
            Vote::ReadOnly => {
                // It claims to have changed nothing, so nothing may stay.
                effects.push(Effect::RollBackWork);
                self.state = State::Absent;
                unforced(Reply::Vote(Vote::ReadOnly), effects);
            }
        }
    }

    fn commit(&mut self, effects: &mut Vec<Effect>) {
        match self.state {
            State::Prepared { digest } => {
                self.state = State::Applying { digest };
                effects.push(Effect::Apply);
            }
            State::Committed { .. } => forced(Reply::Committed, effects),
            // Below the mark too: a commit that is still being told is not finished, so somebody is wrong.
            State::Absent | State::Active { .. } | State::Pruned { .. } => {
                unforced(Reply::VoteLost, effects);
            }
            State::Refused { .. } | State::Aborted | State::Tombstone => {
                unforced(Reply::OutcomeDiffers, effects);
            }
            State::Working { .. } | State::Applying { .. } | State::Undoing => {}
        }
    }

    fn abort(&mut self, effects: &mut Vec<Effect>) {
        match self.state {
            State::Prepared { .. } => {
                self.state = State::Undoing;
                effects.push(Effect::Undo);
            }
            State::Absent => {
                self.store(State::Tombstone, effects);
                unforced(Reply::Aborted, effects);
            }
            State::Active { .. } => {
                effects.push(Effect::RollBackWork);
                self.store(State::Tombstone, effects);
                unforced(Reply::Aborted, effects);
            }
            State::Pruned { .. } => {
                effects.push(Effect::RollBackWork);
                unforced(Reply::Aborted, effects);
            }
            State::Committed { .. } => unforced(Reply::OutcomeDiffers, effects),
            State::Refused { .. } | State::Aborted | State::Tombstone => {
                unforced(Reply::Aborted, effects);
            }
            State::Working { .. } | State::Applying { .. } | State::Undoing => {}
        }
    }

    fn informed(&mut self, inform: Inform, effects: &mut Vec<Effect>) {
        // Whoever is not in doubt has no use for the answer: it may be older than the row.
        if !matches!(self.state, State::Prepared { .. }) {
            return;
        }
        match inform {
            Inform::Committed => self.commit(effects),
            Inform::Aborted => self.abort(effects),
            Inform::Pending => {}
        }
    }

    fn store(&mut self, state: State, effects: &mut Vec<Effect>) {
        self.state = state.clone();
        effects.push(Effect::Store(state));
    }
}

fn forced(reply: Reply, effects: &mut Vec<Effect>) {
    effects.push(Effect::Answer {
        reply: Answer::Reply(reply),
        forced: true,
    });
}

fn unforced(reply: Reply, effects: &mut Vec<Effect>) {
    effects.push(Effect::Answer {
        reply: Answer::Reply(reply),
        forced: false,
    });
}
