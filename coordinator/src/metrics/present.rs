//! What is true at the moment of a scrape: where the live transactions stand, what is in doubt and since when, how near
//! the bounds are, and whether this life may decide.
//!
//! Every live transaction is asked once for each scrape. That costs the engine about as much as one message for each,
//! and nothing at all between two scrapes.

use std::collections::{BTreeMap, BTreeSet};

use prometheus::{
    Error, Gauge, GaugeVec, IntGauge, IntGaugeVec, Opts, Registry, proto::MetricFamily,
};
use unanimous_protocol::{
    coordinator::{Transaction, TransactionState},
    id::ParticipantName,
    record::WallMillis,
};

use crate::{
    actors::registry::{Bounds, Condition},
    courier::{Counts, Stats},
};

/// Stands for all participants that are not registered, whose branches wait all the same. No name can be spelled so.
pub const UNREGISTERED: &str = "(unregistered)";

const STATES: [(TransactionState, &str); 7] = [
    (TransactionState::Active, "active"),
    (TransactionState::Preparing, "preparing"),
    (TransactionState::Deciding, "deciding"),
    (TransactionState::Committing, "committing"),
    (TransactionState::Committed, "committed"),
    (TransactionState::Aborting, "aborting"),
    (TransactionState::Aborted, "aborted"),
];

/// Since when the branches of one transaction are in doubt. The machine knows which are; it has no clock.
#[derive(Debug, Default)]
pub struct Doubts(Vec<(ParticipantName, WallMillis)>);

impl Doubts {
    /// A vote of this participant has just been counted.
    pub fn voted(&mut self, participant: ParticipantName, machine: &Transaction, now: WallMillis) {
        let is_new = self.0.iter().all(|(known, _)| *known != participant);
        if is_new && machine.in_doubt().any(|name| *name == participant) {
            self.0.push((participant, now));
        }
    }
}

/// One live transaction, as a scrape finds it.
#[derive(Debug)]
pub struct Sighting {
    state: TransactionState,
    in_doubt: Vec<(ParticipantName, WallMillis)>,
}

impl Sighting {
    /// A branch whose vote this life has not heard is in doubt since `otherwise`: of a recovered transaction, that is
    /// when it was decided.
    #[must_use]
    pub fn of(machine: &Transaction, doubts: &Doubts, otherwise: WallMillis) -> Self {
        let since = |name: &ParticipantName| {
            let heard = doubts.0.iter().find(|(voter, _)| voter == name);
            heard.map_or(otherwise, |(_, at)| *at)
        };
        Self {
            state: machine.transaction_state(),
            in_doubt: machine
                .in_doubt()
                .map(|name| (name.clone(), since(name)))
                .collect(),
        }
    }
}

/// What is in memory, against its bounds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Transactions that are neither decided nor handed to the log.
    pub undecided: usize,
    /// All in memory.
    pub live: usize,
    /// Those whose aborts are being delivered.
    pub delivering_aborts: usize,
    /// What they may be.
    pub bounds: Bounds,
}

/// Everything that is true now.
pub struct Present {
    now: WallMillis,
    held: Held,
    condition: Condition,
    participants: BTreeMap<ParticipantName, Stats>,
    by_state: BTreeMap<TransactionState, i64>,
    in_doubt_transactions: i64,
    in_doubt: BTreeMap<ParticipantName, Doubt>,
}

#[derive(Clone, Copy)]
struct Doubt {
    branches: i64,
    oldest: WallMillis,
}

impl Present {
    /// Before any transaction was looked at.
    #[must_use]
    pub fn new(
        now: WallMillis,
        held: Held,
        condition: Condition,
        couriers: BTreeMap<ParticipantName, Stats>,
    ) -> Self {
        let mut participants = couriers;
        participants.retain(|_, stats| stats.endpoint.is_some());
        Self {
            now,
            held,
            condition,
            participants,
            by_state: BTreeMap::new(),
            in_doubt_transactions: 0,
            in_doubt: BTreeMap::new(),
        }
    }

    /// A transaction was found like this.
    pub fn saw(&mut self, sighting: Sighting) {
        *self.by_state.entry(sighting.state).or_default() += 1;
        self.in_doubt_transactions += i64::from(!sighting.in_doubt.is_empty());
        for (participant, since) in sighting.in_doubt {
            let doubt = self.in_doubt.entry(participant).or_insert(Doubt {
                branches: 0,
                oldest: since,
            });
            doubt.branches += 1;
            doubt.oldest = doubt.oldest.min(since);
        }
    }

    pub(super) fn registered(&self) -> BTreeSet<&str> {
        self.participants
            .keys()
            .map(ParticipantName::as_str)
            .collect()
    }

    /// As families, of a registry that lives no longer than the page.
    pub(super) fn families(&self) -> Result<Vec<MetricFamily>, Error> {
        let registry = Registry::new();
        self.standing(&registry)?;
        self.doubts(&registry)?;
        self.couriers(&registry)?;
        Ok(registry.gather())
    }

    fn standing(&self, registry: &Registry) -> Result<(), Error> {
        let build = gauges(
            registry,
            "unanimous_build_info",
            "1, by the version of this process.",
            &["version"],
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let conditions = gauges(
            registry,
            "unanimous_condition",
            "1 for the condition of this coordinator, 0 for the others: ready; log_unavailable (nothing new begins); \
             went_back (nothing is decided until an operator acts); fenced (another one rules, the process ends).",
            &["condition"],
        )?;
        let present = match &self.condition {
            Condition::Ready => "ready",
            Condition::LogUnavailable => "log_unavailable",
            Condition::WentBack(_) => "went_back",
            Condition::Fenced(_) => "fenced",
        };
        for condition in ["ready", "log_unavailable", "went_back", "fenced"] {
            let is_present = i64::from(condition == present);
            conditions.with_label_values(&[condition]).set(is_present);
        }
        let states = gauges(
            registry,
            "unanimous_transactions",
            "Transactions in memory, by state; committed and aborted ones are waiting for their record to be durable.",
            &["state"],
        )?;
        for (state, name) in STATES {
            let count = self.by_state.get(&state).copied().unwrap_or_default();
            states.with_label_values(&[name]).set(count);
        }
        let Held {
            undecided,
            live,
            delivering_aborts,
            bounds,
        } = self.held;
        for (name, help, value) in [
            (
                "unanimous_transactions_undecided",
                "Transactions that are not decided yet.",
                undecided,
            ),
            (
                "unanimous_transactions_undecided_max",
                "From so many undecided transactions on a new one is refused as overloaded.",
                bounds.undecided_max,
            ),
            (
                "unanimous_transactions_live",
                "Transactions in memory.",
                live,
            ),
            (
                "unanimous_transactions_live_max",
                "From so many transactions in memory on a new one is refused as overloaded.",
                bounds.live_max,
            ),
            (
                "unanimous_transactions_delivering_aborts",
                "Aborted transactions whose branches are still being told.",
                delivering_aborts,
            ),
            (
                "unanimous_transactions_delivering_aborts_max",
                "Beyond so many, the oldest are dropped, and their branches ask.",
                bounds.delivering_aborts_max,
            ),
        ] {
            let gauge = IntGauge::new(name, help)?;
            gauge.set(number(value));
            registry.register(Box::new(gauge))?;
        }
        Ok(())
    }

    /// Every registered participant has its series, so that an alert on it is never absent.
    fn doubts(&self, registry: &Registry) -> Result<(), Error> {
        let transactions = IntGauge::new(
            "unanimous_in_doubt_transactions",
            "Transactions in memory of which some branch voted yes and has not acknowledged the outcome.",
        )?;
        transactions.set(self.in_doubt_transactions);
        registry.register(Box::new(transactions))?;
        let branches = gauges(
            registry,
            "unanimous_in_doubt_branches",
            "Branches that voted yes and have not acknowledged the outcome, by participant; (unregistered) are those of \
             all names that are not registered any more.",
            &["participant"],
        )?;
        let oldest = GaugeVec::new(
            Opts::new(
                "unanimous_in_doubt_oldest_age_seconds",
                "For how long the participant's oldest branch in doubt has been so, 0 without one: since its yes, and \
                 after a restart since the decision.",
            ),
            &["participant"],
        )?;
        registry.register(Box::new(oldest.clone()))?;
        let series = |name: &str| -> (IntGauge, Gauge) {
            (
                branches.with_label_values(&[name]),
                oldest.with_label_values(&[name]),
            )
        };
        series(UNREGISTERED);
        for name in self.participants.keys() {
            series(name.as_str());
        }
        for (name, doubt) in &self.in_doubt {
            let is_registered = self.participants.contains_key(name);
            let (branches, oldest) = series(if is_registered {
                name.as_str()
            } else {
                UNREGISTERED
            });
            branches.add(doubt.branches);
            // Milliseconds of many years are exact. A clock that was set back makes nobody younger than now.
            let age_ms = self.now.0.saturating_sub(doubt.oldest.0).max(0) as f64;
            oldest.set(oldest.get().max(age_ms / 1000.0));
        }
        Ok(())
    }

    fn couriers(&self, registry: &Registry) -> Result<(), Error> {
        let in_flight = gauges(
            registry,
            "unanimous_calls_in_flight",
            "Calls to participants that have left and not ended, by participant and kind.",
            &["participant", "kind"],
        )?;
        let waiting = gauges(
            registry,
            "unanimous_calls_waiting",
            "Calls to participants that wait for a slot, for the breaker or before another attempt, by participant and \
             kind.",
            &["participant", "kind"],
        )?;
        let breaker = gauges(
            registry,
            "unanimous_breaker_open",
            "1 while a participant does not answer and prepares to it are held back, else 0.",
            &["participant"],
        )?;
        for (name, stats) in &self.participants {
            let name = name.as_str();
            for (kind, counts) in [
                ("prepare", stats.prepares),
                ("commit", stats.commits),
                ("abort", stats.aborts),
            ] {
                let Counts {
                    in_flight: left,
                    ready,
                    backing_off,
                } = counts;
                in_flight.with_label_values(&[name, kind]).set(number(left));
                waiting
                    .with_label_values(&[name, kind])
                    .set(number(ready + backing_off));
            }
            let is_open = i64::from(stats.breaker_open);
            breaker.with_label_values(&[name]).set(is_open);
        }
        Ok(())
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, Error> {
    let gauges = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauges.clone()))?;
    Ok(gauges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{actors::registry::Bounds, metrics::Metrics};

    fn page(now: i64, doubts: &[(&str, i64)], registered: &[&str]) -> String {
        let stats = Stats {
            endpoint: "http://127.0.0.1:1".parse().ok(),
            ..Stats::default()
        };
        let participants = registered
            .iter()
            .map(|name| (name.parse().unwrap(), stats.clone()))
            .collect();
        let held = Held {
            undecided: 0,
            live: 0,
            delivering_aborts: 0,
            bounds: Bounds::default(),
        };
        let mut present = Present::new(WallMillis(now), held, Condition::Ready, participants);
        for (name, since) in doubts {
            present.saw(Sighting {
                state: TransactionState::Committing,
                in_doubt: vec![(name.parse().unwrap(), WallMillis(*since))],
            });
        }
        Metrics::new(&[]).unwrap().page(&present).unwrap()
    }

    #[test]
    fn the_oldest_doubt_counts_and_a_clock_set_back_makes_no_negative_age() {
        let page = page(
            10_000,
            &[("east", 8_500), ("east", 2_000), ("west", 11_000)],
            &["east", "west", "north"],
        );
        for line in [
            r#"unanimous_in_doubt_branches{participant="east"} 2"#,
            r#"unanimous_in_doubt_oldest_age_seconds{participant="east"} 8"#,
            r#"unanimous_in_doubt_branches{participant="west"} 1"#,
            r#"unanimous_in_doubt_oldest_age_seconds{participant="west"} 0"#,
            r#"unanimous_in_doubt_branches{participant="north"} 0"#,
            "unanimous_in_doubt_transactions 3",
            r#"unanimous_transactions{state="committing"} 3"#,
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
    }

    #[test]
    fn names_that_are_not_registered_share_one_series() {
        let page = page(10_000, &[("gone", 4_000), ("lost", 9_000)], &[]);
        for line in [
            r#"unanimous_in_doubt_branches{participant="(unregistered)"} 2"#,
            r#"unanimous_in_doubt_oldest_age_seconds{participant="(unregistered)"} 6"#,
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        for name in ["gone", "lost"] {
            assert!(!page.contains(&format!("\"{name}\"")), "{page}");
        }
    }
}
