//! The world: nodes, and the one queue of everything that will happen, which is the clock.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use unanimous_protocol::{
    branch::State,
    id::{Epoch, LogIdentity, Node, ParticipantName, Prefix, Sequence, TransactionId},
    operations::{BodyDigest, Operations},
    record::{AbortCode, IdempotencyKey, Part, Verdict},
};

use crate::{
    client::{Client, End, Plan},
    coordinator::Coordinator,
    director::Director,
    log::Log,
    participant::{ACCOUNTS, BALANCE, Operation, Participant},
    rng::Rng,
    surroundings::{
        Asker, Counters, Crashed, Happening, LifeNumber, Millis, Place, Question, Surroundings,
        Temper, Who, trace,
    },
};

/// How long a healed world may take to end everything: longer than the latest duplicate travels.
pub(crate) const HEALING: Millis = 240_000;

/// A rule that a world has seen broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Replays it.
    pub seed: u64,
    /// What was broken.
    pub what: String,
    /// How many events had happened by then.
    pub events: u64,
}

/// How many clients a world has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 10 to 40: most rules break in a small world, and soon.
    Small,
    /// Enough for 200 transactions and more.
    Large,
}

pub(crate) struct World {
    pub(crate) s: Surroundings,
    pub(crate) log: Log,
    pub(crate) coordinators: BTreeMap<LifeNumber, Coordinator>,
    lives: u32,
    nodes: Vec<Node>,
    /// Nodes that nobody runs and nobody starts before this.
    away_until: BTreeMap<Node, Millis>,
    /// When each node was last seen running.
    seen: BTreeMap<Node, Millis>,
    /// By the name they began with.
    pub(crate) participants: BTreeMap<ParticipantName, Participant>,
    /// Present names, where they are others, to the first.
    pub(crate) renamed: BTreeMap<ParticipantName, ParticipantName>,
    events: u64,
    clients: Vec<Client>,
}

/// Runs the world of a seed, without an event log; one world in eight is calm.
///
/// # Errors
/// The first rule that was broken.
pub fn run(seed: u64, size: Size) -> Result<Counters, Box<Failure>> {
    run_world(seed, size, false).0
}

/// Runs the world of a seed with its full event log.
pub fn replay(seed: u64, size: Size) -> (Result<Counters, Box<Failure>>, Vec<String>) {
    run_world(seed, size, true)
}

fn run_world(seed: u64, size: Size, trace: bool) -> (Result<Counters, Box<Failure>>, Vec<String>) {
    let mut rng = Rng::new(seed);
    let mut temper = Temper::of(&mut rng, seed % 8 == 7);
    if size == Size::Large {
        temper.clients = rng.between(230, 250);
        temper.chaos_until *= 3;
        // As many crashes for each transaction as in a small one.
        temper.fault_every /= 3;
    }
    let mut world = World::new(rng, temper, trace);
    // A machine's assert is a finding as well, and has a seed. (A release build aborts.)
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()))
        .unwrap_or_else(|_| Err("something panicked, see above".to_owned()));
    let result = match ended {
        Ok(()) => Ok(std::mem::take(&mut world.s.counters)),
        Err(what) => Err(Box::new(Failure {
            seed,
            what: world.s.with_short_names(&what),
            events: world.events,
        })),
    };
    (result, world.s.trace.take().unwrap_or_default())
}

impl World {
    fn new(rng: Rng, temper: Temper, trace: bool) -> Self {
        let mut s = Surroundings::new(rng, temper, trace);
        s.counters.add("worlds");
        trace!(s, "{:?}", s.temper.clone());
        let mut names: Vec<ParticipantName> = ["east", "west", "north"]
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        names.truncate(s.rng.between(2, 3) as usize);
        let participants = names
            .iter()
            .map(|name| {
                let processes = if s.temper.calm {
                    1
                } else {
                    s.rng.between(1, 2)
                };
                let participant = Participant::new(name.clone(), processes as usize, &mut s);
                (name.clone(), participant)
            })
            .collect();
        s.participants = names.len();
        let count = s.rng.pick(&[1, 1, 2, 2, 3]).copied().unwrap_or(1);
        let nodes: Vec<Node> = (1..=count).map(Node).collect();
        let mut world = Self {
            s,
            log: Log::new(),
            coordinators: BTreeMap::new(),
            lives: 0,
            nodes,
            away_until: BTreeMap::new(),
            seen: BTreeMap::new(),
            participants,
            renamed: BTreeMap::new(),
            events: 0,
            clients: Vec::new(),
        };
        for node in world.nodes.clone() {
            world.start_coordinator(node);
        }
        world.plan_clients(&names);
        let until = world.s.temper.chaos_until;
        if !world.s.temper.calm {
            world.s.after(1_000, Happening::Fault);
            world.s.after(500, Happening::Guess);
        }
        world.s.after(until, Happening::Heal);
        world.s.after(1_000, Happening::LogForgets);
        if world.s.temper.adopts {
            world.s.after(2_000, Happening::LookForNodes);
        }
        world
    }

    fn plan_clients(&mut self, names: &[ParticipantName]) {
        let s = &mut self.s;
        let mut last_keyed: Option<(Plan, Millis)> = None;
        for index in 0..s.temper.clients as usize {
            let mut start = s.rng.between(100, s.temper.chaos_until);
            let mut plan = plan(names, index, s);
            if plan.key.is_some() {
                match last_keyed.take() {
                    // Two clients with one key, at the same time or long after one another.
                    Some((twin, at)) if s.rng.chance(6_000) => {
                        plan = twin;
                        if s.rng.chance(1_000) {
                            plan.request = BodyDigest([0xff; 32]);
                        }
                        start = at + s.rng.pick(&[0, 5, 50, 3_000, 20_000]).copied().unwrap_or(0);
                    }
                    _ => last_keyed = Some((plan.clone(), start)),
                }
            }
            self.clients.push(Client::new(index, plan));
            s.after(
                start,
                Happening::ClientActs {
                    client: index,
                    question: 0,
                },
            );
        }
    }

    /// A world in which nothing happens by chance, and nothing by itself but timers.
    pub(crate) fn of_script() -> Self {
        let mut rng = Rng::Steady;
        let temper = Temper::of(&mut rng, true);
        let mut s = Surroundings::new(rng, temper, true);
        s.director = Some(Director::default());
        let names = ["east", "west", "north"];
        let participants: BTreeMap<ParticipantName, Participant> = names
            .iter()
            .filter_map(|name| name.parse().ok())
            .map(|name: ParticipantName| (name.clone(), Participant::new(name, 1, &mut s)))
            .collect();
        s.participants = participants.len();
        s.after(1_000, Happening::LogForgets);
        s.trace = Some(Vec::new());
        Self {
            s,
            log: Log::new(),
            coordinators: BTreeMap::new(),
            lives: 0,
            nodes: vec![Node(1)],
            away_until: BTreeMap::new(),
            seen: BTreeMap::new(),
            participants,
            renamed: BTreeMap::new(),
            events: 0,
            clients: Vec::new(),
        }
    }

    /// Lets `span` pass.
    pub(crate) fn pass(&mut self, span: Millis) -> Result<(), String> {
        let end = self.s.now + span;
        while self.s.next_at().is_some_and(|at| at <= end) {
            let Some(happening) = self.s.next() else {
                break;
            };
            self.happens(happening);
            if let Some(what) = self.s.checker.violation() {
                return Err(what.to_owned());
            }
        }
        self.s.now = end;
        Ok(())
    }

    pub(crate) fn start_coordinator(&mut self, node: Node) {
        if !self.nodes.contains(&node) {
            self.nodes.push(node);
        }
        self.lives += 1;
        let number = LifeNumber(self.lives);
        let coordinator = Coordinator::start(number, node, &mut self.s);
        self.coordinators.insert(number, coordinator);
        self.s.listening.push((node, number));
    }

    fn end_coordinator(&mut self, number: LifeNumber) {
        let Some(coordinator) = self.coordinators.remove(&number) else {
            return;
        };
        self.s.listening.retain(|(_, life)| *life != number);
        if self.s.director.is_some() {
            return;
        }
        let delay = self.s.rng.between(10, 5_000);
        self.s
            .after(delay, Happening::RestartCoordinator(coordinator.node()));
    }

    pub(crate) fn crash_coordinator(&mut self, number: LifeNumber) {
        self.s.counters.add("coordinator crashes");
        trace!(self.s, "{number}: crashes");
        self.end_coordinator(number);
    }

    fn run(&mut self) -> Result<(), String> {
        let end = self.s.temper.chaos_until + HEALING;
        while self.s.next_at().is_some_and(|at| at <= end) {
            let Some(happening) = self.s.next() else {
                break;
            };
            self.events += 1;
            self.happens(happening);
            if let Some(what) = self.s.checker.violation() {
                return Err(what.to_owned());
            }
            if self.events > 2_000_000 {
                return Err("the world does not come to rest".to_owned());
            }
        }
        self.s.counters.raise("events", self.events);
        self.all_has_ended()
    }

    /// Gives something to a coordinator's process, where it still runs.
    fn at_life(
        &mut self,
        number: LifeNumber,
        happening: &Happening,
        act: impl FnOnce(&mut Coordinator, &mut Surroundings) -> Result<(), Crashed>,
    ) {
        let Some(coordinator) = self.coordinators.get_mut(&number) else {
            return;
        };
        if coordinator.frozen_until > self.s.now {
            let delay = coordinator.frozen_until - self.s.now;
            return self.s.after(delay, happening.clone());
        }
        match act(coordinator, &mut self.s) {
            Err(Crashed) => self.crash_coordinator(number),
            Ok(()) if coordinator.has_ended() => self.end_coordinator(number),
            Ok(()) => {}
        }
    }

    fn at_participant(
        &mut self,
        name: &ParticipantName,
        act: impl FnOnce(&mut Participant, &mut Surroundings) -> Result<(), Crashed>,
    ) {
        let name = self.renamed.get(name).unwrap_or(name);
        let Some(participant) = self.participants.get_mut(name) else {
            return;
        };
        if let Err(Crashed) = act(participant, &mut self.s) {
            participant.crashed(&mut self.s);
        }
    }

    pub(crate) fn happens(&mut self, happening: Happening) {
        match happening.clone() {
            Happening::CallArrives(call) => {
                let name = call.participant.clone();
                self.at_participant(&name, |p, s| p.called(call, s));
            }
            Happening::CallEnds {
                life,
                number,
                delivery,
                ..
            } => self.at_life(life, &happening, |c, s| c.call_ended(number, delivery, s)),
            Happening::Peek {
                life,
                participant,
                id,
            } => self.at_participant(&participant, |p, s| {
                p.peek(life, id, s);
                Ok(())
            }),
            Happening::Peeked {
                life,
                participant,
                id,
                prepared,
            } => self.at_life(life, &happening, |c, s| {
                c.peeked(id, &participant, prepared, s)
            }),
            Happening::CallLater {
                life,
                id,
                participant,
                request,
            } => self.at_life(life, &happening, |c, s| {
                c.call_later(id, participant, request, s);
                Ok(())
            }),
            Happening::Asked {
                life,
                asker,
                question,
            } => self.at_life(life, &happening, |c, s| c.asked(asker, question, s)),
            Happening::Answered { asker, said, .. } => match asker.who {
                Who::Client(client) => {
                    if let Some(client) = self.clients.get_mut(client) {
                        client.answered(asker.question, &said, &mut self.s);
                    }
                }
                Who::Stranger => {}
                Who::Participant(name) => {
                    if let crate::surroundings::Said::Inform(id, _, inform) = said {
                        self.at_participant(&name, |p, s| p.informed(id, inform, s));
                    }
                }
                Who::Enlisting(name, process, id, session) => self.at_participant(&name, |p, s| {
                    p.enlisted(process, id, &session, &said, s);
                    Ok(())
                }),
            },
            Happening::LogAsked {
                life,
                node,
                number,
                request,
                fault,
            } => self
                .log
                .asked(life, node, number, &request, fault, &mut self.s),
            Happening::LogAnswered {
                life,
                number,
                answer,
            } => self.at_life(life, &happening, |c, s| c.log_answered(number, answer, s)),
            Happening::LogFlush {
                incarnation,
                position,
            } => self.log.flush(incarnation, position, &mut self.s),
            Happening::LogForgets => {
                if !self.log.is_down(&self.s) {
                    self.log.forget(&mut self.s);
                }
                self.s.after(1_000, Happening::LogForgets);
            }
            Happening::Deadline { life, id } => {
                self.at_life(life, &happening, |c, s| c.deadline(id, s));
            }
            Happening::LonelyAppend(life) => self.at_life(life, &happening, |c, s| {
                c.lonely_append(s);
                Ok(())
            }),
            Happening::WriteAgain(life) => self.at_life(life, &happening, |c, s| {
                c.write(s);
                Ok(())
            }),
            Happening::Poll(life) => self.at_life(life, &happening, |c, s| {
                c.poll(s);
                Ok(())
            }),
            Happening::OpenAgain(life) => self.at_life(life, &happening, |c, s| {
                c.open_again(s);
                Ok(())
            }),
            Happening::Flush {
                participant,
                incarnation,
                position,
            } => self.at_participant(&participant, |p, s| p.flush(incarnation, position, s)),
            Happening::WorkArrives(work) => {
                let name = work.participant.clone();
                self.at_participant(&name, |p, s| p.work(work, s));
            }
            Happening::WorkDone { asker, done } => {
                if let Who::Client(client) = asker.who
                    && let Some(client) = self.clients.get_mut(client)
                {
                    client.work_done(asker.question, done, &mut self.s);
                }
            }
            Happening::EnlistSilence {
                participant,
                process,
                id,
            } => self.at_participant(&participant, |p, s| {
                p.enlist_silence(process, id, s);
                Ok(())
            }),
            Happening::SessionDeadline {
                participant,
                process,
                id,
                session,
            } => self.at_participant(&participant, |p, s| {
                p.session_deadline(process, id, &session, s)
            }),
            Happening::InquiryTick {
                participant,
                process,
            } => self.at_participant(&participant, |p, s| {
                p.inquire(process, s);
                Ok(())
            }),
            Happening::KeyWait {
                participant,
                process,
                waiter,
            } => self.at_participant(&participant, |p, s| p.look_again(process, waiter, s)),
            Happening::CutHeals(from, to) => self.s.mend(from, to),
            Happening::NewIdentity => self.log.new_identity(&mut self.s),
            Happening::RestartProcess(name) => {
                if let Some(participant) = self.participants.get_mut(&name) {
                    participant.start_process(&mut self.s);
                }
            }
            Happening::ClientActs { client, question } => {
                if let Some(client) = self.clients.get_mut(client) {
                    client.acts(question, &mut self.s);
                }
            }
            Happening::RestartCoordinator(node) => {
                let away_until = self.away_until.get(&node).copied().unwrap_or_default();
                if away_until > self.s.now {
                    let delay = away_until - self.s.now;
                    self.s.after(delay, happening);
                } else if !self.is_run(node) {
                    self.start_coordinator(node);
                }
            }
            Happening::Guess => self.guess(),
            Happening::LookForNodes => {
                self.look_for_nodes();
                self.s.after(2_000, Happening::LookForNodes);
            }
            Happening::RestartParticipant(name) => {
                if let Some(participant) = self.participants.get_mut(&name) {
                    participant.start(&mut self.s);
                }
            }
            Happening::Fault => self.fault(),
            Happening::Heal => self.heal(),
        }
    }

    /// Anybody can ask about any id, as a client or in a participant's name; no answer may say more than is known.
    fn guess(&mut self) {
        if !self.s.chaos {
            return;
        }
        let recent = self.s.recent.make_contiguous().to_vec();
        if let Some(&id) = self.s.rng.pick(&recent) {
            let s = &mut self.s;
            s.counters.add("guesses");
            let prefix = id.prefix();
            let some_id = |prefix, epoch: u64, sequence: u64| {
                let epoch = u32::try_from(epoch).ok().and_then(Epoch::new)?;
                Some(TransactionId::new(prefix, epoch, Sequence::new(sequence)?))
            };
            let (epoch, sequence) = (u64::from(id.epoch().number()), id.sequence().number());
            let guessed = match s.rng.below(8) {
                // The next ones to be issued, perhaps.
                0 | 1 => some_id(prefix, epoch, sequence + s.rng.between(1, 3)),
                2 => some_id(prefix, epoch + s.rng.between(1, 3), s.rng.below(1 << 20)),
                3 => {
                    let (identity, node) = (prefix.identity, Node(9));
                    some_id(Prefix { identity, node }, 1, sequence)
                }
                4 => {
                    let identity = LogIdentity(0xf0e1);
                    some_id(Prefix { identity, ..prefix }, epoch, sequence)
                }
                _ => Some(id),
            };
            let names: Vec<ParticipantName> = self.participants.keys().cloned().collect();
            let nobody: Option<ParticipantName> = "south".parse().ok();
            let name = self.s.rng.pick(&names).cloned();
            let name = nobody.filter(|_| self.s.rng.chance(2_000)).or(name);
            if let (Some(id), Some(participant)) = (guessed, name) {
                let (who, question) = if self.s.rng.chance(5_000) {
                    let who = Who::Participant(participant.clone());
                    (who, Question::Outcome { id, participant })
                } else {
                    (Who::Stranger, Question::Get(id))
                };
                let asker = Asker { who, question: 0 };
                self.s.ask(None, asker, question);
            }
        }
        let delay = self.s.rng.between(50, 1_000);
        self.s.after(delay, Happening::Guess);
    }

    fn fault(&mut self) {
        if !self.s.chaos {
            return;
        }
        let lives: Vec<LifeNumber> = self.coordinators.keys().copied().collect();
        let names: Vec<ParticipantName> = self.participants.keys().cloned().collect();
        let life = self.s.rng.pick(&lives).copied();
        let name = self.s.rng.pick(&names).cloned();
        if self.s.temper.betrays
            && self.s.rng.chance(2_000)
            && let Some(name) = &name
            && let Some(participant) = self.participants.get_mut(name)
            && participant.is_running()
        {
            self.s.temper.betrays = false;
            let count = self.s.rng.between(1, 4) as usize;
            participant.crash_and_lose_durable_rows(count, &mut self.s);
        }
        if self.s.temper.log_goes_back && self.s.rng.chance(2_000) {
            self.log_goes_back();
        }
        if self.nodes.len() > 1
            && self.s.temper.adopts
            && self.s.rng.chance(1_500)
            && let Some(node) = self.s.rng.pick(&self.nodes).copied()
        {
            self.node_is_given_up(node);
        }
        match (self.s.rng.below(10), life, name) {
            (0, Some(life), _) => self.crash_coordinator(life),
            (1 | 2, Some(life), _) => {
                // A successor starts beside it: it is a zombie until it notices. Often it is frozen meanwhile, and
                // wakes up in the middle of what it did.
                if let Some(coordinator) = self.coordinators.get_mut(&life) {
                    self.s.counters.add("zombies");
                    trace!(self.s, "{life}: gets a successor beside it");
                    if self.s.rng.chance(6_000) {
                        let delay = self.s.rng.between(100, 5_000);
                        coordinator.frozen_until = self.s.now + delay;
                    }
                    let node = coordinator.node();
                    self.start_coordinator(node);
                }
            }
            (3, Some(life), _) => {
                if let Some(coordinator) = self.coordinators.get_mut(&life) {
                    self.s.counters.add("frozen coordinators");
                    let delay = self.s.rng.between(100, 5_000);
                    coordinator.frozen_until = self.s.now + delay;
                }
            }
            (4, _, Some(name)) => {
                if let Some(participant) = self.participants.get_mut(&name) {
                    let unforced = participant.unforced() as u64;
                    let keeping = self.s.rng.between(0, unforced) as usize;
                    participant.crash(keeping, &mut self.s);
                }
            }
            (5, _, Some(name)) => {
                if let Some(participant) = self.participants.get_mut(&name) {
                    participant.lose_a_session(&mut self.s);
                }
            }
            (6, ..) => self.log.crash(&mut self.s),
            (7, ..) => {
                let duration = self.s.rng.between(100, 6_000);
                self.log.outage(duration, &mut self.s);
            }
            (8, _, Some(name)) => {
                if let Some(participant) = self.participants.get_mut(&name) {
                    participant.crash_any_process(&mut self.s);
                }
            }
            (9, Some(life), Some(name)) => {
                let (coordinator, participant) =
                    (Place::Coordinator(life), Place::Participant(name));
                let (from, to) = match self.s.rng.below(6) {
                    0 | 1 => (coordinator, participant),
                    2 | 3 => (participant, coordinator),
                    4 => (coordinator, Place::Log),
                    _ => (Place::Log, coordinator),
                };
                self.s.counters.add("links cut in one direction");
                trace!(self.s, "the link {from:?} → {to:?} is cut");
                let delay = self.s.rng.between(500, 15_000);
                self.s
                    .after(delay, Happening::CutHeals(from.clone(), to.clone()));
                self.s.cut(from, to);
            }
            _ => {}
        }
        let most = self.s.temper.fault_every;
        let delay = self.s.rng.between(most / 10, most);
        self.s.after(delay, Happening::Fault);
    }

    fn is_run(&self, node: Node) -> bool {
        self.s.listening.iter().any(|(of, _)| *of == node)
    }

    /// What an adopter goes by: a node that was not seen for a while. It may be wrong, and does no harm then.
    fn look_for_nodes(&mut self) {
        let lives: Vec<LifeNumber> = self.coordinators.keys().copied().collect();
        for node in self.nodes.clone() {
            let seen = self.seen.get(&node).copied().unwrap_or_default();
            // Its owner marks it, and so does whoever has adopted it.
            if self.is_run(node) || self.coordinators.values().any(|life| life.runs(node)) {
                self.seen.insert(node, self.s.now);
            } else if self.s.now - seen >= self.s.temper.unseen_for
                && let Some(&life) = self.s.rng.pick(&lives)
            {
                self.adopt(life, node);
            }
        }
    }

    pub(crate) fn adopt(&mut self, life: LifeNumber, node: Node) {
        if let Some(coordinator) = self.coordinators.get_mut(&life)
            && coordinator.frozen_until <= self.s.now
        {
            coordinator.adopt(node, &mut self.s);
        }
    }

    /// Its coordinators die and stay away for long, or run on (somebody adopts by force); and somebody adopts it.
    fn node_is_given_up(&mut self, node: Node) {
        let lives = self.coordinators.keys().copied();
        let is_theirs = |life: &LifeNumber| self.coordinators[life].node() == node;
        let (theirs, others): (Vec<_>, Vec<_>) = lives.partition(is_theirs);
        let is_away = self
            .away_until
            .get(&node)
            .is_some_and(|at| *at > self.s.now);
        if !is_away && self.s.rng.chance(6_000) {
            let away = self.s.rng.between(2_000, 25_000);
            trace!(self.s, "node {node} is away for {away} ms");
            self.away_until.insert(node, self.s.now + away);
            for life in theirs {
                self.crash_coordinator(life);
            }
        }
        if self.s.rng.chance(5_000)
            && let Some(&life) = self.s.rng.pick(&others)
        {
            self.s.counters.add("nodes adopted by force");
            self.adopt(life, node);
        }
    }

    /// The log loses what it promised to keep, where that can be found out at all: one life must remember more than
    /// the log does, and be the only one of its node (docs/PROOF.md).
    fn log_goes_back(&mut self) {
        let only = match self.coordinators.len() {
            1 => self.coordinators.values().next(),
            _ => None,
        };
        // A zombie that is left alone serves as well, by what it knows; the log knows better.
        let is_newest = |life: &Coordinator| life.is_serving() && self.log.is_newest(life.writer());
        if self.nodes.len() == 1 && self.log.may_go_back() && only.is_some_and(is_newest) {
            self.s.temper.log_goes_back = false;
            // A restore ends the connections of everybody who wrote before: nothing of a former life is on its way.
            let lives: Vec<LifeNumber> = self.coordinators.keys().copied().collect();
            self.s.cut_off_from_the_log(&lives);
            let writes = self.s.rng.between(1, 8) as usize;
            self.log.go_back(writes, &mut self.s);
            let delay = self.s.rng.between(100, 20_000);
            self.s.after(delay, Happening::NewIdentity);
        }
    }

    pub(crate) fn heal(&mut self) {
        trace!(self.s, "the world is healed");
        self.s.chaos = false;
        self.s.mend_all();
        self.log.heal();
        self.log.new_identity(&mut self.s);
        for coordinator in self.coordinators.values_mut() {
            coordinator.frozen_until = 0;
        }
        // One node may stay away for good, where another one adopts it.
        let away = |node: &Node| self.away_until.get(node).is_some_and(|at| *at > self.s.now);
        let adopted = self.nodes.len() > 1 && self.s.temper.adopts;
        let for_good = self
            .nodes
            .iter()
            .copied()
            .find(|node| adopted && away(node));
        if let Some(node) = for_good {
            self.s.counters.add("nodes that stay away for good");
            self.away_until.insert(node, Millis::MAX);
        }
        for node in self.nodes.clone() {
            if for_good != Some(node) && !self.is_run(node) {
                self.start_coordinator(node);
            }
        }
        for participant in self.participants.values_mut() {
            participant.start(&mut self.s);
        }
    }

    /// Storage is bounded: once all is quiet no row is below the mark but those whose outcome may never be known. In a
    /// script rows stay as they are.
    fn all_can_be_pruned(&mut self) -> Result<(), String> {
        if self.s.director.is_some() {
            return Ok(());
        }
        let marks = self
            .coordinators
            .values()
            .filter_map(Coordinator::low_water);
        let marks: Vec<_> = marks.collect();
        for participant in self.participants.values_mut() {
            for mark in participant.marks().iter().chain(&marks) {
                // Nothing crashes any more.
                participant.prune(*mark, &mut self.s).ok();
            }
        }
        for (name, participant) in &self.participants {
            for id in participant.rows_below_the_mark() {
                if !self.may_never_be_known(id) {
                    return Err(format!("{name} keeps its row of {id} for ever"));
                }
            }
        }
        Ok(())
    }

    /// AC5, and what else must hold once all is quiet; AC4 for a calm world.
    pub(crate) fn all_has_ended(&mut self) -> Result<(), String> {
        self.all_can_be_pruned()?;
        let went_back = self.log.ever_went_back();
        for (name, participant) in &self.participants {
            if !participant.is_running() {
                return Err(format!("{name} does not run"));
            }
            for (id, state) in participant.rows() {
                if matches!(state, State::Prepared { .. }) && !self.may_never_be_known(id) {
                    return Err(format!("AC5: {id} is still in doubt at {name}"));
                }
            }
            let (_, held) = participant.money();
            if held != 0 && !went_back {
                return Err(format!("AC5: {name} still holds {held}"));
            }
            for (key, id) in participant.keys() {
                if !self.may_never_be_known(id) {
                    return Err(format!("AC5: {name} still holds key {key} for {id}"));
                }
            }
            if let Some(left) = participant.leftovers() {
                return Err(format!("{name} still holds {left}"));
            }
        }
        let money: u64 = self.participants.values().map(|p| p.money().0).sum();
        let expected = self.participants.len() as u64 * ACCOUNTS * BALANCE;
        // A script's transfers need not add up.
        let adds_up = self.s.director.is_none() && !went_back;
        if money != expected && adds_up && !self.s.checker.anybody_betrayed() {
            return Err(format!("there was {expected} of money, and now {money}"));
        }
        self.nothing_finished_is_kept()?;
        for record in self.log.records() {
            let open = record.decision.verdict == Verdict::Commit
                && !record.decision.is_finished_at_once()
                && record.finished_at.is_none();
            if open && !self.s.checker.waits_for_an_operator(record.header.id) {
                return Err(format!("AC5: {} is unfinished", record.header.id));
            }
        }
        for coordinator in self.coordinators.values() {
            let mut unfinished = coordinator.unfinished();
            unfinished.retain(|id| !self.s.checker.waits_for_an_operator(*id));
            if !unfinished.is_empty() {
                return Err(format!("AC5: a coordinator still holds {unfinished:?}"));
            }
        }
        let waits_in_vain = |client: &Client| {
            let for_ever = |id| self.may_never_be_known(id);
            client.is_asking() && !client.id().is_some_and(for_ever)
        };
        if let Some(at) = self.clients.iter().position(waits_in_vain) {
            return Err(format!(
                "AC5: client {at} never got an answer: {:?}",
                self.clients[at]
            ));
        }
        let owes_ac4 = self.s.temper.calm && self.s.director.is_none();
        let (mut commits, mut aborts, mut without_record) = (0, 0, 0);
        for (id, decision) in self.s.checker.decisions() {
            match decision.map(|decision| &decision.verdict) {
                Some(Verdict::Commit) => commits += 1,
                Some(Verdict::Abort(reason)) => {
                    aborts += 1;
                    let agreed_to_abort = matches!(
                        reason.code,
                        AbortCode::Refused
                            | AbortCode::Requested
                            | AbortCode::Duplicate
                            | AbortCode::Conflict
                    );
                    if owes_ac4 && !agreed_to_abort {
                        return Err(format!("AC4: {id} aborted without a fault: {reason:?}"));
                    }
                }
                None => without_record += 1,
            }
            for (name, participant) in &self.participants {
                let updates = decision.is_some_and(|decision| {
                    decision.verdict == Verdict::Commit
                        && decision.branches.get(name) == Some(&Part::Updates)
                });
                let applied = participant.applied(id);
                let excused = self.s.checker.is_betrayed(id) || self.s.checker.is_lost(id);
                if applied != u32::from(updates) && !excused {
                    return Err(format!("{name} applied {id} {applied} times: {decision:?}"));
                }
            }
        }
        if owes_ac4 && without_record > 0 {
            return Err(format!(
                "AC4: {without_record} transactions without a record"
            ));
        }
        self.s.counters.raise("commits", commits);
        self.s.counters.raise("aborts", aborts);
        self.s
            .counters
            .raise("aborts without a record", without_record);
        if self.s.temper.calm {
            self.s.counters.add("calm worlds");
        }
        Ok(())
    }
}

impl World {
    /// Without a record of it, an id of a former identity may have committed in the part that was lost: whoever asks
    /// is told "pending", until an operator settles it.
    fn may_never_be_known(&self, id: TransactionId) -> bool {
        id.identity() != self.log.identity() && self.log.record(id).is_none()
    }

    /// Storage at the coordinator's end: what is finished is forgotten after the retention. And its memory.
    fn nothing_finished_is_kept(&self) -> Result<(), String> {
        if let Some(record) = self.log.overdue(&self.s) {
            let id = record.header.id;
            return Err(format!("the record of {id} is kept for ever: {record:?}"));
        }
        for (number, coordinator) in &self.coordinators {
            if let Some(left) = coordinator.leftovers() {
                return Err(format!("{number} still holds {left}"));
            }
        }
        Ok(())
    }
}

/// What a client is to do: every shape that a transaction can have.
fn plan(names: &[ParticipantName], index: usize, s: &mut Surroundings) -> Plan {
    let rng = &mut s.rng;
    let mut shuffled = names.to_vec();
    for at in (1..shuffled.len()).rev() {
        shuffled.swap(at, rng.below(at as u64 + 1) as usize);
    }
    let account = |rng: &mut Rng| rng.below(ACCOUNTS);
    let amount = rng.between(1, 40);
    let debit = Operation::Debit {
        account: account(rng),
        amount,
    };
    let credit = Operation::Credit {
        account: account(rng),
        amount,
    };
    let from = account(rng);
    let shuffle = Operation::Shuffle {
        from,
        to: (from + 1) % ACCOUNTS,
        amount,
    };
    let mut work: Vec<(usize, Operation)> = match rng.below(12) {
        0..=4 => vec![(0, debit), (1, credit)],
        5 => vec![(0, shuffle)],
        6 => vec![(0, Operation::Look), (1, Operation::Look)],
        7 => vec![(0, Operation::Look), (1, shuffle)],
        8 => vec![(0, shuffle), (1, shuffle)],
        9 => vec![(0, debit), (1, credit), (1, Operation::Refuse)],
        10 => Vec::new(),
        _ => vec![(0, shuffle), (1, Operation::Look)],
    };
    if !work.is_empty() && rng.chance(4_000) {
        // Shared keys, in any order: waiters, and cycles of them.
        let key = rng.below(3);
        work.insert(0, (0, Operation::Lock { key }));
        work.push((1, Operation::Lock { key: key / 2 }));
    }
    if !work.is_empty() && rng.chance(3_000) {
        // A second piece for the same participant: in interactive use a part of its work can be lost.
        work.push((0, shuffle));
    }
    if let Some(last) = shuffled.len().checked_sub(1)
        && last > 1
        && rng.chance(4_000)
    {
        work.push((
            last,
            if rng.chance(5_000) {
                shuffle
            } else {
                Operation::Look
            },
        ));
    }
    let end = match rng.below(10) {
        0..=5 => End::AtOnce,
        6 | 7 => End::Commit,
        8 => End::Race,
        _ => End::Abort,
    };
    let mut branches: BTreeMap<ParticipantName, Vec<Operation>> = BTreeMap::new();
    let mut interactive = Vec::new();
    let interactive_from = if end == End::AtOnce {
        9
    } else {
        rng.below(3) as usize
    };
    for (at, operation) in work {
        let Some(name) = shuffled.get(at) else {
            continue;
        };
        if at >= interactive_from {
            interactive.push((name.clone(), operation.json()));
        } else {
            branches.entry(name.clone()).or_default().push(operation);
        }
    }
    let branches = branches
        .into_iter()
        .filter_map(|(name, operations)| {
            let list: Vec<String> = operations.into_iter().map(Operation::json).collect();
            let operations = Operations::parse(&format!("[{}]", list.join(","))).ok()?;
            Some((name, operations))
        })
        .collect();
    let keyed = match end {
        End::AtOnce => 6_000,
        End::Commit | End::Race => 3_000,
        End::Abort => 0,
    };
    let key: Option<IdempotencyKey> = if rng.chance(keyed) {
        format!("order-{index}").parse().ok()
    } else {
        None
    };
    let timeout = if s.temper.short_deadlines {
        s.rng.between(50, 4_000)
    } else {
        s.rng.between(20_000, 30_000)
    };
    // Somebody who thinks: longer than what others did meanwhile is kept.
    let pause = if end != End::AtOnce && !s.temper.calm && s.rng.chance(1_500) {
        s.rng.between(5_000, 25_000)
    } else {
        0
    };
    Plan {
        pause,
        key,
        request: BodyDigest([index as u8; 32]),
        branches,
        work: interactive,
        timeout,
        end,
    }
}
