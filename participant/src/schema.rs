//! The crate's own tables: migrated at start, in a schema `unanimous` of their own, so that they collide with no
//! application's. And what the server must be like before a promise on it means anything.

use deadpool_postgres::Object;

use crate::{crash, tx::describe};

/// Numbered from 1. What was released is never changed, only followed.
const MIGRATIONS: &[&str] = &[
    include_str!("../migrations/0001_branches.sql"),
    include_str!("../migrations/0002_branches_by_id_once.sql"),
];

/// Held while migrating: several processes of one service start at the same time. "unanimous" in ASCII, cut to 8 bytes.
const MIGRATION_LOCK: i64 = i64::from_be_bytes(*b"unanimou");

/// Why the database can not hold an intent log.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// It does not answer, or refuses what the migration needs.
    #[error("the intent log's tables can not be made ready: {}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
    /// Somebody migrated it further.
    #[error(
        "the schema `unanimous` in this database has version {found}, this program knows versions up to {known}: \
         start the newer program that migrated it"
    )]
    Newer {
        /// The database's.
        found: i32,
        /// Ours.
        known: i32,
    },
    /// A setting under which a promise can be lost.
    #[error("{0}")]
    Server(String),
}

/// Brings the schema to this program's version, in one transaction.
pub(crate) async fn migrate(connection: &mut Object, name: &str) -> Result<(), SchemaError> {
    let transaction = connection.transaction().await?;
    transaction
        .execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK])
        .await?;
    // Asked for first: `IF NOT EXISTS` still needs the right to create, which a careful service does not have.
    let there = transaction
        .query_one(
            "SELECT to_regclass('unanimous.participant_schema') IS NOT NULL",
            &[],
        )
        .await?;
    if !there.try_get::<_, bool>(0)? {
        transaction
            .batch_execute(
                "CREATE SCHEMA IF NOT EXISTS unanimous; \
                 CREATE TABLE unanimous.participant_schema ( \
                     version int PRIMARY KEY, migrated_at timestamptz NOT NULL DEFAULT clock_timestamp())",
            )
            .await?;
    }
    let found: i32 = transaction
        .query_one(
            "SELECT coalesce(max(version), 0) FROM unanimous.participant_schema",
            &[],
        )
        .await?
        .try_get(0)?;
    let known = MIGRATIONS.len() as i32;
    if found > known {
        return Err(SchemaError::Newer { found, known });
    }
    for (version, sql) in (1_i32..).zip(MIGRATIONS) {
        if version > found {
            transaction.batch_execute(sql).await?;
            transaction
                .execute(
                    "INSERT INTO unanimous.participant_schema (version) VALUES ($1)",
                    &[&version],
                )
                .await?;
            tracing::info!(participant = name, version, "migrated the intent log");
        }
    }
    crash::point("migrate-before");
    transaction.commit().await?;
    crash::point("migrate-after");
    Ok(())
}

/// Refuses a server that forgets what it was told to keep.
pub(crate) async fn check_server(connection: &Object) -> Result<(), SchemaError> {
    let row = connection
        .query_one(
            "SELECT current_setting('fsync'), current_setting('full_page_writes'), pg_is_in_recovery(), \
                    current_setting('transaction_read_only')",
            &[],
        )
        .await?;
    let refuse = |text: &str| Err(SchemaError::Server(text.to_owned()));
    if row.try_get::<_, &str>(0)? != "on" {
        return refuse(
            "the Postgres server runs with fsync = off: after a power failure it has forgotten the yes that other \
             services relied on. Set fsync = on in postgresql.conf and restart the server",
        );
    }
    if row.try_get::<_, bool>(2)? {
        return refuse(
            "the Postgres server is a standby and takes no writes: give the participant's pool the address of the \
             primary",
        );
    }
    if row.try_get::<_, &str>(3)? == "on" {
        return refuse(
            "transactions on this Postgres server are read-only by default (default_transaction_read_only): the \
             participant's role must be able to write",
        );
    }
    if row.try_get::<_, &str>(1)? != "on" {
        // Right on a file system that never tears a page, so not refused.
        tracing::warn!(
            "the Postgres server runs with full_page_writes = off: unless its file system never tears a page, a power \
             failure can destroy what this participant promised"
        );
    }
    Ok(())
}
