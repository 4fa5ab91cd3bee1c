//! Power failures under load: the coordinator's log in SQLite and the bank east's Postgres are on a [`Disk`] that loses
//! its power again and again, while clients go on asking. At the end the one audit: not one told decision may be lost.
//!
//! The disk's programs see their writes fail. A coordinator has to end by itself then (design rule 10); what is left of
//! the others is killed, the power comes back, and all of them are started again on what the disk has kept.

use std::time::Duration;

use anyhow::Context;

use crate::audit::{self, Books, Evidence, Report};
use crate::disk::Disk;
use crate::stand::{self, ACCOUNTS, PATIENCE, Stand, restarted};
use crate::town::Programs;
use crate::transfer::Side;
use crate::wait::until;
use crate::{Load, Transfers};

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which programs.
    pub programs: Programs,
    /// How often the power fails.
    pub cycles: usize,
    /// How many transfers are told between two failures.
    pub transfers: usize,
    /// How many clients ask.
    pub clients: usize,
    /// Fixes the transfers.
    pub seed: u64,
    /// A mistake on purpose, to see that it is found.
    pub weakness: Option<Weakness>,
}

/// Somebody who does not flush what he promised. The programs must be built with failpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// The coordinator's log runs with `synchronous=NORMAL`.
    Log,
    /// The bank east commits with `synchronous_commit=off`.
    Bank,
}

/// The programs, and the disk that some of them are on.
struct World {
    // Dropped first: it has files on the disk.
    stand: Stand,
    disk: Disk,
}

/// Runs the plan; `tell` hears of every failure.
pub async fn run(plan: &Plan, mut tell: impl FnMut(String)) -> anyhow::Result<Report> {
    let mut world = World::start(plan).await?;
    world.disk.flush().await?;
    let before = Books::read_both(&world.stand.site).await?;
    let transfers = Transfers {
        seed: plan.seed,
        accounts: ACCOUNTS,
        amount_max: 100,
    };
    let load = Load::start(transfers, plan.clients, world.stand.address);
    for cycle in 1..=plan.cycles {
        // Further than to where the power fails, so that it fails while they ask.
        load.allow((cycle + 1) * plan.transfers);
        if !load.told_at_least(cycle * plan.transfers).await? {
            tell(format!("a client gave up before failure {cycle}"));
            break;
        }
        world.fail(plan.weakness).await?;
        tell(format!(
            "failure {cycle:>3} of {}: {} told; all are up again",
            plan.cycles,
            load.told()
        ));
    }
    load.stop();
    let ended = load.finish().await?;
    let patience = match plan.weakness {
        None => PATIENCE,
        // What was lost is not found again, however long one waits.
        Some(_) => Duration::from_secs(10),
    };
    if audit::settled(&world.stand.site, patience).await.is_err() {
        tell("not all has settled".to_owned());
    }
    let asked = (plan.cycles + 1) * plan.transfers + plan.clients;
    let evidence = Evidence::collect(
        &world.stand.site,
        ended.asked,
        transfers.by_key(asked),
        before,
    );
    Ok(evidence.await?.examine())
}

impl World {
    async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let disk = Disk::create().await?;
        let weakness = plan.weakness;
        let weak_bank = |side| weakness == Some(Weakness::Bank) && side == Side::East;
        let stand = Stand::start(&stand::Plan {
            programs: &plan.programs,
            server: &|side, options| match side {
                Side::East if weak_bank(side) => {
                    // Nobody else flushes in its stead.
                    let options = options.directory(disk.path());
                    options.setting("wal_writer_delay", "10s")
                }
                Side::East => options.directory(disk.path()),
                Side::West => options,
            },
            bank: &|side, bank| {
                if weak_bank(side) {
                    bank.env("FAILPOINTS", "synchronous-commit-off=return")
                } else {
                    bank
                }
            },
            coordinator: &|_, coordinator| {
                let log = disk.path().join("decisions.sqlite");
                let coordinator = coordinator.args(["--log", &format!("sqlite:{}", log.display())]);
                if weakness == Some(Weakness::Log) {
                    coordinator.env("FAILPOINTS", "synchronous-normal=return")
                } else {
                    coordinator
                }
            },
            gates: false,
            accounts: ACCOUNTS,
            template: None,
        })
        .await?;
        Ok(Self { stand, disk })
    }

    /// The disk loses its power, and gets it back.
    async fn fail(&mut self, weakness: Option<Weakness>) -> anyhow::Result<()> {
        let Stand {
            coordinator,
            banks: [east, _],
            clusters: [server, _],
            ..
        } = &mut self.stand;
        self.disk.cut().await?;
        // Its log takes nothing more, so it may say nothing more. One that is weak may take longer to see it.
        if weakness.is_none() {
            let ended = coordinator.wait_exit(PATIENCE).await;
            ended.context("a coordinator whose log fails has to end")?;
        }
        coordinator.kill();
        east.kill();
        server.kill();
        // The kernel lets go of a killed program's files a moment after.
        let disk = &self.disk;
        until("the disk can be unmounted", PATIENCE, async || {
            disk.restore().await
        })
        .await?;
        server.restart().await?;
        restarted(east).await?;
        restarted(coordinator).await
    }
}
