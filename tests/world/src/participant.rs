//! A participant's shell around [`protocol::branch`](unanimous_protocol::branch): every message is one local
//! transaction over a disk of rows, keys, accounts and counted effects. Several processes may run over one disk; what
//! they hold in memory (interactive work, prepares that wait for a key) ends with them. And a toy ledger as its
//! resource.

mod interactive;
mod lane;
mod ledger;
mod local;
mod message;
mod storage;
mod together;

use std::collections::{BTreeMap, BTreeSet};

use unanimous_protocol::{
    branch::{Event, State},
    id::{Node, ParticipantName, TransactionId},
    message::{Inform, Reply, Session},
};

pub(crate) use self::ledger::{ACCOUNTS, BALANCE, Operation};
use self::{
    lane::{Lane, Promises},
    local::{Cell, Value},
};
use crate::{
    disk::Disk,
    surroundings::{
        Asker, Call, Clock, Crashed, Happening, Millis, ProcessNumber, Question, ReplyTo,
        Surroundings, Who, Work, trace,
    },
};

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
    lane: Lane,
}

#[derive(Debug)]
pub(crate) struct Participant {
    name: ParticipantName,
    disk: Disk<Cell, Value>,
    /// Whether the database answers.
    is_up: bool,
    processes: BTreeMap<ProcessNumber, Process>,
    /// What a load balancer was told, in a script.
    routed_to: Option<usize>,
    /// How many processes the service runs.
    size: usize,
    started: u32,
    /// The process that acts: whoever crashes, it is that one.
    acting: ProcessNumber,
    incarnation: u64,
    numbers: u64,
    /// What processes remember that lived on when the database crashed.
    outlived: Vec<Promises>,
    /// Who prepared with a key last: what the rows say is held against it.
    prepared_with: BTreeMap<u64, TransactionId>,
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
            routed_to: None,
            started: 0,
            acting: ProcessNumber(0),
            incarnation: 0,
            numbers: 0,
            outlived: Vec::new(),
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
        let mut process = Process {
            clock: s.clock(),
            sessions: BTreeMap::new(),
            waiters: BTreeMap::new(),
            answers: Vec::new(),
            lane: Lane::default(),
        };
        // Or it has lived on, without its connections, when the database crashed.
        if let Some(promises) = self.outlived.pop() {
            process.lane.promises = promises;
        }
        self.processes.insert(number, process);
        trace!(s, "{}: starts", self.name);
        // At start and while running: every row in doubt inquires.
        self.inquire(number, s);
    }

    /// What its processes hold in memory: after healing, nothing may be.
    pub(crate) fn leftovers(&self) -> Option<String> {
        let mut left = self.processes.values().flat_map(|process| {
            [
                ("sessions", process.sessions.len()),
                ("waiting prepares", process.waiters.len()),
                ("answers", process.answers.len()),
                ("messages that wait for company", process.lane.len()),
            ]
        });
        left.find(|(_, count)| *count > 0)
            .map(|(what, count)| format!("{count} {what}"))
    }

    /// The service is called otherwise from now on, and answers to its former name too.
    pub(crate) fn rename(&mut self, name: ParticipantName) {
        self.name = name;
    }

    /// From now on what comes arrives at this one of its processes.
    pub(crate) fn route_to(&mut self, at: usize) {
        self.routed_to = Some(at);
    }

    /// So many processes run over its database from now on.
    pub(crate) fn resize(&mut self, size: usize, s: &mut Surroundings) {
        self.size = size;
        self.start(s);
    }

    /// Some process that runs, and acts from now on.
    fn any_process(&mut self, s: &mut Surroundings) -> Option<ProcessNumber> {
        let at = match self.processes.len() {
            0 => return None,
            all if self.routed_to.is_some_and(|at| at < all) => self.routed_to?,
            1 => 0,
            more => s.rng.below(more as u64) as usize,
        };
        self.acting = *self.processes.keys().nth(at)?;
        Some(self.acting)
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
        self.outcome(process, id, Event::Informed(inform), None, s)
    }
}
