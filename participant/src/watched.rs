//! Connections that hear what the server says beside its answers.
//!
//! A commit that waits for a synchronous standby can be told to stop waiting (`pg_cancel_backend`). Postgres then answers
//! that it has committed, with a warning: it has here, and the standby may not have it. To a promise that is no success
//! but an unclear end (design rule 10), and the driver passes warnings on only to whoever drives the connection.

use std::future::poll_fn;

use deadpool_postgres::{Connect, Manager, ManagerConfig};
use futures_util::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio_postgres::{
    AsyncMessage, Client, Config, Error, Socket,
    error::DbError,
    tls::{MakeTlsConnect, TlsConnect},
};

use crate::calls::chain;

/// A manager for a pool whose connections break off where a commit stopped waiting for its synchronous standby, so that
/// the commit is unclear and is asked for again, instead of a yes that only one machine remembers. Otherwise it is
/// [`Manager::new`].
///
/// ```no_run
/// use unanimous_participant::{deadpool_postgres::Pool, tokio_postgres::NoTls, watched};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let database = "postgres://stock@db.internal/stock".parse()?;
/// let pool = Pool::builder(watched(database, NoTls)).max_size(16).build()?;
/// # Ok(())
/// # }
/// ```
pub fn watched<T>(config: Config, tls: T) -> Manager
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send + Sync,
    T::TlsConnect: Send + Sync,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    Manager::from_connect(config, Watched { tls }, ManagerConfig::default())
}

struct Watched<T> {
    tls: T,
}

impl<T> Connect for Watched<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send + Sync,
    T::TlsConnect: Send + Sync,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    fn connect(&self, config: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        let tls = self.tls.clone();
        let config = config.clone();
        Box::pin(async move {
            let (client, mut connection) = config.connect(tls).await?;
            let task = tokio::spawn(async move {
                while let Some(message) = poll_fn(|cx| connection.poll_message(cx)).await {
                    match message {
                        Ok(AsyncMessage::Notice(notice)) if gave_up_a_standby(&notice) => {
                            tracing::error!(
                                warning = notice.message(),
                                "a commit stopped waiting for its synchronous standby; its connection is closed, so \
                                 that nobody takes it for durable"
                            );
                            // The warning comes in front of the answer, which is dropped with the connection.
                            return;
                        }
                        Ok(_) => {}
                        Err(error) => {
                            tracing::warn!(error = %chain(&error), "a connection broke off");
                            return;
                        }
                    }
                }
            });
            Ok((client, task))
        })
    }
}

/// By the server's function, which no language changes; the text is for servers that are only like Postgres.
fn gave_up_a_standby(notice: &DbError) -> bool {
    notice.routine() == Some("SyncRepWaitForLSN")
        || notice
            .message()
            .contains("wait for synchronous replication")
}
