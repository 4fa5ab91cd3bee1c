//! The shell around [`unanimous_protocol::branch`]: one event on one branch, inside one local transaction.
//!
//! What follows from what is decided there. Here the row becomes a machine, effects that need the service's code run it,
//! and effects that write are gathered into a [`Plan`], which [`Local::commit`] writes in one round trip. This file
//! begins and ends no local transaction, and knows neither connections nor clocks.

use std::{collections::VecDeque, time::Duration};

use unanimous_protocol::{
    branch::{Answer, Branch, Effect, Event, State},
    id::BranchId,
    keys::{self, Age, GiveUp, KeyWait},
    message::{Refusal, RefusalCode, Reply, Session, Vote},
    operations::Operations,
};

use crate::{
    intent_log::{Local, LogError, Plan, Row, Taken},
    resource::Failure,
    service::{Failed, InvalidOperation, Service, Voted, Work},
};

/// Bytes of a key, at most: it is indexed.
const KEY_MAX: usize = 255;

/// What happens to the branch, with what the service's code needs to know of it.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    /// Do the work and vote.
    Prepare {
        operations: Operations,
        session: Option<Session>,
        begun_at_ms: i64,
        in_time: bool,
        patience: KeyPatience,
    },
    /// Anything that needs no operations: they are in the row.
    Event(Event),
}

/// How long this prepare has already waited for keys.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct KeyPatience {
    /// Over all of its attempts.
    pub(crate) waited: Duration,
    /// Too many wait already: give up at once, in the way its age says.
    pub(crate) exhausted: bool,
}

impl KeyPatience {
    /// `None` while there is patience left.
    fn give_up(self, mine: Age, holder: Option<Age>) -> Option<GiveUp> {
        // Whoever is just preparing with it can not be seen yet: never a reason to refuse, and soon over.
        let unseen = KeyWait {
            at_most_ms: 1_000,
            then: GiveUp::Busy,
        };
        let wait = holder.map_or(unseen, |holder| keys::wait(mine, holder));
        let over = self.exhausted || self.waited >= Duration::from_millis(wait.at_most_ms);
        over.then_some(wait.then)
    }
}

/// Interactive work of this branch that this process holds.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) session: Session,
    /// The added operations, a JSON array.
    pub(crate) added: String,
}

/// What a branch's message leaves to do.
#[derive(Debug)]
pub(crate) struct Stepped {
    /// To commit; `None`: roll back, nothing is to be kept.
    pub(crate) plan: Option<Plan>,
    /// To give once that is done.
    pub(crate) answer: Option<Answer>,
    /// What becomes of the interactive work that this process holds of the branch.
    pub(crate) session: SessionAfter,
}

/// What becomes of a branch's interactive work once its message is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionAfter {
    /// It is still all there is of the branch.
    Kept,
    /// It voted read-only, of which nothing is stored: a repeat, whose first answer was lost, does the work again.
    VotedReadOnly,
    /// The row answers from now on, or the low-water mark does.
    Gone,
}

/// Why a message ended without an answer of the branch. The local transaction is to be rolled back.
#[derive(Debug)]
pub(crate) enum Stop {
    Log(LogError),
    /// The service's code could not find out.
    Failed(Failed),
    /// The prepare names an operation that is none of the service's.
    Invalid(InvalidOperation),
    /// The row holds one: another version of the service wrote it.
    Outdated(InvalidOperation),
    /// Another branch holds a key; there is patience left.
    KeyHeld {
        key: String,
    },
    /// Another branch held it for too long.
    KeyBusy {
        key: String,
    },
    /// A prepare of a branch that is not known, under a name that is not the service's (any more).
    OtherParticipant,
    /// The time for it is over.
    Late,
    /// An abort of the branch arrived while it was being prepared.
    Cancelled,
}

impl From<LogError> for Stop {
    fn from(error: LogError) -> Self {
        Self::Log(error)
    }
}

/// Whose message, and what is known about it outside its row.
pub(crate) struct Context<'a> {
    pub(crate) service: &'a dyn Service,
    /// Its present name and former ones: a key is taken under each.
    pub(crate) names: &'a [String],
    pub(crate) branch: &'a BranchId,
    /// Whether new work may begin under the branch's name.
    pub(crate) name_is_ours: bool,
    pub(crate) held: Option<Held>,
}

/// Begins on `local`, lets the branch take the event, and runs the service's code where an effect asks for it.
pub(crate) async fn step(
    local: &mut Local,
    context: &Context<'_>,
    asked: &Asked,
) -> Result<Stepped, Stop> {
    let (operations, event) = match asked {
        Asked::Prepare {
            operations,
            session,
            in_time,
            ..
        } => {
            let event = Event::PrepareReceived {
                digest: operations.digest(),
                session: session.clone(),
                in_time: *in_time,
            };
            (Some(operations), event)
        }
        Asked::Event(event) => (None, event.clone()),
    };
    let session = context.held.as_ref().map(|held| held.session.clone());
    let mut row = local.begin(operations, session).await?;
    let inserted = matches!(
        row.state,
        State::Absent | State::Active { .. } | State::Pruned { .. }
    );
    let pruned = matches!(row.state, State::Pruned { .. });
    let mut branch = Branch::from_row(row.state.clone());

    let mut effects = Vec::new();
    branch.step(event, &mut effects);
    let mut waiting = VecDeque::from(std::mem::take(&mut effects));
    let mut plan = Plan::default();
    let mut answer = None;
    while let Some(effect) = waiting.pop_front() {
        let came_back = match effect {
            Effect::Work => Some(Event::Worked(work(local, context, asked, &mut row).await?)),
            Effect::Apply => {
                let work = stored_work(context, &row)?;
                let applied = work.commit(&row.voted_yes, &mut local.tx()?).await;
                applied.map_err(Stop::Failed)?;
                Some(Event::Applied)
            }
            Effect::Undo => {
                let work = stored_work(context, &row)?;
                let undone = work.abort(&row.voted_yes, &mut local.tx()?).await;
                undone.map_err(Stop::Failed)?;
                Some(Event::Undone)
            }
            Effect::RollBackWork => {
                // The savepoint is there for a prepare only; nothing else has run the service's code by then.
                plan.roll_back_work = operations.is_some();
                row.keys_held = 0;
                row.voted_yes.clear();
                None
            }
            Effect::ReleaseKeys => {
                plan.release_keys = row.keys_held;
                row.keys_held = 0;
                None
            }
            Effect::Store(state) => {
                row.state = state;
                plan.store = Some(row.clone());
                None
            }
            Effect::Answer { reply, forced } => {
                answer = Some(reply);
                plan.forced = forced;
                None
            }
        };
        if let Some(event) = came_back {
            branch.step(event, &mut effects);
            waiting.extend(effects.drain(..));
        }
    }
    // Without a new state there is nothing to commit, but for the flush behind a repeated yes or committed.
    let keep = plan.store.is_some() || (plan.forced && !inserted);
    let session = if !inserted || pruned || plan.store.is_some() {
        SessionAfter::Gone
    } else if answer == Some(Answer::Reply(Reply::Vote(Vote::ReadOnly))) {
        SessionAfter::VotedReadOnly
    } else {
        SessionAfter::Kept
    };
    Ok(Stepped {
        plan: keep.then_some(plan),
        answer,
        session,
    })
}

/// Takes the keys, then runs the service's prepare.
async fn work(
    local: &Local,
    context: &Context<'_>,
    asked: &Asked,
    row: &mut Row,
) -> Result<Vote, Stop> {
    let Asked::Prepare {
        operations,
        begun_at_ms,
        patience,
        ..
    } = asked
    else {
        // Only a prepare makes a machine ask for work.
        return Ok(Vote::ReadOnly);
    };
    if !context.name_is_ours {
        return Err(Stop::OtherParticipant);
    }
    row.added = context.held.as_ref().map(|held| held.added.clone());
    let work = read(context.service, operations.text(), row).map_err(Stop::Invalid)?;
    let keys = work.keys();
    if let Some(key) = keys
        .iter()
        .find(|key| key.len() > KEY_MAX || key.contains('\0'))
    {
        let failure = Failure::msg(format!(
            "{key:?} is no key: at most {KEY_MAX} bytes, no U+0000"
        ));
        return Err(Stop::Failed(Failed { index: 0, failure }));
    }
    if !keys.is_empty() {
        match local.take_keys(context.names, &keys, *begun_at_ms).await? {
            Taken::All { rows } => row.keys_held = rows,
            Taken::Held { key, holder } => {
                let mine = Age {
                    begun_at_ms: *begun_at_ms,
                    transaction: context.branch.transaction,
                };
                return match patience.give_up(mine, holder) {
                    None => Err(Stop::KeyHeld { key }),
                    Some(GiveUp::Busy) => Err(Stop::KeyBusy { key }),
                    Some(GiveUp::Conflict) => Ok(Vote::No(Refusal {
                        code: RefusalCode::Conflict,
                        reason: format!("another transaction holds the key {key}"),
                    })),
                };
            }
        }
    }
    let voted = work.prepare(&mut local.tx()?).await;
    let Voted { vote, yes } = voted.map_err(Stop::Failed)?;
    row.voted_yes = yes;
    Ok(vote)
}

fn stored_work(context: &Context<'_>, row: &Row) -> Result<Box<dyn Work>, Stop> {
    let operations = row.operations.as_deref().unwrap_or("[]");
    read(context.service, operations, row).map_err(Stop::Outdated)
}

fn read(
    service: &dyn Service,
    operations: &str,
    row: &Row,
) -> Result<Box<dyn Work>, InvalidOperation> {
    match &row.added {
        Some(added) => service.read(&[operations, added]),
        None => service.read(&[operations]),
    }
}
