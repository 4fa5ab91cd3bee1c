//! A participant's shell around [`protocol::branch`](unanimous_protocol::branch): every message is one local
//! transaction over a disk of rows, keys, accounts and counted effects. Several processes may run over one disk; what
//! they hold in memory (interactive work, prepares that wait for a key) ends with them. And a toy ledger as its
//! resource.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
};

use unanimous_protocol::{
    branch::{Answer, Branch, Effect, Event, State},
    id::{Node, ParticipantName, Prefix, TransactionId},
    keys::{self, Age, GiveUp, WAITERS_MAX},
    message::{Delivery, Inform, Refusal, RefusalCode, Reply, Request, Session, Vote},
};

use crate::{
    disk::Disk,
    surroundings::{
        Asker, Call, Clock, Crashed, Happening, LifeNumber, Millis, ProcessNumber, Question, Said,
        Surroundings, Who, Work, trace,
    },
    words,
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
    /// Changes nothing, and holds a key until the outcome.
    Lock {
        key: u64,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debit { account, amount } => write!(f, "debit {account} {amount}"),
            Self::Credit { account, amount } => write!(f, "credit {account} {amount}"),
            Self::Shuffle { from, to, amount } => write!(f, "shuffle {from} {to} {amount}"),
            Self::Look => f.write_str("look"),
            Self::Refuse => f.write_str("refuse"),
            Self::Lock { key } => write!(f, "lock {key}"),
        }
    }
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
            Self::Lock { key } => format!(r#"{{"lock":[{key}]}}"#),
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
            "lock" => Self::Lock { key: number()? },
            _ => Self::Refuse,
        })
    }

    pub(crate) fn parse(text: &str) -> Vec<Self> {
        text.split('}').filter_map(Self::parse_one).collect()
    }
}

/// How often a prepare that waits for a key looks again.
const LOOK_AGAIN: Millis = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Row(TransactionId),
    Key(u64),
    Account(u64),
    Applied(TransactionId),
    /// The low-water mark of a prefix.
    Mark(Prefix),
}

#[derive(Clone, Debug)]
enum Value {
    Row(Row),
    Holder(Age),
    Account { balance: u64, held: u64 },
    Applied(u32),
    Mark(TransactionId),
}

/// What the intent log keeps of a branch.
#[derive(Clone, Debug)]
struct Row {
    /// The participant's name as the branch's prepare said it: the service may be called otherwise by now.
    name: ParticipantName,
    state: State,
    operations: Vec<Operation>,
    /// Interactive pieces of work among them.
    pieces: BTreeSet<u32>,
}

impl Row {
    fn keys(&self) -> impl Iterator<Item = u64> {
        self.operations
            .iter()
            .filter_map(|operation| match operation {
                Operation::Lock { key } => Some(*key),
                Operation::Debit { .. }
                | Operation::Credit { .. }
                | Operation::Shuffle { .. }
                | Operation::Look
                | Operation::Refuse => None,
            })
    }
}

/// Interactive work in memory: it ends with the process.
#[derive(Clone, Debug)]
struct Held {
    session: Session,
    node: Node,
    enlisted: bool,
    /// A prepare has come: nothing is added any more.
    sealed: bool,
    operations: Vec<Operation>,
    pieces: BTreeSet<u32>,
    /// Work that waits for the enlisting.
    waiting: Vec<Work>,
}

/// A prepare that waits for a key.
#[derive(Clone, Debug)]
struct Waiter {
    call: Call,
    key: u64,
    since: Millis,
    number: u64,
}

/// Where an answer to the coordinator goes: the life and the number of its call.
type ReplyTo = (LifeNumber, u64);

/// An answer that waits until its local transaction is durable: its position, and whose answer to whom.
#[derive(Debug)]
struct WaitingAnswer {
    position: u64,
    id: TransactionId,
    reply: Reply,
    to: Option<(ReplyTo, ParticipantName)>,
}

#[derive(Debug)]
struct Process {
    clock: Clock,
    sessions: BTreeMap<TransactionId, Held>,
    waiters: BTreeMap<TransactionId, Waiter>,
    /// Answers that wait for a forced commit.
    answers: Vec<WaitingAnswer>,
}

#[derive(Debug)]
pub(crate) struct Participant {
    name: ParticipantName,
    disk: Disk<Cell, Value>,
    /// Whether the database answers.
    is_up: bool,
    processes: BTreeMap<ProcessNumber, Process>,
    /// How many processes the service runs.
    size: usize,
    started: u32,
    /// The process that acts: whoever crashes, it is that one.
    acting: ProcessNumber,
    incarnation: u64,
    numbers: u64,
    /// Who prepared with a key last: what the rows say is held against it.
    prepared_with: BTreeMap<u64, TransactionId>,
}

/// One local transaction.
struct Local<'a> {
    disk: &'a Disk<Cell, Value>,
    writes: BTreeMap<Cell, Option<Value>>,
}

/// What a branch needs to know of a prepare beside its operations.
#[derive(Clone, Debug)]
struct Preparing {
    call: Call,
    /// Since when it waits for a key.
    since: Option<Millis>,
}

/// A prepare that found a key held.
enum KeyHeld {
    Wait(u64),
    GiveUp(u64, GiveUp),
}

impl Local<'_> {
    fn get(&self, cell: Cell) -> Option<&Value> {
        match self.writes.get(&cell) {
            Some(written) => written.as_ref(),
            None => self.disk.get(&cell),
        }
    }

    fn account(&self, account: u64) -> (u64, u64) {
        match self.get(Cell::Account(account)) {
            Some(Value::Account { balance, held }) => (*balance, *held),
            Some(Value::Row(_) | Value::Applied(_) | Value::Holder(_) | Value::Mark(_)) | None => {
                (0, 0)
            }
        }
    }

    fn set(&mut self, account: u64, balance: u64, held: u64) {
        let value = Value::Account { balance, held };
        self.writes.insert(Cell::Account(account), Some(value));
    }

    fn holder(&self, key: u64) -> Option<Age> {
        match self.get(Cell::Key(key)) {
            Some(Value::Holder(age)) => Some(*age),
            Some(Value::Row(_) | Value::Applied(_) | Value::Account { .. } | Value::Mark(_))
            | None => None,
        }
    }

    /// All keys or none.
    fn take_keys(
        &mut self,
        row: &Row,
        mine: Age,
        waited: Millis,
        crowded: impl Fn(u64) -> bool,
    ) -> Result<(), KeyHeld> {
        for key in row.keys() {
            let held_by = self.holder(key);
            if let Some(holder) = held_by.filter(|holder| holder.transaction != mine.transaction) {
                let wait = keys::wait(mine, holder);
                return Err(if waited >= wait.at_most_ms || crowded(key) {
                    KeyHeld::GiveUp(key, wait.then)
                } else {
                    KeyHeld::Wait(key)
                });
            }
            self.writes
                .insert(Cell::Key(key), Some(Value::Holder(mine)));
        }
        Ok(())
    }

    fn release_keys(&mut self, id: TransactionId, row: &Row) {
        for key in row.keys() {
            if self.holder(key).is_some_and(|age| age.transaction == id) {
                self.writes.insert(Cell::Key(key), None);
            }
        }
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
                Operation::Credit { .. } | Operation::Lock { .. } => does.push(operation),
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
                Operation::Look | Operation::Refuse | Operation::Lock { .. } => {}
            }
        }
        let applied = self.applied(id) + 1;
        self.writes
            .insert(Cell::Applied(id), Some(Value::Applied(applied)));
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
                Operation::Credit { .. }
                | Operation::Look
                | Operation::Refuse
                | Operation::Lock { .. } => {}
            }
        }
    }

    fn applied(&self, id: TransactionId) -> u32 {
        match self.get(Cell::Applied(id)) {
            Some(Value::Applied(count)) => *count,
            Some(Value::Row(_) | Value::Account { .. } | Value::Holder(_) | Value::Mark(_))
            | None => 0,
        }
    }
}

fn refused(reason: &str) -> Vote {
    no(RefusalCode::Refused, reason.to_owned())
}

fn no(code: RefusalCode, reason: String) -> Vote {
    Vote::No(Refusal { code, reason })
}

impl Participant {
    pub(crate) fn new(name: ParticipantName, size: usize, s: &mut Surroundings) -> Self {
        let mut disk = Disk::new(4);
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
            is_up: false,
            processes: BTreeMap::new(),
            size,
            started: 0,
            acting: ProcessNumber(0),
            incarnation: 0,
            numbers: 0,
            prepared_with: BTreeMap::new(),
        };
        participant.start(s);
        participant
    }

    pub(crate) fn is_running(&self) -> bool {
        self.is_up && self.processes.len() == self.size
    }

    /// The database comes up, and its processes.
    pub(crate) fn start(&mut self, s: &mut Surroundings) {
        if !self.is_up {
            self.is_up = true;
            self.incarnation += 1;
        }
        while self.processes.len() < self.size {
            self.start_process(s);
        }
    }

    pub(crate) fn start_process(&mut self, s: &mut Surroundings) {
        if !self.is_up || self.processes.len() >= self.size {
            return;
        }
        self.started += 1;
        let number = ProcessNumber(self.started);
        let process = Process {
            clock: s.clock(),
            sessions: BTreeMap::new(),
            waiters: BTreeMap::new(),
            answers: Vec::new(),
        };
        self.processes.insert(number, process);
        trace!(s, "{}: starts", self.name);
        // At start and while running: every row in doubt inquires.
        self.inquire(number, s);
    }

    /// The process that acted crashes; now and then its database with it.
    pub(crate) fn crashed(&mut self, s: &mut Surroundings) {
        if s.rng.chance(5_000) {
            let keeping = s.rng.between(0, self.disk.unforced() as u64) as usize;
            self.crash(keeping, s);
        } else {
            self.crash_process(self.acting, s);
        }
    }

    pub(crate) fn crash_any_process(&mut self, s: &mut Surroundings) {
        let numbers: Vec<ProcessNumber> = self.processes.keys().copied().collect();
        if let Some(&number) = s.rng.pick(&numbers) {
            self.crash_process(number, s);
        }
    }

    fn crash_process(&mut self, number: ProcessNumber, s: &mut Surroundings) {
        if self.processes.remove(&number).is_some() {
            s.counters.add("participant process crashes");
            trace!(s, "{}: a process crashes", self.name);
            if s.director.is_none() {
                let delay = s.rng.between(10, 5_000);
                s.after(delay, Happening::RestartProcess(self.name.clone()));
            }
        }
    }

    pub(crate) fn unforced(&self) -> usize {
        self.disk.unforced()
    }

    /// The database crashes, and keeps so many of the local transactions that were not forced.
    pub(crate) fn crash(&mut self, keeping: usize, s: &mut Surroundings) {
        if !self.is_up {
            return;
        }
        self.is_up = false;
        self.processes.clear();
        s.counters.add("participant crashes");
        let (lost, durable) = self.disk.crash(keeping);
        trace!(s, "{}: crashes, and loses {}", self.name, cells(&lost));
        if !lost.is_empty() {
            s.counters.add("participant crashes that lost writes");
        }
        self.became_durable(durable, s);
        if s.director.is_none() {
            // Mostly soon; now and then so late that transactions wait for their deadline.
            let longest = if s.rng.chance(2_500) { 20_000 } else { 5_000 };
            let delay = s.rng.between(10, longest);
            s.after(delay, Happening::RestartParticipant(self.name.clone()));
        }
    }

    /// A crash after which the database is an older one: what was promised as durable is gone. Nobody can mend that;
    /// what is asked is that nobody hides it (rule 6).
    pub(crate) fn crash_and_lose_durable_rows(&mut self, count: usize, s: &mut Surroundings) {
        if !self.is_up {
            return;
        }
        s.counters.add("participants that lost durable rows");
        let lost = self.disk.go_back(count);
        trace!(s, "{}: LOSES DURABLE CELLS, {}", self.name, cells(&lost));
        for cell in &lost {
            if let Cell::Row(id) = cell {
                s.checker.betrayed(*id);
            }
        }
        self.became_durable(lost, s);
        self.crash(0, s);
    }

    /// The connection that held some session's work is gone.
    pub(crate) fn lose_a_session(&mut self, s: &mut Surroundings) {
        for process in self.processes.values_mut() {
            if let Some((id, _)) = process.sessions.pop_first() {
                s.counters.add("lost sessions");
                trace!(s, "{}: loses the session of {id}", self.name);
                return;
            }
        }
    }

    fn became_durable(&self, cells: Vec<Cell>, s: &mut Surroundings) {
        for cell in cells {
            if let Cell::Row(id) = cell {
                let state = match self.disk.durable(&cell) {
                    Some(Value::Row(row)) => Some(&row.state),
                    Some(
                        Value::Account { .. }
                        | Value::Applied(_)
                        | Value::Holder(_)
                        | Value::Mark(_),
                    )
                    | None => None,
                };
                let row = self.row(id);
                let name = row.map_or(&self.name, |row| &row.name);
                s.checker.row_durable(id, name, state);
            }
        }
    }

    fn row(&self, id: TransactionId) -> Option<&Row> {
        match self.disk.get(&Cell::Row(id)) {
            Some(Value::Row(row)) => Some(row),
            Some(Value::Account { .. } | Value::Applied(_) | Value::Holder(_) | Value::Mark(_))
            | None => None,
        }
    }

    /// The low-water mark as it is stored.
    fn mark(&self, prefix: Prefix) -> Option<TransactionId> {
        match self.disk.get(&Cell::Mark(prefix)) {
            Some(Value::Mark(mark)) => Some(*mark),
            Some(Value::Row(_) | Value::Account { .. } | Value::Applied(_) | Value::Holder(_))
            | None => None,
        }
    }

    /// One local transaction drops what has an outcome below the mark, and stores the mark (rule 15).
    pub(crate) fn prune(
        &mut self,
        mark: TransactionId,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let prefix = mark.prefix();
        // It never falls: somebody else may have told of a later one.
        let mark = self.mark(prefix).map_or(mark, |stored| stored.max(mark));
        s.crash_point()?;
        let below = self.rows().filter(|(id, state)| {
            let has_ended = matches!(
                state,
                State::Committed { .. } | State::Refused { .. } | State::Aborted | State::Tombstone
            );
            has_ended && id.prefix() == prefix && *id < mark
        });
        let below: Vec<TransactionId> = below.map(|(id, _)| id).collect();
        for &id in &below {
            s.counters.add("rows pruned");
            let name = self.row(id).map_or(&self.name, |row| &row.name);
            s.checker.pruned(id, name);
        }
        trace!(s, "{}: drops {} rows below {mark}", self.name, below.len());
        let mut writes: Vec<_> = below.into_iter().map(|id| (Cell::Row(id), None)).collect();
        writes.push((Cell::Mark(prefix), Some(Value::Mark(mark))));
        let position = self.disk.commit(writes);
        let delay = s.rng.between(100, 1_500);
        let flush = Happening::Flush {
            participant: self.name.clone(),
            incarnation: self.incarnation,
            position,
        };
        s.carry(delay, flush);
        s.crash_point()
    }

    /// The marks that are stored.
    pub(crate) fn marks(&self) -> Vec<TransactionId> {
        let marks = self.disk.cells().filter_map(|(_, value)| match value {
            Value::Mark(mark) => Some(*mark),
            Value::Row(_) | Value::Holder(_) | Value::Account { .. } | Value::Applied(_) => None,
        });
        marks.collect()
    }

    /// Rows below the mark that is stored.
    pub(crate) fn rows_below_the_mark(&self) -> impl Iterator<Item = TransactionId> {
        let below = |id: &TransactionId| self.mark(id.prefix()).is_some_and(|mark| *id < mark);
        self.rows().map(|(id, _)| id).filter(move |id| below(id))
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = (TransactionId, &State)> {
        self.disk
            .cells()
            .filter_map(|(cell, value)| match (cell, value) {
                (Cell::Row(id), Value::Row(row)) => Some((*id, &row.state)),
                (
                    Cell::Row(_)
                    | Cell::Account(_)
                    | Cell::Applied(_)
                    | Cell::Key(_)
                    | Cell::Mark(_),
                    _,
                ) => None,
            })
    }

    /// Balance and reserved, over all accounts.
    pub(crate) fn money(&self) -> (u64, u64) {
        self.disk
            .cells()
            .fold((0, 0), |(balances, all_held), (_, value)| match value {
                Value::Account { balance, held } => (balances + balance, all_held + held),
                Value::Row(_) | Value::Applied(_) | Value::Holder(_) | Value::Mark(_) => {
                    (balances, all_held)
                }
            })
    }

    /// Keys that are held, and by whom.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (u64, TransactionId)> {
        self.disk
            .cells()
            .filter_map(|(cell, value)| match (cell, value) {
                (Cell::Key(key), Value::Holder(age)) => Some((*key, age.transaction)),
                (
                    Cell::Row(_)
                    | Cell::Account(_)
                    | Cell::Applied(_)
                    | Cell::Key(_)
                    | Cell::Mark(_),
                    _,
                ) => None,
            })
    }

    pub(crate) fn accounts(&self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.disk
            .cells()
            .filter_map(|(cell, value)| match (cell, value) {
                (Cell::Account(account), Value::Account { balance, held }) => {
                    Some((*account, *balance, *held))
                }
                (
                    Cell::Row(_)
                    | Cell::Account(_)
                    | Cell::Applied(_)
                    | Cell::Key(_)
                    | Cell::Mark(_),
                    _,
                ) => None,
            })
    }

    pub(crate) fn applied(&self, id: TransactionId) -> u32 {
        match self.disk.get(&Cell::Applied(id)) {
            Some(Value::Applied(count)) => *count,
            Some(Value::Row(_) | Value::Account { .. } | Value::Holder(_) | Value::Mark(_))
            | None => 0,
        }
    }

    /// What its processes hold in memory: after healing, nothing may be.
    pub(crate) fn leftovers(&self) -> Option<String> {
        let mut left = self.processes.values().flat_map(|process| {
            [
                ("sessions", process.sessions.len()),
                ("waiting prepares", process.waiters.len()),
                ("answers", process.answers.len()),
            ]
        });
        left.find(|(_, count)| *count > 0)
            .map(|(what, count)| format!("{count} {what}"))
    }

    /// The service is called otherwise from now on, and answers to its former name too.
    pub(crate) fn rename(&mut self, name: ParticipantName) {
        self.name = name;
    }

    /// Some process that runs, and acts from now on.
    fn any_process(&mut self, s: &mut Surroundings) -> Option<ProcessNumber> {
        let at = match self.processes.len() {
            0 => return None,
            1 => 0,
            more => s.rng.below(more as u64) as usize,
        };
        self.acting = *self.processes.keys().nth(at)?;
        Some(self.acting)
    }

    pub(crate) fn called(&mut self, call: Call, s: &mut Surroundings) -> Result<(), Crashed> {
        let Some(process) = self.any_process(s) else {
            let why = "connection refused".to_owned();
            call_ends(&call, Delivery::Refused(why), s);
            return Ok(());
        };
        s.crash_point()?;
        // A round of pruning, now and then.
        if let Some(mark) = call.low_water
            && mark.prefix() == call.id.prefix()
            && s.director.is_none()
            && s.rng.chance(3_000)
        {
            self.prune(mark, s)?;
        }
        match call.request.clone() {
            Request::Prepare(_) => {
                let preparing = Preparing { call, since: None };
                self.prepare(process, preparing, s)
            }
            Request::Commit => {
                let reply_to = Some((call.life, call.number));
                self.message(process, call.id, Event::CommitReceived, None, reply_to, s)
            }
            Request::Abort => {
                let waiting = self
                    .processes
                    .get_mut(&process)
                    .and_then(|process| process.waiters.remove(&call.id));
                if let Some(waiter) = waiting {
                    let why = "an abort arrived while it waited".to_owned();
                    call_ends(&waiter.call, Delivery::Unknown(why), s);
                }
                let reply_to = Some((call.life, call.number));
                self.message(process, call.id, Event::AbortReceived, None, reply_to, s)
            }
        }
    }

    fn prepare(
        &mut self,
        number: ProcessNumber,
        preparing: Preparing,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let call = &preparing.call;
        let (id, reply_to) = (call.id, (call.life, call.number));
        let Request::Prepare(prepare) = &call.request else {
            return Ok(());
        };
        let Some(process) = self.processes.get_mut(&number) else {
            return Ok(());
        };
        if preparing.since.is_none()
            && let Some(waiter) = process.waiters.get_mut(&id)
        {
            // A repeat joins the one that waits.
            waiter.call = preparing.call;
            return Ok(());
        }
        if let Some(held) = process.sessions.get_mut(&id) {
            held.sealed = true;
        }
        let waited = preparing.since.map_or(0, |since| s.now - since);
        let event = Event::PrepareReceived {
            digest: prepare.operations.digest(),
            session: prepare.session.clone(),
            in_time: call.remaining > process.clock.counts(waited),
        };
        self.message(number, id, event, Some(preparing), Some(reply_to), s)
    }

    /// A prepare that waits for a key looks again.
    pub(crate) fn look_again(
        &mut self,
        number: ProcessNumber,
        waiter: u64,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        self.acting = number;
        let Some(process) = self.processes.get_mut(&number) else {
            return Ok(());
        };
        let found = process
            .waiters
            .iter()
            .find(|(_, waiting)| waiting.number == waiter);
        let Some((&id, _)) = found else {
            return Ok(());
        };
        let Some(waiting) = process.waiters.remove(&id) else {
            return Ok(());
        };
        let preparing = Preparing {
            call: waiting.call,
            since: Some(waiting.since),
        };
        self.prepare(number, preparing, s)
    }

    /// One message, one local transaction.
    fn message(
        &mut self,
        number: ProcessNumber,
        id: TransactionId,
        event: Event,
        preparing: Option<Preparing>,
        reply_to: Option<ReplyTo>,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        self.acting = number;
        let low_water = self.mark(id.prefix());
        let Some(process) = self.processes.get_mut(&number) else {
            return Ok(());
        };
        let stored = match self.disk.get(&Cell::Row(id)) {
            Some(Value::Row(row)) => Some(row.clone()),
            Some(Value::Account { .. } | Value::Applied(_) | Value::Holder(_) | Value::Mark(_))
            | None => None,
        };
        let held = process.sessions.get(&id);
        let state = match &stored {
            Some(row) => row.state.clone(),
            None => {
                let session = held.map(|held| held.session.clone());
                State::without_row(id, session, low_water)
            }
        };
        let operations = match preparing.as_ref().map(|preparing| &preparing.call.request) {
            Some(Request::Prepare(prepare)) => Operation::parse(prepare.operations.text()),
            Some(Request::Commit | Request::Abort) | None => Vec::new(),
        };
        let name = preparing
            .as_ref()
            .map_or(&self.name, |p| &p.call.participant);
        let mut row = stored.clone().unwrap_or(Row {
            name: name.clone(),
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
        let told = s.trace.is_some().then(|| {
            format!(
                "{}: {id} {} in {}",
                self.name,
                words::branch_event(&event),
                words::branch(&state)
            )
        });
        let mut branch = Branch::from_row(state);
        let mut local = Local {
            disk: &self.disk,
            writes: BTreeMap::new(),
        };
        let mut effects = Vec::new();
        let mut answers = Vec::new();
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
                    if let Some(to) = reply_to {
                        let failed = Delivery::Unknown("503".to_owned());
                        ends(to, id, &row.name, failed, s);
                    }
                    return Ok(());
                }
                Effect::Work => {
                    let begun_at_ms = preparing.as_ref().map_or(0, |p| p.call.begun_at_ms);
                    let mine = Age {
                        begun_at_ms,
                        transaction: id,
                    };
                    let since = preparing.as_ref().and_then(|p| p.since);
                    let waited = since.map_or(0, |since| process.clock.counts(s.now - since));
                    let crowded = |key| {
                        let waiting = process.waiters.values();
                        waiting.filter(|waiter| waiter.key == key).count() >= WAITERS_MAX
                    };
                    let vote = match local.take_keys(&row, mine, waited, crowded) {
                        Ok(()) => local.prepare(&mut row.operations),
                        Err(KeyHeld::GiveUp(key, GiveUp::Conflict)) => {
                            s.counters.add("prepares refused for a key");
                            let reason = format!("another transaction holds the key {key}");
                            no(RefusalCode::Conflict, reason)
                        }
                        Err(KeyHeld::GiveUp(key, GiveUp::Busy)) => {
                            s.counters.add("prepares that gave up waiting for a key");
                            trace!(s, "{}: {id} waited for key {key} in vain", self.name);
                            if let Some(to) = reply_to {
                                let busy = Delivery::Unknown("503 key-busy".to_owned());
                                ends(to, id, &row.name, busy, s);
                            }
                            return Ok(());
                        }
                        Err(KeyHeld::Wait(key)) => {
                            if since.is_none() {
                                s.counters.add("prepares that wait for a key");
                                trace!(s, "{}: {id} waits for key {key}", self.name);
                            }
                            let Some(Preparing { call, since }) = preparing else {
                                return Ok(());
                            };
                            self.numbers += 1;
                            let waiter = Waiter {
                                call,
                                key,
                                since: since.unwrap_or(s.now),
                                number: self.numbers,
                            };
                            process.waiters.insert(id, waiter);
                            let happening = Happening::KeyWait {
                                participant: self.name.clone(),
                                process: number,
                                waiter: self.numbers,
                            };
                            s.after(process.clock.takes(LOOK_AGAIN), happening);
                            return Ok(());
                        }
                    };
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
                Effect::RollBackWork => local.writes.clear(),
                Effect::ReleaseKeys => local.release_keys(id, &row),
                Effect::Store(state) => {
                    row.state = state;
                    local
                        .writes
                        .insert(Cell::Row(id), Some(Value::Row(row.clone())));
                    changed = Some(row.state.clone());
                }
                Effect::Answer {
                    reply: Answer::Reply(reply),
                    forced,
                } => answers.push((reply, forced)),
                Effect::Answer {
                    reply: Answer::BelowLowWater { low_water },
                    ..
                } => {
                    s.counters.add("prepares below the low-water mark");
                    trace!(s, "{}: {id} is below {low_water}", self.name);
                    s.checker.refused_below_the_mark(id, &row.name);
                    if let Some(to) = reply_to {
                        let ended = no(RefusalCode::BelowLowWater, "it has ended".to_owned());
                        ends(to, id, &row.name, Delivery::Answered(Reply::Vote(ended)), s);
                    }
                }
                Effect::Answer {
                    reply: Answer::PrepareChanged,
                    ..
                } => {
                    if s.director.is_none() {
                        s.checker
                            .violated(format!("{}: {id} was prepared otherwise", self.name));
                    }
                    trace!(s, "{}: {id} was prepared otherwise", self.name);
                    if let Some(to) = reply_to {
                        let changed = Delivery::Answered(Reply::Vote(refused("prepare-changed")));
                        ends(to, id, &row.name, changed, s);
                    }
                }
            }
            for effect in more.into_iter().rev() {
                effects.push_front(effect);
            }
        }
        s.crash_point()?;
        let applied = local.applied(id);
        let writes: Vec<_> = local.writes.into_iter().collect();
        let wrote = !writes.is_empty();
        if wrote {
            self.disk.commit(writes);
        }
        let position = self.disk.position();
        if let Some(told) = told {
            let now = changed
                .as_ref()
                .map_or(String::new(), |state| format!("; {}", words::branch(state)));
            trace!(s, "{told}{now}");
        }
        if let Some(after) = &changed {
            if matches!(after, State::Prepared { .. })
                && s.checker.changed_from_read_only(id, &row.name)
            {
                s.counters.add("read-only votes that changed");
            }
            let before = stored.as_ref().map(|row| &row.state);
            s.checker
                .row_changed(id, &row.name, before, after, applied, &row.pieces);
        }
        let pruned = matches!(branch.state(), State::Pruned { .. });
        if stored.is_some() || changed.is_some() || pruned {
            // The row answers from now on. After a read-only vote there is none: a repeat must find the work.
            process.sessions.remove(&id);
        } else if process.sessions.contains_key(&id) && !answers.is_empty() {
            s.counters.add("interactive branches that voted read-only");
        }
        if matches!(changed, Some(State::Prepared { .. })) {
            for key in row.keys() {
                self.prepared_with_key(key, id, s);
            }
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
            s.carry(
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
                if let Some(process) = self.processes.get_mut(&number) {
                    let to = reply_to.map(|to| (to, row.name.clone()));
                    process.answers.push(WaitingAnswer {
                        position,
                        id,
                        reply,
                        to,
                    });
                }
            } else {
                let to = reply_to.map(|to| (to, row.name.clone()));
                self.reply(id, reply, to, s);
            }
        }
        Ok(())
    }

    /// A key is held from a yes until the outcome, by one branch.
    fn prepared_with_key(&mut self, key: u64, id: TransactionId, s: &mut Surroundings) {
        let before = self.prepared_with.insert(key, id);
        if let Some(other) = before.filter(|other| *other != id)
            && let Some(row) = self.row(other)
            && matches!(row.state, State::Prepared { .. })
        {
            s.checker.violated(format!(
                "{}: key {key} is held by {other}, and {id} has taken it",
                self.name
            ));
        }
    }

    fn reply(
        &self,
        id: TransactionId,
        reply: Reply,
        to: Option<(ReplyTo, ParticipantName)>,
        s: &mut Surroundings,
    ) {
        let Some((to, name)) = to else {
            return;
        };
        let durable = match self.disk.durable(&Cell::Row(id)) {
            Some(Value::Row(row)) => Some(&row.state),
            Some(Value::Account { .. } | Value::Applied(_) | Value::Holder(_) | Value::Mark(_))
            | None => None,
        };
        let pruned = self
            .mark(id.prefix())
            .filter(|mark| id < *mark)
            .map(|low_water| State::Pruned { low_water });
        let row = self.row(id).map(|row| &row.state);
        let visible = row.or(pruned.as_ref());
        trace!(s, "{name} → {}: {id} {}", to.0, words::reply(&reply));
        s.checker
            .participant_says(id, &name, &reply, visible, durable);
        ends(to, id, &name, Delivery::Answered(reply), s);
    }

    /// The database has forced its log.
    pub(crate) fn flush(
        &mut self,
        incarnation: u64,
        position: u64,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        if incarnation != self.incarnation || !self.is_up {
            return Ok(());
        }
        let durable = self.disk.force(position);
        self.became_durable(durable, s);
        let numbers: Vec<ProcessNumber> = self.processes.keys().copied().collect();
        for number in numbers {
            let Some(process) = self.processes.get_mut(&number) else {
                continue;
            };
            let (ready, waiting) = std::mem::take(&mut process.answers)
                .into_iter()
                .partition(|answer| self.disk.is_durable(answer.position));
            process.answers = waiting;
            let ready: Vec<WaitingAnswer> = ready;
            for answer in ready {
                self.acting = number;
                s.crash_point()?;
                self.reply(answer.id, answer.reply, answer.to, s);
            }
        }
        Ok(())
    }

    pub(crate) fn inquire(&mut self, number: ProcessNumber, s: &mut Surroundings) {
        let Some(process) = self.processes.get(&number) else {
            return;
        };
        let clock = process.clock;
        let in_doubt: Vec<(TransactionId, ParticipantName)> = self
            .disk
            .cells()
            .filter_map(|(cell, value)| match (cell, value) {
                (Cell::Row(id), Value::Row(row)) if matches!(row.state, State::Prepared { .. }) => {
                    Some((*id, row.name.clone()))
                }
                (
                    Cell::Row(_)
                    | Cell::Account(_)
                    | Cell::Applied(_)
                    | Cell::Key(_)
                    | Cell::Mark(_),
                    _,
                ) => None,
            })
            .collect();
        for (id, name) in in_doubt {
            s.counters.add("inquiries");
            let asker = Asker {
                who: Who::Participant(self.name.clone()),
                question: 0,
            };
            trace!(s, "{}: inquires about {id} of {name}", self.name);
            let question = Question::Outcome {
                id,
                participant: name,
            };
            s.ask(None, asker, question);
        }
        let delay = s.rng.between(500, 3_000);
        s.after(
            clock.takes(delay),
            Happening::InquiryTick {
                participant: self.name.clone(),
                process: number,
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
        let Some(process) = self.any_process(s) else {
            return Ok(());
        };
        self.message(process, id, Event::Informed(inform), None, None, s)
    }

    /// A client asks for interactive work: the branch is enlisted, with its session, before the first.
    pub(crate) fn work(&mut self, work: Work, s: &mut Surroundings) -> Result<(), Crashed> {
        let Some(number) = self.any_process(s) else {
            return Ok(());
        };
        s.crash_point()?;
        let known = self.row(work.id).is_some();
        let name = self.name.clone();
        let Some(process) = self.processes.get_mut(&number) else {
            return Ok(());
        };
        if known {
            done(work.asker, false, s);
            return Ok(());
        }
        if let Some(held) = process.sessions.get_mut(&work.id) {
            if held.sealed {
                done(work.asker, false, s);
                return Ok(());
            }
            held.waiting.push(work);
            if held.enlisted {
                carry_out_work(&name, held, s);
            }
            return Ok(());
        }
        self.numbers += 1;
        let text = format!("{name}-{}", self.numbers);
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
                sealed: false,
                operations: Vec::new(),
                pieces: BTreeSet::new(),
                waiting: vec![work],
            },
        );
        self.enlist(number, id, s);
        s.after(
            700,
            Happening::EnlistSilence {
                participant: name,
                process: number,
                id,
            },
        );
        Ok(())
    }

    fn enlist(&self, number: ProcessNumber, id: TransactionId, s: &mut Surroundings) {
        let Some(held) = self
            .processes
            .get(&number)
            .and_then(|process| process.sessions.get(&id))
        else {
            return;
        };
        let asker = Asker {
            who: Who::Enlisting(self.name.clone(), number, id, held.session.clone()),
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
        number: ProcessNumber,
        id: TransactionId,
        s: &mut Surroundings,
    ) {
        let Some(process) = self.processes.get_mut(&number) else {
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
        self.enlist(number, id, s);
        s.after(
            700,
            Happening::EnlistSilence {
                participant: self.name.clone(),
                process: number,
                id,
            },
        );
    }

    pub(crate) fn enlisted(
        &mut self,
        number: ProcessNumber,
        id: TransactionId,
        session: &Session,
        said: &Said,
        s: &mut Surroundings,
    ) {
        let Some(process) = self.processes.get_mut(&number) else {
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
                    process.clock.takes(remaining),
                    Happening::SessionDeadline {
                        participant: self.name.clone(),
                        process: number,
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
        number: ProcessNumber,
        id: TransactionId,
        session: &Session,
        s: &mut Surroundings,
    ) -> Result<(), Crashed> {
        let Some(process) = self.processes.get(&number) else {
            return Ok(());
        };
        let holds = process.sessions.get(&id);
        if holds.is_some_and(|held| held.session == *session) {
            s.counters.add("session deadlines");
        }
        // Also where it has voted since: the branch knows that no timer leaves `Prepared`.
        self.message(number, id, Event::DeadlinePassed, None, None, s)
    }
}

fn call_ends(call: &Call, delivery: Delivery<Reply>, s: &mut Surroundings) {
    ends(
        (call.life, call.number),
        call.id,
        &call.participant,
        delivery,
        s,
    );
}

fn ends(
    (life, number): ReplyTo,
    id: TransactionId,
    participant: &ParticipantName,
    delivery: Delivery<Reply>,
    s: &mut Surroundings,
) {
    s.transmit_once(Happening::CallEnds {
        life,
        number,
        id,
        participant: participant.clone(),
        delivery,
    });
}

fn cells(cells: &[Cell]) -> String {
    let names: Vec<String> = cells
        .iter()
        .filter_map(|cell| match cell {
            Cell::Row(id) => Some(format!("the row of {id}")),
            Cell::Key(key) => Some(format!("key {key}")),
            Cell::Mark(prefix) => Some(format!("the mark of {prefix}")),
            Cell::Account(_) | Cell::Applied(_) => None,
        })
        .collect();
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}

fn carry_out_work(name: &ParticipantName, held: &mut Held, s: &mut Surroundings) {
    for work in std::mem::take(&mut held.waiting) {
        if held.pieces.insert(work.ordinal) {
            held.operations.extend(Operation::parse(&work.operations));
        }
        s.counters.add("interactive pieces of work");
        trace!(s, "{name}: {} holds work {}", work.id, work.operations);
        s.checker.work_done(work.id, name, work.ordinal);
        done(work.asker, true, s);
    }
}

fn done(asker: Asker, done: bool, s: &mut Surroundings) {
    trace!(
        s,
        "work of {}: {}",
        words::who(&asker),
        if done { "done" } else { "not done" }
    );
    s.transmit_once(Happening::WorkDone { asker, done });
}
