//! The command line: one file per command.

mod log;
mod serve;

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::config::{SERVE_EXAMPLES, ServeArgs};

/// Commits a change in several services together, or in none of them.
///
/// A coordinator asks every service that takes part to prepare, makes one durable decision in its log, and tells each
/// of them, however often anything crashes on the way. Clients call its HTTP API; services take part with the crate
/// unanimous-participant, or with two pages of HTTP in any language.
#[derive(Parser)]
#[command(name = "unanimous", version, propagate_version = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  unanimous serve --participant east=http://127.0.0.1:8081/unanimous --participant west=http://127.0.0.1:8082/unanimous
  curl -sS http://127.0.0.1:7071/readyz
  unanimous log new-identity --log sqlite:unanimous.sqlite    (after restoring that log from a backup)

`unanimous serve --help` explains every setting. docs/OPERATIONS.md says how to run it in production.";

#[derive(Subcommand)]
enum Command {
    /// Run the coordinator until SIGTERM or SIGINT, which lets running transactions finish. It prints a line
    /// `ready listen=ADDRESS admin=ADDRESS` on standard output once it takes requests; its log lines go to standard error
    #[command(after_help = SERVE_EXAMPLES)]
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// What `--help` prints for this command.
    fn help(path: &[&str]) -> String {
        let mut command = Cli::command();
        command.build();
        let command = path.iter().fold(&mut command, |command, name| {
            command.find_subcommand_mut(name).unwrap()
        });
        command.render_long_help().to_string()
    }

    #[test]
    fn every_command_explains_itself_and_shows_how_it_is_typed() {
        Cli::command().debug_assert();
        for (path, shows) in [
            (&[][..], "unanimous serve --participant east=http://"),
            (&["serve"], "unanimous serve --log sqlite:/"),
            (&["log", "new-identity"], "unanimous log new-identity --log"),
        ] {
            let help = help(path);
            assert!(help.contains("Example") && help.contains(shows), "{help}");
        }
        assert!(help(&["serve"]).contains("3 fenced"));
        assert!(help(&["log", "new-identity"]).contains("backup"));
    }

    #[test]
    fn every_flag_of_every_command_names_its_environment_variable() {
        for path in [&["serve"][..], &["log", "new-identity"]] {
            let mut command = Cli::command();
            command.build();
            let command = path.iter().fold(&mut command, |command, name| {
                command.find_subcommand_mut(name).unwrap()
            });
            let flags: Vec<_> = command.get_arguments().cloned().collect();
            let help = help(path);
            for flag in flags {
                if flag.is_hide_set() || ["help", "version"].contains(&flag.get_id().as_str()) {
                    continue;
                }
                let variable = flag.get_env().unwrap().to_str().unwrap();
                assert!(help.contains(&format!("[env: {variable}")), "{variable}");
                assert!(flag.get_help().is_some(), "{}", flag.get_id());
            }
        }
    }
}
