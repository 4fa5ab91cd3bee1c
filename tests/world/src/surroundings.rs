//! What every node of the world stands in: the clock, the network, chance, and the checker that watches.

use std::collections::BTreeMap;

use unanimous_protocol::{
    coordinator::{EnlistRefused, Enlisted},
    id::{Node, ParticipantName, TransactionId},
    message::{Delivery, Inform, Reply, Request, Session},
    operations::{BodyDigest, Operations},
    record::{AbortCode, IdempotencyKey},
};

use crate::{checker::Checker, log, rng::Rng};

/// Milliseconds of simulated time.
pub(crate) type Millis = u64;

/// One run of a coordinator's process, for as long as it is remembered. Two of one node may run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LifeNumber(pub(crate) u32);

/// A process that is gone: it crashed in the middle of what it did.
#[derive(Debug)]
pub(crate) struct Crashed;

/// Who asked a coordinator or a participant something, and which of its questions it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) who: Who,
    pub(crate) question: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Client(usize),
    /// An inquiry.
    Participant(ParticipantName),
    /// A participant that enlists its branch.
    Enlisting(ParticipantName, TransactionId, Session),
}

/// What a coordinator is asked.
#[derive(Clone, Debug)]
pub(crate) enum Question {
    Begin {
        key: Option<IdempotencyKey>,
        request: BodyDigest,
        branches: Vec<(ParticipantName, Operations)>,
        commit: bool,
        timeout: Millis,
    },
    Enlist {
        id: TransactionId,
        participant: ParticipantName,
        session: Session,
    },
    Commit(TransactionId),
    Abort(TransactionId),
    Get(TransactionId),
    /// A participant's inquiry.
    Outcome {
        id: TransactionId,
        participant: ParticipantName,
    },
}

/// What it answers.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// Begun, and not asked to commit.
    Open(TransactionId),
    Enlisted {
        answer: Result<Enlisted, EnlistRefused>,
        remaining: Millis,
    },
    Committed(TransactionId),
    Aborted(TransactionId, AbortCode),
    /// 202
    Pending(TransactionId),
    KeyReused,
    Forgotten,
    Inform(TransactionId, ParticipantName, Inform),
    /// 404 or 409: nothing that an asker can do more about.
    NotThere,
    OtherNode(Node),
    /// 503: ask again.
    Unavailable,
}

/// A call of a courier to a branch.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) life: LifeNumber,
    pub(crate) number: u64,
    pub(crate) id: TransactionId,
    pub(crate) participant: ParticipantName,
    pub(crate) request: Request,
    pub(crate) in_time: bool,
}

/// Interactive work that a client asks a participant for.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) id: TransactionId,
    pub(crate) participant: ParticipantName,
    pub(crate) node: Node,
    /// Tells repeats of one piece of work apart from another piece.
    pub(crate) ordinal: u32,
    pub(crate) operations: String,
    pub(crate) asker: Asker,
}

#[derive(Clone, Debug)]
pub(crate) enum Happening {
    CallArrives(Call),
    CallEnds {
        life: LifeNumber,
        number: u64,
        delivery: Delivery<Reply>,
    },
    CallLater {
        life: LifeNumber,
        id: TransactionId,
        participant: ParticipantName,
        request: Request,
    },
    Asked {
        life: LifeNumber,
        asker: Asker,
        question: Question,
    },
    Answered {
        asker: Asker,
        said: Said,
    },
    LogAsked {
        life: LifeNumber,
        node: Node,
        number: u64,
        request: log::Request,
        fault: Option<log::Fault>,
    },
    LogAnswered {
        life: LifeNumber,
        number: u64,
        answer: log::Answer,
    },
    LogFlush {
        incarnation: u64,
        position: u64,
    },
    LogForgets,
    Deadline {
        life: LifeNumber,
        id: TransactionId,
    },
    LonelyAppend(LifeNumber),
    WriteAgain(LifeNumber),
    Poll(LifeNumber),
    OpenAgain(LifeNumber),
    Flush {
        participant: ParticipantName,
        incarnation: u64,
        position: u64,
    },
    WorkArrives(Work),
    WorkDone {
        asker: Asker,
        done: bool,
    },
    EnlistSilence {
        participant: ParticipantName,
        incarnation: u64,
        id: TransactionId,
    },
    SessionDeadline {
        participant: ParticipantName,
        incarnation: u64,
        id: TransactionId,
        session: Session,
    },
    InquiryTick {
        participant: ParticipantName,
        incarnation: u64,
    },
    ClientActs {
        client: usize,
        question: u64,
    },
    RestartCoordinator(Node),
    RestartParticipant(ParticipantName),
    Fault,
    Heal,
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
    /// The processes that listen, by node: what a load balancer would know.
    pub(crate) listening: Vec<(Node, LifeNumber)>,
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
            rng,
            chaos: !temper.calm,
            temper,
            checker: Checker::default(),
            counters: Counters::default(),
            trace: trace.then(Vec::new),
            listening: Vec::new(),
            queue: BTreeMap::new(),
            sequence: 0,
        }
    }

    pub(crate) fn write(&mut self, line: String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>4}.{:03} {line}", now / 1000, now % 1000));
        }
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

    pub(crate) fn after(&mut self, delay: Millis, happening: Happening) {
        self.sequence += 1;
        self.queue
            .insert((self.now + delay, self.sequence), happening);
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
            self.after(delay, happening.clone());
        }
        self.transmit_once(happening);
    }

    /// The same, but never twice: an answer on the connection that the question came by.
    pub(crate) fn transmit_once(&mut self, happening: Happening) {
        if self.chaos && self.rng.chance(self.temper.loss) {
            self.counters.add("losses");
        } else {
            let delay = self.latency();
            self.after(delay, happening);
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

    pub(crate) fn answer(&mut self, asker: Asker, said: Said) {
        let happening = Happening::Answered { asker, said };
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
