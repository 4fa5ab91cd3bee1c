//! `unanimous log`

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::{app, config::LogUrl, telemetry};

#[derive(Subcommand)]
pub(super) enum LogCommand {
    /// After restoring a log from a backup: give it a new identity and fence whoever ran on the lost state. Ids of the
    /// former identity that have a record are answered as before; of the others nobody can know the outcome, and their
    /// participants are told "pending" until an operator resolves them
    NewIdentity(LogArgs),
}

#[derive(Args)]
pub(super) struct LogArgs {
    /// The decision log. In SQLite no coordinator may be running on it; in Postgres, those that run end
    #[arg(
        long,
        env = "UNANIMOUS_LOG",
        value_name = "sqlite:PATH|postgres://…",
        hide_env_values = true
    )]
    log: LogUrl,
}

pub(super) fn run(command: LogCommand) -> anyhow::Result<ExitCode> {
    let _logging = telemetry::start();
    let LogCommand::NewIdentity(LogArgs { log }) = command;
    actix::System::new().block_on(async {
        let opened = app::open_existing_log(&log).await?;
        let change = opened
            .new_identity()
            .await
            .with_context(|| format!("{log} has no new identity"))?;
        let (former, present) = (change.former, change.present);
        writeln!(std::io::stdout(), "identity={present} former={former}")
            .context("standard output is closed")?;
        Ok(ExitCode::SUCCESS)
    })
}
