//! Pages of the history, and the cost of a decision, as the log grows.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use super::Plan;
use super::client::begin;
use super::in_flight::settled;
use super::participants::{PROMPT, Participants};
use crate::alone::Alone;
use crate::bench::measure::{Metrics, cpu_of};
use crate::bench::took::{Took, median};
use crate::lean::Lean;

/// How often a page is read.
const READ: usize = 40;
/// Who decides side by side where a decision's cost is looked at.
const CLIENTS: usize = 8;
/// How often each log's transfers are measured.
const ROUNDS: usize = 5;

/// What was measured with so many records in the log.
#[derive(Clone, Debug, Serialize)]
pub struct History {
    /// How many finished ones there were at first.
    pub records: usize,
    /// From the start of the coordinator until it was ready, in milliseconds.
    pub ready_ms: f64,
    /// Pages of 100.
    pub pages: Vec<Page>,
    /// A transfer by one of eight clients, between participants that answer at once, in milliseconds.
    pub transfer_p50_ms: f64,
    /// 99 of 100 took no longer.
    pub transfer_p99_ms: f64,
    /// The coordinator's CPU for each of them, in µs.
    pub coordinator_us: f64,
    /// A write of decisions, the mean, in milliseconds.
    pub decide_ms: f64,
    /// How many decisions one write carried, the mean.
    pub decisions_each: f64,
}

/// One page of the history.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// Which one.
    pub name: &'static str,
    /// How many transactions were on it.
    pub transactions: usize,
    /// How long it took, in milliseconds.
    pub p50_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}

/// As much of a page as is looked at.
#[derive(Deserialize)]
struct Listed {
    transactions: Vec<serde::de::IgnoredAny>,
    next: Option<String>,
}

/// A coordinator on its log, and what was measured of it so far.
struct Stage {
    alone: Alone,
    records: usize,
    ready: Duration,
    pages: Vec<Page>,
    rounds: Vec<Round>,
    // Dropped after the coordinator that asks them.
    _participants: Participants,
}

/// A number of transfers.
struct Round {
    took: Took,
    used: Duration,
    counted: Counted,
}

/// All logs side by side, so that their transfers can take turns: the machine's noise hits all alike.
pub(super) async fn measure(
    plan: &Plan,
    mut tell: impl FnMut(&str),
) -> anyhow::Result<Vec<History>> {
    let mut stages = Vec::new();
    for &records in &plan.records {
        tell(&format!("{records} records in the log"));
        stages.push(Stage::prepare(plan, records).await?);
    }
    tell("transfers on each of these logs by turns");
    // The first round is for warming up.
    for round in 0..=ROUNDS {
        for stage in &mut stages {
            let measured = stage.round(plan.transfers).await?;
            if round > 0 {
                stage.rounds.push(measured);
            }
        }
    }
    Ok(stages.iter().map(|stage| stage.history(plan)).collect())
}

impl Stage {
    async fn prepare(plan: &Plan, records: usize) -> anyhow::Result<Self> {
        let participants = Participants::start().await?;
        let mut alone = Alone::start(&plan.programs.unanimous, &participants.registered()).await?;
        let ready = alone.fill(records).await?;
        // What filling has written is not to reach the disk in the middle of what is measured.
        tokio::task::spawn_blocking(nix::unistd::sync).await?;
        let mut reader = Lean::connect(alone.address).await?;
        let pages = pages(&mut reader, records).await?;
        Ok(Self {
            alone,
            records,
            ready,
            pages,
            rounds: Vec::new(),
            _participants: participants,
        })
    }

    async fn round(&self, transfers: usize) -> anyhow::Result<Round> {
        let Alone { address, admin, .. } = self.alone;
        let coordinator = self.alone.process.id();
        let (counted, used) = (Counted::read(admin).await?, cpu_of(coordinator)?);
        let took = begin(address, PROMPT, "decided", 200, transfers, CLIENTS).await?;
        settled(admin).await?;
        Ok(Round {
            took,
            used: cpu_of(coordinator)? - used,
            counted: Counted::read(admin).await?.since(&counted),
        })
    }

    /// The median of each over the rounds.
    fn history(&self, plan: &Plan) -> History {
        let median = |value: &dyn Fn(&Round) -> f64| median(self.rounds.iter().map(value));
        History {
            records: self.records,
            ready_ms: self.ready.as_secs_f64() * 1e3,
            pages: self.pages.clone(),
            transfer_p50_ms: median(&|round| round.took.ms(50)),
            transfer_p99_ms: median(&|round| round.took.ms(99)),
            coordinator_us: median(&|round| round.used.as_secs_f64() * 1e6) / plan.transfers as f64,
            decide_ms: median(&|round| round.counted.seconds * 1e3 / round.counted.writes.max(1.0)),
            decisions_each: median(&|round| {
                round.counted.decisions / round.counted.writes.max(1.0)
            }),
        }
    }
}

/// The log's own counts.
struct Counted {
    writes: f64,
    seconds: f64,
    decisions: f64,
}

impl Counted {
    async fn read(admin: SocketAddr) -> anyhow::Result<Self> {
        let metrics = Metrics::read(admin).await?;
        Ok(Self {
            writes: metrics.value("unanimous_log_write_duration_seconds_count{kind=\"decide\"}")?,
            seconds: metrics.value("unanimous_log_write_duration_seconds_sum{kind=\"decide\"}")?,
            decisions: metrics.value("unanimous_log_decisions_total")?,
        })
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            writes: self.writes - before.writes,
            seconds: self.seconds - before.seconds,
            decisions: self.decisions - before.decisions,
        }
    }
}

async fn pages(reader: &mut Lean, records: usize) -> anyhow::Result<Vec<Page>> {
    // Half of the way into the past: as a reader gets there, by cursors.
    let mut deep = String::new();
    let (mut passed, middle) = (0, records / 2);
    while passed < middle {
        let limit = (middle - passed).min(1000);
        let (listed, _) = read(reader, &format!("limit={limit}{deep}")).await?;
        passed += listed.transactions.len();
        let next = listed.next.context("the history ends before its middle")?;
        deep = format!("&after={next}");
    }
    let asked = [
        ("the newest", String::new()),
        ("from the middle on", deep.clone()),
        (
            "of one participant, the newest",
            "&participant=east".to_owned(),
        ),
        (
            "of one participant, from the middle on",
            format!("&participant=east{deep}"),
        ),
        ("aborted", "&outcome=aborted".to_owned()),
        (
            "aborted, from the middle on",
            format!("&outcome=aborted{deep}"),
        ),
        (
            "with one label",
            format!("&label=order:{}", records / 200 * 100 + 50),
        ),
        ("in doubt", "&in_doubt=true".to_owned()),
    ];
    let mut pages = Vec::new();
    for (name, query) in asked {
        let (mut took, mut transactions) = (Vec::new(), 0);
        for _ in 0..READ {
            let (listed, lasted) = read(reader, &format!("limit=100{query}")).await?;
            took.push(lasted);
            transactions = listed.transactions.len();
        }
        let took = Took::new(took);
        pages.push(Page {
            name,
            transactions,
            p50_ms: took.ms(50),
            max_ms: took.ms(100),
        });
    }
    Ok(pages)
}

async fn read(reader: &mut Lean, query: &str) -> anyhow::Result<(Listed, Duration)> {
    let path = format!("/v1/transactions?{query}");
    let asked = Instant::now();
    let answer = reader.get(&path).await?;
    let lasted = asked.elapsed();
    let (status, body) = (answer.status(), answer.body());
    ensure!(
        status.is_success(),
        "GET {path}: {status}: {}",
        String::from_utf8_lossy(body)
    );
    Ok((serde_json::from_slice(body)?, lasted))
}
