//! A bank that takes part in Unanimous' transactions: the example to copy.
//!
//! [`bank`] is what a service author writes: two operations and what they check, reserve, apply and give back.
//! [`server`] is the rest of any service: a pool, the participant, its own HTTP routes. This file is the command line.

pub mod bank;
pub mod server;

use std::{io::IsTerminal as _, process::ExitCode};

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use unanimous_participant::Resource;

/// A bank that takes part in atomic transactions across services.
///
/// It holds accounts in a Postgres database of its own and takes the operations `{"kind": "debit", "account": 7, "amount":
/// 100}` and `credit`, or `{"kind": "check", "account": 7, "at_least": 100}`, which only looks. The example to copy for a
/// service of your own, and what the demo and the tests run.
#[derive(Debug, Parser)]
#[command(name = "bank", version, after_help = EXAMPLES)]
struct CommandLine {
    /// How the log lines on standard error are written: text, or json, an object in each line
    #[arg(
        long,
        env = "BANK_LOG_FORMAT",
        value_enum,
        default_value_t,
        global = true
    )]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  bank init  --database-url postgres://me:secret@localhost/east --accounts 100 --balance 1000
  bank serve --name east --database-url postgres://me:secret@localhost/east --coordinator http://127.0.0.1:7070
  curl -sS http://127.0.0.1:8081/accounts/7";

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Creates the accounts 1 to N with a balance each. Run again, it starts over: accounts, entries and all branches.
    Init(InitOptions),
    /// Serves accounts, and the participant's routes below /unanimous.
    Serve(server::Options),
}

#[derive(clap::Args, Debug)]
struct InitOptions {
    /// The bank's own database, which must exist: postgres://user:password@host:port/name
    #[arg(long, env = "BANK_DATABASE_URL", hide_env_values = true)]
    database_url: server::DatabaseUrl,
    /// How many accounts, at most 10000000
    #[arg(long, env = "BANK_ACCOUNTS", value_parser = clap::value_parser!(i64).range(0..=10_000_000))]
    accounts: i64,
    /// What each of them holds at first, in whole units
    #[arg(long, env = "BANK_BALANCE", value_parser = clap::value_parser!(i64).range(0..=bank::BALANCE_MAX))]
    balance: i64,
}

/// The whole program: reads the command line, runs, and says how it ended.
#[must_use]
pub fn run() -> ExitCode {
    run_with(bank::Bank)
}

/// The whole program around other code for the same operations.
#[must_use]
pub fn run_with(bank: impl Resource<Operation = bank::Operation> + Clone) -> ExitCode {
    let command_line = CommandLine::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match command_line.log_format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
    // A service that is half alive is worse than one that is started again: what it promised is in its database.
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "the bank panicked and ends");
        std::process::abort();
    }));
    // The program chooses its TLS provider, for the participant's inquiries. It fails where one was chosen before.
    let _ = rustls::crypto::ring::default_provider().install_default();

    // One thread for the participant: its work is Postgres', and handing it from thread to thread would cost more.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        match command_line.command {
            Command::Init(options) => {
                bank::init(&options.database_url.0, options.accounts, options.balance).await
            }
            Command::Serve(options) => server::serve(options, bank).await,
        }
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_flag_says_what_it_is_and_names_its_environment_variable() {
        let command = CommandLine::command();
        command.clone().debug_assert();
        for command in command.get_subcommands() {
            for flag in command.get_arguments() {
                let name = flag.get_id();
                assert!(flag.get_help().is_some(), "{name}");
                let variable = flag.get_env().and_then(|name| name.to_str());
                assert!(
                    variable.is_some_and(|name| name.starts_with("BANK_")),
                    "{name}"
                );
            }
        }
    }
}
