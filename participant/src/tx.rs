//! [`Tx`]: the local transaction as the service's code sees it. It gives queries and no transaction control.
//!
//! The vote is proven, not assumed (design rule 5): a service that committed in the middle of its own branch would make
//! its work durable without the promise. So there is no method for it here, SQL text that says it is refused, and the
//! statement that writes the branch's row fails unless it runs in the very transaction that inserted or locked it.

use std::{
    error::Error as _,
    future::pending,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use tokio_postgres::{Row, error::SqlState, types::ToSql};
use unanimous_protocol::id::{BranchId, ParticipantName, TransactionId};

/// A kind of database client that a branch's work can run on. [`TokioPostgres`] is the only one.
pub trait Database: sealed::Sealed + Send + Sync + 'static {
    /// The connection.
    #[doc(hidden)]
    type Connection: Send + Sync;
}

/// Postgres by `tokio-postgres`, from a `deadpool-postgres` pool.
#[derive(Debug)]
pub enum TokioPostgres {}

impl Database for TokioPostgres {
    type Connection = deadpool_postgres::ClientWrapper;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::TokioPostgres {}
}

/// The local transaction of one message of one branch.
///
/// Statements are prepared once per connection. The methods take `&self`: queries whose futures are polled together
/// travel together.
#[derive(Debug)]
pub struct Tx<'a, D: Database = TokioPostgres> {
    connection: &'a D::Connection,
    branch: &'a BranchId,
    gate: Option<&'a Gate>,
}

/// Watches one branch's statements where its local transaction is shared with others ([`crate::lane`]).
///
/// A statement is atomic; between two of one branch its neighbours' may run, and then what the first one read need not
/// hold any more when the second one writes, whatever it has locked: locks do not keep a transaction from itself. So beside
/// neighbours a branch gets one statement, and whose code asks for another one stops there. So does, before it is sent, a
/// statement whose effect is not rows but the transaction or the session itself, which are its neighbours' too.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    one_only: bool,
    statements: AtomicU32,
    wants_more: AtomicBool,
    wants_its_own: AtomicBool,
    failed: AtomicBool,
}

impl Gate {
    /// For a branch that runs beside others.
    pub(crate) fn beside_others() -> Self {
        Self {
            one_only: true,
            ..Self::default()
        }
    }

    /// Whether its code asked for more than one statement, and waits for ever.
    pub(crate) fn wants_more(&self) -> bool {
        self.wants_more.load(Ordering::Relaxed)
    }

    /// Whether its code asked for what only a local transaction of its own can give, and waits for ever.
    pub(crate) fn wants_its_own(&self) -> bool {
        self.wants_its_own.load(Ordering::Relaxed)
    }

    /// Whether a statement of its failed by itself, and not because the local transaction had failed before.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    async fn pass(&self, sql: &str, word: &str) {
        if is_about_the_session(sql, word) {
            self.wants_its_own.store(true, Ordering::Relaxed);
            pending::<()>().await;
        }
        let before = self.statements.fetch_add(1, Ordering::Relaxed);
        if self.one_only && before > 0 {
            self.wants_more.store(true, Ordering::Relaxed);
            // The whole run is dropped, and run again with the branch in a turn of its own.
            pending::<()>().await;
        }
    }

    fn hear(&self, error: &tokio_postgres::Error) {
        if error.code() != Some(&SqlState::IN_FAILED_SQL_TRANSACTION) {
            self.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
pub enum TxError {
    /// The statement would begin, end or change the transaction, which belongs to the branch.
    #[error(
        "{0} is not for the code of a branch: the crate begins and ends the local transaction, because the branch's \
         row must be in it"
    )]
    TransactionControl(String),
    /// Postgres, or the way to it.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
}

impl TxError {
    /// The SQLSTATE, where Postgres answered.
    #[must_use]
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            Self::TransactionControl(_) => None,
            Self::Postgres(error) => error.code(),
        }
    }
}

/// The driver's own text is "db error"; what Postgres said is in its source.
pub(crate) fn describe(error: &tokio_postgres::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl<D: Database> Tx<'_, D> {
    /// The global transaction that this work is part of.
    #[must_use]
    pub fn transaction(&self) -> TransactionId {
        self.branch.transaction
    }

    /// The participant's name in this branch.
    #[must_use]
    pub fn participant(&self) -> &ParticipantName {
        &self.branch.participant
    }
}

impl<'a> Tx<'a, TokioPostgres> {
    pub(crate) fn new(
        connection: &'a deadpool_postgres::ClientWrapper,
        branch: &'a BranchId,
    ) -> Self {
        Self {
            connection,
            branch,
            gate: None,
        }
    }

    /// As [`Self::new`], in a local transaction that other branches share.
    pub(crate) fn gated(
        connection: &'a deadpool_postgres::ClientWrapper,
        branch: &'a BranchId,
        gate: &'a Gate,
    ) -> Self {
        Self {
            connection,
            branch,
            gate: Some(gate),
        }
    }

    /// Runs a statement and returns its rows.
    ///
    /// # Errors
    /// When Postgres refuses it, or can not be reached, or it is transaction control.
    pub async fn query(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, TxError> {
        let statement = self.statement(sql).await?;
        self.heard(self.connection.query(&statement, params).await)
    }

    /// Runs a statement that returns at most one row.
    ///
    /// # Errors
    /// As [`Self::query`]; also when there is more than one row.
    pub async fn query_opt(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, TxError> {
        let statement = self.statement(sql).await?;
        self.heard(self.connection.query_opt(&statement, params).await)
    }

    /// Runs a statement that returns exactly one row.
    ///
    /// # Errors
    /// As [`Self::query`]; also when there is not exactly one row.
    pub async fn query_one(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Row, TxError> {
        let statement = self.statement(sql).await?;
        self.heard(self.connection.query_one(&statement, params).await)
    }

    /// Runs a statement and returns how many rows it touched.
    ///
    /// # Errors
    /// As [`Self::query`].
    pub async fn execute(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<u64, TxError> {
        let statement = self.statement(sql).await?;
        self.heard(self.connection.execute(&statement, params).await)
    }

    async fn statement(&self, sql: &str) -> Result<tokio_postgres::Statement, TxError> {
        // A prepared statement is exactly one, so its first word says what it is.
        let word = first_word(sql);
        if TRANSACTION_CONTROL.contains(&word.as_str()) {
            return Err(TxError::TransactionControl(word));
        }
        if let Some(gate) = self.gate {
            gate.pass(sql, &word).await;
        }
        self.heard(self.connection.prepare_cached(sql).await)
    }

    fn heard<T>(&self, answer: Result<T, tokio_postgres::Error>) -> Result<T, TxError> {
        if let (Err(error), Some(gate)) = (&answer, self.gate) {
            gate.hear(error);
        }
        Ok(answer?)
    }
}

/// `SET` is among them because `SET LOCAL synchronous_commit = off` would take the promise's durability, and a plain
/// `SET` outlives the transaction on a connection of the pool; `set_config(…, true)` is there for a service's own settings.
const TRANSACTION_CONTROL: &[&str] = &[
    "ABORT",
    "BEGIN",
    "COMMIT",
    "DISCARD",
    "END",
    "PREPARE",
    "RELEASE",
    "RESET",
    "ROLLBACK",
    "SAVEPOINT",
    "SET",
    "START",
];

/// Settings, locks that outlive a rollback, cursors, tables of the session. A function that does such a thing inside can not
/// be seen.
fn is_about_the_session(sql: &str, word: &str) -> bool {
    const WORDS: &[&str] = &[
        "ALTER",
        "CLOSE",
        "COMMENT",
        "CREATE",
        "DEALLOCATE",
        "DECLARE",
        "DO",
        "DROP",
        "EXECUTE",
        "FETCH",
        "GRANT",
        "LISTEN",
        "LOAD",
        "LOCK",
        "MOVE",
        "REVOKE",
        "TRUNCATE",
        "UNLISTEN",
    ];
    const CALLS: &[&[u8]] = &[b"set_config", b"pg_advisory_", b"pg_try_advisory_"];
    let sql = sql.as_bytes();
    let begins_call = |at: usize| {
        let calls = |call: &&[u8]| {
            let place = sql.get(at..at + call.len());
            place.is_some_and(|place| place.eq_ignore_ascii_case(call))
        };
        matches!(sql[at], b's' | b'S' | b'p' | b'P') && CALLS.iter().any(calls)
    };
    WORDS.contains(&word) || (0..sql.len()).any(begins_call)
}

/// The first word of a statement in upper case, behind white space, comments and empty statements.
fn first_word(sql: &str) -> String {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.split_once('\n').map_or("", |(_, after)| after);
        } else if rest.starts_with("/*") {
            rest = behind_comment(rest);
        } else {
            break;
        }
    }
    rest.chars()
        .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
        .map(|c| c.to_ascii_uppercase())
        .collect()
}

/// Postgres' block comments nest.
fn behind_comment(sql: &str) -> &str {
    let mut depth = 0_u32;
    let mut rest = sql;
    while let Some(at) = rest.find(['/', '*']) {
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("/*") {
            depth += 1;
            rest = after;
        } else if let Some(after) = rest.strip_prefix("*/") {
            depth -= 1;
            rest = after;
            if depth == 0 {
                return rest;
            }
        } else {
            rest = &rest[1..];
        }
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_the_session_is_not_for_a_shared_transaction() {
        let is_it = |sql| is_about_the_session(sql, &first_word(sql));
        for sql in [
            "SELECT set_config('search_path', 'tenant', true)",
            "select PG_ADVISORY_XACT_LOCK(7)",
            "SELECT pg_try_advisory_lock($1)",
            "DECLARE c CURSOR FOR SELECT 1",
            "create temp table t (a int)",
            "LOCK TABLE accounts",
        ] {
            assert!(is_it(sql), "{sql}");
        }
        for sql in ["SELECT 1", "UPDATE accounts SET held = 1", ""] {
            assert!(!is_it(sql), "{sql}");
        }
    }

    #[test]
    fn transaction_control_is_found_behind_comments_and_in_any_case() {
        for sql in [
            "COMMIT",
            " commit;",
            "/* a /* nested */ one */ Commit",
            "-- a line\n;; rollback to savepoint x",
            "prepare transaction 'x'",
            "SET LOCAL synchronous_commit = off",
        ] {
            assert!(
                TRANSACTION_CONTROL.contains(&first_word(sql).as_str()),
                "{sql}"
            );
        }
        for sql in [
            "select 1",
            "UPDATE t SET a = 1",
            "WITH x AS (SELECT 1) SELECT * FROM x",
            "",
            "/* */",
        ] {
            assert!(
                !TRANSACTION_CONTROL.contains(&first_word(sql).as_str()),
                "{sql}"
            );
        }
    }
}
