//! The command line: one file per command.

mod log;
mod serve;

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::config::ServeArgs;

/// Commits a change in several services together, or in none of them.
#[derive(Parser)]
#[command(name = "unanimous", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the coordinator until SIGTERM, which lets running transactions finish
    Serve(Box<ServeArgs>),
    /// Look after the decision log
    #[command(subcommand)]
    Log(log::LogCommand),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(args) => serve::run(*args),
        Command::Log(command) => log::run(command),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // The whole chain: the outermost says what was tried, the innermost why it failed. Not through the log, which
            // has ended by now.
            writeln!(std::io::stderr(), "unanimous: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}
