//! The decision log in a Postgres database: shared by many coordinators, and as durable as that server is. With a
//! synchronous standby it survives the machine.
//!
//! A batch is one statement in its own implicit transaction (`sql.rs`). It locks its node's row in `unanimous.epoch`
//! until its commit, and so does who opens an epoch: a decision is either before a new epoch and seen by its owner, or
//! refused. All writes of a process go through one connection, for the log writer has one batch under way at a time.
//!
//! What is told was made durable:
//! - A write returns `Ok` when the server is ready for the next statement, which is after the commit was flushed and
//!   replicated (`synchronous_commit = on`), and no warning came with it (`notices.rs`). Everything else is unclear, and
//!   its connection is thrown away. Neither we nor the driver repeat it.
//! - *Visible is not durable* here either: after a crash, and after a cancelled wait for a standby, the primary shows
//!   commits that no standby has. A standing that is found rests on the commit of the very write that found it in its
//!   way. A record, or a newer epoch, that a read found is told only after a forced write that began later
//!   (`Core::prove_durable`): one such write serves all reads that wait for it.
//!
//! It needs a connection of its own to the server: directly, or through a pooler in session mode.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{
        Arc, Mutex as StdMutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, Row as _,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    postgres::{PgArguments, PgConnectOptions, PgDatabaseError, PgPoolOptions, PgRow},
    query::Query,
};
use tokio::{
    sync::{Mutex, oneshot},
    time::timeout,
};
use unanimous_protocol::{
    id::{Epoch, Node, ParticipantName, TransactionId},
    life::{Head, Writer},
    record::{IdempotencyKey, Outcome, Record, WallMillis},
};

use self::{
    notices::Ears,
    rows::Row,
    session::{ConnectError, connect_to_write},
};
use super::{
    Abandoned, Appends, Batch, Cause, Decided, DecisionLog, Filter, Found, IdentityChange,
    LogError, NotAdopted, Opened, Position, Refused, Removal, View, WriteError,
    answers::{self, Admitted, Answers, Inserted},
    damaged,
    history::meant,
    parsed, unfenced,
};

mod notices;
mod rows;
mod session;
mod sql;
#[cfg(test)]
pub(super) mod tests;

/// How long we wait for the server before we call it unavailable. The driver has no timeout for a server that vanished.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads are short.
const READERS_MAX: u32 = 8;

/// "UNAN": one start at a time looks at the schema.
const START_LOCK: i64 = 0x554e_414e;

/// Beside the tables, for `_sqlx_migrations` may be a neighbour's.
const MIGRATIONS_TABLE: &str = "unanimous.coordinator_migrations";

const MIGRATIONS: &[(i64, &str, &str)] = &[
    (
        1,
        "decision log",
        include_str!("../../../migrations/postgres/0001_decision_log.sql"),
    ),
    (
        2,
        "seen",
        include_str!("../../../migrations/postgres/0002_seen.sql"),
    ),
];

/// A [`DecisionLog`] in a Postgres database, in the schema `unanimous`.
pub struct PostgresLog {
    core: Arc<Core>,
}

/// What a write that outlives its caller still needs.
struct Core {
    options: PgConnectOptions,
    patience: Duration,
    /// Empty after a failure that left its state in doubt; the next write connects again.
    writing: Mutex<Option<PgConnection>>,
    readers: PgPool,
    ears: Ears,
    /// Forced writes are numbered as they begin.
    begun: AtomicU64,
    /// The last one that is known to have become durable.
    durable: AtomicU64,
    /// Epochs that are known to be durable.
    epochs: StdMutex<BTreeMap<Node, Epoch>>,
    /// Set by the first failure after which nothing here may be believed. Every later call fails with it.
    broken: OnceLock<String>,
}

/// Why a database can not be opened as a decision log.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It does not answer, or not now. Try again.
    #[error("the server does not answer")]
    Unavailable(#[source] LogError),
    /// The server would call commits durable that are not.
    #[error(
        "the server has {setting} = {value}: a crash could lose decisions that were told; set it to on"
    )]
    Unsafe {
        /// The setting.
        setting: &'static str,
        /// Its value.
        value: String,
    },
    /// The server lacks what is relied on.
    #[error("the server is Postgres {found}, and a decision log needs at least 14")]
    TooOld {
        /// Its version.
        found: String,
    },
    /// The server's warnings do not reach us.
    #[error(
        "the server's warnings are not heard, so a cancelled wait for a standby would not be: is there a pooler between?"
    )]
    Deaf,
    /// The server will not have us.
    #[error(
        "the server refuses: check user, password, database, and that the user may create in it"
    )]
    Refused(#[source] sqlx::Error),
    /// No connection that the URL asks for.
    #[error(
        "the server is not one that the URL trusts: with sslmode=verify-full or verify-ca its certificate must come \
         from sslrootcert (or a CA that this system trusts) and be for the URL's host; with sslmode=require it must have \
         TLS at all"
    )]
    Untrusted(#[source] sqlx::Error),
    /// There is no log, and none was to be made.
    #[error("there is no decision log in this database")]
    Missing,
    /// A newer program has changed the schema.
    #[error(
        "the log was written by a newer unanimous (its schema has version {version}); run that one"
    )]
    Newer {
        /// The first schema version that this program does not know.
        version: i64,
    },
    /// The schema is not the one that this program made.
    #[error("the schema unanimous in this database is not ours")]
    NotOurs(#[source] MigrateError),
}

impl From<ConnectError> for OpenError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Unavailable(error) => Self::Unavailable(error),
            ConnectError::Unfit(unfit) => unfit,
        }
    }
}

impl From<sqlx::Error> for OpenError {
    fn from(error: sqlx::Error) -> Self {
        ConnectError::from(error).into()
    }
}

impl PostgresLog {
    /// Opens the log, and creates it if there is none.
    ///
    /// # Errors
    /// When the server does not answer, or is not one that decisions can be trusted to.
    pub async fn open(options: &PgConnectOptions) -> Result<Self, OpenError> {
        Self::open_with(options, true, PATIENCE).await
    }

    /// Opens the log if there is one.
    ///
    /// # Errors
    /// As [`Self::open`], and when there is none.
    pub async fn open_existing(options: &PgConnectOptions) -> Result<Self, OpenError> {
        Self::open_with(options, false, PATIENCE).await
    }

    pub(super) async fn open_with(
        options: &PgConnectOptions,
        may_create: bool,
        patience: Duration,
    ) -> Result<Self, OpenError> {
        let mut options = options.clone().disable_statement_logging();
        if options.get_application_name().is_none() {
            options = options.application_name("unanimous");
        }
        let ears = Ears::new();
        let prepared = timeout(patience, async {
            let mut connection = connect_to_write(&options, patience, &ears).await?;
            let (prepared, warnings) = ears.listen(prepare(&mut connection, may_create)).await;
            prepared?;
            // What was created may be on this server alone, and then not be there when decisions are.
            clear_of(warnings)
                .map_err(|cause| OpenError::Unavailable(LogError::Unavailable(cause)))?;
            Ok::<_, OpenError>(connection)
        });
        let silent = || OpenError::Unavailable(no_answer(patience));
        let connection = prepared.await.map_err(|_| silent())??;
        let readers = PgPoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(patience / 2)
            .after_connect(move |connection, _| Box::pin(session::set(connection, patience)))
            .connect_lazy_with(options.clone());
        Ok(Self {
            core: Arc::new(Core {
                options,
                patience,
                writing: Mutex::new(Some(connection)),
                readers,
                ears,
                begun: AtomicU64::new(0),
                durable: AtomicU64::new(0),
                epochs: StdMutex::default(),
                broken: OnceLock::new(),
            }),
        })
    }
}

/// Makes the schema what this program knows, and gives a new log its identity. Whoever starts at the same moment waits.
async fn prepare(connection: &mut PgConnection, may_create: bool) -> Result<(), OpenError> {
    sqlx::query("SELECT pg_advisory_lock($1)")
        .bind(START_LOCK)
        .execute(&mut *connection)
        .await?;
    let row = sqlx::query(
        "SELECT to_regnamespace('unanimous') IS NOT NULL AS schema, to_regclass($1) IS NOT NULL AS log",
    )
    .bind(MIGRATIONS_TABLE)
    .fetch_one(&mut *connection)
    .await?;
    if !may_create && !row.try_get::<bool, _>("log")? {
        return Err(OpenError::Missing);
    }
    // Only where it is missing: the right to create one is asked for even if it is there.
    if !row.try_get::<bool, _>("schema")? {
        sqlx::query("CREATE SCHEMA IF NOT EXISTS unanimous")
            .execute(&mut *connection)
            .await?;
    }
    migrate(connection).await?;
    // At random, so that ids of another log are never taken for this one's.
    sqlx::query(sql::FIRST_IDENTITY)
        .bind(i64::from(rand::random::<u32>()))
        .execute(&mut *connection)
        .await?;
    sqlx::query("SELECT pg_advisory_unlock($1)")
        .bind(START_LOCK)
        .execute(connection)
        .await?;
    Ok(())
}

async fn migrate(connection: &mut PgConnection) -> Result<(), OpenError> {
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
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.dangerous_set_table_name(MIGRATIONS_TABLE);
    // The start's own lock is held; the migrator's would also wait for a service's migrations in the same database.
    migrator.set_locking(false);
    // Not `run`: its future can not be sent to another thread, for want of a general enough `Acquire`.
    match migrator.run_direct(None, connection, false).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(version)) => Err(OpenError::Newer { version }),
        Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) => {
            Err(error.into())
        }
        Err(other) => Err(OpenError::NotOurs(other)),
    }
}

fn no_answer(patience: Duration) -> LogError {
    LogError::Unavailable(format!("no answer within {patience:?}").into())
}

/// What is done with a connection to write. Each statement in it is a transaction of its own.
type Job<T> =
    Box<dyn for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, WriteError>> + Send>;

impl Core {
    /// Writes in a task of its own, so that a caller who goes away does not take the connection with it.
    async fn write<T: Send + 'static>(self: &Arc<Self>, job: Job<T>) -> Result<T, WriteError> {
        self.run(job, true).await
    }

    /// As [`Self::write`], of a job that may find nothing to write: then nothing was flushed, and it proves nothing about
    /// what others read.
    async fn write_perhaps<T: Send + 'static>(
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
        self.check_trusted()?;
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
                    self.distrust(cause.to_string());
                }
            }
        }
        written
    }

    /// Returns once all that a read saw which has returned by now is durable: after a forced write that began later,
    /// somebody's or our own.
    async fn prove_durable(self: &Arc<Self>) -> Result<(), LogError> {
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
    fn knows_durable(&self, node: Node, epoch: Epoch) -> bool {
        let epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        epochs.get(&node).is_some_and(|known| *known >= epoch)
    }

    fn know_durable(&self, node: Node, epoch: Epoch) {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = epochs.entry(node).or_insert(epoch);
        *known = epoch.max(*known);
    }

    async fn read<T>(
        &self,
        query: impl Future<Output = Result<T, sqlx::Error>> + Send,
    ) -> Result<T, LogError> {
        self.check_trusted()?;
        match timeout(self.patience, query).await {
            Ok(result) => self.noting(result),
            Err(_) => Err(no_answer(self.patience)),
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

/// A write that the server warned of is unclear (design rule 10).
fn clear_of(warnings: Vec<String>) -> Result<(), Cause> {
    for warning in warnings {
        tracing::warn!(%warning, "the decision log's server warns");
        if !notices::is_harmless(&warning) {
            return Err(format!("the server warned: {warning}").into());
        }
    }
    Ok(())
}

/// The server's error code.
pub(super) fn sqlstate(error: &sqlx::Error) -> Option<String> {
    let error = error
        .as_database_error()?
        .try_downcast_ref::<PgDatabaseError>()?;
    Some(error.code().to_owned())
}

/// Whether nothing may be believed any more after this error: data or an index is damaged. The rest somebody can help:
/// a server that ends with a failed fsync comes back from its own log.
pub(super) fn is_broken(sqlstate: &str) -> bool {
    matches!(sqlstate, "XX001" | "XX002")
}

/// Whether the server says of a statement, and of nothing else, that its values can not be stored: data exceptions,
/// violated constraints, exceeded limits, and what a trigger raises.
fn is_refusal(error: &sqlx::Error) -> bool {
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

/// What a write that passed the fence did.
struct Written {
    decisions: u64,
    /// How often each id was inserted: once, or not at all.
    inserted: BTreeMap<String, ()>,
}

impl Written {
    /// Whether it was this row that was inserted. Taken out when it is met: a second proposal of the same transaction
    /// was not inserted.
    fn has(&mut self, row: &Row) -> bool {
        self.inserted.remove(&row.uuid).is_some()
    }
}

/// A statement with what its fence asks for.
fn fenced(statement: &'static str, writer: &Writer) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(statement)
        .bind(i32::from(writer.node.0))
        .bind(i32::try_from(writer.epoch.number()).unwrap_or(i32::MAX))
        .bind(i64::try_from(writer.decisions_at_least).unwrap_or(i64::MAX))
        .bind(i64::from(writer.identity.0))
}

/// One statement. `None` when the fence let nothing through.
async fn write(
    connection: &mut PgConnection,
    statement: &'static str,
    writer: &Writer,
    rows: &[&Row],
    finishes: &Finishes,
) -> Result<Option<Written>, sqlx::Error> {
    let row = rows::bind(fenced(statement, writer), rows)
        .bind(&finishes.ids)
        .bind(&finishes.times)
        // Returns when the server is ready for the next statement, which is after the commit.
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let inserted: Vec<String> = row.try_get("inserted")?;
    Ok(Some(Written {
        decisions: row.try_get::<i64, _>("decisions")?.unsigned_abs(),
        inserted: inserted.into_iter().map(|id| (id, ())).collect(),
    }))
}

#[derive(Default)]
struct Finishes {
    ids: Vec<String>,
    times: Vec<i64>,
}

/// What rides along.
struct Riding {
    rows: Vec<Row>,
    finishes: Finishes,
}

impl Riding {
    fn of(appends: &Appends) -> Self {
        let mut rows = Vec::with_capacity(appends.records.len());
        for record in &appends.records {
            match Row::of(record) {
                Ok(row) => rows.push(row),
                Err(Refused { transaction, cause }) => lost(transaction, &*cause),
            }
        }
        let finishes = Finishes {
            ids: appends
                .finishes
                .iter()
                .map(|(id, _)| id.to_string())
                .collect(),
            times: appends.finishes.iter().map(|(_, at)| at.0).collect(),
        };
        Self { rows, finishes }
    }

    async fn append(
        &self,
        connection: &mut PgConnection,
        writer: &Writer,
    ) -> Result<(), WriteError> {
        let rows: Vec<_> = self.rows.iter().collect();
        match write(connection, sql::APPEND, writer, &rows, &self.finishes).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(shut(connection, writer).await),
            Err(error) if is_refusal(&error) => self.append_one_by_one(connection, writer).await,
            Err(error) => Err(LogError::from(error).into()),
        }
    }

    /// What the store refuses of them is history that is lost, and no decision.
    async fn append_one_by_one(
        &self,
        connection: &mut PgConnection,
        writer: &Writer,
    ) -> Result<(), WriteError> {
        let none = Finishes::default();
        for row in &self.rows {
            match write(connection, sql::APPEND, writer, &[row], &none).await {
                Ok(Some(_)) => {}
                Ok(None) => return Err(shut(connection, writer).await),
                Err(error) if is_refusal(&error) => lost(row.id, &error),
                Err(error) => return Err(LogError::from(error).into()),
            }
        }
        match write(connection, sql::APPEND, writer, &[], &self.finishes).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(shut(connection, writer).await),
            Err(error) => Err(LogError::from(error).into()),
        }
    }
}

fn lost(transaction: TransactionId, cause: &(dyn std::error::Error + 'static)) {
    tracing::error!(%transaction, error = %crate::telemetry::chain(cause), "an unforced record was refused");
}

/// Writes a batch, and tells what became of each row and the counter.
async fn decide(
    connection: &mut PgConnection,
    writer: &Writer,
    rows: &[Row],
    riding: &Riding,
) -> Result<(u64, Vec<Inserted>), WriteError> {
    let all: Vec<_> = rows.iter().chain(&riding.rows).collect();
    match write(connection, sql::DECIDE, writer, &all, &riding.finishes).await {
        Ok(Some(mut written)) => {
            let inserted = rows.iter().map(|row| {
                if written.has(row) {
                    Inserted::Yes
                } else {
                    Inserted::No
                }
            });
            let inserted = inserted.collect();
            Ok((written.decisions, inserted))
        }
        Ok(None) => Err(shut(connection, writer).await),
        Err(error) if is_refusal(&error) => {
            let decided = decide_one_by_one(connection, writer, rows).await?;
            riding.append_one_by_one(connection, writer).await?;
            Ok(decided)
        }
        Err(error) => Err(LogError::from(error).into()),
    }
}

/// One bad row fails alone (design rule 23). Each is a write of its own, and is counted as one.
async fn decide_one_by_one(
    connection: &mut PgConnection,
    writer: &Writer,
    rows: &[Row],
) -> Result<(u64, Vec<Inserted>), WriteError> {
    let none = Finishes::default();
    let mut decisions = writer.decisions_at_least;
    let mut inserted = Vec::with_capacity(rows.len());
    for row in rows {
        inserted.push(
            match write(connection, sql::DECIDE, writer, &[row], &none).await {
                Ok(Some(mut written)) => {
                    decisions = written.decisions;
                    if written.has(row) {
                        Inserted::Yes
                    } else {
                        Inserted::No
                    }
                }
                Ok(None) => return Err(shut(connection, writer).await),
                Err(error) if is_refusal(&error) => Inserted::Refused(error.into()),
                Err(error) => return Err(LogError::from(error).into()),
            },
        );
    }
    Ok((decisions, inserted))
}

/// What stands in the way of rows that were not inserted. It was committed before the write that met it, so that
/// write's own commit has made it durable.
async fn standings(
    connection: &mut PgConnection,
    rows: &[&Row],
) -> Result<std::vec::IntoIter<Found>, LogError> {
    if rows.is_empty() {
        return Ok(Vec::new().into_iter());
    }
    let ids: Vec<_> = rows.iter().map(|row| row.uuid.clone()).collect();
    let keys: Vec<_> = rows.iter().map(|row| row.key.clone()).collect();
    let answers = sqlx::query(sql::STANDING)
        .bind(ids)
        .bind(keys)
        .fetch_all(connection)
        .await?;
    if answers.len() != rows.len() {
        return Err(damaged(
            "the log answered for another number of proposals than were asked",
        ));
    }
    let of = |(answer, row): (&PgRow, &&Row)| {
        if answer.try_get::<Option<&str>, _>("outcome")?.is_some() {
            Ok(Found::Own(rows::decision(answer)?))
        } else if let Some(holder) = answer.try_get::<Option<&str>, _>("holder")? {
            Ok(Found::Holder(rows::transaction_id(holder)?))
        } else {
            // It was forgotten in between: a repeat will find the way free.
            let cause = format!(
                "what was in the way of transaction {} is gone by now",
                row.id
            );
            Err(LogError::Unavailable(cause.into()))
        }
    };
    let found: Result<Vec<_>, _> = answers.iter().zip(rows).map(of).collect();
    Ok(found?.into_iter())
}

async fn read_head(connection: &mut PgConnection, node: Node) -> Result<Head, LogError> {
    let query = sqlx::query(sql::HEAD).bind(i32::from(node.0));
    rows::head(&query.fetch_one(connection).await?)
}

/// An epoch that was just opened, by the row that has it.
async fn opened(
    connection: &mut PgConnection,
    node: Node,
    row: &PgRow,
) -> Result<Opened, LogError> {
    let epoch = rows::epoch(row.try_get("epoch")?)?;
    let decisions: i64 = row.try_get("decisions")?;
    // Read after the epoch: an identity that came in between has raised it once more, so that this life is fenced before
    // it begins, whichever of the two it has.
    let Head {
        identity, former, ..
    } = read_head(connection, node).await?;
    Ok(Opened {
        writer: Writer {
            node,
            epoch,
            identity,
            decisions_at_least: decisions.unsigned_abs(),
        },
        former,
    })
}

async fn why_not_adopted(
    connection: &mut PgConnection,
    node: Node,
) -> Result<NotAdopted, LogError> {
    let row = sqlx::query(sql::WHY_NOT_ADOPTED)
        .bind(i32::from(node.0))
        .fetch_one(connection)
        .await?;
    Ok(if row.try_get("went_back")? {
        NotAdopted::LogWentBack
    } else if row.try_get("known")? {
        NotAdopted::SeenLately
    } else {
        NotAdopted::UnknownNode
    })
}

fn milliseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// Why the fence let nothing through.
async fn shut(connection: &mut PgConnection, writer: &Writer) -> WriteError {
    match read_head(connection, writer.node).await {
        Ok(head) => match head.check(writer) {
            Err(shut) => shut.into(),
            // Somebody changed it back since, which nobody may. A repeat asks again.
            Ok(()) => WriteError::Unavailable(format!("the fence shut out {writer}").into()),
        },
        Err(error) => error.into(),
    }
}

/// In a transaction. What is read after the lock is seen as it is then.
async fn remove_participant(
    transaction: &mut PgConnection,
    writer: &Writer,
    name: &str,
) -> Result<Removal, WriteError> {
    let failed = |error: sqlx::Error| WriteError::from(LogError::from(error));
    sqlx::query(sql::LOCK_EPOCHS)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
    read_head(transaction, writer.node).await?.check(writer)?;
    for (statement, removal) in [
        (sql::IS_REGISTERED, Removal::Absent),
        (sql::IS_NAMED, Removal::InUse),
    ] {
        let answer: bool = sqlx::query_scalar(statement)
            .bind(name)
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed)?;
        if answer == (removal == Removal::InUse) {
            return Ok(removal);
        }
    }
    sqlx::query(sql::REMOVE_PARTICIPANT)
        .bind(name)
        .execute(transaction)
        .await
        .map_err(failed)?;
    Ok(Removal::Removed)
}

#[async_trait]
impl DecisionLog for PostgresLog {
    fn is_exclusive(&self) -> bool {
        false
    }

    async fn nodes(&self) -> Result<Vec<Node>, LogError> {
        let query = sqlx::query_scalar::<_, i32>(sql::NODES);
        let numbers = self.core.read(query.fetch_all(&self.core.readers)).await?;
        let node = |number| u16::try_from(number).map(Node);
        let nodes: Result<Vec<_>, _> = numbers.into_iter().map(node).collect();
        self.core.noting(parsed("node", nodes))
    }

    async fn open_epoch(&self, node: Node) -> Result<Opened, LogError> {
        let job: Job<Opened> = Box::new(move |connection| {
            Box::pin(async move {
                let row = sqlx::query(sql::OPEN_EPOCH)
                    .bind(i32::from(node.0))
                    .fetch_one(&mut *connection)
                    .await
                    .map_err(epochs_used_up)?;
                Ok(opened(connection, node, &row).await?)
            })
        });
        let opened = self.core.write(job).await.map_err(unfenced)?;
        self.core.know_durable(node, opened.writer.epoch);
        Ok(opened)
    }

    async fn mark(&self, writer: &Writer) -> Result<(), LogError> {
        let writer = *writer;
        let job: Job<()> = Box::new(move |connection| {
            Box::pin(async move {
                let marked = fenced(sql::MARK, &writer).execute(connection).await;
                marked.map_err(LogError::from)?;
                Ok(())
            })
        });
        self.core.write_perhaps(job).await.map_err(unfenced)
    }

    async fn adopt(
        &self,
        node: Node,
        unseen_for: Option<Duration>,
    ) -> Result<Result<Opened, NotAdopted>, LogError> {
        let job: Job<Result<Opened, NotAdopted>> = Box::new(move |connection| {
            Box::pin(async move {
                let row = sqlx::query(sql::ADOPT)
                    .bind(i32::from(node.0))
                    .bind(unseen_for.map(milliseconds))
                    .fetch_optional(&mut *connection)
                    .await
                    .map_err(epochs_used_up)?;
                Ok(match row {
                    Some(row) => Ok(opened(connection, node, &row).await?),
                    None => Err(why_not_adopted(connection, node).await?),
                })
            })
        });
        let adopted = self.core.write_perhaps(job).await.map_err(unfenced)?;
        if let Ok(opened) = &adopted {
            self.core.know_durable(node, opened.writer.epoch);
        }
        Ok(adopted)
    }

    async fn abandoned(&self, unseen_for: Duration) -> Result<Vec<Abandoned>, LogError> {
        let query = sqlx::query(sql::ABANDONED).bind(milliseconds(unseen_for));
        let rows = self.core.read(query.fetch_all(&self.core.readers)).await?;
        let abandoned = |row: &PgRow| {
            let node = parsed("node", u16::try_from(row.try_get::<i32, _>("node")?))?;
            let unseen_for: i64 = row.try_get("unseen_for")?;
            Ok(Abandoned {
                node: Node(node),
                unfinished: row.try_get::<i64, _>("unfinished")?.unsigned_abs(),
                unseen_for: Duration::from_millis(unseen_for.unsigned_abs()),
            })
        };
        let abandoned: Result<Vec<_>, LogError> = rows.iter().map(abandoned).collect();
        self.core.noting(abandoned)
    }

    async fn head(&self, node: Node) -> Result<Head, LogError> {
        let query = sqlx::query(sql::HEAD).bind(i32::from(node.0));
        let row = self.core.read(query.fetch_one(&self.core.readers)).await?;
        self.core.noting(rows::head(&row))
    }

    async fn decide(&self, writer: &Writer, batch: &Batch) -> Result<Decided, WriteError> {
        let writer = *writer;
        let (admitted, rows) = Admitted::of(&writer, &batch.proposals, Row::of);
        let riding = Riding::of(&batch.appends);

        let job: Job<(u64, Answers)> = Box::new(move |connection| {
            Box::pin(async move {
                let (decisions, inserted) = decide(connection, &writer, &rows, &riding).await?;
                let in_the_way = answers::in_the_way(&rows, &inserted);
                let found = standings(connection, &in_the_way).await?;
                Ok((decisions, answers::joined(&rows, inserted, found)))
            })
        });
        let (decisions, answers) = self.core.write(job).await?;

        Ok(Decided {
            standings: admitted.standings(&batch.proposals, answers)?,
            decisions,
        })
    }

    /// Forced too, so that `Ok` is durable without waiting for somebody else's write.
    async fn append(&self, writer: &Writer, appends: &Appends) -> Result<(), WriteError> {
        let writer = *writer;
        let riding = Riding::of(appends);
        let job: Job<()> = Box::new(move |connection| {
            Box::pin(async move { riding.append(connection, &writer).await })
        });
        self.core.write(job).await
    }

    async fn look_up(&self, id: TransactionId) -> Result<View, LogError> {
        let query = sqlx::query(sql::LOOK_UP)
            .bind(id.to_string())
            .bind(i32::from(id.node().0))
            .bind(id.to_bytes()[..6].to_vec());
        let row = self.core.read(query.fetch_one(&self.core.readers)).await?;
        let view = self.core.noting(rows::view(&row))?;
        // That a newer epoch fences the id's makes its absence an answer, so that must not be lost in a failover either.
        let unproven = view
            .epoch
            .filter(|newest| *newest > id.epoch() && !self.core.knows_durable(id.node(), *newest));
        if view.record.is_some() || unproven.is_some() {
            self.core.prove_durable().await?;
            if let Some(newest) = view.epoch {
                self.core.know_durable(id.node(), newest);
            }
        }
        Ok(view)
    }

    async fn by_key(&self, keys: &[IdempotencyKey]) -> Result<Vec<Option<Record>>, LogError> {
        let texts: Vec<_> = keys.iter().map(|key| key.as_str().to_owned()).collect();
        let query = sqlx::query(sql::BY_KEY).bind(texts);
        let rows = self.core.read(query.fetch_all(&self.core.readers)).await?;
        let mut found = BTreeMap::new();
        for row in &rows {
            let record = self.core.noting(rows::record(row))?;
            if let Some(claim) = &record.header.key {
                found.insert(claim.key.clone(), record);
            }
        }
        if !found.is_empty() {
            self.core.prove_durable().await?;
        }
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    /// What it finds was committed before the epoch that was opened before, and is durable by that one's commit.
    async fn unfinished(&self, node: Node) -> Result<Vec<Record>, LogError> {
        let query = sqlx::query(sql::UNFINISHED).bind(i32::from(node.0));
        let rows = self.core.read(query.fetch_all(&self.core.readers)).await?;
        self.core.noting(rows.iter().map(rows::record).collect())
    }

    async fn went_back(&self) -> Result<Option<String>, LogError> {
        let query = sqlx::query_scalar(sql::WENT_BACK);
        let why = query.fetch_optional(&self.core.readers);
        self.core.read(why).await
    }

    /// In the database itself, for there is nowhere else: no coordinator begins on it any more, wherever it runs and
    /// whenever it is started. But whoever puts the database back *once more* puts back the mark too, and so does who
    /// fails over to a server that did not have it yet. Against that nothing helps but a new identity after each
    /// restore. See `docs/adr/0003`.
    async fn remember_that_it_went_back(&self, why: &str) -> Result<(), LogError> {
        let why = why.to_owned();
        let job: Job<()> = Box::new(move |connection| {
            Box::pin(async move {
                sqlx::query(sql::REMEMBER_THAT_IT_WENT_BACK)
                    .bind(why)
                    .execute(connection)
                    .await
                    .map_err(LogError::from)?;
                Ok(())
            })
        });
        self.core.write(job).await.map_err(unfenced)
    }

    /// Of two coordinators that forget at once, one may be told of fewer than there are: the other one has the rest.
    async fn forget(
        &self,
        writer: &Writer,
        before: WallMillis,
        at_most: u32,
    ) -> Result<u64, WriteError> {
        let writer = *writer;
        let job: Job<u64> = Box::new(move |connection| {
            Box::pin(async move {
                let gone = fenced(sql::FORGET, &writer)
                    .bind(writer.identity.0.to_be_bytes().to_vec())
                    .bind(before.0)
                    .bind(i64::from(at_most))
                    .fetch_optional(&mut *connection)
                    .await
                    .map_err(LogError::from)?;
                match gone {
                    Some(row) => Ok(row
                        .try_get::<i64, _>(0)
                        .map_err(LogError::from)?
                        .unsigned_abs()),
                    None => Err(shut(connection, &writer).await),
                }
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
            sql::PAGE_BY_KEY
        } else if unfinished == Some(true) {
            sql::PAGE_UNFINISHED
        } else if !filter.labels.is_empty() {
            sql::PAGE_BY_LABEL
        } else if filter.participant.is_some() {
            sql::PAGE_BY_PARTICIPANT
        } else if outcome == Some(Outcome::Aborted) {
            sql::PAGE_ABORTED
        } else {
            sql::PAGE_BY_TIME
        };
        let (created_at, id) = match after {
            Some(Position { created_at, id }) => (created_at.0, id.to_string()),
            None => (i64::MAX, "ffffffff-ffff-ffff-ffff-ffffffffffff".to_owned()),
        };
        let labels = filter.labels.iter();
        let labels: Result<Vec<_>, _> =
            labels.map(|(key, value)| rows::label(key, value)).collect();
        let query = sqlx::query(sql)
            .bind(created_at)
            .bind(id)
            .bind(i64::from(limit))
            .bind(filter.participant.as_ref().map(ParticipantName::as_str))
            .bind(filter.idempotency_key.as_ref().map(IdempotencyKey::as_str))
            .bind(outcome.map(rows::outcome))
            .bind(unfinished)
            .bind(parsed("labels", labels)?);
        let rows = self.core.read(query.fetch_all(&self.core.readers)).await?;
        let records: Vec<_> = self
            .core
            .noting(rows.iter().map(rows::record).collect::<Result<_, _>>())?;
        if !records.is_empty() {
            self.core.prove_durable().await?;
        }
        Ok(records)
    }

    async fn participants(&self) -> Result<Vec<(ParticipantName, String)>, LogError> {
        let query = sqlx::query(sql::PARTICIPANTS);
        let rows = self.core.read(query.fetch_all(&self.core.readers)).await?;
        let participant = |row: &PgRow| {
            let name = parsed("name", row.try_get::<&str, _>("name")?.parse())?;
            Ok((name, row.try_get("url")?))
        };
        let participants: Result<Vec<_>, LogError> = rows.iter().map(participant).collect();
        self.core.noting(participants)
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
                let put = fenced(sql::PUT_PARTICIPANT, &writer)
                    .bind(name)
                    .bind(url)
                    .fetch_optional(&mut *connection)
                    .await
                    .map_err(LogError::from)?;
                match put {
                    Some(row) => Ok(row.try_get(0).map_err(LogError::from)?),
                    None => Err(shut(connection, &writer).await),
                }
            })
        });
        self.core.write(job).await
    }

    /// Holds off the decisions of all nodes meanwhile: those under way are seen, and those that wait come after it.
    async fn remove_participant(
        &self,
        writer: &Writer,
        name: &ParticipantName,
    ) -> Result<Removal, WriteError> {
        let (writer, name) = (*writer, name.to_string());
        let job: Job<Removal> = Box::new(move |connection| {
            Box::pin(async move {
                let mut transaction = connection.begin().await.map_err(LogError::from)?;
                let removal = remove_participant(&mut transaction, &writer, &name).await;
                let ended = match &removal {
                    Ok(_) => transaction.commit().await,
                    Err(_) => transaction.rollback().await,
                };
                ended.map_err(LogError::from)?;
                removal
            })
        });
        self.core.write_perhaps(job).await
    }

    async fn new_identity(&self) -> Result<IdentityChange, LogError> {
        let job: Job<IdentityChange> = Box::new(|connection| {
            Box::pin(async move {
                let change = async {
                    let mut transaction = connection.begin().await?;
                    sqlx::query(sql::LOCK_EPOCHS)
                        .execute(&mut *transaction)
                        .await?;
                    // Node 0 may have no row; the identities are there all the same.
                    let Head {
                        identity: former,
                        former: earlier,
                        ..
                    } = read_head(&mut transaction, Node(0)).await?;
                    let present = super::draw_identity(former, &earlier);
                    sqlx::query(sql::ADD_IDENTITY)
                        .bind(i64::from(present.0))
                        .execute(&mut *transaction)
                        .await?;
                    sqlx::query(sql::RAISE_EPOCHS)
                        .execute(&mut *transaction)
                        .await
                        .map_err(epochs_used_up)?;
                    sqlx::query(sql::DID_NOT_GO_BACK)
                        .execute(&mut *transaction)
                        .await?;
                    transaction.commit().await?;
                    Ok::<_, LogError>(IdentityChange { former, present })
                };
                Ok(change.await?)
            })
        });
        self.core.write(job).await.map_err(unfenced)
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
