//! What a search tells apart. Everything is small and bounded: sets of messages are bits, lives and transactions are
//! numbered in the order in which they began, and what nobody can act on any more is dropped.
//!
//! Two states with the same [`State::hash`] are one. It leaves out what only people are shown, and which of several
//! branches that may answer alike is which: their names mean nothing to the machines.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    mem,
    sync::{Arc, LazyLock},
};

use unanimous_protocol::{
    branch,
    coordinator::Transaction,
    id::{LogIdentity, Node, ParticipantName, Prefix, TransactionId},
    keyring::Keyring,
    life::{self, Life, Writer},
    message::{Inform, Reply, Request, RequestKind},
    record::{Decision, Standing},
};

use super::check::Wrong;

/// Transactions in one search, at most.
pub(super) const TRANSACTIONS_MAX: usize = 2;

/// Coordinators that share the log, at most.
pub(super) const NODES_MAX: usize = 2;

pub(super) const IDENTITY: LogIdentity = LogIdentity(7);

/// The log was restored once, long ago.
pub(super) const FORMER: LogIdentity = LogIdentity(6);

/// The node of a number.
pub(super) fn node(number: usize) -> Node {
    Node(u16::try_from(number + 1).expect("a small number"))
}

/// Ids of a node of this log.
pub(super) fn prefix(number: usize) -> Prefix {
    Prefix {
        identity: IDENTITY,
        node: node(number),
    }
}

/// The number of an id's node.
pub(super) fn node_of(id: TransactionId) -> usize {
    usize::from(id.node().0) - 1
}

/// Names of participants.
pub(super) static NAMES: LazyLock<[ParticipantName; 3]> = LazyLock::new(|| {
    ["east", "north", "west"].map(|name| name.parse().expect("a participant's name"))
});

/// The number of a participant.
pub(super) fn number_of(name: &ParticipantName) -> usize {
    let number = NAMES.iter().position(|known| known == name);
    number.expect("one of the names")
}

/// A set of small numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Bits(pub(super) u128);

impl Bits {
    pub(super) fn has(self, bit: usize) -> bool {
        self.0 >> bit & 1 == 1
    }

    pub(super) fn add(&mut self, bit: usize) {
        self.0 |= 1 << bit;
    }

    pub(super) fn remove(&mut self, bit: usize) {
        self.0 &= !(1 << bit);
    }

    pub(super) fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let bit = rest.trailing_zeros() as usize;
            rest &= rest.wrapping_sub(1);
            (bit < 128).then_some(bit)
        })
    }
}

/// A transaction at a life: a part of a message's number.
pub(super) fn slot(life: usize, transaction: usize) -> usize {
    life * TRANSACTIONS_MAX + transaction
}

/// In the place of a life, in messages that no life listens for: whose they were makes no difference. More than the lives of
/// any search.
pub(super) const NOBODY: usize = 6;

/// The life and the transaction of a slot.
pub(super) fn of_slot(slot: usize) -> (usize, usize) {
    (slot / TRANSACTIONS_MAX, slot % TRANSACTIONS_MAX)
}

/// What a branch may be asked: prepare with one of the sessions (0: none), commit, abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Prepare { session: usize },
    Commit,
    Abort,
}

/// Sessions of one participant, and none.
pub(super) const SESSIONS: usize = 3;

impl Asked {
    pub(super) const COUNT: usize = SESSIONS + 2;

    pub(super) fn of(request: &Request) -> Self {
        match request {
            Request::Prepare(prepare) => {
                let session = prepare.session.as_ref().map_or("0", |held| held.as_str());
                Self::Prepare {
                    session: session.parse().expect("sessions are numbers here"),
                }
            }
            Request::Commit => Self::Commit,
            Request::Abort => Self::Abort,
        }
    }

    pub(super) fn code(self) -> usize {
        match self {
            Self::Prepare { session } => session,
            Self::Commit => SESSIONS,
            Self::Abort => SESSIONS + 1,
        }
    }

    pub(super) fn from_code(code: usize) -> Self {
        match code {
            SESSIONS => Self::Commit,
            code if code > SESSIONS => Self::Abort,
            session => Self::Prepare { session },
        }
    }

    pub(super) fn kind(self) -> RequestKind {
        match self {
            Self::Prepare { .. } => RequestKind::Prepare,
            Self::Commit => RequestKind::Commit,
            Self::Abort => RequestKind::Abort,
        }
    }
}

/// What a branch answered, with the kind of call that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Said {
    Yes,
    No,
    NoBelowLowWater,
    ReadOnly,
    Committed,
    VoteLost,
    CommitDiffers,
    Aborted,
    AbortDiffers,
}

impl Said {
    pub(super) const ALL: [Self; 9] = [
        Self::Yes,
        Self::No,
        Self::NoBelowLowWater,
        Self::ReadOnly,
        Self::Committed,
        Self::VoteLost,
        Self::CommitDiffers,
        Self::Aborted,
        Self::AbortDiffers,
    ];

    pub(super) fn kind(self) -> RequestKind {
        match self {
            Self::Yes | Self::No | Self::NoBelowLowWater | Self::ReadOnly => RequestKind::Prepare,
            Self::Committed | Self::VoteLost | Self::CommitDiffers => RequestKind::Commit,
            Self::Aborted | Self::AbortDiffers => RequestKind::Abort,
        }
    }
}

/// The number of a call of some kind.
pub(super) fn call_bit(slot: usize, kind: RequestKind) -> usize {
    slot * 3 + kind as usize
}

pub(super) const INFORMS: [Inform; 3] = [Inform::Committed, Inform::Aborted, Inform::Pending];

/// A branch's row, and what the service has done for it in the same database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) state: Option<branch::State>,
    /// What the service reserved at prepare.
    pub(super) reserved: bool,
    /// The key that the branch holds.
    pub(super) key: bool,
    /// How often its effects were applied.
    pub(super) applied: u8,
    /// The session whose work was prepared.
    pub(super) worked_in: u8,
}

/// What is in a participant's database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    pub(super) rows: [Row; TRANSACTIONS_MAX],
    /// The low-water mark of each node's ids.
    pub(super) low_water: [Option<TransactionId>; NODES_MAX],
}

/// Interactive work in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Held {
    pub(super) session: u8,
    /// The coordinator knows of it, and a client was told that its work is done.
    pub(super) enlisted: bool,
}

/// One participant, the messages between it and the coordinators, and what is remembered of it for the checks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Participant {
    /// Those of one role may be taken for one another.
    pub(super) role: u8,
    pub(super) visible: Disk,
    /// What a crash leaves.
    pub(super) durable: Disk,
    /// Answers that wait until all that is visible is durable.
    pub(super) waiting: Bits,
    pub(super) held: Option<Held>,
    pub(super) sessions_begun: u8,

    /// Requests that were sent. Each may arrive now, again, or never.
    pub(super) requests: Bits,
    /// Calls whose end some life waits for.
    pub(super) calls: Bits,
    /// Answers that were given. Each may arrive now, again, or never.
    pub(super) replies: Bits,
    /// What inquiries were told: the same.
    pub(super) informs: Bits,
    /// The highest mark of each node that calls carried: it promises what the lower ones do.
    pub(super) marks: [Option<TransactionId>; NODES_MAX],
    /// Enlistings that were sent, by session.
    pub(super) enlists: Bits,
    /// Answers to them: twice the session, and one more where it was refused.
    pub(super) enlisted: Bits,

    /// Transactions to which it said yes, for the checks; and so on.
    pub(super) said_yes: Bits,
    pub(super) said_no: Bits,
    pub(super) said_read_only: Bits,
    pub(super) said_committed: Bits,
    pub(super) pruned: Bits,
    /// Of which it lost a durable row.
    pub(super) betrayed: Bits,
    /// Sessions whose work a client was told is done.
    pub(super) done: Bits,
}

impl Participant {
    pub(super) fn is_flushed(&self) -> bool {
        self.waiting.is_empty() && self.visible == self.durable
    }

    /// Whether it has given an answer that the checks ask for.
    pub(super) fn remembers(&self, transaction: usize, said: Said) -> bool {
        match said {
            Said::Yes => self.said_yes.has(transaction),
            Said::ReadOnly => self.said_read_only.has(transaction),
            Said::Committed => self.said_committed.has(transaction),
            Said::No => self.said_no.has(transaction),
            Said::NoBelowLowWater
            | Said::VoteLost
            | Said::CommitDiffers
            | Said::Aborted
            | Said::AbortDiffers => true,
        }
    }

    /// Remembers an answer, for the checks.
    pub(super) fn has_said(&mut self, transaction: usize, said: Said) {
        match said {
            Said::Yes => self.said_yes.add(transaction),
            Said::ReadOnly => self.said_read_only.add(transaction),
            Said::Committed => self.said_committed.add(transaction),
            Said::No => self.said_no.add(transaction),
            Said::NoBelowLowWater
            | Said::VoteLost
            | Said::CommitDiffers
            | Said::Aborted
            | Said::AbortDiffers => {}
        }
    }
}

/// A life that runs.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) life: Life,
    pub(super) keyring: Keyring,
    /// Look-ups of the key that are under way.
    pub(super) looking_up: u8,
    pub(super) machines: [Option<Arc<Transaction>>; TRANSACTIONS_MAX],
    /// A question about the id that was the next one then.
    pub(super) early: Option<(TransactionId, life::Question)>,
}

#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) decision: Arc<Decision>,
    pub(super) is_finished: bool,
}

/// What is in the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    /// The newest of each node; 0 where it has none.
    pub(super) epochs: [u32; NODES_MAX],
    pub(super) decisions: u64,
    pub(super) records: [Option<Record>; TRANSACTIONS_MAX],
    /// Who holds the key.
    pub(super) holder: Option<usize>,
}

#[derive(Clone, Debug)]
pub(super) enum Write {
    Force(Arc<Decision>),
    Append(Arc<Decision>),
    Finish,
}

#[derive(Clone, Debug)]
pub(super) enum Written {
    Decided(Standing, u64),
    Appended,
}

/// A write that some life has sent.
#[derive(Clone, Debug)]
pub(super) struct LogRequest {
    pub(super) life: usize,
    pub(super) transaction: usize,
    pub(super) writer: Writer,
    pub(super) write: Write,
    /// The log has taken it, and this is on its way back.
    pub(super) written: Option<Written>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    pub(super) visible: Content,
    pub(super) durable: Content,
    /// Whether something visible is not durable.
    pub(super) is_dirty: bool,
    /// Whether transactions have a key.
    pub(super) is_keyed: bool,
    pub(super) requests: Vec<LogRequest>,
}

/// A transaction that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Begun {
    pub(super) id: TransactionId,
    /// Its owner had not decided it when it was last seen alive.
    pub(super) undecided: bool,
    /// The log will never take a record of it.
    pub(super) refused: bool,
}

/// Faults that may still happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Faults {
    pub(super) coordinator_crashes: u8,
    pub(super) participant_crashes: u8,
    pub(super) log_crashes: u8,
    pub(super) betrayals: u8,
}

/// Everything there is.
#[derive(Clone, Debug)]
pub struct State {
    /// In the order of their beginning; `None` once it has ended.
    pub(super) lives: Vec<Option<Arc<Running>>>,
    pub(super) transactions: Vec<Begun>,
    pub(super) log: Arc<Log>,
    pub(super) participants: Vec<Arc<Participant>>,
    pub(super) faults: Faults,
    pub(super) wrong: Option<Box<Wrong>>,
}

impl State {
    pub(super) fn begun(&self, id: TransactionId) -> Option<usize> {
        self.transactions.iter().position(|begun| begun.id == id)
    }

    pub(super) fn running(&self, life: usize) -> Option<&Running> {
        self.lives.get(life)?.as_deref()
    }

    pub(super) fn running_mut(&mut self, life: usize) -> Option<&mut Running> {
        self.lives.get_mut(life)?.as_mut().map(Arc::make_mut)
    }

    pub(super) fn machine(&self, life: usize, transaction: usize) -> Option<&Transaction> {
        self.running(life)?.machines[transaction].as_deref()
    }

    pub(super) fn participant_mut(&mut self, participant: usize) -> &mut Participant {
        Arc::make_mut(&mut self.participants[participant])
    }

    pub(super) fn log_mut(&mut self) -> &mut Log {
        Arc::make_mut(&mut self.log)
    }

    /// All that concerns one participant, in one number that does not depend on its name.
    fn hash_of(&self, participant: usize) -> u64 {
        let mut hasher = DefaultHasher::new();
        let p = &self.participants[participant];
        let name = &NAMES[participant];
        for disk in [&p.visible, &p.durable] {
            for row in &disk.rows {
                hash_row(row, &mut hasher);
            }
            disk.low_water.hash(&mut hasher);
        }
        (p.role, p.waiting, p.held, p.sessions_begun).hash(&mut hasher);
        (p.requests, p.calls, p.replies, p.informs).hash(&mut hasher);
        (p.enlists, p.enlisted, p.marks).hash(&mut hasher);
        let remembered = [
            p.said_yes,
            p.said_no,
            p.said_read_only,
            p.said_committed,
            p.pruned,
            p.betrayed,
            p.done,
        ];
        // Each is about a few transactions or sessions.
        let remembered = remembered.iter().fold(0, |all, bits| all << 16 | bits.0);
        remembered.hash(&mut hasher);
        let machines = self.lives.iter().flatten().flat_map(|life| &life.machines);
        for machine in machines.flatten() {
            machine.hash_branch(name, &mut hasher);
        }
        let contents = [&self.log.visible, &self.log.durable];
        for record in contents.iter().flat_map(|content| &content.records) {
            let part = record.as_ref().and_then(|r| r.decision.branches.get(name));
            part.hash(&mut hasher);
        }
        for request in &self.log.requests {
            match &request.write {
                Write::Force(decision) | Write::Append(decision) => {
                    decision.branches.get(name).hash(&mut hasher);
                }
                Write::Finish => {}
            }
        }
        hasher.finish()
    }
}

fn hash_row(row: &Row, hasher: &mut impl Hasher) {
    let state: u32 = match &row.state {
        None => 0,
        Some(branch::State::Prepared { .. }) => 1,
        Some(branch::State::Committed { .. }) => 2,
        Some(branch::State::Refused { .. }) => 3,
        Some(branch::State::Aborted) => 4,
        Some(branch::State::Tombstone) => 5,
        // Never stored.
        Some(
            branch::State::Absent
            | branch::State::Active { .. }
            | branch::State::Working { .. }
            | branch::State::Applying { .. }
            | branch::State::Undoing
            | branch::State::Pruned { .. },
        ) => 6,
    };
    let work = u32::from(row.reserved) | u32::from(row.key) << 1;
    let done = u32::from(row.applied) << 8 | u32::from(row.worked_in) << 16;
    (state << 24 | done | work).hash(hasher);
}

fn hash_decision(decision: &Decision, hasher: &mut impl Hasher) {
    decision.verdict.outcome().hash(hasher);
    let winner = decision.verdict.reason().and_then(|reason| reason.winner);
    winner.hash(hasher);
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for life in &self.lives {
            let Some(life) = life else {
                0u8.hash(hasher);
                continue;
            };
            life.life.hash_whole(hasher);
            (&life.keyring, life.looking_up).hash(hasher);
            life.early.as_ref().map(|(id, _)| id).hash(hasher);
            for machine in &life.machines {
                match machine {
                    None => 0u8.hash(hasher),
                    Some(machine) => machine.hash_whole(hasher),
                }
            }
        }
        (&self.transactions, self.faults, self.wrong.is_some()).hash(hasher);
        self.log.is_dirty.hash(hasher);
        for content in [&self.log.visible, &self.log.durable] {
            (content.epochs, content.holder).hash(hasher);
            for record in &content.records {
                record.is_some().hash(hasher);
                if let Some(record) = record {
                    record.is_finished.hash(hasher);
                    hash_decision(&record.decision, hasher);
                }
            }
        }
        for request in &self.log.requests {
            (request.life, request.transaction).hash(hasher);
            mem::discriminant(&request.write).hash(hasher);
            match &request.write {
                Write::Force(decision) | Write::Append(decision) => hash_decision(decision, hasher),
                Write::Finish => {}
            }
            match &request.written {
                None => 0u8.hash(hasher),
                Some(Written::Appended) => 1u8.hash(hasher),
                Some(Written::Decided(standing, _)) => mem::discriminant(standing).hash(hasher),
            }
        }
        let mut each = [0; NAMES_COUNT];
        for (participant, hash) in self.participants.iter().enumerate().zip(&mut each) {
            *hash = self.hash_of(participant.0);
        }
        each.sort_unstable();
        each.hash(hasher);
    }
}

const NAMES_COUNT: usize = 3;

impl State {
    /// All of it in one number.
    pub(super) fn hash_whole(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.hash_whole() == other.hash_whole()
    }
}

/// How the wire says what a branch answered, and back.
pub(super) fn said(reply: &Reply, to: RequestKind) -> Said {
    use unanimous_protocol::message::{RefusalCode, Vote};
    match reply {
        Reply::Vote(Vote::Yes) => Said::Yes,
        Reply::Vote(Vote::No(refusal)) if refusal.code == RefusalCode::BelowLowWater => {
            Said::NoBelowLowWater
        }
        Reply::Vote(Vote::No(_)) => Said::No,
        Reply::Vote(Vote::ReadOnly) => Said::ReadOnly,
        Reply::Committed => Said::Committed,
        Reply::VoteLost => Said::VoteLost,
        Reply::OutcomeDiffers if to == RequestKind::Abort => Said::AbortDiffers,
        Reply::OutcomeDiffers => Said::CommitDiffers,
        Reply::Aborted => Said::Aborted,
    }
}

pub(super) fn reply(said: Said) -> Reply {
    use unanimous_protocol::message::{Refusal, RefusalCode, Vote};
    let no = |code| {
        Reply::Vote(Vote::No(Refusal {
            code,
            reason: String::new(),
        }))
    };
    match said {
        Said::Yes => Reply::Vote(Vote::Yes),
        Said::No => no(RefusalCode::Refused),
        Said::NoBelowLowWater => no(RefusalCode::BelowLowWater),
        Said::ReadOnly => Reply::Vote(Vote::ReadOnly),
        Said::Committed => Reply::Committed,
        Said::VoteLost => Reply::VoteLost,
        Said::CommitDiffers | Said::AbortDiffers => Reply::OutcomeDiffers,
        Said::Aborted => Reply::Aborted,
    }
}
