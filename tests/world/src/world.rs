//! The world: nodes, and the one queue of everything that will happen, which is the clock.

mod ended;
mod faults;
mod long;
mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    client::{Client, Plan},
    coordinator::Coordinator,
    director::Director,
    log::Log,
    participant::Participant,
    rng::Rng,
    surroundings::{
        Batching, Counters, Crashed, Happening, LifeNumber, Millis, Surroundings, Temper, Who,
        trace,
    },
};
use unanimous_protocol::{
    id::{Node, ParticipantName},
    operations::BodyDigest,
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

pub use self::long::{Maxima, run_long};

pub(crate) struct World {
    pub(crate) s: Surroundings,
    pub(crate) log: Log,
    /// A copy of the log, and the lives that write to it; only in scripts.
    pub(crate) copy: Option<Log>,
    pub(crate) on_the_copy: BTreeSet<LifeNumber>,
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
    clients: BTreeMap<usize, Client>,
    /// Of a world that goes on and on.
    long: Option<long::Long>,
}

/// Runs the world of a seed, without an event log; one world in eight is calm.
///
/// # Errors
/// The first rule that was broken.
pub fn run(seed: u64, size: Size, batching: Batching) -> Result<Counters, Box<Failure>> {
    run_world(seed, size, batching, false).0
}

/// Runs the world of a seed with its full event log.
pub fn replay(
    seed: u64,
    size: Size,
    batching: Batching,
) -> (Result<Counters, Box<Failure>>, Vec<String>) {
    run_world(seed, size, batching, true)
}

fn run_world(
    seed: u64,
    size: Size,
    batching: Batching,
    trace: bool,
) -> (Result<Counters, Box<Failure>>, Vec<String>) {
    let mut rng = Rng::new(seed);
    let mut temper = Temper::of(&mut rng, seed % 8 == 7);
    if size == Size::Large {
        temper.clients = rng.between(230, 250);
        temper.chaos_until *= 3;
        // As many crashes for each transaction as in a small one.
        temper.fault_every /= 3;
    }
    let mut world = World::new(rng, temper, batching, trace);
    let result = end_of(&mut world, seed, World::run);
    (result, world.s.trace.take().unwrap_or_default())
}

fn end_of(
    world: &mut World,
    seed: u64,
    run: impl FnOnce(&mut World) -> Result<(), String>,
) -> Result<Counters, Box<Failure>> {
    // A machine's assert is a finding as well, and has a seed. (A release build aborts.)
    let ended = catch_unwind(AssertUnwindSafe(|| run(world)))
        .unwrap_or_else(|_| Err("something panicked, see above".to_owned()));
    match ended {
        Ok(()) => Ok(std::mem::take(&mut world.s.counters)),
        Err(what) => Err(Box::new(Failure {
            seed,
            what: world.s.with_short_names(&what),
            events: world.events,
        })),
    }
}

impl World {
    fn new(rng: Rng, temper: Temper, batching: Batching, trace: bool) -> Self {
        let mut s = Surroundings::new(rng, temper, trace);
        s.counters.add("worlds");
        trace!(s, "{:?}", s.temper.clone());
        let mut names: Vec<ParticipantName> = ["east", "west", "north"]
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        names.truncate(s.rng.between(2, 3) as usize);
        s.batches.draw(&names, batching);
        let (shared, bundled) = (&s.batches.shared, &s.batches.bundled);
        if !shared.is_empty() || !bundled.is_empty() {
            let drawn = format!(
                "{shared:?} share local transactions, calls to {bundled:?} travel together"
            );
            s.counters.add("worlds with batches");
            trace!(s, "{drawn}");
        }
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
            copy: None,
            on_the_copy: BTreeSet::new(),
            coordinators: BTreeMap::new(),
            lives: 0,
            nodes,
            away_until: BTreeMap::new(),
            seen: BTreeMap::new(),
            participants,
            renamed: BTreeMap::new(),
            events: 0,
            clients: BTreeMap::new(),
            long: None,
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
            let mut plan = plan::plan(names, index, s);
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
            self.clients.insert(index, Client::new(index, plan));
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
            copy: None,
            on_the_copy: BTreeSet::new(),
            coordinators: BTreeMap::new(),
            lives: 0,
            nodes: vec![Node(1)],
            away_until: BTreeMap::new(),
            seen: BTreeMap::new(),
            participants,
            renamed: BTreeMap::new(),
            events: 0,
            clients: BTreeMap::new(),
            long: None,
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

    pub(crate) fn start_coordinator(&mut self, node: Node) -> LifeNumber {
        if !self.nodes.contains(&node) {
            self.nodes.push(node);
        }
        self.lives += 1;
        let number = LifeNumber(self.lives);
        let coordinator = Coordinator::start(number, node, &mut self.s);
        self.coordinators.insert(number, coordinator);
        self.s.listening.push((node, number));
        number
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

    fn at_client(&mut self, index: usize, act: impl FnOnce(&mut Client, &mut Surroundings)) {
        if let Some(client) = self.clients.get_mut(&index) {
            act(client, &mut self.s);
            if self.long.is_some() && client.has_ended() {
                self.clients.remove(&index);
            }
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
            Happening::CallsArrive(calls) => {
                if let Some(name) = calls.first().map(|call| call.participant.clone()) {
                    self.at_participant(&name, |p, s| p.called_together(calls, s));
                }
            }
            Happening::CallsLeave { life, participant } => {
                self.at_life(life, &happening, |c, s| {
                    c.calls_leave(&participant, s);
                    Ok(())
                });
            }
            Happening::TogetherRun {
                participant,
                process,
            } => self.at_participant(&participant, |p, s| p.together_run(process, s)),
            Happening::AloneRun {
                participant,
                process,
                message,
            } => self.at_participant(&participant, |p, s| p.alone_run(process, message, s)),
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
                    self.at_client(client, |c, s| c.answered(asker.question, &said, s));
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
            } => {
                let copy = self
                    .copy
                    .as_mut()
                    .filter(|_| self.on_the_copy.contains(&life));
                let log = copy.unwrap_or(&mut self.log);
                log.asked(life, node, number, &request, fault, &mut self.s);
            }
            Happening::LogAnswered {
                life,
                number,
                answer,
            } => self.at_life(life, &happening, |c, s| c.log_answered(number, answer, s)),
            Happening::LogFlush {
                incarnation,
                position,
            } => {
                for log in std::iter::once(&mut self.log).chain(&mut self.copy) {
                    log.flush(incarnation, position, &mut self.s);
                }
            }
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
                if let Who::Client(client) = asker.who {
                    self.at_client(client, |c, s| c.work_done(asker.question, done, s));
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
                self.at_client(client, |c, s| c.acts(question, s));
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
            Happening::ClientComes => self.client_comes(),
            Happening::Measure => self.measure(),
            Happening::IsItOver { id, begun_at } => self.is_it_over(id, begun_at),
            Happening::ForgetThatItWas(id) => self.s.checker.forget_that_it_was(id),
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
}
