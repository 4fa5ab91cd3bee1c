//! What a measurement costs: CPU of processes, memory, and what is forced to disk, as the kernel and the servers count it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::stat::{major, minor};
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;
use tokio_postgres::Client;

use crate::lean::Lean;
use crate::tree::descendants_of;

/// CPU that a process has used in all its threads, and what those of its children used that have ended.
struct Used {
    own: Duration,
    ended_children: Duration,
}

fn used(process: u32) -> anyhow::Result<Used> {
    let path = format!("/proc/{process}/stat");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    // "pid (name) state …", and the name may hold anything, parentheses too.
    let (_, rest) = text.rsplit_once(')').context("no name in a stat file")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
    let ticks = |place: usize| -> anyhow::Result<Duration> {
        let field = fields
            .get(place)
            .with_context(|| format!("{path}: {text}"))?;
        let ticks: u64 = field.parse()?;
        Ok(Duration::from_millis(ticks * 1000) / u32::try_from(per_second)?)
    };
    // utime, stime, cutime, cstime: fields 14 to 17 of proc(5); the state is its third.
    Ok(Used {
        own: ticks(11)? + ticks(12)?,
        ended_children: ticks(13)? + ticks(14)?,
    })
}

/// CPU that a process has used.
pub(crate) fn cpu_of(process: u32) -> anyhow::Result<Duration> {
    Ok(used(process)?.own)
}

/// CPU that a server, its living children and its ended ones have used.
pub(crate) fn cpu_of_server(root: u32) -> anyhow::Result<Duration> {
    let server = used(root)?;
    let living = descendants_of(root).into_iter();
    // One that ends in between is counted by nobody: a server that is at rest has none.
    let living = living.filter_map(|child| cpu_of(child).ok());
    Ok(server.own + server.ended_children + living.sum::<Duration>())
}

/// The most memory that a process has had so far, in bytes.
pub(crate) fn memory_peak(process: u32) -> anyhow::Result<u64> {
    memory(process, "VmHWM:")
}

/// The memory that a process has now, in bytes.
pub(crate) fn memory_now(process: u32) -> anyhow::Result<u64> {
    memory(process, "VmRSS:")
}

fn memory(process: u32, line: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/{process}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let found = text.lines().find_map(|text| text.strip_prefix(line));
    let found = found.with_context(|| format!("no {line} in {path}"))?;
    let kilobytes: u64 = found.trim().trim_end_matches("kB").trim_end().parse()?;
    Ok(kilobytes * 1024)
}

/// The disk below a directory.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    name: String,
    stat: PathBuf,
}

impl Disk {
    /// `None` where there is no block device, as below a file system in memory.
    pub(crate) fn below(directory: &Path) -> anyhow::Result<Option<Self>> {
        let device = fs::metadata(directory)?.dev();
        let link = format!("/sys/dev/block/{}:{}", major(device), minor(device));
        let Ok(mut place) = fs::canonicalize(link) else {
            return Ok(None);
        };
        // The kernel counts flushes of whole disks only.
        if place.join("partition").exists() {
            place.pop();
        }
        let name = place.file_name().context("a block device without a name")?;
        Ok(Some(Self {
            name: name.to_string_lossy().into_owned(),
            stat: place.join("stat"),
        }))
    }

    /// Flushes that the disk has carried out, whoever wanted them; `None` where the kernel does not count them.
    pub(crate) fn flushes(&self) -> anyhow::Result<Option<u64>> {
        let text = fs::read_to_string(&self.stat)?;
        // The sixteenth field, by the kernel's Documentation/block/stat.rst.
        let field = text.split_ascii_whitespace().nth(15);
        Ok(field.map(str::parse).transpose()?)
    }
}

/// What a server has done to keep its write-ahead log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wal {
    pub(crate) syncs: i64,
    pub(crate) writes: i64,
}

impl Wal {
    /// What those backends have reported that have ended, and the others up to a second ago.
    pub(crate) async fn of(server: &Client) -> anyhow::Result<Self> {
        let version = "SELECT current_setting('server_version_num')::int";
        let version: i32 = server.query_one(version, &[]).await?.try_get(0)?;
        let sql = if version < 180_000 {
            "SELECT wal_sync, wal_write FROM pg_stat_wal"
        } else {
            "SELECT sum(fsyncs)::bigint, sum(writes)::bigint FROM pg_stat_io WHERE object = 'wal'"
        };
        let row = server.query_one(sql, &[]).await?;
        Ok(Self {
            syncs: row.try_get(0)?,
            writes: row.try_get(1)?,
        })
    }
}

/// The coordinator's own counts, as it serves them.
pub(crate) struct Metrics(String);

impl Metrics {
    pub(crate) async fn read(admin: SocketAddr) -> anyhow::Result<Self> {
        // A connection for each: one that waits for the end of a load is closed meanwhile.
        let answer = Lean::connect(admin).await?.get("/metrics").await?;
        let status = answer.status();
        ensure!(status.is_success(), "GET /metrics: {status}");
        Ok(Self(String::from_utf8(answer.into_body().to_vec())?))
    }

    /// The value of one series, named with its labels.
    pub(crate) fn value(&self, series: &str) -> anyhow::Result<f64> {
        let mut lines = self.0.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(value
            .with_context(|| format!("no metric {series}"))?
            .parse()?)
    }
}

/// Where it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// How many threads run at once.
    pub cores: usize,
    /// What they are, by the kernel.
    pub processor: Option<String>,
    /// The kernel's release.
    pub kernel: String,
    /// The disk below the data directories.
    pub disk: Option<String>,
}

impl Machine {
    pub(crate) fn look(data: &Path) -> anyhow::Result<Self> {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors
            .lines()
            .find_map(|line| line.strip_prefix("model name"));
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            processor: model.map(|model| model.trim_start_matches(['\t', ' ', ':']).to_owned()),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            disk: Disk::below(data)?.map(|disk| disk.name),
        })
    }
}
