//! Logs, and what happens on a panic.

use std::{io::IsTerminal as _, panic};

use tracing_subscriber::EnvFilter;

/// Logs to standard error, at `info` unless `RUST_LOG` says otherwise, and installs the panic hook.
pub(crate) fn start() {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,actix_server=warn"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .init();
    abort_on_panic();
}

/// A coordinator with a log is safer dead than half alive: a panic in an actor would end that actor for good, and with
/// it a transaction, while the process lives on. The log puts us back.
fn abort_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        tracing::error!(panic = %info, "a bug: the process ends, and its next life recovers from the log");
        std::process::abort();
    }));
}
