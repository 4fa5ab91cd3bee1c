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

mod batch;
mod notices;
mod opening;
mod rows;
mod session;
mod sql;
#[cfg(test)]
pub(super) mod tests;
mod writing;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex as StdMutex, atomic::AtomicU64},
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
};
use tokio::{sync::Mutex, time::timeout};
use unanimous_protocol::{
    id::{Node, ParticipantName, TransactionId},
    life::{Head, Writer},
    record::{IdempotencyKey, Outcome, Record, WallMillis},
};

pub use self::opening::OpenError;
pub(super) use self::writing::{is_broken, sqlstate};
use self::{
    batch::{Riding, decide, fenced, standings},
    notices::Ears,
    opening::prepare,
    rows::Row,
    session::connect_to_write,
    writing::{Core, Job, clear_of, is_refusal, no_answer},
};
use super::{
    Abandoned, Appends, Batch, Decided, DecisionLog, Filter, IdentityChange, LogError, NotAdopted,
    Opened, Position, Removal, View, WriteError,
    answers::{self, Admitted, Answers},
    history::meant,
    parsed,
    trust::Trust,
    unfenced,
};

/// How long we wait for the server before we call it unavailable. The driver has no timeout for a server that vanished.
const PATIENCE: Duration = Duration::from_secs(10);

/// Reads are short.
const READERS_MAX: u32 = 8;

/// A [`DecisionLog`] in a Postgres database, in the schema `unanimous`.
pub struct PostgresLog {
    core: Arc<Core>,
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
                trust: Trust::default(),
            }),
        })
    }
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
        self.core.trust.noting(parsed("node", nodes))
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
        self.core.trust.noting(abandoned)
    }

    async fn head(&self, node: Node) -> Result<Head, LogError> {
        let query = sqlx::query(sql::HEAD).bind(i32::from(node.0));
        let row = self.core.read(query.fetch_one(&self.core.readers)).await?;
        self.core.trust.noting(rows::head(&row))
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
                Ok((decisions, answers::joined(&rows, inserted, found)?))
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
        let view = self.core.trust.noting(rows::view(&row))?;
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
            let record = self.core.trust.noting(rows::record(row))?;
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
        self.core
            .trust
            .noting(rows.iter().map(rows::record).collect())
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
            .trust
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
        self.core.trust.noting(participants)
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
