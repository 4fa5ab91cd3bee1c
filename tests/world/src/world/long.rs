//! One world that goes on and on: storage and memory stay bounded by what is live and what the retention keeps.
//!
//! Clients come one after the other, for as many transactions as are wanted. Some time after a transaction was begun
//! nothing of it may be left anywhere: no record, no key, no row, nothing in any memory; then the checker forgets it,
//! too, and keeps only that it was. What still waits for something that is unfinished is looked at again, up to a limit.
//! Nothing in such a world loses what it had promised to keep, for that is kept for ever.

use std::fmt;

use unanimous_protocol::{
    id::{ParticipantName, TransactionId},
    record::Outcome,
};

use super::{Failure, HEALING, World, end_of};
use crate::{
    client::Client,
    rng::Rng,
    surroundings::{Batching, Counters, Happening, Millis, Temper},
};

/// When a transaction is first looked at, after its beginning: its deadline, by the slowest clock, and then the latest
/// duplicate and the longest retention are over.
const OVER_AFTER: Millis = 260_000;
/// Between two looks.
const LOOK_AGAIN: Millis = 20_000;
/// Nothing of a transaction is kept for longer.
const KEPT_AT_MOST: Millis = 900_000;
/// Between two clients, on average.
const BETWEEN_CLIENTS: Millis = 200;

/// The most that was held at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maxima {
    /// Records in the decision log.
    pub records: usize,
    /// Rows at one participant.
    pub rows: usize,
    /// Those of them that are tombstones.
    pub tombstones: usize,
    /// Transactions, keys and calls in one coordinator's memory.
    pub coordinator: usize,
    /// Sessions, waiting prepares and answers in one participant's memory.
    pub participant: usize,
    /// Transactions of which something may be kept somewhere.
    pub live_or_kept: usize,
    /// For how long something of a transaction was kept, in milliseconds from its beginning.
    pub kept_for_ms: Millis,
}

impl fmt::Display for Maxima {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "at most {} records, {} rows at one participant ({} tombstones), {} things in one coordinator's memory, {} \
             in one participant's, {} transactions live or kept, each gone {} s after its beginning",
            self.records,
            self.rows,
            self.tombstones,
            self.coordinator,
            self.participant,
            self.live_or_kept,
            self.kept_for_ms / 1_000
        )
    }
}

/// The state of such a run.
#[derive(Debug)]
pub(super) struct Long {
    wanted: u64,
    names: Vec<ParticipantName>,
    clients: usize,
    maxima: Maxima,
    ends_at: Option<Millis>,
}

/// Runs one world of so many transactions.
///
/// # Errors
/// The first rule that was broken, or what was kept for too long.
pub fn run_long(seed: u64, transactions: u64) -> Result<(Counters, Maxima), Box<Failure>> {
    let mut rng = Rng::new(seed);
    let mut temper = Temper::of(&mut rng, false);
    temper.clients = 0;
    // Who dies at every turn publishes no mark, and without one nothing is pruned.
    temper.crash /= 8;
    temper.fault_every += 2_000;
    // And where everything takes long, all wait for the same few keys and accounts, and nothing commits.
    temper.latency = temper.latency.min(20);
    temper.loss /= 4;
    temper.log_fault /= 8;
    temper.short_deadlines = false;
    temper.betrays = false;
    temper.log_goes_back = false;
    temper.chaos_until = Millis::MAX / 2;
    let mut world = World::new(rng, temper, Batching::Drawn, false);
    world.s.over_after = Some(OVER_AFTER);
    world.long = Some(Long {
        wanted: transactions,
        names: world.participants.keys().cloned().collect(),
        clients: 0,
        maxima: Maxima::default(),
        ends_at: None,
    });
    world.s.after(100, Happening::ClientComes);
    world.s.after(1_000, Happening::Measure);
    let counters = end_of(&mut world, seed, World::run_long)?;
    let maxima = world.long.map(|long| long.maxima).unwrap_or_default();
    Ok((counters, maxima))
}

impl World {
    fn run_long(&mut self) -> Result<(), String> {
        loop {
            let ends_at = self.long.as_ref().and_then(|long| long.ends_at);
            if ends_at.is_some_and(|at| self.s.now >= at) {
                break;
            }
            let Some(happening) = self.s.next() else {
                break;
            };
            self.events += 1;
            self.happens(happening);
            if let Some(what) = self.s.checker.violation() {
                return Err(what.to_owned());
            }
        }
        self.s.counters.raise("events", self.events);
        self.all_has_ended()
    }

    /// The next client, and a date for the one after it.
    pub(super) fn client_comes(&mut self) {
        let begun = self.s.counters.get("transactions");
        let Some(long) = &mut self.long else {
            return;
        };
        if begun >= long.wanted {
            self.s.after(1_000, Happening::Heal);
            long.ends_at = Some(self.s.now + HEALING);
            return;
        }
        let index = long.clients;
        long.clients += 1;
        let plan = super::plan::plan(&long.names, index, &mut self.s);
        self.clients.insert(index, Client::new(index, plan));
        let question = 0;
        self.s.after(
            0,
            Happening::ClientActs {
                client: index,
                question,
            },
        );
        let delay = self.s.rng.between(0, 2 * BETWEEN_CLIENTS);
        self.s.after(delay, Happening::ClientComes);
    }

    /// Whether nothing is left of a transaction.
    pub(super) fn is_it_over(&mut self, id: TransactionId, begun_at: Millis) {
        let kept = self.kept_of(id);
        let for_ms = self.s.now - begun_at;
        match kept {
            None => {
                for (name, participant) in &mut self.participants {
                    let applied = participant.forget_what_was_applied(id);
                    self.s.checker.applied_in_the_end(id, name, applied);
                }
                self.s.counters.add(match self.s.checker.is_over(id) {
                    Some(Outcome::Committed) => "commits",
                    Some(Outcome::Aborted) => "aborts",
                    None => "aborts without a record",
                });
                self.s.after(KEPT_AT_MOST, Happening::ForgetThatItWas(id));
                if let Some(long) = &mut self.long {
                    long.maxima.kept_for_ms = long.maxima.kept_for_ms.max(for_ms);
                }
            }
            Some(what) if for_ms > KEPT_AT_MOST && self.s.chaos => {
                let lives = self.coordinators.values();
                let marks: Vec<_> = lives.map(|life| (life.node(), life.low_water())).collect();
                let violation = format!(
                    "{for_ms} ms after its beginning {what} of {id} is kept; the marks are {marks:?}"
                );
                self.s.checker.violated(violation);
            }
            Some(_) => self
                .s
                .after(LOOK_AGAIN, Happening::IsItOver { id, begun_at }),
        }
    }

    fn kept_of(&self, id: TransactionId) -> Option<String> {
        if self.log.record(id).is_some() {
            return Some("a record".to_owned());
        }
        for (number, life) in &self.coordinators {
            if life.holds(id) {
                return Some(format!("the transaction in the memory of {number}"));
            }
        }
        for (name, participant) in &self.participants {
            if let Some(what) = participant.kept_of(id) {
                return Some(format!("{name}'s {what}"));
            }
        }
        None
    }

    /// Holds what is stored and in memory against what is live or kept.
    pub(super) fn measure(&mut self) {
        let live = self.s.checker.not_over();
        let Some(long) = &mut self.long else {
            return;
        };
        let most = &mut long.maxima;
        most.live_or_kept = most.live_or_kept.max(live);
        let mut bounded = Vec::new();
        let records = self.log.records().count();
        most.records = most.records.max(records);
        bounded.push(("records", records));
        for participant in self.participants.values() {
            let (rows, tombstones) = participant.row_counts();
            most.rows = most.rows.max(rows);
            most.tombstones = most.tombstones.max(tombstones);
            bounded.push(("rows", rows));
            most.participant = most.participant.max(participant.in_memory());
        }
        for life in self.coordinators.values() {
            most.coordinator = most.coordinator.max(life.in_memory());
        }
        for (what, count) in bounded {
            if count > live {
                let violation =
                    format!("{count} {what} of {live} transactions that are live or kept");
                self.s.checker.violated(violation);
            }
        }
        self.s.after(1_000, Happening::Measure);
    }
}
