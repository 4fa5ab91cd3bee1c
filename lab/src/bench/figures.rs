//! What the benchmark is held against.

use serde::Serialize;

use super::{Point, Way};

/// Where throughput is compared.
const BUSY: usize = 64;

/// One figure to reach, and what was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// At how many clients it was measured.
    pub clients: usize,
    /// What was measured.
    pub measured: f64,
    /// The same by hand, where that is no part of the figure.
    pub by_hand: Option<f64>,
    /// What it is to be.
    pub wanted: f64,
    /// What it is to be some day.
    pub wanted_later: Option<f64>,
    /// Whether more is better; else less is.
    pub more_is_better: bool,
    /// Whether it is as it is to be.
    pub reached: bool,
}

/// What is compared, where.
struct Wanted {
    name: &'static str,
    /// The nearest that was measured is taken.
    clients: usize,
    value: fn(&Point) -> f64,
    compared: Compared,
    wanted: f64,
    wanted_later: Option<f64>,
    more_is_better: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// The value of (b) divided by that of (a).
    Ratio,
    /// The value of (b), with that of (a) beside it.
    Beside,
    /// The value of (b): by hand there is no such thing.
    Alone,
}

const WANTED: [Wanted; 5] = [
    Wanted {
        name: "transfers per second, (b)/(a)",
        clients: BUSY,
        value: |point| point.per_second,
        compared: Compared::Ratio,
        wanted: 1.0,
        wanted_later: Some(1.5),
        more_is_better: true,
    },
    Wanted {
        name: "p50, (b)/(a)",
        clients: 1,
        value: |point| point.p50_ms,
        compared: Compared::Ratio,
        wanted: 1.6,
        wanted_later: None,
        more_is_better: false,
    },
    Wanted {
        name: "p99, (b)/(a)",
        clients: BUSY,
        value: |point| point.p99_ms,
        compared: Compared::Ratio,
        wanted: 1.3,
        wanted_later: None,
        more_is_better: false,
    },
    Wanted {
        name: "forced writes per transfer, all disks",
        clients: BUSY,
        value: |point| point.costs.forced,
        compared: Compared::Beside,
        wanted: 0.6,
        wanted_later: None,
        more_is_better: false,
    },
    Wanted {
        name: "coordinator's CPU per transfer, µs",
        clients: BUSY,
        value: |point| point.costs.coordinator_us,
        compared: Compared::Alone,
        wanted: 100.0,
        wanted_later: None,
        more_is_better: false,
    },
];

/// Holds the medians against what is wanted, each at the number of clients nearest to the one it is meant for.
pub(super) fn figures(medians: &[Point]) -> Vec<Figure> {
    WANTED
        .iter()
        .filter_map(|wanted| figure(wanted, medians))
        .collect()
}

fn figure(wanted: &Wanted, medians: &[Point]) -> Option<Figure> {
    let numbers = medians.iter().map(|point| point.clients);
    let clients = numbers.min_by_key(|clients| clients.abs_diff(wanted.clients))?;
    let value = |way| {
        let mut found = medians.iter();
        let found = found.find(|point| point.clients == clients && point.way == way);
        found.map(wanted.value)
    };
    let (by_hand, through) = (value(Way::ByHand)?, value(Way::Unanimous)?);
    let (measured, by_hand) = match wanted.compared {
        Compared::Ratio => (through / by_hand, None),
        Compared::Beside => (through, Some(by_hand)),
        Compared::Alone => (through, None),
    };
    Some(Figure {
        name: wanted.name.to_owned(),
        clients,
        measured,
        by_hand,
        wanted: wanted.wanted,
        wanted_later: wanted.wanted_later,
        more_is_better: wanted.more_is_better,
        reached: if wanted.more_is_better {
            measured >= wanted.wanted
        } else {
            measured <= wanted.wanted
        },
    })
}
