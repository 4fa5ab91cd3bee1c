//! `bench`: the same transfers by hand and through Unanimous, side by side.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use nix::sys::prctl::set_child_subreaper;
use unanimous_lab::bench::{self, Plan};
use unanimous_lab::kill_all_descendants;

use super::file;
use super::interruptions::Interruptions;
use super::log::Log;
use super::programs::Both;

/// Measures transfers between two banks: (a) by hand, by PREPARE TRANSACTION; (b) through Unanimous; (c) through it,
/// answered once all is applied; (d) inside one database, as the floor.
///
/// Every measurement gets two fresh Postgres servers (fsync and synchronous_commit on), two banks and a log of its own; the
/// ways take turns, and medians are reported. Build the programs by `cargo build --release`.
///
/// Exit code: 1 when an audit found something.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How many clients there are at once; several numbers separated by commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 8, 64, 256], value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: Vec<u32>,
    /// How long each measurement lasts
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    secs: u64,
    /// How often each is made
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Where the coordinator keeps its decisions: a file, or a database on the first bank's server
    #[arg(long, value_enum, default_value_t)]
    log: Log,
    /// Connections in the pool of each bank's participant
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(3..=50))]
    connections: u32,
    /// Fixes the transfers
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Writes everything that was measured into this file, `-` for standard output, where nothing else goes then
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws latency against load into this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    programs: Both,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    set_child_subreaper(true)?;
    let mut interruptions = Interruptions::listen()?;
    // Dropped in the middle, it takes all with it that it started.
    let code = tokio::select! {
        code = perform(&arguments) => code,
        code = interruptions.next() => Ok(ExitCode::from(code)),
    };
    kill_all_descendants();
    code
}

async fn perform(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let clients = arguments
        .clients
        .iter()
        .map(|&clients| usize::try_from(clients));
    let plan = Plan {
        programs: arguments.programs.programs()?,
        clients: clients.collect::<Result<_, _>>()?,
        lasts: Duration::from_secs(arguments.secs),
        repeat: usize::try_from(arguments.repeat)?,
        log: arguments.log.into(),
        connections: usize::try_from(arguments.connections)?,
        seed: arguments.seed,
    };
    let mut progress = std::io::stderr();
    let report = bench::run(&plan, |line| {
        // Nobody is there to read it when the terminal is gone.
        let _ = writeln!(progress, "{line}");
    })
    .await?;
    if let Some(plot) = &arguments.plot {
        file::write(plot, &bench::plot(&report)?)?;
    }
    if !file::write_json(arguments.json.as_deref(), &report)? {
        bench::print(&report, &mut std::io::stdout())?;
    }
    Ok(if report.findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
