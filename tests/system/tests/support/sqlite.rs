//! Looks into a decision log's file, as an operator with `sqlite3` would.

use std::path::Path;

use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

/// How many decision writes the coordinator has made in this file, over all its lives.
pub(crate) async fn decision_writes(log: &Path) -> i64 {
    let options = SqliteConnectOptions::new().filename(log).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .expect("the log can be read");
    sqlx::query_scalar("SELECT sum(decisions) FROM epoch")
        .fetch_one(&mut connection)
        .await
        .expect("the log counts its decision writes")
}

/// Changes the file behind the coordinator's back, as a restored backup or another coordinator would.
pub(crate) async fn change(log: &Path, statement: &'static str) {
    let options = SqliteConnectOptions::new()
        .filename(log)
        .busy_timeout(std::time::Duration::from_secs(10));
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .expect("the log can be opened");
    let done = sqlx::query(statement)
        .execute(&mut connection)
        .await
        .expect("the log can be changed");
    assert!(done.rows_affected() > 0, "{statement} changed nothing");
}
