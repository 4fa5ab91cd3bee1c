//! A participant's shell around [`protocol::branch`](unanimous_protocol::branch): every message is one local
//! transaction over a disk of rows, accounts and counted effects. And a toy ledger as its resource.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use unanimous_protocol::{
    branch::{Answer, Branch, Effect, Event, State},
    id::{Node, ParticipantName, TransactionId},
    message::{Delivery, Inform, Refusal, RefusalCode, Reply, Request, Session, Vote},
};

use crate::{
    disk::Disk,
    surroundings::{
        Asker, Call, Crashed, Happening, LifeNumber, Millis, Question, Said, Surroundings, Who,
        Work, trace,
    },
};

pub(crate) const ACCOUNTS: u64 = 4;
pub(crate) const BALANCE: u64 = 100;

/// What the toy ledger can do. Its JSON is flat: a kind, and up to three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Debit {
        account: u64,
        amount: u64,
    },
    Credit {
        account: u64,
        amount: u64,
    },
    /// Moves within one participant, where there is enough; else it has nothing to change, and says read-only. So a
    /// late duplicate of its prepare may answer otherwise than the first.
    Shuffle {
        from: u64,
        to: u64,
        amount: u64,
    },
    Look,
    Refuse,
}

impl Operation {
    pub(crate) fn json(self) -> String {
        match self {
            Self::Debit { account, amount } => format!(r#"{{"debit":[{account},{amount}]}}"#),
            Self::Credit { account, amount } => format!(r#"{{"credit":[{account},{amount}]}}"#),
            Self::Shuffle { from, to, amount } => {
                format!(r#"{{"shuffle":[{from},{to},{amount}]}}"#)
            }
            Self::Look => r#"{"look":[]}"#.to_owned(),
            Self::Refuse => r#"{"refuse":[]}"#.to_owned(),
        }
    }

    fn parse_one(text: &str) -> Option<Self> {
        let mut numbers = text
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse::<u64>().ok());
        let mut number = || numbers.next();
        Some(match text.split('"').nth(1)? {
            "debit" => Self::Debit {
                account: number()?,
                amount: number()?,
            },
            "credit" => Self::Credit {
                account: number()?,
                amount: number()?,
            },
            "shuffle" => Self::Shuffle {
                from: number()?,
                to: number()?,
                amount: number()?,
            },
            "look" => Self::Look,
            _ => Self::Refuse,
        })
    }

    pub(crate) fn parse(text: &str) -> Vec<Self> {
        text.split('}').filter_map(Self::parse_one).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Row(TransactionId),
    Account(u64),
    Applied(TransactionId),
}

#[derive(Clone, Debug)]
enum Value {
    Row(Row),
    Account { balance: u64, held: u64 },
    Applied(u32),
}

/// What the intent log keeps of a branch.
#[derive(Clone, Debug)]
struct Row {
    state: State,
    operations: Vec<Operation>,
    /// Interactive pieces of work among them.
    pieces: BTreeSet<u32>,
}

/// Interactive work in memory: it ends with the process.
#[derive(Clone, Debug)]
struct Held {
    session: Session,
    node: Node,
    enlisted: bool,
    operations: Vec<Operation>,
    pieces: BTreeSet<u32>,
    /// Work that waits for the enlisting.
    waiting: Vec<Work>,
}

/// Where an answer to the coordinator goes: the life and the number of its call.
type ReplyTo = (LifeNumber, u64);

#[derive(Debug, Default)]
struct Process {
    sessions: BTreeMap<TransactionId, Held>,
    /// Answers that wait for a forced commit.
    answers: Vec<(u64, TransactionId, Reply, Option<ReplyTo>)>,
}

#[derive(Debug)]
pub(crate) struct Participant {
    name: ParticipantName,
    disk: Disk<Cell, Value>,
    process: Option<Process>,
    incarnation: u64,
    sessions_drawn: u64,
}

/// One local transaction.
struct Local<'a> {
    disk: &'a Disk<Cell, Value>,
    writes: BTreeMap<Cell, Value>,
}

impl Local<'_> {
    fn get(&self, cell: Cell) -> Option<&Value> {
        self.writes.get(&cell).or_else(|| self.disk.get(&cell))
    }

    fn account(&self, account: u64) -> (u64, u64) {
        match self.get(Cell::Account(account)) {
            Some(Value::Account { balance, held }) => (*balance, *held),
            Some(Value::Row(_) | Value::Applied(_)) | None => (0, 0),
        }
    }

    fn set(&mut self, account: u64, balance: u64, held: u64) {
        self.writes
            .insert(Cell::Account(account), Value::Account { balance, held });
    }

    /// The service's prepare: checks and reserves. What it found nothing to do for, it drops.
    fn prepare(&mut self, operations: &mut Vec<Operation>) -> Vote {
        let mut does = Vec::new();
        for &operation in operations.iter() {
            match operation {
                Operation::Debit { account, amount } => {
                    let (balance, held) = self.account(account);
                    if balance - held < amount {
                        return refused("insufficient funds");
                    }
                    self.set(account, balance, held + amount);
                    does.push(operation);
                }
                Operation::Shuffle { from, amount, .. } => {
                    let (balance, held) = self.account(from);
                    if balance - held >= amount {
                        self.set(from, balance, held + amount);
                        does.push(operation);
                    }
                }
                Operation::Credit { .. } => does.push(operation),
                Operation::Look => {}
                Operation::Refuse => return refused("as was asked"),
            }
        }
        *operations = does;
        if operations.is_empty() {
            Vote::ReadOnly
        } else {
            Vote::Yes
        }
    }

    fn commit(&mut self, id: TransactionId, operations: &[Operation]) {
        for operation in operations {
            match *operation {
                Operation::Debit { account, amount } => {
                    let (balance, held) = self.account(account);
                    self.set(account, balance - amount, held - amount);
                }
                Operation::Shuffle { from, to, amount } => {
                    let (balance, held) = self.account(from);
                    self.set(from, balance - amount, held - amount);
                    let (balance, held) = self.account(to);
                    self.set(to, balance + amount, held);
                }
                Operation::Credit { account, amount } => {
                    let (balance, held) = self.account(account);
                    self.set(account, balance + amount, held);
                }
                Operation::Look | Operation::Refuse => {}
            }
        }
        let applied = self.applied(id) + 1;
        self.writes
            .insert(Cell::Applied(id), Value::Applied(applied));
    }

    fn abort(&mut self, operations: &[Operation]) {
        for operation in operations {
            match *operation {
                Operation::Debit { account, amount }
                | Operation::Shuffle {
                    from: account,
                    amount,
                    ..
                } => {
                    let (balance, held) = self.account(account);
                    self.set(account, balance, held - amount);
                }
                Operation::Credit { .. } | Operation::Look | Operation::Refuse => {}
            }
        }
    }

    fn applied(&self, id: TransactionId) -> u32 {
        match self.get(Cell::Applied(id)) {
            Some(Value::Applied(count)) => *count,
            Some(Value::Row(_) | Value::Account { .. }) | None => 0,
        }
    }
}

fn refused(reason: &str) -> Vote {
    Vote::No(Refusal {
        code: RefusalCode::Refused,
        reason: reason.to_owned(),
    })
}

impl Participant {
    pub(crate) fn new(name: ParticipantName, s: &mut Surroundings) -> Self {
        let mut disk = Disk::new();
        let accounts = (0..ACCOUNTS).map(|account| {
            let value = Value::Account {
                balance: BALANCE,
                held: 0,
            };
            (Cell::Account(account), Some(value))
        });
        let position = disk.commit(accounts.collect());
        disk.force(position);
        // Nobody restores a backup from before the accounts.
        for _ in 0..4 {
            let position = disk.commit(Vec::new());
            disk.force(position);
        }
        let mut participant = Self {
            name,
            disk,
            process: None,
            incarnation: 0,
            sessions_drawn: 0,
        };
        participant.start(s);
        participant
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    pub(crate) fn start(&mut self, s: &mut Surroundings) {
        if self.process.is_none() {
            self.incarnation += 1;
            self.process = Some(Process::default());
            trace!(s, "{}: starts", self.name);
            // At start and while running: every row in doubt inquires.
            self.inquire(self.incarnation, s);
        }
    }

    pub(crate) fn crash(&mut self, s: &mut Surroundings) {
        if self.process.take().is_none() {
            return;
        }
        s.counters.add("participant crashes");
        let (lost, durable) = self.disk.crash(&mut s.rng);
        trace!(s, "{}: crashes, and loses {} cells", self.name, lost.len());
        if !lost.is_empty() {
            s.counters.add("participant crashes that lost writes");
        }
        self.became_durable(durable, s);
        // Mostly soon; now and then so late that transactions wait for their deadline.
        let longest = if s.rng.chance(2_500) { 20_000 } else { 5_000 };
        let delay = s.rng.between(10, longest);
        s.after(delay, Happening::RestartParticipant(self.name.clone()));
    }

    /// A crash after which the database is an older one: what was promised as durable is gone. Nobody can mend that;
    /// what is asked is that nobody hides it (rule 6).
    pub(crate) fn crash_and_lose_durable_rows(&mut self, s: &mut Surroundings) {
        if self.process.is_none() {
            return;
        }
        s.counters.add("participants that lost durable rows");
        let lost = self.disk.betray(&mut s.rng);
        trace!(s, "{}: LOSES DURABLE CELLS {lost:?}", self.name);
        for cell in &lost {
            if let Cell::Row(id) = cell {
                s.checker.betrayed(*id);
            }
        }
        self.became_durable(lost, s);
        self.crash(s);
    }

    /// The connection that held some session's work is gone.
    pub(crate) fn lose_a_session(&mut self, s: &mut Surroundings) {
        if let Some(process) = &mut self.process
            && process.sessions.pop_first().is_some()
        {
            s.counters.add("lost sessions");
        }
    }

    fn became_durable(&self, cells: Vec<Cell>, s: &mut Surroundings) {
        for cell in cells {
            if let Cell::Row(id) = cell {
                let state = match self.disk.durable(&cell) {
                    Some(Value::Row(row)) => Some(&row.state),
                    Some(Value::Account { .. } | Value::Applied(_)) | None => None,
                };
                s.checker.row_durable(id, &self.name, state);
            }
        }
    }

    fn row(&self, id: TransactionId) -> Option<&Row> {
        match self.disk.get(&Cell::Row(id)) {
            Some(Value::Row(row)) => Some(row),
            Some(Value::Account { .. } | Value::Applied(_)) | None => None,
        }
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (TransactionId, &State)> {
        self.disk
            .cells()
            .filter_map(|(cell, value)| match (cell, value) {
                (Cell::Row(id), Value::Row(row)) => Some((*id, &row.state)),
                (Cell::Row(_) | Cell::Account(_) | Cell::Applied(_), _) => None,
            })
    }

    /// Balance and reserved, over all accounts.
    pub(crate) fn money(&self) -> (u64, u64) {
        self.disk
            .cells()
            .fold((0, 0), |(balances, all_held), (_, value)| match value {
                Value::Account { balance, held } => (balances + balance, all_held + held),
                Value::Row(_) | Value::Applied(_) => (balances, all_held),
            })
    }

    pub(crate) fn applied(&self, id: TransactionId) -> u32 {
        match self.disk.get(&Cell::Applied(id)) {
            Some(Value::Applied(count)) => *count,
            Some(Value::Row(_) | Value::Account { .. }) | None => 0,
        }
    }

    pub(crate) fn sessions(&self) -> usize {
        self.process
            .as_ref()
            .map_or(0, |process| process.sessions.len())
    }

    pub(crate) fn called(&mut self, call: Call, s: &mut Surroundings) -> Result<(), Crashed> {
        let reply_to = (call.life, call.number);
        if self.process.is_none() {
            let delivery = Delivery::Refused("connection refused".to_owned());
            s.transmit_once(Happening::CallEnds {
                life: call.life,
                number: call.number,
                delivery,
            });
            return Ok(());
        }
        s.crash_point()?;
        let (event, operations) = match call.request {
            Request::Prepare(prepare) => {
                let event = Event::PrepareReceived {
                    digest: prepare.operations.digest(),
                    session: prepare.session,
                    in_time: call.in_time,
                };
                (event, Operation::parse(prepare.operations.text()))
            }
            Request::Commit => (Event::CommitReceived, Vec::new()),
            Request::Abort => (Event::AbortReceived, Vec::new()),
        };
        self.message(call.id, event, operations, Some(reply_to), s)
    }

    /// One message, one local transaction.
    fn message(
        &mut self,
        id: TransactionId,
        event: Event,
        operations: Vec<Operation>,
        reply_to: Option<ReplyTo>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        let stored = match self.disk.get(&Cell::Row(id)) {
            Some(Value::Row(row)) => Some(row.clone()),
            Some(Value::Account { .. } | Value::Applied(_)) | None => None,
        };
        let held = process.sessions.get(&id);
        let state = match (&stored, held) {
            (Some(row), _) => row.state.clone(),
            (None, Some(held)) => State::Active {
                session: held.session.clone(),
            },
            (None, None) => State::Absent,
        };
        let mut row = stored.clone().unwrap_or(Row {
            state: State::Absent,
            operations,
            pieces: BTreeSet::new(),
        });
        if stored.is_none()
            && let Some(held) = held
        {
            row.operations.extend(held.operations.iter().copied());
            row.pieces.clone_from(&held.pieces);
        }
        trace!(s, "{}: {id} {event:?} in {state:?}", self.name);
        let mut branch = Branch::from_row(state);
        let mut local = Local {
            disk: &self.disk,
            writes: BTreeMap::new(),
        };
        let mut effects = Vec::new();
        let mut answers = Vec::new();
        let mut drops_session = false;
        let mut changed = None;
        branch.step(event, &mut effects);
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            s.crash_point()?;
            let mut more = Vec::new();
            match effect {
                Effect::Work | Effect::Apply | Effect::Undo
                    if s.chaos && s.rng.chance(s.temper.service_failure) =>
                {
                    // The service could not find out: rolled back, 503, asked again.
                    s.counters.add("service failures");
                    if let Some((life, number)) = reply_to {
                        let delivery = Delivery::Unknown("503".to_owned());
                        s.transmit_once(Happening::CallEnds {
                            life,
                            number,
                            delivery,
                        });
                    }
                    return Ok(());
                }
                Effect::Work => {
                    let vote = local.prepare(&mut row.operations);
                    branch.step(Event::Worked(vote), &mut more);
                }
                Effect::Apply => {
                    local.commit(id, &row.operations);
                    branch.step(Event::Applied, &mut more);
                }
                Effect::Undo => {
                    local.abort(&row.operations);
                    branch.step(Event::Undone, &mut more);
                }
                Effect::RollBackWork => {
                    local.writes.clear();
                    drops_session = true;
                }
                Effect::ReleaseKeys => {}
                Effect::Store(state) => {
                    row.state = state;
                    local.writes.insert(Cell::Row(id), Value::Row(row.clone()));
                    changed = Some(row.state.clone());
                }
                Effect::Answer {
                    reply: Answer::Reply(reply),
                    forced,
                } => answers.push((reply, forced)),
                Effect::Answer {
                    reply: Answer::PrepareChanged,
                    ..
                } => s
                    .checker
                    .violated(format!("{}: {id} was prepared otherwise", self.name)),
            }
            for effect in more.into_iter().rev() {
                effects.push_front(effect);
            }
        }
        s.crash_point()?;
        let applied = local.applied(id);
        let writes: Vec<_> = local
            .writes
            .into_iter()
            .map(|(cell, value)| (cell, Some(value)))
            .collect();
        let wrote = !writes.is_empty();
        if wrote {
            self.disk.commit(writes);
        }
        let position = self.disk.position();
        if let Some(after) = &changed {
            if matches!(after, State::Prepared { .. })
                && s.checker.changed_from_read_only(id, &self.name)
            {
                s.counters.add("read-only votes that changed");
            }
            let before = stored.as_ref().map(|row| &row.state);
            s.checker
                .row_changed(id, &self.name, before, after, applied, &row.pieces);
        }
        if drops_session || matches!(changed, Some(State::Prepared { .. })) {
            // Its work is in the row, or nowhere.
            process.sessions.remove(&id);
        }
        let any_forced = answers.iter().any(|(_, forced)| *forced);
        if wrote || any_forced {
            let delay = if any_forced {
                // A slow disk, now and then: what is visible stays undurable for long.
                let slow = !s.temper.calm && s.rng.chance(2_000);
                s.rng.between(1, if slow { 1_000 } else { 10 })
            } else {
                s.rng.between(100, 1_500)
            };
            s.after(
                delay,
                Happening::Flush {
                    participant: self.name.clone(),
                    incarnation: self.incarnation,
                    position,
                },
            );
        }
        s.crash_point()?;
        for (reply, forced) in answers {
            if forced {
                if let Some(process) = &mut self.process {
                    process.answers.push((position, id, reply, reply_to));
                }
            } else {
                self.reply(id, reply, reply_to, s);
            }
        }
        Ok(())
    }

    fn reply(&self, id: TransactionId, reply: Reply, to: Option<ReplyTo>, s: &mut Surroundings) {
        let Some((life, number)) = to else {
            return;
        };
        let durable = match self.disk.durable(&Cell::Row(id)) {
            Some(Value::Row(row)) => Some(&row.state),
            Some(Value::Account { .. } | Value::Applied(_)) | None => None,
        };
        let visible = self.row(id).map(|row| &row.state);
        trace!(s, "{}: {id} says {reply:?}", self.name);
        s.checker
            .participant_says(id, &self.name, &reply, visible, durable);
        s.transmit_once(Happening::CallEnds {
            life,
            number,
            delivery: Delivery::Answered(reply),
        });
    }

    pub(crate) fn flush(
        &mut self,
        incarnation: u64,
        position: u64,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        if incarnation != self.incarnation || self.process.is_none() {
            return Ok(());
        }
        s.crash_point()?;
        let durable = self.disk.force(position);
        self.became_durable(durable, s);
        s.crash_point()?;
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        let (ready, waiting) = std::mem::take(&mut process.answers)
            .into_iter()
            .partition(|(position, ..)| self.disk.is_durable(*position));
        process.answers = waiting;
        let ready: Vec<_> = ready;
        for (_, id, reply, to) in ready {
            self.reply(id, reply, to, s);
        }
        Ok(())
    }

    pub(crate) fn inquire(&mut self, incarnation: u64, s: &mut Surroundings) {
        if incarnation != self.incarnation || self.process.is_none() {
            return;
        }
        let in_doubt: Vec<TransactionId> = self
            .rows()
            .filter(|(_, state)| matches!(state, State::Prepared { .. }))
            .map(|(id, _)| id)
            .collect();
        for id in in_doubt {
            s.counters.add("inquiries");
            let asker = Asker {
                who: Who::Participant(self.name.clone()),
                question: 0,
            };
            let question = Question::Outcome {
                id,
                participant: self.name.clone(),
            };
            s.ask(None, asker, question);
        }
        let delay = s.rng.between(500, 3_000);
        s.after(
            delay,
            Happening::InquiryTick {
                participant: self.name.clone(),
                incarnation,
            },
        );
    }

    pub(crate) fn informed(
        &mut self,
        id: TransactionId,
        inform: Inform,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        if inform != Inform::Pending {
            s.counters.add("informs");
        }
        self.message(id, Event::Informed(inform), Vec::new(), None, s)
    }

    /// A client asks for interactive work: the branch is enlisted, with its session, before the first.
    pub(crate) fn work(&mut self, work: Work, s: &mut Surroundings) -> Result<(), Crashed> {
        if self.process.is_none() {
            return Ok(());
        }
        s.crash_point()?;
        let known = self.row(work.id).is_some();
        let (incarnation, name) = (self.incarnation, self.name.clone());
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        if known {
            done(work.asker, false, s);
            return Ok(());
        }
        if let Some(held) = process.sessions.get_mut(&work.id) {
            held.waiting.push(work);
            if held.enlisted {
                carry_out_work(&name, held, s);
            }
            return Ok(());
        }
        self.sessions_drawn += 1;
        let text = format!("{name}-{}", self.sessions_drawn);
        let Ok(session) = text.parse::<Session>() else {
            return Ok(());
        };
        trace!(s, "{name}: {} enlists with session {text}", work.id);
        let id = work.id;
        let node = work.node;
        process.sessions.insert(
            id,
            Held {
                session: session.clone(),
                node,
                enlisted: false,
                operations: Vec::new(),
                pieces: BTreeSet::new(),
                waiting: vec![work],
            },
        );
        self.enlist(id, s);
        s.after(
            700,
            Happening::EnlistSilence {
                participant: name,
                incarnation,
                id,
            },
        );
        Ok(())
    }

    fn enlist(&self, id: TransactionId, s: &mut Surroundings) {
        let Some(held) = self
            .process
            .as_ref()
            .and_then(|process| process.sessions.get(&id))
        else {
            return;
        };
        let asker = Asker {
            who: Who::Enlisting(self.name.clone(), id, held.session.clone()),
            question: 0,
        };
        let question = Question::Enlist {
            id,
            participant: self.name.clone(),
            session: held.session.clone(),
        };
        s.ask(Some(held.node), asker, question);
    }

    /// Nobody answered the enlisting: it is repeated, and given up with the work after a while.
    pub(crate) fn enlist_silence(
        &mut self,
        incarnation: u64,
        id: TransactionId,
        s: &mut Surroundings,
    ) {
        if incarnation != self.incarnation {
            return;
        }
        let Some(process) = &mut self.process else {
            return;
        };
        if process.sessions.get(&id).is_none_or(|held| held.enlisted) {
            return;
        }
        if s.rng.chance(3_000) {
            if let Some(held) = process.sessions.remove(&id) {
                for work in held.waiting {
                    done(work.asker, false, s);
                }
            }
            return;
        }
        self.enlist(id, s);
        s.after(
            700,
            Happening::EnlistSilence {
                participant: self.name.clone(),
                incarnation,
                id,
            },
        );
    }

    pub(crate) fn enlisted(
        &mut self,
        id: TransactionId,
        session: &Session,
        said: &Said,
        s: &mut Surroundings,
    ) {
        let Some(process) = &mut self.process else {
            return;
        };
        let Some(held) = process.sessions.get_mut(&id) else {
            return;
        };
        if held.session != *session || held.enlisted {
            return;
        }
        match said {
            Said::Enlisted {
                answer: Ok(_),
                remaining,
            } => {
                held.enlisted = true;
                carry_out_work(&self.name, held, s);
                let remaining: Millis = *remaining;
                s.after(
                    remaining,
                    Happening::SessionDeadline {
                        participant: self.name.clone(),
                        incarnation: self.incarnation,
                        id,
                        session: session.clone(),
                    },
                );
            }
            // Asked again by the timer.
            Said::Unavailable | Said::OtherNode(_) => {}
            Said::Enlisted { answer: Err(_), .. }
            | Said::Open(_)
            | Said::Committed(_)
            | Said::Aborted(..)
            | Said::Pending(_)
            | Said::KeyReused
            | Said::Forgotten
            | Said::Inform(..)
            | Said::NotThere => {
                if let Some(held) = process.sessions.remove(&id) {
                    for work in held.waiting {
                        done(work.asker, false, s);
                    }
                }
            }
        }
    }

    /// The deadline that the coordinator told at enlisting.
    pub(crate) fn session_deadline(
        &mut self,
        incarnation: u64,
        id: TransactionId,
        session: &Session,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let holds = self
            .process
            .as_ref()
            .and_then(|process| process.sessions.get(&id))
            .is_some_and(|held| held.session == *session);
        if incarnation == self.incarnation && holds {
            s.counters.add("session deadlines");
        }
        if incarnation == self.incarnation {
            // Also where it has voted since: the branch knows that no timer leaves `Prepared`.
            return self.message(id, Event::DeadlinePassed, Vec::new(), None, s);
        }
        Ok(())
    }
}

fn carry_out_work(name: &ParticipantName, held: &mut Held, s: &mut Surroundings) {
    for work in std::mem::take(&mut held.waiting) {
        if held.pieces.insert(work.ordinal) {
            held.operations.extend(Operation::parse(&work.operations));
        }
        s.counters.add("interactive pieces of work");
        s.checker.work_done(work.id, name, work.ordinal);
        done(work.asker, true, s);
    }
}

fn done(asker: Asker, done: bool, s: &mut Surroundings) {
    s.transmit_once(Happening::WorkDone { asker, done });
}
