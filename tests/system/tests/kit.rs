//! The conformance kit passes our own bank; and a service in another language takes part beside it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use actix_web::{App, HttpServer};
use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio_postgres::NoTls;
use unanimous_lab::check::{Finished, Kit, Life, Options};
use unanimous_lab::testing::{fresh_database, python};
use unanimous_lab::wait::until;
use unanimous_lab::{Cluster, Process, Program, ports};
use unanimous_participant::deadpool_postgres::Pool;
use unanimous_participant::{
    Failure, Key, Participant, ParticipantName, Resource, Tx, Vote, watched,
};
use unanimous_protocol::operations::Operations;

use crate::support::coordinator::{BANK, client};
use crate::support::{Coordinator, SOON};

async fn started(program: &Program) -> anyhow::Result<Process> {
    let mut process = program.start()?;
    process.wait_for_line("ready", SOON).await?;
    Ok(process)
}

fn address() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, ports::free().expect("a port")).into()
}

async fn filled(database: &str, accounts: u32, balance: u64) {
    let init = Program::new("bank-init", BANK)
        .args(["init", "--database-url", database])
        .args(["--accounts", &accounts.to_string()])
        .args(["--balance", &balance.to_string()])
        .start();
    let status = init.expect("it starts").wait_exit(SOON).await;
    assert!(status.expect("it ends").success());
}

fn bank(name: &str, database: &str, listen: SocketAddr, coordinator: &str) -> Program {
    Program::new(name, BANK)
        .args(["serve", "--name", name, "--database-url", database])
        .args(["--listen", &listen.to_string()])
        .args(["--coordinator", coordinator])
}

async fn json_of(url: &str) -> anyhow::Result<Value> {
    Ok(client()
        .get(url)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?)
}

/// A bank, and the server that its database is on: a restart kills both.
struct Machine {
    cluster: Cluster,
    database: String,
    listen: SocketAddr,
    bank: Option<Process>,
}

impl Machine {
    async fn restart(&mut self, life: Life) -> anyhow::Result<String> {
        if let Some(mut bank) = self.bank.take() {
            bank.kill();
            // What was answered has to be on the disk, and not only in the server's memory.
            self.cluster.kill();
            self.cluster.restart().await?;
        }
        let name = life
            .name
            .map_or_else(|| "east".to_owned(), |name| name.to_string());
        let mut program = bank(&name, &self.database, self.listen, &life.coordinator);
        if let Some(former) = &life.former {
            program = program.args(["--formerly", former.as_str()]);
        }
        self.bank = Some(started(&program).await?);
        Ok("the bank and its database were killed, and started again".to_owned())
    }
}

#[tokio::test]
async fn the_bank_keeps_the_contract() {
    let cluster = Cluster::start(&unanimous_lab::Options::default()).await;
    let cluster = cluster.expect("a server");
    let database = cluster.create_database("east").await.expect("a database");
    filled(&database, 2, 1_000_000).await;
    let listen = address();
    let machine = Arc::new(Mutex::new(Machine {
        cluster,
        database,
        listen,
        bank: None,
    }));
    let operations = |value: Value| Operations::parse(&value.to_string()).expect("operations");
    let debit = |account: u32, amount: u64| json!([{"kind": "debit", "account": account, "amount": amount}]);
    let account = format!("http://{listen}/accounts/1");
    let mut kit = Kit::listen(Options {
        operations: operations(debit(1, 1)),
        refused: Some(operations(debit(1, 1_000_000_000))),
        exclusive: Some(operations(debit(2, 1_000_000))),
        read_only: Some(operations(
            json!([{"kind": "check", "account": 1, "at_least": 1}]),
        )),
        renamed: Some("orient".parse().expect("a name")),
        restart: Some(Arc::new({
            let machine = Arc::clone(&machine);
            move |life| {
                let machine = Arc::clone(&machine);
                Box::pin(async move { machine.lock().await.restart(life).await })
            }
        })),
        look: Some(Arc::new(move || {
            let account = account.clone();
            Box::pin(async move { Ok(json_of(&account).await?.to_string()) })
        })),
        ..Options::of_a_bank(format!("http://{listen}/unanimous"))
    })
    .await
    .expect("the kit listens");
    kit.meet().await.expect("the bank answers");
    let card = kit.run(|_| {}).await;
    let told: String = card
        .checks
        .iter()
        .map(|check: &Finished| check.lines(false))
        .collect();
    assert!(card.is_passed(), "{told}");
    assert!(card.not_applicable().is_empty(), "{told}");
}

/// The participant in Python, on a database of its own.
async fn stock(database: &str, listen: SocketAddr, coordinator: &str) -> anyhow::Result<Process> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/python/participant.py");
    let script = script.to_str().context("a path in UTF-8")?;
    let program = Program::new("stock", python()?)
        .args([script, "--name", "stock", "--database", database])
        .args([
            "--listen",
            &listen.to_string(),
            "--coordinator",
            coordinator,
        ])
        .args(["--stock", "tea=10"]);
    started(&program).await
}

#[tokio::test]
async fn a_service_in_python_and_a_bank_commit_together_or_not_at_all() {
    let (at_coordinator, at_east, at_stock) = (address(), address(), address());
    let url = format!("http://{at_coordinator}");
    let (of_east, of_stock) = (fresh_database(1).await, fresh_database(2).await);
    let (of_east, of_stock) = (of_east.expect("a database"), of_stock.expect("a database"));
    filled(&of_east, 1, 100).await;
    let east = started(&bank("east", &of_east, at_east, &url)).await;
    let _east = east.expect("the bank starts");
    let mut tea = stock(&of_stock, at_stock, &url)
        .await
        .expect("the stock starts");
    let participants = [
        ("east", format!("http://{at_east}/unanimous")),
        ("stock", format!("http://{at_stock}")),
    ];
    let listen = at_coordinator.to_string();
    let mut coordinator =
        Coordinator::start_at(&listen, crate::support::On::Sqlite, &participants).await;
    let buy = |count: u32| {
        json!({"commit": true, "wait": "applied", "timeout_ms": 20_000, "branches": [
            {"participant": "east", "operations": [{"kind": "debit", "account": 1, "amount": 7 * count}]},
            {"participant": "stock", "operations": [{"kind": "reserve", "item": "tea", "count": count}]}]})
    };
    let there = async |balance: u32, there: u32| {
        let bank = json_of(&format!("http://{at_east}/accounts/1"))
            .await
            .expect("an account");
        assert_eq!(bank["balance"], balance, "{bank}");
        let stock = json_of(&format!("http://{at_stock}/stock/tea"))
            .await
            .expect("tea");
        assert_eq!(stock["there"], there, "{stock}");
    };
    coordinator.begin(&buy(4)).await.is(200);
    there(72, 6).await;
    // More than there is: the service in Python refuses, and its words reach the client.
    let refused = coordinator.begin(&buy(7)).await.is(409);
    assert_eq!(refused.body["reason"]["participant"], "stock");
    assert_eq!(refused.body["reason"]["detail"], "not enough tea in stock");
    there(72, 6).await;
    // More than the money: the bank refuses, and the service in Python gives back what it held.
    let too_dear = json!({"commit": true, "branches": [
        {"participant": "stock", "operations": [{"kind": "reserve", "item": "tea", "count": 6}]},
        {"participant": "east", "operations": [{"kind": "debit", "account": 1, "amount": 73}]}]});
    let refused = coordinator.begin(&too_dear).await.is(409);
    assert_eq!(refused.body["reason"]["participant"], "east");
    let id = refused.body["transaction"]["id"].as_str().expect("an id");
    coordinator.reaches(id, "aborted").await;
    coordinator.begin(&buy(6)).await.is(200);
    there(30, 0).await;

    // Both are killed with a branch in doubt between them; the participant asks, and is told.
    let open = coordinator.open().await;
    let prepare = json!({"transaction": open, "participant": "stock", "remaining_ms": 20_000, "begun_at_ms": 1,
                         "operations": []});
    let voted = client()
        .post(format!("http://{at_stock}/v1/prepare"))
        .json(&prepare)
        .send()
        .await;
    assert_eq!(voted.expect("a vote").status(), 200);
    tea.kill();
    coordinator.kill_and_restart().await;
    tea.restart().expect("it starts again");
    until("the branch in doubt is aborted", SOON, async || {
        let branch = json_of(&format!("http://{at_stock}/v1/branches/{open}")).await?;
        anyhow::ensure!(branch["state"] == "aborted", "{branch}");
        Ok(())
    })
    .await
    .expect("it asks");
}

/// A service that has what a bank has not: keys that are held, and branches that only look.
struct Room;

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Operation {
    Enter { persons: u32 },
    Look,
    Refuse,
    Key { key: String },
}

impl Resource for Room {
    type Operation = Operation;

    async fn prepare(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<Vote, Failure> {
        Ok(match operation {
            Operation::Enter { persons: 0 } => Vote::refuse("nobody comes in"),
            Operation::Enter { .. } | Operation::Key { .. } => Vote::Yes,
            Operation::Look => {
                tx.query_one("SELECT count(*) FROM visits", &[]).await?;
                Vote::ReadOnly
            }
            Operation::Refuse => Vote::refuse("closed"),
        })
    }

    async fn commit(&self, _: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
        let visit = "INSERT INTO visits (transaction) VALUES ($1)";
        tx.execute(visit, &[&tx.transaction().to_string()]).await?;
        Ok(())
    }

    fn keys(&self, operation: &Operation) -> Vec<Key> {
        match operation {
            Operation::Key { key } => vec![Key::new(key)],
            Operation::Enter { .. } | Operation::Look | Operation::Refuse => Vec::new(),
        }
    }
}

/// Serves the room until it is dropped; nothing but its database outlives it.
struct Serving {
    server: actix_web::dev::ServerHandle,
}

impl Serving {
    async fn begin(pool: Pool, listen: SocketAddr, life: &Life) -> anyhow::Result<Self> {
        let name = life.name.as_ref().map_or("room", ParticipantName::as_str);
        let mut room = Participant::builder(name, Room)
            .pool(pool)
            .coordinator(&life.coordinator);
        if let Some(former) = &life.former {
            room = room.formerly(former.as_str());
        }
        let room = room.start().await?;
        let server = HttpServer::new(move || App::new().service(room.scope("/unanimous")))
            .workers(2)
            .disable_signals()
            .bind(listen)?
            .run();
        let handle = server.handle();
        tokio::spawn(server);
        Ok(Self { server: handle })
    }

    /// At once: requests under way are broken off.
    async fn end(self) {
        self.server.stop(false).await;
    }
}

#[tokio::test]
async fn a_service_with_keys_and_read_only_branches_keeps_the_contract() {
    let database = fresh_database(1).await.expect("a database");
    let _ = client();
    let config: tokio_postgres::Config = database.parse().expect("an address");
    let sql = unanimous_lab::postgres::connect(&database)
        .await
        .expect("a connection");
    let made = sql
        .batch_execute("CREATE TABLE visits (transaction text)")
        .await;
    made.expect("a table");
    let sql = Arc::new(sql);
    let listen = address();
    let serving: Arc<Mutex<Option<Serving>>> = Arc::default();
    let operations = |text| Operations::parse(text).expect("operations");
    let mut kit = Kit::listen(Options {
        operations: operations(r#"[{"kind": "enter", "persons": 1}]"#),
        refused: Some(operations(r#"[{"kind": "refuse"}]"#)),
        read_only: Some(operations(r#"[{"kind": "look"}]"#)),
        exclusive: Some(operations(r#"[{"kind": "key", "key": "the door"}]"#)),
        renamed: Some("chamber".parse().expect("a name")),
        restart: Some(Arc::new(move |life| {
            let (serving, config) = (Arc::clone(&serving), config.clone());
            Box::pin(async move {
                let mut serving = serving.lock().await;
                if let Some(before) = serving.take() {
                    before.end().await;
                }
                // A pool of its own: the connections of the life before it go with that.
                let pool = Pool::builder(watched(config, NoTls)).max_size(8).build()?;
                *serving = Some(Serving::begin(pool, listen, &life).await?);
                Ok("started again".to_owned())
            })
        })),
        look: Some(Arc::new(move || {
            let sql = Arc::clone(&sql);
            Box::pin(async move {
                let row = sql.query_one("SELECT count(*) FROM visits", &[]).await?;
                Ok(row.get::<_, i64>(0).to_string())
            })
        })),
        ..Options::of_a_bank(format!("http://{listen}/unanimous"))
    })
    .await
    .expect("the kit listens");
    kit.meet().await.expect("the room answers");
    let card = kit.run(|_| {}).await;
    let told: String = card.checks.iter().map(|check| check.lines(false)).collect();
    assert!(card.is_passed(), "{told}");
    assert_eq!(card.not_applicable(), Vec::<&str>::new(), "{told}");
}
