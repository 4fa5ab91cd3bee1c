//! `unanimous-lab`: real clusters, and what is done in them.

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Real clusters for tests and demonstrations of Unanimous: everything it starts is private, and gone with it.
#[derive(Parser)]
#[command(name = "unanimous-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Bench(cli::bench::Arguments),
    Check(Box<cli::check::Arguments>),
    Demo(cli::demo::Arguments),
    Growth(cli::growth::Arguments),
    Power(cli::power::Arguments),
    Recovery(cli::recovery::Arguments),
    WithClusters(cli::with_clusters::Arguments),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Bench(arguments) => cli::bench::run(arguments).await,
        Command::Check(arguments) => cli::check::run(*arguments).await,
        Command::Demo(arguments) => cli::demo::run(arguments).await,
        Command::Growth(arguments) => cli::growth::run(arguments).await,
        Command::Power(arguments) => cli::power::run(arguments).await,
        Command::Recovery(arguments) => cli::recovery::run(arguments).await,
        Command::WithClusters(arguments) => cli::with_clusters::run(arguments).await,
    }
}
