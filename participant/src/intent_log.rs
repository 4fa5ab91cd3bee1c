//! What we promised, forced before we say yes: the rows of branches and keys, and the only SQL on them.
//!
//! A [`Local`] is the local transaction of one message. It begins with the branch's row inserted or locked, in one round
//! trip, and it ends in one of three ways: [`Local::commit`], which writes the row and commits in one round trip;
//! [`Local::roll_back`]; or dropped, and then its connection is closed and never goes back to the pool, because nobody
//! knows what it is in the middle of. Nothing here knows which message it serves.
//!
//! Durability: `SET LOCAL synchronous_commit` decides at the commit, behind whatever the service's code set, so a role or
//! a database that turned it off can not weaken a promise. Nothing in this crate cancels a commit; where somebody else
//! does while it waits for a synchronous standby, the connections of [`crate::watched`] make it unclear, and those of
//! another pool can not tell.

pub(crate) mod pruning;
pub(crate) mod together;

use std::{error::Error, pin::Pin, time::Duration};

use bytes::BytesMut;
use deadpool_postgres::Object;
use futures_util::future::{try_join_all, try_join4};
use tokio_postgres::{
    Row as SqlRow,
    error::SqlState,
    types::{FromSql, IsNull, ToSql, Type, accepts, to_sql_checked},
};
use unanimous_protocol::{
    branch::State,
    id::{BranchId, ParticipantName, TransactionId},
    keys::Age,
    message::{Refusal, RefusalCode, Session},
    operations::{BodyDigest, Operations},
    record::WallMillis,
    wire::{BranchState, Timestamp},
};

use crate::{
    crash,
    tx::{Tx, describe},
};

/// Why the intent log did not do what it was asked; the variants differ in what the caller does next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// Nothing was changed, and somebody else is at work on the same rows: ask again soon.
    #[error("another local transaction holds the rows that this one needs")]
    Busy(#[source] tokio_postgres::Error),
    /// Nothing was changed.
    #[error("the database does not answer: {}", describe(.0))]
    Unavailable(#[source] tokio_postgres::Error),
    /// A statement of the service's code failed before, and the code went on. Nothing was changed: Postgres takes no
    /// promise, and no commit, in a transaction that has failed.
    #[error("the local transaction had failed before its row could be written")]
    Broken(#[source] tokio_postgres::Error),
    /// No connection could be had; nothing was changed.
    #[error("no connection to the database: {0}")]
    NoConnection(String),
    /// Nothing came back in time; nothing was changed.
    #[error("the database did not answer in time")]
    NoAnswer,
    /// The commit went out and no clear answer came back: it may have happened or not. Whoever asks again finds out,
    /// from the row.
    #[error("the local transaction's commit has no clear outcome: {}", describe(.0))]
    Unclear(#[source] tokio_postgres::Error),
    /// As [`Self::Unclear`]: no answer to the commit at all.
    #[error("the local transaction's commit was not answered")]
    Silent,
    /// The row was dropped, below the low-water mark, while this message was about to lock it. Nothing was changed.
    #[error("the row of {0} was just dropped: its transaction has ended")]
    Pruned(BranchId),
    /// A row that this version can not read. Nothing was changed, and nothing will be before somebody looks.
    #[error("the row of {branch} can not be read: {what}")]
    Unreadable {
        /// Whose row.
        branch: BranchId,
        /// What is wrong with it.
        what: String,
    },
    /// Somebody deleted rows of keys that the branch holds. Nothing was changed, and nothing will be before somebody
    /// looks: what they guarded may have been changed by another branch meanwhile.
    #[error(
        "{branch} holds {rows} rows in unanimous.keys, and they are not all there any more: look at what they guarded, \
         then set keys_held in its row to the number of those that are"
    )]
    KeysLost {
        /// Whose keys.
        branch: BranchId,
        /// How many rows it took.
        rows: i32,
    },
    /// As [`Self::Unreadable`], where not even the branch's name can be read.
    #[error("the table unanimous.branches holds {0}")]
    Foreign(&'static str),
}

impl From<tokio_postgres::Error> for LogError {
    /// Of a statement before the commit: whatever happened, the local transaction is not committed.
    fn from(error: tokio_postgres::Error) -> Self {
        if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) {
            Self::Broken(error)
        } else if error.code().is_some_and(is_contention) {
            Self::Busy(error)
        } else {
            Self::Unavailable(error)
        }
    }
}

/// Codes that say "not now" rather than "not so".
fn is_contention(code: &SqlState) -> bool {
    [
        &SqlState::LOCK_NOT_AVAILABLE,
        &SqlState::T_R_DEADLOCK_DETECTED,
        &SqlState::T_R_SERIALIZATION_FAILURE,
        &SqlState::QUERY_CANCELED,
    ]
    .contains(&code)
}

/// How long the server lets a local transaction of ours be. They end what a frozen process of ours would hold for ever;
/// the process itself is quicker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// For a lock that another transaction holds.
    pub(crate) lock: Duration,
    /// For one statement, and for the pause before the next.
    pub(crate) statement: Duration,
}

/// A branch's row, as its message finds it.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// One of a branch without a row ([`State::without_row`]) where this message inserted it.
    pub(crate) state: State,
    /// As received.
    pub(crate) operations: Option<String>,
    /// Added by interactive work.
    pub(crate) added: Option<String>,
    /// The places of the operations that voted yes.
    pub(crate) voted_yes: Vec<i32>,
    /// How many rows of keys there are to delete with the outcome.
    pub(crate) keys_held: i32,
}

/// What a message leaves behind: written and committed in one round trip, in this order.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Undo what the service's code wrote in this local transaction, its keys included.
    pub(crate) roll_back_work: bool,
    /// Delete the branch's rows of keys, which must be so many.
    pub(crate) release_keys: i32,
    /// Write the row so.
    pub(crate) store: Option<Row>,
    /// Flushed, and replicated where the server is set up so, before the commit returns.
    pub(crate) forced: bool,
}

/// Who holds a key that a branch wants.
#[derive(Clone, Debug)]
pub(crate) enum Taken {
    /// All keys are ours.
    All {
        /// One for each key and name.
        rows: i32,
    },
    /// This key is another branch's.
    Held {
        /// Which one.
        key: String,
        /// `None` while its holder is still preparing: its row can not be seen yet.
        holder: Option<Age>,
    },
}

const INSERT: &str = "\
    INSERT INTO unanimous.branches (participant, transaction, state, operations, digest) \
    VALUES ($1, $2, 'working', $3, $4) ON CONFLICT DO NOTHING";

/// `txid_current` also sees to it that the transaction has an id, so that its commit writes a record and waits for it:
/// a repeated yes is told only behind a flush of everything it saw (design rule 8).
///
/// The mark is read here, in a later statement than the insert: under READ COMMITTED it sees every pruning that the
/// insert found done, or waited for (design rule 15).
const LOCK: &str = "\
    SELECT state, operations, added, digest, voted_yes, keys_held, refusal_code, refusal_reason, \
           txid_current(), pg_backend_pid(), (SELECT mark FROM unanimous.low_water WHERE prefix = $3) \
    FROM unanimous.branches WHERE participant = $1 AND transaction = $2 FOR UPDATE";

/// Fails, by a division, unless it writes exactly our row inside the very transaction that locked it (design rule 5):
/// the COMMIT that travels right behind it then rolls back.
const STORE: &str = "\
    WITH stored AS ( \
        UPDATE unanimous.branches \
        SET state = $3, added = $4, voted_yes = $5, keys_held = $6, refusal_code = $7, refusal_reason = $8, \
            since = clock_timestamp() \
        WHERE participant = $1 AND transaction = $2 AND txid_current() = $9 \
        RETURNING 1) \
    SELECT 1 / count(*) FROM stored";

/// Each key under each name of the service, so that it excludes processes that still run under a former one. In one
/// order everywhere, so that two branches that want the same keys do not wait for each other in a circle.
const TAKE_KEYS: &str = "\
    INSERT INTO unanimous.keys (participant, key, transaction, begun_at_ms, held_by) \
    SELECT ours.name, wanted.key, $2, $3, $5 \
    FROM unnest($4::text[]) AS wanted (key), unnest($1::text[]) AS ours (name) \
    ORDER BY wanted.key COLLATE \"C\", ours.name COLLATE \"C\" \
    ON CONFLICT DO NOTHING";

const HOLDER: &str = "\
    SELECT key, transaction, begun_at_ms FROM unanimous.keys \
    WHERE participant = ANY ($1) AND key = ANY ($2) AND (transaction, held_by) <> ($3, $4) ORDER BY key LIMIT 1";

/// By the branch that holds them, under whichever names it took them. Fails, by a division, unless they are all there:
/// a key that is not where it was left has been held by nobody, and the work that it guarded may have been touched.
const RELEASE_KEYS: &str = "\
    WITH released AS (DELETE FROM unanimous.keys WHERE transaction = $1 AND held_by = $2 RETURNING 1) \
    SELECT 1 / (count(*) = $3::int)::int FROM released";

const SAVEPOINT: &str = "SAVEPOINT unanimous_work";
const ROLL_BACK_WORK: &str = "ROLLBACK TO SAVEPOINT unanimous_work";

/// How long a key's insert waits for another branch that is just taking it, before the whole attempt steps back.
const KEY_LOCK: Duration = Duration::from_millis(50);

/// The local transaction of one message of one branch. See the module's head.
pub(crate) struct Local {
    /// `None` once the connection went back to the pool.
    connection: Option<Object>,
    branch: BranchId,
    transaction: i64,
    backend: Option<i32>,
    bounds: Bounds,
}

impl Local {
    /// Takes the connection; [`Self::begin`] uses it. Two steps, so that a caller who gives up waiting in the middle
    /// of the second still has something that knows what to do with the connection.
    pub(crate) fn on(connection: Object, branch: BranchId, bounds: Bounds) -> Self {
        Self {
            connection: Some(connection),
            branch,
            transaction: 0,
            backend: None,
            bounds,
        }
    }

    fn connection(&self) -> Result<&Object, LogError> {
        self.connection
            .as_ref()
            .ok_or_else(|| LogError::NoConnection("this local transaction has ended".to_owned()))
    }

    /// What the service's code gets to see.
    pub(crate) fn tx(&self) -> Result<Tx<'_>, LogError> {
        Ok(Tx::new(self.connection()?, &self.branch))
    }

    /// The server's process behind this connection, once begun.
    pub(crate) fn backend(&self) -> Option<i32> {
        self.backend
    }

    /// Begins, inserts the row or locks the one that is there (design rule 7: never lock a row that may not exist), and
    /// reads it: one round trip. `session` names the interactive work that this process holds of the branch.
    pub(crate) async fn begin(
        &mut self,
        operations: Option<&Operations>,
        session: Option<Session>,
    ) -> Result<Row, LogError> {
        let connection = self.connection()?;
        let insert = connection.prepare_cached(INSERT).await?;
        let lock = connection.prepare_cached(LOCK).await?;
        // For later: once a statement of the service has failed, none can be prepared, and a no must still be stored.
        connection.prepare_cached(STORE).await?;
        connection.prepare_cached(RELEASE_KEYS).await?;
        // READ COMMITTED whatever the server's default is: the locked row must be read as it is once it is locked.
        let begin = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = {}; \
             SET LOCAL statement_timeout = {statement}; \
             SET LOCAL idle_in_transaction_session_timeout = {statement}",
            millis(self.bounds.lock),
            statement = millis(self.bounds.statement),
        );
        let participant = self.branch.participant.as_str();
        let transaction = SqlId::of(self.branch.transaction);
        let prefix = pruning::sql_prefix(self.branch.transaction.prefix());
        let text = operations.map(Operations::text);
        let digest = operations.map(|operations| operations.digest().0.to_vec());
        // The futures are polled in this order first, and so the statements travel in this order.
        let (_, inserted, row, ()) = try_join4(
            connection.batch_execute(&begin),
            connection.execute(&insert, &[&participant, &transaction, &text, &digest]),
            connection.query_opt(&lock, &[&participant, &transaction, &prefix]),
            async {
                // Behind the row, in front of the work: a no takes the work back and leaves the row.
                match operations {
                    Some(_) => connection.batch_execute(SAVEPOINT).await,
                    None => Ok(()),
                }
            },
        )
        .await?;
        let Some(row) = row else {
            // There when this message would have inserted its own, and dropped before it was locked: whoever asks again
            // finds the mark.
            return Err(LogError::Pruned(self.branch.clone()));
        };
        self.transaction = row.try_get(8)?;
        self.backend = Some(row.try_get(9)?);
        if inserted == 1 {
            let low_water: Option<SqlId> = row.try_get(10)?;
            let low_water = low_water.map(SqlId::transaction).transpose()?;
            return Ok(Row {
                state: State::without_row(self.branch.transaction, session, low_water),
                operations: operations.map(|operations| operations.text().to_owned()),
                added: None,
                voted_yes: Vec::new(),
                keys_held: 0,
            });
        }
        read_row(&self.branch, &row)
    }

    /// Takes keys for this branch under all `names` of its service, all or none: unless the answer is [`Taken::All`],
    /// roll back.
    pub(crate) async fn take_keys(
        &self,
        names: &[String],
        keys: &[String],
        begun_at_ms: i64,
    ) -> Result<Taken, LogError> {
        let connection = self.connection()?;
        let take = connection.prepare_cached(TAKE_KEYS).await?;
        let holder = connection.prepare_cached(HOLDER).await?;
        let participant = self.branch.participant.as_str();
        let transaction = SqlId::of(self.branch.transaction);
        let brief = format!("SET LOCAL lock_timeout = {}", millis(KEY_LOCK));
        let as_before = format!("SET LOCAL lock_timeout = {}", millis(self.bounds.lock));
        let taking = try_join4(
            connection.batch_execute(&brief),
            connection.execute(
                &take,
                &[&names, &transaction, &begun_at_ms, &keys, &participant],
            ),
            connection.query_opt(&holder, &[&names, &keys, &transaction, &participant]),
            connection.batch_execute(&as_before),
        )
        .await;
        match taking {
            Ok((_, taken, _, ())) if taken == (keys.len() * names.len()) as u64 => {
                Ok(Taken::All { rows: taken as i32 })
            }
            Ok((_, _, Some(row), ())) => Ok(Taken::Held {
                key: row.try_get(0)?,
                holder: Some(Age {
                    begun_at_ms: row.try_get(2)?,
                    transaction: row.try_get::<_, SqlId>(1)?.transaction()?,
                }),
            }),
            // Its holder let go between the two statements.
            Ok((_, _, None, ())) => Ok(Taken::Held {
                key: keys.first().cloned().unwrap_or_default(),
                holder: None,
            }),
            Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(Taken::Held {
                key: keys.first().cloned().unwrap_or_default(),
                holder: None,
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// Carries the plan out and commits: one round trip. The answer may be given once this returns `Ok`, and not before.
    pub(crate) async fn commit(mut self, plan: Plan) -> Result<(), LogError> {
        type Step<'a> = Pin<Box<dyn Future<Output = Result<(), LogError>> + Send + 'a>>;
        let connection = self.connection()?;
        let participant = self.branch.participant.as_str();
        let transaction = SqlId::of(self.branch.transaction);
        let release = connection.prepare_cached(RELEASE_KEYS).await?;
        let store = connection.prepare_cached(STORE).await?;
        let commit = if plan.forced && !crash::is_weakened("synchronous-commit-off") {
            "SET LOCAL synchronous_commit = on; COMMIT"
        } else {
            "SET LOCAL synchronous_commit = off; COMMIT"
        };
        let mut steps: Vec<Step<'_>> = Vec::new();
        if plan.roll_back_work {
            steps.push(Box::pin(async {
                let rolled_back = connection.batch_execute(ROLL_BACK_WORK).await;
                rolled_back.map_err(at_commit)
            }));
        }
        if plan.release_keys > 0 {
            steps.push(Box::pin(async {
                let params: [&(dyn ToSql + Sync); 3] =
                    [&transaction, &participant, &plan.release_keys];
                let released = connection.query_one(&release, &params).await;
                released.map(drop).map_err(|error| {
                    if error.code() == Some(&SqlState::DIVISION_BY_ZERO) {
                        LogError::KeysLost {
                            branch: self.branch.clone(),
                            rows: plan.release_keys,
                        }
                    } else {
                        at_commit(error)
                    }
                })
            }));
        }
        if let Some(row) = &plan.store {
            let stored = Stored::of(&row.state)
                .ok_or_else(|| unreadable(&self.branch, "a state that is never stored"))?;
            steps.push(Box::pin(async move {
                let params: [&(dyn ToSql + Sync); 9] = [
                    &participant,
                    &transaction,
                    &stored.word,
                    &row.added,
                    &row.voted_yes,
                    &row.keys_held,
                    &stored.code,
                    &stored.reason,
                    &self.transaction,
                ];
                let stored = connection.query_one(&store, &params).await;
                stored.map(drop).map_err(at_commit)
            }));
        }
        // Nothing of ours fails silently in front of it: were the transaction broken, the statement above would have
        // said so, and this would stop at its SET.
        steps.push(Box::pin(async {
            let committed = connection.batch_execute(commit).await;
            committed.map_err(at_commit)
        }));
        let row = plan.store.as_ref().map(|row| &row.state);
        crash::before_commit(row);
        // The first failure in their order: what failed, and not what failed because of it.
        try_join_all(steps).await?;
        crash::after_commit(row);
        // Clean: the only way back into the pool but a clean rollback.
        self.connection = None;
        Ok(())
    }

    /// After a failure: a statement prepared before a schema change may have been what failed.
    pub(crate) fn forget_statements(&self) {
        if let Some(connection) = &self.connection {
            connection.statement_cache.clear();
        }
    }

    /// Rolls back, so that the connection can serve again. Where that does not work at once, the connection is closed.
    pub(crate) async fn roll_back(mut self, patience: Duration) -> Result<(), Self> {
        let Some(connection) = &self.connection else {
            return Ok(());
        };
        let rolled_back = tokio::time::timeout(patience, connection.batch_execute("ROLLBACK"));
        match rolled_back.await {
            Ok(Ok(())) => {
                self.connection = None;
                Ok(())
            }
            Ok(Err(_)) => Ok(()),
            Err(_elapsed) => Err(self),
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            drop(Object::take(connection));
        }
    }
}

/// Ends the server's process `backend`, and with it the local transaction in which a statement of ours hangs.
pub(crate) async fn end_backend(connection: &Object, backend: i32) -> Result<(), LogError> {
    connection
        .execute("SELECT pg_terminate_backend($1)", &[&backend])
        .await?;
    Ok(())
}

/// Of the statements that travel together with the commit.
fn at_commit(error: tokio_postgres::Error) -> LogError {
    if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) {
        LogError::Broken(error)
    } else {
        // An error with a SQLSTATE of a statement, COMMIT included, means that Postgres rolled back; but which of the
        // two it was is not told apart here, and "unknown" is always true.
        LogError::Unclear(error)
    }
}

fn millis(duration: Duration) -> u128 {
    // 0 would mean: for ever.
    duration.as_millis().clamp(1, 86_400_000)
}

fn unreadable(branch: &BranchId, what: &str) -> LogError {
    LogError::Unreadable {
        branch: branch.clone(),
        what: what.to_owned(),
    }
}

fn read_row(branch: &BranchId, row: &SqlRow) -> Result<Row, LogError> {
    let word: &str = row.try_get(0)?;
    let digest = || -> Result<BodyDigest, LogError> {
        let bytes: Option<&[u8]> = row.try_get(3)?;
        let digest = bytes.and_then(|bytes| bytes.try_into().ok());
        digest
            .map(BodyDigest)
            .ok_or_else(|| unreadable(branch, "its digest is not 32 bytes"))
    };
    let state = match word {
        "prepared" => State::Prepared { digest: digest()? },
        "committed" => State::Committed { digest: digest()? },
        "refused" => {
            let code: Option<&str> = row.try_get(6)?;
            let reason: Option<String> = row.try_get(7)?;
            State::Refused {
                digest: digest()?,
                refusal: Refusal {
                    code: RefusalCode::from_text(code.unwrap_or_default()),
                    reason: reason.unwrap_or_default(),
                },
            }
        }
        "aborted" => State::Aborted,
        "tombstone" => State::Tombstone,
        other => {
            let what =
                format!("state {other:?}: was it committed by something other than this crate?");
            return Err(unreadable(branch, &what));
        }
    };
    Ok(Row {
        state,
        operations: row.try_get(1)?,
        added: row.try_get(2)?,
        voted_yes: row.try_get(4)?,
        keys_held: row.try_get(5)?,
    })
}

/// A state as its row spells it.
struct Stored<'a> {
    word: &'static str,
    code: Option<&'static str>,
    reason: Option<&'a str>,
}

impl<'a> Stored<'a> {
    /// `None` for a state that is never stored.
    fn of(state: &'a State) -> Option<Self> {
        let plain = |word| Self {
            word,
            code: None,
            reason: None,
        };
        match state {
            State::Prepared { .. } => Some(plain("prepared")),
            State::Committed { .. } => Some(plain("committed")),
            State::Refused { refusal, .. } => Some(Self {
                word: "refused",
                code: Some(refusal.code.as_str()),
                reason: Some(&refusal.reason),
            }),
            State::Aborted => Some(plain("aborted")),
            State::Tombstone => Some(plain("tombstone")),
            State::Absent
            | State::Active { .. }
            | State::Working { .. }
            | State::Applying { .. }
            | State::Undoing
            | State::Pruned { .. } => None,
        }
    }
}

/// A branch as an operator or a coordinator looks at it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) branch: BranchId,
    pub(crate) state: BranchState,
    pub(crate) since: Timestamp,
}

const LOOK: &str = "\
    SELECT participant, transaction, state, (extract(epoch FROM since) * 1000)::bigint \
    FROM unanimous.branches WHERE transaction = $1 AND participant = ANY ($2) \
    ORDER BY array_position($2, participant) LIMIT 1";

/// The branch of this transaction; where it has one under a present and a former name, the present one's.
pub(crate) async fn look(
    connection: &Object,
    transaction: TransactionId,
    names: &[String],
) -> Result<Option<Seen>, LogError> {
    let statement = connection.prepare_cached(LOOK).await?;
    let row = connection
        .query_opt(&statement, &[&SqlId::of(transaction), &names])
        .await?;
    row.as_ref().map(read_seen).transpose()
}

const LIST: &str = "\
    SELECT participant, transaction, state, (extract(epoch FROM since) * 1000)::bigint \
    FROM unanimous.branches \
    WHERE participant = ANY ($1) AND state = ANY ($2) AND (transaction, participant) > ($3, $4) \
    ORDER BY transaction, participant LIMIT $5";

/// As [`LIST`], with the state as a constant: only so does Postgres use the index of what is in doubt.
const LIST_IN_DOUBT: &str = "\
    SELECT participant, transaction, state, (extract(epoch FROM since) * 1000)::bigint \
    FROM unanimous.branches \
    WHERE participant = ANY ($1) AND state = 'prepared' AND (transaction, participant) > ($2, $3) \
      AND ($4::float8 IS NULL OR since > clock_timestamp() \
           OR since <= clock_timestamp() - $4::float8 * interval '1 millisecond') \
    ORDER BY transaction, participant LIMIT $5";

/// A place in the order of branches: everything after it is still to come.
#[derive(Clone, Debug)]
pub(crate) struct After {
    pub(crate) transaction: SqlId,
    pub(crate) participant: String,
}

impl After {
    /// Before all of them.
    pub(crate) fn start() -> Self {
        Self {
            transaction: SqlId::NIL,
            participant: String::new(),
        }
    }

    /// Behind all branches of this transaction.
    pub(crate) fn transaction(transaction: TransactionId) -> Self {
        Self {
            transaction: SqlId::of(transaction),
            // Sorts behind every name, whatever the database's collation makes of letters.
            participant: "\u{10ffff}".to_owned(),
        }
    }

    /// Right behind this branch.
    pub(crate) fn branch(branch: &BranchId) -> Self {
        Self {
            transaction: SqlId::of(branch.transaction),
            participant: branch.participant.to_string(),
        }
    }
}

impl After {
    /// Whether `branch` is still to come.
    pub(crate) fn is_before(&self, branch: &BranchId) -> bool {
        let place = (&self.transaction.0, self.participant.as_str());
        place < (&branch.transaction.to_bytes(), branch.participant.as_str())
    }
}

/// Up to `limit` branches in the order of their ids; of this state, or of all.
pub(crate) async fn list(
    connection: &Object,
    names: &[String],
    state: Option<BranchState>,
    after: &After,
    limit: i64,
) -> Result<Vec<Seen>, LogError> {
    let words: &[&str] = match state {
        None => &["prepared", "committed", "refused", "aborted", "tombstone"],
        Some(BranchState::Prepared) => {
            return in_doubt(connection, names, after, None, limit).await;
        }
        Some(BranchState::Committed) => &["committed"],
        Some(BranchState::Aborted) => &["refused", "aborted", "tombstone"],
        // Interactive work is in memory, and a read-only vote is not stored.
        Some(BranchState::Active | BranchState::ReadOnly) => return Ok(Vec::new()),
    };
    let statement = connection.prepare_cached(LIST).await?;
    let params: [&(dyn ToSql + Sync); 5] = [
        &names,
        &words,
        &after.transaction,
        &after.participant,
        &limit,
    ];
    let rows = connection.query(&statement, &params);
    rows.await?.iter().map(read_seen).collect()
}

/// Up to `limit` branches that have been in doubt for at least `longer_than`, in the order of their ids; without it, all
/// that are. One that is in doubt since later than now has been for long enough as well: the database's clock was set
/// back, and nobody's doubt may last until it has caught up (design rule 13).
pub(crate) async fn in_doubt(
    connection: &Object,
    names: &[String],
    after: &After,
    longer_than: Option<Duration>,
    limit: i64,
) -> Result<Vec<Seen>, LogError> {
    let statement = connection.prepare_cached(LIST_IN_DOUBT).await?;
    let longer_than_ms = longer_than.map(|longer_than| longer_than.as_millis() as f64);
    let params: [&(dyn ToSql + Sync); 5] = [
        &names,
        &after.transaction,
        &after.participant,
        &longer_than_ms,
        &limit,
    ];
    let rows = connection.query(&statement, &params);
    rows.await?.iter().map(read_seen).collect()
}

fn read_seen(row: &SqlRow) -> Result<Seen, LogError> {
    let transaction = row.try_get::<_, SqlId>(1)?.transaction()?;
    let participant: &str = row.try_get(0)?;
    let participant: ParticipantName = participant
        .parse()
        .map_err(|_| LogError::Foreign("a participant that is no name"))?;
    let branch = BranchId {
        transaction,
        participant,
    };
    let word: &str = row.try_get(2)?;
    let state = match word {
        "prepared" => BranchState::Prepared,
        "committed" => BranchState::Committed,
        "refused" | "aborted" | "tombstone" => BranchState::Aborted,
        other => return Err(unreadable(&branch, &format!("state {other:?}"))),
    };
    Ok(Seen {
        branch,
        state,
        since: Timestamp(WallMillis(row.try_get(3)?)),
    })
}

/// A transaction id as Postgres' `uuid`, whose order is the ids' own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SqlId([u8; 16]);

impl SqlId {
    /// Before every transaction's.
    const NIL: Self = Self([0; 16]);

    fn of(transaction: TransactionId) -> Self {
        Self(transaction.to_bytes())
    }

    fn transaction(self) -> Result<TransactionId, LogError> {
        TransactionId::from_bytes(self.0)
            .map_err(|_| LogError::Foreign("a transaction that is no id of a coordinator"))
    }
}

impl ToSql for SqlId {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    accepts!(UUID);
    to_sql_checked!();
}

impl<'a> FromSql<'a> for SqlId {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(raw.try_into()?))
    }

    accepts!(UUID);
}
