//! Opening the decision log at start, and what the listeners answer while that takes time.
//!
//! A server that does not answer is tried again, with capped backoff: a coordinator and its database may be started in
//! any order. Meanwhile both listeners are served: the process is alive, not ready, and says why, and every route of the
//! API is 503 `log-unavailable`. What no waiting will mend (a wrong password, no such database, a server that loses
//! commits) ends the start at once.

use std::{net::TcpListener, sync::Arc, time::Duration};

use actix_web::{App as WebApp, HttpServer, http::KeepAlive, web::Data};
use anyhow::Context as _;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::warn;
use unanimous_protocol::id::Node;

use crate::{
    actors::recovery::{NoLife, Recovered, recover},
    config::LogUrl,
    http,
    log::{
        DecisionLog, LogError,
        postgres::{self, PostgresLog},
        sqlite::SqliteLog,
    },
};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// A log that answers has been opened by then: no server is started that would be stopped at once.
const PROMPT: Duration = Duration::from_millis(200);

/// What is under way when the log is there gets this long to end. It was refused already.
const FAREWELL_S: u64 = 1;

/// Why the start waits.
pub(super) type Why = watch::Sender<String>;

/// Why an attempt failed.
enum Failed {
    /// Another one may succeed.
    ForNow(anyhow::Error),
    /// Somebody has to change something first.
    ForGood(anyhow::Error),
}

/// Opens the log and begins a life in it, and tries again while it does not answer.
///
/// # Errors
/// When it never will.
pub(super) async fn open_and_begin(
    url: &LogUrl,
    node: Node,
    why: &Why,
) -> anyhow::Result<(Arc<dyn DecisionLog>, Recovered)> {
    let log = until_it_answers(url, why, async || open(url).await).await?;
    let recovered = until_it_answers(url, why, async || {
        recover(&log, node).await.map_err(|error| match error {
            NoLife::Log(LogError::Unavailable(_)) => Failed::ForNow(error.into()),
            NoLife::Log(LogError::Broken(_)) | NoLife::WentBack(_) => Failed::ForGood(error.into()),
        })
    });
    let recovered = recovered.await?;
    Ok((log, recovered))
}

async fn until_it_answers<T>(
    url: &LogUrl,
    why: &Why,
    attempt: impl AsyncFn() -> Result<T, Failed>,
) -> anyhow::Result<T> {
    let mut pause = RETRY_FIRST;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(Failed::ForGood(error)) => {
                return Err(error).with_context(|| format!("the decision log {url}"));
            }
            Err(Failed::ForNow(error)) => {
                let error = format!("{error:#}");
                warn!(error, log = %url, again_in = ?pause, "the start waits for the decision log");
                why.send_replace(error);
            }
        }
        sleep(pause).await;
        pause = RETRY_LONGEST.min(pause * 2);
    }
}

async fn open(url: &LogUrl) -> Result<Arc<dyn DecisionLog>, Failed> {
    match url {
        LogUrl::Sqlite(path) => match SqliteLog::open(path).await {
            Ok(log) => Ok(Arc::new(log)),
            Err(error) => Err(Failed::ForGood(error.into())),
        },
        LogUrl::Postgres(database) => {
            let options = database
                .options()
                .map_err(|error| Failed::ForGood(error.into()))?;
            match PostgresLog::open(&options).await {
                Ok(log) => Ok(Arc::new(log)),
                Err(error @ postgres::OpenError::Unavailable(_)) => {
                    Err(Failed::ForNow(error.into()))
                }
                Err(error) => Err(Failed::ForGood(error.into())),
            }
        }
    }
}

/// The log at `url`, which must exist already.
///
/// # Errors
/// When it does not, or is held by another process.
pub async fn open_existing_log(url: &LogUrl) -> anyhow::Result<Arc<dyn DecisionLog>> {
    let log: Arc<dyn DecisionLog> = match url {
        LogUrl::Sqlite(path) => {
            anyhow::ensure!(
                path.exists(),
                "there is no decision log at {}",
                path.display()
            );
            let opened = SqliteLog::open(path).await;
            Arc::new(opened.with_context(|| format!("the decision log {url}"))?)
        }
        LogUrl::Postgres(database) => {
            let opened = PostgresLog::open_existing(&database.options()?).await;
            Arc::new(opened.with_context(|| format!("the decision log {url}"))?)
        }
    };
    Ok(log)
}

/// Runs `start`, and serves both listeners if that takes longer than a moment. Nobody is turned away in between: who
/// connects while one server ends and the next begins waits in the listener's queue.
///
/// # Errors
/// When the listeners can not be served.
pub(super) async fn serve_meanwhile<T>(
    listener: &TcpListener,
    admin_listener: &TcpListener,
    why: watch::Receiver<String>,
    start: impl Future<Output = T>,
) -> anyhow::Result<T> {
    tokio::pin!(start);
    if let Ok(done) = timeout(PROMPT, &mut start).await {
        return Ok(done);
    }
    let api = HttpServer::new(|| WebApp::new().configure(http::starting::api))
        .workers(1)
        .keep_alive(KeepAlive::Disabled)
        .shutdown_timeout(FAREWELL_S)
        .disable_signals()
        .listen(listener.try_clone()?)?
        .run();
    let admin = HttpServer::new(move || {
        WebApp::new()
            .app_data(Data::new(why.clone()))
            .configure(http::starting::admin)
    })
    .workers(1)
    .keep_alive(KeepAlive::Disabled)
    .shutdown_timeout(FAREWELL_S)
    .disable_signals()
    .listen(admin_listener.try_clone()?)?
    .run();
    let handles = [api.handle(), admin.handle()];
    actix_web::rt::spawn(api);
    actix_web::rt::spawn(admin);
    let done = start.await;
    for handle in handles {
        handle.stop(true).await;
    }
    Ok(done)
}
