//! A database server that somebody else runs, and the databases that we borrow there for a while.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use reqwest::Url;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::postgres::connect;

/// A server that does not answer by then is a wrong address.
const ANSWER: Duration = Duration::from_secs(5);
/// Creating or dropping a database waits for a checkpoint of the server.
const DATABASE: Duration = Duration::from_secs(60);

/// The URL of a server, `postgres://user:password@host:port/database`. It prints without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(Url);

impl FromStr for ServerUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The text may hold a password, so a failure does not repeat it.
        let form = "not of the form postgres://user:password@host:port/database";
        let mut url = Url::parse(text).map_err(|error| format!("{form}: {error}"))?;
        let is_ours = ["postgres", "postgresql"].contains(&url.scheme());
        if !is_ours || url.host_str().unwrap_or_default().is_empty() {
            return Err(form.to_owned());
        }
        if url.path().trim_matches('/').is_empty() {
            url.set_path("/postgres");
        }
        Ok(Self(url))
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        // A URL with a host takes a password, or none.
        url.set_password(None).ok();
        // There may be another one in it.
        url.set_query(None);
        f.pad(url.as_str())
    }
}

/// A database's URL as it may be shown.
pub(crate) fn without_password(url: &str) -> String {
    match url.parse::<ServerUrl>() {
        Ok(url) => url.to_string(),
        Err(_) => "a database".to_owned(),
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ServerUrl {
    fn database(&self, name: &str) -> String {
        let mut url = self.0.clone();
        url.set_path(&format!("/{name}"));
        url.into()
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        self.connect_as(self.0.as_str()).await
    }

    async fn connect_as(&self, url: &str) -> anyhow::Result<Client> {
        match timeout(ANSWER, connect(url)).await {
            // The first line of the chain has the whole URL.
            Ok(Err(error)) => Err(anyhow!("{}", error.root_cause())),
            Ok(connected) => connected,
            Err(_) => bail!("no answer within {ANSWER:?}"),
        }
    }

    /// Fails, saying what to do, unless we can make databases there.
    pub async fn check(&self) -> anyhow::Result<()> {
        let may = async {
            let client = self.connect().await?;
            let role = client
                .query_one(
                    "SELECT rolcreatedb OR rolsuper, rolname::text FROM pg_roles WHERE rolname = current_user",
                    &[],
                )
                .await?;
            let (may, name): (bool, String) = (role.try_get(0)?, role.try_get(1)?);
            ensure!(
                may,
                "the role {name} may not create databases; a superuser can change that: ALTER ROLE \"{name}\" CREATEDB"
            );
            anyhow::Ok(())
        };
        may.await.with_context(|| {
            format!(
                "the server {self} can not be used. It has to be reachable by this URL without TLS, with a role \
                 that may create databases. Without --postgres-url servers of our own are started"
            )
        })
    }
}

/// A database of ours on somebody's server. Dropped, it is removed there too.
#[derive(Debug)]
pub struct Borrowed {
    server: ServerUrl,
    name: String,
    /// Left on the server for a look.
    keep: bool,
}

impl Borrowed {
    /// Makes a database with a name of its own that begins with `unanimous_demo_`.
    pub async fn create(server: &ServerUrl, purpose: &str) -> anyhow::Result<Self> {
        let name = format!("unanimous_demo_{purpose}_{:016x}", rand::random::<u64>());
        // Before it is there: interrupted in the middle, it is removed all the same.
        let borrowed = Self {
            server: server.clone(),
            name,
            keep: false,
        };
        let mut url = server.0.clone();
        url.query_pairs_mut()
            .append_pair("application_name", &borrowed.name);
        let create = async {
            let client = server.connect_as(url.as_str()).await?;
            // Nobody can be connected to template0, so that this never has to wait for others.
            let sql = format!("CREATE DATABASE {} TEMPLATE template0", borrowed.name);
            client.batch_execute(&sql).await?;
            anyhow::Ok(())
        };
        timeout(DATABASE, create)
            .await
            .map_err(anyhow::Error::from)
            .flatten()
            .with_context(|| format!("cannot create a database on {server}"))?;
        Ok(borrowed)
    }

    /// For programs that connect.
    pub fn url(&self) -> String {
        self.server.database(&self.name)
    }

    /// Its name on the server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Leaves it on the server.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    async fn remove(&self) -> anyhow::Result<()> {
        let client = self.server.connect().await?;
        // Interrupted in the middle of creating it, the server may still be at it.
        let creators = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1";
        loop {
            let row = client.query_one(creators, &[&self.name]).await?;
            if row.try_get::<_, i64>(0)? == 0 {
                break;
            }
        }
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        client.batch_execute(&sql).await?;
        Ok(())
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // A runtime of its own: ours may be in the middle of ending.
        let removed = std::thread::scope(|scope| {
            let removing = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = { runtime }.enable_all().build()?;
                runtime.block_on(async { timeout(DATABASE, self.remove()).await? })
            });
            removing.join().unwrap_or_else(|_| Err(anyhow!("a panic")))
        });
        if let Err(error) = removed {
            #[expect(
                clippy::print_stderr,
                reason = "a drop has nobody else to tell, and an operator has to remove it"
            )]
            {
                eprintln!(
                    "the database {} on {} could not be removed, please do: {error:#}",
                    self.name, self.server
                );
            }
        }
    }
}
