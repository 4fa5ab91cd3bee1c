//! The one connection that writes: each write in a task of its own, and what a failure leaves behind.

use std::{fs::File, path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use sqlx::{ConnectOptions as _, SqliteConnection, SqlitePool, sqlite::SqliteConnectOptions};
use tokio::sync::{Mutex, oneshot};

use super::{
    codes::{code, sqlite_code},
    file::checkpoint,
    sql::TO_DECIDE,
};
use crate::log::{LogError, WriteError, trust::Trust};

/// Pages of WAL that are left to checkpoint before it is done: as SQLite's own default.
const CHECKPOINT_AFTER_PAGES: i64 = 1000;

/// How many pages the WAL may have grown by before it is looked at: looking costs as much as a small write.
const LOOK_AFTER_PAGES: usize = 250;
/// About what a write changes, whatever is in it, and for each row: itself, and its place in four indexes.
const PAGES_OF_A_WRITE: usize = 4;
const PAGES_OF_A_ROW: usize = 5;

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
    /// By how many pages the WAL may have grown since it was last looked at.
    pub(super) unseen_pages: usize,
}

/// What is done on the connection: a whole write, with its BEGIN and its COMMIT.
pub(super) type Whole<T> = Box<
    dyn for<'c> FnOnce(&'c Core, &'c mut SqliteConnection) -> BoxFuture<'c, Result<T, WriteError>>
        + Send,
>;

/// What is done between BEGIN and COMMIT.
pub(super) type Job<T> = Box<
    dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, WriteError>> + Send,
>;

impl Core {
    /// Runs one write transaction around the job. `rows`: about how many it changes, in whatever tables.
    pub(super) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        rows: usize,
        job: Job<T>,
    ) -> Result<T, WriteError> {
        let whole: Whole<T> = Box::new(|core, connection| Box::pin(core.transact(connection, job)));
        self.run(rows, whole).await
    }

    /// Runs one write in a task of its own, so that a caller who goes away can not leave it half done.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        rows: usize,
        whole: Whole<T>,
    ) -> Result<T, WriteError> {
        let (answer, answered) = oneshot::channel();
        let core = Arc::clone(self);
        tokio::spawn(async move {
            let mut writing = core.writing.lock().await;
            let written = core.write_on(&mut writing, whole).await;
            // Also where it failed: nobody knows how far it came.
            writing.unseen_pages += PAGES_OF_A_WRITE + rows * PAGES_OF_A_ROW;
            // Nobody is there to hear it when the caller went away.
            let _ = answer.send(written);
            // After the answer, so that nobody waits for it but the next write, which needs the connection.
            if writing.unseen_pages >= LOOK_AFTER_PAGES {
                core.look_at_the_wal(&mut writing).await;
            }
        });
        // The task ends without an answer only if the runtime is being torn down around us.
        let torn_down = || WriteError::Unavailable("the write was given up".into());
        answered.await.unwrap_or_else(|_| Err(torn_down()))
    }

    async fn write_on<T>(&self, writing: &mut Writing, whole: Whole<T>) -> Result<T, WriteError> {
        self.trust.check()?;
        if writing.lock.is_none() {
            return Err(WriteError::Unavailable("the log was closed".into()));
        }
        let connection = match &mut writing.connection {
            Some(connection) => connection,
            none => none.insert(self.trust.noting(self.connect().await)?),
        };
        let result = whole(self, connection).await;
        if result.is_err() && !rolled_back(connection).await {
            // Its state is unknown, so it goes. Closing ends whatever it had open.
            writing.connection = None;
        }
        result
    }

    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        let connection = ready_to_decide(self.writing_options.connect().await?).await?;
        #[cfg(test)]
        let connection = hold_commits(&self.before_commit, connection).await?;
        Ok(connection)
    }

    /// BEGIN, the job, COMMIT.
    pub(super) async fn transact<T>(
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
        self.trust
            .noting(sqlx::query("COMMIT").execute(connection).await)?;
        Ok(done)
    }

    /// Moves the WAL into the file when it has grown, as SQLite would by itself, but minds a failure: an fsync that
    /// failed here has failed for decisions that were told.
    async fn look_at_the_wal(&self, writing: &mut Writing) {
        let Some(connection) = &mut writing.connection else {
            return;
        };
        let done = async {
            let (_, pages, moved) = checkpoint(connection, "PRAGMA wal_checkpoint(NOOP)").await?;
            if pages - moved >= CHECKPOINT_AFTER_PAGES {
                checkpoint(connection, "PRAGMA wal_checkpoint(PASSIVE)").await?;
            }
            Ok(())
        };
        match done.await {
            Ok(()) => writing.unseen_pages = 0,
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

/// Gives the connection what [`super::sql::DECIDE`] needs.
pub(super) async fn ready_to_decide(
    mut connection: SqliteConnection,
) -> Result<SqliteConnection, sqlx::Error> {
    for sql in TO_DECIDE {
        sqlx::query(sql).execute(&mut connection).await?;
    }
    Ok(connection)
}

/// Whether the connection has no transaction open any more.
async fn rolled_back(connection: &mut SqliteConnection) -> bool {
    match sqlx::query("ROLLBACK").execute(connection).await {
        Ok(_) => true,
        // "no transaction is active": BEGIN failed, or SQLite has rolled it back by itself.
        Err(error) => sqlite_code(&error) == Some(code::ERROR),
    }
}

/// A test's gate, where SQLite commits.
#[cfg(test)]
pub(super) async fn hold_commits(
    gate: &crate::log::memory::Gate,
    mut connection: SqliteConnection,
) -> Result<SqliteConnection, sqlx::Error> {
    let (gate, runtime) = (gate.clone(), tokio::runtime::Handle::current());
    let commits = move || {
        runtime.block_on(gate.pass());
        true
    };
    connection.lock_handle().await?.set_commit_hook(commits);
    Ok(connection)
}
