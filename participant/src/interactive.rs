//! Interactive work: a client begins a transaction, calls services with the header [`TRANSACTION_HEADER`], and commits.
//!
//! The branch enlists itself at the coordinator before the first work, under a session: a random value that lives as
//! long as this memory. At prepare the work must be all there under that very session, or the vote is no (design rule
//! 22). So nothing here is written down: what a restart forgets, the session tells.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::{sync::watch, time::Instant};
use unanimous_protocol::{
    branch::Event,
    id::{BranchId, ParticipantName, TransactionId},
    message::Session,
    record::WallMillis,
    trace::TraceContext,
    wire::{BranchState, EnlistAnswer, EnlistRequest, Problem, Timestamp},
};

use crate::{
    branch::Held,
    calls::chain,
    crash,
    http::BODY_MAX,
    inquiry::{Coordinator, read_body},
    intent_log::{After, Seen},
    participant::{Participant, Shared},
    traces::traced,
};

/// Work requests carry the transaction in this header.
pub const TRANSACTION_HEADER: &str = "Unanimous-Transaction";

/// Interactive branches that one process holds, at most.
const SESSIONS_MAX: usize = 10_000;
/// Work that a prepare has read is kept so much longer than its deadline, which is reckoned from before the enlisting
/// was sent and so may be early by as long as that took.
const SEALED_GRACE: Duration = Duration::from_secs(5);
/// No transaction lasts longer (the coordinator's own limit is half of it).
const TRANSACTION_MAX: Duration = Duration::from_secs(600);
/// How often overdue work is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Why interactive work was not taken. Nothing of it will happen, unless it was taken before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InteractiveError {
    /// The coordinator does not take it: the transaction is not active any more, or lives elsewhere.
    #[error("transaction {transaction}: the coordinator refused to enlist {participant}: {reason}")]
    NotEnlisted {
        /// The global transaction.
        transaction: TransactionId,
        /// The participant.
        participant: ParticipantName,
        /// What the coordinator said.
        reason: String,
    },
    /// No coordinator answered; asking again may help.
    #[error(
        "transaction {transaction}: no coordinator answered the enlisting of {participant}: {reason}"
    )]
    NoCoordinator {
        /// The global transaction.
        transaction: TransactionId,
        /// The participant.
        participant: ParticipantName,
        /// How the last one failed.
        reason: String,
    },
    /// The transaction is being committed or aborted, or its deadline has passed.
    #[error(
        "transaction {transaction}: {participant} takes no more work for it, it is ending or has ended"
    )]
    Ended {
        /// The global transaction.
        transaction: TransactionId,
        /// The participant.
        participant: ParticipantName,
    },
    /// Too much is held in memory already.
    #[error(
        "transaction {transaction}: {participant} holds as much interactive work as it may; try again later"
    )]
    Full {
        /// The global transaction.
        transaction: TransactionId,
        /// The participant.
        participant: ParticipantName,
    },
    /// The operation can not be written as JSON.
    #[error("transaction {transaction}: an operation for {participant} that is no JSON")]
    Json {
        /// The global transaction.
        transaction: TransactionId,
        /// The participant.
        participant: ParticipantName,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// A branch of interactive work, enlisted. See [`Participant::interactive`].
#[derive(Clone, Debug)]
pub struct InteractiveBranch {
    participant: Participant,
    transaction: TransactionId,
    session: Session,
}

impl Participant {
    /// The branch of `transaction` here, enlisted at the coordinator if it was not yet.
    ///
    /// # Errors
    /// When the coordinator does not take it, or does not answer.
    pub async fn interactive(
        &self,
        transaction: TransactionId,
    ) -> Result<InteractiveBranch, InteractiveError> {
        let trace = TraceContext::begun(rand::random());
        self.interactive_in_trace(transaction, &trace).await
    }

    /// As [`Self::interactive`], as a part of the trace that the work request belongs to: see
    /// [`TraceContext::received`].
    ///
    /// # Errors
    /// When the coordinator does not take it, or does not answer.
    pub async fn interactive_in_trace(
        &self,
        transaction: TransactionId,
        trace: &TraceContext,
    ) -> Result<InteractiveBranch, InteractiveError> {
        let session = self
            .shared
            .sessions
            .session(transaction, &self.shared.name)?;
        if let Some(session) = session {
            return Ok(InteractiveBranch {
                participant: self.clone(),
                transaction,
                session,
            });
        }
        let session = self.shared.enlist(transaction, trace).await?;
        Ok(InteractiveBranch {
            participant: self.clone(),
            transaction,
            session,
        })
    }
}

impl InteractiveBranch {
    /// Adds an operation, to be run at prepare, after those that the client sent. Held in memory until then.
    ///
    /// # Errors
    /// When the transaction takes no more work, or too much is held.
    pub fn add<O: Serialize>(&self, operation: &O) -> Result<(), InteractiveError> {
        let shared = &self.participant.shared;
        let operation =
            serde_json::to_string(operation).map_err(|source| InteractiveError::Json {
                transaction: self.transaction,
                participant: shared.name.clone(),
                source,
            })?;
        shared
            .sessions
            .add(self.transaction, &self.session, operation, &shared.name)
    }

    /// The global transaction.
    #[must_use]
    pub fn transaction(&self) -> TransactionId {
        self.transaction
    }
}

/// The interactive branches of this process.
#[derive(Default)]
pub(crate) struct Sessions {
    open: Mutex<BTreeMap<TransactionId, Open>>,
    /// Locked before `open`.
    enlisting: Mutex<BTreeMap<TransactionId, Enlisting>>,
}

/// A branch that is being enlisted, or whose enlisting had no clear answer. The coordinator may have its session then,
/// and another one would abort the transaction: so whoever tries again uses this one.
struct Enlisting {
    session: Session,
    ended: watch::Receiver<Option<Enlisted>>,
    /// By then the transaction has ended, whatever became of this.
    keep_until: Instant,
}

impl Enlisting {
    fn is_running(&self) -> bool {
        // Closed without an end: its task died.
        self.ended.borrow().is_none() && self.ended.has_changed().is_ok()
    }
}

type Enlisted = Result<Session, NotEnlisted>;

/// How an enlisting ended that did not succeed.
#[derive(Clone, Debug)]
enum NotEnlisted {
    /// By a coordinator's clear answer.
    Refused(String),
    /// Without one: it may have been taken.
    Unknown(String),
}

/// Who enlists a branch.
enum Entered {
    /// It was enlisted meanwhile.
    Already(Session),
    /// Whoever came first.
    Joined(watch::Receiver<Option<Enlisted>>),
    /// The caller, under this session.
    First(Session, watch::Sender<Option<Enlisted>>),
}

struct Open {
    session: Session,
    /// Each a JSON text.
    added: Vec<String>,
    bytes: usize,
    /// A prepare has read it: what came later would be lost.
    sealed: bool,
    /// It is kept only for a repeat of that prepare.
    voted_read_only: bool,
    deadline: Instant,
    since: Timestamp,
}

impl Open {
    fn held(&self) -> Held {
        Held {
            session: self.session.clone(),
            added: format!("[{}]", self.added.join(",")),
        }
    }
}

impl Sessions {
    fn open(&self) -> MutexGuard<'_, BTreeMap<TransactionId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enlisting(&self) -> MutexGuard<'_, BTreeMap<TransactionId, Enlisting>> {
        self.enlisting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` where there is no room.
    fn enter(&self, transaction: TransactionId) -> Option<Entered> {
        let mut enlisting = self.enlisting();
        if let Some(branch) = self.open().get(&transaction) {
            return Some(Entered::Already(branch.session.clone()));
        }
        let (ends, ended) = watch::channel(None);
        if let Some(before) = enlisting.get_mut(&transaction) {
            if before.is_running() {
                return Some(Entered::Joined(before.ended.clone()));
            }
            before.ended = ended;
            return Some(Entered::First(before.session.clone(), ends));
        }
        if !self.has_room() {
            return None;
        }
        let now = Instant::now();
        if enlisting.len() >= SESSIONS_MAX {
            enlisting.retain(|_, branch| branch.is_running());
        }
        if enlisting.len() >= SESSIONS_MAX {
            return None;
        }
        let session = new_session()?;
        enlisting.insert(
            transaction,
            Enlisting {
                session: session.clone(),
                ended,
                keep_until: now + TRANSACTION_MAX,
            },
        );
        Some(Entered::First(session, ends))
    }

    /// The branch is enlisted: from now on work can be added.
    fn enlisted(&self, transaction: TransactionId, open: Open) {
        let mut enlisting = self.enlisting();
        enlisting.remove(&transaction);
        self.open().insert(transaction, open);
    }

    /// What this process holds of the branch.
    pub(crate) fn held(&self, transaction: TransactionId) -> Option<Held> {
        self.open().get(&transaction).map(Open::held)
    }

    /// As [`Self::held`], and from now on nothing can be added.
    pub(crate) fn seal(&self, transaction: TransactionId) -> Option<Held> {
        let mut open = self.open();
        let branch = open.get_mut(&transaction)?;
        branch.sealed = true;
        Some(branch.held())
    }

    /// Its prepare was answered, and nothing of it is stored.
    pub(crate) fn voted_read_only(&self, transaction: TransactionId) {
        if let Some(branch) = self.open().get_mut(&transaction) {
            branch.voted_read_only = true;
        }
    }

    /// It is in the row now, or gone.
    pub(crate) fn forget(&self, transaction: TransactionId) {
        self.open().remove(&transaction);
    }

    fn session(
        &self,
        transaction: TransactionId,
        participant: &ParticipantName,
    ) -> Result<Option<Session>, InteractiveError> {
        match self.open().get(&transaction) {
            Some(branch) if branch.sealed => Err(InteractiveError::Ended {
                transaction,
                participant: participant.clone(),
            }),
            Some(branch) => Ok(Some(branch.session.clone())),
            None => Ok(None),
        }
    }

    fn add(
        &self,
        transaction: TransactionId,
        session: &Session,
        operation: String,
        participant: &ParticipantName,
    ) -> Result<(), InteractiveError> {
        let mut open = self.open();
        let branch = open.get_mut(&transaction);
        let branch = branch.filter(|branch| !branch.sealed && branch.session == *session);
        let Some(branch) = branch else {
            return Err(InteractiveError::Ended {
                transaction,
                participant: participant.clone(),
            });
        };
        if branch.bytes + operation.len() > BODY_MAX {
            return Err(InteractiveError::Full {
                transaction,
                participant: participant.clone(),
            });
        }
        branch.bytes += operation.len();
        branch.added.push(operation);
        Ok(())
    }

    /// Whose deadline has passed without a prepare; or a while ago, where the prepare found no end and no abort came.
    fn overdue(&self, now: Instant) -> Vec<Overdue> {
        let open = self.open();
        let overdue = open.iter().filter(|(_, branch)| {
            let grace = if branch.sealed {
                SEALED_GRACE
            } else {
                Duration::ZERO
            };
            branch.deadline + grace <= now
        });
        overdue
            .map(|(transaction, branch)| Overdue {
                transaction: *transaction,
                voted_read_only: branch.voted_read_only,
            })
            .collect()
    }

    /// Whether one more can be held. What is kept only for a repeat that hardly ever comes gives way first: without it
    /// such a repeat is voted no, and no more.
    fn has_room(&self) -> bool {
        let mut open = self.open();
        if open.len() >= SESSIONS_MAX {
            open.retain(|_, branch| !branch.voted_read_only);
        }
        open.len() < SESSIONS_MAX
    }

    /// The branch, if it is held here.
    pub(crate) fn look(
        &self,
        transaction: TransactionId,
        participant: &ParticipantName,
    ) -> Option<Seen> {
        let open = self.open();
        open.get(&transaction)
            .map(|branch| seen(transaction, participant, branch))
    }

    /// All that are held here and not voted on, behind `after`.
    pub(crate) fn list(&self, participant: &ParticipantName, after: &After) -> Vec<Seen> {
        let open = self.open();
        open.iter()
            .map(|(transaction, branch)| seen(*transaction, participant, branch))
            .filter(|seen| seen.state == BranchState::Active && after.is_before(&seen.branch))
            .collect()
    }
}

/// Work that nobody will prepare any more.
#[derive(Debug, PartialEq, Eq)]
struct Overdue {
    transaction: TransactionId,
    voted_read_only: bool,
}

fn seen(transaction: TransactionId, participant: &ParticipantName, branch: &Open) -> Seen {
    Seen {
        branch: BranchId {
            transaction,
            participant: participant.clone(),
        },
        state: if branch.voted_read_only {
            BranchState::ReadOnly
        } else {
            BranchState::Active
        },
        since: branch.since,
    }
}

impl Shared {
    /// Enlists this participant at the coordinator that runs the transaction: one at a time for each transaction, and to
    /// the end, whatever becomes of the request that it is for.
    async fn enlist(
        self: &Arc<Self>,
        transaction: TransactionId,
        trace: &TraceContext,
    ) -> Result<Session, InteractiveError> {
        let participant = self.name.clone();
        let mut ended = match self.sessions.enter(transaction) {
            None => {
                return Err(InteractiveError::Full {
                    transaction,
                    participant,
                });
            }
            Some(Entered::Already(session)) => return Ok(session),
            Some(Entered::Joined(ended)) => ended,
            Some(Entered::First(session, ends)) => {
                let ended = ends.subscribe();
                let (shared, trace) = (Arc::clone(self), trace.clone());
                self.runtime.spawn(async move {
                    let enlisted = shared.ask_to_enlist(transaction, session, &trace).await;
                    if let Err(NotEnlisted::Refused(_)) = enlisted {
                        shared.sessions.enlisting().remove(&transaction);
                    }
                    ends.send_replace(Some(enlisted));
                });
                ended
            }
        };
        let enlisted = match ended.wait_for(Option::is_some).await {
            Ok(enlisted) => enlisted.clone(),
            Err(_) => None,
        };
        let died = || Err(NotEnlisted::Unknown("its task died".to_owned()));
        enlisted.unwrap_or_else(died).map_err(|why| match why {
            NotEnlisted::Refused(reason) => InteractiveError::NotEnlisted {
                transaction,
                participant,
                reason,
            },
            NotEnlisted::Unknown(reason) => InteractiveError::NoCoordinator {
                transaction,
                participant,
                reason,
            },
        })
    }

    /// Asks the coordinators in turn, last those that did not answer the last time: only a transaction that nobody else
    /// runs waits for them.
    async fn ask_to_enlist(
        &self,
        transaction: TransactionId,
        session: Session,
        trace: &TraceContext,
    ) -> Enlisted {
        let request = EnlistRequest {
            participant: self.name.clone(),
            operations: None,
            session: Some(session.clone()),
        };
        // Stable: otherwise in the order in which they were given.
        let mut coordinators: Vec<&Coordinator> = self.coordinators.iter().collect();
        coordinators.sort_by_key(|coordinator| coordinator.is_set_aside());
        let mut last = String::new();
        for coordinator in coordinators {
            let asked = self.enlist_at(coordinator, transaction, &request, trace);
            match asked.await {
                Err(NotEnlisted::Unknown(why)) => last = why,
                ended @ (Ok(_) | Err(NotEnlisted::Refused(_))) => return ended,
            }
        }
        Err(NotEnlisted::Unknown(last))
    }

    async fn enlist_at(
        &self,
        coordinator: &Coordinator,
        transaction: TransactionId,
        request: &EnlistRequest,
        trace: &TraceContext,
    ) -> Enlisted {
        let url = coordinator.url(&format!("/v1/transactions/{transaction}/branches"));
        // Read before the request leaves: the coordinator's clock ran on while it travelled.
        let asked_at = Instant::now();
        let asking = traced(self.http.post(url).json(request), trace);
        crash::point("enlist-before");
        let answered = asking.send().await;
        crash::point("enlist-after");
        let response = match answered {
            Ok(response) => response,
            Err(error) => {
                coordinator.did_not_answer(Instant::now());
                return Err(NotEnlisted::Unknown(chain(&error)));
            }
        };
        coordinator.answered();
        let status = response.status().as_u16();
        let body = read_body(response).await;
        match status {
            200 | 201 => {}
            // Another coordinator of the same log may run it; or it says nothing about the transaction.
            404 | 408 | 429 | 500.. => {
                return Err(NotEnlisted::Unknown(problem_text(status, &body)));
            }
            _ => return Err(NotEnlisted::Refused(problem_text(status, &body))),
        }
        let answer: EnlistAnswer = serde_json::from_slice(&body)
            .map_err(|error| NotEnlisted::Unknown(format!("its answer is none: {error}")))?;
        if answer.branch.participant != self.name {
            let reason = format!("its answer is for {}", answer.branch.participant);
            return Err(NotEnlisted::Unknown(reason));
        }
        let remaining = Duration::from_millis(answer.remaining_ms).min(TRANSACTION_MAX);
        let Some(session) = request.session.clone() else {
            return Err(NotEnlisted::Refused("no session was sent".to_owned()));
        };
        let open = Open {
            session: session.clone(),
            added: Vec::new(),
            bytes: 0,
            sealed: false,
            voted_read_only: false,
            deadline: asked_at + remaining,
            since: Timestamp(wall_now()),
        };
        self.sessions.enlisted(transaction, open);
        Ok(session)
    }

    /// Drops the interactive work whose deadline has passed: before its yes a branch may abort freely, and a dead client
    /// leaves nothing behind.
    async fn drop_overdue_sessions(self: &Arc<Self>) {
        let now = Instant::now();
        self.sessions
            .enlisting()
            .retain(|_, branch| branch.keep_until > now);
        let mut database_answers = true;
        for overdue in self.sessions.overdue(now) {
            let branch = BranchId {
                transaction: overdue.transaction,
                participant: self.name.clone(),
            };
            if self.running.is_preparing(&branch) {
                // It ends by itself, and finds its work until then.
                continue;
            }
            // Without its tombstone the work is gone all the same; a prepare of its session is then `work-lost`. So a
            // database that is away does not make the rest wait, each for its own failure.
            if !overdue.voted_read_only && database_answers {
                tracing::info!(transaction = %branch.transaction, participant = %self.name,
                    "interactive work dropped: its deadline passed and no prepare had ended it");
                let ended = self.event(&branch, Event::DeadlinePassed).await;
                database_answers = ended.is_ok();
            }
            self.sessions.forget(branch.transaction);
        }
    }
}

/// Runs until its task is aborted.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        shared.drop_overdue_sessions().await;
    }
}

fn problem_text(status: u16, body: &[u8]) -> String {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => format!("{status} {}: {}", problem.code, problem.detail),
        Err(_) => format!("status {status}"),
    }
}

/// A random one. `None` never: 32 hexadecimal digits are a session.
fn new_session() -> Option<Session> {
    format!("{:032x}", rand::random::<u128>()).parse().ok()
}

/// For people to look at only.
fn wall_now() -> WallMillis {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    WallMillis(i64::try_from(since_1970.as_millis()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transaction(number: u32) -> TransactionId {
        let id = format!("00000001-0001-8000-8000-1000{number:08x}");
        id.parse().unwrap()
    }

    fn hold(sessions: &Sessions, number: u32, deadline: Instant) {
        let open = Open {
            session: "s".parse().unwrap(),
            added: Vec::new(),
            bytes: 0,
            sealed: false,
            voted_read_only: false,
            deadline,
            since: Timestamp(wall_now()),
        };
        sessions.open().insert(transaction(number), open);
    }

    #[test]
    fn work_goes_at_its_deadline_and_what_a_prepare_has_read_a_little_later() {
        let sessions = Sessions::default();
        let deadline = Instant::now();
        (1..=3).for_each(|number| hold(&sessions, number, deadline));
        sessions.seal(transaction(2)).unwrap();
        sessions.seal(transaction(3)).unwrap();
        sessions.voted_read_only(transaction(3));
        let overdue = |number, voted_read_only| Overdue {
            transaction: transaction(number),
            voted_read_only,
        };
        assert_eq!(sessions.overdue(deadline - LOOK_EVERY), []);
        assert_eq!(sessions.overdue(deadline), [overdue(1, false)]);
        let all = [overdue(1, false), overdue(2, false), overdue(3, true)];
        assert_eq!(sessions.overdue(deadline + SEALED_GRACE), all);
    }

    #[test]
    fn what_is_kept_for_a_repeat_only_gives_way_when_there_is_no_room() {
        let sessions = Sessions::default();
        let deadline = Instant::now() + Duration::from_secs(30);
        (1..=SESSIONS_MAX as u32).for_each(|number| hold(&sessions, number, deadline));
        assert!(!sessions.has_room());
        sessions.voted_read_only(transaction(7));
        assert!(sessions.has_room());
        assert!(sessions.held(transaction(7)).is_none());
        assert!(sessions.held(transaction(8)).is_some());
    }
}
