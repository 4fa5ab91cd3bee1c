//! Exhaustive search over the same machines.

mod check;
mod configuration;
mod coordinator;
mod heal;
mod log;
mod participant;
mod state;

use std::{sync::Arc, time::Duration};

use stateright::{Checker, HasDiscoveries, Model, Property};
use unanimous_protocol::{
    branch::State as RowState,
    coordinator::{Event, State as MachineState},
    id::TransactionId,
    message::{Delivery, RequestKind},
};

pub use self::configuration::{Answers, Client, Configuration, LARGE, SMALL};
use self::{
    check::Rule,
    participant::{Luck, WELL},
    state::{Asked, Faults, Log, Participant, Said, State, call_bit, of_slot},
};

/// One search.
#[derive(Clone, Debug)]
pub struct Search {
    configuration: Configuration,
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
    Prune(usize, TransactionId),
    LogTakes(usize),
    LogAnswers(usize),
    LogFlushes,
    LogCrashes,
    Starts,
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
            },
            wrong: None,
        };
        self.start_life(&mut s);
        match c.client {
            Client::Commits if !c.made_up_inquiry => {
                self.begin(&mut s, 0, true);
            }
            Client::Interacts => {
                self.begin(&mut s, 0, false);
            }
            Client::Commits | Client::Repeats => {}
        }
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
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
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
            Property::always("can still be finished", |search: &Search, s: &State| {
                s.wrong.is_some() || search.heal(s).is_ok()
            }),
        ]
    }
}

impl State {
    fn holds(&self, rule: Rule) -> bool {
        self.wrong.as_ref().is_none_or(|wrong| wrong.rule != rule)
    }
}

impl Search {
    /// A search within these bounds.
    #[must_use]
    pub fn new(configuration: Configuration) -> Self {
        Self { configuration }
    }

    fn of_lives(&self, s: &State, add: &mut impl FnMut(Happening)) {
        let c = &self.configuration;
        for life in 0..s.lives.len() {
            let Some(running) = s.running(life) else {
                continue;
            };
            let is_fenced = running.life.writer().epoch.number() < s.log.durable.epoch;
            if is_fenced {
                add(Happening::Looks(life));
            } else if s.faults.coordinator_crashes > 0 {
                add(Happening::CoordinatorCrashes(life));
            }
            if s.transactions.len() < c.transactions {
                match c.client {
                    Client::Commits => add(Happening::Begins(life)),
                    Client::Repeats if running.looking_up > 0 => add(Happening::KeyFound(life)),
                    Client::Repeats | Client::Interacts => {}
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
        if s.lives.len() < c.epochs {
            add(Happening::Starts);
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
            add(Happening::AbortRequested(life, transaction));
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
        for &mark in &p.marks {
            if p.visible.mark.is_none_or(|stored| stored < mark) {
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
            } => self.called(s, participant, of, asked, luck),
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
            Happening::Prune(participant, mark) => self.prune(s, participant, mark),
            Happening::LogTakes(at) => self.log_takes(s, at),
            Happening::LogAnswers(at) => self.log_answers(s, at),
            Happening::LogFlushes => s.force_log(),
            Happening::LogCrashes => self.log_crashes(s),
            Happening::Starts => self.start_life(s),
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

/// Tries everything.
#[must_use]
pub fn search(configuration: &Configuration, threads: usize, breadth_first: bool) -> Report {
    #[expect(clippy::disallowed_types, reason = "the search runs in real time")]
    let began = std::time::Instant::now();
    let builder = Search::new(configuration.clone())
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures);
    let search = Search::new(configuration.clone());
    if breadth_first {
        report(&search, &builder.spawn_bfs().join(), began.elapsed())
    } else {
        report(&search, &builder.spawn_dfs().join(), began.elapsed())
    }
}

fn report(search: &Search, checker: &impl Checker<Search>, took: Duration) -> Report {
    let mut discoveries: Vec<_> = checker.discoveries().into_iter().collect();
    discoveries.sort_by_key(|(name, _)| *name);
    let failure = discoveries.into_iter().next().map(|(name, path)| {
        let last = path.last_state();
        let what = match &last.wrong {
            Some(wrong) => wrong.what.clone(),
            None => last
                .tells_the_truth()
                .and_then(|()| search.heal(last))
                .err()
                .unwrap_or_default(),
        };
        let actions = path.into_actions();
        Failed {
            property: name.to_owned(),
            what,
            steps: actions.iter().map(|action| format!("{action:?}")).collect(),
        }
    });
    Report {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        took,
        failure,
    }
}
