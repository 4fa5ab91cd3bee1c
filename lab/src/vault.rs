//! Where a bank's data is, and a decision log in Postgres: databases on private clusters, or on servers that somebody
//! else runs.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use tokio::try_join;

use crate::server::{Borrowed, ServerUrl};
use crate::town::Plan;
use crate::transfer::Side;
use crate::{Cluster, Options, Program, Template};

/// Filling the accounts may have to wait for a busy disk.
const FILLING: Duration = Duration::from_secs(60);

/// Whose database servers the banks use, and the log where it is in Postgres.
#[derive(Clone, Debug, Default)]
pub enum Servers {
    /// Private clusters, one for each bank.
    #[default]
    Private,
    /// These, the bank east's first. They may be one and the same.
    Given([ServerUrl; 2]),
}

/// A server, ours or not.
#[derive(Debug)]
enum Server {
    // It holds a process and more, and there are only two of them.
    Private(Box<Cluster>),
    Given(ServerUrl),
}

impl Server {
    async fn create_database(&self, purpose: &str) -> anyhow::Result<Database> {
        Ok(match self {
            Self::Private(cluster) => Database::OnPrivate(cluster.create_database(purpose).await?),
            Self::Given(url) => Database::Borrowed(Borrowed::create(url, purpose).await?),
        })
    }
}

/// One database.
#[derive(Debug)]
enum Database {
    /// Its URL; gone with its cluster.
    OnPrivate(String),
    Borrowed(Borrowed),
}

impl Database {
    fn url(&self) -> String {
        match self {
            Self::OnPrivate(url) => url.clone(),
            Self::Borrowed(borrowed) => borrowed.url(),
        }
    }
}

/// A bank's database, filled, and its server.
#[derive(Debug)]
pub(crate) struct Vault {
    // Dropped in this order: a borrowed database while its server can be reached.
    /// Of the coordinator, where its log is on this server.
    log: Option<Database>,
    database: Database,
    server: Server,
}

impl Vault {
    /// Both banks' vaults, east first.
    pub(crate) async fn open_both(plan: &Plan) -> anyhow::Result<(Self, Self)> {
        let (east, west) = match &plan.servers {
            Servers::Private => {
                let mut options = Options::default();
                // Held until both have their copy.
                let mut template = None;
                if !options.has_template() {
                    let made = template.insert(Template::create().await?);
                    options = options.template(made);
                }
                let start = async |side: Side| {
                    let options = options.clone().name(format!("postgres-{side}"));
                    let cluster = Cluster::start(&options).await?;
                    anyhow::Ok(Server::Private(Box::new(cluster)))
                };
                try_join!(start(Side::East), start(Side::West))?
            }
            Servers::Given([east, west]) => {
                try_join!(east.check(), west.check())?;
                (Server::Given(east.clone()), Server::Given(west.clone()))
            }
        };
        try_join!(
            Self::open(plan, Side::East, east),
            Self::open(plan, Side::West, west)
        )
    }

    async fn open(plan: &Plan, side: Side, server: Server) -> anyhow::Result<Self> {
        let database = server.create_database(side.name()).await?;
        let mut init = Program::new(format!("bank-init-{side}"), &plan.programs.bank)
            .arg("init")
            .args(["--accounts", &plan.accounts.to_string()])
            .args(["--balance", &plan.balance.to_string()])
            .env("BANK_DATABASE_URL", database.url())
            .start()?;
        let status = init.wait_exit(FILLING).await?;
        ensure!(
            status.success(),
            "the bank {side} could not be filled: {status}\n{}",
            init.shown_output()
        );
        Ok(Self {
            log: None,
            database,
            server,
        })
    }

    /// A database for the coordinator's log on this bank's server; its URL.
    pub(crate) async fn add_log(&mut self) -> anyhow::Result<String> {
        let log = self.server.create_database("decisions").await?;
        let url = log.url();
        self.log = Some(log);
        Ok(url)
    }

    pub(crate) fn database_url(&self) -> String {
        self.database.url()
    }

    /// What a reader is told about where it is.
    pub(crate) fn described(&self) -> String {
        match (&self.server, &self.database) {
            (Server::Given(url), Database::Borrowed(borrowed)) => {
                format!("database {} on {url}", borrowed.name())
            }
            (Server::Private(cluster), _) => {
                format!("a Postgres of its own on port {}", cluster.port())
            }
            (Server::Given(url), Database::OnPrivate(_)) => format!("a database on {url}"),
        }
    }

    /// Leaves its data where it is when it is dropped; where that is.
    pub(crate) fn keep(&mut self) -> Vec<String> {
        let mut kept = Vec::new();
        if let Server::Private(cluster) = &mut self.server {
            cluster.keep();
            kept.push(shown(&cluster.data_directory()));
        }
        for database in self.log.iter_mut().chain([&mut self.database]) {
            if let Database::Borrowed(borrowed) = database {
                borrowed.keep();
                let (name, server) = (borrowed.name(), &self.server);
                if let Server::Given(url) = server {
                    kept.push(format!("the database {name} on {url}"));
                }
            }
        }
        kept
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
