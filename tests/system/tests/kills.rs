//! Real banks on real Postgres, and SIGKILL at a chosen moment: a proxy in front of a bank holds the call, or its
//! answer, that defines the moment. After every restart both sides must end the same, and soon.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use unanimous_lab::audit::{self, Books, Evidence};
use unanimous_lab::town::{BankAt, Site};
use unanimous_lab::transfer::Side;
use unanimous_lab::wait::until;
use unanimous_lab::{Load, Process, Program, Transfers, ports, postgres, testing};

use crate::support::coordinator::client;
use crate::support::{Answer, Checked, Coordinator, On, SOON, Stub, on_both_logs};

/// What a restart may take until all is settled, from the moment the process is started again.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);

const BANK: &str = env!("CARGO_BIN_EXE_system-bank");
const OPENING: i64 = 1_000;
const ACCOUNTS: i64 = 4;

/// A bank as a process, on a database of its own, behind a proxy.
struct Bank {
    process: Process,
    url: String,
    database: String,
    proxy: Stub,
}

impl Bank {
    /// Accounts 1 to [`ACCOUNTS`], each with [`OPENING`].
    async fn start(name: &str, database: String, coordinator: &str) -> Self {
        let mut init = Program::new("bank init", BANK)
            .args(["init", "--accounts", &ACCOUNTS.to_string()])
            .args(["--balance", &OPENING.to_string()])
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

async fn no_transfer_is_lost_or_doubled_while_coordinator_and_bank_are_killed(on: On) {
    const TRANSFERS: usize = 400;
    const CLIENTS: usize = 16;
    const KILLS: usize = 4;
    let mut town = Town::start(on).await;
    let work = Transfers {
        seed: 1,
        accounts: ACCOUNTS,
        amount_max: 17,
    };
    let site = town.site();
    let before = Books::read_both(&site).await.expect("books can be read");
    let load = Load::start(Checked(work), CLIENTS, town.coordinator.address());
    load.allow(TRANSFERS);
    for kill in 1..=KILLS {
        let told = load.told_at_least(kill * TRANSFERS / (KILLS + 2)).await;
        assert!(told.expect("the load goes on"), "a client gave up");
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
    let ended = load.finish().await.expect("every client is told");
    audit::settled(&site, SOON).await.expect("all settles");
    let evidence = Evidence::collect(&site, ended.asked, work.by_key(TRANSFERS), before);
    let report = evidence.await.expect("books and log can be read").examine();
    assert_eq!(report.findings, []);
    assert_eq!(report.told.committed + report.told.aborted, TRANSFERS);
    assert!(report.told.committed > TRANSFERS / 2, "{report:?}");
}

impl Town {
    /// Where the one audit looks.
    fn site(&self) -> Site {
        let at = |side, bank: &Bank| BankAt {
            side,
            url: bank.url.clone(),
            database_url: bank.database.clone(),
        };
        let banks = [at(Side::East, &self.east), at(Side::West, &self.west)];
        Site::new(self.coordinator.url(), banks).expect("a client can be made")
    }
}
