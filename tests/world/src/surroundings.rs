//! What every node of the world stands in: the clock, the network, chance, and the checker that watches.

mod batches;
mod happening;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use unanimous_protocol::id::{Node, ParticipantName, TransactionId};

pub use self::batches::Batching;
pub(crate) use self::batches::{Batches, Lines, ReplyTo};
pub(crate) use self::happening::{
    Asker, Call, Crashed, Happening, Place, ProcessNumber, Question, Said, Wait, Who, Work,
};
use crate::{checker::Checker, director::Director, rng::Rng};

/// Milliseconds of simulated time.
pub(crate) type Millis = u64;

/// One run of a coordinator's process, for as long as it is remembered. Two of one node may run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LifeNumber(pub(crate) u32);

impl fmt::Display for LifeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}", self.0)
    }
}

/// No wall clock is further off, in milliseconds.
pub(crate) const CLOCK_ERROR: i64 = 3_000;

/// A clock of one node: its timers run at a speed of their own, and it shows another time than the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Milliseconds that its timers count in 100 of the world's.
    pub(crate) speed: u64,
    /// How far what it shows is ahead of the world's.
    pub(crate) ahead: i64,
}

impl Clock {
    /// How long it takes until this clock has counted so much.
    pub(crate) fn takes(self, delay: Millis) -> Millis {
        delay * 100 / self.speed
    }

    /// What it counts while the world's passes so much.
    pub(crate) fn counts(self, span: Millis) -> Millis {
        span * self.speed / 100
    }

    /// What it shows.
    pub(crate) fn shows(self, now: Millis) -> i64 {
        now as i64 + self.ahead
    }
}

/// How hard a world is. Chances are in ten thousand.
#[derive(Clone, Debug)]
pub(crate) struct Temper {
    /// No faults at all: such a world owes AC4.
    pub(crate) calm: bool,
    pub(crate) loss: u64,
    pub(crate) duplicate: u64,
    pub(crate) latency: Millis,
    pub(crate) crash: u64,
    pub(crate) fault_every: Millis,
    pub(crate) log_fault: u64,
    pub(crate) service_failure: u64,
    pub(crate) short_deadlines: bool,
    pub(crate) retention: Millis,
    pub(crate) clients: u64,
    /// A participant may lose durable rows, once.
    pub(crate) betrays: bool,
    /// The log may go back, once.
    pub(crate) log_goes_back: bool,
    /// Coordinators adopt nodes that nobody runs; and in the end one of these may stay away for good.
    pub(crate) adopts: bool,
    /// A node that was not seen for so long is adopted.
    pub(crate) unseen_for: Millis,
    pub(crate) chaos_until: Millis,
}

impl Temper {
    pub(crate) fn of(rng: &mut Rng, calm: bool) -> Self {
        let mut up_to = |most: u64| if calm { 0 } else { rng.between(0, most) };
        let loss = up_to(2_000);
        let duplicate = up_to(2_000);
        let crash = up_to(150);
        let log_fault = up_to(3_000);
        let service_failure = up_to(800);
        let adopts = !calm && rng.chance(6_000);
        // Adopters that live for a while have more to let go of.
        let crash = if adopts && rng.chance(6_000) {
            crash / 8
        } else {
            crash
        };
        let longest_retention = if rng.chance(5_000) { 9_000 } else { 60_000 };
        Self {
            calm,
            loss,
            duplicate,
            crash,
            log_fault,
            service_failure,
            latency: rng.between(2, if calm { 10 } else { 200 }),
            fault_every: rng.between(500, 6_000),
            short_deadlines: !calm && rng.chance(5_000),
            // Longer than a write can stay frozen on its way: an attempt that arrives after its record was forgotten would
            // write it again.
            retention: rng.between(9_000, longest_retention),
            clients: rng.between(10, 40),
            betrays: !calm && rng.chance(2_000),
            log_goes_back: !calm && rng.chance(2_000),
            adopts,
            unseen_for: rng.between(1_000, 10_000),
            chaos_until: rng.between(10_000, 60_000),
        }
    }
}

/// What happened, over many worlds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    pub(crate) fn add(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    pub(crate) fn raise(&mut self, name: &'static str, by: u64) {
        *self.0.entry(name).or_default() += by;
    }

    /// Adds another world's.
    pub fn merge(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            *self.0.entry(name).or_default() += count;
        }
    }

    /// How often something happened.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for (name, count) in &self.0 {
            write!(f, "{separator}{name} {count}")?;
            separator = ", ";
        }
        Ok(())
    }
}

pub(crate) struct Surroundings {
    pub(crate) now: Millis,
    pub(crate) rng: Rng,
    pub(crate) temper: Temper,
    /// Faults happen until the world is healed.
    pub(crate) chaos: bool,
    pub(crate) checker: Checker,
    pub(crate) counters: Counters,
    pub(crate) trace: Option<Vec<String>>,
    /// How many participants are registered.
    pub(crate) participants: usize,
    /// Those that are not registered any more: their branches wait (rule 19).
    pub(crate) unregistered: BTreeSet<ParticipantName>,
    /// The processes that listen, by node: what a load balancer would know.
    pub(crate) listening: Vec<(Node, LifeNumber)>,
    pub(crate) batches: Batches,
    /// What a script does with messages.
    pub(crate) director: Option<Director>,
    /// The ids that were issued last.
    pub(crate) recent: VecDeque<TransactionId>,
    /// So long after its beginning nothing of a transaction may be left; only asked where it is set.
    pub(crate) over_after: Option<Millis>,
    /// Links that carry nothing, in this direction.
    cuts: BTreeSet<(Place, Place)>,
    /// Short names of transactions, for the event log.
    names: BTreeMap<TransactionId, String>,
    queue: BTreeMap<(Millis, u64), Happening>,
    sequence: u64,
}

/// Writes a line of the event log, where one is kept.
macro_rules! trace {
    ($s:expr, $($format:tt)*) => {
        if $s.trace.is_some() {
            let line = format!($($format)*);
            $s.write(line);
        }
    };
}
pub(crate) use trace;

impl Surroundings {
    pub(crate) fn new(rng: Rng, temper: Temper, trace: bool) -> Self {
        Self {
            now: 0,
            batches: Batches::new(&rng),
            rng,
            chaos: !temper.calm,
            temper,
            checker: Checker::default(),
            counters: Counters::default(),
            trace: trace.then(Vec::new),
            participants: 0,
            unregistered: BTreeSet::new(),
            listening: Vec::new(),
            director: None,
            recent: VecDeque::new(),
            over_after: None,
            cuts: BTreeSet::new(),
            names: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
        }
    }

    pub(crate) fn write(&mut self, line: String) {
        let line = self.with_short_names(&line);
        if let Some(trace) = &mut self.trace {
            if self.director.is_some() {
                trace.push(line);
            } else {
                let now = self.now;
                trace.push(format!("{:>4}.{:03} {line}", now / 1000, now % 1000));
            }
        }
    }

    /// Gives a transaction that begins its short name, where an event log is kept.
    pub(crate) fn name_it(&mut self, id: TransactionId) {
        if self.trace.is_some() {
            let name = format!("t{}", self.names.len() + 1);
            if self.director.is_none() {
                trace!(self, "{name} is {id}");
            }
            self.names.insert(id, name);
        }
    }

    /// Strangers may ask about it.
    pub(crate) fn remember(&mut self, id: TransactionId) {
        self.recent.push_back(id);
        if self.recent.len() > 64 {
            self.recent.pop_front();
        }
        if let Some(delay) = self.over_after {
            let begun_at = self.now;
            self.after(delay, Happening::IsItOver { id, begun_at });
        }
    }

    pub(crate) fn name_of(&self, id: TransactionId) -> String {
        self.names
            .get(&id)
            .cloned()
            .unwrap_or_else(|| id.to_string())
    }

    pub(crate) fn named(&self, name: &str) -> Option<TransactionId> {
        let mut names = self.names.iter();
        names.find(|(_, given)| *given == name).map(|(id, _)| *id)
    }

    pub(crate) fn with_short_names(&self, line: &str) -> String {
        const LENGTH: usize = 36;
        let mut text = String::with_capacity(line.len());
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let named = rest
                .get(..LENGTH)
                .and_then(|id| id.parse::<TransactionId>().ok())
                .and_then(|id| self.names.get(&id));
            if let Some(name) = named {
                text.push_str(name);
                rest = &rest[LENGTH..];
            } else {
                text.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
        text
    }

    pub(crate) fn next(&mut self) -> Option<Happening> {
        let ((at, _), happening) = self.queue.pop_first()?;
        self.now = at;
        Some(happening)
    }

    /// When the next thing happens.
    pub(crate) fn next_at(&self) -> Option<Millis> {
        self.queue.keys().next().map(|(at, _)| *at)
    }

    /// Something that happens by itself: a timer.
    pub(crate) fn after(&mut self, delay: Millis, happening: Happening) {
        self.sequence += 1;
        self.queue
            .insert((self.now + delay, self.sequence), happening);
    }

    /// Something that travels, or waits for a disk: a link may be cut, and a script may do with it as it likes.
    pub(crate) fn carry(&mut self, delay: Millis, happening: Happening) {
        if !self.cuts.is_empty()
            && let Some(link) = happening.link()
            && self.cuts.contains(&link)
        {
            self.counters.add("messages into a cut link");
            return;
        }
        let mut times = 1;
        if let Some(mut director) = self.director.take() {
            let label = happening.label(|id| self.name_of(id));
            let (directed, line) = director.direct(label, &happening);
            times = directed;
            self.director = Some(director);
            if let Some(line) = line {
                trace!(self, "{line}");
            }
        }
        for _ in 0..times {
            self.after(delay, happening.clone());
        }
    }

    /// Whatever is on its way between the log and a life that is not one of these is lost.
    pub(crate) fn cut_off_from_the_log(&mut self, but: &[LifeNumber]) {
        let before = self.queue.len();
        self.queue.retain(|_, happening| match happening.link() {
            Some((Place::Coordinator(life), Place::Log))
            | Some((Place::Log, Place::Coordinator(life))) => but.contains(&life),
            Some(_) | None => true,
        });
        let cut = before - self.queue.len();
        self.counters
            .raise("requests to a log that went back, cut off", cut as u64);
    }

    /// Cuts a link in one direction.
    pub(crate) fn cut(&mut self, from: Place, to: Place) {
        self.cuts.insert((from, to));
    }

    pub(crate) fn mend(&mut self, from: Place, to: Place) {
        self.cuts.remove(&(from, to));
    }

    pub(crate) fn mend_all(&mut self) {
        self.cuts.clear();
    }

    /// A clock of some node, set when it starts.
    pub(crate) fn clock(&mut self) -> Clock {
        if self.temper.calm {
            return Clock {
                speed: 100,
                ahead: 0,
            };
        }
        Clock {
            speed: self.rng.between(70, 140),
            ahead: self.rng.between(0, 2 * CLOCK_ERROR as u64) as i64 - CLOCK_ERROR,
        }
    }

    pub(crate) fn latency(&mut self) -> Millis {
        // Mostly quick, now and then slower than any timeout.
        if self.chaos && self.rng.chance(100) {
            return self.rng.between(1_000, 8_000);
        }
        let most = self.temper.latency;
        self.rng.between(1, most)
    }

    /// Sends over the network: late, in any order, twice (the second one perhaps minutes later), or not at all.
    pub(crate) fn transmit(&mut self, happening: Happening) {
        if self.chaos && self.rng.chance(self.temper.duplicate) {
            self.counters.add("duplicates");
            let delay = if self.rng.chance(5_000) {
                self.latency()
            } else {
                self.rng.between(1_000, 180_000)
            };
            self.carry(delay, happening.clone());
        }
        self.transmit_once(happening);
    }

    /// The same, but never twice: an answer on the connection that the question came by.
    pub(crate) fn transmit_once(&mut self, happening: Happening) {
        if self.chaos && self.rng.chance(self.temper.loss) {
            self.counters.add("losses");
        } else {
            let delay = self.latency();
            self.carry(delay, happening);
        }
    }

    /// A process may die here: between any two things that it does.
    pub(crate) fn crash_point(&mut self) -> Result<(), Crashed> {
        if self.chaos && self.rng.chance(self.temper.crash) {
            self.counters.add("crashes between two effects");
            Err(Crashed)
        } else {
            Ok(())
        }
    }

    /// Asks a coordinator: of `node`, where one is wanted, else of any.
    pub(crate) fn ask(&mut self, node: Option<Node>, asker: Asker, question: Question) {
        let candidates: Vec<LifeNumber> = self
            .listening
            .iter()
            .filter(|(of, _)| node.is_none_or(|node| node == *of))
            .map(|(_, life)| *life)
            .collect();
        // Nobody listens: the connection is refused, which an asker treats as it treats silence.
        if let Some(&life) = self.rng.pick(&candidates) {
            self.transmit(Happening::Asked {
                life,
                asker,
                question,
            });
        }
    }

    pub(crate) fn answer(&mut self, life: LifeNumber, asker: Asker, said: Said) {
        let happening = Happening::Answered { life, asker, said };
        // An inform is a fact: it must be harmless at any time, so it is also repeated minutes later.
        if matches!(
            happening,
            Happening::Answered {
                said: Said::Inform(..),
                ..
            }
        ) {
            self.transmit(happening);
        } else {
            self.transmit_once(happening);
        }
    }
}
