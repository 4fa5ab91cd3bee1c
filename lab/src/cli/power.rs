//! `power`: power failures under load.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use nix::sys::prctl::set_child_subreaper;
use unanimous_lab::audit::Report;
use unanimous_lab::disk::Disk;
use unanimous_lab::kill_all_descendants;
use unanimous_lab::power::{self, Plan, Weakness};

use super::programs::Both;

/// Lets the power fail under load, again and again, and audits what is left: not one told decision may be lost.
///
/// The coordinator's log (SQLite) and one bank's Postgres are on an ext4 file system in a file, which is shut down by
/// ioctl, so that whatever was not flushed is gone. Needs root, ext4 and loop devices.
///
/// Exit code: 0 when nothing was lost, or, with --weaken, when the audit saw what was; 1 otherwise.
#[derive(Args)]
pub(crate) struct Arguments {
    /// How often the power fails
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    cycles: u32,
    /// How many transfers are told between two failures
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    transfers: u32,
    /// How many clients ask
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// Fixes the transfers; by default another one each time
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Makes somebody not flush what he promises, which has to be found; with programs that have failpoints
    #[arg(long, value_enum)]
    weaken: Option<Weak>,
    /// Says so, and succeeds, where this machine has no root or no loop devices
    #[arg(long)]
    where_possible: bool,
    #[command(flatten)]
    programs: Both,
}

/// Who does not flush.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Weak {
    /// The coordinator's log runs with `synchronous=NORMAL`
    Log,
    /// One bank commits with `synchronous_commit=off`
    Bank,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    set_child_subreaper(true)?;
    let code = perform(&arguments).await;
    kill_all_descendants();
    code
}

async fn perform(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout();
    if let Some(why) = Disk::is_impossible().await {
        writeln!(out, "power failures can not be played here: {why}")?;
        return Ok(if arguments.where_possible {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let plan = Plan {
        programs: arguments.programs.programs()?,
        cycles: usize::try_from(arguments.cycles)?,
        transfers: usize::try_from(arguments.transfers)?,
        clients: usize::try_from(arguments.clients)?,
        seed: arguments
            .seed
            .unwrap_or_else(|| rand::random::<u16>().into()),
        weakness: arguments.weaken.map(|weak| match weak {
            Weak::Log => Weakness::Log,
            Weak::Bank => Weakness::Bank,
        }),
    };
    writeln!(
        out,
        "power failures: {} of them, seed {}",
        plan.cycles, plan.seed
    )?;
    let report = power::run(&plan, |line| {
        // Nobody is there to read it when the terminal is gone.
        let _ = writeln!(out, "  {line}");
    });
    let report = report.await?;
    tell(&report)?;
    let is_right = report.findings.is_empty() != plan.weakness.is_some();
    if !is_right && plan.weakness.is_some() {
        writeln!(out, "the weakness was NOT SEEN")?;
    }
    Ok(if is_right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tell(report: &Report) -> anyhow::Result<()> {
    const SHOWN: usize = 5;
    let mut out = std::io::stdout();
    writeln!(
        out,
        "told {} committed, {} aborted, {} unknown; both banks held {}, and hold {}",
        report.told.committed,
        report.told.aborted,
        report.told.unknown,
        report.total_before,
        report.total_after
    )?;
    for finding in report.findings.iter().take(SHOWN) {
        writeln!(out, "  FOUND: {finding}")?;
    }
    match report.findings.len() {
        0 => writeln!(out, "nothing was lost")?,
        found => writeln!(out, "{found} findings")?,
    }
    Ok(())
}
