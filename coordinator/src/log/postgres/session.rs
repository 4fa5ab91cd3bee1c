//! What a connection must be before a decision may go through it.

use std::time::Duration;

use sqlx::{ConnectOptions as _, PgConnection, Row as _, postgres::PgConnectOptions};

use super::{OpenError, notices::Ears, sqlstate};
use crate::log::LogError;

/// The oldest server whose settings and functions are what is relied on here.
const SERVER_VERSION_MIN: i32 = 140_000;

/// Why a connection can not be had.
pub(super) enum ConnectError {
    /// Perhaps a moment later.
    Unavailable(LogError),
    /// Not before somebody changes something.
    Unfit(OpenError),
}

impl From<sqlx::Error> for ConnectError {
    fn from(error: sqlx::Error) -> Self {
        if is_untrusted(&error) {
            return Self::Unfit(OpenError::Untrusted(error));
        }
        // Who may log in (28), no such database (3D), what the role may do and what is there (42).
        match sqlstate(&error).as_deref().map(|state| &state[..2]) {
            Some("28" | "3D" | "42") => Self::Unfit(OpenError::Refused(error)),
            Some(_) | None => Self::Unavailable(error.into()),
        }
    }
}

/// Whether it is TLS that failed: the server has none, or its certificate is not trusted.
fn is_untrusted(error: &sqlx::Error) -> bool {
    if let sqlx::Error::Io(error) = error {
        // A handshake's error comes wrapped.
        error
            .get_ref()
            .is_some_and(|cause| cause.is::<rustls::Error>())
    } else {
        matches!(error, sqlx::Error::Tls(_))
    }
}

impl From<ConnectError> for LogError {
    /// Once the log was opened the process stays and tries again, whatever it is: who changed the server so can change
    /// it back, and a decision may be under way.
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Unavailable(error) => error,
            ConnectError::Unfit(unfit) => Self::Unavailable(unfit.into()),
        }
    }
}

/// A connection to write with: a commit on it is durable when it returns, or says that it may not be.
pub(super) async fn connect_to_write(
    options: &PgConnectOptions,
    patience: Duration,
    ears: &Ears,
) -> Result<PgConnection, ConnectError> {
    let mut connection = options.connect().await?;
    set(&mut connection, patience).await?;
    check(&mut connection).await?;
    // A COMMIT outside a transaction does nothing but warn. Not to hear it is not to hear the warning that matters.
    let (done, warnings) = ears
        .listen(sqlx::raw_sql("COMMIT").execute(&mut connection))
        .await;
    done?;
    if warnings.is_empty() {
        return Err(ConnectError::Unfit(OpenError::Deaf));
    }
    Ok(connection)
}

/// Sets what every connection has, whatever server, database and role have as their defaults. Names that a server does
/// not know are left out.
pub(super) async fn set(
    connection: &mut PgConnection,
    patience: Duration,
) -> Result<(), sqlx::Error> {
    let patience = patience.as_millis();
    // The server gives up before we do, so that no statement of ours waits for a lock that nobody waits for any more.
    let on_the_server = (patience / 2).to_string();
    let patience = patience.to_string();
    let settings: [(&str, &str); 20] = [
        ("synchronous_commit", "on"),
        ("default_transaction_isolation", "read committed"),
        ("default_transaction_read_only", "off"),
        ("default_transaction_deferrable", "off"),
        ("search_path", "pg_catalog"),
        ("client_min_messages", "warning"),
        ("lock_timeout", &on_the_server),
        ("statement_timeout", &on_the_server),
        // A client that froze, or whose machine is gone, must not hold a node's row.
        ("idle_in_transaction_session_timeout", &on_the_server),
        ("transaction_timeout", &patience),
        ("idle_session_timeout", "0"),
        ("tcp_keepalives_idle", "5"),
        ("tcp_keepalives_interval", "2"),
        ("tcp_keepalives_count", "3"),
        ("tcp_user_timeout", &patience),
        // Every statement here finds a few rows by an index. A plan that was made while a table was small must not
        // read all of it when it has grown.
        ("enable_seqscan", "off"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        // It reads all that an index has, and sorts it, where a page in the index's order is wanted.
        ("enable_bitmapscan", "off"),
        // Switched off is only very dear, and what is dear is compiled: a tenth of a second for a statement of a few
        // rows.
        ("jit", "off"),
    ];
    let (names, values): (Vec<_>, Vec<_>) = settings.into_iter().unzip();
    sqlx::query(
        "SELECT pg_catalog.set_config(s.name, v.value, false)
         FROM unnest($1::text[], $2::text[]) AS v (name, value)
         JOIN pg_catalog.pg_settings AS s ON s.name = v.name",
    )
    .bind(names)
    .bind(values)
    .execute(connection)
    .await?;
    Ok(())
}

async fn check(connection: &mut PgConnection) -> Result<(), ConnectError> {
    let row = sqlx::query(
        "SELECT current_setting('server_version_num')::int AS version,
                current_setting('server_version') AS version_text,
                current_setting('fsync') AS fsync,
                current_setting('full_page_writes') AS full_page_writes,
                current_setting('synchronous_commit') AS synchronous_commit,
                pg_is_in_recovery() AS in_recovery",
    )
    .fetch_one(connection)
    .await?;
    if row.try_get::<i32, _>("version")? < SERVER_VERSION_MIN {
        let found = row.try_get("version_text")?;
        return Err(ConnectError::Unfit(OpenError::TooOld { found }));
    }
    for setting in ["fsync", "full_page_writes", "synchronous_commit"] {
        let value: String = row.try_get(setting)?;
        if value != "on" {
            let unsafe_setting = OpenError::Unsafe { setting, value };
            return Err(ConnectError::Unfit(unsafe_setting));
        }
    }
    if row.try_get("in_recovery")? {
        // After a failover it may be the primary in a moment.
        let cause = "the server is a standby, which takes no writes";
        return Err(ConnectError::Unavailable(LogError::Unavailable(
            cause.into(),
        )));
    }
    Ok(())
}
