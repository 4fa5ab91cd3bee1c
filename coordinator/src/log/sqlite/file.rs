//! The file, before it is a log: found, locked, created, recognised, switched to WAL, migrated.

use std::{
    borrow::Cow,
    fs::{File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
};

use sqlx::{
    ConnectOptions as _, Row as _, SqliteConnection,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::SqliteConnectOptions,
};

use super::{
    BUSY_TIMEOUT,
    codes::{code, sqlite_code},
};
use crate::log::LogError;

/// "UNAN": tells our files from any other SQLite file (`PRAGMA application_id`).
const APPLICATION_ID: i32 = 0x554e_414e;

/// The oldest library that does not corrupt a WAL when it is reset while another connection checkpoints.
const LIBRARY_VERSION_MIN: (u32, u32, u32) = (3, 51, 3);

const MIGRATIONS: &[(i64, &str, &str)] = &[
    (
        1,
        "decision log",
        include_str!("../../../migrations/sqlite/0001_decision_log.sql"),
    ),
    (
        2,
        "forgetting",
        include_str!("../../../migrations/sqlite/0002_forgetting.sql"),
    ),
    (
        3,
        "participants",
        include_str!("../../../migrations/sqlite/0003_participants.sql"),
    ),
    (
        4,
        "history",
        include_str!("../../../migrations/sqlite/0004_history.sql"),
    ),
];

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

/// The file that `path` means, so that two paths to one file meet at one lock.
pub(super) fn resolved(path: &Path) -> Result<PathBuf, OpenError> {
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

pub(super) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Makes the names in the file's directory durable.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    path.parent()
        .map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

/// A file beside the log that can not be read or written: the log itself is not concerned.
pub(super) fn beside_failed(error: io::Error) -> LogError {
    LogError::Unavailable(error.into())
}

/// Takes `PATH.lock`, without waiting. The lock ends with the process, however it ends.
pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
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
pub(super) fn create(path: &Path) -> Result<(), OpenError> {
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
pub(super) fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// What every connection has.
pub(super) fn options(path: &Path) -> SqliteConnectOptions {
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
pub(super) fn not_a_database(path: &Path, error: sqlx::Error) -> OpenError {
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

pub(super) async fn check_library(
    path: &Path,
    connection: &mut SqliteConnection,
) -> Result<(), OpenError> {
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
pub(super) async fn claim(path: &Path, connection: &mut SqliteConnection) -> Result<(), OpenError> {
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

pub(super) async fn enter_wal(
    path: &Path,
    connection: &mut SqliteConnection,
) -> Result<(), OpenError> {
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

pub(super) async fn migrate(
    path: &Path,
    connection: &mut SqliteConnection,
) -> Result<(), OpenError> {
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
pub(super) async fn checkpoint(
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
