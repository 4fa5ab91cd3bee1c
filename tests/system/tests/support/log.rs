//! The decision log of a coordinator under test: a file or a database of its own, and a look into it as an operator
//! with `sqlite3` or `psql` would have.

use std::path::{Path, PathBuf};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, PgConnection};
use tempfile::TempDir;
use unanimous_lab::{scratch, testing};
use unanimous_protocol::id::TransactionId;

/// What kind of log a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    Sqlite,
    Postgres,
}

/// A test for each kind of log, of every claim named: a function that takes [`On`].
macro_rules! on_both_logs {
    ($($claim:ident)*) => {
        mod on_sqlite {
            $(
                #[tokio::test]
                async fn $claim() {
                    super::$claim($crate::support::On::Sqlite).await;
                }
            )*
        }
        mod on_postgres {
            $(
                #[tokio::test]
                async fn $claim() {
                    super::$claim($crate::support::On::Postgres).await;
                }
            )*
        }
    };
}

pub(crate) use on_both_logs;

/// Where a decision log is.
#[derive(Debug)]
pub(crate) enum Log {
    Sqlite {
        path: PathBuf,
        _directory: Option<TempDir>,
    },
    /// The URL of a database.
    Postgres(String),
}

impl Log {
    /// A new one that nobody else uses.
    pub(crate) async fn fresh(on: On) -> Self {
        match on {
            On::Sqlite => {
                let directory = scratch::directory("coordinator").expect("a directory can be made");
                Self::Sqlite {
                    path: directory.path().join("log.sqlite"),
                    _directory: Some(directory),
                }
            }
            On::Postgres => {
                let made = testing::fresh_database(1).await;
                Self::Postgres(made.expect("a database can be made"))
            }
        }
    }

    /// A file that is there, or will be.
    pub(crate) fn at(path: &Path) -> Self {
        Self::Sqlite {
            path: path.to_owned(),
            _directory: None,
        }
    }

    /// The one of somebody else's coordinator, by what that was given as `--log`.
    pub(crate) fn of_url(url: &str) -> Self {
        match url.strip_prefix("sqlite:") {
            Some(path) => Self::at(Path::new(path)),
            None => Self::Postgres(url.to_owned()),
        }
    }

    /// For `--log`.
    pub(crate) fn url(&self) -> String {
        match self {
            Self::Sqlite { path, .. } => format!("sqlite:{}", path.display()),
            Self::Postgres(url) => url.clone(),
        }
    }

    /// The file of a log that is one.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Sqlite { path, .. } => path,
            Self::Postgres(url) => panic!("{url} is no file"),
        }
    }

    /// How many decision writes were made in it, over all lives.
    pub(crate) async fn decision_writes(&self) -> i64 {
        const SUM: &str = "SELECT CAST(sum(decisions) AS bigint) FROM epoch";
        let writes = match self {
            Self::Sqlite { path, .. } => {
                let mut connection = open(path).await;
                sqlx::query_scalar(SUM).fetch_one(&mut connection).await
            }
            Self::Postgres(url) => {
                let mut connection = connect(url).await;
                sqlx::query_scalar(SUM).fetch_one(&mut connection).await
            }
        };
        writes.expect("the log counts its decision writes")
    }

    /// From now on a write that decides the transaction with this key waits, until what this returns is dropped: in SQLite
    /// for the right to write, in Postgres in the midst of its statement.
    pub(crate) async fn hold_decision(&self, key: &str) -> HeldWrites {
        // Whoever inserts another record with the key waits to see what becomes of this one.
        const TAKE_THE_KEY: &str = "INSERT INTO record (id, node, idempotency_key, request, labels, created_at, \
            deadline, outcome, branches, second_phase, decided_at) \
            VALUES (gen_random_uuid(), 0, $1, decode(repeat('00', 32), 'hex'), '[]', 0, 0, 'committed', '[]', false, 0)";
        let hold = "the log's writers can be held";
        match self {
            Self::Sqlite { path, .. } => {
                let mut connection = open(path).await;
                let begun = sqlx::query("BEGIN IMMEDIATE").execute(&mut connection);
                begun.await.expect(hold);
                HeldWrites::Sqlite {
                    _connection: connection,
                }
            }
            Self::Postgres(url) => {
                let mut connection = connect(url).await;
                let begun = sqlx::query("BEGIN").execute(&mut connection);
                begun.await.expect(hold);
                let taken = sqlx::query(TAKE_THE_KEY).bind(key).execute(&mut connection);
                taken.await.expect(hold);
                HeldWrites::Postgres {
                    _connection: connection,
                }
            }
        }
    }

    /// How many local transactions wait for a lock in the database.
    pub(crate) async fn waiting_for_a_lock(&self) -> i64 {
        const WAITING: &str = "SELECT count(*) FROM pg_stat_activity \
            WHERE wait_event_type = 'Lock' AND datname = current_database()";
        let Self::Postgres(url) = self else {
            panic!("only a server knows");
        };
        let waiting = sqlx::query_scalar(WAITING);
        let waiting = waiting.fetch_one(&mut connect(url).await).await;
        waiting.expect("a server tells who waits")
    }

    /// Removes a transaction's record, as a fault of the disk or of a hand would.
    pub(crate) async fn remove_record(&self, transaction: TransactionId) {
        let removed = match self {
            Self::Sqlite { path, .. } => {
                let mut connection = open(path).await;
                let remove = sqlx::query("DELETE FROM record WHERE id = ?");
                let bytes = transaction.to_bytes().to_vec();
                let done = remove.bind(bytes).execute(&mut connection).await;
                done.expect("the log can be changed").rows_affected()
            }
            Self::Postgres(url) => {
                let mut connection = connect(url).await;
                let remove = sqlx::query("DELETE FROM record WHERE id = $1::uuid");
                let done = remove.bind(transaction.to_string());
                let done = done.execute(&mut connection).await;
                done.expect("the log can be changed").rows_affected()
            }
        };
        assert_eq!(removed, 1, "{transaction} had a record");
    }

    /// Changes it behind the coordinator's back, as a restored backup or another coordinator would. Tables have the same
    /// names in both kinds.
    pub(crate) async fn change(&self, statement: &'static str) {
        let changed = match self {
            Self::Sqlite { path, .. } => {
                let mut connection = open(path).await;
                let done = sqlx::query(statement).execute(&mut connection).await;
                done.expect("the log can be changed").rows_affected()
            }
            Self::Postgres(url) => {
                let mut connection = connect(url).await;
                let done = sqlx::query(statement).execute(&mut connection).await;
                done.expect("the log can be changed").rows_affected()
            }
        };
        assert!(changed > 0, "{statement} changed nothing");
    }
}

/// A local transaction that holds what a decision write needs. Dropped, it is rolled back.
pub(crate) enum HeldWrites {
    Sqlite { _connection: SqliteConnection },
    Postgres { _connection: PgConnection },
}

async fn open(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(std::time::Duration::from_secs(10));
    SqliteConnection::connect_with(&options)
        .await
        .expect("the log can be opened")
}

pub(crate) async fn connect(url: &str) -> PgConnection {
    let mut connection = PgConnection::connect(url)
        .await
        .expect("the log's server answers");
    sqlx::query("SET search_path TO unanimous")
        .execute(&mut connection)
        .await
        .expect("the log's schema can be named");
    connection
}
