//! The bank's program, as a coordinator and a reader see it. `UNANIMOUS_TEST_POSTGRES_1` is the URL of a superuser on a
//! private cluster; every test takes a database of its own there.

#![allow(
    clippy::unwrap_used,
    reason = "a test that can not go on says so by panicking"
)]
#![allow(clippy::print_stdout, reason = "what is measured is printed")]

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use deadpool_postgres::Pool;
use serde_json::{Value, json};
use tokio_postgres::NoTls;
use unanimous_bank::bank::{self, Bank as BankCode, Operation};
use unanimous_participant::{Failure, testing::Trial, watched};

const BANK: &str = env!("CARGO_BIN_EXE_bank");

/// A database that nobody else uses.
async fn fresh_database() -> String {
    let url = std::env::var("UNANIMOUS_TEST_POSTGRES_1").expect(
        "UNANIMOUS_TEST_POSTGRES_1 must be the URL of a superuser on a private Postgres cluster (`make test` sets it)",
    );
    let name = format!("bank_{:032x}", rand::random::<u128>());
    let (admin, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    admin
        .batch_execute(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

fn init(database: &str, accounts: u32, balance: u32) {
    let status = Command::new(BANK)
        .args(["init", "--database-url", database])
        .args(["--accounts", &accounts.to_string()])
        .args(["--balance", &balance.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// A bank that runs, and is killed when the test ends.
struct Bank {
    process: Child,
    url: String,
    http: reqwest::Client,
}

impl Drop for Bank {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

impl Bank {
    fn serve(database: &str) -> Self {
        Self::ready(Self::starting(database).spawn().unwrap())
    }

    fn starting(database: &str) -> Command {
        let mut command = Command::new(BANK);
        command
            .args(["serve", "--listen", "127.0.0.1:0"])
            .env("BANK_NAME", "east")
            .env("BANK_DATABASE_URL", database)
            .env("BANK_COORDINATOR", "http://127.0.0.1:9")
            .stdout(Stdio::piped());
        command
    }

    /// Waits until it is.
    fn ready(mut process: Child) -> Self {
        let mut line = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let listen = line.trim_end().strip_prefix("ready listen=").unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            url: format!("http://{listen}"),
            process,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }

    async fn post(&self, route: &str, body: &Value) -> (u16, Value) {
        let url = format!("{}/unanimous/v1/{route}", self.url);
        let response = self.http.post(url).json(body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    async fn prepare(&self, number: u32, operations: Value) -> (u16, Value) {
        let body = json!({"transaction": id(number), "participant": "east", "operations": operations,
                          "remaining_ms": 10_000, "begun_at_ms": number});
        self.post("prepare", &body).await
    }

    async fn outcome(&self, route: &str, number: u32) {
        let body = json!({"transaction": id(number), "participant": "east"});
        let (status, answer) = self.post(route, &body).await;
        assert_eq!(status, 200, "{answer}");
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let response = self.http.get(format!("{}{path}", self.url)).send().await;
        let response = response.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }
}

fn id(number: u32) -> String {
    format!("00000001-0001-8000-8000-1000{number:08x}")
}

fn debit(account: i64, amount: i64) -> Value {
    json!({"kind": "debit", "account": account, "amount": amount})
}

fn credit(account: i64, amount: i64) -> Value {
    json!({"kind": "credit", "account": account, "amount": amount})
}

/// All that a bank keeps of its accounts and of what moved.
type Books = (Vec<(i64, i64, i64)>, i64);

#[tokio::test]
async fn the_banks_code_keeps_its_promises() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let database = fresh_database().await;
    let config: tokio_postgres::Config = database.parse().unwrap();
    bank::init(&config, 2, 1_000).await.unwrap();
    let pool = Pool::builder(watched(config, NoTls))
        .max_size(5)
        .build()
        .unwrap();
    let look = async || -> Result<Books, Failure> {
        let connection = pool.get().await?;
        let accounts = "SELECT id, balance, held FROM accounts ORDER BY id";
        let accounts = connection.query(accounts, &[]).await?;
        let accounts = accounts
            .iter()
            .map(|row| (row.get(0), row.get(1), row.get(2)));
        let entries = connection
            .query_one("SELECT count(*) FROM entries", &[])
            .await?;
        Ok((accounts.collect(), entries.get(0)))
    };
    let operation = |value: Value| serde_json::from_value::<Operation>(value).unwrap();
    let mut trial = Trial::start(pool.clone(), || BankCode).await.unwrap();
    for operations in [
        vec![operation(debit(1, 10))],
        vec![operation(credit(2, 10))],
        vec![operation(debit(1, 10)), operation(credit(2, 10))],
        // Only three of these can be promised at once.
        vec![operation(debit(1, 200))],
    ] {
        trial.routine(&operations, look).await.unwrap();
    }
}

#[tokio::test]
async fn money_that_is_held_is_in_the_ledger_until_the_commit_and_can_not_be_promised_twice() {
    let database = fresh_database().await;
    init(&database, 3, 100);
    let bank = Bank::serve(&database);
    let (_, vote) = bank.prepare(1, json!([debit(1, 60), credit(2, 60)])).await;
    assert_eq!(vote["vote"], "yes");
    assert_eq!(
        bank.get("/accounts/1").await.1,
        json!({"account": 1, "balance": 100})
    );
    let (_, vote) = bank.prepare(2, json!([debit(1, 60)])).await;
    assert_eq!(
        (&vote["vote"], &vote["reason"]),
        (&json!("no"), &json!("insufficient funds"))
    );
    let (_, vote) = bank.prepare(3, json!([debit(1, 40)])).await;
    assert_eq!(vote["vote"], "yes");
    bank.outcome("commit", 1).await;
    bank.outcome("abort", 3).await;
    assert_eq!(bank.get("/accounts/1").await.1["balance"], 40);
    assert_eq!(bank.get("/accounts/2").await.1["balance"], 160);
    let (_, vote) = bank.prepare(4, json!([debit(1, 40)])).await;
    assert_eq!(
        vote["vote"], "yes",
        "what was given back can be promised again"
    );
    assert_eq!(
        bank.get("/total").await.1,
        json!({"accounts": 3, "balance": 300})
    );

    let (sql, connection) = tokio_postgres::connect(&database, NoTls).await.unwrap();
    tokio::spawn(connection);
    let rows = sql
        .query(
            "SELECT transaction, account, amount FROM entries ORDER BY account",
            &[],
        )
        .await
        .unwrap();
    let entries: Vec<(String, i64, i64)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    assert_eq!(entries, [(id(1), 1, -60), (id(1), 2, 60)]);
}

#[tokio::test]
async fn two_debits_of_60_from_100_in_one_branch_are_refused() {
    let database = fresh_database().await;
    init(&database, 1, 100);
    let bank = Bank::serve(&database);
    let (_, vote) = bank.prepare(1, json!([debit(1, 60), debit(1, 60)])).await;
    assert_eq!(
        (&vote["vote"], &vote["reason"]),
        (&json!("no"), &json!("insufficient funds"))
    );
    let (_, vote) = bank.prepare(2, json!([debit(1, 100)])).await;
    assert_eq!(vote["vote"], "yes", "nothing of the refused branch is held");
}

#[tokio::test]
async fn what_is_no_operation_of_a_bank_is_refused_with_the_reason() {
    let database = fresh_database().await;
    init(&database, 1, 100);
    let bank = Bank::serve(&database);
    for (number, (operation, reason)) in (1..).zip([
        (debit(1, -1), "positive"),
        (debit(1, 0), "positive"),
        (json!({"kind": "debit", "account": 1, "amount": 1.5}), "1.5"),
        (
            json!({"kind": "debit", "account": 1, "amount": "5"}),
            "string",
        ),
        (json!({"kind": "debit", "account": 1}), "amount"),
        (
            json!({"kind": "debit", "account": 1, "amount": 1, "fee": 1}),
            "fee",
        ),
        (json!({"kind": "rob"}), "rob"),
        (json!(7), "7"),
    ]) {
        let (status, problem) = bank.prepare(number, json!([operation])).await;
        assert_eq!((status, &problem["code"]), (400, &json!("invalid-request")));
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(reason), "{detail}");
    }
    let (_, vote) = bank.prepare(20, json!([credit(2, 1)])).await;
    assert_eq!(vote["reason"], "there is no account 2");
    let (_, vote) = bank.prepare(21, json!([debit(2, 1)])).await;
    assert_eq!(vote["vote"], "no");
    let (_, vote) = bank.prepare(22, json!([credit(1, i64::MAX)])).await;
    assert_eq!(vote["vote"], "no");
    let body = vec![b'x'; 256 * 1024 + 1];
    let url = format!("{}/unanimous/v1/prepare", bank.url);
    let response = bank.http.post(url).body(body).send().await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(bank.get("/unanimous/v1/nothing").await.0, 404);
    assert_eq!(
        bank.get("/unanimous/v1/describe").await.1["participant"],
        "east"
    );
    assert_eq!(bank.get("/accounts/2").await.0, 404);
    assert_eq!(bank.get("/accounts/x").await.0, 404);
}

#[tokio::test]
async fn a_bank_that_is_killed_after_its_yes_keeps_it_and_init_starts_over() {
    let database = fresh_database().await;
    init(&database, 1, 100);
    let bank = Bank::serve(&database);
    let (_, vote) = bank.prepare(1, json!([debit(1, 60)])).await;
    assert_eq!(vote["vote"], "yes");
    drop(bank);
    let mut bank = Bank::serve(&database);
    assert_eq!(bank.get("/readyz").await.0, 200);
    assert_eq!(bank.get("/healthz").await.0, 200);
    bank.outcome("commit", 1).await;
    assert_eq!(bank.get("/total").await.1["balance"], 40);
    init(&database, 2, 10);
    assert_eq!(
        bank.get("/total").await.1,
        json!({"accounts": 2, "balance": 20})
    );
    let branches = bank.get("/unanimous/v1/branches").await.1;
    assert_eq!(branches["branches"], json!([]));

    let pid = bank.process.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let asked = Instant::now();
    assert!(bank.process.wait().unwrap().success());
    assert!(asked.elapsed() < Duration::from_secs(7));
}

/// How many of a process's sockets listen, by `/proc`.
fn sockets_that_listen(pid: u32) -> usize {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let open: Vec<_> = open
        .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        .collect();
    let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let listens = sockets.lines().filter(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let socket = format!("socket:[{}]", columns.get(9).unwrap_or(&""));
        columns.get(3) == Some(&"0A") && open.iter().any(|file| file.as_os_str() == socket.as_str())
    });
    listens.count()
}

#[tokio::test]
async fn a_bank_that_can_not_start_says_why_and_is_never_ready() {
    let database = fresh_database().await;
    let ended = Bank::starting(&database)
        .args(["--connections", "2"])
        .output()
        .unwrap();
    assert!(!ended.status.success());
    assert!(ended.stdout.is_empty());
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("needs at least 3"), "{said}");
}

#[tokio::test]
async fn a_bank_whose_database_is_not_there_yet_waits_for_it() {
    let database = fresh_database().await;
    let later = format!("{database}_later");
    let (_, name) = later.rsplit_once('/').unwrap();
    let (admin, connection) = tokio_postgres::connect(&database, NoTls).await.unwrap();
    tokio::spawn(connection);
    let mut starting = Bank::starting(&later)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(starting.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("not ready yet")));
    // It goes on saying so, and somebody has to read it.
    std::thread::spawn(move || said.for_each(drop));
    assert!(starting.try_wait().unwrap().is_none(), "it waits");
    assert_eq!(sockets_that_listen(starting.id()), 0);
    admin
        .batch_execute(&format!("CREATE DATABASE {name}"))
        .await
        .unwrap();
    init(&later, 1, 1);
    let bank = Bank::ready(starting);
    assert_eq!(sockets_that_listen(bank.process.id()), 1);
    assert_eq!(bank.get("/readyz").await.0, 200);
    // Gone again: not ready, and it says so in bounded time.
    for statement in [
        format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"),
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
    ] {
        admin.batch_execute(&statement).await.unwrap();
    }
    let asked = Instant::now();
    assert_eq!(bank.get("/readyz").await.0, 503);
    assert!(asked.elapsed() < Duration::from_secs(5));
    assert_eq!(bank.get("/healthz").await.0, 200);
}
