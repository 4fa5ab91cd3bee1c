//! Power failures under load: the coordinator's log in SQLite and the bank east's Postgres are on a [`Disk`] that loses
//! its power again and again, while clients go on asking. At the end the one audit: not one told decision may be lost.
//!
//! The disk's programs see their writes fail. A coordinator has to end by itself then (design rule 10); what is left of
//! the others is killed, the power comes back, and all of them are started again on what the disk has kept.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::audit::{self, Books, Evidence, Report};
use crate::disk::Disk;
use crate::town::{BankAt, Programs, Site};
use crate::transfer::Side;
use crate::wait::until;
use crate::{Cluster, Load, Options, Process, Program, Template, Transfers, ports};

/// For what takes milliseconds, on a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(60);
const ACCOUNTS: i64 = 100;
const BALANCE: i64 = 1_000_000;

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

/// Who is on the disk, and who is not.
struct World {
    // Dropped in this order: who has files on the disk before it.
    coordinator: Process,
    banks: [Process; 2],
    clusters: [Cluster; 2],
    disk: Disk,
    site: Site,
    address: SocketAddr,
}

/// Runs the plan; `tell` hears of every failure.
pub async fn run(plan: &Plan, mut tell: impl FnMut(String)) -> anyhow::Result<Report> {
    let mut world = World::start(plan).await?;
    world.disk.flush().await?;
    let before = Books::read_both(&world.site).await?;
    let transfers = Transfers {
        seed: plan.seed,
        accounts: ACCOUNTS,
        amount_max: 100,
    };
    let load = Load::start(transfers, plan.clients, world.address);
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
    if audit::settled(&world.site, patience).await.is_err() {
        tell("not all has settled".to_owned());
    }
    let asked = (plan.cycles + 1) * plan.transfers + plan.clients;
    let evidence = Evidence::collect(&world.site, ended.asked, transfers.by_key(asked), before);
    Ok(evidence.await?.examine())
}

impl World {
    async fn start(plan: &Plan) -> anyhow::Result<Self> {
        let disk = Disk::create().await?;
        let template = Template::create().await?;
        let options = |side: Side| {
            Options::default()
                .template(&template)
                .name(format!("postgres-{side}"))
        };
        let mut on_disk = options(Side::East).directory(disk.path());
        if plan.weakness == Some(Weakness::Bank) {
            // Nobody else flushes in its stead.
            on_disk = on_disk.setting("wal_writer_delay", "10s");
        }
        let clusters = [
            Cluster::start(&on_disk).await?,
            Cluster::start(&options(Side::West)).await?,
        ];
        let free = || anyhow::Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?)));
        let [coordinator, east, west] = [free()?, free()?, free()?];
        let mut banks = Vec::new();
        let mut places = Vec::new();
        for ((side, cluster), listen) in Side::BOTH.into_iter().zip(&clusters).zip([east, west]) {
            let database_url = cluster.create_database(side.name()).await?;
            fill(&plan.programs.bank, &database_url).await?;
            let mut bank = Program::new(format!("bank-{side}"), &plan.programs.bank)
                .args(["serve", "--name", side.name()])
                .args(["--listen", &listen.to_string()])
                .args(["--coordinator", &format!("http://{coordinator}")])
                .env("BANK_DATABASE_URL", &database_url);
            if plan.weakness == Some(Weakness::Bank) && side == Side::East {
                bank = bank.env("FAILPOINTS", "synchronous-commit-off=return");
            }
            banks.push(started(&bank).await?);
            places.push(BankAt {
                side,
                url: format!("http://{listen}"),
                database_url,
            });
        }
        let log = disk.path().join("decisions.sqlite");
        let mut program = Program::new("coordinator", &plan.programs.unanimous)
            .args(["serve", "--listen", &coordinator.to_string()])
            .args(["--admin-listen", "127.0.0.1:0"])
            .args(["--participant", &format!("east=http://{east}/unanimous")])
            .args(["--participant", &format!("west=http://{west}/unanimous")])
            .args(["--log", &format!("sqlite:{}", log.display())]);
        if plan.weakness == Some(Weakness::Log) {
            program = program.env("FAILPOINTS", "synchronous-normal=return");
        }
        let pair = "there are two banks";
        let places = <[BankAt; 2]>::try_from(places).ok().context(pair)?;
        Ok(Self {
            coordinator: started(&program).await?,
            banks: <[Process; 2]>::try_from(banks).ok().context(pair)?,
            clusters,
            disk,
            site: Site::new(&format!("http://{coordinator}"), places)?,
            address: coordinator,
        })
    }

    /// The disk loses its power, and gets it back.
    async fn fail(&mut self, weakness: Option<Weakness>) -> anyhow::Result<()> {
        self.disk.cut().await?;
        // Its log takes nothing more, so it may say nothing more. One that is weak may take longer to see it.
        if weakness.is_none() {
            let ended = self.coordinator.wait_exit(PATIENCE).await;
            ended.context("a coordinator whose log fails has to end")?;
        }
        self.coordinator.kill();
        let [east, _] = &mut self.banks;
        east.kill();
        let [on_disk, _] = &mut self.clusters;
        on_disk.kill();
        // The kernel lets go of a killed program's files a moment after.
        let disk = &self.disk;
        until("the disk can be unmounted", PATIENCE, async || {
            disk.restore().await
        })
        .await?;
        on_disk.restart().await?;
        east.restart()?;
        east.wait_for_line("ready", PATIENCE).await?;
        self.coordinator.restart()?;
        self.coordinator.wait_for_line("ready", PATIENCE).await?;
        Ok(())
    }
}

async fn fill(bank: &PathBuf, database_url: &str) -> anyhow::Result<()> {
    let mut init = Program::new("bank-init", bank)
        .args(["init", "--accounts", &ACCOUNTS.to_string()])
        .args(["--balance", &BALANCE.to_string()])
        .env("BANK_DATABASE_URL", database_url)
        .start()?;
    let status = init.wait_exit(PATIENCE).await?;
    ensure!(status.success(), "bank init: {status}\n{}", init.output()?);
    Ok(())
}

async fn started(program: &Program) -> anyhow::Result<Process> {
    let mut process = program.start()?;
    process.wait_for_line("ready", PATIENCE).await?;
    Ok(process)
}
