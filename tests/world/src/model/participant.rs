//! The shell around [`Branch`]: every message is one local transaction over a row and what the service has done for it.
//! What was committed is visible at once and durable once it was flushed; a forced answer waits for that, and a crash
//! loses what was not flushed, with whatever was held in memory.

use std::collections::VecDeque;

use unanimous_protocol::{
    branch::{Answer, Branch, Effect, Event, State as RowState},
    id::TransactionId,
    message::{Inform, Refusal, RefusalCode, RequestKind, Session, Vote},
};

use super::{
    Search,
    check::Rule,
    configuration::Answers,
    coordinator::OPERATIONS,
    state::{Asked, Bits, Held, INFORMS, Row, SESSIONS, Said, State, node_of, said, slot},
};

/// What happens to a prepare beside its arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Luck {
    /// What the service's code says.
    pub(super) vote: Voted,
    pub(super) in_time: bool,
}

/// A vote, as the service's code gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Voted {
    Yes,
    No,
    ReadOnly,
}

pub(super) const WELL: Luck = Luck {
    vote: Voted::Yes,
    in_time: true,
};

impl Answers {
    /// What a prepare may meet here. The first is what it meets where all goes well.
    pub(super) fn lucks(self) -> &'static [Luck] {
        const NO: Luck = Luck {
            vote: Voted::No,
            ..WELL
        };
        const READ_ONLY: Luck = Luck {
            vote: Voted::ReadOnly,
            ..WELL
        };
        const LATE: Luck = Luck {
            in_time: false,
            ..WELL
        };
        match self {
            Self::Yes => &[WELL],
            Self::YesOrNo => &[WELL, NO],
            Self::ReadOnly => &[READ_ONLY],
            Self::ReadOnlyOrYes => &[READ_ONLY, WELL],
            Self::YesOrLate => &[WELL, LATE],
        }
    }
}

impl Voted {
    fn vote(self) -> Vote {
        match self {
            Self::Yes => Vote::Yes,
            Self::ReadOnly => Vote::ReadOnly,
            Self::No => Vote::No(Refusal {
                code: RefusalCode::Refused,
                reason: String::new(),
            }),
        }
    }
}

impl Search {
    /// A request of a coordinator arrives.
    pub(super) fn called(
        &self,
        s: &mut State,
        participant: usize,
        (life, transaction): (usize, usize),
        asked: Asked,
        luck: Luck,
    ) {
        let event = match asked {
            Asked::Prepare { session } => Event::PrepareReceived {
                digest: OPERATIONS.digest(),
                session: session_of(session),
                in_time: luck.in_time,
            },
            Asked::Commit => Event::CommitReceived,
            Asked::Abort => Event::AbortReceived,
        };
        let from = Some((life, asked.kind()));
        self.message(s, participant, transaction, event, luck, from);
    }

    pub(super) fn informed(
        &self,
        s: &mut State,
        participant: usize,
        transaction: usize,
        inform: Inform,
    ) {
        let event = Event::Informed(inform);
        self.message(s, participant, transaction, event, WELL, None);
    }

    /// The timer of interactive work; also where it was voted on since, for no timer leaves `Prepared`.
    pub(super) fn session_deadline(&self, s: &mut State, participant: usize) {
        self.message(s, participant, 0, Event::DeadlinePassed, WELL, None);
    }

    /// One message, one local transaction.
    fn message(
        &self,
        s: &mut State,
        participant: usize,
        transaction: usize,
        event: Event,
        luck: Luck,
        from: Option<(usize, RequestKind)>,
    ) {
        let id = s.id_of(transaction);
        let p = &s.participants[participant];
        let before = p.visible.rows[transaction].clone();
        let held = p.held.filter(|_| transaction == 0);
        let state = before.state.clone().unwrap_or_else(|| {
            let session = held.and_then(|held| session_of(usize::from(held.session)));
            RowState::without_row(id, session, p.visible.low_water[node_of(id)])
        });
        let is_prepare = matches!(event, Event::PrepareReceived { .. });
        let mut row = before.clone();
        let mut branch = Branch::from_row(state);
        let mut effects = Vec::new();
        branch.step(event, &mut effects);
        let mut effects = VecDeque::from(effects);
        let mut answers = Vec::new();
        while let Some(effect) = effects.pop_front() {
            let mut more = Vec::new();
            match effect {
                Effect::Work => {
                    s.require(luck.in_time, Rule::Ac4, || {
                        format!("{participant} works for {transaction} after its deadline")
                    });
                    // The worst that a service may do before it refuses.
                    row.reserved = true;
                    row.key = true;
                    row.worked_in = held.map_or(0, |held| held.session);
                    branch.step(Event::Worked(luck.vote.vote()), &mut more);
                }
                Effect::Apply => {
                    row.applied += 1;
                    row.reserved = false;
                    branch.step(Event::Applied, &mut more);
                }
                Effect::Undo => {
                    row.reserved = false;
                    branch.step(Event::Undone, &mut more);
                }
                Effect::RollBackWork => {
                    row = Row {
                        state: row.state,
                        ..before.clone()
                    };
                }
                Effect::ReleaseKeys => row.key = false,
                Effect::Store(state) => row.state = Some(state),
                Effect::Answer { reply, forced } => {
                    let kind = from.map_or(RequestKind::Prepare, |(_, kind)| kind);
                    match reply {
                        Answer::Reply(reply) => answers.push((said(&reply, kind), forced)),
                        Answer::BelowLowWater { .. } => {
                            answers.push((Said::NoBelowLowWater, forced));
                        }
                        // The same operations come every time.
                        Answer::PrepareChanged => s.require(false, Rule::Told, || {
                            format!("{participant} takes one prepare of {transaction} for another")
                        }),
                    }
                }
            }
            more.into_iter()
                .rev()
                .for_each(|effect| effects.push_front(effect));
        }
        let pruned = matches!(branch.state(), RowState::Pruned { .. });
        if row != before || held.is_some() || !answers.is_empty() {
            let p = s.participant_mut(participant);
            let gone = row.state.is_some() || pruned;
            p.visible.rows[transaction] = row;
            if gone && held.is_some() {
                // The row answers from now on.
                p.held = None;
            }
        }
        // After a read-only vote a late duplicate of the prepare must find no work left of the first.
        let left = &s.participants[participant].visible.rows[transaction];
        let nothing_left = left.state.is_some() || *left == Row::default();
        s.require(nothing_left || !is_prepare, Rule::Effects, || {
            format!("{participant} has work of {transaction} and no row")
        });
        s.check_row(participant, transaction, &before);
        for (said, forced) in answers {
            let Some((life, _)) = from else {
                continue;
            };
            if forced {
                let bit = slot(life, transaction) * Said::ALL.len() + said as usize;
                s.participant_mut(participant).waiting.add(bit);
            } else {
                s.says(participant, life, transaction, said);
            }
        }
        // Where it can not crash any more, when something becomes durable tells nothing.
        let p = &s.participants[participant];
        if s.faults.participant_crashes == 0 || p.visible == p.durable {
            self.flush(s, participant);
        }
    }

    /// All that is visible becomes durable, and what waited for that is said.
    pub(super) fn flush(&self, s: &mut State, participant: usize) {
        if s.participants[participant].is_flushed() {
            return;
        }
        let p = s.participant_mut(participant);
        p.durable = p.visible.clone();
        let waiting = std::mem::take(&mut p.waiting);
        for bit in waiting.iter() {
            let (slot, said) = (bit / Said::ALL.len(), Said::ALL[bit % Said::ALL.len()]);
            let (life, transaction) = super::state::of_slot(slot);
            s.says(participant, life, transaction, said);
        }
    }

    /// It crashes and comes back: what was not flushed is gone, and what its memory held.
    pub(super) fn participant_crashes(&self, s: &mut State, participant: usize) {
        s.faults.participant_crashes -= 1;
        let p = s.participant_mut(participant);
        p.visible = p.durable.clone();
        p.waiting = Bits::default();
        p.held = None;
        if s.faults.participant_crashes == 0 {
            for participant in 0..s.participants.len() {
                self.flush(s, participant);
            }
        }
    }

    /// One local transaction drops what has an outcome below a mark, and stores the mark (rule 15).
    pub(super) fn prune(&self, s: &mut State, participant: usize, mark: TransactionId) {
        let p = s.participant_mut(participant);
        let stored = &mut p.visible.low_water[node_of(mark)];
        let mark = stored.map_or(mark, |stored| stored.max(mark));
        *stored = Some(mark);
        for transaction in 0..s.transactions.len() {
            let id = s.id_of(transaction);
            if id.prefix() != mark.prefix() || id >= mark {
                continue;
            }
            let row = &s.participants[participant].visible.rows[transaction];
            let has_ended = matches!(
                row.state,
                Some(
                    RowState::Committed { .. }
                        | RowState::Refused { .. }
                        | RowState::Aborted
                        | RowState::Tombstone
                )
            );
            if has_ended {
                s.check_pruned(participant, transaction);
                let p = s.participant_mut(participant);
                p.visible.rows[transaction] = Row::default();
                p.pruned.add(transaction);
            }
        }
        if s.faults.participant_crashes == 0 {
            self.flush(s, participant);
        }
    }

    /// Its database is an older one than it was: what it had promised as durable is gone.
    pub(super) fn betrays(&self, s: &mut State, participant: usize) {
        s.faults.betrayals -= 1;
        let p = s.participant_mut(participant);
        for transaction in 0..p.durable.rows.len() {
            if p.durable.rows[transaction].state.is_some() {
                p.betrayed.add(transaction);
            }
        }
        p.durable.rows = <[Row; 2]>::default();
        p.visible = p.durable.clone();
        p.waiting = Bits::default();
        p.held = None;
    }

    /// A client asks for interactive work.
    pub(super) fn work(&self, s: &mut State, participant: usize) {
        let p = s.participant_mut(participant);
        if p.visible.rows[0].state.is_some() {
            return;
        }
        match p.held {
            None if usize::from(p.sessions_begun) + 1 < SESSIONS => {
                p.sessions_begun += 1;
                let session = p.sessions_begun;
                p.held = Some(Held {
                    session,
                    enlisted: false,
                });
                p.enlists.add(usize::from(session));
            }
            None | Some(_) => {}
        }
    }

    /// The coordinator's answer to an enlisting arrives.
    pub(super) fn enlist_answered(
        &self,
        s: &mut State,
        participant: usize,
        session: u8,
        refused: bool,
    ) {
        let p = s.participant_mut(participant);
        let Some(held) = p.held.as_mut().filter(|held| held.session == session) else {
            return;
        };
        if held.enlisted {
            return;
        }
        if refused {
            p.held = None;
        } else {
            held.enlisted = true;
            // The work is done, and the client is told so.
            p.done.add(usize::from(session));
        }
    }
}

/// A session by its number; 0 is none.
fn session_of(number: usize) -> Option<Session> {
    let session = number.to_string().parse();
    session.ok().filter(|_| number > 0)
}

impl State {
    /// An answer leaves.
    fn says(&mut self, participant: usize, life: usize, transaction: usize, said: Said) {
        self.check_said(participant, transaction, said);
        self.participant_mut(participant)
            .has_said(transaction, said);
        if self.listens(life, transaction) {
            let bit = slot(life, transaction) * Said::ALL.len() + said as usize;
            self.participant_mut(participant).replies.add(bit);
        }
    }

    /// What an inquiry was told, by its number.
    pub(super) fn inform_of(bit: usize) -> (usize, Inform) {
        (bit / INFORMS.len(), INFORMS[bit % INFORMS.len()])
    }
}
