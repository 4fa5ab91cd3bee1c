//! All our programs at work, with nothing shared and nothing faked: two private Postgres clusters,
//! the banks `east` and `west` on them, and one coordinator with its decision log in a file.
//!
//! Everything listens on free ports of 127.0.0.1, dies with this process, and is gone with the
//! [`Town`].

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::try_join;
use unanimous_protocol::id::TransactionId;
use unanimous_protocol::wire::{BranchList, BranchStateAnswer};

use crate::gate::Gate;
use crate::transfer::{Account, Api, Side};
use crate::{Cluster, Options, Process, Program, Template, ports, scratch};

/// A program under test may have to wait for the disk, and for others on the same machine.
const READINESS: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(10);
/// Another program may take a free port before ours does; that often in a row it does not.
const PORTS_TRIED: u32 = 10;

/// Which of our programs to run.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The coordinator.
    pub unanimous: PathBuf,
    /// The bank.
    pub bank: PathBuf,
}

impl Programs {
    /// Those in the directory of the program that runs now, where cargo puts them all.
    pub fn beside_this_one() -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot tell where this program is")?;
        let directory = own
            .parent()
            .context("this program is in no directory")?
            .to_owned();
        Ok(Self {
            unanimous: directory.join("unanimous"),
            bank: directory.join("bank"),
        })
    }

    fn check(&self) -> anyhow::Result<()> {
        for (path, flag) in [(&self.unanimous, "--unanimous"), (&self.bank, "--bank")] {
            ensure!(
                path.is_file(),
                "there is no program {}: build it by `cargo build --workspace --bins`, or name \
                 another one by {flag}",
                path.display()
            );
        }
        Ok(())
    }
}

/// What to set up.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which programs.
    pub programs: Programs,
    /// Each bank has the accounts 1 to this.
    pub accounts: i64,
    /// What each of them holds at first.
    pub balance: i64,
    /// Whether there are [gates](Gate) on the roads between coordinator and banks. A benchmark has
    /// none: they cost time.
    pub gates: bool,
}

/// The gates on all roads between the coordinator and the banks.
#[derive(Debug)]
pub struct Gates {
    /// On the coordinator's way to the bank east.
    pub to_east: Gate,
    /// On the coordinator's way to the bank west.
    pub to_west: Gate,
    /// On the way of the banks to the coordinator.
    pub to_coordinator: Gate,
}

impl Gates {
    /// No bank hears of a decision to commit from now on: commits are held on their way, and so is
    /// what the banks ask about branches in doubt. All else passes.
    pub fn hold_decisions(&self) {
        self.to_coordinator.close_for("/outcome");
        self.to_east.close_for("/v1/commit");
        self.to_west.close_for("/v1/commit");
    }

    /// Opens them all; what is held is lost.
    pub fn open(&self) {
        for gate in [&self.to_coordinator, &self.to_east, &self.to_west] {
            gate.open();
        }
    }
}

/// The programs, running.
#[derive(Debug)]
pub struct Town {
    // In this order they are dropped: who asks before who is asked.
    /// The coordinator.
    pub coordinator: Coordinator,
    /// The bank east.
    pub east: Bank,
    /// The bank west.
    pub west: Bank,
    /// Where the plan has them.
    pub gates: Option<Gates>,
    http: reqwest::Client,
}

impl Town {
    /// Starts all of it, and returns when all of it answers.
    pub async fn start(plan: &Plan) -> anyhow::Result<Self> {
        plan.programs.check()?;
        let (east, west) = {
            let template = Template::create().await?;
            try_join!(
                Vault::open(plan, Side::East, &template),
                Vault::open(plan, Side::West, &template),
            )?
        };
        let directory = scratch::directory("log")?;
        let http = http_client()?;
        let mut tried = 0;
        let serving = loop {
            tried += 1;
            match Serving::start(plan, &east, &west, directory.path()).await {
                Err(error) if tried < PORTS_TRIED && port_was_taken(&error) => {}
                started => break started?,
            }
        };
        let bank = |side, (process, url), vault| Bank {
            side,
            process,
            url,
            http: http.clone(),
            vault,
        };
        let (process, url) = serving.coordinator;
        Ok(Self {
            coordinator: Coordinator {
                process,
                url,
                directory,
            },
            east: bank(Side::East, serving.east, east),
            west: bank(Side::West, serving.west, west),
            gates: serving.gates,
            http,
        })
    }

    /// The bank on one side.
    pub fn bank(&self, side: Side) -> &Bank {
        match side {
            Side::East => &self.east,
            Side::West => &self.west,
        }
    }

    /// A client of the coordinator.
    pub fn api(&self) -> Api {
        Api::new(self.http.clone(), self.coordinator.url.clone())
    }

    /// What an account holds, as its bank tells everybody.
    pub async fn balance(&self, account: Account) -> anyhow::Result<i64> {
        #[derive(serde::Deserialize)]
        struct Told {
            balance: i64,
        }
        let path = format!("/accounts/{}", account.number);
        let told: Told = self.bank(account.side).get(&path).await?;
        Ok(told.balance)
    }

    /// The end of what our programs printed, for a failure that does not come from one of them.
    pub fn outputs(&self) -> String {
        [
            &self.coordinator.process,
            &self.east.process,
            &self.west.process,
        ]
        .map(Process::shown_output)
        .join("\n")
    }
}

/// The coordinator's process and its log.
#[derive(Debug)]
pub struct Coordinator {
    process: Process,
    url: String,
    directory: TempDir,
}

impl Coordinator {
    /// Its address, `http://…`; the same for all its lives.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its decision log.
    pub fn log(&self) -> PathBuf {
        log_in(self.directory.path())
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL. Returns when it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same log and the same port; one that runs is killed first.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        restart(&mut self.process).await
    }
}

/// A bank's process and its database.
#[derive(Debug)]
pub struct Bank {
    side: Side,
    process: Process,
    url: String,
    http: reqwest::Client,
    vault: Vault,
}

/// What a bank tells of all its accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Total {
    /// How many there are.
    pub accounts: i64,
    /// What they hold together.
    pub balance: i64,
}

impl Bank {
    /// Which one it is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Its address, `http://…`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of its database.
    pub fn database_url(&self) -> &str {
        &self.vault.database_url
    }

    /// Its database server.
    pub fn cluster(&mut self) -> &mut Cluster {
        &mut self.vault.cluster
    }

    /// The port of its database server.
    pub fn database_port(&self) -> u16 {
        self.vault.cluster.port()
    }

    /// Its process, to do harm to.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts it again on the same port; one that runs is killed first.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        restart(&mut self.process).await
    }

    /// `GET /total`
    pub async fn total(&self) -> anyhow::Result<Total> {
        self.get("/total").await
    }

    /// The branches that voted yes and know no outcome.
    pub async fn in_doubt(&self) -> anyhow::Result<Vec<BranchStateAnswer>> {
        let mut branches = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/unanimous/v1/branches?state=prepared&limit=1000{after}");
            let page: BranchList = self.get(&path).await?;
            branches.extend(page.branches);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(branches),
            }
        }
    }

    /// Where one branch stands.
    pub async fn branch(&self, id: TransactionId) -> anyhow::Result<BranchStateAnswer> {
        self.get(&format!("/unanimous/v1/branches/{id}")).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let what = || format!("GET {path} of the bank {}", self.side);
        let url = format!("{}{path}", self.url);
        let answered = self.http.get(url).timeout(ANSWER).send().await;
        let answered = answered.with_context(what)?;
        let status = answered.status();
        let body = answered.text().await.with_context(what)?;
        ensure!(status.is_success(), "{}: {status}, {body}", what());
        serde_json::from_str(&body).with_context(|| format!("{}: {body}", what()))
    }
}

/// A cluster with a bank's database, filled.
#[derive(Debug)]
struct Vault {
    cluster: Cluster,
    database_url: String,
}

impl Vault {
    async fn open(plan: &Plan, side: Side, template: &Template) -> anyhow::Result<Self> {
        let options = Options::default().template(template);
        let cluster = Cluster::start(&options.name(format!("postgres-{side}"))).await?;
        let database_url = cluster.create_database(side.name()).await?;
        let mut init = Program::new(format!("bank-init-{side}"), &plan.programs.bank)
            .args(["init", "--database-url", &database_url])
            .args(["--accounts", &plan.accounts.to_string()])
            .args(["--balance", &plan.balance.to_string()])
            .start()?;
        let status = init.wait_exit(READINESS).await?;
        ensure!(
            status.success(),
            "the bank {side} could not be filled: {status}\n{}",
            init.shown_output()
        );
        Ok(Self {
            cluster,
            database_url,
        })
    }
}

/// The three processes, each with its URL.
struct Serving {
    coordinator: (Process, String),
    east: (Process, String),
    west: (Process, String),
    gates: Option<Gates>,
}

impl Serving {
    /// One attempt: each has to know the other's port before that one runs, and somebody else may
    /// take it.
    async fn start(
        plan: &Plan,
        east: &Vault,
        west: &Vault,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let [at_coordinator, at_east, at_west] =
            [free_address()?, free_address()?, free_address()?];
        let gates = if plan.gates {
            Some(Gates {
                to_east: Gate::in_front_of(at_east).await?,
                to_west: Gate::in_front_of(at_west).await?,
                to_coordinator: Gate::in_front_of(at_coordinator).await?,
            })
        } else {
            None
        };
        let [to_coordinator, to_east, to_west] = match &gates {
            Some(gates) => {
                [&gates.to_coordinator, &gates.to_east, &gates.to_west].map(Gate::address)
            }
            None => [at_coordinator, at_east, at_west],
        };
        let bank = |side: Side, vault: &Vault, listen: SocketAddr| {
            Program::new(side.name(), &plan.programs.bank)
                .args(["serve", "--name", side.name()])
                .args(["--database-url", &vault.database_url])
                .args(["--listen", &listen.to_string()])
                .args(["--coordinator", &format!("http://{to_coordinator}")])
        };
        let coordinator = Program::new("coordinator", &plan.programs.unanimous)
            .arg("serve")
            .args(["--log", &format!("sqlite:{}", log_in(directory).display())])
            .args(["--listen", &at_coordinator.to_string()])
            .args(["--admin-listen", "127.0.0.1:0"])
            .args(["--participant", &format!("east=http://{to_east}/unanimous")])
            .args(["--participant", &format!("west=http://{to_west}/unanimous")]);
        let (east, west) = try_join!(
            start(bank(Side::East, east, at_east)),
            start(bank(Side::West, west, at_west)),
        )?;
        // Last, because it asks the banks at once who they are.
        let coordinator = start(coordinator).await?;
        Ok(Self {
            coordinator,
            east,
            west,
            gates,
        })
    }
}

fn log_in(directory: &Path) -> PathBuf {
    directory.join("decisions.sqlite")
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok((Ipv4Addr::LOCALHOST, ports::free()?).into())
}

/// Starts a server of ours; its URL once it is ready.
async fn start(program: Program) -> anyhow::Result<(Process, String)> {
    let mut process = program.start()?;
    let ready = process.wait_for_line("ready", READINESS).await?;
    let url = format!("http://{}", ready.field("listen")?);
    Ok((process, url))
}

async fn restart(process: &mut Process) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        process.restart()?;
        match process.wait_for_line("ready", READINESS).await {
            // Whoever took the port while it was free (a test that looked for one) will leave again.
            Err(error) if port_was_taken(&error) && begun.elapsed() < READINESS => {}
            ready => return ready.map(|_| ()),
        }
    }
}

/// The failures of our programs carry what they printed.
fn port_was_taken(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("Address already in use")
}

/// No proxy and no redirect: the lab talks to its own programs and to nobody else.
fn http_client() -> anyhow::Result<reqwest::Client> {
    // An error says that there is a provider already, and that is all that is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_certs_only([])
        .build()
        .context("cannot make an HTTP client")
}
