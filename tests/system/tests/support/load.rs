//! Clients that keep a coordinator busy, every answer held against its contract; and, for participants that are no banks,
//! the comparison of what clients were told, what the log holds and what participants were sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use bytes::Bytes;
use http::Response;
use unanimous_lab::audit::{self, Asked, Counts, Log};
use unanimous_lab::load::{Load, Work};
use unanimous_lab::transfer::Api;
use unanimous_lab::wait::until;
use unanimous_protocol::record::Outcome;
use unanimous_protocol::wire::BeginRequest;

use super::{SOON, Stub, contract};

/// Work whose answers are all held against the contract.
pub(crate) struct Checked<W>(pub(crate) W);

impl<W: Work> Work for Checked<W> {
    fn request(&self, number: usize) -> anyhow::Result<BeginRequest> {
        self.0.request(number)
    }

    fn key(&self, number: usize) -> String {
        self.0.key(number)
    }

    fn inspect(&self, request: &Bytes, answer: &Response<Bytes>) {
        let text = String::from_utf8_lossy(answer.body());
        contract::Asked::to_begin(request).check(answer.status().as_u16(), answer.headers(), &text);
    }
}

/// One operation at each of two participants: the key of the request, so that what they are sent shows whose it is.
struct Keyed;

impl Work for Keyed {
    fn request(&self, number: usize) -> anyhow::Result<BeginRequest> {
        let branch = |participant: &str| serde_json::json!({"participant": participant, "operations": [{"key": self.key(number)}]});
        let request = serde_json::json!({"branches": [branch("east"), branch("west")], "commit": true, "timeout_ms": 10_000});
        Ok(serde_json::from_str(&request.to_string())?)
    }
}

/// The address in a URL of ours.
fn address(url: &str) -> SocketAddr {
    let address = url.strip_prefix("http://").expect("it is an address");
    address.parse().expect("it is an address")
}

/// Clients that send requests to `east` and `west`, each repeating its request with its key until it is told how it
/// ended.
pub(crate) struct Clients {
    load: Load,
}

impl Clients {
    /// So many, who send to the coordinator at `url`.
    pub(crate) fn start(count: usize, url: &str) -> Self {
        let load = Load::start(Checked(Keyed), count, address(url));
        load.allow(usize::MAX);
        Self { load }
    }

    /// From now on they send there, repeats included.
    pub(crate) fn turn_to(&self, url: &str) {
        self.load.turn_to(address(url));
    }

    /// Waits until so many more have been told.
    pub(crate) async fn told_more(&self, more: usize) {
        let enough = self.load.told() + more;
        let told = self.load.told_at_least(enough).await;
        assert!(told.expect("it goes on"), "a client gave up");
    }

    /// Lets all of them finish, and compares what they were told, what the log of the coordinator at `url` holds, and
    /// what the participants were sent.
    pub(crate) async fn end_and_audit(self, url: &str, participants: [&Stub; 2]) {
        self.load.stop();
        let asked = self
            .load
            .finish()
            .await
            .expect("every client is told")
            .asked;
        let counts = Counts::of(&asked);
        assert!(
            counts.committed * 2 > asked.len(),
            "only {counts:?} of {} committed",
            asked.len()
        );
        let api = Api::at(url).expect("a client can be made");
        until("every commit is finished", SOON, async || {
            let in_doubt = api.list("&in_doubt=true").await?;
            anyhow::ensure!(in_doubt.is_empty(), "{in_doubt:?}");
            Ok(())
        })
        .await
        .expect("participants answer");
        let log = Log::read(&api).await.expect("the log can be read");
        assert_eq!(audit::told_and_logged(&asked, &log), []);
        for stub in participants {
            audit(stub, &log, &asked);
        }
    }
}

/// Nobody was sent what the log does not say, both outcomes, or two commits for one request.
fn audit(stub: &Stub, log: &Log, asked: &[Asked]) {
    let committed: BTreeSet<String> = log
        .transactions
        .iter()
        .filter(|(_, logged)| logged.outcome == Some(Outcome::Committed))
        .map(|(id, _)| id.to_string())
        .collect();
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
        let is_committed = committed.contains(transaction);
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
    let told = asked
        .iter()
        .filter_map(|asked| Some((asked, asked.told.as_ref()?)));
    for (Asked { key, .. }, told) in told.filter(|(_, told)| told.outcome == Outcome::Committed) {
        let kinds = sent.get(&told.transaction.to_string());
        let was_sent = kinds.is_some_and(|kinds| kinds.contains("commit"));
        assert!(was_sent, "{name} was not sent the commit of {key}");
    }
}
