//! What the contract suite needs of Postgres, and what only a server can do.

use std::{str::FromStr as _, sync::Arc, time::Duration};

use sqlx::{ConnectOptions as _, PgConnection, postgres::PgConnectOptions};
use tokio::sync::Mutex;
use unanimous_lab::{Cluster, Options};
use unanimous_protocol::{
    id::{Node, TransactionId},
    life::Fence,
    record::{Standing, WallMillis},
};

use super::{OpenError, PostgresLog};
use crate::log::{
    Appends, DecisionLog, LogError, Opened, Removal, WriteError,
    contract::{Backend, Life, NODE, batch, key, keyed, stored},
};

/// Writes wait while somebody else holds this advisory lock.
const GATE: i64 = 7;
const PATIENCE: Duration = Duration::from_secs(10);

fn server() -> PgConnectOptions {
    let url = std::env::var("UNANIMOUS_TEST_POSTGRES_1").expect(
        "UNANIMOUS_TEST_POSTGRES_1 must be the URL of a superuser on a private Postgres cluster: \
         run the tests by `make test` or `unanimous-lab with-clusters -- cargo nextest run`",
    );
    PgConnectOptions::from_str(&url).unwrap()
}

async fn run(connection: &mut PgConnection, sql: impl Into<String>) {
    let sql = sqlx::AssertSqlSafe(sql.into());
    sqlx::raw_sql(sql).execute(connection).await.unwrap();
}

async fn until(connection: &mut PgConnection, condition: &str) {
    let ask = || sqlx::AssertSqlSafe(format!("SELECT {condition}"));
    while !sqlx::query_scalar::<_, bool>(ask())
        .fetch_one(&mut *connection)
        .await
        .unwrap()
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(in crate::log) struct InPostgres {
    /// `None` only while it is reopened.
    log: Option<Arc<PostgresLog>>,
    /// In another database, so that this one can be copied.
    admin: Mutex<PgConnection>,
    /// Holds the gate.
    holder: Mutex<Option<PgConnection>>,
    database: String,
}

impl InPostgres {
    async fn on(server: &PgConnectOptions) -> Self {
        let mut admin = server.connect().await.unwrap();
        let database = format!("log_{:032x}", rand::random::<u128>());
        run(&mut admin, format!("CREATE DATABASE {database}")).await;
        let mut fresh = Self {
            log: None,
            admin: Mutex::new(admin),
            holder: Mutex::new(None),
            database,
        };
        fresh.open().await;
        let gate = format!(
            "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NULL; END $$;
             CREATE TRIGGER gate AFTER INSERT ON unanimous.record EXECUTE FUNCTION gate();
             CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE 'a test refuses it'; END $$;"
        );
        fresh.run(gate).await;
        fresh
    }

    fn options(&self) -> PgConnectOptions {
        server().database(&self.database)
    }

    async fn connect(&self) -> PgConnection {
        self.options().connect().await.unwrap()
    }

    async fn run(&self, sql: impl Into<String>) {
        run(&mut self.connect().await, sql).await;
    }

    async fn open(&mut self) {
        let log = PostgresLog::open(&self.options()).await.unwrap();
        self.log = Some(Arc::new(log));
    }

    async fn close(&mut self) {
        Arc::into_inner(self.log.take().unwrap()).expect("somebody holds the log");
        let database = &self.database;
        let mut admin = self.admin.lock().await;
        let others = format!("FROM pg_stat_activity WHERE datname = '{database}'");
        run(
            &mut admin,
            format!("SELECT pg_terminate_backend(pid) {others}"),
        )
        .await;
        until(&mut admin, &format!("NOT EXISTS (SELECT {others})")).await;
    }
}

impl Backend for InPostgres {
    /// A database.
    type Saved = String;

    async fn fresh() -> Self {
        Self::on(&server()).await
    }

    fn log(&self) -> Arc<dyn DecisionLog> {
        Arc::clone(self.log.as_ref().unwrap()) as Arc<dyn DecisionLog>
    }

    async fn hold(&self) {
        let mut holder = self.connect().await;
        run(&mut holder, format!("SELECT pg_advisory_lock({GATE})")).await;
        *self.holder.lock().await = Some(holder);
    }

    async fn reached(&self) {
        let waits = "EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)";
        until(&mut self.connect().await, waits).await;
    }

    async fn release(&self) {
        let holder = self.holder.lock().await.take();
        run(
            &mut holder.unwrap(),
            format!("SELECT pg_advisory_unlock({GATE})"),
        )
        .await;
    }

    async fn reopen(&mut self) {
        self.close().await;
        self.open().await;
    }

    async fn refuse(&self, id: TransactionId) {
        self.run(format!(
            "CREATE TRIGGER \"refuse {id}\" BEFORE INSERT ON unanimous.record
             FOR EACH ROW WHEN (NEW.id = '{id}') EXECUTE FUNCTION refuse()"
        ))
        .await;
    }

    async fn age_marks(&self, by: Duration) {
        let ms = by.as_millis();
        self.run(format!(
            "UPDATE unanimous.epoch SET seen_at = seen_at - {ms} * interval '1 millisecond'"
        ))
        .await;
    }

    async fn mark_forgotten(&self, through: TransactionId) {
        self.run(format!(
            "INSERT INTO unanimous.forgotten
             VALUES (substring(uuid_send('{through}') FROM 1 FOR 6), '{through}')"
        ))
        .await;
    }

    async fn save(&mut self) -> String {
        self.close().await;
        let saved = format!("saved_{:032x}", rand::random::<u128>());
        let copy = format!("CREATE DATABASE {saved} TEMPLATE {}", self.database);
        run(&mut *self.admin.lock().await, copy).await;
        self.open().await;
        saved
    }

    async fn go_back(&mut self, saved: String) {
        self.close().await;
        let database = &self.database;
        let mut admin = self.admin.lock().await;
        run(&mut admin, format!("DROP DATABASE {database}")).await;
        run(
            &mut admin,
            format!("CREATE DATABASE {database} TEMPLATE {saved}"),
        )
        .await;
        drop(admin);
        self.open().await;
    }
}

async fn another_process(backend: &InPostgres) -> PostgresLog {
    PostgresLog::open(&backend.options()).await.unwrap()
}

#[tokio::test]
async fn a_second_process_with_the_same_node_fences_the_first() {
    let backend = InPostgres::fresh().await;
    assert!(!backend.log().is_exclusive());
    let mut first = Life::begin(&backend, NODE).await;
    let other = another_process(&backend).await;
    let Opened { writer, .. } = other.open_epoch(NODE).await.unwrap();
    let late = first.commit();
    let refused = backend.log().decide(&first.writer, &batch([&late])).await;
    let Err(WriteError::Fenced(Fence::Epoch { newest, .. })) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(newest, writer.epoch);
    assert_eq!(stored(&other, &late).await, None);
}

/// As the contract has it of one process, whose writes wait for each other anyway; here only the row's lock can do it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_of_another_process_opens_after_the_decisions_under_way() {
    for riding_only in [false, true] {
        let backend = InPostgres::fresh().await;
        let mut old = Life::begin(&backend, NODE).await;
        let other = another_process(&backend).await;
        let (commit, aborted) = (old.commit(), old.abort());
        backend.hold().await;
        let deciding = tokio::spawn({
            let (log, writer, batch) = (backend.log(), old.writer, batch([&commit]));
            let appends = Appends {
                records: vec![aborted],
                finishes: Vec::new(),
            };
            async move {
                if riding_only {
                    log.append(&writer, &appends).await
                } else {
                    log.decide(&writer, &batch).await.map(drop)
                }
            }
        });
        backend.reached().await;
        let mut opening = tokio::spawn(async move {
            other.open_epoch(NODE).await.unwrap();
            other.unfinished(NODE).await.unwrap()
        });
        // A wait that ends too early could only let a wrong lock pass.
        let opened = tokio::time::timeout(Duration::from_millis(200), &mut opening).await;
        assert!(
            opened.is_err(),
            "an epoch was opened over a write under way"
        );
        backend.release().await;
        deciding.await.unwrap().unwrap();
        let unfinished = opening.await.unwrap();
        assert_eq!(unfinished.len(), usize::from(!riding_only));
    }
}

/// The holder of the key decides, uncommitted, while another coordinator proposes the same key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_another_coordinator_is_deciding_is_waited_for() {
    let backend = InPostgres::fresh().await;
    let (mut one, mut two) = (
        Life::begin(&backend, NODE).await,
        Life::begin(&backend, super::Node(2)).await,
    );
    let other = another_process(&backend).await;
    let (winner, loser) = (keyed(one.commit(), "k"), keyed(two.commit(), "k"));
    let neighbour = two.commit();
    backend.hold().await;
    let winning = tokio::spawn({
        let (log, writer, batch) = (backend.log(), one.writer, batch([&winner]));
        async move { log.decide(&writer, &batch).await }
    });
    backend.reached().await;
    let losing = tokio::spawn({
        let (writer, batch) = (two.writer, batch([&loser, &neighbour]));
        async move { other.decide(&writer, &batch).await }
    });
    let waits = "EXISTS (SELECT FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted)";
    until(&mut backend.connect().await, waits).await;
    backend.release().await;
    let [ref stands] = winning.await.unwrap().unwrap().standings[..] else {
        panic!("one was proposed")
    };
    assert_eq!(*stands.as_ref().unwrap(), Standing::Proposed);
    let standings = losing.await.unwrap().unwrap().standings;
    assert_eq!(
        *standings[0].as_ref().unwrap(),
        Standing::KeyHeldBy(winner.header.id)
    );
    assert_eq!(*standings[1].as_ref().unwrap(), Standing::Proposed);
}

/// Design rule 23, with more than one that is refused, among many.
#[tokio::test]
async fn bad_proposals_among_many_fail_alone() {
    let backend = InPostgres::fresh().await;
    let log = backend.log();
    let mut life = Life::begin(&backend, NODE).await;
    let proposals: Vec<_> = (0..40).map(|_| life.commit()).collect();
    for bad in [3, 20] {
        backend.refuse(proposals[bad].header.id).await;
    }
    let decided = log.decide(&life.writer, &batch(&proposals)).await.unwrap();
    for (at, standing) in decided.standings.iter().enumerate() {
        assert_eq!(standing.is_err(), at == 3 || at == 20, "{at}");
        assert_eq!(
            stored(&*log, &proposals[at]).await.is_some(),
            standing.is_ok()
        );
    }
    // What it counted is what the next write is checked against.
    life.writer.decisions_at_least = decided.decisions;
    let next = life.commit();
    assert_eq!(life.decide(&*log, [&next]).await, [Standing::Proposed]);
}

/// Design rule 10: what another one wrote may be visible and not durable.
#[tokio::test]
async fn what_another_one_wrote_is_flushed_before_it_is_told() {
    let backend = InPostgres::fresh().await;
    let mut life = Life::begin(&backend, NODE).await;
    let commit = keyed(life.commit(), "k");
    life.decide(&*backend.log(), [&commit]).await;
    let reader = another_process(&backend).await;
    let commits = async || {
        reader
            .core
            .durable
            .load(std::sync::atomic::Ordering::SeqCst)
    };
    assert_eq!(commits().await, 0);
    assert_eq!(stored(&reader, &commit).await.as_ref(), Some(&commit));
    assert_eq!(commits().await, 1);
    reader.by_key(&[key("k")]).await.unwrap();
    assert_eq!(commits().await, 2);
    // Nothing is told by these.
    reader.by_key(&[key("none")]).await.unwrap();
    let undecided = life.commit();
    assert_eq!(stored(&reader, &undecided).await, None);
    assert_eq!(commits().await, 2);
    // That it is fenced is told by this, and is known from then on.
    Life::begin(&backend, NODE).await;
    for _ in 0..2 {
        assert_eq!(stored(&reader, &undecided).await, None);
        assert_eq!(commits().await, 3);
    }
}

/// The flush of a read is a real one: the server's log on disk reaches beyond where its end was before.
#[tokio::test]
async fn a_flush_moves_the_servers_log_to_disk() {
    let backend = InPostgres::fresh().await;
    let mut connection = backend.connect().await;
    run(
        &mut connection,
        "SET synchronous_commit = off; CREATE TABLE unforced (n int)",
    )
    .await;
    let end: String = sqlx::query_scalar("SELECT pg_current_wal_insert_lsn()::text")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    backend
        .log
        .as_ref()
        .unwrap()
        .core
        .prove_durable()
        .await
        .unwrap();
    let reaches: bool = sqlx::query_scalar("SELECT pg_current_wal_flush_lsn() >= $1::text::pg_lsn")
        .bind(end)
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(reaches);
}

/// Design rule 11, as far as it goes here: the mark is in the database, so a restore takes it along.
#[tokio::test]
async fn that_it_went_back_is_forgotten_by_another_restore_and_by_nothing_less() {
    let mut backend = InPostgres::fresh().await;
    let saved = backend.save().await;
    let log = backend.log();
    log.remember_that_it_went_back("why").await.unwrap();
    let other = another_process(&backend).await;
    assert_eq!(other.went_back().await.unwrap().as_deref(), Some("why"));
    drop((log, other));
    backend.go_back(saved).await;
    assert_eq!(backend.log().went_back().await.unwrap(), None);
}

/// The check and the removal are one step for the decisions of every node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_is_not_removed_over_a_decision_under_way() {
    let backend = InPostgres::fresh().await;
    let mut life = Life::begin(&backend, NODE).await;
    let other = another_process(&backend).await;
    let neighbour = other.open_epoch(Node(2)).await.unwrap().writer;
    let east = "east".parse().unwrap();
    other.put_participant(&neighbour, &east, "e").await.unwrap();
    let commit = life.commit();
    backend.hold().await;
    let deciding = tokio::spawn({
        let (log, writer, batch) = (backend.log(), life.writer, batch([&commit]));
        async move { log.decide(&writer, &batch).await }
    });
    backend.reached().await;
    let mut removing = tokio::spawn(async move {
        let removal = other.remove_participant(&neighbour, &east).await.unwrap();
        // And what it locked is free again, with the connection.
        other.put_participant(&neighbour, &east, "e").await.unwrap();
        removal
    });
    // A wait that ends too early could only let a wrong lock pass.
    let removed = tokio::time::timeout(Duration::from_millis(200), &mut removing).await;
    assert!(removed.is_err(), "removed over a write under way");
    backend.release().await;
    deciding.await.unwrap().unwrap();
    assert_eq!(removing.await.unwrap(), Removal::InUse);
}

/// Two coordinators that forget at the same time neither wait for each other for ever nor leave anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_can_forget_at_once() {
    let backend = InPostgres::fresh().await;
    let mut life = Life::begin(&backend, NODE).await;
    let other = another_process(&backend).await;
    let neighbour = other.open_epoch(Node(2)).await.unwrap().writer;
    let aborts: Vec<_> = (0..400).map(|_| life.abort()).collect();
    life.decide(&*backend.log(), &aborts).await;
    let log = backend.log();
    let forget = async |log: &dyn DecisionLog, writer| {
        let mut gone = 0;
        for _ in 0..50 {
            gone += log.forget(writer, WallMillis(i64::MAX), 10).await.unwrap();
        }
        gone
    };
    let (one, two) = tokio::join!(forget(&*log, &life.writer), forget(&other, &neighbour));
    assert_eq!(one + two, 400);
    let last = aborts.last().unwrap().header.id;
    let view = log.look_up(last).await.unwrap();
    assert_eq!((view.record, view.forgotten_through), (None, Some(last)));
    let mut connection = backend.connect().await;
    for table in ["record", "record_participant", "record_label"] {
        until(
            &mut connection,
            &format!("NOT EXISTS (SELECT FROM unanimous.{table})"),
        )
        .await;
    }
}

#[tokio::test]
async fn every_connection_has_its_settings_whatever_the_defaults_are() {
    let mut backend = InPostgres::fresh().await;
    let database = &backend.database;
    let defaults = format!(
        "ALTER DATABASE {database} SET synchronous_commit = off;
         ALTER DATABASE {database} SET default_transaction_isolation = 'serializable';
         ALTER DATABASE {database} SET default_transaction_read_only = on;
         ALTER DATABASE {database} SET idle_session_timeout = '1min'"
    );
    backend.run(defaults).await;
    backend.reopen().await;
    let core = &backend.log.as_ref().unwrap().core;
    let mut life = Life::begin(&backend, NODE).await;
    let commit = life.commit();
    let log = backend.log();
    assert_eq!(life.decide(&*log, [&commit]).await, [Standing::Proposed]);
    let mut writing = core.writing.lock().await;
    let mut reading = core.readers.acquire().await.unwrap();
    for connection in [writing.as_mut().unwrap(), &mut *reading] {
        for (name, expected) in [
            ("synchronous_commit", "on"),
            ("default_transaction_isolation", "read committed"),
            ("default_transaction_read_only", "off"),
            ("idle_in_transaction_session_timeout", "5s"),
            ("idle_session_timeout", "0"),
            ("lock_timeout", "5s"),
            ("statement_timeout", "5s"),
            ("tcp_user_timeout", "10000"),
            ("tcp_keepalives_idle", "5"),
            ("search_path", "pg_catalog"),
        ] {
            let value: String = sqlx::query_scalar("SELECT current_setting($1)")
                .bind(name)
                .fetch_one(&mut *connection)
                .await
                .unwrap();
            assert_eq!(value, expected, "{name}");
        }
    }
}

#[tokio::test]
async fn two_processes_can_make_the_log_at_once() {
    let mut admin = server().connect().await.unwrap();
    let database = format!("log_{:032x}", rand::random::<u128>());
    run(&mut admin, format!("CREATE DATABASE {database}")).await;
    let options = server().database(&database);
    let missing = PostgresLog::open_existing(&options).await.err();
    assert!(matches!(missing, Some(OpenError::Missing)), "{missing:?}");
    let opening: Vec<_> = (0..4)
        .map(|_| {
            let options = options.clone();
            tokio::spawn(async move { PostgresLog::open(&options).await.unwrap() })
        })
        .collect();
    let mut identities = std::collections::BTreeSet::new();
    for opened in opening {
        let head = opened.await.unwrap().head(NODE).await.unwrap();
        assert_eq!(head.former, []);
        identities.insert(head.identity);
    }
    assert_eq!(identities.len(), 1);
    PostgresLog::open_existing(&options).await.unwrap();
    let newer = "INSERT INTO unanimous.coordinator_migrations
                 VALUES (9999, 'newer', now(), true, '', 0)";
    run(&mut options.connect().await.unwrap(), newer).await;
    let error = PostgresLog::open(&options).await.err();
    assert!(
        matches!(error, Some(OpenError::Newer { version: 9999 })),
        "{error:?}"
    );
}

#[tokio::test]
async fn every_statement_finds_its_rows_by_an_index() {
    let backend = InPostgres::fresh().await;
    let mut writing = backend.log.as_ref().unwrap().core.writing.lock().await;
    let connection = writing.as_mut().unwrap();
    run(connection, "SET plan_cache_mode = force_generic_plan").await;
    for (name, sql, parameters) in [
        ("decide", super::sql::DECIDE, 19),
        ("append", super::sql::APPEND, 19),
        ("standing", super::sql::STANDING, 2),
        ("look up", super::sql::LOOK_UP, 3),
        ("by key", super::sql::BY_KEY, 1),
        ("unfinished", super::sql::UNFINISHED, 1),
        ("forget", super::sql::FORGET, 7),
        ("is named", super::sql::IS_NAMED, 1),
        ("mark", super::sql::MARK, 4),
        ("adopt", super::sql::ADOPT, 2),
        ("abandoned", super::sql::ABANDONED, 1),
        ("page by key", super::sql::PAGE_BY_KEY, 8),
        ("page of unfinished", super::sql::PAGE_UNFINISHED, 8),
        ("page by label", super::sql::PAGE_BY_LABEL, 8),
        ("page by participant", super::sql::PAGE_BY_PARTICIPANT, 8),
        ("page of aborted", super::sql::PAGE_ABORTED, 8),
        ("page by time", super::sql::PAGE_BY_TIME, 8),
    ] {
        let nulls = vec!["NULL"; parameters].join(", ");
        run(connection, format!("PREPARE asked AS {sql}")).await;
        let explain = sqlx::AssertSqlSafe(format!("EXPLAIN EXECUTE asked({nulls})"));
        let plan: Vec<String> = sqlx::query_scalar(explain)
            .fetch_all(&mut *connection)
            .await
            .unwrap();
        run(connection, "DEALLOCATE asked").await;
        let plan = plan.join("\n");
        assert!(!plan.contains("Seq Scan on record"), "{name}:\n{plan}");
        assert!(!plan.contains("Hash Join"), "{name}:\n{plan}");
        assert!(!plan.contains("hashed SubPlan"), "{name}:\n{plan}");
        // An index of entries is of use from its first column on.
        for condition in plan.lines().filter(|line| line.contains("Index Cond")) {
            assert!(!condition.contains("((created_at = "), "{name}:\n{plan}");
        }
        // What can be long is read in the list's order, and not all of it.
        let long = [
            "page by label",
            "page by participant",
            "page of aborted",
            "page by time",
        ];
        if long.contains(&name) {
            assert!(!plan.contains("Sort"), "{name}:\n{plan}");
        }
    }
}

/// What needs a server of its own: it is killed, or has other settings.
mod a_server {
    use super::*;

    async fn start(options: Options) -> (Cluster, PgConnectOptions) {
        let cluster = Cluster::start(&options.name("log")).await.unwrap();
        let url = cluster.create_database("log").await.unwrap();
        let options = PgConnectOptions::from_str(&url).unwrap();
        (cluster, options)
    }

    async fn begin(log: &PostgresLog) -> Life {
        Life::of(log.open_epoch(NODE).await.unwrap().writer)
    }

    #[tokio::test]
    async fn that_is_killed_is_unavailable_until_it_is_back() {
        let (mut cluster, options) = start(Options::default()).await;
        let log = PostgresLog::open_with(&options, true, Duration::from_secs(2))
            .await
            .unwrap();
        let mut life = begin(&log).await;
        let [before, unclear, after] = [life.commit(), life.commit(), life.commit()];
        life.decide(&log, [&before]).await;
        cluster.kill();
        for _ in 0..2 {
            let error = log.decide(&life.writer, &batch([&unclear])).await;
            assert!(
                matches!(error, Err(WriteError::Unavailable(_))),
                "{error:?}"
            );
            let error = log.look_up(before.header.id).await;
            assert!(matches!(error, Err(LogError::Unavailable(_))), "{error:?}");
        }
        let unreachable = PostgresLog::open(&options).await.err();
        assert!(
            matches!(unreachable, Some(OpenError::Unavailable(_))),
            "{unreachable:?}"
        );
        cluster.restart().await.unwrap();
        let standings = life.decide(&log, [&unclear, &after]).await;
        assert_eq!(standings, [Standing::Proposed, Standing::Proposed]);
        assert_eq!(stored(&log, &before).await, Some(before));
        assert_eq!(log.unfinished(NODE).await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn that_says_nothing_is_unavailable_after_a_while() {
        let (mut cluster, options) = start(Options::default()).await;
        let log = PostgresLog::open_with(&options, true, Duration::from_millis(500))
            .await
            .unwrap();
        let mut life = begin(&log).await;
        let commit = life.commit();
        cluster.pause();
        let error = log.decide(&life.writer, &batch([&commit])).await;
        assert!(
            matches!(error, Err(WriteError::Unavailable(_))),
            "{error:?}"
        );
        assert!(log.head(NODE).await.is_err());
        cluster.resume();
        let repeat = async {
            while log.decide(&life.writer, &batch([&commit])).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, repeat).await.unwrap();
        assert_eq!(life.decide(&log, [&commit]).await, [Standing::Proposed]);
        assert_eq!(log.unfinished(NODE).await.unwrap(), [commit]);
    }

    #[tokio::test]
    async fn that_does_not_sync_is_refused() {
        for setting in ["fsync", "full_page_writes"] {
            let (_cluster, options) = start(Options::default().setting(setting, "off")).await;
            let error = PostgresLog::open(&options).await.err().unwrap();
            let text = error.to_string();
            assert!(text.contains(&format!("{setting} = off")), "{text}");
        }
    }

    /// A commit whose wait for the standby was cancelled is visible, and may be nowhere but here.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whose_standby_did_not_confirm_is_unclear_and_tells_nothing() {
        let (_cluster, options) = start(Options::default()).await;
        let patience = Duration::from_secs(4);
        let log = Arc::new(
            PostgresLog::open_with(&options, true, patience)
                .await
                .unwrap(),
        );
        let mut life = begin(&log).await;
        let commit = keyed(life.commit(), "k");
        let mut admin = options.connect().await.unwrap();
        let standby = async |connection: &mut PgConnection, names: &str| {
            let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'");
            run(connection, set).await;
            run(connection, "SELECT pg_reload_conf()").await;
            let is_set = format!("current_setting('synchronous_standby_names') = '{names}'");
            until(connection, &is_set).await;
        };
        standby(&mut admin, "nobody").await;
        let deciding = tokio::spawn({
            let (log, writer, batch) = (Arc::clone(&log), life.writer, batch([&commit]));
            async move { log.decide(&writer, &batch).await }
        });
        let waits = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        until(&mut admin, &format!("EXISTS (SELECT {waits})")).await;
        run(&mut admin, format!("SELECT pg_cancel_backend(pid) {waits}")).await;
        let unclear = deciding.await.unwrap();
        let Err(WriteError::Unavailable(cause)) = unclear else {
            panic!("{unclear:?}")
        };
        assert!(cause.to_string().contains("replication"), "{cause}");
        // It is there for everybody to see, and is not told.
        let visible: i64 = sqlx::query_scalar("SELECT count(*) FROM unanimous.record")
            .fetch_one(&mut admin)
            .await
            .unwrap();
        assert_eq!(visible, 1);
        let read = log.look_up(commit.header.id).await;
        assert!(matches!(read, Err(LogError::Unavailable(_))), "{read:?}");
        let read = log.by_key(&[key("k")]).await;
        assert!(matches!(read, Err(LogError::Unavailable(_))), "{read:?}");
        standby(&mut admin, "").await;
        let repeat = async {
            while log.decide(&life.writer, &batch([&commit])).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, repeat).await.unwrap();
        assert_eq!(life.decide(&*log, [&commit]).await, [Standing::Proposed]);
        assert_eq!(stored(&*log, &commit).await, Some(commit));
    }
}
