//! Messages of several branches in one local transaction.
//!
//! Half of what a message costs is the end of its local transaction, so those that wait may share one. Their rows are
//! written first, each as it is hoped to end, and the service's code runs behind them. [`Hope`] says what that end is, and
//! afterwards whether it came. Where it did not, for whatever reason and for one branch only, all is rolled back: the
//! others run again without that one, which runs alone, against the row as it then is (rules 8 and 23). So nothing here
//! decides anything that [`crate::branch`] does not decide as well for a message that runs alone.
//!
//! What has to hold of a shared local transaction:
//! - A branch takes part once, and only with a prepare of a new branch or an outcome of one in doubt. Everything else is
//!   answered by the row, alone.
//! - The row that was found is the one that was hoped for ([`Hope::is_of`]); also where the operations are known from memory.
//! - Nothing is said of a run that was rolled back, or whose commit is unclear: then all of them run alone.
//! - The answers leave behind the commit, a forced one where any of them needs that ([`any_forced`]).

use crate::{
    branch::{Answer, Branch, Effect, Event, State},
    message::Vote,
};

/// What a branch wants done in a shared local transaction. Anything else is done alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// The service's prepare.
    Work,
    /// The service's commit.
    Apply,
    /// The service's abort.
    Undo,
}

/// A branch, one step into its message, and the end that is hoped for.
#[derive(Clone, Debug)]
pub struct Hope {
    row: State,
    machine: Branch,
    asks: Asks,
    stores: State,
}

/// What a branch that ended as hoped says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Nothing, where nobody asked.
    pub answer: Option<Answer>,
    /// Whether the commit before it must be a forced one.
    pub forced: bool,
}

impl Hope {
    /// The hope for a branch whose row says `row`, or is believed to. `None` where the branch wants anything else than to
    /// have one thing done.
    #[must_use]
    pub fn of(row: State, event: Event) -> Option<Self> {
        let mut machine = Branch::from_row(row.clone());
        let mut effects = Vec::new();
        machine.step(event, &mut effects);
        let (asks, done) = match effects.as_slice() {
            [Effect::Work] => (Asks::Work, Event::Worked(Vote::Yes)),
            [Effect::Apply] => (Asks::Apply, Event::Applied),
            [Effect::Undo] => (Asks::Undo, Event::Undone),
            _ => return None,
        };
        let mut ahead = machine.clone();
        effects.clear();
        ahead.step(done, &mut effects);
        let stores = effects.into_iter().find_map(|effect| match effect {
            Effect::Store(state) => Some(state),
            Effect::Work
            | Effect::Apply
            | Effect::Undo
            | Effect::RollBackWork
            | Effect::ReleaseKeys
            | Effect::Answer { .. } => None,
        })?;
        Some(Self {
            row,
            machine,
            asks,
            stores,
        })
    }

    /// What the service's code is to do.
    #[must_use]
    pub fn asks(&self) -> Asks {
        self.asks
    }

    /// What is written before that.
    #[must_use]
    pub fn stores(&self) -> &State {
        &self.stores
    }

    /// Whether `found`, the row when it was written over (or [`State::without_row`]), is the one that was hoped for.
    #[must_use]
    pub fn is_of(&self, found: &State) -> bool {
        self.row == *found
    }

    /// The end; `None` where it is not the one that was hoped for, and what was written is wrong.
    #[must_use]
    pub fn ends(mut self, event: Event) -> Option<End> {
        let mut effects = Vec::new();
        self.machine.step(event, &mut effects);
        let mut stored = None;
        let mut end = End {
            answer: None,
            forced: false,
        };
        for effect in effects {
            match effect {
                Effect::Store(state) => stored = Some(state),
                Effect::Answer { reply, forced } => {
                    end.answer = Some(reply);
                    end.forced = forced;
                }
                // It holds none: those that do go alone.
                Effect::ReleaseKeys => {}
                // Nothing can be taken back for one branch only.
                Effect::Work | Effect::Apply | Effect::Undo | Effect::RollBackWork => return None,
            }
        }
        (stored.as_ref() == Some(&self.stores)).then_some(end)
    }
}

/// Whether the commit that all of these share must be a forced one.
#[must_use]
pub fn any_forced(ends: &[End]) -> bool {
    ends.iter().any(|end| end.forced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        message::{Inform, Refusal, RefusalCode, Reply},
        operations::BodyDigest,
    };

    const DIGEST: BodyDigest = BodyDigest([7; 32]);

    fn prepare(in_time: bool) -> Event {
        Event::PrepareReceived {
            digest: DIGEST,
            session: None,
            in_time,
        }
    }

    fn prepared() -> State {
        State::Prepared { digest: DIGEST }
    }

    #[test]
    fn new_branches_and_those_in_doubt_may_share_and_nothing_else() {
        let outcomes = [
            (Event::CommitReceived, Asks::Apply),
            (Event::Informed(Inform::Committed), Asks::Apply),
            (Event::AbortReceived, Asks::Undo),
            (Event::Informed(Inform::Aborted), Asks::Undo),
        ];
        for (event, asks) in outcomes {
            let hope = Hope::of(prepared(), event.clone()).map(|hope| hope.asks());
            assert_eq!(hope, Some(asks));
            for row in [
                State::Absent,
                State::Tombstone,
                State::Aborted,
                State::Committed { digest: DIGEST },
            ] {
                assert!(
                    Hope::of(row.clone(), event.clone()).is_none(),
                    "{row:?} {event:?}"
                );
            }
        }
        assert!(Hope::of(State::Absent, prepare(true)).is_some());
        for row in [State::Tombstone, prepared(), State::Aborted] {
            assert!(Hope::of(row, prepare(true)).is_none());
        }
        assert!(Hope::of(State::Absent, prepare(false)).is_none());
        assert!(Hope::of(prepared(), Event::Informed(Inform::Pending)).is_none());
        assert!(Hope::of(prepared(), Event::DeadlinePassed).is_none());
    }

    #[test]
    fn a_no_and_a_read_only_vote_are_no_ends_that_were_hoped_for() {
        let hope = Hope::of(State::Absent, prepare(true)).unwrap();
        assert_eq!(*hope.stores(), prepared());
        let refusal = Refusal {
            code: RefusalCode::Refused,
            reason: String::new(),
        };
        for vote in [Vote::No(refusal), Vote::ReadOnly] {
            assert_eq!(hope.clone().ends(Event::Worked(vote)), None);
        }
        let end = hope.ends(Event::Worked(Vote::Yes)).unwrap();
        let yes = Answer::Reply(Reply::Vote(Vote::Yes));
        assert_eq!((end.answer, end.forced), (Some(yes), true));
    }

    #[test]
    fn a_row_of_other_operations_is_not_the_one_that_was_hoped_for() {
        let hope = Hope::of(prepared(), Event::CommitReceived).unwrap();
        let digest = BodyDigest([8; 32]);
        assert!(hope.is_of(&prepared()));
        assert!(!hope.is_of(&State::Prepared { digest }));
        assert!(!hope.is_of(&State::Committed { digest: DIGEST }));
        assert!(!hope.is_of(&State::Absent));
    }

    #[test]
    fn one_answer_that_must_be_durable_forces_the_commit_of_all() {
        let end = |forced| End {
            answer: None,
            forced,
        };
        assert!(any_forced(&[end(false), end(true), end(false)]));
        assert!(!any_forced(&[end(false)]));
    }
}
