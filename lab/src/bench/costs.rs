//! What a transfer costs: what was used up between two moments, over the transfers between them.

use std::time::Duration;

use serde::Serialize;

use crate::town::LogKind;

/// What one transfer costs.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Costs {
    /// CPU of both Postgres servers, in µs.
    pub postgres_us: f64,
    /// CPU of the coordinator.
    pub coordinator_us: f64,
    /// CPU of both participants.
    pub participants_us: f64,
    /// CPU of the clients.
    pub client_us: f64,
    /// Times that a server forced its write-ahead log to disk, a log in Postgres included.
    pub wal_syncs: f64,
    /// Times that a server wrote its write-ahead log.
    pub wal_writes: f64,
    /// Forced writes of the decision log, by its own count.
    pub log_syncs: f64,
    /// Forced writes of all: the servers' and those of a log that is a file.
    pub forced: f64,
    /// Flushes that the disk carried out, whoever wanted them, and two at once are one.
    pub disk_flushes: Option<f64>,
    /// The most memory that the coordinator had, in bytes; not for each transfer.
    pub coordinator_peak_bytes: Option<f64>,
}

/// What was used up so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct UsedUp {
    pub(super) postgres: Duration,
    pub(super) coordinator: Duration,
    pub(super) participants: Duration,
    pub(super) client: Duration,
    pub(super) flushes: Option<u64>,
}

/// What was written to logs so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Forced {
    pub(super) wal_syncs: i64,
    pub(super) wal_writes: i64,
    /// The decision log's own count.
    pub(super) log: f64,
}

impl UsedUp {
    /// What each of `told` transfers has cost since then, without what [`Costs::force`] adds.
    pub(super) fn since(&self, before: &Self, told: usize) -> Costs {
        let told = told.max(1) as f64;
        let micros = |now: Duration, then: Duration| (now - then).as_secs_f64() * 1e6 / told;
        let flushes = before.flushes.zip(self.flushes);
        Costs {
            postgres_us: micros(self.postgres, before.postgres),
            coordinator_us: micros(self.coordinator, before.coordinator),
            participants_us: micros(self.participants, before.participants),
            client_us: micros(self.client, before.client),
            disk_flushes: flushes.map(|(then, now)| (now - then) as f64 / told),
            ..Costs::default()
        }
    }
}

impl Costs {
    /// Adds what was forced, warming up included, by so many transfers.
    pub(super) fn force(&mut self, log: LogKind, [before, after]: [Forced; 2], told: usize) {
        let told = told.max(1) as f64;
        self.wal_syncs = (after.wal_syncs - before.wal_syncs) as f64 / told;
        self.wal_writes = (after.wal_writes - before.wal_writes) as f64 / told;
        self.log_syncs = (after.log - before.log) / told;
        self.forced = match log {
            LogKind::Sqlite => self.wal_syncs + self.log_syncs,
            // It is in the write-ahead log of a server.
            LogKind::Postgres => self.wal_syncs,
        };
    }
}
