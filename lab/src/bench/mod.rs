//! The benchmark: the same transfers made by hand, through Unanimous, and inside one database, side by side in one run.
//!
//! | way | what it does | where |
//! |---|---|---|
//! | (a) by hand | `PREPARE TRANSACTION` on both servers in parallel, then `COMMIT PREPARED` on both | `by_hand` |
//! | (b) unanimous | the one-shot request with an idempotency key, answered at the decision | `through` |
//! | (c) applied | the same, answered once both banks have applied it | `through` |
//! | (d) one database | one statement in one database: the floor | `one_database` |
//!
//! Every measurement has two fresh Postgres servers, fresh banks and a fresh log, so that none inherits what another one
//! has left; the ways take turns in an order that rotates, so that the machine's noise hits all alike; and each ends with
//! an audit. All clients run the same closed loop (`drive`) on the same runtime.

mod by_hand;
mod costs;
mod drive;
mod figures;
pub(crate) mod measure;
mod one_database;
mod plot;
mod point;
mod table;
mod through;
pub(crate) mod took;
mod trial;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

pub use self::costs::Costs;
pub use self::figures::Figure;
pub use self::measure::Machine;
pub use self::plot::plot;
pub use self::point::Point;
pub use self::table::print;
use crate::town::{LogKind, Programs};
use crate::transfer::Transfer;
use crate::{Options, Template, Transfers, scratch};

/// Each bank has the accounts 1 to this.
pub const ACCOUNTS: i64 = 10_000;
/// One transfer in so many asks for more than there is.
pub const REFUSED: u32 = 200;
/// The most that one of the others moves.
const AMOUNT_MAX: i64 = 50;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which programs.
    pub programs: Programs,
    /// How many clients there are at once, one measurement of each way for each number.
    pub clients: Vec<usize>,
    /// How long each measurement lasts.
    pub lasts: Duration,
    /// How often each is made.
    pub repeat: usize,
    /// Where decisions are kept.
    pub log: LogKind,
    /// Connections in the pool of each bank's participant.
    pub connections: usize,
    /// Fixes the transfers.
    pub seed: u64,
}

/// A way to move money from one account to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// Two-phase commit by hand.
    ByHand,
    /// Through Unanimous, until it is decided.
    Unanimous,
    /// Through Unanimous, until it is applied everywhere.
    Applied,
    /// Inside one database.
    OneDatabase,
}

impl Way {
    /// All of them, as they are shown.
    pub const ALL: [Self; 4] = [
        Self::ByHand,
        Self::Unanimous,
        Self::Applied,
        Self::OneDatabase,
    ];

    /// How tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::ByHand => "(a) by hand",
            Self::Unanimous => "(b) unanimous",
            Self::Applied => "(c) applied",
            Self::OneDatabase => "(d) one database",
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The transfers of a measurement.
#[derive(Clone, Copy, Debug)]
struct Work(Transfers);

impl Work {
    fn transfer(&self, number: usize) -> Transfer {
        self.0.transfer_of(number, REFUSED)
    }

    fn key(number: usize) -> String {
        format!("transfer {number}")
    }
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// How many seconds each measurement was planned to last.
    pub seconds: f64,
    /// How often each was made.
    pub repeat: usize,
    /// Where decisions were kept.
    pub log: String,
    /// Accounts at each bank.
    pub accounts: i64,
    /// One transfer in so many asked for more than there is.
    pub refused_one_in: u32,
    /// Connections in the pool of each bank's participant.
    pub connections: usize,
    /// What the transfers were made from.
    pub seed: u64,
    /// Medians over the repeats, for each number of clients and each way.
    pub medians: Vec<Point>,
    /// What the medians are held against.
    pub figures: Vec<Figure>,
    /// Each measurement.
    pub points: Vec<Point>,
    /// What the audits found.
    pub findings: Vec<String>,
}

/// Measures all of it; `tell` hears of each measurement when it is over.
pub async fn run(plan: &Plan, mut tell: impl FnMut(&str)) -> anyhow::Result<Report> {
    // One for all servers, unless somebody has made one for everybody.
    let template = if Options::default().has_template() {
        None
    } else {
        Some(Template::create().await?)
    };
    let machine = Machine::look(scratch::directory("bench")?.path())?;
    let measurements = plan.repeat * plan.clients.len() * Way::ALL.len();
    let (mut points, mut findings) = (Vec::new(), Vec::new());
    let mut turn = 0;
    for repeat in 1..=plan.repeat {
        for &clients in &plan.clients {
            let mut order = Way::ALL;
            order.rotate_left(turn % Way::ALL.len());
            turn += 1;
            for way in order {
                let measured =
                    trial::measure(plan, template.as_ref(), way, clients, repeat).await?;
                let (point, found) = measured;
                let number = points.len() + 1;
                tell(&format!(
                    "{number:>3}/{measurements} {}",
                    point.told(&found)
                ));
                findings.extend(found.into_iter().map(|found| format!("{way}: {found}")));
                points.push(point);
            }
        }
    }
    let medians = point::medians(&points, &plan.clients);
    Ok(Report {
        machine,
        seconds: plan.lasts.as_secs_f64(),
        repeat: plan.repeat,
        log: match plan.log {
            LogKind::Sqlite => "sqlite".to_owned(),
            LogKind::Postgres => "postgres".to_owned(),
        },
        accounts: ACCOUNTS,
        refused_one_in: REFUSED,
        connections: plan.connections,
        seed: plan.seed,
        figures: figures::figures(&medians),
        medians,
        points,
        findings,
    })
}
