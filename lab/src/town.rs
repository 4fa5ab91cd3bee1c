//! All our programs at work, with nothing shared and nothing faked: the banks `east` and `west`, each on a Postgres
//! server of its own, and one coordinator with its decision log.
//!
//! Everything listens on free ports of 127.0.0.1, dies with this process, and is gone with the
//! [`Town`].

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::try_join;
use unanimous_protocol::wire::{BranchList, BranchStateAnswer};

use crate::fault::{Fault, Victim};
use crate::server::without_password;
use crate::transfer::{Account, Api, Side};
pub use crate::vault::Servers;
use crate::vault::Vault;
use crate::{Process, Program, ports, scratch};

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

/// Where the coordinator's decision log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogKind {
    /// A file.
    #[default]
    Sqlite,
    /// A database on the bank east's server.
    Postgres,
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
    /// Where decisions are kept.
    pub log: LogKind,
    /// Where databases are.
    pub servers: Servers,
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
    http: reqwest::Client,
}

impl Town {
    /// Starts all of it, and returns when all of it answers.
    pub async fn start(plan: &Plan) -> anyhow::Result<Self> {
        plan.programs.check()?;
        let (mut east, west) = Vault::open_both(plan).await?;
        let directory = scratch::directory("log")?;
        let log = match plan.log {
            LogKind::Sqlite => format!("sqlite:{}", file_in(directory.path()).display()),
            LogKind::Postgres => east.add_log().await?,
        };
        let http = http_client()?;
        let mut tried = 0;
        let serving = loop {
            tried += 1;
            match Serving::start(plan, &east, &west, &log).await {
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
                log_url: log,
                directory,
            },
            east: bank(Side::East, serving.east, east),
            west: bank(Side::West, serving.west, west),
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

    fn process(&mut self, victim: Victim) -> &mut Process {
        match victim {
            Victim::Coordinator => &mut self.coordinator.process,
            Victim::Bank(Side::East) => &mut self.east.process,
            Victim::Bank(Side::West) => &mut self.west.process,
        }
    }

    /// Does this to it. Returns once it is done: after a restart, once it is ready.
    pub async fn inflict(&mut self, fault: Fault, victim: Victim) -> anyhow::Result<()> {
        let process = self.process(victim);
        match fault {
            Fault::Kill => process.kill(),
            Fault::Stop => {
                let status = process.terminate().await?;
                ensure!(status.success(), "{victim}, told to stop: {status}");
            }
            Fault::Pause => process.pause(),
            Fault::Restart if process.is_paused() => process.resume(),
            Fault::Restart => restart(process).await?,
        }
        Ok(())
    }

    /// What the victim was started with.
    pub fn program(&mut self, victim: Victim) -> &Program {
        self.process(victim).program()
    }

    /// Kills the victim, and starts it with other arguments or another environment. Returns once it is ready, or has ended
    /// by itself before.
    pub async fn restart_as(&mut self, victim: Victim, program: &Program) -> anyhow::Result<()> {
        let process = self.process(victim);
        process.restart_as(program.clone())?;
        match process.wait_for_line("ready", READINESS).await {
            Err(_) if !process.is_running() => Ok(()),
            ready => ready.map(drop),
        }
    }

    /// Whether it is dead.
    pub fn has_ended(&mut self, victim: Victim) -> bool {
        !self.process(victim).is_running()
    }

    /// Waits until the victim has ended by itself.
    pub async fn ended(
        &mut self,
        victim: Victim,
        patience: Duration,
    ) -> anyhow::Result<ExitStatus> {
        self.process(victim).wait_exit(patience).await
    }

    /// The victim's process id; after a restart it has another one.
    pub fn process_id(&self, victim: Victim) -> u32 {
        match victim {
            Victim::Coordinator => self.coordinator.process.id(),
            Victim::Bank(side) => self.bank(side).process.id(),
        }
    }

    /// A client of the coordinator.
    pub fn api(&self) -> Api {
        Api::new(self.http.clone(), self.coordinator.url.clone())
    }

    /// Where an audit looks.
    pub fn site(&self) -> Site {
        let at = |bank: &Bank| BankAt {
            side: bank.side,
            url: bank.url.clone(),
            database_url: bank.vault.database_url(),
        };
        Site {
            http: self.http.clone(),
            coordinator: self.coordinator.url.clone(),
            banks: [at(&self.east), at(&self.west)],
        }
    }

    /// What an account holds, as its bank tells everybody.
    pub async fn balance(&self, account: Account) -> anyhow::Result<i64> {
        #[derive(serde::Deserialize)]
        struct Told {
            balance: i64,
        }
        let path = format!("/accounts/{}", account.number);
        let bank = self.bank(account.side);
        let told: Told = get(&bank.http, &bank.url, &path).await?;
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

    /// Leaves all data and all that was printed where it is when the town is dropped; where that is.
    pub fn keep(&mut self) -> Vec<String> {
        let mut kept = Vec::new();
        self.coordinator.directory.disable_cleanup(true);
        // A log in Postgres stays with its server's data.
        if self.coordinator.log_url.starts_with("sqlite:") {
            kept.push(self.coordinator.log());
        }
        for bank in [&mut self.east, &mut self.west] {
            kept.extend(bank.vault.keep());
        }
        for victim in [
            Victim::Coordinator,
            Victim::Bank(Side::East),
            Victim::Bank(Side::West),
        ] {
            let output = self.process(victim).keep_output();
            kept.push(output.display().to_string());
        }
        kept
    }
}

/// The coordinator's process and its log.
#[derive(Debug)]
pub struct Coordinator {
    process: Process,
    url: String,
    log_url: String,
    directory: TempDir,
}

impl Coordinator {
    /// Its address, `http://…`; the same for all its lives.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where its log is, as it was given to it: it may hold a password.
    pub fn log_url(&self) -> &str {
        &self.log_url
    }

    /// What a reader is told about where its log is.
    pub fn log(&self) -> String {
        match self.log_url.strip_prefix("sqlite:") {
            Some(path) => path.to_owned(),
            None => without_password(&self.log_url),
        }
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

impl Bank {
    /// Its address, `http://…`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What a reader is told about where its database is.
    pub fn database(&self) -> String {
        self.vault.described()
    }
}

/// Where the programs are that an audit asks, and the databases that it reads.
#[derive(Clone, Debug)]
pub struct Site {
    http: reqwest::Client,
    /// A coordinator's address, `http://…`.
    pub coordinator: String,
    /// East first.
    pub banks: [BankAt; 2],
}

/// Where one bank is.
#[derive(Clone, Debug)]
pub struct BankAt {
    /// Which one.
    pub side: Side,
    /// Its address, `http://…`.
    pub url: String,
    /// Its database.
    pub database_url: String,
}

/// What a bank tells of all its accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub struct Total {
    /// How many there are.
    pub accounts: i64,
    /// What they hold together.
    pub balance: i64,
}

impl Site {
    /// Of programs that somebody else started.
    pub fn new(coordinator: &str, banks: [BankAt; 2]) -> anyhow::Result<Self> {
        Ok(Self {
            http: http_client()?,
            coordinator: coordinator.to_owned(),
            banks,
        })
    }

    /// A client of the coordinator.
    pub fn api(&self) -> Api {
        Api::new(self.http.clone(), self.coordinator.clone())
    }

    /// The coordinator's address, for clients of other kinds.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        let url = &self.coordinator;
        let address = url.strip_prefix("http://").context("no http:// in a URL")?;
        address
            .parse()
            .with_context(|| format!("no address: {url}"))
    }

    /// `GET /total` of a bank.
    pub async fn total(&self, bank: &BankAt) -> anyhow::Result<Total> {
        get(&self.http, &bank.url, "/total").await
    }

    /// The branches that voted yes and know no outcome, as the bank's participant lists them.
    pub async fn in_doubt(&self, bank: &BankAt) -> anyhow::Result<Vec<BranchStateAnswer>> {
        let mut branches = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/unanimous/v1/branches?state=prepared&limit=1000{after}");
            let page: BranchList = get(&self.http, &bank.url, &path).await?;
            branches.extend(page.branches);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(branches),
            }
        }
    }
}

/// GET at one of our programs; it answers 200 and JSON, or this fails.
pub(crate) async fn get<T: DeserializeOwned>(
    http: &reqwest::Client,
    base: &str,
    path: &str,
) -> anyhow::Result<T> {
    let what = || format!("GET {base}{path}");
    let answered = http.get(format!("{base}{path}")).timeout(ANSWER).send();
    let answered = answered.await.with_context(what)?;
    let status = answered.status();
    let body = answered.text().await.with_context(what)?;
    ensure!(status.is_success(), "{}: {status}, {body}", what());
    serde_json::from_str(&body).with_context(|| format!("{}: {body}", what()))
}

/// The three processes, each with its URL.
struct Serving {
    coordinator: (Process, String),
    east: (Process, String),
    west: (Process, String),
}

impl Serving {
    /// One attempt: each has to know the other's port before that one runs, and somebody else may
    /// take it.
    async fn start(plan: &Plan, east: &Vault, west: &Vault, log: &str) -> anyhow::Result<Self> {
        let [at_coordinator, at_east, at_west] =
            [free_address()?, free_address()?, free_address()?];
        // URLs may hold passwords, and everybody can read a command line.
        let bank = |side: Side, vault: &Vault, listen: SocketAddr| {
            Program::new(format!("bank-{side}"), &plan.programs.bank)
                .args(["serve", "--name", side.name()])
                .args(["--listen", &listen.to_string()])
                .args(["--coordinator", &format!("http://{at_coordinator}")])
                .env("BANK_DATABASE_URL", vault.database_url())
        };
        let coordinator = Program::new("coordinator", &plan.programs.unanimous)
            .arg("serve")
            .args(["--listen", &at_coordinator.to_string()])
            .args(["--admin-listen", "127.0.0.1:0"])
            .args(["--participant", &format!("east=http://{at_east}/unanimous")])
            .args(["--participant", &format!("west=http://{at_west}/unanimous")])
            .env("UNANIMOUS_LOG", log);
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
        })
    }
}

fn file_in(directory: &Path) -> PathBuf {
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
pub(crate) fn http_client() -> anyhow::Result<reqwest::Client> {
    // An error says that there is a provider already, and that is all that is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_certs_only([])
        .build()
        .context("cannot make an HTTP client")
}
