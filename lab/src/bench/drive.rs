//! The closed loop that all clients run, whichever way they go: what differs is only what they measure.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;
use unanimous_protocol::record::Outcome;

use super::Work;
use crate::transfer::Transfer;

/// Makes one transfer after the other.
pub(super) trait Client: Send + 'static {
    /// Returns when the client knows how it ended.
    fn transfer(
        &mut self,
        number: usize,
        transfer: &Transfer,
    ) -> impl Future<Output = anyhow::Result<Outcome>> + Send;
}

/// What came of a load.
#[derive(Debug, Default)]
pub(super) struct Driven {
    /// From the request until its outcome was known, without order.
    pub(super) took: Vec<Duration>,
    pub(super) committed: usize,
    pub(super) refused: usize,
    /// From the start until the last outcome was known.
    pub(super) lasted: Duration,
}

impl Driven {
    pub(super) fn told(&self) -> usize {
        self.committed + self.refused
    }
}

/// Keeps all clients busy for so long, each with one transfer at a time, and waits for their last ones. Numbers are
/// drawn from `next`.
pub(super) async fn drive<C: Client>(
    clients: Vec<C>,
    work: Work,
    next: &Arc<AtomicUsize>,
    lasts: Duration,
) -> anyhow::Result<(Vec<C>, Driven)> {
    let begun = Instant::now();
    let end = begun + lasts;
    let mut running = JoinSet::new();
    for mut client in clients {
        let next = Arc::clone(next);
        running.spawn(async move {
            let mut driven = Driven::default();
            while Instant::now() < end {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let transfer = work.transfer(number);
                let asked = Instant::now();
                let outcome = client.transfer(number, &transfer).await;
                let outcome = outcome.with_context(|| format!("transfer {number}: {transfer}"))?;
                driven.took.push(asked.elapsed());
                match outcome {
                    Outcome::Committed => driven.committed += 1,
                    Outcome::Aborted => driven.refused += 1,
                }
            }
            anyhow::Ok((client, driven))
        });
    }
    let (mut clients, mut all) = (Vec::new(), Driven::default());
    while let Some(ended) = running.join_next().await {
        let (client, driven) = ended.context("a client ended")??;
        clients.push(client);
        all.took.extend(driven.took);
        all.committed += driven.committed;
        all.refused += driven.refused;
    }
    all.lasted = begun.elapsed();
    Ok((clients, all))
}
