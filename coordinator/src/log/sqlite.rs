//! The decision log in one SQLite file: the embedded default, for a coordinator that has the machine's disk to itself.
//!
//! One process owns the file for its life, by a lock on `PATH.lock`: two coordinators on one file would each be right
//! by the fence, but a start recovers every node in the file and must not take a living neighbour's transactions. One
//! connection writes, under WAL and `synchronous=FULL`, so a commit returns after its fsync, and readers see it no
//! earlier; a few others read, each in a snapshot of its own, without ever waiting for the writer.
//!
//! Three facts of SQLite shape this file:
//! - Frames that a dying process left unsynced in the WAL are *visible* to the next one. So a start checkpoints
//!   (TRUNCATE), which syncs them, before it reads (design rule 10).
//! - The automatic checkpoint ignores errors, a failed fsync among them, after which the pages may look clean and never
//!   reach the disk. So it is off, and `Core::checkpoint` does it between two writes and minds the result.
//! - An error may leave a transaction open, or may have ended it. So every failed write ends with a rollback, or with
//!   the connection thrown away.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt::Write as _,
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde::Serialize;
use sqlx::{
    ConnectOptions as _, Connection as _, Row as _, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use tokio::sync::{Mutex, oneshot};
use unanimous_protocol::{
    id::{Epoch, LogIdentity, Node, ParticipantName, TransactionId},
    life::{Head, Writer},
    operations::BodyDigest,
    record::{
        AbortReason, Decision, Header, IdempotencyKey, KeyClaim, Outcome, Part, Record, Verdict,
        WallMillis,
    },
};

use super::{
    Abandoned, Appends, Batch, Cause, Decided, DecisionLog, Filter, Found, IdentityChange,
    LogError, NotAdopted, Opened, Position, Refused, Removal, View, WriteError, damaged,
    history::meant, parsed, standing, unfenced,
};

/// "UNAN": tells our files from any other SQLite file (`PRAGMA application_id`).
const APPLICATION_ID: i32 = 0x554e_414e;

/// The oldest library that does not corrupt a WAL when it is reset while another connection checkpoints.
const LIBRARY_VERSION_MIN: (u32, u32, u32) = (3, 51, 3);

/// How long a connection waits for another program that holds the file, a backup say.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads are short, and there are as many at once as a small machine has use for.
const READERS_MAX: u32 = 4;

/// Pages of WAL that are left to checkpoint before it is done: as SQLite's own default.
const CHECKPOINT_AFTER_PAGES: i64 = 1000;

const MIGRATIONS: &[(i64, &str, &str)] = &[
    (
        1,
        "decision log",
        include_str!("../../migrations/sqlite/0001_decision_log.sql"),
    ),
    (
        2,
        "forgetting",
        include_str!("../../migrations/sqlite/0002_forgetting.sql"),
    ),
    (
        3,
        "participants",
        include_str!("../../migrations/sqlite/0003_participants.sql"),
    ),
    (
        4,
        "history",
        include_str!("../../migrations/sqlite/0004_history.sql"),
    ),
];

/// A [`DecisionLog`] in a SQLite file.
///
/// Dropping it lets the file go once the last write has ended; [`Self::close`] waits for that.
pub struct SqliteLog {
    core: Arc<Core>,
}

/// What a write that outlives its caller still needs.
struct Core {
    writing: Mutex<Writing>,
    writing_options: SqliteConnectOptions,
    readers: SqlitePool,
    /// `PATH.went-back`: beside the file, for what is in it goes back with it.
    went_back: PathBuf,
    /// Set by the first failure after which nothing here may be believed. Every later call fails with it.
    broken: OnceLock<String>,
    /// Lets a test hold a write between its check and its commit.
    #[cfg(test)]
    before_commit: super::memory::Gate,
}

/// What one write at a time has.
struct Writing {
    /// Empty after a failure that left its state in doubt; the next write connects again.
    connection: Option<SqliteConnection>,
    /// Held as long as anything can write; given up by [`SqliteLog::close`], after which nothing can.
    lock: Option<File>,
}

/// Why a file can not be opened as a decision log.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error(
        "another coordinator runs on {} (it holds {}); stop that one, or give this one a file of its own",
        path.display(),
        lock.display()
    )]
    Held {
        /// The log.
        path: PathBuf,
        /// The lock's file.
        lock: PathBuf,
    },
    /// There is something else in the file.
    #[error("{} is not a decision log of unanimous ({found}); nothing in it was changed", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        found: String,
    },
    /// A newer program has changed the schema.
    #[error("{} was written by a newer unanimous (its schema has version {version}); run that one", path.display())]
    Newer {
        /// The log.
        path: PathBuf,
        /// The first schema version that this program does not know.
        version: i64,
    },
    /// The SQLite library could damage the file.
    #[error("the SQLite library has version {found}, and a decision log needs at least 3.51.3")]
    Library {
        /// The library's version.
        found: String,
    },
    /// The file system refused.
    #[error("can not open {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// SQLite refused.
    #[error("can not open the decision log {}", path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// Why.
        #[source]
        source: LogError,
    },
}

impl SqliteLog {
    /// Opens the log at `path`, and creates it if there is none.
    ///
    /// # Errors
    /// When another process has it, when it is not ours to open, or when it can not be read.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        let path = &resolved(path)?;
        let lock = lock(path)?;
        create(path)?;
        let options = options(path);
        let sqlite = |error: sqlx::Error| OpenError::Log {
            path: path.clone(),
            source: error.into(),
        };

        let writing_options = options
            .clone()
            .synchronous(SqliteSynchronous::Full)
            // See the module's head.
            .pragma("wal_autocheckpoint", "0");
        let mut writing = writing_options
            .connect()
            .await
            .map_err(|error| not_a_database(path, error))?;
        check_library(path, &mut writing).await?;
        claim(path, &mut writing).await?;
        enter_wal(path, &mut writing).await?;
        migrate(path, &mut writing).await?;
        // At random, so that ids of another log are never taken for this one's.
        sqlx::query(
            "INSERT INTO log_identity SELECT 1, ?1 WHERE NOT EXISTS (SELECT 1 FROM log_identity)",
        )
        .bind(i64::from(rand::random::<u32>()))
        .execute(&mut writing)
        .await
        .map_err(sqlite)?;

        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(BUSY_TIMEOUT)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            // Not `read_only`: such a connection could not recover a WAL, should it be the first one.
            .connect_lazy_with(options.pragma("query_only", "ON"));
        Ok(Self {
            core: Arc::new(Core {
                writing: Mutex::new(Writing {
                    connection: Some(writing),
                    lock: Some(lock),
                }),
                writing_options,
                readers,
                went_back: beside(path, ".went-back"),
                broken: OnceLock::new(),
                #[cfg(test)]
                before_commit: super::memory::Gate::default(),
            }),
        })
    }

    /// Waits for the write that is under way, and closes the file.
    pub async fn close(self) {
        let mut writing = self.core.writing.lock().await;
        self.core.readers.close().await;
        if let Some(connection) = writing.connection.take()
            && let Err(error) = connection.close().await
        {
            // All that was promised is in the WAL already.
            tracing::warn!(
                error = %crate::telemetry::chain(&error),
                "closing the decision log"
            );
        }
        // Last, so that the next process finds the file closed.
        writing.lock = None;
    }
}

/// The file that `path` means, so that two paths to one file meet at one lock.
fn resolved(path: &Path) -> Result<PathBuf, OpenError> {
    let failed = |source| OpenError::File {
        path: path.to_owned(),
        source,
    };
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let name = path.file_name().ok_or_else(|| failed(error))?;
            let directory = match path.parent() {
                Some(parent) if parent != Path::new("") => parent,
                Some(_) | None => Path::new("."),
            };
            Ok(directory.canonicalize().map_err(failed)?.join(name))
        }
        Err(error) => Err(failed(error)),
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Makes the names in the file's directory durable.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// A file beside the log that can not be read or written: the log itself is not concerned.
fn beside_failed(error: io::Error) -> LogError {
    LogError::Unavailable(error.into())
}

/// Takes `PATH.lock`, without waiting. The lock ends with the process, however it ends.
fn lock(path: &Path) -> Result<File, OpenError> {
    let lock = beside(path, ".lock");
    let failed = |source| OpenError::File {
        path: lock.clone(),
        source,
    };
    let file = private().truncate(false).open(&lock).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Held {
            path: path.to_owned(),
            lock,
        }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Creates an empty file, which SQLite takes for an empty database, where there is none. Its WAL gets the same mode.
fn create(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::File {
        path: path.to_owned(),
        source,
    };
    if path.exists() {
        return Ok(());
    }
    private().open(path).map_err(failed)?;
    // The name must survive the machine too.
    sync_directory_of(path).map_err(failed)
}

/// Labels and reasons are our clients' business, and keys may open theirs: nobody else on the machine reads them.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// What every connection has.
fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(false)
        // Nothing that somebody wrote into the schema may run functions with side effects.
        .pragma("trusted_schema", "OFF")
        // Damage is better found early than late.
        .pragma("cell_size_check", "ON")
        .disable_statement_logging()
}

/// Connecting runs pragmas, and the first one that reads the file finds that it is no database.
fn not_a_database(path: &Path, error: sqlx::Error) -> OpenError {
    let path = path.to_owned();
    if sqlite_code(&error) == Some(code::NOTADB) {
        OpenError::NotOurs {
            path,
            found: "no SQLite file".into(),
        }
    } else {
        OpenError::Log {
            path,
            source: error.into(),
        }
    }
}

async fn check_library(path: &Path, connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let found: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(connection)
        .await
        .map_err(|error| not_a_database(path, error))?;
    let mut numbers = found
        .split('.')
        .map(|number| number.parse::<u32>().unwrap_or(0));
    let mut number = || numbers.next().unwrap_or(0);
    let version = (number(), number(), number());
    if version < LIBRARY_VERSION_MIN {
        Err(OpenError::Library { found })
    } else {
        Ok(())
    }
}

/// Takes an empty file for ours, and refuses every other one that does not say that it is.
async fn claim(path: &Path, connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let failed = |error| not_a_database(path, error);
    let application: i32 = sqlx::query_scalar("PRAGMA application_id")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    if application == APPLICATION_ID {
        return Ok(());
    }
    let things: i64 = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed)?;
    if application != 0 || things != 0 {
        let found = format!("a SQLite file with application id {application:#x}");
        return Err(OpenError::NotOurs {
            path: path.to_owned(),
            found,
        });
    }
    // `PRAGMA` takes no parameters.
    sqlx::query("PRAGMA application_id = 0x554e414e")
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

async fn enter_wal(path: &Path, connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let failed = |source| OpenError::Log {
        path: path.to_owned(),
        source,
    };
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode = WAL")
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| failed(error.into()))?;
    if mode != "wal" {
        let cause = format!("the file system allows only the journal mode {mode:?}, not WAL");
        return Err(failed(LogError::Unavailable(cause.into())));
    }
    let (busy, ..) = checkpoint(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
        .await
        .map_err(failed)?;
    if busy {
        let cause = "another program is reading the file, so it can not be checkpointed";
        return Err(failed(LogError::Unavailable(cause.into())));
    }
    Ok(())
}

async fn migrate(path: &Path, connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let migrations = MIGRATIONS.iter().map(|&(version, description, sql)| {
        let sql = sqlx::SqlSafeStr::into_sql_str(sql);
        Migration::new(
            version,
            Cow::Borrowed(description),
            MigrationType::Simple,
            sql,
            false,
        )
    });
    let path = path.to_owned();
    match Migrator::with_migrations(migrations.collect())
        .run(connection)
        .await
    {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(version)) => Err(OpenError::Newer { path, version }),
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
            Err(OpenError::Log {
                path,
                source: error.into(),
            })
        }
        Err(other) => Err(OpenError::NotOurs {
            path,
            found: other.to_string(),
        }),
    }
}

/// Whether somebody was in the way, the pages in the WAL, and how many of them are in the file.
async fn checkpoint(
    connection: &mut SqliteConnection,
    pragma: &'static str,
) -> Result<(bool, i64, i64), LogError> {
    let row = sqlx::query(pragma).fetch_one(connection).await?;
    Ok((
        row.try_get::<i64, _>(0)? != 0,
        row.try_get(1)?,
        row.try_get(2)?,
    ))
}

/// What is done between BEGIN and COMMIT.
type Job<T> = Box<
    dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, WriteError>> + Send,
>;

impl Core {
    /// Runs one write transaction in a task of its own, so that a caller who goes away can not leave it half done.
    async fn write<T: Send + 'static>(self: &Arc<Self>, job: Job<T>) -> Result<T, WriteError> {
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
        self.check_trusted()?;
        if writing.lock.is_none() {
            return Err(WriteError::Unavailable("the log was closed".into()));
        }
        let connection = match &mut writing.connection {
            Some(connection) => connection,
            none => none.insert(self.noting(self.writing_options.connect().await)?),
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
        self.noting(
            sqlx::query("BEGIN IMMEDIATE")
                .execute(&mut *connection)
                .await,
        )?;
        let done = job(connection).await.inspect_err(|error| {
            if let WriteError::Broken(cause) = error {
                self.distrust(cause.to_string());
            }
        })?;
        #[cfg(test)]
        self.before_commit.pass().await;
        self.noting(sqlx::query("COMMIT").execute(connection).await)?;
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
            Err(LogError::Broken(cause)) => self.distrust(cause.to_string()),
            // The WAL grows until a later one succeeds; what is in it is durable.
            Err(LogError::Unavailable(cause)) => {
                tracing::warn!(
                    error = %crate::telemetry::chain(&*cause),
                    "checkpoint put off"
                );
            }
        }
    }

    /// From now on every call fails: the process is to end, and must not say anything on the way.
    fn distrust(&self, cause: String) {
        self.broken.get_or_init(|| cause);
    }

    fn check_trusted(&self) -> Result<(), LogError> {
        match self.broken.get() {
            None => Ok(()),
            Some(cause) => Err(LogError::Broken(cause.clone().into())),
        }
    }

    /// Sorts an error, and remembers it if nothing may be believed any more.
    fn noting<T>(&self, result: Result<T, impl Into<LogError>>) -> Result<T, LogError> {
        result.map_err(Into::into).inspect_err(|error| {
            if let LogError::Broken(cause) = error {
                self.distrust(cause.to_string());
            }
        })
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

/// SQLite's result codes that are told apart here (sqlite.org/rescode.html).
mod code {
    pub(super) const ERROR: i32 = 1;
    pub(super) const IOERR: i32 = 10;
    pub(super) const CORRUPT: i32 = 11;
    pub(super) const TOOBIG: i32 = 18;
    pub(super) const CONSTRAINT: i32 = 19;
    pub(super) const MISMATCH: i32 = 20;
    pub(super) const MISUSE: i32 = 21;
    pub(super) const NOTADB: i32 = 26;

    pub(super) const IOERR_UNLOCK: i32 = extended(IOERR, 8);
    pub(super) const IOERR_RDLOCK: i32 = extended(IOERR, 9);
    pub(super) const IOERR_NOMEM: i32 = extended(IOERR, 12);
    pub(super) const IOERR_CHECKRESERVEDLOCK: i32 = extended(IOERR, 14);
    pub(super) const IOERR_LOCK: i32 = extended(IOERR, 15);
    pub(super) const IOERR_SHMOPEN: i32 = extended(IOERR, 18);
    pub(super) const IOERR_SHMSIZE: i32 = extended(IOERR, 19);
    pub(super) const IOERR_SHMLOCK: i32 = extended(IOERR, 20);
    pub(super) const IOERR_SHMMAP: i32 = extended(IOERR, 21);
    /// The file was moved or removed under us: what is written now is in no file that a restart would open.
    pub(super) const READONLY_DBMOVED: i32 = extended(8, 4);

    const fn extended(primary: i32, detail: i32) -> i32 {
        primary | detail << 8
    }
}

/// SQLite's extended result code.
pub(super) fn sqlite_code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// Whether nothing may be believed any more after this result code.
pub(super) fn is_broken(extended: i32) -> bool {
    match extended {
        // Not a word about the data: a lock, memory, the shared index of the WAL.
        code::IOERR_UNLOCK
        | code::IOERR_RDLOCK
        | code::IOERR_NOMEM
        | code::IOERR_CHECKRESERVEDLOCK
        | code::IOERR_LOCK
        | code::IOERR_SHMOPEN
        | code::IOERR_SHMSIZE
        | code::IOERR_SHMLOCK
        | code::IOERR_SHMMAP => false,
        code::READONLY_DBMOVED => true,
        _ => match extended & 0xff {
            // Every other I/O error, fsync's above all, may have lost what was written before (rule 10).
            code::IOERR | code::CORRUPT | code::NOTADB => true,
            // Our own statements do not fail so on our own schema, and will not when repeated.
            code::ERROR | code::MISUSE => true,
            // Full disk, busy file, no more descriptors, mounted read-only: somebody can help, and it goes on.
            _ => false,
        },
    }
}

/// Whether SQLite says of a statement, and of nothing else, that its values can not be stored.
fn is_refusal(error: &sqlx::Error) -> bool {
    sqlite_code(error).is_some_and(|extended| {
        matches!(
            extended & 0xff,
            code::CONSTRAINT | code::TOOBIG | code::MISMATCH
        )
    })
}

/// Conditional on all that the writer believes (rule 11); raises the counter in the same statement. A repeat after an
/// unclear write changes this row again, so its commit has a frame to sync, whatever else it finds done.
const FENCE: &str = "
UPDATE epoch SET decisions = decisions + 1
WHERE node = ?1 AND epoch = ?2 AND decisions >= ?3
  AND ?4 = (SELECT identity FROM log_identity ORDER BY ordinal DESC LIMIT 1)
RETURNING decisions";

/// All records of a write as one JSON array, so that the statement is prepared once, whatever their number. Taken in
/// their order, so that of two with one key the first one wins.
const INSERT: &str = "
INSERT INTO record (id, idempotency_key, request, labels, created_at, deadline, outcome, reason, branches,
                    second_phase, decided_at, finished_at)
SELECT unhex(p.value ->> 0), p.value ->> 1, unhex(p.value ->> 2), p.value ->> 3, p.value ->> 4, p.value ->> 5,
       p.value ->> 6, p.value ->> 7, p.value ->> 8, p.value ->> 9, p.value ->> 10, p.value ->> 11
FROM json_each(?1) AS p
WHERE true
ON CONFLICT DO NOTHING
RETURNING id";

/// What is in the way of proposals that were not inserted.
const STANDING: &str = "
SELECT own.outcome, own.reason, own.branches, holder.id AS holder
FROM json_each(?1) AS p
LEFT JOIN record AS own ON own.id = unhex(p.value ->> 0)
LEFT JOIN record AS holder ON holder.idempotency_key = p.value ->> 1
ORDER BY p.key";

const FINISH: &str = "
UPDATE record SET finished_at = f.at
FROM (SELECT unhex(value ->> 0) AS id, value ->> 1 AS at FROM json_each(?1)) AS f
WHERE record.id = f.id AND record.finished_at IS NULL";

const HEAD: &str = "
SELECT (SELECT json_group_array(identity ORDER BY ordinal) FROM log_identity) AS identities,
       (SELECT epoch FROM epoch WHERE node = ?1) AS epoch,
       (SELECT decisions FROM epoch WHERE node = ?1) AS decisions";

/// One statement, so one snapshot.
const LOOK_UP: &str = "
SELECT (SELECT json_group_array(identity ORDER BY ordinal) FROM log_identity) AS identities,
       (SELECT epoch FROM epoch WHERE node = ?2) AS epoch,
       (SELECT through FROM forgotten WHERE prefix = substr(?1, 1, 6)) AS forgotten_through,
       record.*
FROM (SELECT 1) LEFT JOIN record ON record.id = ?1";

const BY_KEY: &str = "
SELECT record.*
FROM json_each(?1) AS k
CROSS JOIN record ON record.idempotency_key = k.value";

/// Bytes 5 and 6 of an id are its node, under whatever identity. The index has only what is unfinished.
const UNFINISHED: &str = "
SELECT * FROM record INDEXED BY record_unfinished
WHERE second_phase = 1 AND finished_at IS NULL AND substr(id, 5, 2) = ?1
ORDER BY id";

const PUT_PARTICIPANT: &str = "
INSERT INTO participant (name, url) VALUES (?1, ?2)
ON CONFLICT (name) DO UPDATE SET url = excluded.url";

/// Names hold nothing that a JSON path would take for its own.
const IS_NAMED: &str = "
SELECT EXISTS (SELECT 1 FROM record INDEXED BY record_unfinished
               WHERE second_phase = 1 AND finished_at IS NULL
                 AND json_type(branches, '$.\"' || ?1 || '\"') IS NOT NULL)";

/// A page of the list, driven by an index that has its entries in the list's order. The filter's other members are
/// tried on what it yields. `?1` and `?2` are the place to go on after, `?3` is the limit.
macro_rules! page {
    ($driver:literal by $place:literal) => {
        concat!(
            "SELECT record.* FROM ",
            $driver,
            " AND (",
            $place,
            ".created_at, ",
            $place,
            ".id) < (?1, ?2)
              AND (?4 IS NULL OR json_type(record.branches, '$.\"' || ?4 || '\"') IS NOT NULL)
              AND (?5 IS NULL OR record.idempotency_key = ?5)
              AND (?6 IS NULL OR record.outcome = ?6)
              AND (?7 IS NULL OR (record.outcome = 'committed' AND record.finished_at IS NULL) = ?7)
              AND NOT EXISTS (SELECT 1 FROM json_each(?8) AS wanted WHERE NOT EXISTS (
                SELECT 1 FROM json_each(record.labels) AS label
                WHERE label.key = wanted.value ->> 0 AND label.value = wanted.value ->> 1))
            ORDER BY ",
            $place,
            ".created_at DESC, ",
            $place,
            ".id DESC LIMIT ?3"
        )
    };
}

const PAGE_BY_KEY: &str = page!("record WHERE record.idempotency_key = ?5" by "record");
/// What is unfinished is little, and is sorted.
const PAGE_UNFINISHED: &str = page!(
    "record INDEXED BY record_unfinished WHERE second_phase = 1 AND finished_at IS NULL" by "record"
);
const PAGE_BY_LABEL: &str = page!(
    "record_label AS entry CROSS JOIN record ON record.id = entry.id
     WHERE entry.key = ?8 ->> '$[0][0]' AND entry.value = ?8 ->> '$[0][1]'" by "entry"
);
const PAGE_BY_PARTICIPANT: &str = page!(
    "record_participant AS entry CROSS JOIN record ON record.id = entry.id
     WHERE entry.participant = ?4" by "entry"
);
const PAGE_ABORTED: &str =
    page!("record INDEXED BY record_aborted WHERE outcome = 'aborted'" by "record");
const PAGE_BY_TIME: &str = page!("record INDEXED BY record_by_time WHERE true" by "record");

/// What is due: of the present identity, oldest finish first. The same rows in the two statements that use it, for they
/// are in one transaction.
macro_rules! due {
    () => {
        "SELECT id FROM record INDEXED BY record_by_finish
         WHERE substr(id, 1, 4) = ?1 AND finished_at IS NOT NULL AND finished_at < ?2
         ORDER BY finished_at, id LIMIT ?3"
    };
}

/// The marks rise, in the transaction that deletes (rule 14).
const MARK_FORGOTTEN: &str = concat!(
    "INSERT INTO forgotten (prefix, through) SELECT substr(id, 1, 6), max(id) FROM (",
    due!(),
    ") WHERE true GROUP BY substr(id, 1, 6)
     ON CONFLICT (prefix) DO UPDATE SET through = max(through, excluded.through)"
);

const FORGET: &str = concat!("DELETE FROM record WHERE id IN (", due!(), ")");

/// The columns of a record, in the order of [`INSERT`].
#[derive(Serialize)]
struct Columns<'a>(
    String,
    Option<&'a str>,
    Option<String>,
    &'a BTreeMap<String, String>,
    WallMillis,
    WallMillis,
    Outcome,
    Option<&'a AbortReason>,
    &'a BTreeMap<ParticipantName, Part>,
    bool,
    WallMillis,
    Option<WallMillis>,
);

/// A record on its way into the log.
struct Row {
    id: TransactionId,
    key: Option<IdempotencyKey>,
    json: String,
}

impl Row {
    fn of(record: &Record) -> Result<Self, Refused> {
        let Record {
            header,
            decision,
            decided_at,
            finished_at,
        } = record;
        let columns = Columns(
            hex(&header.id.to_bytes()),
            header.key.as_ref().map(|claim| claim.key.as_str()),
            header.key.as_ref().map(|claim| hex(&claim.request.0)),
            &header.labels,
            header.created_at,
            header.deadline,
            decision.verdict.outcome(),
            match &decision.verdict {
                Verdict::Commit => None,
                Verdict::Abort(reason) => Some(reason),
            },
            &decision.branches,
            !decision.is_finished_at_once(),
            *decided_at,
            *finished_at,
        );
        match serde_json::to_string(&columns) {
            Ok(json) => {
                let key = header.key.as_ref().map(|claim| claim.key.clone());
                Ok(Self {
                    id: header.id,
                    key,
                    json,
                })
            }
            Err(error) => Err(Refused {
                transaction: header.id,
                cause: error.into(),
            }),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A JSON array of texts that are JSON already.
fn json_array<'a>(elements: impl IntoIterator<Item = &'a str>) -> String {
    let mut array = String::from("[");
    for element in elements {
        if array.len() > 1 {
            array.push(',');
        }
        array.push_str(element);
    }
    array.push(']');
    array
}

fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, LogError> {
    serde_json::to_string(value).map_err(|error| LogError::Broken(error.into()))
}

/// What became of one row of an insert.
enum Inserted {
    Yes,
    /// Its id or its key is there already.
    No,
    Refused(Cause),
}

/// Inserts what has neither its id nor its key in the log. One bad row fails alone (rule 23): SQLite undoes a statement
/// that it refuses, and leaves the transaction as it was.
async fn insert(
    connection: &mut SqliteConnection,
    rows: &[Row],
) -> Result<Vec<Inserted>, LogError> {
    match insert_some(connection, rows).await {
        Ok(inserted) => Ok(inserted),
        Err(error) if is_refusal(&error) => {
            let mut one_by_one = Vec::with_capacity(rows.len());
            for row in rows {
                match insert_some(connection, std::slice::from_ref(row)).await {
                    Ok(inserted) => one_by_one.extend(inserted),
                    Err(error) if is_refusal(&error) => {
                        one_by_one.push(Inserted::Refused(error.into()));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(one_by_one)
        }
        Err(error) => Err(error.into()),
    }
}

async fn insert_some(
    connection: &mut SqliteConnection,
    rows: &[Row],
) -> Result<Vec<Inserted>, sqlx::Error> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let returned = sqlx::query(INSERT)
        .bind(json_array(rows.iter().map(|row| row.json.as_str())))
        .fetch_all(connection)
        .await?;
    let mut inserted = BTreeMap::new();
    for row in &returned {
        inserted.insert(row.try_get::<Vec<u8>, _>(0)?, ());
    }
    // An id is taken out when it is met: a second proposal of the same transaction was not inserted.
    let of = |row: &Row| match inserted.remove(row.id.to_bytes().as_slice()) {
        Some(()) => Inserted::Yes,
        None => Inserted::No,
    };
    Ok(rows.iter().map(of).collect())
}

async fn standings(
    connection: &mut SqliteConnection,
    rows: &[&Row],
) -> Result<Vec<Found>, LogError> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let asked: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                hex(&row.id.to_bytes()),
                row.key.as_ref().map(IdempotencyKey::as_str),
            )
        })
        .collect();
    let found = sqlx::query(STANDING)
        .bind(json(&asked)?)
        .fetch_all(connection)
        .await?;
    if found.len() != rows.len() {
        return Err(damaged(
            "the log answered for another number of proposals than were asked",
        ));
    }
    let of = |(row, proposal): (&SqliteRow, &&Row)| {
        if row.try_get::<Option<&str>, _>("outcome")?.is_some() {
            Ok(Found::Own(decision(row)?))
        } else if let Some(holder) = row.try_get::<Option<&[u8]>, _>("holder")? {
            Ok(Found::Holder(transaction_id(holder)?))
        } else {
            Err(damaged(format!(
                "nothing is in the way of transaction {}",
                proposal.id
            )))
        }
    };
    found.iter().zip(rows).map(of).collect()
}

/// Finishes and unforced records. What the store refuses of them is history that is lost, and no decision.
async fn append(
    connection: &mut SqliteConnection,
    rows: &[Row],
    finishes: &str,
) -> Result<(), LogError> {
    for (row, inserted) in rows.iter().zip(insert(connection, rows).await?) {
        if let Inserted::Refused(cause) = inserted {
            let error = crate::telemetry::chain(&*cause);
            tracing::error!(transaction = %row.id, %error, "an unforced record was refused");
        }
    }
    if finishes != "[]" {
        sqlx::query(FINISH)
            .bind(finishes)
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// The rows and finishes of what rides along, ready for the statements.
fn encoded(appends: &Appends) -> Result<(Vec<Row>, String), LogError> {
    let mut rows = Vec::with_capacity(appends.records.len());
    for record in &appends.records {
        match Row::of(record) {
            Ok(row) => rows.push(row),
            Err(refused) => tracing::error!(
                transaction = %refused.transaction,
                error = %crate::telemetry::chain(&*refused.cause),
                "an unforced record was refused"
            ),
        }
    }
    let finishes: Vec<_> = appends
        .finishes
        .iter()
        .map(|(id, at)| (hex(&id.to_bytes()), at))
        .collect();
    Ok((rows, json(&finishes)?))
}

async fn read_head(connection: &mut SqliteConnection, node: Node) -> Result<Head, LogError> {
    head(&sqlx::query(HEAD).bind(node.0).fetch_one(connection).await?)
}

/// Why the fence let nothing through.
async fn shut(connection: &mut SqliteConnection, writer: &Writer) -> WriteError {
    match read_head(connection, writer.node).await {
        Ok(head) => match head.check(writer) {
            Err(shut) => shut.into(),
            Ok(()) => damaged(format!("the fence shuts out {writer} for no reason")).into(),
        },
        Err(error) => error.into(),
    }
}

#[async_trait]
impl DecisionLog for SqliteLog {
    fn is_exclusive(&self) -> bool {
        true
    }

    async fn nodes(&self) -> Result<Vec<Node>, LogError> {
        let query = sqlx::query_scalar("SELECT node FROM epoch ORDER BY node");
        let nodes: Vec<u16> = self.read(query.fetch_all(&self.core.readers)).await?;
        Ok(nodes.into_iter().map(Node).collect())
    }

    async fn open_epoch(&self, node: Node) -> Result<Opened, LogError> {
        // The one writing connection takes writes one after the other, so every decision of an older epoch has either
        // been committed before this, and is seen by whoever reads after it, or meets the higher epoch.
        let job: Job<Head> = Box::new(move |connection| {
            Box::pin(async move {
                let raised = sqlx::query(
                    "INSERT INTO epoch (node, epoch, decisions) VALUES (?1, 1, 0)
                     ON CONFLICT (node) DO UPDATE SET epoch = epoch + 1",
                );
                raised
                    .bind(node.0)
                    .execute(&mut *connection)
                    .await
                    .map_err(epochs_used_up)?;
                Ok(read_head(connection, node).await?)
            })
        });
        let head = self.core.write(job).await.map_err(unfenced)?;
        let Head {
            identity,
            former,
            epoch,
            decisions,
        } = head;
        let epoch = epoch.ok_or_else(|| damaged("a new epoch has no row"))?;
        Ok(Opened {
            writer: Writer {
                node,
                epoch,
                identity,
                decisions_at_least: decisions,
            },
            former,
        })
    }

    async fn mark(&self, _: &Writer) -> Result<(), LogError> {
        Ok(())
    }

    async fn adopt(
        &self,
        node: Node,
        _: Option<Duration>,
    ) -> Result<Result<Opened, NotAdopted>, LogError> {
        if self.went_back().await?.is_some() {
            return Ok(Err(NotAdopted::LogWentBack));
        }
        if self.head(node).await?.epoch.is_none() {
            return Ok(Err(NotAdopted::UnknownNode));
        }
        Ok(Ok(self.open_epoch(node).await?))
    }

    async fn abandoned(&self, _: Duration) -> Result<Vec<Abandoned>, LogError> {
        Ok(Vec::new())
    }

    async fn head(&self, node: Node) -> Result<Head, LogError> {
        let query = sqlx::query(HEAD).bind(node.0);
        let row = self.read(query.fetch_one(&self.core.readers)).await?;
        self.core.noting(head(&row))
    }

    async fn decide(&self, writer: &Writer, batch: &Batch) -> Result<Decided, WriteError> {
        let writer = *writer;
        let mut refusals = BTreeMap::new();
        let mut rows = Vec::with_capacity(batch.proposals.len());
        for (at, proposal) in batch.proposals.iter().enumerate() {
            match super::admit(&writer, proposal).and_then(|()| Row::of(proposal)) {
                Ok(row) => rows.push(row),
                Err(refused) => drop(refusals.insert(at, refused)),
            }
        }
        let (riding, finishes) = encoded(&batch.appends)?;

        /// For each row in order: `None` where it was inserted.
        type Rows = Vec<Result<Option<Found>, Refused>>;
        let job: Job<(u64, Rows)> = Box::new(move |connection| {
            Box::pin(async move {
                let passed: Option<i64> = sqlx::query_scalar(FENCE)
                    .bind(writer.node.0)
                    .bind(writer.epoch.number())
                    .bind(i64::try_from(writer.decisions_at_least).unwrap_or(i64::MAX))
                    .bind(writer.identity.0)
                    .fetch_optional(&mut *connection)
                    .await
                    .map_err(LogError::from)?;
                let Some(decisions) = passed else {
                    return Err(shut(connection, &writer).await);
                };
                let inserted = insert(connection, &rows).await?;
                let in_the_way = rows.iter().zip(&inserted);
                let in_the_way: Vec<_> = in_the_way
                    .filter(|(_, inserted)| matches!(inserted, Inserted::No))
                    .map(|(row, _)| row)
                    .collect();
                let mut found = standings(connection, &in_the_way).await?.into_iter();
                let answers = rows
                    .iter()
                    .zip(inserted)
                    .map(|(row, inserted)| match inserted {
                        Inserted::Yes => Ok(None),
                        Inserted::No => Ok(found.next()),
                        Inserted::Refused(cause) => Err(Refused {
                            transaction: row.id,
                            cause,
                        }),
                    });
                let answers = answers.collect();
                append(connection, &riding, &finishes).await?;
                Ok((decisions.unsigned_abs(), answers))
            })
        });
        let (decisions, answers) = self.core.write(job).await?;

        let mut answers = answers.into_iter();
        let mut standings = Vec::with_capacity(batch.proposals.len());
        for (at, proposal) in batch.proposals.iter().enumerate() {
            standings.push(match refusals.remove(&at) {
                Some(refused) => Err(refused),
                None => answers
                    .next()
                    .ok_or_else(|| damaged("a proposal has no answer"))?
                    .map(|found| standing(proposal, found)),
            });
        }
        Ok(Decided {
            standings,
            decisions,
        })
    }

    async fn append(&self, writer: &Writer, appends: &Appends) -> Result<(), WriteError> {
        let writer = *writer;
        let (rows, finishes) = encoded(appends)?;
        let job: Job<()> = Box::new(move |connection| {
            Box::pin(async move {
                // The counter stays: it counts what was forced. The write lock keeps what is read here true.
                read_head(connection, writer.node).await?.check(&writer)?;
                Ok(append(connection, &rows, &finishes).await?)
            })
        });
        self.core.write(job).await
    }

    async fn look_up(&self, id: TransactionId) -> Result<View, LogError> {
        let query = sqlx::query(LOOK_UP)
            .bind(id.to_bytes().to_vec())
            .bind(id.node().0);
        let row = self.read(query.fetch_one(&self.core.readers)).await?;
        self.core.noting(view(&row))
    }

    async fn by_key(&self, keys: &[IdempotencyKey]) -> Result<Vec<Option<Record>>, LogError> {
        let texts: Vec<_> = keys.iter().map(IdempotencyKey::as_str).collect();
        let query = sqlx::query(BY_KEY).bind(json(&texts)?);
        let rows = self.read(query.fetch_all(&self.core.readers)).await?;
        let mut found = BTreeMap::new();
        for row in &rows {
            let record = self.core.noting(record(row))?;
            if let Some(claim) = &record.header.key {
                found.insert(claim.key.clone(), record);
            }
        }
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    async fn unfinished(&self, node: Node) -> Result<Vec<Record>, LogError> {
        let query = sqlx::query(UNFINISHED).bind(node.0.to_be_bytes().to_vec());
        let rows = self.read(query.fetch_all(&self.core.readers)).await?;
        self.core.noting(rows.iter().map(record).collect())
    }

    async fn went_back(&self) -> Result<Option<String>, LogError> {
        match std::fs::read_to_string(&self.core.went_back) {
            Ok(why) => Ok(Some(why.trim_end().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(beside_failed(error)),
        }
    }

    async fn remember_that_it_went_back(&self, why: &str) -> Result<(), LogError> {
        let marker = &self.core.went_back;
        let write = || {
            let mut file = private().truncate(true).open(marker)?;
            io::Write::write_all(&mut file, format!("{why}\n").as_bytes())?;
            file.sync_all()?;
            sync_directory_of(marker)
        };
        write().map_err(beside_failed)
    }

    async fn forget(
        &self,
        writer: &Writer,
        before: WallMillis,
        at_most: u32,
    ) -> Result<u64, WriteError> {
        let writer = *writer;
        let job: Job<u64> = Box::new(move |connection| {
            Box::pin(async move {
                read_head(connection, writer.node).await?.check(&writer)?;
                let mut gone = 0;
                for sql in [MARK_FORGOTTEN, FORGET] {
                    let done = sqlx::query(sql)
                        .bind(writer.identity.0.to_be_bytes().to_vec())
                        .bind(before.0)
                        .bind(at_most)
                        .execute(&mut *connection)
                        .await
                        .map_err(LogError::from)?;
                    gone = done.rows_affected();
                }
                Ok(gone)
            })
        });
        self.core.write(job).await
    }

    async fn history(
        &self,
        filter: &Filter,
        after: Option<Position>,
        limit: u32,
    ) -> Result<Vec<Record>, LogError> {
        let Some((outcome, unfinished)) = meant(filter) else {
            return Ok(Vec::new());
        };
        let sql = if filter.idempotency_key.is_some() {
            PAGE_BY_KEY
        } else if unfinished == Some(true) {
            PAGE_UNFINISHED
        } else if !filter.labels.is_empty() {
            PAGE_BY_LABEL
        } else if filter.participant.is_some() {
            PAGE_BY_PARTICIPANT
        } else if outcome == Some(Outcome::Aborted) {
            PAGE_ABORTED
        } else {
            PAGE_BY_TIME
        };
        let (created_at, id) = match after {
            Some(Position { created_at, id }) => (created_at.0, id.to_bytes()),
            None => (i64::MAX, [u8::MAX; 16]),
        };
        let outcome = outcome.map(|outcome| match outcome {
            Outcome::Committed => "committed",
            Outcome::Aborted => "aborted",
        });
        let query = sqlx::query(sql)
            .bind(created_at)
            .bind(id.to_vec())
            .bind(limit)
            .bind(filter.participant.as_ref().map(ParticipantName::as_str))
            .bind(filter.idempotency_key.as_ref().map(IdempotencyKey::as_str))
            .bind(outcome)
            .bind(unfinished)
            .bind(json(&filter.labels)?);
        let rows = self.read(query.fetch_all(&self.core.readers)).await?;
        self.core.noting(rows.iter().map(record).collect())
    }

    async fn participants(&self) -> Result<Vec<(ParticipantName, String)>, LogError> {
        let query = sqlx::query("SELECT name, url FROM participant ORDER BY name");
        let rows = self.read(query.fetch_all(&self.core.readers)).await?;
        let participant = |row: &SqliteRow| {
            let name = parsed("name", row.try_get::<&str, _>("name")?.parse())?;
            Ok((name, row.try_get("url")?))
        };
        self.core.noting::<_>(
            rows.iter()
                .map(participant)
                .collect::<Result<_, LogError>>(),
        )
    }

    async fn put_participant(
        &self,
        writer: &Writer,
        name: &ParticipantName,
        url: &str,
    ) -> Result<bool, WriteError> {
        let (writer, name, url) = (*writer, name.to_string(), url.to_owned());
        let job: Job<bool> = Box::new(move |connection| {
            Box::pin(async move {
                read_head(connection, writer.node).await?.check(&writer)?;
                let is_new = !is_registered(connection, &name).await?;
                sqlx::query(PUT_PARTICIPANT)
                    .bind(name)
                    .bind(url)
                    .execute(connection)
                    .await
                    .map_err(LogError::from)?;
                Ok(is_new)
            })
        });
        self.core.write(job).await
    }

    async fn remove_participant(
        &self,
        writer: &Writer,
        name: &ParticipantName,
    ) -> Result<Removal, WriteError> {
        let (writer, name) = (*writer, name.to_string());
        let job: Job<Removal> = Box::new(move |connection| {
            Box::pin(async move {
                read_head(connection, writer.node).await?.check(&writer)?;
                if !is_registered(connection, &name).await? {
                    return Ok(Removal::Absent);
                }
                let is_named: bool = sqlx::query_scalar(IS_NAMED)
                    .bind(&name)
                    .fetch_one(&mut *connection)
                    .await
                    .map_err(LogError::from)?;
                if is_named {
                    return Ok(Removal::InUse);
                }
                sqlx::query("DELETE FROM participant WHERE name = ?1")
                    .bind(name)
                    .execute(connection)
                    .await
                    .map_err(LogError::from)?;
                Ok(Removal::Removed)
            })
        });
        self.core.write(job).await
    }

    async fn new_identity(&self) -> Result<IdentityChange, LogError> {
        let job: Job<IdentityChange> = Box::new(|connection| {
            Box::pin(async move {
                // Node 0 may have no row; the identities are there all the same.
                let Head {
                    identity: former,
                    former: earlier,
                    ..
                } = read_head(connection, Node(0)).await?;
                let present = super::draw_identity(former, &earlier);
                sqlx::query(
                    "INSERT INTO log_identity SELECT max(ordinal) + 1, ?1 FROM log_identity",
                )
                .bind(present.0)
                .execute(&mut *connection)
                .await
                .map_err(LogError::from)?;
                sqlx::query("UPDATE epoch SET epoch = epoch + 1")
                    .execute(connection)
                    .await
                    .map_err(epochs_used_up)?;
                Ok(IdentityChange { former, present })
            })
        });
        let change = self.core.write(job).await.map_err(unfenced)?;
        match std::fs::remove_file(&self.core.went_back) {
            Ok(()) => sync_directory_of(&self.core.went_back).map_err(beside_failed)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(beside_failed(error)),
        }
        Ok(change)
    }
}

async fn is_registered(connection: &mut SqliteConnection, name: &str) -> Result<bool, LogError> {
    let query = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM participant WHERE name = ?1)");
    Ok(query.bind(name).fetch_one(connection).await?)
}

#[cfg(test)]
impl SqliteLog {
    /// Where writes wait between check and commit while a test holds it.
    pub(super) fn gate(&self) -> &super::memory::Gate {
        &self.core.before_commit
    }

    /// Runs SQL of a test on the writing connection, for what is set for one connection.
    pub(super) async fn on_the_writing_connection(&self, sql: &str) {
        let mut writing = self.core.writing.lock().await;
        let connection = writing.connection.as_mut().unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
            .execute(connection)
            .await
            .unwrap();
    }

    /// How SQLite goes about each statement on records, as `EXPLAIN QUERY PLAN` tells it.
    pub(super) async fn plans(&self) -> Vec<(&'static str, String)> {
        let mut plans = Vec::new();
        for sql in [
            INSERT,
            STANDING,
            FINISH,
            LOOK_UP,
            BY_KEY,
            UNFINISHED,
            MARK_FORGOTTEN,
            FORGET,
            IS_NAMED,
            PAGE_BY_KEY,
            PAGE_UNFINISHED,
            PAGE_BY_LABEL,
            PAGE_BY_PARTICIPANT,
            PAGE_ABORTED,
            PAGE_BY_TIME,
        ] {
            let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
            for row in sqlx::query(explain)
                .fetch_all(&self.core.readers)
                .await
                .unwrap()
            {
                plans.push((sql, row.get("detail")));
            }
        }
        plans
    }
}

impl SqliteLog {
    async fn read<T>(
        &self,
        query: impl Future<Output = Result<T, sqlx::Error>> + Send,
    ) -> Result<T, LogError> {
        self.core.check_trusted()?;
        self.core.noting(query.await)
    }
}

/// The schema's bound on epochs is the id's: there is no epoch after 2^30 - 1 of them.
fn epochs_used_up(error: sqlx::Error) -> LogError {
    if is_refusal(&error) {
        LogError::Broken(error.into())
    } else {
        error.into()
    }
}

fn transaction_id(bytes: &[u8]) -> Result<TransactionId, LogError> {
    let bytes = parsed("id", <[u8; 16]>::try_from(bytes))?;
    parsed("id", TransactionId::from_bytes(bytes))
}

fn identities(row: &SqliteRow) -> Result<(LogIdentity, Vec<LogIdentity>), LogError> {
    let all = serde_json::from_str::<Vec<LogIdentity>>(row.try_get("identities")?);
    let mut former = parsed("identities", all)?;
    let present = former
        .pop()
        .ok_or_else(|| damaged("the log has no identity"))?;
    Ok((present, former))
}

fn epoch(row: &SqliteRow) -> Result<Option<Epoch>, LogError> {
    let Some(number) = row.try_get::<Option<u32>, _>("epoch")? else {
        return Ok(None);
    };
    Epoch::new(number)
        .map(Some)
        .ok_or_else(|| damaged("an epoch has more than 30 bits"))
}

fn head(row: &SqliteRow) -> Result<Head, LogError> {
    let (identity, former) = identities(row)?;
    let decisions = row
        .try_get::<Option<i64>, _>("decisions")?
        .unwrap_or(0)
        .unsigned_abs();
    Ok(Head {
        identity,
        former,
        epoch: epoch(row)?,
        decisions,
    })
}

fn view(row: &SqliteRow) -> Result<View, LogError> {
    let (identity, former) = identities(row)?;
    let forgotten_through = row.try_get::<Option<&[u8]>, _>("forgotten_through")?;
    Ok(View {
        record: match row.try_get::<Option<&[u8]>, _>("id")? {
            Some(_) => Some(record(row)?),
            None => None,
        },
        epoch: epoch(row)?,
        identity,
        former,
        forgotten_through: forgotten_through.map(transaction_id).transpose()?,
    })
}

fn record(row: &SqliteRow) -> Result<Record, LogError> {
    let id = transaction_id(row.try_get("id")?)?;
    let key = match row.try_get::<Option<&str>, _>("idempotency_key")? {
        None => None,
        Some(key) => Some(KeyClaim {
            key: parsed("idempotency_key", key.parse())?,
            request: BodyDigest(parsed(
                "request",
                row.try_get::<&[u8], _>("request")?.try_into(),
            )?),
        }),
    };
    let labels = parsed("labels", serde_json::from_str(row.try_get("labels")?))?;
    let millis = |column| row.try_get(column).map(WallMillis);
    let (created_at, deadline) = (millis("created_at")?, millis("deadline")?);
    Ok(Record {
        header: Arc::new(Header {
            id,
            key,
            labels,
            created_at,
            deadline,
        }),
        decision: decision(row)?,
        decided_at: millis("decided_at")?,
        finished_at: row
            .try_get::<Option<i64>, _>("finished_at")?
            .map(WallMillis),
    })
}

fn decision(row: &SqliteRow) -> Result<Decision, LogError> {
    let verdict = match row.try_get::<Option<&str>, _>("reason")? {
        // The schema has it that an abort, and nothing else, has a reason.
        None => Verdict::Commit,
        Some(reason) => Verdict::Abort(parsed("reason", serde_json::from_str(reason))?),
    };
    let branches = parsed("branches", serde_json::from_str(row.try_get("branches")?))?;
    Ok(Decision { verdict, branches })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the numbers of sqlite.org/rescode.html, which are not the constants above.
    #[test]
    fn a_failed_fsync_ends_the_process_and_a_full_disk_does_not() {
        let [ioerr_write, ioerr_fsync, ioerr_dir_fsync] = [778, 1034, 1290];
        let [corrupt, corrupt_index, notadb, readonly_dbmoved] = [11, 779, 26, 1032];
        for extended in [
            ioerr_write,
            ioerr_fsync,
            ioerr_dir_fsync,
            10,
            corrupt,
            corrupt_index,
        ] {
            assert!(is_broken(extended), "{extended}");
        }
        assert!(is_broken(notadb) && is_broken(readonly_dbmoved));
        let [busy, busy_snapshot, locked, nomem, readonly, full, cantopen] =
            [5, 517, 6, 7, 8, 13, 14];
        let [
            ioerr_nomem,
            ioerr_lock,
            ioerr_shmmap,
            constraint_foreign_key,
        ] = [3082, 3850, 5386, 787];
        for extended in [busy, busy_snapshot, locked, nomem, readonly, full, cantopen] {
            assert!(!is_broken(extended), "{extended}");
        }
        for extended in [
            ioerr_nomem,
            ioerr_lock,
            ioerr_shmmap,
            constraint_foreign_key,
        ] {
            assert!(!is_broken(extended), "{extended}");
        }
    }
}
