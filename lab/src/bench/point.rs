//! One measurement's outcome, and the median of several.

use serde::Serialize;

use super::{Costs, Way, took};

/// One measurement, or the median of some.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// How the transfers were made.
    pub way: Way,
    /// By how many clients at once.
    pub clients: usize,
    /// Which of the repeats; none for a median.
    pub repeat: Option<usize>,
    /// Transfers that a client knows the outcome of, for each second.
    pub per_second: f64,
    /// From the request until its outcome was known: milliseconds.
    pub p50_ms: f64,
    /// 95 of 100 took no longer.
    pub p95_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// None took longer.
    pub max_ms: f64,
    /// Transfers that were refused, of 1.
    pub refused: f64,
    /// From the last outcome until everything was applied everywhere.
    pub settled_ms: f64,
    /// What a transfer costs, settling included.
    pub costs: Costs,
}

impl Point {
    /// One line of progress.
    pub(super) fn told(&self, findings: &[String]) -> String {
        format!(
            "{:<16} {:>4} clients  {:>7.0}/s  p50 {:>7.2} ms  p99 {:>7.2} ms  settled after {:>4.0} ms  audit: {}",
            self.way,
            self.clients,
            self.per_second,
            self.p50_ms,
            self.p99_ms,
            self.settled_ms,
            match findings.len() {
                0 => "all is well".to_owned(),
                found => format!("{found} FINDINGS"),
            }
        )
    }
}

/// The medians over the repeats, for each number of clients and each way.
pub(super) fn medians(points: &[Point], clients: &[usize]) -> Vec<Point> {
    let each = clients
        .iter()
        .flat_map(|&clients| Way::ALL.map(|way| (clients, way)));
    each.filter_map(|(clients, way)| {
        let of = points.iter();
        let of = of.filter(|point| point.way == way && point.clients == clients);
        median(&of.collect::<Vec<_>>())
    })
    .collect()
}

fn median(of: &[&Point]) -> Option<Point> {
    let middle = |value: &dyn Fn(&Point) -> f64| took::median(of.iter().map(|point| value(point)));
    let middle_if = |value: &dyn Fn(&Point) -> Option<f64>| {
        let all = of.iter().all(|point| value(point).is_some());
        all.then(|| middle(&|point| value(point).unwrap_or_default()))
    };
    let first = of.first()?;
    Some(Point {
        way: first.way,
        clients: first.clients,
        repeat: None,
        per_second: middle(&|point| point.per_second),
        p50_ms: middle(&|point| point.p50_ms),
        p95_ms: middle(&|point| point.p95_ms),
        p99_ms: middle(&|point| point.p99_ms),
        max_ms: middle(&|point| point.max_ms),
        refused: middle(&|point| point.refused),
        settled_ms: middle(&|point| point.settled_ms),
        costs: Costs {
            postgres_us: middle(&|point| point.costs.postgres_us),
            coordinator_us: middle(&|point| point.costs.coordinator_us),
            participants_us: middle(&|point| point.costs.participants_us),
            client_us: middle(&|point| point.costs.client_us),
            wal_syncs: middle(&|point| point.costs.wal_syncs),
            wal_writes: middle(&|point| point.costs.wal_writes),
            log_syncs: middle(&|point| point.costs.log_syncs),
            forced: middle(&|point| point.costs.forced),
            disk_flushes: middle_if(&|point| point.costs.disk_flushes),
            coordinator_peak_bytes: middle_if(&|point| point.costs.coordinator_peak_bytes),
        },
    })
}
