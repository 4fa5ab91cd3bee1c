//! Exhaustive search over the same machines: where the simulation samples, this enumerates.
//!
//! A state holds the real [`Transaction`](unanimous_protocol::coordinator::Transaction)s and
//! [`Life`](unanimous_protocol::life::Life)s, a log, every participant's database, and what is on its way; a step is one
//! message, one write, one crash. The machines decide everything; the shells here only carry out. A search begins
//! with one transaction and runs until it is dry: neither its depth nor the number of states is limited, only how many lives,
//! transactions and crashes there are ([`Configuration`]).
//!
//! **What is enumerated.**
//! - Requests, answers and what inquiries are told are sets that nothing is taken from: each of them arrives now, later,
//!   again and again, behind newer ones, or never. So loss, duplication, delay and reordering have no bound. Calls time out
//!   any number of times, and an answer may still arrive after its call timed out.
//! - A coordinator crashes between any two steps; a crash between two effects of one step is a crash after it whose later
//!   messages are lost. Writes on their way to the log outlive it, and arrive before or after the next epoch is opened. The
//!   next life may begin while the older one runs on as a zombie, and fenced ones notice late or never.
//! - A participant's local transaction is visible at once and durable later; a crash in between loses it, with the answers
//!   that waited and the interactive work in memory. The log's unforced writes are lost by a crash of the log.
//! - Deadlines and clients' aborts come at any moment, also while the decision is on its way. A service refuses, finds
//!   nothing to do, or comes too late, as the configuration allows.
//!
//! **What holds** in every state: the checks in `check`, by the textbook's numbers; that whatever clients could be told is
//! true; that a row which is there bears requests that no coordinator sends (where there is one branch); and that the
//! transaction *can still be finished*: the fixed schedule in `heal` ends with everything decided, told and released. That
//! stands for AC5: whatever happened, once faults stop, it ends. Configurations also name what they must reach, so that a
//! search that misses its point does not pass.
//!
//! **What is taken for one.** States are compared by a hash of 64 bits, and two that collide would hide one another: with
//! ten million states a chance of three in a million. Left out of the hash is what only people are shown (reasons,
//! errors, attempts) and the decision counter, which only a log that goes back makes matter. Branches with the same kind
//! of service are interchangeable. Where no participant may crash any more, flushing is not a step of its own. Larger
//! searches also drop what nobody can act on any more (`spent`), and [`compare`] shows of smaller ones that this hides
//! nothing.
//!
//! **What is not modelled**, and who has it: clocks, so also how long a prepare waits for a key (simulation); several
//! processes of one participant, a renamed or unregistered one (simulation, scripts); unclear writes to the log, which are
//! repeated below the machines (log contract, simulation); logs that go back, new identities and adopted nodes
//! (simulation, scripts); two transactions that overlap at one life (simulation: the machines know nothing of one
//! another); a repeated key with three branches (simulation).

mod check;
mod configuration;
mod coordinator;
mod heal;
mod log;
mod participant;
mod spent;
mod state;

use std::{
    collections::BTreeSet,
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};
use unanimous_protocol::{
    branch::State as RowState,
    coordinator::{Event, State as MachineState},
    id::TransactionId,
    message::{Delivery, RequestKind},
};

pub use self::configuration::{Answers, Client, Configuration, LARGE, OPEN, SMALL};
use self::{
    check::Rule,
    participant::{Luck, WELL},
    state::{Asked, Faults, Log, Participant, Said, State, call_bit, of_slot},
};

/// One search.
#[derive(Clone, Debug)]
pub struct Search {
    configuration: Configuration,
    /// What is found, where two searches are compared.
    found: Option<Arc<Found>>,
}

/// The hashes of states without what is spent.
#[derive(Debug, Default)]
struct Found {
    /// Those of the other search, once it has run.
    other: Option<BTreeSet<u64>>,
    /// Those of this search.
    here: Mutex<BTreeSet<u64>>,
}

/// What can happen next. Lives, transactions and participants by their numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Action(Happening);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Happening {
    /// A request arrives at a participant.
    Called {
        participant: usize,
        of: (usize, usize),
        asked: Asked,
        luck: Luck,
    },
    /// An answer arrives at a coordinator.
    Answered {
        participant: usize,
        of: (usize, usize),
        said: Said,
    },
    /// A call ends without an answer.
    Silence {
        participant: usize,
        of: (usize, usize),
        kind: RequestKind,
    },
    Deadline(usize, usize),
    AbortRequested(usize, usize),
    CommitRequested(usize, usize),
    AbortsDropped(usize, usize),
    Inquires {
        participant: usize,
        of: (usize, usize),
    },
    Informed {
        participant: usize,
        bit: usize,
    },
    Flush(usize),
    ParticipantCrashes(usize),
    Betrays(usize),
    Prune(usize, TransactionId),
    LogTakes(usize),
    LogAnswers(usize),
    LogFlushes,
    LogRefuses(usize),
    LogCrashes,
    Starts(usize),
    Looks(usize),
    CoordinatorCrashes(usize),
    Begins(usize),
    KeyAsked(usize),
    KeyFound(usize),
    AskedEarly(usize),
    JudgedEarly(usize, usize),
    Works(usize),
    Enlists(usize, usize),
    EnlistAnswered(usize, usize),
    SessionDeadline(usize),
}

impl Model for Search {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let c = &self.configuration;
        let participant = |answers: &Answers| {
            Arc::new(Participant {
                role: *answers as u8,
                ..Participant::default()
            })
        };
        let mut s = State {
            lives: Vec::new(),
            transactions: Vec::new(),
            log: Arc::new(Log {
                is_keyed: c.client == Client::Repeats,
                ..Log::default()
            }),
            participants: c.branches.iter().map(participant).collect(),
            faults: Faults {
                coordinator_crashes: c.coordinator_crashes,
                participant_crashes: c.participant_crashes,
                log_crashes: c.log_crashes,
                betrayals: c.betrayals,
            },
            wrong: None,
        };
        self.start_life(&mut s, 0);
        match c.client {
            Client::Commits if !c.made_up_inquiry => {
                self.begin(&mut s, 0, true);
            }
            Client::Interacts => {
                self.begin(&mut s, 0, false);
            }
            Client::Commits | Client::Repeats => {}
        }
        self.drop_spent(None, &mut s);
        vec![s]
    }

    fn actions(&self, s: &State, actions: &mut Vec<Action>) {
        if s.wrong.is_some() {
            return;
        }
        let mut add = |happening| actions.push(Action(happening));
        self.of_lives(s, &mut add);
        for participant in 0..s.participants.len() {
            self.of_participant(s, participant, &mut add);
        }
        self.of_log(s, &mut add);
    }

    fn next_state(&self, s: &State, action: Action) -> Option<State> {
        let mut next = s.clone();
        self.happens(&mut next, action.0);
        self.drop_spent(Some(s), &mut next);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("AC1: all decide alike", |_, s: &State| s.holds(Rule::Ac1)),
            Property::always("AC2: nobody reverses", |_, s: &State| s.holds(Rule::Ac2)),
            Property::always("AC3: commits have every vote", |_, s: &State| {
                s.holds(Rule::Ac3)
            }),
            Property::always("AC4: aborts have a cause", |_, s: &State| {
                s.holds(Rule::Ac4)
            }),
            Property::always("nothing is said that is not so", |_, s: &State| {
                s.holds(Rule::Told)
            }),
            Property::always("effects once, and nothing left", |_, s: &State| {
                s.holds(Rule::Effects)
            }),
            Property::always("one commit for a key", |_, s: &State| s.holds(Rule::Key)),
            Property::always("nothing is dropped too early", |_, s: &State| {
                s.holds(Rule::LowWater)
            }),
            Property::always("no alarm without a cause", |_, s: &State| {
                s.holds(Rule::Alarm)
            }),
            Property::always("clients are told what is so", |_, s: &State| {
                s.wrong.is_some() || s.tells_the_truth().is_ok()
            }),
            Property::always(
                "what nobody sends moves nothing",
                |search: &Search, s: &State| search.branches() > 1 || s.bears_forgery(),
            ),
            Property::always("can still be finished", |search: &Search, s: &State| {
                s.wrong.is_some() || search.heal(s).is_ok()
            }),
        ];
        if self.found.is_some() {
            properties.push(Property::always(
                "is found by the other search",
                |search: &Search, s: &State| search.is_found(s),
            ));
        }
        properties.extend(self.reaches());
        properties
    }
}

impl State {
    /// Whether a newer life of its node has begun.
    fn is_older(&self, running: &state::Running) -> bool {
        let writer = running.life.writer();
        let newest = self.log.durable.epochs[usize::from(writer.node.0) - 1];
        writer.epoch.number() < newest
    }

    /// One after another, as far as one life is concerned: a machine knows nothing of another one.
    fn may_begin(&self) -> bool {
        let mut begun = 0..self.transactions.len();
        begun.all(|at| !self.transactions[at].undecided || self.is_fenced(at))
    }

    fn holds(&self, rule: Rule) -> bool {
        self.wrong.as_ref().is_none_or(|wrong| wrong.rule != rule)
    }
}

impl Search {
    /// A search within these bounds.
    #[must_use]
    pub fn new(configuration: Configuration) -> Self {
        Self {
            configuration,
            found: None,
        }
    }

    /// Notes a state, and whether the search that drops what is spent has found what is left of it.
    fn is_found(&self, s: &State) -> bool {
        let Some(found) = &self.found else {
            return true;
        };
        let mut left = s.clone();
        if left.wrong.is_none() {
            self.without_spent(None, &mut left);
        }
        let hash = left.hash_whole();
        if let Ok(mut here) = found.here.lock() {
            here.insert(hash);
        }
        found
            .other
            .as_ref()
            .is_none_or(|other| other.contains(&hash))
    }

    /// What these bounds must let happen: a search that never gets there shows nothing.
    fn reaches(&self) -> Vec<Property<Self>> {
        let c = &self.configuration;
        let mut reaches = vec![Property::sometimes("a commit", |_, s: &State| {
            s.is_committed(0)
        })];
        let mut add = |wanted: bool, name, condition: fn(&Self, &State) -> bool| {
            if wanted {
                reaches.push(Property::sometimes(name, condition));
            }
        };
        add(c.lives > c.nodes, "an older life beside a newer", |_, s| {
            let mut running = s.lives.iter().flatten();
            running.any(|older| s.is_older(older))
        });
        add(c.lives > c.nodes, "a commit that is recovered", |_, s| {
            s.lives.iter().flatten().any(|running| {
                let writer = running.life.writer();
                let mut machines = running.machines.iter().flatten();
                machines.any(|machine| !writer.owns(machine.id()))
            })
        });
        let crashes = c.coordinator_crashes > 0 && c.nodes == 1;
        add(crashes, "in doubt, and nobody to ask", |_, s| {
            let nobody = s.lives.iter().all(Option::is_none);
            let rows = s.participants.iter().map(|p| &p.durable.rows[0].state);
            let mut in_doubt = rows.filter(|row| matches!(row, Some(RowState::Prepared { .. })));
            nobody && in_doubt.next().is_some()
        });
        let keys = c.client == Client::Repeats;
        add(keys, "a key that another one holds", |_, s| {
            let mut machines = s.lives.iter().flatten().flat_map(|l| &l.machines).flatten();
            machines.any(|machine| machine.lost_its_key())
        });
        let interacts = c.client == Client::Interacts;
        add(interacts, "interactive work that commits", |_, s| {
            s.is_committed(0) && s.participants.iter().any(|p| !p.done.is_empty())
        });
        add(c.prunes, "a dropped row", |_, s| {
            s.participants.iter().any(|p| !p.pruned.is_empty())
        });
        add(c.betrayals > 0, "a commit whose row is lost", |_, s| {
            s.is_committed(0) && s.is_betrayed(0)
        });
        add(c.log_refuses, "a refused record", |_, s| {
            s.transactions.iter().any(|begun| begun.refused)
        });
        let changes = c.branches.contains(&Answers::ReadOnlyOrYes);
        add(changes, "a read-only vote that changes", |_, s| {
            let participants = s.participants.iter();
            let mut both = participants.map(|p| p.said_yes.0 & p.said_read_only.0);
            both.any(|both| both != 0)
        });
        let refuses = c.branches.contains(&Answers::YesOrNo);
        add(refuses, "a refusal behind a yes", |_, s| {
            s.participants.iter().any(|p| p.said_no.has(0))
                && s.participants.iter().any(|p| p.said_yes.has(0))
        });
        reaches
    }

    fn of_lives(&self, s: &State, add: &mut impl FnMut(Happening)) {
        let c = &self.configuration;
        for life in 0..s.lives.len() {
            let Some(running) = s.running(life) else {
                continue;
            };
            if s.is_older(running) {
                add(Happening::Looks(life));
            } else if s.faults.coordinator_crashes > 0 {
                add(Happening::CoordinatorCrashes(life));
            }
            if s.transactions.len() < c.transactions {
                match c.client {
                    Client::Commits if s.may_begin() => add(Happening::Begins(life)),
                    Client::Repeats if running.looking_up > 0 => add(Happening::KeyFound(life)),
                    Client::Commits | Client::Repeats | Client::Interacts => {}
                }
            } else if running.looking_up > 0 && s.log.visible.holder.is_some() {
                add(Happening::KeyFound(life));
            }
            if c.client == Client::Repeats && running.looking_up < 2 {
                add(Happening::KeyAsked(life));
            }
            if c.made_up_inquiry {
                match &running.early {
                    None => add(Happening::AskedEarly(life)),
                    Some((id, _)) if s.begun(*id).is_some() => {
                        for participant in 0..s.participants.len() {
                            add(Happening::JudgedEarly(life, participant));
                        }
                    }
                    Some(_) => {}
                }
            }
            for transaction in 0..s.transactions.len() {
                self.of_transaction(s, life, transaction, add);
            }
        }
        if s.lives.len() < c.lives {
            (0..c.nodes).for_each(|number| add(Happening::Starts(number)));
        }
    }

    fn of_transaction(
        &self,
        s: &State,
        life: usize,
        transaction: usize,
        add: &mut impl FnMut(Happening),
    ) {
        for (participant, p) in s.participants.iter().enumerate() {
            if matches!(
                p.visible.rows[transaction].state,
                Some(RowState::Prepared { .. })
            ) {
                add(Happening::Inquires {
                    participant,
                    of: (life, transaction),
                });
            }
        }
        let Some(machine) = s.machine(life, transaction) else {
            return;
        };
        if machine.is_undecided() {
            add(Happening::Deadline(life, transaction));
            // What follows is the same, but for the reason that a client is shown.
            if self.branches() == 1 {
                add(Happening::AbortRequested(life, transaction));
            }
        }
        if self.interacts() && *machine.state() == MachineState::Active {
            add(Happening::CommitRequested(life, transaction));
        }
        if self.configuration.drops_aborts && machine.is_delivering_aborts() {
            add(Happening::AbortsDropped(life, transaction));
        }
    }

    fn of_participant(&self, s: &State, participant: usize, add: &mut impl FnMut(Happening)) {
        let p = &s.participants[participant];
        for bit in p.requests.iter() {
            let (of, asked) = (
                of_slot(bit / Asked::COUNT),
                Asked::from_code(bit % Asked::COUNT),
            );
            let works =
                matches!(asked, Asked::Prepare { .. }) && p.visible.rows[of.1].state.is_none();
            let lucks = if works {
                self.configuration.branches[participant].lucks()
            } else {
                &[WELL]
            };
            for &luck in lucks {
                add(Happening::Called {
                    participant,
                    of,
                    asked,
                    luck,
                });
            }
        }
        for bit in p.replies.iter() {
            let (of, said) = (
                of_slot(bit / Said::ALL.len()),
                Said::ALL[bit % Said::ALL.len()],
            );
            add(Happening::Answered {
                participant,
                of,
                said,
            });
        }
        for bit in p.calls.iter() {
            let kind = [
                RequestKind::Prepare,
                RequestKind::Commit,
                RequestKind::Abort,
            ][bit % 3];
            debug_assert_eq!(call_bit(bit / 3, kind), bit);
            add(Happening::Silence {
                participant,
                of: of_slot(bit / 3),
                kind,
            });
        }
        for bit in p.informs.iter() {
            add(Happening::Informed { participant, bit });
        }
        if !p.is_flushed() {
            add(Happening::Flush(participant));
        }
        // Otherwise nothing is lost with it.
        let loses = !p.is_flushed() || p.held.is_some();
        if s.faults.participant_crashes > 0 && loses {
            add(Happening::ParticipantCrashes(participant));
        }
        let has_rows = p.durable.rows.iter().any(|row| row.state.is_some());
        if s.faults.betrayals > 0 && has_rows {
            add(Happening::Betrays(participant));
        }
        for mark in p.marks.into_iter().flatten() {
            let stored = p.visible.low_water[state::node_of(mark)];
            if stored.is_none_or(|stored| stored < mark) {
                add(Happening::Prune(participant, mark));
            }
        }
        if self.interacts() {
            add(Happening::Works(participant));
            for session in p.enlists.iter() {
                add(Happening::Enlists(participant, session));
            }
            for bit in p.enlisted.iter() {
                add(Happening::EnlistAnswered(participant, bit));
            }
            if p.sessions_begun > 0 {
                add(Happening::SessionDeadline(participant));
            }
        }
    }

    fn of_log(&self, s: &State, add: &mut impl FnMut(Happening)) {
        for (at, request) in s.log.requests.iter().enumerate() {
            if request.written.is_none() {
                add(Happening::LogTakes(at));
                let forced = matches!(request.write, state::Write::Force(_));
                let refusable = forced && s.log.visible.records[request.transaction].is_none();
                if self.configuration.log_refuses && refusable && s.lives[request.life].is_some() {
                    add(Happening::LogRefuses(at));
                }
            } else if s.may_answer(request) {
                add(Happening::LogAnswers(at));
            }
        }
        if s.log.is_dirty {
            add(Happening::LogFlushes);
            if s.faults.log_crashes > 0 {
                add(Happening::LogCrashes);
            }
        }
    }

    fn happens(&self, s: &mut State, happening: Happening) {
        match happening {
            Happening::Called {
                participant,
                of,
                asked,
                luck,
            } => {
                let repeats = self.is_repeatable(s, participant, of.1);
                let before = s.participants[participant].replies;
                self.called(s, participant, of, asked, luck);
                let said = s.participants[participant].replies.without(before);
                // It may as well be heard now: not having heard it is the state before.
                for bit in said.iter().filter(|_| repeats) {
                    let said = Said::ALL[bit % Said::ALL.len()];
                    self.answered(s, of.0, of.1, participant, said);
                }
            }
            Happening::Answered {
                participant,
                of: (life, transaction),
                said,
            } => self.answered(s, life, transaction, participant, said),
            Happening::Silence {
                participant,
                of: (life, transaction),
                kind,
            } => {
                let silence = Delivery::Unknown(String::new());
                self.call_ends(s, life, transaction, participant, kind, silence);
            }
            Happening::Deadline(life, transaction) => {
                self.step(s, life, transaction, Event::DeadlinePassed);
            }
            Happening::AbortRequested(life, transaction) => {
                let event = Event::AbortRequested { detail: None };
                self.step(s, life, transaction, event);
            }
            Happening::CommitRequested(life, transaction) => {
                self.step(s, life, transaction, Event::CommitRequested);
            }
            Happening::AbortsDropped(life, transaction) => {
                for participant in 0..s.participants.len() {
                    let abort = call_bit(state::slot(life, transaction), RequestKind::Abort);
                    s.participant_mut(participant).calls.remove(abort);
                }
                self.step(s, life, transaction, Event::AbortsDropped);
            }
            Happening::Inquires {
                participant,
                of: (life, transaction),
            } => self.inquired(s, life, transaction, participant),
            Happening::Informed { participant, bit } => {
                let (transaction, inform) = State::inform_of(bit);
                self.informed(s, participant, transaction, inform);
            }
            Happening::Flush(participant) => self.flush(s, participant),
            Happening::ParticipantCrashes(participant) => self.participant_crashes(s, participant),
            Happening::Betrays(participant) => self.betrays(s, participant),
            Happening::Prune(participant, mark) => self.prune(s, participant, mark),
            Happening::LogTakes(at) => self.log_takes(s, at),
            Happening::LogAnswers(at) => self.log_answers(s, at),
            Happening::LogFlushes => s.force_log(),
            Happening::LogRefuses(at) => self.log_refuses(s, at),
            Happening::LogCrashes => self.log_crashes(s),
            Happening::Starts(number) => self.start_life(s, number),
            Happening::Looks(life) => self.look(s, life),
            Happening::CoordinatorCrashes(life) => {
                s.faults.coordinator_crashes -= 1;
                self.end_life(s, life);
            }
            Happening::Begins(life) => {
                self.begin(s, life, true);
            }
            Happening::KeyAsked(life) => self.key_asked(s, life),
            Happening::KeyFound(life) => self.key_found(s, life),
            Happening::AskedEarly(life) => self.asked_early(s, life),
            Happening::JudgedEarly(life, participant) => self.judged_early(s, life, participant),
            Happening::Works(participant) => self.work(s, participant),
            Happening::Enlists(participant, session) => {
                for life in 0..s.lives.len() {
                    self.enlisted(s, life, participant, session);
                }
            }
            Happening::EnlistAnswered(participant, bit) => {
                let session = u8::try_from(bit / 2).unwrap_or(u8::MAX);
                self.enlist_answered(s, participant, session, bit % 2 == 1);
            }
            Happening::SessionDeadline(participant) => self.session_deadline(s, participant),
        }
    }
}

/// What a search has found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Distinct states.
    pub states: usize,
    /// Steps that were tried.
    pub steps: usize,
    /// The longest way to a state that was found first on it.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// What does not hold, and how one gets there.
    pub failure: Option<Failed>,
}

/// A property that does not hold.
#[derive(Clone, Debug)]
pub struct Failed {
    /// Its name.
    pub property: String,
    /// What is wrong in the state that was reached.
    pub what: String,
    /// What happened, in order.
    pub steps: Vec<String>,
}

/// How a search goes through the states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In little memory.
    DepthFirst,
    /// Finds a short way to what is wrong, with one thread the shortest.
    BreadthFirst,
}

/// Tries everything, or until something is wrong. `so_far` is told now and then how many states have been seen.
pub fn search(
    configuration: &Configuration,
    threads: usize,
    order: Order,
    so_far: impl FnMut(usize),
) -> Report {
    run(&Search::new(configuration.clone()), threads, order, so_far)
}

/// Searches with and without what is spent, and demands that either finds, but for what is spent, just what the other does.
/// The report is of the search that keeps it.
pub fn compare(
    configuration: &Configuration,
    threads: usize,
    order: Order,
    mut so_far: impl FnMut(usize),
) -> Report {
    let mut searched = |keeps_all, other| {
        let here = Mutex::default();
        let search = Search {
            configuration: Configuration {
                keeps_all,
                ..configuration.clone()
            },
            found: Some(Arc::new(Found { other, here })),
        };
        let report = run(&search, threads, order, &mut so_far);
        let here = search.found.as_ref().map(|found| found.here.lock());
        let here = here.and_then(Result::ok);
        (report, here.map(|mut here| mem::take(&mut *here)))
    };
    let (without, found) = searched(false, None);
    if without.failure.is_some() {
        return without;
    }
    let count = found.as_ref().map(BTreeSet::len);
    let (mut with, found) = searched(true, found);
    if with.failure.is_none() && found.as_ref().map(BTreeSet::len) != count {
        with.failure = searched(false, found).0.failure;
    }
    with
}

fn run(search: &Search, threads: usize, order: Order, so_far: impl FnMut(usize)) -> Report {
    let builder = search
        .clone()
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures);
    match order {
        Order::DepthFirst => report(search, builder.spawn_dfs(), so_far),
        Order::BreadthFirst => report(search, builder.spawn_bfs(), so_far),
    }
}

#[expect(clippy::disallowed_types, reason = "the search takes real time")]
fn report(
    search: &Search,
    mut checker: impl Checker<Search>,
    mut so_far: impl FnMut(usize),
) -> Report {
    let began = std::time::Instant::now();
    let handles = checker.handles();
    while handles.iter().any(|thread| !thread.is_finished()) {
        std::thread::sleep(Duration::from_millis(20));
        so_far(checker.unique_state_count());
    }
    for thread in handles {
        // What it panicked with has been printed.
        assert!(thread.join().is_ok(), "a thread of the search has panicked");
    }
    let took = began.elapsed();
    let mut discoveries = checker.discoveries();
    let mut failed = search.properties().into_iter().filter_map(|property| {
        let is_failure = property.expectation == Expectation::Always;
        let found = is_failure.then(|| discoveries.remove(property.name));
        Some((property.name, found??))
    });
    let failure = failed.next().map(|(name, path)| {
        let last = path.last_state();
        let what = match &last.wrong {
            Some(wrong) => wrong.what.clone(),
            None => last
                .tells_the_truth()
                .and_then(|()| search.heal(last))
                .err()
                .unwrap_or_else(|| "in the state that is reached".to_owned()),
        };
        let actions = path.into_actions();
        Failed {
            property: name.to_owned(),
            what,
            steps: actions.iter().map(|action| format!("{action:?}")).collect(),
        }
    });
    // Where nothing failed all was seen, and what was not seen does not happen.
    let failure = failure.or_else(|| {
        let mut properties = search.properties().into_iter();
        let never = properties.find(|property| {
            property.expectation == Expectation::Sometimes
                && !discoveries.contains_key(property.name)
        });
        never.map(|property| Failed {
            property: property.name.to_owned(),
            what: "it never happens".to_owned(),
            steps: Vec::new(),
        })
    });
    Report {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        took,
        failure,
    }
}
