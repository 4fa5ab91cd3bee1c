//! Opening: what a database must be like to hold a decision log, and its schema.

use std::borrow::Cow;

use sqlx::{
    PgConnection, Row as _,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use super::{session::ConnectError, sql};
use crate::log::LogError;

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

/// Makes the schema what this program knows, and gives a new log its identity. Whoever starts at the same moment waits.
pub(super) async fn prepare(
    connection: &mut PgConnection,
    may_create: bool,
) -> Result<(), OpenError> {
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
