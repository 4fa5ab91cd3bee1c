//! Clients that keep a coordinator busy and remember what they were told, and the comparison of that with what the log
//! holds and what participants were sent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Client;
use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use unanimous_lab::wait::until;

use super::coordinator::client;
use super::log::connect;
use super::{Answer, SOON, Stub};

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(10);

/// What a client was told in the end.
#[derive(Clone, Debug)]
struct Told {
    key: String,
    transaction: String,
    committed: bool,
}

/// Clients that send transfers between `east` and `west`, each repeating its request with its key until it is told how
/// it ended.
pub(crate) struct Clients {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    url: Mutex<String>,
    told: Mutex<Vec<Told>>,
    next: AtomicUsize,
    stop: AtomicBool,
}

impl Shared {
    fn url(&self) -> String {
        self.url.lock().expect("no test panics with it").clone()
    }

    async fn send_until_stopped(&self) {
        let client = client();
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let key = format!("transfer {number}");
            let told = timeout(3 * SOON, self.send(&client, &key)).await;
            let (transaction, committed) = told.expect("every client is told");
            self.told
                .lock()
                .expect("no test panics with it")
                .push(Told {
                    key,
                    transaction,
                    committed,
                });
        }
    }
}

impl Shared {
    /// Repeats the request until the answer is one: the transaction, and whether it committed.
    async fn send(&self, client: &Client, key: &str) -> (String, bool) {
        loop {
            let request = client.post(format!("{}/v1/transactions", self.url()));
            let request = request.header("idempotency-key", key);
            match Answer::try_of(request.json(&transfer(key))).await {
                Ok(answer) if answer.status == 200 => return (answer.id(), true),
                Ok(answer) if answer.status == 409 => return (answer.id(), false),
                Ok(_) | Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

/// The key is in the operations, so that a participant's requests show whose they are.
fn transfer(key: &str) -> Value {
    let branch =
        |participant: &str| json!({"participant": participant, "operations": [{"key": key}]});
    json!({"branches": [branch("east"), branch("west")], "commit": true, "timeout_ms": 10_000})
}

impl Clients {
    /// So many, who send to the coordinator at `url`.
    pub(crate) fn start(count: usize, url: &str) -> Self {
        let shared = Arc::new(Shared {
            url: Mutex::new(url.to_owned()),
            told: Mutex::default(),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let shared = Arc::clone(&shared);
            tasks.spawn(async move { shared.send_until_stopped().await });
        }
        Self { shared, tasks }
    }

    /// From now on they send there, repeats included.
    pub(crate) fn turn_to(&self, url: &str) {
        *self.shared.url.lock().expect("no test panics with it") = url.to_owned();
    }

    fn count(&self) -> usize {
        self.shared
            .told
            .lock()
            .expect("no test panics with it")
            .len()
    }

    /// Waits until so many more have been told.
    pub(crate) async fn told_more(&self, more: usize) {
        let enough = self.count() + more;
        until("the load goes on", 3 * SOON, async || {
            let count = self.count();
            if count >= enough {
                Ok(())
            } else {
                Err(format!("{count} of {enough}"))
            }
        })
        .await
        .expect("it goes on");
    }

    /// Lets all of them finish, and compares what they were told, what the log (a Postgres database) holds, and what the
    /// participants were sent.
    pub(crate) async fn end_and_audit(self, log: &str, participants: [&Stub; 2]) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        let told = {
            let told = self.shared.told.lock().expect("no test panics with it");
            told.clone()
        };
        let committed = told.iter().filter(|told| told.committed).count();
        assert!(
            committed * 2 > told.len(),
            "only {committed} of {} committed",
            told.len()
        );

        until("every commit is finished", SOON, async || {
            let unfinished = records(log)
                .await
                .values()
                .filter(|record| record.unfinished)
                .count();
            if unfinished == 0 {
                Ok(())
            } else {
                Err(format!("{unfinished} are not"))
            }
        })
        .await
        .expect("participants answer");
        let records = records(log).await;
        for Told {
            key,
            transaction,
            committed,
        } in &told
        {
            let record = records.get(transaction);
            let record = record
                .unwrap_or_else(|| panic!("{key}: {transaction} was told and is not in the log"));
            assert_eq!(record.committed, *committed, "{key}: {transaction}");
        }
        for stub in participants {
            audit(stub, &records, &told);
        }
    }
}

struct Recorded {
    committed: bool,
    unfinished: bool,
}

async fn records(log: &str) -> BTreeMap<String, Recorded> {
    let mut connection = connect(log).await;
    let rows = sqlx::query(
        "SELECT id::text, outcome = 'committed' AS committed, finished_at IS NULL AS unfinished FROM record",
    )
    .fetch_all(&mut connection)
    .await
    .expect("records can be read");
    let record = |row: &sqlx::postgres::PgRow| {
        let recorded = Recorded {
            committed: row.get("committed"),
            unfinished: row.get("unfinished"),
        };
        (row.get("id"), recorded)
    };
    rows.iter().map(record).collect()
}

/// Nobody was sent what the log does not say, both outcomes, or two commits for one request.
fn audit(stub: &Stub, records: &BTreeMap<String, Recorded>, told: &[Told]) {
    let mut keys = BTreeMap::new();
    let mut sent: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for seen in stub.seen() {
        let transaction = seen.transaction();
        if seen.kind() == "prepare" {
            let key = seen.json()["operations"][0]["key"]
                .as_str()
                .map(str::to_owned);
            keys.insert(transaction.clone(), key);
        }
        sent.entry(transaction)
            .or_default()
            .insert(seen.kind().to_owned());
    }
    let name = &stub.name;
    let mut committed_keys = BTreeMap::new();
    for (transaction, kinds) in &sent {
        let recorded = records.get(transaction);
        let is_committed = recorded.is_some_and(|record| record.committed);
        if kinds.contains("commit") {
            assert!(is_committed, "{name} was sent a commit of {transaction}");
            // A request without a key is a transaction of its own.
            if let Some(Some(key)) = keys.get(transaction) {
                let earlier = committed_keys.insert(key, transaction);
                assert_eq!(earlier, None, "{name}: {key} was committed twice");
            }
        }
        if kinds.contains("abort") {
            assert!(!is_committed, "{name} was sent an abort of {transaction}");
        }
    }
    for told in told.iter().filter(|told| told.committed) {
        let kinds = sent.get(&told.transaction);
        let was_sent = kinds.is_some_and(|kinds| kinds.contains("commit"));
        assert!(was_sent, "{name} was not sent the commit of {}", told.key);
    }
}
