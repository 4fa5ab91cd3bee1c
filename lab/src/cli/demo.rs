//! `demo`: tells the demonstration on standard output, and leaves nothing behind, also on Ctrl-C.

use std::io::Write;
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
        told = demo::run(&options, &mut out) => told,
        // As shells have it, 128 and the signal's number.
        _ = interrupted.recv() => return stopped(130),
        _ = terminated.recv() => return stopped(143),
        _ = hung_up.recv() => return stopped(129),
    };
    kill_all_descendants();
    Ok(match ended {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            tell_failure(&error);
            ExitCode::FAILURE
        }
    })
}

fn stopped(code: u8) -> anyhow::Result<ExitCode> {
    kill_all_descendants();
    Ok(ExitCode::from(code))
}

/// What our programs printed comes first, and what went wrong last, where a terminal shows it.
fn tell_failure(error: &anyhow::Error) {
    let mut err = std::io::stderr();
    let told = error
        .chain()
        .try_for_each(|cause| writeln!(err, "\n{cause}"))
        .and_then(|()| writeln!(err, "\nThe demo FAILED; see above."));
    // Nobody reads standard error, and there is nothing else to tell it on.
    told.ok();
}
