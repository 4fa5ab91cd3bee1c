//! `unanimous-lab`: real clusters, and what is done in them.

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Private Postgres clusters for tests and demonstrations of Unanimous.
#[derive(Parser)]
#[command(name = "unanimous-lab", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    WithClusters(cli::with_clusters::Arguments),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::WithClusters(arguments) => cli::with_clusters::run(arguments).await,
    }
}
