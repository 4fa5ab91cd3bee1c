//! The programs side by side, where an experiment says what each of them gets: other disks, other arguments, or gates on
//! the roads between them. [`Town`](crate::Town) is the one that needs no saying.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::try_join;

use crate::process::Line;
use crate::town::{BankAt, Programs, Site};
use crate::transfer::Side;
use crate::{Cluster, Gate, Options, Process, Program, Template, ports};

/// For what takes milliseconds, on a machine that is very busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const ACCOUNTS: i64 = 100;
pub(crate) const BALANCE: i64 = 1_000_000;

/// What each of them gets.
pub(crate) struct Plan<'a> {
    pub(crate) programs: &'a Programs,
    /// For the server of each bank.
    pub(crate) server: &'a dyn Fn(Side, Options) -> Options,
    /// For each bank.
    pub(crate) bank: &'a dyn Fn(Side, Program) -> Program,
    /// For the coordinator, its log included; it gets the URL of a database that it may have.
    pub(crate) coordinator: &'a dyn Fn(&str, Program) -> Program,
    /// Whether there are gates on all roads between them.
    pub(crate) gates: bool,
    /// How many accounts each bank has.
    pub(crate) accounts: i64,
    /// What the data directories are copied from; without it one is made.
    pub(crate) template: Option<&'a Template>,
}

/// The programs, running.
pub(crate) struct Stand {
    // Dropped in this order: who asks before who is asked.
    pub(crate) coordinator: Process,
    pub(crate) banks: [Process; 2],
    pub(crate) clusters: [Cluster; 2],
    pub(crate) site: Site,
    /// The coordinator's.
    pub(crate) address: SocketAddr,
    /// The coordinator's, for whoever runs it.
    pub(crate) admin: SocketAddr,
    /// To the coordinator, to east, to west.
    pub(crate) gates: Option<[Gate; 3]>,
}

impl Stand {
    pub(crate) async fn start(plan: &Plan<'_>) -> anyhow::Result<Self> {
        let mut options = Options::default();
        // Held until both have their copy.
        let made;
        if let Some(template) = plan.template {
            options = options.template(template);
        } else if !options.has_template() {
            made = Template::create().await?;
            options = options.template(&made);
        }
        let server = async |side: Side| {
            let options = options.clone();
            let options = options.name(format!("postgres-{side}"));
            Cluster::start(&(plan.server)(side, options)).await
        };
        let (east, west) = try_join!(server(Side::East), server(Side::West))?;
        let clusters = [east, west];
        let free = || anyhow::Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, ports::free()?)));
        let addresses = [free()?, free()?, free()?];
        let gates = if plan.gates {
            let [coordinator, east, west] = addresses;
            Some([
                Gate::in_front_of(coordinator).await?,
                Gate::in_front_of(east).await?,
                Gate::in_front_of(west).await?,
            ])
        } else {
            None
        };
        let roads = match &gates {
            Some([coordinator, east, west]) => {
                [coordinator.address(), east.address(), west.address()]
            }
            None => addresses,
        };
        let [address, east, west] = addresses;
        let [to_coordinator, to_east, to_west] = roads;
        let (mut banks, mut places) = (Vec::new(), Vec::new());
        for ((side, cluster), listen) in Side::BOTH.into_iter().zip(&clusters).zip([east, west]) {
            let database_url = cluster.create_database(side.name()).await?;
            fill(plan, &database_url).await?;
            let bank = Program::new(format!("bank-{side}"), &plan.programs.bank)
                .args(["serve", "--name", side.name()])
                .args(["--listen", &listen.to_string()])
                .args(["--coordinator", &format!("http://{to_coordinator}")])
                .env("BANK_DATABASE_URL", &database_url);
            banks.push(started(&(plan.bank)(side, bank)).await?.0);
            places.push(BankAt {
                side,
                url: format!("http://{listen}"),
                database_url,
            });
        }
        let [on_east, _] = &clusters;
        let database = on_east.create_database("decisions").await?;
        let program = Program::new("coordinator", &plan.programs.unanimous)
            .args(["serve", "--listen", &address.to_string()])
            .args(["--admin-listen", "127.0.0.1:0"])
            .args(["--participant", &format!("east=http://{to_east}/unanimous")])
            .args(["--participant", &format!("west=http://{to_west}/unanimous")]);
        let (coordinator, ready) = started(&(plan.coordinator)(&database, program)).await?;
        let pair = "there are two banks";
        let places = <[BankAt; 2]>::try_from(places).ok().context(pair)?;
        Ok(Self {
            coordinator,
            banks: <[Process; 2]>::try_from(banks).ok().context(pair)?,
            clusters,
            site: Site::new(&format!("http://{address}"), places)?,
            address,
            admin: ready.field("admin")?.parse()?,
            gates,
        })
    }
}

/// Starts it again, and waits until it is ready.
pub(crate) async fn restarted(process: &mut Process) -> anyhow::Result<()> {
    process.restart()?;
    process.wait_for_line("ready", PATIENCE).await?;
    Ok(())
}

async fn fill(plan: &Plan<'_>, database_url: &str) -> anyhow::Result<()> {
    let mut init = Program::new("bank-init", &plan.programs.bank)
        .args(["init", "--accounts", &plan.accounts.to_string()])
        .args(["--balance", &BALANCE.to_string()])
        .env("BANK_DATABASE_URL", database_url)
        .start()?;
    let status = init.wait_exit(PATIENCE).await?;
    ensure!(status.success(), "bank init: {status}\n{}", init.output()?);
    Ok(())
}

/// Starts it; with what it says when it is ready.
async fn started(program: &Program) -> anyhow::Result<(Process, Line)> {
    let mut process = program.start()?;
    let ready = process.wait_for_line("ready", PATIENCE).await?;
    Ok((process, ready))
}
