//! The clients: requests over kept-alive connections, one after the other on each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::json;
use tokio::task::JoinSet;

use crate::bench::took::Took;
use crate::lean::Lean;

/// The most that there is.
const TIMEOUT_MS: u64 = 300_000;

/// Begins so many transactions between two participants, each with a key, from so many connections; how long each took
/// until its answer, which has to have this status.
pub(super) async fn begin(
    coordinator: SocketAddr,
    participants: [&'static str; 2],
    wait: &'static str,
    status: u16,
    count: usize,
    connections: usize,
) -> anyhow::Result<Took> {
    let begun = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..connections {
        let begun = Arc::clone(&begun);
        let mut connection = Lean::connect(coordinator).await?;
        clients.spawn(async move {
            let mut took = Vec::new();
            while begun.fetch_add(1, Ordering::Relaxed) < count {
                // As a client makes them up: in no order, so that each falls anywhere among those in the log.
                let key = format!("{:032x}", rand::random::<u128>());
                let request = request(participants, wait);
                let asked = Instant::now();
                let headers = [("idempotency-key", key.as_str())];
                let answer = connection.post("/v1/transactions", &headers, request.as_bytes());
                let answer = answer.await?;
                took.push(asked.elapsed());
                let body = || String::from_utf8_lossy(answer.body());
                ensure!(
                    answer.status().as_u16() == status,
                    "the coordinator answered {}: {}",
                    answer.status(),
                    body()
                );
            }
            anyhow::Ok(took)
        });
    }
    let mut all = Vec::new();
    while let Some(took) = clients.join_next().await {
        all.extend(took.context("a client ended")??);
    }
    Ok(Took::new(all))
}

/// What a transfer looks like, whoever the participants are.
fn request(participants: [&str; 2], wait: &str) -> String {
    let branch = |kind: &str, participant: &str| {
        let operation = json!({"kind": kind, "account": 4711, "amount": 42});
        json!({"participant": participant, "operations": [operation]})
    };
    let [from, to] = participants;
    let branches = [branch("debit", from), branch("credit", to)];
    json!({"branches": branches, "commit": true, "wait": wait, "timeout_ms": TIMEOUT_MS})
        .to_string()
}
