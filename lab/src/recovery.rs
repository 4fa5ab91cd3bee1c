//! A kill, and how long it takes until all is settled that was in doubt at that moment.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use tokio_postgres::Client;

use crate::Town;
use crate::audit::IN_DOUBT;
use crate::fault::{Fault, Victim};
use crate::postgres;
use crate::town::Site;
use crate::wait::until;

/// Until all is settled again. What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A look at what is in doubt in the banks' own databases: it works whichever of our programs is dead.
pub struct Watch {
    databases: [Client; 2],
}

impl Watch {
    /// Connects to the databases of a site.
    pub async fn of(site: &Site) -> anyhow::Result<Self> {
        let [east, west] = &site.banks;
        Ok(Self {
            databases: [
                postgres::connect(&east.database_url).await?,
                postgres::connect(&west.database_url).await?,
            ],
        })
    }

    /// The branches in doubt: at which of the banks, and of which transaction.
    pub async fn in_doubt(&self) -> anyhow::Result<BTreeSet<(usize, String)>> {
        let mut branches = BTreeSet::new();
        for (bank, database) in self.databases.iter().enumerate() {
            let rows = database.query(IN_DOUBT, &[]).await;
            for row in rows.context("cannot see what is in doubt")? {
                branches.insert((bank, row.try_get(0)?));
            }
        }
        Ok(branches)
    }
}

/// One kill, and how it went on.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// Who was killed.
    pub victim: Victim,
    /// Its process id.
    pub process_id: u32,
    /// Branches in doubt at both banks when it was dead.
    pub in_doubt: usize,
    /// From the kill until the restarted program was ready.
    pub ready_after: Duration,
    /// From the kill until the last of those branches knew its outcome.
    pub settled_after: Duration,
    /// From the restart until then.
    pub settled_after_restart: Duration,
}

/// Kills the victim, starts it again at once, as a supervisor would, and waits until all is settled that was in doubt
/// when it was dead. `killed` is told when it is dead.
pub async fn kill_and_recover(
    town: &mut Town,
    victim: Victim,
    watch: &Watch,
    killed: impl FnOnce(usize),
) -> anyhow::Result<Recovery> {
    let process_id = town.process_id(victim);
    let begun = Instant::now();
    town.inflict(Fault::Kill, victim).await?;
    let doubtful = watch.in_doubt().await?;
    killed(doubtful.len());
    let restarted = Instant::now();
    town.inflict(Fault::Restart, victim).await?;
    let ready_after = begun.elapsed();
    until("what was in doubt is settled", PATIENCE, async || {
        let now = watch.in_doubt().await?;
        let left: Vec<_> = doubtful.intersection(&now).collect();
        ensure!(left.is_empty(), "still in doubt: {left:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    Ok(Recovery {
        victim,
        process_id,
        in_doubt: doubtful.len(),
        ready_after,
        settled_after: begun.elapsed(),
        settled_after_restart: restarted.elapsed(),
    })
}
