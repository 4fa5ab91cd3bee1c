//! Interactive work: a client begins a transaction, calls services with the header [`TRANSACTION_HEADER`], and commits.
//!
//! The branch enlists itself at the coordinator before the first work, under a session: a random value that lives as
//! long as this memory. At prepare the work must be all there under that very session, or the vote is no (design rule
//! 22). So nothing here is written down: what a restart forgets, the session tells.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
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

    /// Whose deadline has passed without a prepare.
    fn overdue(&self, now: Instant) -> Vec<TransactionId> {
        let open = self.open();
        let overdue = open
            .iter()
            .filter(|(_, branch)| !branch.sealed && branch.deadline <= now);
        overdue.map(|(transaction, _)| *transaction).collect()
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

    /// All that are held here, behind `after`.
    pub(crate) fn list(&self, participant: &ParticipantName, after: &After) -> Vec<Seen> {
        let open = self.open();
        open.iter()
            .map(|(transaction, branch)| seen(*transaction, participant, branch))
            .filter(|seen| after.is_before(&seen.branch))
            .collect()
    }
}

fn seen(transaction: TransactionId, participant: &ParticipantName, branch: &Open) -> Seen {
    Seen {
        branch: BranchId {
            transaction,
            participant: participant.clone(),
        },
        state: BranchState::Active,
        since: branch.since,
    }
}

impl Shared {
    /// Enlists this participant, under a new session, at the coordinator that runs the transaction.
    async fn enlist(&self, transaction: TransactionId) -> Result<Session, InteractiveError> {
        let participant = self.name.clone();
        if self.sessions.open().len() >= SESSIONS_MAX {
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
    pub(crate) async fn drop_overdue_sessions(&self) {
        for transaction in self.sessions.overdue(Instant::now()) {
            let branch = BranchId {
                transaction,
                participant: self.name.clone(),
            };
            tracing::info!(%transaction, participant = %self.name,
                "interactive work dropped: its deadline passed without a prepare");
            // Without its tombstone the work is gone all the same; a prepare of its session is then `work-lost`.
            drop(self.event(&branch, Event::DeadlinePassed).await);
            self.sessions.forget(transaction);
        }
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
