//! The flag `--log`.

use clap::ValueEnum;
use unanimous_lab::town::LogKind;

/// The kinds of decision log.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Log {
    #[default]
    Sqlite,
    Postgres,
}

impl From<Log> for LogKind {
    fn from(log: Log) -> Self {
        match log {
            Log::Sqlite => Self::Sqlite,
            Log::Postgres => Self::Postgres,
        }
    }
}
