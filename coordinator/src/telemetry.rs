//! Logs, and what happens on a panic.
//!
//! A line about a transaction has the field `transaction`, one about a participant or its branch `participant`, and
//! `trace_id` where the trace is known; what failed is in `error`, with its causes. Both formats have the same fields.

use std::{
    error::Error,
    fmt,
    io::{IsTerminal as _, Write as _},
    panic,
    str::FromStr,
};

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that wait for a standard error that nobody reads. Past it they are dropped: a stalled terminal or log driver must
/// not stop a coordinator, which writes a line for each decision.
const LINES_MAX: usize = 16 * 1024;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: `time LEVEL target: message field=value`.
    #[default]
    Text,
    /// For programs: one JSON object in each line, `timestamp`, `level`, `target`, `message` and the fields its members.
    Json,
}

/// A word that is no [`LogFormat`].
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("must be text or json")]
pub struct InvalidLogFormat;

impl FromStr for LogFormat {
    type Err = InvalidLogFormat;

    fn from_str(text: &str) -> Result<Self, InvalidLogFormat> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(InvalidLogFormat),
        }
    }
}

/// An error with its causes, in one line and in both formats alike.
pub(crate) fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl fmt::Display + 'a {
    struct Chain<'a>(&'a (dyn Error + 'static));
    impl fmt::Display for Chain<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}", self.0)?;
            let mut cause = self.0.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
            Ok(())
        }
    }
    Chain(error)
}

/// Logs to standard error, at `info` unless `RUST_LOG` says otherwise, and installs the panic hook. Lines are written as
/// long as the guard lives; dropping it writes what waits.
pub(crate) fn start(format: LogFormat) -> WorkerGuard {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn,actix_server=warn"));
    let colours = std::io::stderr().is_terminal();
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(LINES_MAX)
        .finish(std::io::stderr());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer);
    match format {
        LogFormat::Text => lines.with_ansi(colours).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
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
