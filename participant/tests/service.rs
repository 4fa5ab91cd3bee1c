//! A service whose operations do whatever a test wants, and the calls that a coordinator makes.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use unanimous_participant::{
    Builder, Failure, Key, Participant, Resource, Tx, Vote,
    deadpool_postgres::{Manager, Pool},
    tokio_postgres::{Client, Config, NoTls},
};

/// What a branch may ask of the test's service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Operation {
    /// Writes `prepared <text>` and says yes; later `committed <text>` or `aborted <text>`.
    Note { text: String },
    /// As `note`, while it holds a key.
    Hold { key: String, text: String },
    /// Writes, and then says no.
    Refuse { reason: String },
    /// Writes, and then says that it changed nothing.
    Look,
    /// Says yes if the branch has written this before, in this transaction.
    Seen { text: String },
    /// Could not find out.
    Fail,
    /// A statement that fails, caught by the service, which then says this.
    Stumble { vote: String },
    /// A mistake of the service's author.
    Panic,
    /// Does not come back.
    Hang,
    /// A statement that does not come back.
    HangInSql,
    /// Takes this long.
    Slow { ms: u64 },
    /// Runs this statement and says yes.
    Sql { sql: String },
    /// Reads a counter, and then writes what it read and one more.
    Count,
    /// An amount that numbers can not hold.
    Money { amount: serde_json::Number },
}

pub(crate) struct Journal;

async fn write(tx: &Tx<'_>, what: &str, text: &str) -> Result<(), Failure> {
    tx.execute(
        "INSERT INTO journal (transaction, what, text) VALUES ($1, $2, $3)",
        &[&tx.transaction().to_string(), &what, &text],
    )
    .await?;
    Ok(())
}

impl Resource for Journal {
    type Operation = Operation;

    async fn prepare(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<Vote, Failure> {
        match operation {
            Operation::Note { text } | Operation::Hold { text, .. } => {
                write(tx, "prepared", text).await?;
                Ok(Vote::Yes)
            }
            Operation::Refuse { reason } => {
                write(tx, "prepared", "refused").await?;
                Ok(Vote::refuse(reason.clone()))
            }
            Operation::Look => {
                write(tx, "prepared", "looked").await?;
                Ok(Vote::ReadOnly)
            }
            Operation::Seen { text } => {
                let found = tx
                    .query(
                        "SELECT 1 FROM journal WHERE transaction = $1 AND text = $2",
                        &[&tx.transaction().to_string(), &text],
                    )
                    .await?;
                Ok(Vote::yes_if(!found.is_empty(), "not seen"))
            }
            Operation::Fail => Err(Failure::msg("the printer is out of paper")),
            Operation::Stumble { vote } => {
                assert!(tx.execute("SELECT 1 / 0", &[]).await.is_err());
                Ok(Vote::yes_if(vote == "yes", "stumbled"))
            }
            Operation::Panic => panic!("as this test wants it"),
            Operation::Hang => std::future::pending().await,
            Operation::HangInSql => {
                write(tx, "prepared", "hanging").await?;
                tx.query("SELECT pg_sleep(600)", &[]).await?;
                Ok(Vote::Yes)
            }
            Operation::Slow { ms } => {
                tokio::time::sleep(Duration::from_millis(*ms)).await;
                write(tx, "prepared", "slow").await?;
                Ok(Vote::Yes)
            }
            Operation::Sql { sql } => {
                tx.execute(sql, &[]).await?;
                Ok(Vote::Yes)
            }
            Operation::Count => {
                let row = tx.query_one("SELECT value FROM counter FOR UPDATE", &[]);
                let value: i64 = row.await?.try_get(0)?;
                tx.execute("UPDATE counter SET value = $1", &[&(value + 1)])
                    .await?;
                Ok(Vote::Yes)
            }
            Operation::Money { .. } => Ok(Vote::Yes),
        }
    }

    async fn commit(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
        if label(operation) == Some("never applied") {
            tx.execute("UPDATE no_such_table SET a = 1", &[]).await?;
        }
        let text = format!("{operation:?}");
        write(tx, "committed", label(operation).unwrap_or(&text)).await
    }

    async fn abort(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
        let text = format!("{operation:?}");
        write(tx, "aborted", label(operation).unwrap_or(&text)).await
    }

    fn keys(&self, operation: &Operation) -> Vec<Key> {
        if let Operation::Hold { key, .. } = operation {
            vec![Key::new(key)]
        } else {
            Vec::new()
        }
    }
}

fn label(operation: &Operation) -> Option<&str> {
    if let Operation::Note { text } | Operation::Hold { text, .. } = operation {
        Some(text)
    } else {
        None
    }
}

/// What this thread logs from now on, one line for each event, until the guard is dropped: for a test on one thread.
pub(crate) fn logged() -> (Arc<Mutex<Vec<String>>>, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let lines = Arc::clone(&log.0);
    (lines, tracing::subscriber::set_default(log))
}

#[derive(Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Line(String);
        impl tracing::field::Visit for Line {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
                self.0 = format!("{} {field}={value:?}", self.0);
            }
        }
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

/// A database of its own, and a participant on it.
pub(crate) struct Service {
    pub(crate) database: Config,
    pub(crate) participant: Participant,
    /// Looks at the database from outside.
    pub(crate) sql: Client,
}

/// Nobody listens there.
pub(crate) const NOWHERE: &str = "http://127.0.0.1:9";

const TABLES: &str = "
    CREATE TABLE journal (at bigserial, transaction text, what text, text text);
    CREATE TABLE counter (value bigint);
    INSERT INTO counter VALUES (0);
    CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.text = 'die at commit' THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
        IF NEW.text = 'fail at commit' THEN RAISE EXCEPTION 'refused at commit'; END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON journal DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION at_commit();
";

pub(crate) async fn connect(config: &Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// A database that nobody else uses.
pub(crate) async fn fresh_database() -> Config {
    let url = std::env::var("UNANIMOUS_TEST_POSTGRES_1").expect(
        "UNANIMOUS_TEST_POSTGRES_1 must be the URL of a superuser on a private Postgres cluster (`make test` sets it)",
    );
    let mut config: Config = url.parse().unwrap();
    let name = format!("participant_{:032x}", rand::random::<u128>());
    let admin = connect(&config).await;
    admin
        .batch_execute(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap();
    config.dbname(name);
    config
}

pub(crate) fn pool(database: &Config, size: usize) -> Pool {
    let manager = Manager::new(database.clone(), NoTls);
    Pool::builder(manager).max_size(size).build().unwrap()
}

/// A participant called `east`, with a pool of 5.
pub(crate) fn east(database: &Config) -> Builder {
    // A test process may run several tests; the first one installs it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Participant::builder("east", Journal).pool(pool(database, 5))
}

impl Service {
    pub(crate) async fn start() -> Self {
        Self::start_with(|builder| builder.coordinator(NOWHERE)).await
    }

    pub(crate) async fn start_with(change: impl FnOnce(Builder) -> Builder) -> Self {
        Self::on(fresh_database().await, change).await
    }

    /// In a database that has none of the service's tables.
    pub(crate) async fn on(database: Config, change: impl FnOnce(Builder) -> Builder) -> Self {
        let sql = connect(&database).await;
        sql.batch_execute(TABLES).await.unwrap();
        let participant = change(east(&database)).start().await.unwrap();
        Self {
            database,
            participant,
            sql,
        }
    }

    /// The process dies and is started again: nothing of its memory is left.
    pub(crate) async fn restart(self, change: impl FnOnce(Builder) -> Builder) -> Self {
        let Self {
            database,
            participant,
            sql,
        } = self;
        drop(participant);
        let participant = change(east(&database)).start().await.unwrap();
        Self {
            database,
            participant,
            sql,
        }
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        post(&self.participant, path, body).await
    }

    pub(crate) async fn prepare(&self, id: &str, operations: Value) -> Answer {
        self.post("/v1/prepare", &prepare_body(id, operations))
            .await
    }

    pub(crate) async fn commit(&self, id: &str) -> Answer {
        self.post("/v1/commit", &branch_body(id)).await
    }

    pub(crate) async fn abort(&self, id: &str) -> Answer {
        self.post("/v1/abort", &branch_body(id)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(&self.participant, "GET", path, None, Vec::new()).await
    }

    /// What the service has written for a transaction, in order.
    pub(crate) async fn journal(&self, id: &str) -> Vec<String> {
        let rows = self
            .sql
            .query(
                "SELECT what || ' ' || text FROM journal WHERE transaction = $1 ORDER BY at",
                &[&id],
            )
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The branch's state in its row, as the table spells it.
    pub(crate) async fn row(&self, id: &str) -> Option<String> {
        let row = self
            .sql
            .query_opt(
                "SELECT state FROM unanimous.branches WHERE transaction::text = $1",
                &[&id],
            )
            .await
            .unwrap();
        row.map(|row| row.get(0))
    }

    pub(crate) async fn count(&self, sql: &str) -> i64 {
        self.sql.query_one(sql, &[]).await.unwrap().get(0)
    }

    /// Waits until the query's first column is true.
    pub(crate) async fn until(&self, sql: &str) {
        let begun = Instant::now();
        while !self
            .sql
            .query_one(sql, &[])
            .await
            .unwrap()
            .get::<_, bool>(0)
        {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "not within 10 s: {sql}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// What came back: the status and the body.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    #[track_caller]
    pub(crate) fn is_vote(&self, vote: &str) {
        assert_eq!(
            (self.status, &self.body["vote"]),
            (200, &json!(vote)),
            "{self:?}"
        );
    }

    #[track_caller]
    pub(crate) fn is_no(&self, code: &str) {
        self.is_vote("no");
        assert_eq!(self.body["code"], json!(code), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn is_state(&self, state: &str) {
        assert_eq!(
            (self.status, &self.body["state"]),
            (200, &json!(state)),
            "{self:?}"
        );
    }

    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status, &self.body["code"]),
            (status, &json!(code)),
            "{self:?}"
        );
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(
            self.body["type"],
            json!(format!("urn:unanimous:problem:{code}"))
        );
    }
}

pub(crate) async fn post(participant: &Participant, path: &str, body: &Value) -> Answer {
    let body = serde_json::to_vec(body).unwrap();
    send(participant, "POST", path, Some("application/json"), body).await
}

pub(crate) async fn send(
    participant: &Participant,
    method: &str,
    path: &str,
    content_type: Option<&str>,
    body: Vec<u8>,
) -> Answer {
    let mut request = http::Request::builder().method(method).uri(path);
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    let response = participant.answer(request.body(body).unwrap()).await;
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: serde_json::from_slice(&body.whole().await).unwrap(),
    }
}

/// A transaction id that differs in its last digits.
pub(crate) fn id(number: u32) -> String {
    format!("00000001-0001-8000-8000-1000{number:08x}")
}

pub(crate) fn prepare_body(id: &str, operations: Value) -> Value {
    json!({"transaction": id, "participant": "east", "operations": operations,
           "remaining_ms": 20_000, "begun_at_ms": 1})
}

pub(crate) fn branch_body(id: &str) -> Value {
    json!({"transaction": id, "participant": "east"})
}

pub(crate) fn note(text: &str) -> Value {
    json!([{"kind": "note", "text": text}])
}
