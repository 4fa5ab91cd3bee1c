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

mod codes;
mod deciding;
mod file;
mod reading;
mod rows;
mod sql;
mod writing;

use std::{collections::BTreeMap, io, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, Connection as _, Row as _, SqliteConnection,
    sqlite::{SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};
use tokio::sync::Mutex;
use unanimous_protocol::{
    id::{Node, ParticipantName, TransactionId},
    life::{Head, Writer},
    record::{IdempotencyKey, Outcome, Record, WallMillis},
};

pub(super) use self::codes::{is_broken, sqlite_code};
pub use self::file::OpenError;
use self::{
    codes::is_refusal,
    deciding::Deciding,
    file::{
        beside, beside_failed, check_library, claim, create, enter_wal, lock, migrate,
        not_a_database, options, private, resolved, sync_directory_of,
    },
    reading::KeyReader,
    rows::{Row, append, encoded, head, json, record, view},
    sql::*,
    writing::{Core, Job, Whole, Writing, ready_to_decide},
};
use super::{
    Abandoned, Appends, Batch, Decided, DecisionLog, Filter, IdentityChange, LogError, NotAdopted,
    Opened, Position, Removal, View, WriteError,
    answers::{Admitted, Answers},
    damaged,
    history::meant,
    parsed,
    trust::Trust,
    unfenced,
};
use crate::crash;

/// How long a connection waits for another program that holds the file, a backup say.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads are short, and there are as many at once as a small machine has use for.
const READERS_MAX: u32 = 4;

/// A [`DecisionLog`] in a SQLite file.
///
/// Dropping it lets the file go once the last write has ended; [`Self::close`] waits for that.
pub struct SqliteLog {
    core: Arc<Core>,
    keys: KeyReader,
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
            .synchronous(flushing())
            // See the module's head.
            .pragma("wal_autocheckpoint", "0")
            // For what `ready_to_decide` makes: in no file at all.
            .pragma("temp_store", "MEMORY");
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

        // Not `read_only`: such a connection could not recover a WAL, should it be the first one.
        let reading = options.pragma("query_only", "ON");
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(BUSY_TIMEOUT)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_lazy_with(reading.clone());
        let writing = ready_to_decide(writing).await.map_err(sqlite)?;
        #[cfg(test)]
        let before_commit = super::memory::Gate::default();
        #[cfg(test)]
        let writing = hold_commits(&before_commit, writing)
            .await
            .map_err(sqlite)?;
        Ok(Self {
            core: Arc::new(Core {
                writing: Mutex::new(Writing {
                    connection: Some(writing),
                    lock: Some(lock),
                    unseen_pages: 0,
                }),
                writing_options,
                readers,
                went_back: beside(path, ".went-back"),
                trust: Trust::default(),
                #[cfg(test)]
                before_commit,
            }),
            keys: KeyReader::new(reading),
        })
    }

    /// Waits for the write that is under way, and closes the file.
    pub async fn close(self) {
        let mut writing = self.core.writing.lock().await;
        self.core.readers.close().await;
        let keys_closed = self.keys.close().await;
        let closed = match writing.connection.take() {
            Some(connection) => connection.close().await,
            None => Ok(()),
        };
        if let Err(error) = keys_closed.and(closed) {
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

/// Each commit is flushed, unless a test of power failures wants to see that found out.
fn flushing() -> SqliteSynchronous {
    if crash::is_weakened("synchronous-normal") {
        SqliteSynchronous::Normal
    } else {
        SqliteSynchronous::Full
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
        let head = self.core.write(1, job).await.map_err(unfenced)?;
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
        self.core.trust.noting(head(&row))
    }

    async fn decide(&self, writer: &Writer, batch: &Batch) -> Result<Decided, WriteError> {
        let writer = *writer;
        let (admitted, rows) = Admitted::of(&writer, &batch.proposals, Row::of);
        let (riding, finishes) = encoded(&batch.appends)?;

        let listed = |record: &Record| record.decision.branches.len() + record.header.labels.len();
        let records = batch.proposals.iter().chain(&batch.appends.records);
        let changed =
            batch.proposals.len() + batch.appends.len() + records.map(listed).sum::<usize>();
        let deciding = Deciding {
            writer,
            rows,
            riding,
            finishes,
        };
        let whole: Whole<(u64, Answers)> =
            Box::new(|core, connection| Box::pin(deciding.on(core, connection)));
        let (decisions, answers) = self.core.run(changed, whole).await?;

        Ok(Decided {
            standings: admitted.standings(&batch.proposals, answers)?,
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
        self.core.write(appends.len(), job).await
    }

    async fn look_up(&self, id: TransactionId) -> Result<View, LogError> {
        let query = sqlx::query(LOOK_UP)
            .bind(id.to_bytes().to_vec())
            .bind(id.node().0);
        let row = self.read(query.fetch_one(&self.core.readers)).await?;
        self.core.trust.noting(view(&row))
    }

    async fn by_key(&self, keys: &[IdempotencyKey]) -> Result<Vec<Option<Record>>, LogError> {
        let texts: Vec<_> = keys.iter().map(IdempotencyKey::as_str).collect();
        let rows = self.read(self.keys.records(json(&texts)?)).await?;
        let mut found = BTreeMap::new();
        for row in &rows {
            let record = self.core.trust.noting(record(row))?;
            if let Some(claim) = &record.header.key {
                found.insert(claim.key.clone(), record);
            }
        }
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    async fn unfinished(&self, node: Node) -> Result<Vec<Record>, LogError> {
        let query = sqlx::query(UNFINISHED).bind(node.0.to_be_bytes().to_vec());
        let rows = self.read(query.fetch_all(&self.core.readers)).await?;
        self.core.trust.noting(rows.iter().map(record).collect())
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
        self.core.write(at_most as usize, job).await
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
        self.core.trust.noting(rows.iter().map(record).collect())
    }

    async fn participants(&self) -> Result<Vec<(ParticipantName, String)>, LogError> {
        let query = sqlx::query("SELECT name, url FROM participant ORDER BY name");
        let rows = self.read(query.fetch_all(&self.core.readers)).await?;
        let participant = |row: &SqliteRow| {
            let name = parsed("name", row.try_get::<&str, _>("name")?.parse())?;
            Ok((name, row.try_get("url")?))
        };
        self.core.trust.noting::<_>(
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
        self.core.write(1, job).await
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
        self.core.write(1, job).await
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
        let change = self.core.write(1, job).await.map_err(unfenced)?;
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

impl SqliteLog {
    async fn read<T>(
        &self,
        query: impl Future<Output = Result<T, sqlx::Error>> + Send,
    ) -> Result<T, LogError> {
        self.core.trust.check()?;
        self.core.trust.noting(query.await)
    }
}

async fn read_head(connection: &mut SqliteConnection, node: Node) -> Result<Head, LogError> {
    head(&sqlx::query(HEAD).bind(node.0).fetch_one(connection).await?)
}

/// The schema's bound on epochs is the id's: there is no epoch after 2^30 - 1 of them.
fn epochs_used_up(error: sqlx::Error) -> LogError {
    if is_refusal(&error) {
        LogError::Broken(error.into())
    } else {
        error.into()
    }
}

#[cfg(test)]
use writing::hold_commits;

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
