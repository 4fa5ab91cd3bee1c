//! Memory and latency while many transactions wait for participants that do not answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde::Serialize;

use super::Plan;
use super::client::begin;
use super::participants::{LATE, PROMPT, Participants};
use crate::alone::Alone;
use crate::bench::measure::{Metrics, memory_now, memory_peak};
use crate::wait::until;

/// Who begins those that will wait.
const CONNECTIONS: usize = 32;
/// Until all that were begun are seen, and until all that waited are applied.
const PATIENCE: Duration = Duration::from_secs(240);

/// What was measured with so many in flight.
#[derive(Clone, Debug, Serialize)]
pub struct InFlight {
    /// How many were wanted; `held` may be one fewer, for the coordinator's bound has to leave room for a fresh one.
    pub transactions: usize,
    /// How many waited for late participants.
    pub held: usize,
    /// The coordinator's bound on undecided ones.
    pub undecided_max: f64,
    /// The coordinator's memory before, in bytes, after as many transfers as are measured.
    pub memory_before: f64,
    /// While they waited.
    pub memory_during: f64,
    /// The most it ever had, settling included.
    pub memory_peak: f64,
    /// What each of them took, in bytes.
    pub bytes_each: f64,
    /// Beginning them, for each second.
    pub begun_per_second: f64,
    /// A transfer between prompt participants with nothing else in flight, in milliseconds.
    pub quiet_p50_ms: f64,
    /// 99 of 100 took no longer.
    pub quiet_p99_ms: f64,
    /// The same while they waited.
    pub fresh_p50_ms: f64,
    /// 99 of 100 took no longer.
    pub fresh_p99_ms: f64,
    /// From the moment when late participants answer until everything was applied.
    pub settled_s: f64,
}

pub(super) async fn measure(plan: &Plan, transactions: usize) -> anyhow::Result<InFlight> {
    let participants = Participants::start().await?;
    let alone = Alone::start(&plan.programs.unanimous, &participants.registered()).await?;
    let admin = alone.admin;
    let coordinator = alone.process.id();
    let transfers = async || begin(alone.address, PROMPT, "decided", 200, plan.transfers, 1).await;

    transfers().await?;
    let quiet = transfers().await?;
    settled(admin).await?;
    let before = memory_now(coordinator)? as f64;

    let undecided_max = { Metrics::read(admin).await? }.value(UNDECIDED_MAX)?;
    let room = undecided_max - 1.0;
    let held = if transactions as f64 > room {
        transactions - 1
    } else {
        transactions
    };
    ensure!(
        held as f64 <= room,
        "the coordinator takes no more than {undecided_max} undecided transactions at once"
    );
    let began = Instant::now();
    begin(alone.address, LATE, "none", 202, held, CONNECTIONS).await?;
    let begun_per_second = held as f64 / began.elapsed().as_secs_f64();
    undecided(admin, held).await?;
    let during = memory_now(coordinator)? as f64;
    let fresh = transfers().await?;
    // Had one of them met its deadline meanwhile, that would not have been measured which was to be.
    undecided(admin, held).await?;

    participants.let_all_answer();
    let let_go = Instant::now();
    settled(admin).await?;
    Ok(InFlight {
        transactions,
        held,
        undecided_max,
        memory_before: before,
        memory_during: during,
        memory_peak: memory_peak(coordinator)? as f64,
        bytes_each: (during - before) / held as f64,
        begun_per_second,
        quiet_p50_ms: quiet.ms(50),
        quiet_p99_ms: quiet.ms(99),
        fresh_p50_ms: fresh.ms(50),
        fresh_p99_ms: fresh.ms(99),
        settled_s: let_go.elapsed().as_secs_f64(),
    })
}

const UNDECIDED: &str = "unanimous_transactions_undecided";
const UNDECIDED_MAX: &str = "unanimous_transactions_undecided_max";
const IN_DOUBT: &str = "unanimous_in_doubt_transactions";

/// Waits until so many are undecided, and all that was decided is applied.
async fn undecided(admin: SocketAddr, expected: usize) -> anyhow::Result<()> {
    until("they are in flight", PATIENCE, async || {
        let metrics = Metrics::read(admin).await?;
        let (undecided, in_doubt) = (metrics.value(UNDECIDED)?, metrics.value(IN_DOUBT)?);
        ensure!(
            undecided == expected as f64 && in_doubt == 0.0,
            "{undecided} are undecided instead of {expected}, {in_doubt} in doubt"
        );
        anyhow::Ok(())
    })
    .await
}

pub(super) async fn settled(admin: SocketAddr) -> anyhow::Result<()> {
    undecided(admin, 0).await
}
