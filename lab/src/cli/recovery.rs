//! `recovery`: how long it takes with thousands in doubt, and on a long history.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use nix::sys::prctl::set_child_subreaper;
use unanimous_lab::at_size::{self, Plan};
use unanimous_lab::kill_all_descendants;
use unanimous_lab::town::LogKind;

use super::programs::Both;

/// Kills a coordinator with thousands of transactions decided and not one of them delivered, and measures until every
/// branch knows its outcome; then starts one on a log with a long history.
///
/// Exit code: 1 when 99 of 100 branches took longer than --within-ms, or the start longer than --start-within-ms.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How many transactions are in doubt; may be given several times
    #[arg(long = "in-doubt", value_name = "N", default_values_t = [1000])]
    in_doubt: Vec<usize>,
    /// How often the coordinator is killed with each of these numbers
    #[arg(long, value_name = "N", default_value_t = 10)]
    runs: usize,
    /// How many finished records the long history has; 0 leaves that out
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    records: usize,
    /// The decision log in doubt is in Postgres
    #[arg(long)]
    postgres: bool,
    /// How long 99 of 100 branches may take for each thousand transactions in doubt
    #[arg(long, value_name = "MS", default_value_t = 3000)]
    within_ms: u64,
    /// How long the start on the long history may take
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    start_within_ms: u64,
    /// Fixes the transfers
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    programs: Both,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    set_child_subreaper(true)?;
    let code = perform(&arguments).await;
    kill_all_descendants();
    code
}

async fn perform(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    let programs = arguments.programs.programs()?;
    let mut is_in_time = true;
    for &in_doubt in &arguments.in_doubt {
        let plan = Plan {
            programs: programs.clone(),
            log: if arguments.postgres {
                LogKind::Postgres
            } else {
                LogKind::Sqlite
            },
            in_doubt,
            runs: arguments.runs,
            seed: arguments.seed,
        };
        writeln!(out, "killed with {in_doubt} transactions in doubt:")?;
        let settled = at_size::run(&plan, |line| {
            // Nobody is there to read it when the terminal is gone.
            let _ = writeln!(out, "  {line}");
        });
        let settled = settled.await?;
        let mut out = std::io::stdout();
        let allowed = arguments.within_ms * u64::try_from(in_doubt.div_ceil(1000))?;
        is_in_time &= settled.within(99) <= Duration::from_millis(allowed);
        writeln!(
            out,
            "  from the restart until a branch was settled: p50 {:.2?}, p99 {:.2?}, max {:.2?}; the slowest run {:.2?} \
             (p99 may be {allowed} ms)",
            settled.within(50),
            settled.within(99),
            settled.within(100),
            settled.longest()
        )?;
    }
    if arguments.records > 0 {
        let took = at_size::start_on_history(&programs, arguments.records).await?;
        is_in_time &= took <= Duration::from_millis(arguments.start_within_ms);
        writeln!(
            out,
            "start with {} finished records in the log: ready after {took:.2?} (may be {} ms)",
            arguments.records, arguments.start_within_ms
        )?;
    }
    Ok(if is_in_time {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
