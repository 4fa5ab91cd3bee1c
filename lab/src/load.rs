//! The load: clients that keep a coordinator busy, each repeating its request with its idempotency key until it is told
//! how it ended, and what all of them were told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use http::{Response, StatusCode};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use unanimous_protocol::record::Outcome;
use unanimous_protocol::wire::{BeginRequest, Wait};

use crate::audit::{Asked, Told};
use crate::lean::Lean;
use crate::transfer::{Side, Transfer, read_answer};
use crate::wait::until;

/// What they ask.
const PATH: &str = "/v1/transactions";
/// Between two attempts of a client, at first and at most.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// For one attempt. Longer than a coordinator holds an answer for a transaction with [`TIMEOUT_MS`].
const ATTEMPT: Duration = Duration::from_secs(20);
/// Until a transaction's deadline.
const TIMEOUT_MS: u64 = 10_000;
/// How long a client repeats its request before it gives up, and the load ends: then its outcome is not known.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the clients ask for.
pub trait Work: Send + Sync + 'static {
    /// The request of this number, always the same one.
    fn request(&self, number: usize) -> anyhow::Result<BeginRequest>;

    /// The key of this number's request.
    fn key(&self, number: usize) -> String {
        format!("transfer {number}")
    }

    /// Sees every answer.
    fn inspect(&self, _request: &Bytes, _answer: &Response<Bytes>) {}
}

/// Transfers between the two banks, made from a seed: the same seed makes the same ones.
#[derive(Clone, Copy, Debug)]
pub struct Transfers {
    /// What they are made from.
    pub seed: u64,
    /// Each bank has the accounts 1 to this.
    pub accounts: i64,
    /// The most that one of them moves; but one in [`Self::TOO_LARGE`] asks for far more than there is.
    pub amount_max: i64,
}

impl Transfers {
    /// One transfer in so many is to be refused.
    pub const TOO_LARGE: u32 = 25;

    /// The transfer of this number.
    pub fn transfer(&self, number: usize) -> Transfer {
        self.transfer_of(number, Self::TOO_LARGE)
    }

    /// The transfer of this number, where one in `too_large` is to be refused.
    pub fn transfer_of(&self, number: usize, too_large: u32) -> Transfer {
        // Each has a generator of its own, so that the order in which they are asked for does not matter. The factor
        // spreads neighbouring numbers over all seeds (Weyl sequence).
        let place = u64::try_from(number).unwrap_or(u64::MAX);
        let own = self
            .seed
            .wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut random = StdRng::seed_from_u64(own);
        let [from, to] = if random.random_bool(0.5) {
            [Side::East, Side::West]
        } else {
            [Side::West, Side::East]
        };
        let mut account = |side: Side| side.account(random.random_range(1..=self.accounts));
        let (from, to) = (account(from), account(to));
        let mut amount = random.random_range(1..=self.amount_max);
        if random.random_ratio(1, too_large) {
            amount += 1_000_000_000;
        }
        Transfer { from, to, amount }
    }

    /// By key, as an audit wants them.
    pub fn by_key(&self, count: usize) -> BTreeMap<String, Transfer> {
        (0..count)
            .map(|number| (self.key(number), self.transfer(number)))
            .collect()
    }
}

impl Work for Transfers {
    fn request(&self, number: usize) -> anyhow::Result<BeginRequest> {
        Ok(BeginRequest {
            timeout_ms: Some(TIMEOUT_MS),
            ..self.transfer(number).request(Wait::Decided)?
        })
    }
}

/// How it went, all clients together.
#[derive(Clone, Debug)]
pub struct Ended {
    /// What was asked, and what was told, by number.
    pub asked: Vec<Asked>,
    /// From the first attempt of a request until it was told, without order.
    pub took: Vec<Duration>,
    /// From the start until the last client was told.
    pub lasted: Duration,
}

impl Ended {
    /// The time within which so many of a hundred requests were told: 50 is the median. Zero where none was.
    pub fn within(&self, of_hundred: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        let place = (took.len() * of_hundred).div_ceil(100);
        took.get(place.saturating_sub(1))
            .copied()
            .unwrap_or_default()
    }

    /// Requests that were told, for each second.
    pub fn per_second(&self) -> u64 {
        per_second(self.took.len(), self.lasted)
    }
}

/// So many in that time, for each second.
pub(crate) fn per_second(count: usize, duration: Duration) -> u64 {
    let milliseconds = duration.as_millis().max(1);
    let count = u128::try_from(count).unwrap_or(u128::MAX);
    u64::try_from(count.saturating_mul(1000) / milliseconds).unwrap_or(u64::MAX)
}

/// Clients at work. Dropped, they are gone.
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

struct Shared {
    work: Box<dyn Work>,
    begun: Instant,
    coordinator: watch::Sender<SocketAddr>,
    next: AtomicUsize,
    limit: watch::Sender<Limit>,
    told: AtomicUsize,
    results: Mutex<Results>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Limit {
    /// No request of this number or a higher one is begun,
    allowed: usize,
    /// and this will not be raised any more.
    is_final: bool,
}

#[derive(Default)]
struct Results {
    asked: BTreeMap<usize, Asked>,
    took: Vec<Duration>,
    last_told: Option<Instant>,
    failed: Option<anyhow::Error>,
}

impl Load {
    /// Starts so many clients at a coordinator. They send as many requests as they are [allowed](Self::allow) to, at
    /// first none.
    pub fn start(work: impl Work, clients: usize, coordinator: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            work: Box::new(work),
            begun: Instant::now(),
            coordinator: watch::Sender::new(coordinator),
            next: AtomicUsize::new(0),
            limit: watch::Sender::default(),
            told: AtomicUsize::new(0),
            results: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for _ in 0..clients {
            let shared = Arc::clone(&shared);
            tasks.spawn(async move { shared.run_client().await });
        }
        Self {
            shared,
            clients: tasks,
        }
    }

    /// Lets the clients go on until so many requests have been begun.
    pub fn allow(&self, requests: usize) {
        let raise = |limit: &mut Limit| {
            if !limit.is_final {
                limit.allowed = requests;
            }
        };
        self.shared.limit.send_modify(raise);
    }

    /// From now on they ask there, repeats included.
    pub fn turn_to(&self, coordinator: SocketAddr) {
        self.shared.coordinator.send_replace(coordinator);
    }

    /// Begins no more requests. Those that are under way are repeated until they are told.
    pub fn stop(&self) {
        self.shared.stop();
    }

    /// How many requests have been told.
    pub fn told(&self) -> usize {
        self.shared.told.load(Ordering::Relaxed)
    }

    /// True once nobody waits to be told, and nothing more will be begun.
    fn is_over(&self) -> bool {
        let limit = *self.shared.limit.borrow();
        let begun = self.shared.next.load(Ordering::Relaxed);
        limit.is_final || (begun >= limit.allowed && self.told() >= limit.allowed)
    }

    /// Waits until so many requests have been told. False when the load ended before: a client gave up. Fails when for
    /// long nobody is told anything and nobody gives up either.
    pub async fn told_at_least(&self, requests: usize) -> anyhow::Result<bool> {
        loop {
            let told = self.told();
            if told >= requests || self.is_over() {
                return Ok(self.told() >= requests);
            }
            let goes_on = async || self.told() > told || self.is_over();
            until("the load goes on", 2 * PATIENCE, goes_on).await?;
        }
    }

    /// Waits until all that was allowed has been told, or a client has given up.
    pub async fn finish(mut self) -> anyhow::Result<Ended> {
        let conclude = |limit: &mut Limit| limit.is_final = true;
        self.shared.limit.send_modify(conclude);
        while let Some(ended) = self.clients.join_next().await {
            if let Err(error) = ended {
                match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(error) => return Err(error).context("a client ended"),
                }
            }
        }
        let mut results = self.shared.results();
        if let Some(error) = results.failed.take() {
            return Err(error);
        }
        let last = results.last_told.unwrap_or(self.shared.begun);
        Ok(Ended {
            asked: std::mem::take(&mut results.asked).into_values().collect(),
            took: std::mem::take(&mut results.took),
            lasted: last - self.shared.begun,
        })
    }
}

impl Shared {
    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.limit.send_replace(Limit {
            allowed: 0,
            is_final: true,
        });
    }

    async fn run_client(&self) {
        let mut client = Client {
            shared: self,
            connection: None,
        };
        while let Some(number) = self.next_number().await {
            if let Err(error) = client.ask(number).await {
                self.results().failed.get_or_insert(error);
                self.stop();
            }
        }
    }

    /// The number of a request to be begun now; `None` when there will not be another one.
    async fn next_number(&self) -> Option<usize> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut limit = self.limit.subscribe();
        // It fails when the sender is gone, and that is in `self`.
        let limit = limit
            .wait_for(|limit| limit.is_final || number < limit.allowed)
            .await;
        limit
            .is_ok_and(|limit| number < limit.allowed)
            .then_some(number)
    }
}

struct Client<'a> {
    shared: &'a Shared,
    /// Where it leads, and the connection itself.
    connection: Option<(SocketAddr, Lean)>,
}

impl Client<'_> {
    /// Repeats the request until it is told, and notes down what.
    async fn ask(&mut self, number: usize) -> anyhow::Result<()> {
        let key = self.shared.work.key(number);
        let request = Bytes::from(serde_json::to_vec(&self.shared.work.request(number)?)?);
        let begun = Instant::now();
        let mut pause = PAUSE;
        let repeated = timeout(PATIENCE, async {
            loop {
                if let Some(told) = self.try_once(&key, &request).await? {
                    return anyhow::Ok(told);
                }
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        });
        let told = match repeated.await {
            Ok(told) => Some(told?),
            // Its outcome is not known, and that is what an audit will say.
            Err(_) => None,
        };
        let mut results = self.shared.results();
        if told.is_some() {
            let now = Instant::now();
            results.took.push(now - begun);
            results.last_told = Some(now);
            self.shared.told.fetch_add(1, Ordering::Relaxed);
        } else {
            self.shared.stop();
        }
        results.asked.insert(number, Asked { key, told });
        Ok(())
    }

    /// One attempt: what was told, or nothing when the same request is to be sent again.
    async fn try_once(&mut self, key: &str, request: &Bytes) -> anyhow::Result<Option<Told>> {
        let Ok(Ok(answer)) = timeout(ATTEMPT, self.post(key, request)).await else {
            self.connection = None;
            return Ok(None);
        };
        self.shared.work.inspect(request, &answer);
        let status = answer.status();
        let text = String::from_utf8_lossy(answer.body());
        if status == StatusCode::ACCEPTED || status.is_server_error() {
            return Ok(None);
        }
        if ![StatusCode::OK, StatusCode::CONFLICT].contains(&status) {
            bail!("{key}: the coordinator answered {status}: {text}");
        }
        let view = read_answer(status.as_u16(), &text)?.transaction;
        let outcome = view.outcome;
        let expected = if status == StatusCode::OK {
            Outcome::Committed
        } else {
            Outcome::Aborted
        };
        ensure!(
            outcome == Some(expected),
            "{key}: the coordinator answered {status}, and {outcome:?}: {text}"
        );
        Ok(Some(Told {
            transaction: view.id,
            outcome: expected,
            reason: view.reason,
        }))
    }

    async fn post(&mut self, key: &str, request: &Bytes) -> anyhow::Result<Response<Bytes>> {
        let address = *self.shared.coordinator.borrow();
        let connection = match &mut self.connection {
            Some((leads_to, connection)) if *leads_to == address => connection,
            _ => {
                let connection = Lean::connect(address).await?;
                &mut self.connection.insert((address, connection)).1
            }
        };
        let headers = [("idempotency-key", key)];
        connection.post(PATH, &headers, request).await
    }
}
