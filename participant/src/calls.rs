//! The life of one request: who may run, on which connection, until when, and what becomes of it when it may not go on.
//!
//! Every message runs in a task of its own ([`crate::participant::Shared::run`]), so that a caller who hangs up does not
//! stop it in the middle. A message ends with an answer of the branch, given behind the commit of its local transaction,
//! or with [`Unanswered`], which tells the coordinator nothing.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use unanimous_protocol::{
    branch::{Answer, Event},
    id::BranchId,
    message::Inform,
    wire::PrepareRequest,
};

use crate::{
    branch::{self, Asked, Context, KeyPatience, SessionAfter, Stop},
    intent_log::{Bounds, Local, LogError, end_backend},
    keys::Waiter,
    lane::{Message, Together},
    participant::Shared,
    running::{Entered, Turn},
    service::InvalidOperation,
};

/// No transaction's deadline is further away (the coordinator's own limit is 300 s).
const REMAINING_MAX: Duration = Duration::from_secs(600);
/// A row that another local transaction holds is waited for so long, then the coordinator is asked to ask again.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// The service's commit or abort code, at most.
const OUTCOME_MAX: Duration = Duration::from_secs(30);
/// Storing a refusal once the deadline has passed.
const REFUSAL_MAX: Duration = Duration::from_secs(5);
/// The server is given so much longer than this process, so that the process is the one that ends it, with an answer.
const SERVER_MARGIN: Duration = Duration::from_secs(1);
/// A commit that has not come back by then is unclear.
const COMMIT_MAX: Duration = Duration::from_secs(30);
/// A rollback takes a millisecond; if it takes this long, a statement of the service hangs in front of it.
const ROLLBACK_PATIENCE: Duration = Duration::from_millis(250);
/// Ending a hanging statement from another connection, at most.
const END_MAX: Duration = Duration::from_secs(6);
/// An abort waits so long for the prepare that it has cancelled.
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);

/// Why there is no answer of the branch. Only `Invalid` says anything about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("{0}")]
    Invalid(InvalidOperation),
    #[error("this service takes no new work under that name")]
    OtherParticipant,
    #[error("another transaction has held the key {key} for too long")]
    KeyBusy { key: String },
    #[error("too many prepares are waiting for a connection to the database")]
    Overloaded,
    #[error("another request of this branch is under way, or holds rows that it needs")]
    Busy,
    #[error("an abort of this branch arrived while it was being prepared")]
    Cancelled,
    #[error("the service could not carry out operations[{index}]; why is in its log")]
    Failed { index: usize },
    #[error("a statement of the service's code failed, and the code went on and said yes")]
    Broken,
    #[error("this version of the service can not read what the branch has promised: {0}")]
    Outdated(InvalidOperation),
    #[error("the service took longer than it may")]
    Late,
    #[error("the participant's database did not answer; why is in the participant's log")]
    Database,
    #[error("the participant's database gave no clear answer to a commit")]
    Unclear,
    #[error("the row of this branch can not be read; why is in the participant's log")]
    Unreadable,
}

impl Shared {
    /// A prepare, from its arrival to its answer.
    pub(crate) async fn prepare(
        &self,
        request: PrepareRequest,
        arrived: Instant,
    ) -> Result<Answer, Unanswered> {
        let branch = BranchId {
            transaction: request.transaction,
            participant: request.participant.clone(),
        };
        let remaining = Duration::from_millis(request.remaining_ms).min(REMAINING_MAX);
        let deadline = arrived + remaining;
        let Some(_admission) = self.connections.admit() else {
            return Err(Unanswered::Overloaded);
        };
        let digest = request.operations.digest();
        let turn = loop {
            match self
                .running
                .enter(&branch, digest, request.session.as_ref())
            {
                Entered::First(turn) => break turn,
                Entered::Joined(prepare) => {
                    let patience = deadline.max(arrived + LOCK_PATIENCE);
                    let ended = tokio::time::timeout_at(patience, prepare.ended()).await;
                    let Ok(ended) = ended else {
                        return Err(Unanswered::Busy);
                    };
                    if prepare.is_same(digest, request.session.as_ref()) {
                        return ended.unwrap_or(Err(Unanswered::Busy));
                    }
                }
            }
        };
        let ended = match self
            .prepare_together(&branch, &request, deadline, &turn)
            .await
        {
            Some(ended) => ended,
            None => self.prepare_alone(&branch, &request, deadline, &turn).await,
        };
        turn.end(&ended);
        ended
    }

    /// In the lane; `None` where it is to be prepared alone.
    async fn prepare_together(
        &self,
        branch: &BranchId,
        request: &PrepareRequest,
        deadline: Instant,
        turn: &Turn<'_>,
    ) -> Option<Result<Answer, Unanswered>> {
        let interactive =
            request.session.is_some() || self.sessions.held(branch.transaction).is_some();
        if interactive || branch.participant != self.name || Instant::now() >= deadline {
            return None;
        }
        let work = self.service.read(&[request.operations.text()]).ok()?;
        if !work.keys().is_empty() {
            return None;
        }
        let message = Message::Prepare {
            operations: request.operations.clone(),
            work: Arc::from(work),
            until: deadline,
        };
        match self
            .together(branch, message, turn.prepare.cancelled())
            .await
        {
            Together::Answered(answer) => Some(answer.ok_or(Unanswered::Busy)),
            Together::Alone => None,
            Together::Cancelled => Some(Err(Unanswered::Cancelled)),
        }
    }

    async fn prepare_alone(
        &self,
        branch: &BranchId,
        request: &PrepareRequest,
        deadline: Instant,
        turn: &Turn<'_>,
    ) -> Result<Answer, Unanswered> {
        let mut patience = KeyPatience::default();
        let mut waiting_since = None;
        // Counted among its key's waiters from the first attempt to the last.
        let mut waiter: Option<Waiter<'_>> = None;
        let mut in_time = Instant::now() < deadline;
        loop {
            // Past the deadline a slot is still waited for, a little: the refusal is to be stored.
            let slot_by = deadline.max(Instant::now() + LOCK_PATIENCE);
            let slot = tokio::select! {
                slot = self.connections.prepare_slot(slot_by) => slot,
                // Holding nothing, it must not hold up the abort either.
                () = turn.prepare.cancelled() => return Err(Unanswered::Cancelled),
            };
            let Some(slot) = slot else {
                return Err(Unanswered::Overloaded);
            };
            let now = Instant::now();
            in_time = in_time && now < deadline;
            let until = if in_time { deadline } else { now + REFUSAL_MAX };
            let asked = Asked::Prepare {
                operations: request.operations.clone(),
                session: request.session.clone(),
                begun_at_ms: request.begun_at_ms,
                in_time,
                patience,
            };
            let attempt = self.attempt(branch, &asked, until, turn.prepare.cancelled());
            match attempt.await {
                Ok(answer) => return answer.ok_or(Unanswered::Busy),
                // Before its yes a branch may abort freely, and does so now: the same message again, too late.
                Err(Stop::Late) if in_time => in_time = false,
                Err(Stop::KeyHeld { key }) => {
                    drop(slot);
                    let since = *waiting_since.get_or_insert_with(Instant::now);
                    if waiter.as_ref().is_none_or(|waiter| waiter.key() != key) {
                        waiter = self.keys.enter(&key);
                    }
                    match &waiter {
                        Some(waiter) => {
                            tokio::select! {
                                () = waiter.wait() => {}
                                () = tokio::time::sleep_until(deadline) => {}
                                () = turn.prepare.cancelled() => return Err(Unanswered::Cancelled),
                            }
                        }
                        None => patience.exhausted = true,
                    }
                    patience.waited = since.elapsed();
                }
                Err(stop) => return Err(unanswered(branch, None, stop)),
            }
        }
    }

    /// An outcome for a branch: told, found out by an inquiry, or by the deadline of interactive work. `None` where the
    /// branch has nothing to say to it.
    pub(crate) async fn event(
        &self,
        branch: &BranchId,
        event: Event,
    ) -> Result<Option<Answer>, Unanswered> {
        if event == Event::AbortReceived
            && let Some(prepare) = self.running.cancel(branch)
        {
            // It holds the row; where it does not end in time, the lock's own bound tells.
            drop(tokio::time::timeout(CANCEL_PATIENCE, prepare.ended()).await);
        }
        let decided = decided(&event);
        if decided.is_some() && self.sessions.held(branch.transaction).is_none() {
            let message = Message::Outcome(event.clone());
            let together = self.together(branch, message, std::future::pending());
            if let Together::Answered(answer) = together.await {
                return Ok(answer);
            }
        }
        let until = Instant::now() + OUTCOME_MAX;
        let asked = Asked::Event(event);
        self.attempt(branch, &asked, until, std::future::pending())
            .await
            .map_err(|stop| unanswered(branch, decided, stop))
    }

    /// One local transaction: begins, steps, and ends it, one way or the other.
    async fn attempt(
        &self,
        branch: &BranchId,
        asked: &Asked,
        until: Instant,
        cancelled: impl Future<Output = ()>,
    ) -> Result<Option<Answer>, Stop> {
        let left = until.saturating_duration_since(Instant::now());
        let bounds = Bounds {
            lock: left.min(LOCK_PATIENCE),
            statement: left + SERVER_MARGIN,
        };
        let name_is_ours = branch.participant == self.name;
        let held = name_is_ours
            .then(|| match asked {
                Asked::Prepare { .. } => self.sessions.seal(branch.transaction),
                Asked::Event(_) => self.sessions.held(branch.transaction),
            })
            .flatten();
        let context = Context {
            service: &*self.service,
            names: &self.names,
            branch,
            name_is_ours,
            held,
        };
        let mut cancelled = std::pin::pin!(cancelled);
        let connection = tokio::select! {
            connection = self.connections.get() => connection?,
            () = &mut cancelled => return Err(Stop::Cancelled),
        };
        let mut local = Local::on(connection, branch.clone(), bounds);
        let stepped = tokio::select! {
            biased;
            stepped = branch::step(&mut local, &context, asked) => stepped,
            () = &mut cancelled => Err(Stop::Cancelled),
            () = tokio::time::sleep_until(until) => Err(Stop::Late),
        };
        let stepped = match stepped {
            Ok(stepped) => stepped,
            Err(stop) => {
                local.forget_statements();
                self.give_back(local).await;
                return Err(stop);
            }
        };
        match stepped.plan {
            Some(plan) => {
                let released = plan.release_keys > 0;
                // Never cancelled and never hurried: from here on only the database knows (design rule 10).
                let commit = tokio::time::timeout(COMMIT_MAX, local.commit(plan));
                match commit.await {
                    Ok(committed) => committed?,
                    Err(_elapsed) => return Err(Stop::Log(LogError::Silent)),
                }
                if released {
                    self.keys.released();
                }
            }
            None => self.give_back(local).await,
        }
        if name_is_ours {
            match stepped.session {
                SessionAfter::Kept => {}
                SessionAfter::VotedReadOnly => self.sessions.voted_read_only(branch.transaction),
                SessionAfter::Gone => self.sessions.forget(branch.transaction),
            }
        }
        Ok(stepped.answer)
    }

    /// Rolls back; where a statement of the service hangs in front of the rollback, ends its server process.
    async fn give_back(&self, local: Local) {
        let Err(hanging) = local.roll_back(ROLLBACK_PATIENCE).await else {
            return;
        };
        let Some(backend) = hanging.backend() else {
            return;
        };
        let ending = async { end_backend(&self.connections.get().await?, backend).await };
        let ended = tokio::time::timeout(END_MAX, ending).await;
        if let Err(error) = ended.unwrap_or(Err(LogError::NoAnswer)) {
            // The server's own bounds end it a little later.
            tracing::warn!(%error, backend, "a hanging statement could not be ended");
        }
    }
}

/// The outcome that an event brings, in words.
fn decided(event: &Event) -> Option<&'static str> {
    match event {
        Event::CommitReceived | Event::Informed(Inform::Committed) => Some("commit"),
        Event::AbortReceived | Event::Informed(Inform::Aborted) => Some("abort"),
        Event::PrepareReceived { .. }
        | Event::Worked(_)
        | Event::Applied
        | Event::Undone
        | Event::Informed(Inform::Pending)
        | Event::DeadlinePassed => None,
    }
}

/// Nothing like a prepare that could not find out: others have this outcome already, this branch keeps what it promised
/// and holds, and where it fails every time nobody but the service's author can end that.
fn not_applied(branch: &BranchId, decided: &str, operation: Option<usize>, error: &str) {
    tracing::error!(transaction = %branch.transaction, participant = %branch.participant, operation, error,
        "a decided {decided} can not be applied, it was rolled back; the branch stays in doubt and keeps what it holds, \
         and the coordinator asks again until it succeeds");
}

/// Whether the service's own work is what failed, and not the way to the database.
fn is_services(error: &LogError) -> bool {
    match error {
        LogError::Broken(_) => true,
        // What the server refuses at the commit is a constraint that is checked there; class 57 is an operator's doing.
        LogError::Unclear(error) => error
            .code()
            .is_some_and(|code| !code.code().starts_with("57")),
        LogError::Busy(_)
        | LogError::Unavailable(_)
        | LogError::NoConnection(_)
        | LogError::NoAnswer
        | LogError::Silent
        | LogError::Pruned(_)
        | LogError::Unreadable { .. }
        | LogError::Foreign(_)
        | LogError::KeysLost { .. } => false,
    }
}

/// Logs what happened, once, and says what the caller may know of it. `decided`: the outcome that was told, if one was.
fn unanswered(branch: &BranchId, decided: Option<&str>, stop: Stop) -> Unanswered {
    let transaction = branch.transaction;
    let participant = &branch.participant;
    match stop {
        Stop::Invalid(invalid) => Unanswered::Invalid(invalid),
        Stop::OtherParticipant => Unanswered::OtherParticipant,
        Stop::KeyHeld { key } | Stop::KeyBusy { key } => Unanswered::KeyBusy { key },
        Stop::Cancelled => Unanswered::Cancelled,
        Stop::Late => {
            match decided {
                Some(decided) => not_applied(branch, decided, None, "it took longer than it may"),
                None => tracing::warn!(%transaction, %participant,
                    "the service's code took longer than it may; rolled back"),
            }
            Unanswered::Late
        }
        Stop::Outdated(invalid) => {
            tracing::error!(%transaction, %participant, reason = %invalid,
                "this version of the service can not read an operation that it promised to carry out");
            Unanswered::Outdated(invalid)
        }
        Stop::Failed(failed) => {
            let error = chain(&*failed.failure.into_source());
            match decided {
                Some(decided) => not_applied(branch, decided, Some(failed.index), &error),
                None => tracing::warn!(%transaction, %participant, operation = failed.index, error,
                    "the service could not find out; rolled back, and the coordinator asks again"),
            }
            Unanswered::Failed {
                index: failed.index,
            }
        }
        Stop::Log(error) => {
            let answer = match &error {
                LogError::Busy(_) | LogError::Pruned(_) => Unanswered::Busy,
                LogError::Unavailable(_) | LogError::NoConnection(_) | LogError::NoAnswer => {
                    Unanswered::Database
                }
                LogError::Broken(_) => Unanswered::Broken,
                LogError::Unclear(_) | LogError::Silent => Unanswered::Unclear,
                LogError::Unreadable { .. } | LogError::Foreign(_) | LogError::KeysLost { .. } => {
                    Unanswered::Unreadable
                }
            };
            if answer == Unanswered::Unreadable {
                tracing::error!(%transaction, %participant, %error, "a row that only a person can put right");
            } else if let Some(decided) = decided.filter(|_| is_services(&error)) {
                not_applied(branch, decided, None, &chain(&error));
            } else {
                tracing::warn!(%transaction, %participant, error = %chain(&error), "no answer");
            }
            answer
        }
    }
}

/// An error with what caused it.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = next.source();
    }
    text
}
