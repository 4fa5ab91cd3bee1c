//! Logs, and what happens on a panic.

use std::{
    io::{IsTerminal as _, Write as _},
    panic,
};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that wait for a standard error that nobody reads. Past it they are dropped: a stalled terminal or log driver must
/// not stop a coordinator, which writes a line for each decision.
const LINES_MAX: usize = 16 * 1024;

/// Logs to standard error, at `info` unless `RUST_LOG` says otherwise, and installs the panic hook. Lines are written as
/// long as the guard lives; dropping it writes what waits.
pub(crate) fn start() -> WorkerGuard {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,actix_server=warn"));
    let colours = std::io::stderr().is_terminal();
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_MAX)
        .finish(std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(writer)
        .init();
    abort_on_panic();
    guard
}

/// A coordinator with a log is safer dead than half alive: a panic in an actor would end that actor for good, and with
/// it a transaction, while the process lives on. The log puts us back.
fn abort_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        end_at_once("a bug: the process ends, and its next life recovers from the log");
    }));
}

/// Ends the process, and says why past whatever lines still wait: they may be lost.
pub(crate) fn end_at_once(why: &str) -> ! {
    // Nobody is left to be told that this failed.
    writeln!(std::io::stderr(), "unanimous: {why}").ok();
    std::process::abort();
}
