//! The decision log as its contract describes it: epochs, a conditional decide, unique keys, unforced appends, and
//! every way in which a write can end unclearly. It is a server of its own: coordinators die without it, and it
//! without them.

use std::sync::Arc;

use unanimous_protocol::{
    id::{Epoch, LogIdentity, Node, Prefix, TransactionId},
    life::{Head, Shut, Snapshot, Writer},
    record::{Header, IdempotencyKey, Record, Standing, Verdict, WallMillis},
};

use crate::{
    disk::Disk,
    surroundings::{CLOCK_ERROR, Happening, LifeNumber, Millis, Surroundings, trace},
    words,
};

/// No write stays unclear for longer, in milliseconds.
const UNCLEAR_AT_MOST: i64 = 45_000;

/// Of the first log; a new identity counts on from there.
const FIRST_IDENTITY: LogIdentity = LogIdentity(0x0015_2f0d);

/// Tells what is on its way to a copy's disk apart.
const OF_A_COPY: u64 = 1 << 32;

/// So many durable writes can be lost by a log that goes back.
const HISTORY: usize = 12;

#[derive(Clone, Debug)]
pub(crate) enum Request {
    OpenEpoch,
    /// Another node's, to adopt it.
    Adopt(Node),
    /// Decisions, and what rides with them. `forced` is false for what ended without a forced write.
    Write(Write),
    Outcome(TransactionId),
    ByKey(IdempotencyKey),
    Head,
    /// Of a node that was adopted.
    HeadOf(Node),
    /// A life found that the log went back; no other one may begin on it (docs/adr/0003).
    Remember,
}

impl Request {
    /// The words by which a script finds it.
    pub(crate) fn words(&self, name: impl Fn(TransactionId) -> String) -> Vec<String> {
        let (kind, ids): (&str, Vec<TransactionId>) = match self {
            Self::OpenEpoch => ("open", Vec::new()),
            Self::Adopt(_) => ("adopt", Vec::new()),
            Self::Write(write) if write.proposals.is_empty() => ("append", write.ids().collect()),
            Self::Write(write) => ("decide", write.ids().collect()),
            Self::Outcome(id) => ("read", vec![*id]),
            Self::ByKey(_) => ("by-key", Vec::new()),
            Self::Head => ("head", Vec::new()),
            Self::HeadOf(_) => ("head-of", Vec::new()),
            Self::Remember => ("remember", Vec::new()),
        };
        std::iter::once(kind.to_owned())
            .chain(ids.into_iter().map(name))
            .collect()
    }
}

impl Write {
    fn ids(&self) -> impl Iterator<Item = TransactionId> {
        let records = self.proposals.iter().chain(&self.appends);
        records
            .map(|record| record.header.id)
            .chain(self.finishes.iter().copied())
    }
}

impl Answer {
    /// The words by which a script finds it.
    pub(crate) fn words(&self, name: impl Fn(TransactionId) -> String) -> Vec<String> {
        match self {
            Self::Opened { .. } => vec!["opened".to_owned()],
            Self::Written { standings, .. } => {
                let decided = if standings.is_empty() {
                    "appended"
                } else {
                    "decided"
                };
                std::iter::once(decided.to_owned())
                    .chain(standings.iter().map(|(id, _)| name(*id)))
                    .collect()
            }
            Self::Shut(_) => vec!["shut".to_owned()],
            Self::Found { .. } => vec!["found".to_owned()],
            Self::Key(_) => vec!["found-key".to_owned()],
            Self::Head(_) => vec!["head-read".to_owned()],
            Self::Unavailable => vec!["unavailable".to_owned()],
            Self::Remembered => vec!["remembered".to_owned()],
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Write {
    pub(crate) writer: Option<Writer>,
    pub(crate) proposals: Vec<Record>,
    pub(crate) appends: Vec<Record>,
    pub(crate) finishes: Vec<TransactionId>,
}

#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Opened {
        writer: Writer,
        unfinished: Vec<Record>,
    },
    Written {
        standings: Vec<(TransactionId, Standing)>,
        decisions: u64,
    },
    Shut(Shut),
    Found {
        snapshot: Snapshot,
        record: Option<Record>,
    },
    Key(Option<Record>),
    Head(Head),
    /// Nothing is known of what was asked.
    Unavailable,
    Remembered,
}

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It never arrives.
    Lost,
    /// It is carried out, and the answer is lost.
    AnswerLost,
    /// It is carried out and visible, its wait for durability was cut off, and the answer is lost: a cancelled wait
    /// for a synchronous standby.
    VisibleOnly,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Head(Node),
    Record(TransactionId),
    Key(IdempotencyKey),
    Forgotten(Prefix),
}

#[derive(Clone, Debug)]
enum Value {
    Head { epoch: u32, decisions: u64 },
    Record(Record),
    Holder(TransactionId),
    Mark(TransactionId),
}

/// An unforced write that waits to become durable before its writer is told.
#[derive(Clone, Debug)]
struct Waiting {
    position: u64,
    life: LifeNumber,
    number: u64,
    answer: Answer,
}

#[derive(Clone, Debug)]
pub(crate) struct Log {
    disk: Disk<Cell, Value>,
    identity: LogIdentity,
    former: Vec<LogIdentity>,
    /// The mark beside the log: a life found that it went back.
    went_back: bool,
    /// It went back, and no life has found out yet.
    unnoticed: bool,
    incarnation: u64,
    down_until: Millis,
    waiting: Vec<Waiting>,
}

type Writes = Vec<(Cell, Option<Value>)>;

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            disk: Disk::new(HISTORY),
            identity: FIRST_IDENTITY,
            former: Vec::new(),
            went_back: false,
            unnoticed: false,
            incarnation: 0,
            down_until: 0,
            waiting: Vec::new(),
        }
    }

    /// Another server with what this one holds now. Whatever is on its way to or from this one is not its concern.
    pub(crate) fn copied(&self) -> Self {
        Self {
            incarnation: self.incarnation + OF_A_COPY,
            waiting: Vec::new(),
            ..self.clone()
        }
    }

    pub(crate) fn is_down(&self, s: &Surroundings) -> bool {
        s.now < self.down_until
    }

    pub(crate) fn outage(&mut self, duration: Millis, s: &mut Surroundings) {
        s.counters.add("log outages");
        trace!(s, "log: unavailable for {duration} ms");
        self.down_until = s.now + duration;
    }

    pub(crate) fn heal(&mut self) {
        self.down_until = 0;
    }

    pub(crate) fn crash(&mut self, s: &mut Surroundings) {
        s.counters.add("log crashes");
        self.incarnation += 1;
        let keeping = s.rng.between(0, self.disk.unforced() as u64) as usize;
        let (lost, durable) = self.disk.crash(keeping);
        trace!(s, "log: crashes, and loses {}", cells(&lost));
        if !lost.is_empty() {
            s.counters.add("log crashes that lost writes");
        }
        self.became_durable(durable, s);
        for waiting in std::mem::take(&mut self.waiting) {
            answer(
                waiting.life,
                waiting.number,
                Answer::Unavailable,
                Some(50),
                s,
            );
        }
        let duration = s.rng.between(10, 3_000);
        self.down_until = s.now + duration;
    }

    pub(crate) fn asked(
        &mut self,
        life: LifeNumber,
        node: Node,
        number: u64,
        request: &Request,
        fault: Option<Fault>,
        s: &mut Surroundings,
    ) {
        if self.is_down(s) {
            return answer(life, number, Answer::Unavailable, None, s);
        }
        let reply = match request {
            Request::OpenEpoch => self.open_epoch(node, s),
            Request::Adopt(node) => self.open_epoch(*node, s),
            Request::Write(write) => {
                let (reply, position) = self.write(node, write, fault, s);
                if !self.disk.is_durable(position)
                    && fault.is_none()
                    && !matches!(reply, Answer::Shut(_))
                {
                    self.waiting.push(Waiting {
                        position,
                        life,
                        number,
                        answer: reply,
                    });
                    return;
                }
                reply
            }
            Request::Outcome(id) => self.outcome(*id, s),
            Request::ByKey(key) => {
                let found = self.by_key(key);
                if let Some(record) = &found {
                    self.confirm(record.header.id, s);
                }
                Answer::Key(found)
            }
            Request::Head => Answer::Head(self.head(node)),
            Request::HeadOf(node) => Answer::Head(self.head(*node)),
            Request::Remember => {
                self.went_back = self.unnoticed;
                Answer::Remembered
            }
        };
        if fault.is_none() {
            answer(life, number, reply, None, s);
        }
    }

    fn head_of(&self, node: Node) -> (u32, u64) {
        match self.disk.get(&Cell::Head(node)) {
            Some(Value::Head { epoch, decisions }) => (*epoch, *decisions),
            Some(Value::Record(_) | Value::Holder(_) | Value::Mark(_)) | None => (0, 0),
        }
    }

    pub(crate) fn record(&self, id: TransactionId) -> Option<&Record> {
        match self.disk.get(&Cell::Record(id)) {
            Some(Value::Record(record)) => Some(record),
            Some(Value::Head { .. } | Value::Holder(_) | Value::Mark(_)) | None => None,
        }
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Record> {
        self.disk.cells().filter_map(|(_, value)| match value {
            Value::Record(record) => Some(record),
            Value::Head { .. } | Value::Holder(_) | Value::Mark(_) => None,
        })
    }

    fn head(&self, node: Node) -> Head {
        let (epoch, decisions) = self.head_of(node);
        Head {
            identity: self.identity,
            former: self.former.clone(),
            epoch: (epoch > 0).then(|| Epoch::new(epoch)).flatten(),
            decisions,
        }
    }

    fn force(&mut self, position: u64, s: &mut Surroundings) {
        let changed = self.disk.force(position);
        self.became_durable(changed, s);
        let (durable, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| self.disk.is_durable(waiting.position));
        self.waiting = waiting;
        let durable: Vec<Waiting> = durable;
        for waiting in durable {
            answer(waiting.life, waiting.number, waiting.answer, None, s);
        }
    }

    fn became_durable(&mut self, changed: Vec<Cell>, s: &mut Surroundings) {
        for cell in changed {
            match self.disk.durable(&cell) {
                Some(Value::Record(record)) => {
                    let record = record.clone();
                    s.checker.log_durable(&record);
                }
                Some(Value::Head { epoch, .. }) => {
                    if let Cell::Head(node) = cell {
                        let prefix = Prefix {
                            identity: self.identity,
                            node,
                        };
                        s.checker.epoch_durable(prefix, *epoch);
                    }
                }
                Some(Value::Holder(_) | Value::Mark(_)) | None => {}
            }
        }
    }

    fn open_epoch(&mut self, node: Node, s: &mut Surroundings) -> Answer {
        if self.went_back {
            trace!(s, "log: went back, and takes no new life");
            return Answer::Unavailable;
        }
        if self.unnoticed {
            // Nobody could find out any more: whoever restores a log gives it a new identity before a start.
            self.new_identity(s);
        }
        let (epoch, decisions) = self.head_of(node);
        let epoch = epoch + 1;
        let position = self.disk.commit(vec![(
            Cell::Head(node),
            Some(Value::Head { epoch, decisions }),
        )]);
        self.force(position, s);
        let unfinished = self
            .records()
            .filter(|record| {
                record.header.id.node() == node
                    && record.finished_at.is_none()
                    && record.decision.verdict == Verdict::Commit
            })
            .cloned()
            .collect();
        Answer::Opened {
            writer: Writer {
                node,
                epoch: Epoch::new(epoch).unwrap_or(Epoch::MAX),
                identity: self.identity,
                decisions_at_least: decisions,
            },
            unfinished,
        }
    }

    fn write(
        &mut self,
        node: Node,
        write: &Write,
        fault: Option<Fault>,
        s: &mut Surroundings,
    ) -> (Answer, u64) {
        let (epoch, decisions) = self.head_of(node);
        let checked = write.writer.map(|writer| self.head(node).check(&writer));
        if let Some(Err(shut)) = checked {
            let why = match shut {
                Shut::Fenced(fence) => fence.to_string(),
                Shut::WentBack(regression) => regression.to_string(),
            };
            trace!(s, "log: refuses a write: {why}");
            s.counters.add("fenced writes");
            return (Answer::Shut(shut), 0);
        }
        if let Some(writer) = write.writer
            && (writer.epoch.number() != epoch
                || writer.identity != self.identity
                || writer.decisions_at_least > decisions)
        {
            s.checker.violated(format!(
                "the log takes a write of {writer}, and holds epoch {epoch}, {decisions} decisions, identity {}",
                self.identity
            ));
        }
        let forced = !write.proposals.is_empty();
        if write.proposals.len() > 1 {
            s.counters.add("group writes");
        }
        let mut writes: Writes = Vec::new();
        let decisions = decisions + u64::from(forced);
        if forced {
            writes.push((Cell::Head(node), Some(Value::Head { epoch, decisions })));
        }
        let mut standings = Vec::new();
        for proposal in &write.proposals {
            let standing = self.propose(proposal, &mut writes, s);
            standings.push((proposal.header.id, standing));
        }
        for append in &write.appends {
            if self.record(append.header.id).is_none() {
                // It carries no key: its outcome is told without waiting for it.
                let header = Header {
                    key: None,
                    ..(*append.header).clone()
                };
                let record = Record {
                    header: Arc::new(header),
                    ..append.clone()
                };
                writes.push((Cell::Record(append.header.id), Some(Value::Record(record))));
            }
        }
        for id in &write.finishes {
            if let Some(record) = self.record(*id) {
                s.checker.finished(*id);
                let mut record = record.clone();
                record.finished_at = Some(WallMillis(s.now as i64));
                writes.push((Cell::Record(*id), Some(Value::Record(record))));
            }
        }
        let position = self.disk.commit(writes);
        if forced && fault != Some(Fault::VisibleOnly) {
            // Also where all was there before: what is visible becomes durable by this write's own force.
            self.force(position, s);
        } else {
            let incarnation = self.incarnation;
            let delay = s.rng.between(100, 1_500);
            s.carry(
                delay,
                Happening::LogFlush {
                    incarnation,
                    position,
                },
            );
        }
        if s.trace.is_some() {
            let how = match (forced, fault) {
                (_, Some(fault)) => format!(" ({fault:?})"),
                (true, None) => ", forced".to_owned(),
                (false, None) => ", unforced".to_owned(),
            };
            for (proposal, (id, standing)) in write.proposals.iter().zip(&standings) {
                let decided = words::decision(&proposal.decision);
                let stands = match standing {
                    Standing::Proposed => String::new(),
                    Standing::Earlier(_) | Standing::KeyHeldBy(_) | Standing::Refused(_) => {
                        format!(": {}", words::standing(standing))
                    }
                };
                trace!(s, "log: {id} {decided}{how}{stands}");
            }
            for append in &write.appends {
                let decided = words::decision(&append.decision);
                trace!(s, "log: {} {decided}{how}", append.header.id);
            }
            for id in &write.finishes {
                trace!(s, "log: {id} finished{how}");
            }
        }
        let answer = Answer::Written {
            standings,
            decisions,
        };
        (answer, position)
    }

    fn propose(&self, proposal: &Record, writes: &mut Writes, s: &mut Surroundings) -> Standing {
        let id = proposal.header.id;
        if let Some(earlier) = self.record(id) {
            return if earlier.decision == proposal.decision {
                s.counters.add("repeated decides that were there");
                Standing::Proposed
            } else {
                Standing::Earlier(earlier.decision.clone())
            };
        }
        if id.sequence().number() % 64 == 13 && !s.temper.calm {
            // Something about this record that the store never takes; its neighbours are not concerned.
            s.counters.add("records that the log refuses");
            s.checker.record_refused(id);
            return Standing::Refused("a value that can not be stored".to_owned());
        }
        if let Some(claim) = &proposal.header.key {
            let cell = Cell::Key(claim.key.clone());
            let in_this_write = writes.iter().find(|(written, _)| *written == cell);
            let holder = match in_this_write {
                Some((_, value)) => value.as_ref(),
                None => self.disk.get(&cell),
            };
            if let Some(Value::Holder(holder)) = holder
                && *holder != id
            {
                s.counters.add("keys lost to another");
                if in_this_write.is_some() {
                    s.counters.add("keys lost within one write");
                }
                return Standing::KeyHeldBy(*holder);
            }
            writes.push((cell, Some(Value::Holder(id))));
        }
        let record = Some(Value::Record(proposal.clone()));
        writes.push((Cell::Record(id), record));
        Standing::Proposed
    }

    /// What is told from a record must be durable (rule 2), and a record of another life may only be visible: its
    /// owner has not had a clear answer yet. So whoever reads one in order to tell it forces first.
    fn confirm(&mut self, id: TransactionId, s: &mut Surroundings) {
        let durable = self.disk.durable(&Cell::Record(id)).is_some();
        if !durable && self.record(id).is_some() {
            s.counters.add("reads of a record that was not durable");
            let position = self.disk.position();
            self.force(position, s);
        }
    }

    fn outcome(&mut self, id: TransactionId, s: &mut Surroundings) -> Answer {
        self.confirm(id, s);
        let record = self.record(id);
        let mark = match self.disk.get(&Cell::Forgotten(id.prefix())) {
            Some(Value::Mark(mark)) => Some(*mark),
            Some(Value::Head { .. } | Value::Record(_) | Value::Holder(_)) | None => None,
        };
        Answer::Found {
            snapshot: Snapshot {
                recorded: record.is_some(),
                epoch: self.head(id.node()).epoch,
                identity: self.identity,
                former: self.former.clone(),
                forgotten_through: mark,
            },
            record: record.cloned(),
        }
    }

    fn by_key(&self, key: &IdempotencyKey) -> Option<Record> {
        match self.disk.get(&Cell::Key(key.clone())) {
            Some(Value::Holder(id)) => self.record(*id).cloned(),
            Some(Value::Head { .. } | Value::Record(_) | Value::Mark(_)) | None => None,
        }
    }

    /// It loses durable writes, as after a restore from a backup or a failover to a server that lagged.
    pub(crate) fn go_back(&mut self, writes: usize, s: &mut Surroundings) {
        s.counters.add("logs that went back");
        self.incarnation += 1;
        let lost = self.disk.go_back(writes);
        trace!(s, "log: GOES BACK, and loses {}", cells(&lost));
        self.unnoticed = true;
        for waiting in std::mem::take(&mut self.waiting) {
            answer(
                waiting.life,
                waiting.number,
                Answer::Unavailable,
                Some(50),
                s,
            );
        }
        s.checker.log_went_back();
        for cell in lost {
            if let Cell::Record(id) = cell
                && self.record(id).is_none()
            {
                s.checker.record_lost(id);
            }
        }
    }

    /// `unanimous log new-identity`: every node's epoch rises, and the former identities are kept.
    pub(crate) fn new_identity(&mut self, s: &mut Surroundings) {
        if self.unnoticed {
            self.give_new_identity(s);
        }
    }

    /// The same, whether or not it went back.
    pub(crate) fn give_new_identity(&mut self, s: &mut Surroundings) {
        s.counters.add("new identities");
        self.former.push(self.identity);
        self.identity = LogIdentity(self.identity.0 + 1);
        trace!(s, "log: has the identity {} now", self.identity);
        (self.went_back, self.unnoticed) = (false, false);
        s.checker.new_identity(self.identity);
        let heads: Writes = self
            .disk
            .cells()
            .filter_map(|(cell, value)| match (cell, value) {
                (Cell::Head(node), Value::Head { epoch, decisions }) => Some((
                    Cell::Head(*node),
                    Some(Value::Head {
                        epoch: epoch + 1,
                        decisions: *decisions,
                    }),
                )),
                (
                    Cell::Head(_) | Cell::Record(_) | Cell::Key(_) | Cell::Forgotten(_),
                    Value::Head { .. } | Value::Record(_) | Value::Holder(_) | Value::Mark(_),
                ) => None,
            })
            .collect();
        let position = self.disk.commit(heads);
        self.force(position, s);
    }

    /// What should have been forgotten long ago: storage is bounded by the retention.
    pub(crate) fn overdue(&self, s: &Surroundings) -> Option<&Record> {
        let long_ago = s.now as i64 - CLOCK_ERROR - 5_000;
        self.records().find(|record| {
            record.header.id.identity() == self.identity
                && due_at(record, s.temper.retention).is_some_and(|at| at < long_ago)
        })
    }

    /// Whether it may lose what it promised now: somebody must be able to notice, and it is whole.
    pub(crate) fn may_go_back(&self) -> bool {
        !self.unnoticed
    }

    /// Whether nobody has begun after this writer.
    pub(crate) fn is_newest(&self, writer: Option<Writer>) -> bool {
        writer.is_some_and(|writer| self.head(writer.node).check(&writer).is_ok())
    }

    pub(crate) fn identity(&self) -> LogIdentity {
        self.identity
    }

    pub(crate) fn ever_went_back(&self) -> bool {
        self.unnoticed || !self.former.is_empty()
    }

    pub(crate) fn flush(&mut self, incarnation: u64, position: u64, s: &mut Surroundings) {
        if incarnation == self.incarnation && !self.is_down(s) {
            self.force(position, s);
        } else if incarnation == self.incarnation {
            let delay = s.rng.between(100, 1_500);
            s.after(
                delay,
                Happening::LogFlush {
                    incarnation,
                    position,
                },
            );
        }
    }

    /// What finished long enough ago goes, and the marks move with it in one transaction (rule 14).
    pub(crate) fn forget(&mut self, s: &mut Surroundings) {
        let now = s.now as i64;
        let mut writes: Writes = Vec::new();
        let due: Vec<Record> = self
            .records()
            // Those of a former identity are kept (docs/adr/0004).
            .filter(|record| record.header.id.identity() == self.identity)
            .filter(|record| due_at(record, s.temper.retention).is_some_and(|at| at <= now))
            .cloned()
            .collect();
        if !due.is_empty() {
            // The deletion forces; so what it deletes was durable a moment before, and the checker sees it.
            self.force(self.disk.position(), s);
        }
        for record in due {
            let id = record.header.id;
            s.counters.add("forgotten records");
            if let Some(claim) = &record.header.key {
                writes.push((Cell::Key(claim.key.clone()), None));
            }
            writes.push((Cell::Record(id), None));
            let cell = Cell::Forgotten(id.prefix());
            let further = match self.disk.get(&cell) {
                Some(Value::Mark(mark)) => *mark < id,
                Some(Value::Head { .. } | Value::Record(_) | Value::Holder(_)) | None => true,
            };
            if further {
                writes.push((cell, Some(Value::Mark(id))));
            }
            s.checker.forgotten(id);
        }
        if !writes.is_empty() {
            let position = self.disk.commit(writes);
            self.force(position, s);
        }
    }
}

/// When a record may be forgotten.
fn due_at(record: &Record, retention: Millis) -> Option<i64> {
    let retention = retention as i64;
    // A keyed one that is finished at once may be forgotten before its owner has had a clear answer, and then its key
    // may go to another: a retention has to be longer than that takes, by any clock.
    match record.decision.is_finished_at_once() {
        true => Some(record.decided_at.0 + retention.max(UNCLEAR_AT_MOST) + 2 * CLOCK_ERROR),
        false => record.finished_at.map(|at| at.0 + retention),
    }
}

/// The answer arrives at its life; a fault of the request had it told "unavailable" already.
fn answer(
    life: LifeNumber,
    number: u64,
    answer: Answer,
    delay: Option<Millis>,
    s: &mut Surroundings,
) {
    let delay = delay.unwrap_or_else(|| s.latency());
    s.carry(
        delay,
        Happening::LogAnswered {
            life,
            number,
            answer,
        },
    );
}

fn cells(cells: &[Cell]) -> String {
    let mut names: Vec<String> = cells
        .iter()
        .map(|cell| match cell {
            Cell::Head(node) => format!("head of node {node}"),
            Cell::Record(id) => format!("record of {id}"),
            Cell::Key(key) => format!("key {key}"),
            Cell::Forgotten(prefix) => format!("mark of {prefix}"),
        })
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        "nothing".to_owned()
    } else {
        names.join(", ")
    }
}
