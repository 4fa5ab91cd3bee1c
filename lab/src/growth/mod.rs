//! What grows, and what must not: a coordinator with 10, 1,000 and 100,000 transactions in flight, and one with a short and
//! with a long history. No bank takes part: participants of this process answer late, or at once (`participants`), so
//! that what is seen is the coordinator's.

mod client;
mod history;
mod in_flight;
mod participants;
mod table;

use serde::Serialize;

pub use self::history::{History, Page};
pub use self::in_flight::InFlight;
pub use self::table::print;
use crate::bench::Machine;
use crate::scratch;
use crate::town::Programs;

/// What a transaction in flight may take of the coordinator's memory, in bytes, over [`JUDGED_AT`] of them.
pub const BYTES_MAX: f64 = 4096.0;
/// With fewer in flight it is not judged: what a page of memory more or less makes is noise.
pub const JUDGED_AT: usize = 100_000;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which programs.
    pub programs: Programs,
    /// How many transactions are in flight.
    pub in_flight: Vec<usize>,
    /// How many finished records there are in the log.
    pub records: Vec<usize>,
    /// How many transfers are made where one's latency is looked at.
    pub transfers: usize,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// With so many in flight.
    pub in_flight: Vec<InFlight>,
    /// With so many records.
    pub histories: Vec<History>,
    /// What a transaction in flight may take, in bytes.
    pub bytes_max: f64,
}

impl Report {
    /// The one by which memory is judged.
    pub fn most_in_flight(&self) -> Option<&InFlight> {
        let all = self.in_flight.iter();
        all.filter(|measured| measured.transactions >= JUDGED_AT)
            .max_by_key(|measured| measured.transactions)
    }
}

/// Measures all of it; `tell` hears what is being done.
pub async fn run(plan: &Plan, mut tell: impl FnMut(&str)) -> anyhow::Result<Report> {
    let machine = Machine::look(scratch::directory("growth")?.path())?;
    let mut in_flight = Vec::new();
    for &transactions in &plan.in_flight {
        tell(&format!("{transactions} transactions in flight"));
        in_flight.push(in_flight::measure(plan, transactions).await?);
    }
    let histories = history::measure(plan, tell).await?;
    Ok(Report {
        machine,
        in_flight,
        histories,
        bytes_max: BYTES_MAX,
    })
}
