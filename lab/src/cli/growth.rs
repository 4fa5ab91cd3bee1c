//! `growth`: what grows with what is under way, and with the history.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use nix::sys::prctl::set_child_subreaper;
use unanimous_lab::growth::{self, Plan};
use unanimous_lab::kill_all_descendants;

use super::file;
use super::interruptions::Interruptions;
use super::programs::Coordinator;

/// Measures the coordinator's memory, and the latency of a fresh transfer, while many transactions wait for participants
/// that answer late; and pages of the history and the cost of a decision with a short and with a long log (SQLite).
///
/// The participants are this program's own: what is seen is the coordinator's. Build it by `cargo build --release`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How many transactions are in flight; several numbers separated by commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [10, 1000, 100_000], value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    in_flight: Vec<u32>,
    /// How many finished records the log has; several numbers separated by commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1000, 1_000_000], value_parser = clap::value_parser!(u32).range(200..=16_000_000))]
    records: Vec<u32>,
    /// How many transfers are made where one's latency is looked at
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    transfers: u32,
    /// Writes everything that was measured into this file, `-` for standard output, where nothing else goes then
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    programs: Coordinator,
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
    let numbers = |numbers: &[u32]| -> Result<Vec<usize>, _> {
        numbers
            .iter()
            .map(|&number| usize::try_from(number))
            .collect()
    };
    let plan = Plan {
        programs: arguments.programs.programs()?,
        in_flight: numbers(&arguments.in_flight)?,
        records: numbers(&arguments.records)?,
        transfers: usize::try_from(arguments.transfers)?,
    };
    let mut progress = std::io::stderr();
    let report = growth::run(&plan, |line| {
        // Nobody is there to read it when the terminal is gone.
        let _ = writeln!(progress, "{line}");
    })
    .await?;
    let mut out = std::io::stdout();
    if !file::write_json(arguments.json.as_deref(), &report)? {
        growth::print(&report, &mut out)?;
    }
    Ok(ExitCode::SUCCESS)
}
