//! The bank as a service: its pools, the participant, and a few routes of its own.

use std::{io::Write as _, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use actix_web::{App, HttpResponse, HttpServer, get, web};
use anyhow::Context as _;
use deadpool_postgres::Pool;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_postgres::NoTls;
use unanimous_participant::{Participant, Resource, StartError, scope_started_by, watched};

use crate::bank::Operation;

/// Longer than any client keeps an idle connection, so that none of them sends a request into a connection that is
/// just being closed.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// A look at the database for a reader or a probe, at most.
const READ_MAX: Duration = Duration::from_secs(2);
/// Connections for `GET /accounts` and the probes: the participant's are its own.
const READERS: usize = 4;

/// How to serve.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// The participant's name, as the coordinator has it registered. It is registered there with the base URL
    /// `http://HOST:PORT/unanimous`
    #[arg(long, env = "BANK_NAME")]
    name: String,
    /// A name that this bank had before, until the branches of that name have ended; several by repeating it, or separated
    /// by commas
    #[arg(long, env = "BANK_FORMERLY", value_delimiter = ',')]
    formerly: Vec<String>,
    /// The bank's own database, as `bank init` made it: postgres://user:password@host:port/name
    #[arg(long, env = "BANK_DATABASE_URL", hide_env_values = true)]
    database_url: DatabaseUrl,
    /// Where to listen; port 0 takes a free one, and the line `ready listen=…` tells which
    #[arg(long, env = "BANK_LISTEN", default_value = "127.0.0.1:8081")]
    listen: SocketAddr,
    /// A coordinator to ask about branches in doubt; several by repeating it, or separated by commas
    #[arg(long, env = "BANK_COORDINATOR", required = true, value_delimiter = ',')]
    coordinator: Vec<String>,
    /// Connections of the participant's pool, at least 3: prepares use all but two, which are for commits and aborts
    #[arg(long, env = "BANK_CONNECTIONS", default_value_t = 12)]
    connections: usize,
}

/// A database's address. It may hold a password, so it does not print.
#[derive(Clone)]
pub struct DatabaseUrl(pub tokio_postgres::Config);

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("postgres://…")
    }
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut config: tokio_postgres::Config = text
            .parse()
            .map_err(|error| format!("not of the form postgres://user@host/name: {error}"))?;
        // A server that vanished without a word is noticed within seconds, not hours.
        config
            .connect_timeout(Duration::from_secs(5))
            .tcp_user_timeout(Duration::from_secs(20))
            .keepalives_idle(Duration::from_secs(10));
        Ok(Self(config))
    }
}

fn pool(config: &tokio_postgres::Config, connections: usize) -> anyhow::Result<Pool> {
    // So that a commit which stopped waiting for a standby is not taken for durable.
    let manager = watched(config.clone(), NoTls);
    Ok(Pool::builder(manager).max_size(connections).build()?)
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When it can not listen, or the participant can not start and trying again would not help.
pub async fn serve(
    options: Options,
    bank: impl Resource<Operation = Operation> + Clone,
) -> anyhow::Result<()> {
    let options = Arc::new(options);
    // Whether it can start is found out before anything listens. Then it starts where it serves.
    drop(start(&options, bank.clone()).await?);
    let readers = web::Data::new(pool(&options.database_url.0, READERS)?);
    let (tell, mut told) = mpsc::unbounded_channel();
    let starts = {
        let options = Arc::clone(&options);
        move || {
            let (options, bank, tell) = (Arc::clone(&options), bank.clone(), tell.clone());
            async move {
                let (started, tidings) = match start(&options, bank).await {
                    Ok(participant) => (Ok(participant), Ok(())),
                    Err(error) => (Err(()), Err(error)),
                };
                // Nobody waits any more where the program is ending.
                tell.send(tidings).ok();
                started
            }
        }
    };
    let server = HttpServer::new(move || {
        App::new()
            .app_data(readers.clone())
            .service(scope_started_by("/unanimous", starts.clone()))
            .service(account)
            .service(total)
            .service(healthz)
            .service(readyz)
    })
    .keep_alive(KEEP_ALIVE)
    // Answers come in pieces, and none is to wait for the last one's acknowledgement.
    .tcp_nodelay(true)
    .shutdown_timeout(5)
    .workers(1)
    .bind(options.listen)
    .with_context(|| format!("listening on {}", options.listen))?;
    let listen = server.addrs().first().copied().unwrap_or(options.listen);
    let mut running = server.run();
    tokio::select! {
        biased;
        tidings = told.recv() => tidings.context("the server ended at start")??,
        // It was told to stop meanwhile.
        ended = &mut running => return Ok(ended?),
    }
    // For whoever started this program: from here on requests are answered.
    let mut stdout = std::io::stdout();
    writeln!(stdout, "ready listen={listen}")?;
    stdout.flush()?;
    running.await?;
    Ok(())
}

/// Starts the participant, and waits for the database as long as it takes: until then nothing listens.
async fn start(
    options: &Options,
    bank: impl Resource<Operation = Operation> + Clone,
) -> anyhow::Result<Participant> {
    let pool = pool(&options.database_url.0, options.connections)?;
    let mut pause = Duration::from_millis(100);
    loop {
        let mut builder = Participant::builder(&options.name, bank.clone()).pool(pool.clone());
        for coordinator in &options.coordinator {
            builder = builder.coordinator(coordinator);
        }
        for former in &options.formerly {
            builder = builder.formerly(former);
        }
        match builder.start().await {
            Ok(participant) => return Ok(participant),
            Err(error) if StartError::is_retryable(&error) => {
                let error = anyhow::Error::new(error);
                tracing::warn!("not ready yet: {error:#}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// One row of a query, within [`READ_MAX`].
async fn read(
    pool: &Pool,
    sql: &str,
    params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> anyhow::Result<Option<tokio_postgres::Row>> {
    let row = async {
        let connection = pool.get().await?;
        let statement = connection.prepare_cached(sql).await?;
        anyhow::Ok(connection.query_opt(&statement, params).await?)
    };
    tokio::time::timeout(READ_MAX, row).await?
}

fn unavailable(error: &anyhow::Error) -> HttpResponse {
    tracing::warn!("a read failed: {error:#}");
    HttpResponse::ServiceUnavailable().json(json!({"error": "the bank's database does not answer"}))
}

#[get("/accounts/{id}")]
async fn account(pool: web::Data<Pool>, id: web::Path<String>) -> HttpResponse {
    let unknown = || {
        let error = format!("there is no account {id}");
        HttpResponse::NotFound().json(json!({ "error": error }))
    };
    let Ok(account) = id.parse::<i64>() else {
        return unknown();
    };
    let sql = "SELECT balance FROM accounts WHERE id = $1";
    match read(&pool, sql, &[&account]).await {
        Ok(Some(row)) => {
            let balance: i64 = row.get(0);
            HttpResponse::Ok().json(json!({"account": account, "balance": balance}))
        }
        Ok(None) => unknown(),
        Err(error) => unavailable(&error),
    }
}

#[get("/total")]
async fn total(pool: web::Data<Pool>) -> HttpResponse {
    let sql = "SELECT count(*), coalesce(sum(balance), 0)::bigint FROM accounts";
    match read(&pool, sql, &[]).await {
        Ok(row) => {
            let (accounts, balance): (i64, i64) =
                row.map_or((0, 0), |row| (row.get(0), row.get(1)));
            HttpResponse::Ok().json(json!({"accounts": accounts, "balance": balance}))
        }
        Err(error) => unavailable(&error),
    }
}

#[get("/healthz")]
async fn healthz() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "alive"}))
}

#[get("/readyz")]
async fn readyz(pool: web::Data<Pool>) -> HttpResponse {
    match read(&pool, "SELECT 1", &[]).await {
        Ok(_) => HttpResponse::Ok().json(json!({"status": "ready"})),
        Err(error) => unavailable(&error),
    }
}
