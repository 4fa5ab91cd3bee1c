//! The connection that looks keys up: before each keyed transaction begins, so it is kept at hand, and not handed around
//! by a pool, which costs two more trips to SQLite's thread.

use sqlx::{
    ConnectOptions as _, Connection as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteRow},
};
use tokio::sync::Mutex;

use super::sql::BY_KEY;

/// One reader at a time; the registry asks for all keys that wait at once.
pub(super) struct KeyReader {
    options: SqliteConnectOptions,
    connection: Mutex<Option<SqliteConnection>>,
}

impl KeyReader {
    /// It connects when it is asked for the first time.
    pub(super) fn new(options: SqliteConnectOptions) -> Self {
        Self {
            options,
            connection: Mutex::default(),
        }
    }

    /// The records with these keys, a JSON array of texts.
    pub(super) async fn records(&self, keys: String) -> Result<Vec<SqliteRow>, sqlx::Error> {
        let mut place = self.connection.lock().await;
        // Taken out, and put back when all went well: whoever gives up half way leaves none behind.
        let mut connection = match place.take() {
            Some(connection) => connection,
            None => self.options.connect().await?,
        };
        let rows = sqlx::query(BY_KEY)
            .bind(keys)
            .fetch_all(&mut connection)
            .await?;
        *place = Some(connection);
        Ok(rows)
    }

    pub(super) async fn close(&self) -> Result<(), sqlx::Error> {
        match self.connection.lock().await.take() {
            Some(connection) => connection.close().await,
            None => Ok(()),
        }
    }
}
