//! Interactive work: a client begins a transaction, calls services with the header [`TRANSACTION_HEADER`], and commits.
//!
//! The branch enlists itself at the coordinator before the first work, under a session: a random value that lives as
//! long as this memory. At prepare the work must be all there under that very session, or the vote is no (design rule
//! 22). So nothing here is written down: what a restart forgets, the session tells.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::time::Instant;
use unanimous_protocol::{
    branch::Event,
    id::{BranchId, ParticipantName, TransactionId},
    message::Session,
    record::WallMillis,
    wire::{BranchState, EnlistAnswer, EnlistRequest, Problem, Timestamp},
};

use crate::{
    branch::Held,
    http::BODY_MAX,
    inquiry::read_body,
    intent_log::{After, Seen},
    participant::{Participant, Shared},
};

/// Work requests carry the transaction in this header.
pub const TRANSACTION_HEADER: &str = "Unanimous-Transaction";

/// Interactive branches that one process holds, at most.
const SESSIONS_MAX: usize = 10_000;
/// Work that a prepare has read is kept so much longer than its deadline, which is reckoned from before the enlisting
/// was sent and so may be early by as long as that took.
const SEALED_GRACE: Duration = Duration::from_secs(5);
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
        // Two first requests at once draw two sessions; the coordinator takes one, and the other's transaction aborts.
        // So they take turns.
        let _turn = self.shared.sessions.enlisting.lock().await;
        let known = self
            .shared
            .sessions
            .session(transaction, &self.shared.name)?;
        let session = match known {
            Some(session) => session,
            None => self.shared.enlist(transaction).await?,
        };
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
    enlisting: tokio::sync::Mutex<()>,
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
    /// Enlists this participant, under a new session, at the coordinator that runs the transaction.
    async fn enlist(&self, transaction: TransactionId) -> Result<Session, InteractiveError> {
        let participant = self.name.clone();
        if !self.sessions.has_room() {
            return Err(InteractiveError::Full {
                transaction,
                participant,
            });
        }
        let not_enlisted = |reason: String| InteractiveError::NotEnlisted {
            transaction,
            participant: participant.clone(),
            reason,
        };
        let random = format!("{:032x}", rand::random::<u128>());
        let session: Session = random
            .parse()
            .map_err(|error| not_enlisted(format!("{error}")))?;
        let request = EnlistRequest {
            participant: self.name.clone(),
            operations: None,
            session: Some(session.clone()),
        };
        let mut last = String::new();
        for coordinator in &self.coordinators {
            let url = coordinator.url(&format!("/v1/transactions/{transaction}/branches"));
            // Read before the request leaves: the coordinator's clock ran on while it travelled.
            let asked_at = Instant::now();
            let sent = self.http.post(url).json(&request).send().await;
            let (status, body) = match sent {
                Ok(response) => (response.status().as_u16(), read_body(response).await),
                Err(error) => {
                    last = error.to_string();
                    continue;
                }
            };
            match status {
                200 | 201 => {}
                // Another coordinator of the same log may run it.
                404 | 500.. => {
                    last = problem_text(status, &body);
                    continue;
                }
                _ => return Err(not_enlisted(problem_text(status, &body))),
            }
            let answer: EnlistAnswer = serde_json::from_slice(&body)
                .map_err(|error| not_enlisted(format!("its answer is none: {error}")))?;
            if answer.branch.participant != self.name {
                return Err(not_enlisted(format!(
                    "its answer is for {}",
                    answer.branch.participant
                )));
            }
            let open = Open {
                session: session.clone(),
                added: Vec::new(),
                bytes: 0,
                sealed: false,
                voted_read_only: false,
                deadline: asked_at + Duration::from_millis(answer.remaining_ms.min(600_000)),
                since: Timestamp(wall_now()),
            };
            match self.sessions.open().entry(transaction) {
                Entry::Vacant(place) => place.insert(open),
                Entry::Occupied(place) => return Ok(place.get().session.clone()),
            };
            return Ok(session);
        }
        Err(InteractiveError::NoCoordinator {
            transaction,
            participant,
            reason: last,
        })
    }

    /// Drops the interactive work whose deadline has passed: before its yes a branch may abort freely, and a dead client
    /// leaves nothing behind.
    async fn drop_overdue_sessions(&self) {
        let mut database_answers = true;
        for overdue in self.sessions.overdue(Instant::now()) {
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
