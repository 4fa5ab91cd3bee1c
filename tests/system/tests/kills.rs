//! Real banks on real Postgres, and SIGKILL at a chosen moment: a proxy in front of a bank holds the call, or its
//! answer, that defines the moment. After every restart both sides must end the same, and soon.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use unanimous_lab::wait::until;
use unanimous_lab::{Process, Program, ports, postgres, testing};

use crate::support::coordinator::client;
use crate::support::{Answer, Coordinator, On, SOON, Stub, on_both_logs};

/// What a restart may take until all is settled, from the moment the process is started again.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);

const BANK: &str = env!("CARGO_BIN_EXE_system-bank");
const OPENING: i64 = 1_000;

/// A bank as a process, on a database of its own, behind a proxy.
struct Bank {
    process: Process,
    url: String,
    database: String,
    proxy: Stub,
}

impl Bank {
    /// Accounts 1 to 4, each with [`OPENING`].
    async fn start(name: &str, database: String, coordinator: &str) -> Self {
        let mut init = Program::new("bank init", BANK)
            .args(["init", "--accounts", "4", "--balance", &OPENING.to_string()])
            .args(["--database-url", &database])
            .start()
            .expect("the bank's program starts");
        let status = init.wait_exit(SOON).await.expect("init ends");
        assert!(status.success(), "bank init: {status}");
        let mut process = Program::new(name, BANK)
            .args(["serve", "--name", name, "--database-url", &database])
            .args([
                "--listen",
                &format!("127.0.0.1:{}", ports::free().expect("a free port")),
            ])
            .args(["--coordinator", coordinator])
            .start()
            .expect("the bank starts");
        let ready = process
            .wait_for_line("ready ", SOON)
            .await
            .expect("the bank becomes ready");
        let url = format!("http://{}", ready.field("listen").expect("its address"));
        let proxy = Stub::in_front_of(name, &url).await;
        Self {
            process,
            url,
            database,
            proxy,
        }
    }

    async fn get(&self, path: &str) -> Value {
        Answer::of(client().get(format!("{}{path}", self.url)))
            .await
            .is(200)
            .body
    }

    async fn balance(&self, account: i64) -> i64 {
        self.get(&format!("/accounts/{account}")).await["balance"]
            .as_i64()
            .expect("a balance")
    }

    /// The branch's state, where the bank has a row of it.
    async fn state(&self, transaction: &str) -> Option<String> {
        let url = format!("{}/unanimous/v1/branches/{transaction}", self.url);
        let answer = Answer::try_of(client().get(url)).await.ok()?;
        answer.body["state"].as_str().map(str::to_owned)
    }

    /// Branches in doubt.
    async fn in_doubt(&self) -> usize {
        let list = self.get("/unanimous/v1/branches?state=prepared").await;
        list["branches"].as_array().expect("a list").len()
    }

    /// How often the transaction moved money here, and what is still held.
    async fn entries_and_held(&self, transaction: &str) -> (i64, i64) {
        let database = postgres::connect(&self.database)
            .await
            .expect("the bank's database answers");
        let entries = database
            .query_one(
                "SELECT count(*) FROM entries WHERE transaction = $1",
                &[&transaction],
            )
            .await
            .expect("entries can be counted");
        let held = database
            .query_one("SELECT coalesce(sum(held), 0)::bigint FROM accounts", &[])
            .await
            .expect("what is held can be summed");
        (entries.get(0), held.get(0))
    }
}

/// Two banks and a coordinator that reaches them through their proxies.
struct Town {
    coordinator: Coordinator,
    east: Bank,
    west: Bank,
}

/// What a transfer may end as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ends {
    Committed,
    Aborted,
}

impl Ends {
    fn state(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
        }
    }
}

const AMOUNT: i64 = 100;

impl Town {
    async fn start(on: On) -> Self {
        let (east, west) = tokio::join!(testing::fresh_database(1), testing::fresh_database(2));
        let made = "a database can be made";
        Self::start_on(on, east.expect(made), west.expect(made)).await
    }

    async fn start_on(on: On, east: String, west: String) -> Self {
        // The banks need the coordinator's address and the coordinator theirs: its port is chosen before it starts.
        let listen = format!("127.0.0.1:{}", ports::free().expect("a free port"));
        let url = format!("http://{listen}");
        let (east, west) = tokio::join!(
            Bank::start("east", east, &url),
            Bank::start("west", west, &url)
        );
        let participants = [("east", east.proxy.url()), ("west", west.proxy.url())];
        let coordinator = Coordinator::start_at(&listen, on, &participants).await;
        Self {
            coordinator,
            east,
            west,
        }
    }

    fn transfer() -> Value {
        let operation = |kind: &str, account: i64| json!([{"kind": kind, "account": account, "amount": AMOUNT}]);
        json!({"commit": true, "timeout_ms": 20_000, "branches": [
            {"participant": "east", "operations": operation("debit", 1)},
            {"participant": "west", "operations": operation("credit", 2)},
        ]})
    }

    /// Sends a transfer with this key, and does not wait for its answer.
    fn send_transfer(&self, key: &str) -> tokio::task::JoinHandle<reqwest::Result<Answer>> {
        let request = self
            .coordinator
            .request(reqwest::Method::POST, "/v1/transactions");
        let request = request
            .header("idempotency-key", key)
            .json(&Self::transfer());
        tokio::spawn(Answer::try_of(request))
    }

    /// Waits until both banks have ended the transaction so and hold nothing, within [`SETTLED_WITHIN`] of `restarted`,
    /// and that the money is where it belongs.
    async fn settles(&self, transaction: &str, ends: Ends, restarted: Instant) {
        for bank in [&self.east, &self.west] {
            let name = &bank.proxy.name;
            until(
                &format!("{transaction} is {ends:?} at {name}"),
                SOON,
                async || {
                    let state = bank.state(transaction).await;
                    // Presumed abort: who never prepared need not have a row.
                    let ended = state.as_deref() == Some(ends.state())
                        || (ends == Ends::Aborted && state.is_none());
                    if ended && bank.in_doubt().await == 0 {
                        Ok(())
                    } else {
                        Err(format!("{state:?}"))
                    }
                },
            )
            .await
            .expect("it settles");
        }
        let took = restarted.elapsed();
        assert!(took < SETTLED_WITHIN, "it took {took:?} to settle");
        let moved = if ends == Ends::Committed { AMOUNT } else { 0 };
        assert_eq!(self.east.balance(1).await, OPENING - moved);
        assert_eq!(self.west.balance(2).await, OPENING + moved);
        let entries = i64::from(ends == Ends::Committed);
        assert_eq!(self.east.entries_and_held(transaction).await, (entries, 0));
        assert_eq!(self.west.entries_and_held(transaction).await, (entries, 0));
    }

    /// The client repeats its request with the same key and is told how it ended.
    async fn repeat_is_told(&self, key: &str, transaction: &str, ends: Ends) {
        let answer = self.coordinator.begin_keyed(key, &Self::transfer()).await;
        match ends {
            Ends::Committed => {
                assert_eq!(answer.status, 200, "{}", answer.text);
                assert_eq!(answer.id(), transaction);
            }
            // No outcome had been recorded, so the repeat is a transaction of its own, and the first is aborted.
            Ends::Aborted => {
                assert_eq!(answer.status, 200, "{}", answer.text);
                assert_ne!(answer.id(), transaction);
                let first = self.coordinator.show(transaction).await.is(200);
                assert_eq!(first.body["outcome"], "aborted", "{}", first.text);
                assert_eq!(first.body["reason"]["code"], "coordinator-restarted");
            }
        }
    }
}

on_both_logs! {
    a_coordinator_killed_after_the_first_commit_message_commits_everywhere
    a_coordinator_killed_before_any_commit_message_arrives_commits_everywhere
    a_coordinator_killed_with_all_votes_in_but_one_undelivered_aborts_everywhere
    a_participant_killed_between_its_yes_and_the_commit_commits
    a_participant_killed_between_its_yes_and_an_abort_aborts
    a_bank_whose_database_is_killed_is_not_ready_and_loses_nothing
    no_transfer_is_lost_or_doubled_while_coordinator_and_bank_are_killed
}

async fn a_coordinator_killed_after_the_first_commit_message_commits_everywhere(on: On) {
    let mut town = Town::start(on).await;
    town.west.proxy.hold("commit");
    let client = town.send_transfer("t1");
    let transaction = town.west.proxy.arrived("commit", 1).await.transaction();
    until("east has committed", SOON, async || {
        town.east.state(&transaction).await.as_deref() == Some("committed")
    })
    .await
    .expect("east is told");
    // The client is answered at the commit point, not after phase two.
    client.await.expect("no panic").expect("an answer").is(200);
    town.coordinator.process.kill();
    assert_eq!(
        town.west.state(&transaction).await.as_deref(),
        Some("prepared")
    );

    town.west.proxy.release("commit");
    let restarted = Instant::now();
    town.coordinator.kill_and_restart().await;
    town.settles(&transaction, Ends::Committed, restarted).await;
    town.repeat_is_told("t1", &transaction, Ends::Committed)
        .await;
    town.coordinator.reaches(&transaction, "committed").await;
}

async fn a_coordinator_killed_before_any_commit_message_arrives_commits_everywhere(on: On) {
    let mut town = Town::start(on).await;
    town.east.proxy.hold("commit");
    town.west.proxy.hold("commit");
    let client = town.send_transfer("t1");
    let transaction = town.west.proxy.arrived("commit", 1).await.transaction();
    town.east.proxy.arrived("commit", 1).await;
    client.await.expect("no panic").expect("an answer").is(200);
    town.coordinator.process.kill();
    for bank in [&town.east, &town.west] {
        assert_eq!(bank.state(&transaction).await.as_deref(), Some("prepared"));
    }
    // What was under way to the banks is lost with its sender; only the log knows.
    let restarted = Instant::now();
    town.coordinator.kill_and_restart().await;
    town.east.proxy.release("commit");
    town.west.proxy.release("commit");
    town.settles(&transaction, Ends::Committed, restarted).await;
    town.repeat_is_told("t1", &transaction, Ends::Committed)
        .await;
}

async fn a_coordinator_killed_with_all_votes_in_but_one_undelivered_aborts_everywhere(on: On) {
    let mut town = Town::start(on).await;
    // Both banks have voted yes, durably. The last vote does not reach the coordinator, so nothing is decided.
    town.west.proxy.hold_answers("prepare");
    let client = town.send_transfer("t1");
    let transaction = town.west.proxy.arrived("prepare", 1).await.transaction();
    for bank in [&town.east, &town.west] {
        until("the bank has voted yes", SOON, async || {
            bank.state(&transaction).await.as_deref() == Some("prepared")
        })
        .await
        .expect("it votes");
    }
    town.coordinator.process.kill();
    client
        .await
        .expect("no panic")
        .expect_err("nobody is told anything");
    town.west.proxy.release("prepare");
    for bank in [&town.east, &town.west] {
        let state = bank.state(&transaction).await;
        assert_eq!(
            state.as_deref(),
            Some("prepared"),
            "a yes is never taken back alone"
        );
    }
    let restarted = Instant::now();
    town.coordinator.kill_and_restart().await;
    town.settles(&transaction, Ends::Aborted, restarted).await;
    town.repeat_is_told("t1", &transaction, Ends::Aborted).await;
}

impl Town {
    /// Sends a transfer whose decision can not be written, and kills the coordinator with both votes in.
    async fn killed_while_deciding(&mut self, on: On) -> String {
        let client = self.send_transfer("t1");
        let transaction = self.west.proxy.arrived("prepare", 1).await.transaction();
        self.coordinator.reaches(&transaction, "deciding").await;
        if let On::Postgres = on {
            // The server has it, and will carry it out whoever waits for the answer.
            let log = self.coordinator.log();
            until("the write waits in the server", SOON, async || {
                log.waiting_for_a_lock().await == 1
            })
            .await
            .expect("it gets there");
        }
        self.coordinator.process.kill();
        client
            .await
            .expect("no panic")
            .expect_err("nobody is told anything");
        for bank in [&self.east, &self.west] {
            let state = bank.state(&transaction).await;
            assert_eq!(state.as_deref(), Some("prepared"));
        }
        transaction
    }
}

#[tokio::test]
async fn a_coordinator_killed_with_all_votes_in_before_its_decision_is_durable_aborts_everywhere() {
    let mut town = Town::start(On::Sqlite).await;
    let held = town.coordinator.log().hold_decision("t1").await;
    let transaction = town.killed_while_deciding(On::Sqlite).await;
    drop(held);
    let restarted = Instant::now();
    town.coordinator.kill_and_restart().await;
    town.settles(&transaction, Ends::Aborted, restarted).await;
    town.repeat_is_told("t1", &transaction, Ends::Aborted).await;
}

#[tokio::test]
async fn a_decision_write_that_outlives_its_coordinator_commits_everywhere() {
    let mut town = Town::start(On::Postgres).await;
    let log = Arc::clone(town.coordinator.log());
    let held = log.hold_decision("t1").await;
    let transaction = town.killed_while_deciding(On::Postgres).await;
    // The server does not know that nobody waits for its answer: the write is still under way, with the lock on its
    // epoch. The next life may not read what is unfinished before it has ended (design section 4).
    let release = async {
        let both_wait = "the old life's write and the new life's epoch both wait";
        until(both_wait, SOON, async || {
            log.waiting_for_a_lock().await == 2
        })
        .await
        .expect("the next life waits for the write");
        drop(held);
    };
    let restarted = Instant::now();
    tokio::join!(town.coordinator.kill_and_restart(), release);
    town.settles(&transaction, Ends::Committed, restarted).await;
    town.repeat_is_told("t1", &transaction, Ends::Committed)
        .await;
}

async fn a_participant_killed_between_its_yes_and_the_commit_commits(on: On) {
    let mut town = Town::start(on).await;
    town.west.proxy.hold("commit");
    let client = town.send_transfer("t1");
    let transaction = town.west.proxy.arrived("commit", 1).await.transaction();
    client.await.expect("no panic").expect("an answer").is(200);
    town.west.process.kill();
    let restarted = Instant::now();
    town.west.process.restart().expect("the bank starts again");
    town.west
        .process
        .wait_for_line("ready ", SOON)
        .await
        .expect("the bank becomes ready");
    // The commit message is still held: the bank finds its row and asks by itself.
    town.settles(&transaction, Ends::Committed, restarted).await;
    town.west.proxy.release("commit");
    town.coordinator.reaches(&transaction, "committed").await;
    assert_eq!(
        town.west.entries_and_held(&transaction).await.0,
        1,
        "and applied once"
    );
}

async fn a_participant_killed_between_its_yes_and_an_abort_aborts(on: On) {
    let mut town = Town::start(on).await;
    town.west.proxy.hold("abort");
    town.east.proxy.hold("prepare");
    let client = town.send_transfer("t1");
    let transaction = town.west.proxy.arrived("prepare", 1).await.transaction();
    until("west has voted yes", SOON, async || {
        town.west.state(&transaction).await.as_deref() == Some("prepared")
    })
    .await
    .expect("it votes");
    town.coordinator.abort(&transaction).await.is(200);
    client
        .await
        .expect("no panic")
        .expect("an answer")
        .aborted("requested");
    town.west.process.kill();
    let restarted = Instant::now();
    town.west.process.restart().expect("the bank starts again");
    town.west
        .process
        .wait_for_line("ready ", SOON)
        .await
        .expect("the bank becomes ready");
    town.east.proxy.release("prepare");
    town.settles(&transaction, Ends::Aborted, restarted).await;
    town.west.proxy.release("abort");
    // The prepare that was held comes after the abort, and loses to it.
    until("east's late prepare has lost", SOON, async || {
        town.east.state(&transaction).await.as_deref() == Some("aborted")
    })
    .await
    .expect("a tombstone stays");
    assert_eq!(town.east.balance(1).await, OPENING);
}

async fn a_bank_whose_database_is_killed_is_not_ready_and_loses_nothing(on: On) {
    // A server of its own: this one is killed.
    let mut server = unanimous_lab::Cluster::start(&unanimous_lab::Options::default().name("west"))
        .await
        .expect("a server starts");
    let made = "a database can be made";
    let west = server.create_database("bank").await.expect(made);
    let east = testing::fresh_database(1).await.expect(made);
    let town = Town::start_on(on, east, west).await;
    let transfer = Town::transfer();
    town.coordinator.begin_keyed("t1", &transfer).await.is(200);
    server.kill();
    until("the bank is not ready", SOON, async || {
        let url = format!("{}/readyz", town.west.url);
        Answer::try_of(client().get(url))
            .await
            .is_ok_and(|answer| answer.status == 503)
    })
    .await
    .expect("it says so");
    // A prepare is answered 503, which is unknown: the transaction waits for its deadline.
    let waiting = {
        let request = town
            .coordinator
            .request(reqwest::Method::POST, "/v1/transactions");
        tokio::spawn(Answer::try_of(
            request.header("idempotency-key", "t2").json(&transfer),
        ))
    };
    town.west.proxy.arrived("prepare", 3).await;
    server.restart().await.expect("the server starts again");
    waiting.await.expect("no panic").expect("an answer").is(200);
    until("both transfers are applied", SOON, async || {
        town.west.balance(2).await == OPENING + 2 * AMOUNT
    })
    .await
    .expect("nothing is lost");
    assert_eq!(town.east.balance(1).await, OPENING - 2 * AMOUNT);
}

/// One transfer of the load: amounts differ, so that a doubled and a lost one can not make up for each other.
fn transfer_of(number: usize) -> (Value, i64) {
    let amount = i64::try_from(number % 17).expect("it is small") + 1;
    let account = number % 4 + 1;
    let operation = |kind: &str| json!([{"kind": kind, "account": account, "amount": amount}]);
    let (east, west) = if number.is_multiple_of(2) {
        ("debit", "credit")
    } else {
        ("credit", "debit")
    };
    let body = json!({"commit": true, "timeout_ms": 10_000, "branches": [
        {"participant": "east", "operations": operation(east)},
        {"participant": "west", "operations": operation(west)},
    ]});
    (body, amount)
}

/// Repeats the request with its key until it is told how it ended: the transaction, where it committed.
async fn told(client: &reqwest::Client, url: &str, number: usize) -> Option<String> {
    let (body, _) = transfer_of(number);
    until(
        &format!("transfer {number} is told"),
        3 * SOON,
        async || {
            let request = client.post(format!("{url}/v1/transactions"));
            let request = request
                .header("idempotency-key", format!("transfer {number}"))
                .json(&body);
            match Answer::try_of(request).await {
                Ok(answer) if answer.status == 200 => Ok(Some(answer.id())),
                Ok(answer) if answer.status == 409 => Ok(None),
                Ok(answer) => Err(answer.text),
                Err(error) => Err(error.to_string()),
            }
        },
    )
    .await
    .expect("every client is told")
}

async fn no_transfer_is_lost_or_doubled_while_coordinator_and_bank_are_killed(on: On) {
    const TRANSFERS: usize = 400;
    const CLIENTS: usize = 16;
    let mut town = Town::start(on).await;
    let url = town.coordinator.url().to_owned();
    let (client, next) = (client(), AtomicUsize::new(0));
    let clients = (0..CLIENTS).map(|_| async {
        let mut committed = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= TRANSFERS {
                return committed;
            }
            if let Some(transaction) = told(&client, &url, number).await {
                committed.push((transaction, number));
            }
        }
    });
    let kills = async {
        for kill in 1..=4 {
            until("the load goes on", 3 * SOON, async || {
                next.load(Ordering::Relaxed) > kill * TRANSFERS / 6
            })
            .await
            .expect("it goes on");
            if kill.is_multiple_of(2) {
                let bank = &mut town.west.process;
                bank.restart().expect("the bank starts again");
                bank.wait_for_line("ready ", SOON)
                    .await
                    .expect("it becomes ready");
            } else {
                town.coordinator.kill_and_restart().await;
            }
        }
    };
    let (committed, ()) = tokio::join!(join_all(clients), kills);
    let committed: BTreeMap<_, _> = committed.into_iter().flatten().collect();
    assert!(
        committed.len() > TRANSFERS / 2,
        "only {} committed",
        committed.len()
    );
    for bank in [&town.east, &town.west] {
        until(
            &format!("nothing is in doubt at {}", bank.proxy.name),
            SOON,
            async || bank.in_doubt().await == 0,
        )
        .await
        .expect("all settles");
    }
    town.audit(&committed).await;
}

impl Town {
    /// Every transfer that a client was told to be committed moved its money once at both banks, and nothing else did.
    async fn audit(&self, committed: &BTreeMap<String, usize>) {
        for (bank, debits_even) in [(&self.east, true), (&self.west, false)] {
            let database = postgres::connect(&bank.database)
                .await
                .expect("the database answers");
            let rows = database
                .query("SELECT transaction, amount, account FROM entries", &[])
                .await
                .expect("entries can be read");
            let mut moved = BTreeMap::new();
            for row in &rows {
                let earlier = moved.insert(row.get::<_, String>(0), row.get::<_, i64>(1));
                assert_eq!(earlier, None, "applied twice: {}", row.get::<_, String>(0));
            }
            let expected: BTreeMap<_, _> = committed
                .iter()
                .map(|(transaction, &number)| {
                    let (_, amount) = transfer_of(number);
                    let debit = (number.is_multiple_of(2)) == debits_even;
                    (transaction.clone(), if debit { -amount } else { amount })
                })
                .collect();
            assert_eq!(moved, expected, "at {}", bank.proxy.name);
            assert_eq!(
                bank.entries_and_held("").await.1,
                0,
                "something is still held"
            );
            let total = bank.get("/total").await["balance"]
                .as_i64()
                .expect("a balance");
            assert_eq!(total, 4 * OPENING + expected.values().sum::<i64>());
        }
    }
}
