//! Every schedule of one transaction of two branches, with the real machines and a correct shell around them: calls are
//! lost before or after they act, arrive late, the coordinator and a participant die once, unforced rows with them. In
//! all of them everybody ends the same way (AC1), nobody is told twice differently (AC2), and nothing hangs (AC5).
//!
//! Small on purpose: it searches to the end in seconds. Larger worlds with clocks and disks are a package of their own.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
};

use unanimous_protocol::{
    branch::{self, Branch},
    coordinator::{Effect, Event, Transaction},
    message::{Delivery, Inform, RefusalCode, Reply, RequestKind, Vote},
    operations::BodyDigest,
    record::{Decision, Outcome, Standing, Verdict},
};

use crate::rig::{ABORT_REQUESTED, Rig, delivered, enlist, id, name, no, unknown};

const NAMES: [&str; 2] = ["east", "west"];

/// What the shell was asked to do and has not reported.
#[derive(Clone, Debug, PartialEq)]
enum Owed {
    Call(usize, RequestKind),
    Force(Decision),
    Append(Decision),
    Finish,
    Deadline,
}

/// Faults, and things that happen at most so often.
#[derive(Clone, Debug)]
struct Budget {
    losses: u32,
    coordinator_deaths: u32,
    participant_deaths: u32,
    client_aborts: u32,
    keys_lost: u32,
}

#[derive(Clone, Debug)]
struct World {
    keyed: bool,
    /// `None` once it has left memory, or died without a record.
    transaction: Option<Transaction>,
    owed: Vec<Owed>,
    /// What each participant's database shows, and what of it would survive a crash.
    rows: [branch::State; 2],
    durable: [branch::State; 2],
    /// Requests on the network whose answers nobody waits for.
    late: Vec<(usize, RequestKind)>,
    record: Option<Decision>,
    finished: bool,
    /// What some client was told.
    told: Option<Outcome>,
    budget: Budget,
}

impl World {
    fn begin(keyed: bool, budget: Budget) -> Self {
        let mut world = Self {
            keyed,
            transaction: Some(Rig::empty(keyed).machine),
            owed: vec![Owed::Deadline],
            rows: [branch::State::Absent, branch::State::Absent],
            durable: [branch::State::Absent, branch::State::Absent],
            late: Vec::new(),
            record: None,
            finished: false,
            told: None,
            budget,
        };
        for participant in NAMES {
            world.coordinate(enlist(participant, "[]", None));
        }
        world.coordinate(Event::CommitRequested);
        world
    }

    fn coordinate(&mut self, event: Event) {
        let Some(transaction) = &mut self.transaction else {
            return;
        };
        let mut effects = Vec::new();
        transaction.step(event, &mut effects);
        self.owe(effects);
    }

    fn owe(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send {
                    participant,
                    request,
                    ..
                } => {
                    let at = NAMES.iter().position(|it| *it == participant.as_str());
                    self.owed.push(Owed::Call(at.unwrap(), request.kind()));
                }
                Effect::Force(decision) => self.owed.push(Owed::Force(decision)),
                Effect::Append(decision) => self.owed.push(Owed::Append(decision)),
                Effect::Finish => self.owed.push(Owed::Finish),
                Effect::StartDeadline => self.owed.push(Owed::Deadline),
                Effect::Answer(_) => {}
                Effect::Alarm(alarm) => panic!("{alarm:?} in a world without a reason for one"),
            }
        }
        self.owed.sort_by_key(|owed| format!("{owed:?}"));
        let Some(transaction) = &self.transaction else {
            return;
        };
        if let Some(decision) = transaction.told() {
            let outcome = decision.verdict.outcome();
            assert!(
                self.told.is_none_or(|told| told == outcome),
                "told {:?}, now {outcome:?}",
                self.told
            );
            self.told = Some(outcome);
        }
        if transaction.is_over() {
            assert_eq!(
                self.told,
                self.record.as_ref().map(|it| it.verdict.outcome())
            );
            self.transaction = None;
            self.owed.clear();
        }
    }

    /// One message at a participant, in one local transaction.
    fn act(&mut self, at: usize, first: branch::Event, vote: &Vote) -> Option<Reply> {
        let mut branch = Branch::from_row(self.rows[at].clone());
        let mut events = vec![first];
        let mut answer = None;
        while let Some(event) = events.pop() {
            let mut effects = Vec::new();
            branch.step(event, &mut effects);
            for effect in effects {
                match effect {
                    branch::Effect::Work => events.push(branch::Event::Worked(vote.clone())),
                    branch::Effect::Apply => events.push(branch::Event::Applied),
                    branch::Effect::Undo => events.push(branch::Event::Undone),
                    branch::Effect::Store(state) => self.rows[at] = state,
                    branch::Effect::RollBackWork | branch::Effect::ReleaseKeys => {}
                    branch::Effect::Answer {
                        reply: branch::Answer::Reply(reply),
                        forced,
                    } => {
                        if forced {
                            self.durable[at] = self.rows[at].clone();
                        }
                        answer = Some(reply);
                    }
                    branch::Effect::Answer {
                        reply: branch::Answer::PrepareChanged,
                        ..
                    } => panic!("the operations never change"),
                    branch::Effect::Answer {
                        reply: branch::Answer::BelowLowWater { .. },
                        ..
                    } => panic!("nothing is pruned here"),
                }
            }
        }
        answer
    }

    fn ask(&mut self, at: usize, kind: RequestKind, vote: &Vote) -> Reply {
        let event = match kind {
            RequestKind::Prepare => branch::Event::PrepareReceived {
                digest: BodyDigest([0; 32]),
                session: None,
                in_time: true,
            },
            RequestKind::Commit => branch::Event::CommitReceived,
            RequestKind::Abort => branch::Event::AbortReceived,
        };
        self.act(at, event, vote).unwrap()
    }

    /// The votes that a service may come to, where it is asked at all.
    fn votes(&self, at: usize, kind: RequestKind) -> Vec<Vote> {
        if kind == RequestKind::Prepare && self.rows[at] == branch::State::Absent {
            vec![Vote::Yes, Vote::ReadOnly, no(RefusalCode::Refused)]
        } else {
            vec![Vote::Yes]
        }
    }

    /// What an inquiry is told: from memory, else from the log, where "no record" means aborted once the life is over.
    fn inform(&self, at: usize) -> Inform {
        match (&self.transaction, &self.record) {
            (Some(transaction), _) => transaction.inform(&name(NAMES[at])),
            (None, Some(record)) => record.inform(&name(NAMES[at])),
            (None, None) => Inform::Aborted,
        }
    }

    /// The worlds after each thing that has to happen some time.
    fn progress(&self) -> Vec<(String, Self)> {
        let mut next = Vec::new();
        for (position, owed) in self.owed.iter().enumerate() {
            let mut world = self.clone();
            world.owed.remove(position);
            match owed {
                Owed::Call(at, kind) => {
                    for vote in self.votes(*at, *kind) {
                        let mut world = world.clone();
                        let reply = world.ask(*at, *kind, &vote);
                        let label = format!("{} {kind:?}: {reply:?}", NAMES[*at]);
                        world.coordinate(delivered(NAMES[*at], *kind, Delivery::Answered(reply)));
                        next.push((label, world));
                    }
                }
                Owed::Force(decision) => {
                    if self.keyed && self.budget.keys_lost > 0 {
                        let mut world = world.clone();
                        world.budget.keys_lost -= 1;
                        world.coordinate(Event::Forced(Standing::KeyHeldBy(id(2))));
                        next.push(("the key is held".to_owned(), world));
                    }
                    world.write(decision);
                    world.coordinate(Event::Forced(Standing::Proposed));
                    next.push(("forced".to_owned(), world));
                }
                Owed::Append(decision) => {
                    world.write(decision);
                    world.coordinate(Event::Appended);
                    next.push(("appended".to_owned(), world));
                }
                Owed::Finish => {
                    world.finished = true;
                    world.coordinate(Event::Appended);
                    next.push(("finished".to_owned(), world));
                }
                Owed::Deadline => {
                    world.coordinate(Event::DeadlinePassed);
                    next.push(("the deadline".to_owned(), world));
                }
            }
        }
        for (at, participant) in NAMES.into_iter().enumerate() {
            if matches!(self.rows[at], branch::State::Prepared { .. }) {
                let inform = self.inform(at);
                if inform != Inform::Pending {
                    let mut world = self.clone();
                    world.act(at, branch::Event::Informed(inform), &Vote::Yes);
                    next.push((format!("{participant} is told {inform:?}"), world));
                }
            }
        }
        next
    }

    /// The worlds after each thing that need not happen.
    fn mishaps(&self) -> Vec<(String, Self)> {
        let mut next = Vec::new();
        for (position, &(at, kind)) in self.late.iter().enumerate() {
            for vote in self.votes(at, kind) {
                let mut world = self.clone();
                world.late.remove(position);
                world.ask(at, kind, &vote);
                next.push((format!("{} late {kind:?} {vote:?}", NAMES[at]), world));
            }
        }
        if self.budget.losses > 0 {
            for (position, owed) in self.owed.iter().enumerate() {
                let Owed::Call(at, kind) = owed else { continue };
                let mut before = self.clone();
                before.owed.remove(position);
                before.budget.losses -= 1;
                for vote in self.votes(*at, *kind) {
                    let mut world = before.clone();
                    world.ask(*at, *kind, &vote);
                    world.coordinate(delivered(NAMES[*at], *kind, unknown()));
                    next.push((format!("{} {kind:?} answer lost", NAMES[*at]), world));
                }
                before.late.push((*at, *kind));
                before.coordinate(delivered(NAMES[*at], *kind, unknown()));
                next.push((format!("{} {kind:?} is delayed", NAMES[*at]), before));
            }
        }
        if self.budget.client_aborts > 0 && self.transaction.is_some() {
            let mut world = self.clone();
            world.budget.client_aborts -= 1;
            world.coordinate(ABORT_REQUESTED);
            next.push(("a client aborts".to_owned(), world));
        }
        if self.budget.participant_deaths > 0 {
            for (at, participant) in NAMES.into_iter().enumerate() {
                if self.rows[at] != self.durable[at] {
                    let mut world = self.clone();
                    world.budget.participant_deaths -= 1;
                    world.rows[at] = self.durable[at].clone();
                    next.push((format!("{participant} dies"), world));
                }
            }
        }
        if self.budget.coordinator_deaths > 0 && self.transaction.is_some() {
            let mut world = self.clone();
            world.budget.coordinator_deaths -= 1;
            // What waits for the log may have reached it or not.
            for owed in &self.owed {
                if let Owed::Force(decision) | Owed::Append(decision) = owed {
                    let mut world = world.clone();
                    world.write(decision);
                    next.push((
                        "the coordinator dies after a write".to_owned(),
                        world.restart(),
                    ));
                }
            }
            next.push(("the coordinator dies".to_owned(), world.restart()));
        }
        next
    }

    fn write(&mut self, decision: &Decision) {
        assert!(self.record.is_none(), "one record");
        self.record = Some(decision.clone());
        self.finished = decision.is_finished_at_once();
    }

    /// A new life: the old one's epoch is fenced, and unfinished records are driven.
    fn restart(mut self) -> Self {
        for owed in std::mem::take(&mut self.owed) {
            if let Owed::Call(at, kind) = owed {
                self.late.push((at, kind));
            }
        }
        self.transaction = None;
        let Some(record) = self.record.clone().filter(|_| !self.finished) else {
            let promised = self.keyed || self.rows_of_commit();
            let now = self
                .record
                .as_ref()
                .map_or(Outcome::Aborted, |it| it.verdict.outcome());
            assert!(!promised || self.told.is_none_or(|told| told == now));
            return self;
        };
        let mut effects = Vec::new();
        self.transaction = Some(Transaction::recover(id(1), record, &mut effects));
        self.owe(effects);
        self
    }

    fn rows_of_commit(&self) -> bool {
        let committed = |state: &branch::State| matches!(state, branch::State::Committed { .. });
        self.rows.iter().any(committed)
    }

    /// No branch has applied what was not decided, ever.
    fn check(&self) {
        for (at, row) in self.rows.iter().enumerate() {
            if matches!(row, branch::State::Committed { .. }) {
                let record = self.record.as_ref().expect("logged before told");
                assert_eq!(record.inform(&name(NAMES[at])), Inform::Committed);
            }
        }
    }

    /// Nothing has to happen any more, so everybody knows the outcome.
    fn check_settled(&self) {
        assert!(self.transaction.is_none(), "the coordinator hangs");
        for (at, row) in self.rows.iter().enumerate() {
            assert!(
                !matches!(row, branch::State::Prepared { .. }),
                "{} is in doubt for ever",
                NAMES[at]
            );
            let counted = self.record.as_ref().is_some_and(|record| {
                record.verdict == Verdict::Commit
                    && record.inform(&name(NAMES[at])) == Inform::Committed
            });
            assert_eq!(
                counted,
                matches!(row, branch::State::Committed { .. }),
                "{} and the record",
                NAMES[at]
            );
        }
    }
}

/// Walks every schedule; returns how many different worlds it saw. A failure names the schedule that led to it.
fn search(start: World) -> usize {
    let mut seen = BTreeSet::new();
    // Of each world that was ever open: the one before it, and what happened in between.
    let mut steps: Vec<(usize, String)> = vec![(0, "begin".to_owned())];
    let mut open = vec![(0, start)];
    while let Some((at, world)) = open.pop() {
        let mut hasher = DefaultHasher::new();
        format!("{world:?}").hash(&mut hasher);
        if !seen.insert(hasher.finish()) {
            continue;
        }
        let expanded = catch_unwind(AssertUnwindSafe(|| {
            world.check();
            let mut next = world.progress();
            if next.is_empty() {
                world.check_settled();
            }
            next.extend(world.mishaps());
            next
        }));
        let Ok(next) = expanded else {
            let mut schedule = vec![steps[at].1.as_str()];
            let mut before = at;
            while before > 0 {
                before = steps[before].0;
                schedule.push(&steps[before].1);
            }
            schedule.reverse();
            panic!("after: {}\nin {world:#?}", schedule.join("; "));
        };
        for (what, next) in next {
            open.push((steps.len(), next));
            steps.push((at, what));
        }
    }
    seen.len()
}

const NO_FAULTS: Budget = Budget {
    losses: 0,
    coordinator_deaths: 0,
    participant_deaths: 0,
    client_aborts: 0,
    keys_lost: 0,
};

#[test]
fn in_every_schedule_with_lost_and_late_calls_all_end_alike() {
    for (keyed, losses, client_aborts) in [(false, 2, 0), (false, 1, 1), (true, 1, 1)] {
        let budget = Budget {
            losses,
            client_aborts,
            keys_lost: 1,
            ..NO_FAULTS
        };
        let worlds = search(World::begin(keyed, budget));
        assert!(worlds > 1_000, "{worlds}");
    }
}

#[test]
fn in_every_schedule_with_deaths_all_end_alike() {
    for keyed in [false, true] {
        let budget = Budget {
            losses: 1,
            coordinator_deaths: 1,
            participant_deaths: 1,
            ..NO_FAULTS
        };
        let worlds = search(World::begin(keyed, budget));
        assert!(worlds > 1_000, "{worlds}");
    }
}
