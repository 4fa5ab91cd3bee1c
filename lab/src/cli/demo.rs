//! `demo`: tells the demonstration on standard output, and leaves nothing behind, also on Ctrl-C.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use nix::sys::prctl::set_child_subreaper;
use tokio::signal::unix::{SignalKind, signal};
use unanimous_lab::demo::{self, Options};
use unanimous_lab::kill_all_descendants;
use unanimous_lab::town::Programs;

/// Shows a commit, a refusal, and a coordinator that is killed and recovers; ends with 0 only when
/// all went as it should.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The coordinator's program; by default `unanimous` beside this one.
    #[arg(long, value_name = "PATH")]
    unanimous: Option<PathBuf>,
    /// The bank's program; by default `bank` beside this one.
    #[arg(long, value_name = "PATH")]
    bank: Option<PathBuf>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    set_child_subreaper(true).context("cannot adopt the orphans of killed programs")?;
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let mut interrupted = listen(SignalKind::interrupt())?;
    let mut terminated = listen(SignalKind::terminate())?;
    let mut hung_up = listen(SignalKind::hangup())?;

    let beside = Programs::beside_this_one()?;
    let options = Options {
        programs: Programs {
            unanimous: arguments.unanimous.unwrap_or(beside.unanimous),
            bank: arguments.bank.unwrap_or(beside.bank),
        },
    };
    let mut out = std::io::stdout();
    // Dropped in the middle, the demo takes all with it that it started.
    let ended = tokio::select! {
        told = demo::run(&options, &mut out) => told.map(|_| ExitCode::SUCCESS),
        // As shells have it, 128 and the signal's number.
        _ = interrupted.recv() => Ok(ExitCode::from(130)),
        _ = terminated.recv() => Ok(ExitCode::from(143)),
        _ = hung_up.recv() => Ok(ExitCode::from(129)),
    };
    kill_all_descendants();
    ended
}
