//! What every node of the world stands in: the clock, the network, chance, and the checker that watches.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use unanimous_protocol::{
    coordinator::{EnlistRefused, Enlisted},
    id::{Node, ParticipantName, TransactionId},
    message::{Delivery, Inform, Reply, Request, Session},
    operations::{BodyDigest, Operations},
    record::{AbortCode, IdempotencyKey},
};

use crate::{checker::Checker, director::Director, log, rng::Rng, words};

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

/// Where a message comes from or goes to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Coordinator(LifeNumber),
    Participant(ParticipantName),
    Log,
    Clients,
}

/// One run of a participant's process. Several may run over one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ProcessNumber(pub(crate) u32);

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
    /// Somebody who makes up ids, and hears nothing of what is answered.
    Stranger,
    /// An inquiry.
    Participant(ParticipantName),
    /// A participant that enlists its branch.
    Enlisting(ParticipantName, ProcessNumber, TransactionId, Session),
}

/// Whether a client waits for the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    Decided,
    None,
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
    Commit(TransactionId, Wait),
    Abort(TransactionId, Wait),
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
    /// Until the deadline, by the caller's clock.
    pub(crate) remaining: Millis,
    /// When the transaction began, by the wall clock of the coordinator that began it.
    pub(crate) begun_at_ms: i64,
    pub(crate) low_water: Option<TransactionId>,
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
        id: TransactionId,
        participant: ParticipantName,
        delivery: Delivery<Reply>,
    },
    /// A coordinator asks a participant whether it holds a prepared branch.
    Peek {
        life: LifeNumber,
        participant: ParticipantName,
        id: TransactionId,
    },
    Peeked {
        life: LifeNumber,
        participant: ParticipantName,
        id: TransactionId,
        prepared: bool,
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
        life: LifeNumber,
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
        process: ProcessNumber,
        id: TransactionId,
    },
    SessionDeadline {
        participant: ParticipantName,
        process: ProcessNumber,
        id: TransactionId,
        session: Session,
    },
    InquiryTick {
        participant: ParticipantName,
        process: ProcessNumber,
    },
    /// Somebody waits for a key, and looks again.
    KeyWait {
        participant: ParticipantName,
        process: ProcessNumber,
        waiter: u64,
    },
    CutHeals(Place, Place),
    ClientActs {
        client: usize,
        question: u64,
    },
    RestartCoordinator(Node),
    /// Every coordinator that adopts looks for nodes that nobody runs.
    LookForNodes,
    /// Somebody asks about an id that may be made up.
    Guess,
    /// The next client of a world that goes on and on.
    ClientComes,
    /// What is stored and in memory is counted.
    Measure,
    /// Whether anything of a transaction is left, long after it was begun.
    IsItOver {
        id: TransactionId,
        begun_at: Millis,
    },
    ForgetThatItWas(TransactionId),
    /// The database comes back, and with it the processes.
    RestartParticipant(ParticipantName),
    RestartProcess(ParticipantName),
    /// An operator gives a log that went back a new identity.
    NewIdentity,
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

impl Happening {
    /// From where to where it goes, if it goes anywhere.
    fn link(&self) -> Option<(Place, Place)> {
        let coordinator = |life: &LifeNumber| Place::Coordinator(*life);
        let asker = |asker: &Asker| match &asker.who {
            Who::Client(_) | Who::Stranger => Place::Clients,
            Who::Participant(name) | Who::Enlisting(name, ..) => Place::Participant(name.clone()),
        };
        let participant = |name: &ParticipantName| Place::Participant(name.clone());
        Some(match self {
            Self::CallArrives(call) => (coordinator(&call.life), participant(&call.participant)),
            Self::CallEnds {
                life,
                participant: from,
                ..
            } => (participant(from), coordinator(life)),
            Self::Asked {
                life, asker: from, ..
            } => (asker(from), coordinator(life)),
            Self::Answered {
                life, asker: to, ..
            } => (coordinator(life), asker(to)),
            Self::Peek {
                life,
                participant: to,
                ..
            } => (coordinator(life), participant(to)),
            Self::Peeked {
                life,
                participant: from,
                ..
            } => (participant(from), coordinator(life)),
            Self::LogAsked { life, .. } => (coordinator(life), Place::Log),
            Self::LogAnswered { life, .. } => (Place::Log, coordinator(life)),
            Self::WorkArrives(work) => (Place::Clients, participant(&work.participant)),
            Self::CallLater { .. }
            | Self::LogFlush { .. }
            | Self::LogForgets
            | Self::Deadline { .. }
            | Self::LonelyAppend(_)
            | Self::WriteAgain(_)
            | Self::Poll(_)
            | Self::OpenAgain(_)
            | Self::Flush { .. }
            | Self::WorkDone { .. }
            | Self::EnlistSilence { .. }
            | Self::SessionDeadline { .. }
            | Self::InquiryTick { .. }
            | Self::KeyWait { .. }
            | Self::CutHeals(..)
            | Self::ClientActs { .. }
            | Self::RestartCoordinator(_)
            | Self::LookForNodes
            | Self::Guess
            | Self::ClientComes
            | Self::Measure
            | Self::IsItOver { .. }
            | Self::ForgetThatItWas(_)
            | Self::RestartParticipant(_)
            | Self::RestartProcess(_)
            | Self::NewIdentity
            | Self::Fault
            | Self::Heal => return None,
        })
    }

    /// The words by which a script finds it; none for timers.
    fn label(&self, name: impl Fn(TransactionId) -> String) -> Vec<String> {
        let words: Vec<String> = match self {
            Self::CallArrives(call) => vec![
                "call".into(),
                call.request.kind().as_str().into(),
                call.participant.to_string(),
                name(call.id),
                call.life.to_string(),
            ],
            Self::CallEnds {
                life,
                id,
                participant,
                delivery,
                ..
            } => {
                let kind = match delivery {
                    Delivery::Answered(Reply::Vote(_)) => "vote",
                    Delivery::Answered(Reply::Committed | Reply::Aborted) => "ack",
                    Delivery::Answered(Reply::VoteLost | Reply::OutcomeDiffers) => "protest",
                    Delivery::Refused(_) | Delivery::Unknown(_) => "failure",
                };
                vec![
                    "reply".into(),
                    kind.into(),
                    participant.to_string(),
                    name(*id),
                    life.to_string(),
                ]
            }
            Self::Asked {
                life,
                asker,
                question,
            } => vec![
                "ask".into(),
                words::question(question).into(),
                words::who(asker),
                life.to_string(),
            ],
            Self::Answered { life, asker, .. } => {
                vec!["answer".into(), words::who(asker), life.to_string()]
            }
            Self::LogAsked { life, request, .. } => {
                let mut label = vec!["log".into(), life.to_string()];
                label.extend(request.words(name));
                label
            }
            Self::LogAnswered { life, answer, .. } => {
                let mut label = vec!["log".into(), life.to_string()];
                label.extend(answer.words(name));
                label
            }
            Self::Flush { participant, .. } => vec!["flush".into(), participant.to_string()],
            Self::LogFlush { .. } => vec!["flush".into(), "log".into()],
            Self::WorkArrives(work) => {
                vec!["work".into(), work.participant.to_string(), name(work.id)]
            }
            Self::WorkDone { asker, .. } => vec!["worked".into(), words::who(asker)],
            Self::Peek {
                life,
                participant,
                id,
            }
            | Self::Peeked {
                life,
                participant,
                id,
                ..
            } => {
                vec![
                    "peek".into(),
                    participant.to_string(),
                    name(*id),
                    life.to_string(),
                ]
            }
            Self::CallLater { .. }
            | Self::LogForgets
            | Self::Deadline { .. }
            | Self::LonelyAppend(_)
            | Self::WriteAgain(_)
            | Self::Poll(_)
            | Self::OpenAgain(_)
            | Self::EnlistSilence { .. }
            | Self::SessionDeadline { .. }
            | Self::InquiryTick { .. }
            | Self::KeyWait { .. }
            | Self::CutHeals(..)
            | Self::ClientActs { .. }
            | Self::RestartCoordinator(_)
            | Self::LookForNodes
            | Self::Guess
            | Self::ClientComes
            | Self::Measure
            | Self::IsItOver { .. }
            | Self::ForgetThatItWas(_)
            | Self::RestartParticipant(_)
            | Self::RestartProcess(_)
            | Self::NewIdentity
            | Self::Fault
            | Self::Heal => Vec::new(),
        };
        words
    }
}

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
