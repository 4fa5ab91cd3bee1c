//! The one connection that writes: each write transaction in a task of its own, and what a failure leaves behind.

use std::{fs::File, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use sqlx::{ConnectOptions as _, SqliteConnection, SqlitePool, sqlite::SqliteConnectOptions};
use tokio::sync::{Mutex, oneshot};

use super::{
    codes::{code, sqlite_code},
    file::checkpoint,
};
use crate::log::{LogError, WriteError, trust::Trust};

/// Pages of WAL that are left to checkpoint before it is done: as SQLite's own default.
const CHECKPOINT_AFTER_PAGES: i64 = 1000;

/// What a write that outlives its caller still needs.
pub(super) struct Core {
    pub(super) writing: Mutex<Writing>,
    pub(super) writing_options: SqliteConnectOptions,
    pub(super) readers: SqlitePool,
    /// `PATH.went-back`: beside the file, for what is in it goes back with it.
    pub(super) went_back: PathBuf,
    pub(super) trust: Trust,
    /// Lets a test hold a write between its check and its commit.
    #[cfg(test)]
    pub(super) before_commit: crate::log::memory::Gate,
}

/// What one write at a time has.
pub(super) struct Writing {
    /// Empty after a failure that left its state in doubt; the next write connects again.
    pub(super) connection: Option<SqliteConnection>,
    /// Held as long as anything can write; given up by [`SqliteLog::close`], after which nothing can.
    pub(super) lock: Option<File>,
}

/// What is done between BEGIN and COMMIT.
pub(super) type Job<T> = Box<
    dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, WriteError>> + Send,
>;

impl Core {
    /// Runs one write transaction in a task of its own, so that a caller who goes away can not leave it half done.
    pub(super) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        job: Job<T>,
    ) -> Result<T, WriteError> {
        let (answer, answered) = oneshot::channel();
        let core = Arc::clone(self);
        tokio::spawn(async move {
            let mut writing = core.writing.lock().await;
            let written = core.write_on(&mut writing, job).await;
            let committed = written.is_ok();
            // Nobody is there to hear it when the caller went away.
            let _ = answer.send(written);
            // After the answer, so that nobody waits for it but the next write, which needs the connection.
            if committed && let Some(connection) = &mut writing.connection {
                core.checkpoint(connection).await;
            }
        });
        // The task ends without an answer only if the runtime is being torn down around us.
        let torn_down = || WriteError::Unavailable("the write was given up".into());
        answered.await.unwrap_or_else(|_| Err(torn_down()))
    }

    async fn write_on<T>(&self, writing: &mut Writing, job: Job<T>) -> Result<T, WriteError> {
        self.trust.check()?;
        if writing.lock.is_none() {
            return Err(WriteError::Unavailable("the log was closed".into()));
        }
        let connection = match &mut writing.connection {
            Some(connection) => connection,
            none => none.insert(self.trust.noting(self.writing_options.connect().await)?),
        };
        let result = self.transact(connection, job).await;
        if result.is_err() && !rolled_back(connection).await {
            // Its state is unknown, so it goes. Closing ends whatever it had open.
            writing.connection = None;
        }
        result
    }

    async fn transact<T>(
        &self,
        connection: &mut SqliteConnection,
        job: Job<T>,
    ) -> Result<T, WriteError> {
        // Takes the write lock before anything is read, so that what is checked still holds at the commit.
        self.trust.noting(
            sqlx::query("BEGIN IMMEDIATE")
                .execute(&mut *connection)
                .await,
        )?;
        let done = job(connection).await.inspect_err(|error| {
            if let WriteError::Broken(cause) = error {
                self.trust.lose(cause.to_string());
            }
        })?;
        #[cfg(test)]
        self.before_commit.pass().await;
        self.trust
            .noting(sqlx::query("COMMIT").execute(connection).await)?;
        Ok(done)
    }

    /// Moves the WAL into the file when it has grown, as SQLite would by itself, but minds a failure: an fsync that
    /// failed here has failed for decisions that were told.
    async fn checkpoint(&self, connection: &mut SqliteConnection) {
        let done = async {
            let (_, pages, moved) = checkpoint(connection, "PRAGMA wal_checkpoint(NOOP)").await?;
            if pages - moved >= CHECKPOINT_AFTER_PAGES {
                checkpoint(connection, "PRAGMA wal_checkpoint(PASSIVE)").await?;
            }
            Ok(())
        };
        match done.await {
            Ok(()) => {}
            Err(LogError::Broken(cause)) => self.trust.lose(cause.to_string()),
            // The WAL grows until a later one succeeds; what is in it is durable.
            Err(LogError::Unavailable(cause)) => {
                tracing::warn!(
                    error = %crate::telemetry::chain(&*cause),
                    "checkpoint put off"
                );
            }
        }
    }
}

/// Whether the connection has no transaction open any more.
async fn rolled_back(connection: &mut SqliteConnection) -> bool {
    match sqlx::query("ROLLBACK").execute(connection).await {
        Ok(_) => true,
        // "no transaction is active": BEGIN failed, or SQLite has rolled it back by itself.
        Err(error) => sqlite_code(&error) == Some(code::ERROR),
    }
}
