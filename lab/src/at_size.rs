//! Recovery at size: how long it takes until all is settled when a coordinator dies with thousands of branches in doubt,
//! and how long a start takes on a log with a long history.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use unanimous_protocol::wire::{BeginRequest, Wait};

use crate::alone::Alone;
use crate::load::Work;
use crate::postgres::connect;
use crate::recovery::Watch;
use crate::stand::{self, ACCOUNTS, PATIENCE, Stand, restarted};
use crate::town::{LogKind, Programs};
use crate::transfer::Transfer;
use crate::wait::until;
use crate::{Load, Transfers, scratch};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which programs.
    pub programs: Programs,
    /// Where decisions are kept.
    pub log: LogKind,
    /// Transactions in doubt when the coordinator is killed.
    pub in_doubt: usize,
    /// How often.
    pub runs: usize,
    /// Fixes the transfers.
    pub seed: u64,
}

/// How long things took.
#[derive(Clone, Debug)]
pub struct Settled {
    /// From the coordinator's restart until each branch knew its outcome; in rising order, of all runs together.
    pub branches: Vec<Duration>,
    /// Until the last one did, of each run.
    pub runs: Vec<Duration>,
}

impl Settled {
    /// The time within which so many of a hundred branches had settled.
    pub fn within(&self, of_hundred: usize) -> Duration {
        let place = (self.branches.len() * of_hundred).div_ceil(100);
        let found = self.branches.get(place.saturating_sub(1));
        found.copied().unwrap_or_default()
    }

    /// The slowest run.
    pub fn longest(&self) -> Duration {
        self.runs.iter().max().copied().unwrap_or_default()
    }
}

/// Small transfers, none of which is refused.
#[derive(Clone, Copy, Debug)]
struct Small {
    transfers: Transfers,
    run: usize,
}

impl Small {
    fn transfer(&self, number: usize) -> Transfer {
        Transfer {
            amount: 1,
            ..self.transfers.transfer(number)
        }
    }
}

impl Work for Small {
    fn request(&self, number: usize) -> anyhow::Result<BeginRequest> {
        self.transfer(number).request(Wait::Decided)
    }

    fn key(&self, number: usize) -> String {
        format!("run {} transfer {number}", self.run)
    }
}

/// Kills a coordinator whose decisions are all in the log and none of them delivered, again and again.
pub async fn run(plan: &Plan, mut tell: impl FnMut(String)) -> anyhow::Result<Settled> {
    let directory = scratch::directory("log")?;
    let file = directory.path().join("decisions.sqlite");
    let mut stand = Stand::start(&stand::Plan {
        programs: &plan.programs,
        server: &|_, options| options,
        bank: &|_, bank| bank,
        coordinator: &|database, coordinator| match plan.log {
            LogKind::Sqlite => coordinator.args(["--log", &format!("sqlite:{}", file.display())]),
            LogKind::Postgres => coordinator.env("UNANIMOUS_LOG", database),
        },
        gates: true,
        accounts: ACCOUNTS,
        template: None,
    })
    .await?;
    let watch = Watch::of(&stand.site).await?;
    let mut settled = Settled {
        branches: Vec::new(),
        runs: Vec::new(),
    };
    for run in 1..=plan.runs {
        let (branches, lasted) = kill_in_doubt(&mut stand, &watch, plan, run).await?;
        tell(format!(
            "run {run:>2}: {} branches in doubt, all settled after {lasted:.1?}",
            branches.len()
        ));
        settled.branches.extend(branches);
        settled.runs.push(lasted);
    }
    settled.branches.sort_unstable();
    Ok(settled)
}

async fn kill_in_doubt(
    stand: &mut Stand,
    watch: &Watch,
    plan: &Plan,
    run: usize,
) -> anyhow::Result<(Vec<Duration>, Duration)> {
    let gates = stand.gates.as_ref().context("there are gates")?;
    let [to_coordinator, to_banks @ ..] = gates;
    to_coordinator.close_for("/outcome");
    for gate in to_banks {
        gate.close_for("/v1/commit");
    }
    let transfers = Transfers {
        seed: plan.seed,
        accounts: ACCOUNTS,
        amount_max: 1,
    };
    let load = Load::start(Small { transfers, run }, 64, stand.address);
    load.allow(plan.in_doubt);
    let told = load.finish().await?.took.len();
    let in_doubt = watch.in_doubt().await?.len();
    ensure!(
        told == plan.in_doubt && in_doubt == 2 * plan.in_doubt,
        "{told} clients were told and {in_doubt} branches are in doubt, of {} transactions",
        plan.in_doubt
    );

    stand.coordinator.kill();
    // What is held is lost with it: whatever the banks hear now, the restarted one says.
    for gate in gates {
        gate.open();
    }
    let (by_the_wall, begun) = (SystemTime::now(), Instant::now());
    restarted(&mut stand.coordinator).await?;
    until("all is settled", PATIENCE, async || {
        let left = watch.in_doubt().await?.len();
        ensure!(left == 0, "{left} branches are in doubt");
        anyhow::Ok(())
    })
    .await?;
    let lasted = begun.elapsed();
    let mut branches = Vec::new();
    for bank in &stand.site.banks {
        let database = connect(&bank.database_url).await?;
        let since = "SELECT since FROM unanimous.branches WHERE state = 'committed' AND since > $1";
        for row in database.query(since, &[&by_the_wall]).await? {
            let settled: SystemTime = row.try_get(0)?;
            branches.push(settled.duration_since(by_the_wall).unwrap_or_default());
        }
    }
    Ok((branches, lasted))
}

/// Starts a coordinator on a log in SQLite that holds so many finished records; how long until it is ready.
pub async fn start_on_history(programs: &Programs, records: usize) -> anyhow::Result<Duration> {
    let mut alone = Alone::start(&programs.unanimous, &[]).await?;
    alone.fill(records).await
}
