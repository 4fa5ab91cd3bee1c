//! One measurement: one way, so many clients, on servers, banks and a log of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use unanimous_protocol::wire::Wait;

use super::by_hand::ByHand;
use super::costs::{Costs, Forced, UsedUp};
use super::drive::{Client, Driven, drive};
use super::measure::{Disk, Metrics, Wal, cpu_of, cpu_of_server, memory_peak};
use super::one_database::OneDatabase;
use super::through::Through;
use super::took::Took;
use super::{ACCOUNTS, AMOUNT_MAX, Plan, Point, Way, Work};
use crate::audit::{self, Asked, Books, Evidence};
use crate::postgres::connect;
use crate::stand::{self, BALANCE, Stand};
use crate::town::LogKind;
use crate::wait::until;
use crate::{Process, Stop, Template, Transfers, scratch};

/// Connections open, caches and plans are made, and the disk has its files, before anything counts for speed.
const WARM_UP: Duration = Duration::from_millis(500);
/// Until everything told is applied everywhere.
const SETTLING: Duration = Duration::from_secs(60);
/// Who is connected to a server besides whoever asks.
const OTHERS: &str = "SELECT count(*) FROM pg_stat_activity \
     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
/// What a database holds, what was moved there, and what is still to be decided.
const SUMS: &str = "SELECT (SELECT sum(balance) FROM accounts)::bigint, (SELECT count(*) FROM entries), \
     (SELECT coalesce(sum(amount), 0) FROM entries)::bigint, \
     (SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database())";
/// Connections that a server has besides those of clients.
const CONNECTIONS_BESIDES: usize = 60;

/// Starts all of it, measures, audits, and takes all of it away again; with what the audit found.
pub(super) async fn measure(
    plan: &Plan,
    template: Option<&Template>,
    way: Way,
    clients: usize,
    repeat: usize,
) -> anyhow::Result<(Point, Vec<String>)> {
    let what = || format!("{way}, {clients} clients, repeat {repeat}");
    let directory = scratch::directory("log")?;
    let file = directory.path().join("decisions.sqlite");
    let room = (clients + CONNECTIONS_BESIDES).to_string();
    let stand = Stand::start(&stand::Plan {
        programs: &plan.programs,
        server: &|_, options| {
            options
                .setting("max_connections", &room)
                .setting("max_prepared_transactions", &room)
        },
        bank: &|_, bank| bank.args(["--connections", &plan.connections.to_string()]),
        coordinator: &|database, coordinator| match plan.log {
            LogKind::Sqlite => coordinator.args(["--log", &format!("sqlite:{}", file.display())]),
            LogKind::Postgres => coordinator.env("UNANIMOUS_LOG", database),
        },
        gates: false,
        accounts: ACCOUNTS,
        template,
    })
    .await;
    let bench = Bench {
        stand: stand.with_context(what)?,
        work: Work(Transfers {
            seed: plan.seed + u64::try_from(repeat)?,
            accounts: ACCOUNTS,
            amount_max: AMOUNT_MAX,
        }),
        clients,
        plan,
    };
    // What all that starting has written is not to reach the disk in the middle of the measurement.
    tokio::task::spawn_blocking(nix::unistd::sync).await?;
    let measured = match way {
        Way::ByHand => bench.by_hand().await,
        Way::Unanimous => bench.through(way, Wait::Decided).await,
        Way::Applied => bench.through(way, Wait::Applied).await,
        Way::OneDatabase => bench.one_database().await,
    };
    let (mut point, findings) = measured.with_context(what)?;
    point.repeat = Some(repeat);
    Ok((point, findings))
}

struct Bench<'a> {
    stand: Stand,
    work: Work,
    clients: usize,
    plan: &'a Plan,
}

/// Whether our programs run beside the clients.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Programs {
    Run,
    Stopped,
}

impl Bench<'_> {
    async fn by_hand(mut self) -> anyhow::Result<(Point, Vec<String>)> {
        self.stop_programs().await?;
        let [east, west] = self.urls();
        let mut clients = Vec::new();
        for _ in 0..self.clients {
            clients.push(ByHand::connect([&east, &west]).await?);
        }
        self.in_databases(Way::ByHand, clients, &[&east, &west])
            .await
    }

    async fn one_database(mut self) -> anyhow::Result<(Point, Vec<String>)> {
        self.stop_programs().await?;
        let [east, _] = self.urls();
        let mut clients = Vec::new();
        for _ in 0..self.clients {
            clients.push(OneDatabase::connect(&east).await?);
        }
        self.in_databases(Way::OneDatabase, clients, &[&east]).await
    }

    fn urls(&self) -> [String; 2] {
        self.stand
            .site
            .banks
            .each_ref()
            .map(|bank| bank.database_url.clone())
    }

    /// They have no part in this, and are not to take any time either.
    async fn stop_programs(&mut self) -> anyhow::Result<()> {
        let stand = &mut self.stand;
        for process in [&mut stand.coordinator].into_iter().chain(&mut stand.banks) {
            let status = process.terminate().await?;
            ensure!(status.success(), "a program, told to stop: {status}");
        }
        Ok(())
    }

    /// Without any of our programs: when clients know how it ended, all is done.
    async fn in_databases<C: Client>(
        &mut self,
        way: Way,
        clients: Vec<C>,
        urls: &[&str],
    ) -> anyhow::Result<(Point, Vec<String>)> {
        let at_first = self.forced(None).await?;
        let next = Arc::default();
        let (clients, warm) = drive(clients, self.work, &next, WARM_UP).await?;
        let before = self.used_up(Programs::Stopped)?;
        let (clients, driven) = drive(clients, self.work, &next, self.plan.lasts).await?;
        let mut costs = self
            .used_up(Programs::Stopped)?
            .since(&before, driven.told());
        drop(clients);
        let both = [at_first, self.forced_at_rest().await?];
        costs.force(self.plan.log, both, warm.told() + driven.told());
        let committed = warm.committed + driven.committed;
        let point = self.point(way, driven, Duration::ZERO, costs);
        let findings = sums(urls, committed).await?;
        self.stop_servers().await?;
        Ok((point, findings))
    }

    /// With all of them, and the one audit.
    async fn through(mut self, way: Way, wait: Wait) -> anyhow::Result<(Point, Vec<String>)> {
        let mut clients = Vec::new();
        for _ in 0..self.clients {
            clients.push(Through::connect(self.stand.address, wait).await?);
        }
        let admin = self.stand.admin;
        let books = Books::read_both(&self.stand.site).await?;
        let at_first = self.forced(Some(admin)).await?;
        let next = Arc::<AtomicUsize>::default();
        let (clients, warm) = drive(clients, self.work, &next, WARM_UP).await?;
        applied(admin).await?;
        let before = self.used_up(Programs::Run)?;
        let (clients, driven) = drive(clients, self.work, &next, self.plan.lasts).await?;
        let told_all = Instant::now();
        applied(admin).await?;
        let settled = told_all.elapsed();
        let after = self.used_up(Programs::Run)?;
        let peak = memory_peak(self.stand.coordinator.id())?;
        let decided = decide_writes(admin).await?;
        let site = &self.stand.site;
        audit::settled(site, SETTLING).await?;
        let mut asked: Vec<Asked> = Vec::new();
        for client in &clients {
            asked.extend(client.asked()?);
        }
        let all = 0..next.load(Ordering::Relaxed);
        let transfers = all.map(|number| (Work::key(number), self.work.transfer(number)));
        let transfers = transfers.collect();
        let evidence = Evidence::collect(site, asked, transfers, books).await?;
        let findings = evidence.examine().findings;
        self.stop_programs().await?;
        let at_last = Forced {
            log: decided,
            ..self.forced_at_rest().await?
        };
        let mut costs = Costs {
            coordinator_peak_bytes: Some(peak as f64),
            ..after.since(&before, driven.told())
        };
        let both = [at_first, at_last];
        costs.force(self.plan.log, both, warm.told() + driven.told());
        let point = self.point(way, driven, settled, costs);
        self.stop_servers().await?;
        Ok((point, findings.iter().map(ToString::to_string).collect()))
    }

    fn used_up(&self, programs: Programs) -> anyhow::Result<UsedUp> {
        let Stand {
            coordinator,
            banks: [at_east, at_west],
            clusters: [east, west],
            ..
        } = &self.stand;
        let disk = Disk::below(&east.data_directory())?;
        let of = |process: &Process| match programs {
            Programs::Run => cpu_of(process.id()),
            Programs::Stopped => Ok(Duration::ZERO),
        };
        Ok(UsedUp {
            postgres: cpu_of_server(east.process_id())? + cpu_of_server(west.process_id())?,
            coordinator: of(coordinator)?,
            participants: of(at_east)? + of(at_west)?,
            client: cpu_of(std::process::id())?,
            flushes: disk.map(|disk| disk.flushes()).transpose()?.flatten(),
        })
    }

    /// With what those who are connected to the servers have reported so far.
    async fn forced(&self, admin: Option<SocketAddr>) -> anyhow::Result<Forced> {
        let mut forced = Forced::default();
        for cluster in &self.stand.clusters {
            let wal = Wal::of(&connect(&cluster.admin_url()).await?).await?;
            forced.wal_syncs += wal.syncs;
            forced.wal_writes += wal.writes;
        }
        if let Some(admin) = admin {
            forced.log = decide_writes(admin).await?;
        }
        Ok(forced)
    }

    /// Once everybody has reported everything, which they do when they disconnect.
    async fn forced_at_rest(&self) -> anyhow::Result<Forced> {
        for cluster in &self.stand.clusters {
            let server = connect(&cluster.admin_url()).await?;
            until("all have disconnected", SETTLING, async || {
                let others = server.query_one(OTHERS, &[]).await?;
                let others: i64 = others.try_get(0)?;
                ensure!(others == 0, "{others} are connected");
                anyhow::Ok(())
            })
            .await?;
        }
        self.forced(None).await
    }

    /// Killed, each would leave us a dead process for every connection it had.
    async fn stop_servers(&mut self) -> anyhow::Result<()> {
        for cluster in &mut self.stand.clusters {
            cluster.stop(Stop::Immediate).await?;
        }
        Ok(())
    }

    fn point(&self, way: Way, driven: Driven, settled: Duration, costs: Costs) -> Point {
        let told = driven.told();
        let took = Took::new(driven.took);
        Point {
            way,
            clients: self.clients,
            repeat: None,
            per_second: as_f64(told) / driven.lasted.as_secs_f64(),
            p50_ms: took.ms(50),
            p95_ms: took.ms(95),
            p99_ms: took.ms(99),
            max_ms: took.ms(100),
            refused: as_f64(driven.refused) / as_f64(told.max(1)),
            settled_ms: settled.as_secs_f64() * 1e3,
            costs,
        }
    }
}

/// Waits until nothing is left to be told to a bank.
async fn applied(admin: SocketAddr) -> anyhow::Result<()> {
    until("everything is applied", SETTLING, async || {
        let metrics = Metrics::read(admin).await?;
        for left in [
            "unanimous_in_doubt_transactions",
            "unanimous_transactions_delivering_aborts",
        ] {
            let left_now = metrics.value(left)?;
            ensure!(left_now == 0.0, "{left} {left_now}");
        }
        anyhow::Ok(())
    })
    .await
}

async fn decide_writes(admin: SocketAddr) -> anyhow::Result<f64> {
    let metrics = Metrics::read(admin).await?;
    metrics.value("unanimous_log_writes_total{kind=\"decide\"}")
}

fn as_f64(count: usize) -> f64 {
    count as f64
}

/// Whether these databases together hold what they held at first, and two entries for each commit.
async fn sums(urls: &[&str], committed: usize) -> anyhow::Result<Vec<String>> {
    let mut sums = [0; 4];
    for url in urls {
        let server = connect(url).await?;
        let row = server.query_one(SUMS, &[]).await?;
        for (place, sum) in sums.iter_mut().enumerate() {
            *sum += row.try_get::<_, i64>(place)?;
        }
    }
    let [balance, entries, moved, prepared] = sums;
    let at_first = i64::try_from(urls.len())? * ACCOUNTS * BALANCE;
    let mut findings = Vec::new();
    let mut hold = |what: &str, expected: i64, found: i64| {
        if expected != found {
            findings.push(format!("{what}: {found} instead of {expected}"));
        }
    };
    hold("the sum of all balances", at_first, balance);
    hold("entries", i64::try_from(2 * committed)?, entries);
    hold("the sum of all entries", 0, moved);
    hold("transactions that are prepared", 0, prepared);
    Ok(findings)
}
