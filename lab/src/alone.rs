//! A coordinator alone with its log, a file, where an experiment plays the participants itself or needs none.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::ensure;
use tempfile::TempDir;

use crate::process::Line;
use crate::stand::PATIENCE;
use crate::{Process, Program, scratch};

/// Filling a log with a million records.
const FILLING: Duration = Duration::from_secs(300);

/// The coordinator, running.
pub(crate) struct Alone {
    // Dropped before its directory.
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// For whoever runs it.
    pub(crate) admin: SocketAddr,
    directory: TempDir,
}

impl Alone {
    /// Starts it on an empty log, with these participants: a name and a URL each.
    pub(crate) async fn start(
        unanimous: &Path,
        participants: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let directory = scratch::directory("alone")?;
        let log = file_in(directory.path());
        let mut program = Program::new("coordinator", unanimous)
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(["--admin-listen", "127.0.0.1:0"])
            .args(["--log", &format!("sqlite:{}", log.display())]);
        for (name, url) in participants {
            program = program.args(["--participant", &format!("{name}={url}")]);
        }
        let mut process = program.start()?;
        let (address, admin) = addresses(&process.wait_for_line("ready", PATIENCE).await?)?;
        Ok(Self {
            process,
            address,
            admin,
            directory,
        })
    }

    /// Stops it, puts so many finished records into its log, and starts it again; how long it took until it was ready.
    pub(crate) async fn fill(&mut self, records: usize) -> anyhow::Result<Duration> {
        self.process.terminate().await?;
        let file = file_in(self.directory.path());
        sqlite(&file, &filling(records)?).await?;
        let there = sqlite(&file, "SELECT count(*) FROM record").await?;
        ensure!(
            there.trim() == records.to_string(),
            "the log holds {there} records instead of {records}"
        );
        let begun = Instant::now();
        self.process.restart()?;
        let ready = self.process.wait_for_line("ready", PATIENCE).await?;
        (self.address, self.admin) = addresses(&ready)?;
        Ok(begun.elapsed())
    }
}

fn file_in(directory: &Path) -> PathBuf {
    directory.join("decisions.sqlite")
}

fn addresses(ready: &Line) -> anyhow::Result<(SocketAddr, SocketAddr)> {
    Ok((
        ready.field("listen")?.parse()?,
        ready.field("admin")?.parse()?,
    ))
}

/// As records are after a commit of two branches, each with a key as a client would make it up, one for each millisecond
/// until now: none is due to be forgotten. One in a hundred was refused, another one in a hundred has the label `order`.
/// Their ids are of the first epoch, which is over.
fn filling(records: usize) -> anyhow::Result<String> {
    let bytes: String = (0..=255).map(|byte: u8| format!("{byte:02x}")).collect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let first = now.saturating_sub(u128::try_from(records)?);
    // The last three bytes of an id count; the program's SQLite need not know `unhex`.
    Ok(format!(
        "WITH RECURSIVE number (n, at, refused) AS ( \
                  SELECT 0, {first}, 0 UNION ALL SELECT n + 1, at + 1, (n + 1) % 100 = 99 FROM number WHERE n < {last}), \
              every (byte) AS (SELECT X'{bytes}'), \
              identity (byte) AS (SELECT substr(byte, 1 + (identity >> 24), 1) || substr(byte, 1 + (identity >> 16 & 255), 1) \
                  || substr(byte, 1 + (identity >> 8 & 255), 1) || substr(byte, 1 + (identity & 255), 1) \
                  FROM log_identity, every) \
         INSERT INTO record (id, idempotency_key, request, labels, created_at, deadline, outcome, reason, branches, \
                second_phase, decided_at, finished_at) \
         SELECT CAST(identity.byte || X'000180008000200000' || substr(every.byte, 1 + (n >> 16), 1) \
                     || substr(every.byte, 1 + (n >> 8 & 255), 1) || substr(every.byte, 1 + (n & 255), 1) AS BLOB), \
                lower(hex(randomblob(16))), randomblob(32), \
                CASE n % 100 WHEN 50 THEN '{{\"order\":\"' || n || '\"}}' ELSE '{{}}' END, at, at + 30000, \
                CASE WHEN refused THEN 'aborted' ELSE 'committed' END, \
                CASE WHEN refused THEN '{{\"code\":\"refused\",\"participant\":\"east\"}}' END, \
                '{{\"east\":\"updates\",\"west\":\"updates\"}}', NOT refused, at, at \
         FROM number, every, identity",
        last = records.saturating_sub(1),
    ))
}

/// What it prints.
async fn sqlite(file: &Path, statement: &str) -> anyhow::Result<String> {
    let mut running = Program::new("sqlite3", "sqlite3")
        .args([file.as_os_str(), statement.as_ref()])
        .start()?;
    let status = running.wait_exit(FILLING).await?;
    ensure!(status.success(), "sqlite3: {status}\n{}", running.output()?);
    running.output()
}
