//! `unanimous log`

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use crate::{
    actors, app,
    config::LogUrl,
    crash,
    telemetry::{self, LogFormat},
};

#[derive(Subcommand)]
pub(super) enum LogCommand {
    /// After restoring a log from a backup, before a coordinator starts on it: give it a new identity, and fence whoever
    /// ran on the lost state.
    ///
    /// A restored log has forgotten what was decided after the backup. Without a new identity a coordinator would call
    /// such a transaction aborted, though some of its participants may have committed it. Afterwards an id of the former
    /// identity that has a record is answered as before; of the others nobody can know the outcome: their participants
    /// are told "pending" and keep what they hold until an operator resolves them, clients get 503 outcome-unknown.
    ///
    /// Prints `identity=NEW former=OLD`, the first eight digits of transaction ids from now on and until now. Not
    /// needed, and harmful to nobody but the transactions in doubt, where nothing was lost.
    #[command(after_help = NEW_IDENTITY_EXAMPLES)]
    NewIdentity(LogArgs),
}

const NEW_IDENTITY_EXAMPLES: &str = "\
Example, with the coordinator stopped and its log restored:
  unanimous log new-identity --log sqlite:/var/lib/unanimous/log.sqlite
  unanimous serve --log sqlite:/var/lib/unanimous/log.sqlite ...";

#[derive(Args)]
pub(super) struct LogArgs {
    /// The decision log, which must exist. In SQLite no coordinator may be running on it; in Postgres, those that run
    /// end, with exit code 3
    #[arg(
        long,
        env = "UNANIMOUS_LOG",
        value_name = "sqlite:PATH|postgres://…",
        hide_env_values = true
    )]
    log: LogUrl,
    /// How the log lines on standard error are written [default: text]
    #[arg(long, env = "UNANIMOUS_LOG_FORMAT", value_name = "text|json")]
    log_format: Option<LogFormat>,
}

pub(super) fn run(command: LogCommand) -> anyhow::Result<ExitCode> {
    let LogCommand::NewIdentity(LogArgs { log, log_format }) = command;
    let _logging = telemetry::start(log_format.unwrap_or_default());
    actors::run(async {
        let opened = app::open_existing_log(&log).await?;
        crash::point("new-identity-before");
        let change = opened.new_identity().await;
        crash::point("new-identity-after");
        let change = change.with_context(|| format!("{log} has no new identity"))?;
        let (former, present) = (change.former, change.present);
        writeln!(std::io::stdout(), "identity={present} former={former}")
            .context("standard output is closed")?;
        Ok(ExitCode::SUCCESS)
    })
}
