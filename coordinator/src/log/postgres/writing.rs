//! The one connection that writes, and the readers: each write in a task of its own, what a failure leaves behind, and
//! which reads are known to be durable.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex as StdMutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use sqlx::{
    PgConnection, PgPool,
    postgres::{PgConnectOptions, PgDatabaseError},
};
use tokio::{
    sync::{Mutex, oneshot},
    time::timeout,
};
use unanimous_protocol::id::{Epoch, Node};

use super::{
    notices::{self, Ears},
    session::connect_to_write,
    sql,
};
use crate::log::{Cause, LogError, WriteError, trust::Trust, unfenced};

/// What a write that outlives its caller still needs.
pub(super) struct Core {
    pub(super) options: PgConnectOptions,
    pub(super) patience: Duration,
    /// Empty after a failure that left its state in doubt; the next write connects again.
    pub(super) writing: Mutex<Option<PgConnection>>,
    pub(super) readers: PgPool,
    pub(super) ears: Ears,
    /// Forced writes are numbered as they begin.
    pub(super) begun: AtomicU64,
    /// The last one that is known to have become durable.
    pub(super) durable: AtomicU64,
    /// Epochs that are known to be durable.
    pub(super) epochs: StdMutex<BTreeMap<Node, Epoch>>,
    pub(super) trust: Trust,
}

pub(super) fn no_answer(patience: Duration) -> LogError {
    LogError::Unavailable(format!("no answer within {patience:?}").into())
}

/// What is done with a connection to write. Each statement in it is a transaction of its own.
pub(super) type Job<T> =
    Box<dyn for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, WriteError>> + Send>;

impl Core {
    /// Writes in a task of its own, so that a caller who goes away does not take the connection with it.
    pub(super) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        job: Job<T>,
    ) -> Result<T, WriteError> {
        self.run(job, true).await
    }

    /// As [`Self::write`], of a job that may find nothing to write: then nothing was flushed, and it proves nothing about
    /// what others read.
    pub(super) async fn write_perhaps<T: Send + 'static>(
        self: &Arc<Self>,
        job: Job<T>,
    ) -> Result<T, WriteError> {
        self.run(job, false).await
    }

    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        job: Job<T>,
        forces: bool,
    ) -> Result<T, WriteError> {
        let (answer, answered) = oneshot::channel();
        let core = Arc::clone(self);
        tokio::spawn(async move {
            let mut writing = core.writing.lock().await;
            // Nobody is there to hear it when the caller went away.
            let _ = answer.send(core.write_on(&mut writing, job, forces).await);
        });
        // The task ends without an answer only if the runtime is being torn down around us.
        let torn_down = || WriteError::Unavailable("the write was given up".into());
        answered.await.unwrap_or_else(|_| Err(torn_down()))
    }

    async fn write_on<T>(
        &self,
        writing: &mut Option<PgConnection>,
        job: Job<T>,
        forces: bool,
    ) -> Result<T, WriteError> {
        self.trust.check()?;
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let statements = async {
            let connection = match &mut *writing {
                Some(connection) => connection,
                none => {
                    let connected = connect_to_write(&self.options, self.patience, &self.ears);
                    none.insert(connected.await.map_err(LogError::from)?)
                }
            };
            let (written, warnings) = self.ears.listen(job(connection)).await;
            let written = written?;
            clear_of(warnings).map_err(WriteError::Unavailable)?;
            Ok(written)
        };
        let written = match timeout(self.patience, statements).await {
            Ok(written) => written,
            Err(_) => Err(no_answer(self.patience).into()),
        };
        match &written {
            Ok(_) if forces => {
                self.durable.fetch_max(number, Ordering::SeqCst);
            }
            Ok(_) => {}
            // Clear: the statement took nothing.
            Err(WriteError::Fenced(_) | WriteError::WentBack(_)) => {}
            Err(error) => {
                *writing = None;
                if let WriteError::Broken(cause) = error {
                    self.trust.lose(cause.to_string());
                }
            }
        }
        written
    }

    /// Returns once all that a read saw which has returned by now is durable: after a forced write that began later,
    /// somebody's or our own.
    pub(super) async fn prove_durable(self: &Arc<Self>) -> Result<(), LogError> {
        let read_at = self.begun.load(Ordering::SeqCst);
        let (answer, answered) = oneshot::channel();
        let core = Arc::clone(self);
        tokio::spawn(async move {
            let mut writing = core.writing.lock().await;
            let proven = if core.durable.load(Ordering::SeqCst) > read_at {
                Ok(())
            } else {
                core.write_on(&mut writing, flush(), true).await
            };
            let _ = answer.send(proven);
        });
        let torn_down = || WriteError::Unavailable("the write was given up".into());
        let proven = answered.await.unwrap_or_else(|_| Err(torn_down()));
        proven.map_err(unfenced)
    }

    /// Whether this process has seen a forced write return since the epoch was begun.
    pub(super) fn knows_durable(&self, node: Node, epoch: Epoch) -> bool {
        let epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        epochs.get(&node).is_some_and(|known| *known >= epoch)
    }

    pub(super) fn know_durable(&self, node: Node, epoch: Epoch) {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = epochs.entry(node).or_insert(epoch);
        *known = epoch.max(*known);
    }

    pub(super) async fn read<T>(
        &self,
        query: impl Future<Output = Result<T, sqlx::Error>> + Send,
    ) -> Result<T, LogError> {
        self.trust.check()?;
        match timeout(self.patience, query).await {
            Ok(result) => self.trust.noting(result),
            Err(_) => Err(no_answer(self.patience)),
        }
    }
}

/// A write that the server warned of is unclear (design rule 10).
pub(super) fn clear_of(warnings: Vec<String>) -> Result<(), Cause> {
    for warning in warnings {
        tracing::warn!(%warning, "the decision log's server warns");
        if !notices::is_harmless(&warning) {
            return Err(format!("the server warned: {warning}").into());
        }
    }
    Ok(())
}

/// The server's error code.
pub(in crate::log) fn sqlstate(error: &sqlx::Error) -> Option<String> {
    let error = error
        .as_database_error()?
        .try_downcast_ref::<PgDatabaseError>()?;
    Some(error.code().to_owned())
}

/// Whether nothing may be believed any more after this error: data or an index is damaged. The rest somebody can help:
/// a server that ends with a failed fsync comes back from its own log.
pub(in crate::log) fn is_broken(sqlstate: &str) -> bool {
    matches!(sqlstate, "XX001" | "XX002")
}

/// Whether the server says of a statement, and of nothing else, that its values can not be stored: data exceptions,
/// violated constraints, exceeded limits, and what a trigger raises.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    let is_refusal = |state: String| {
        ["22", "23", "54"]
            .iter()
            .any(|class| state.starts_with(class))
            || state == "P0001"
    };
    sqlstate(error).is_some_and(is_refusal)
}

fn flush() -> Job<()> {
    Box::new(|connection| {
        Box::pin(async move {
            sqlx::query(sql::FLUSH)
                .execute(connection)
                .await
                .map_err(LogError::from)?;
            Ok(())
        })
    })
}
