//! The decision log in memory, for tests: keeps the contract of [`DecisionLog`] as long as nothing is made to fail, and
//! fails as a test asks, in every way that a real one can.
//!
//! It has two states: what a reader sees, and what is on the imagined disk. A forced write makes both equal, an
//! unforced one changes only the first, and [`MemoryLog::crash`] goes back to the second.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::{oneshot, watch};
use unanimous_protocol::{
    id::{Epoch, LogIdentity, Node, ParticipantName, Prefix, TransactionId},
    life::{Head, Writer},
    record::{IdempotencyKey, Record, Standing, WallMillis},
};

use super::{
    Abandoned, Appends, Batch, Decided, DecisionLog, Filter, IdentityChange, LogError, NotAdopted,
    Opened, Position, Refused, Removal, View, WriteError, draw_identity,
};

/// How a write fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Unavailable, and nothing was written.
    Before,
    /// Unavailable, and what was written is seen by readers and lost in a crash, unless a later forced write makes it
    /// durable. Whoever reads back instead of repeating tells a commit that is not one (rule 10).
    Visible,
    /// Unavailable, and the write is durable.
    Durable,
    /// Broken, and nothing was written. Every later call is broken too.
    Broken,
}

/// A place where writes wait between their check and their commit while a test holds it.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    held: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
}

impl Gate {
    /// From now on who comes waits.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// Lets all go on.
    pub fn release(&self) {
        self.held.send_replace(false);
        self.waiting.send_replace(0);
    }

    /// Returns when a write waits.
    pub async fn reached(&self) {
        self.waiting
            .subscribe()
            .wait_for(|waiting| *waiting > 0)
            .await
            .unwrap();
    }

    pub(in crate::log) async fn pass(&self) {
        if *self.held.borrow() {
            self.waiting.send_modify(|waiting| *waiting += 1);
            self.held.subscribe().wait_for(|held| !held).await.unwrap();
        }
    }
}

/// Everything in a log at one moment: [`MemoryLog::restore`] makes a log go back to it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The last one is the present one.
    identities: Vec<LogIdentity>,
    epochs: BTreeMap<Node, (Epoch, u64)>,
    records: BTreeMap<TransactionId, Record>,
    keys: BTreeMap<IdempotencyKey, TransactionId>,
    forgotten: BTreeMap<Prefix, TransactionId>,
    participants: BTreeMap<ParticipantName, String>,
    /// How old each node's mark is. Time passes when a test says so.
    unseen_for: BTreeMap<Node, Duration>,
}

#[derive(Debug)]
struct State {
    visible: Snapshot,
    durable: Snapshot,
    faults: VecDeque<Fault>,
    refused: BTreeSet<TransactionId>,
    answers: bool,
    broken: bool,
    appends_wait: bool,
    /// Unforced writes that are not durable yet. Dropping one tells its caller that it was lost.
    unforced: Vec<oneshot::Sender<()>>,
}

/// A [`DecisionLog`] in memory.
#[derive(Debug)]
pub struct MemoryLog {
    is_exclusive: bool,
    /// Held by a write from its check to its commit, as an epoch's row is locked in a database.
    writing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// As a marker beside a file: no snapshot holds it.
    went_back: Mutex<Option<String>>,
    /// Where writes wait between their check and their commit while a test holds it.
    pub gate: Gate,
}

impl MemoryLog {
    /// An empty log of one process, as a file is.
    #[must_use]
    pub fn exclusive() -> Self {
        Self::new(true)
    }

    /// An empty log that several coordinators share, as a database is.
    #[must_use]
    pub fn shared() -> Self {
        Self::new(false)
    }

    fn new(is_exclusive: bool) -> Self {
        let empty = Snapshot {
            identities: vec![LogIdentity(rand::random())],
            epochs: BTreeMap::new(),
            records: BTreeMap::new(),
            keys: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            participants: BTreeMap::new(),
            unseen_for: BTreeMap::new(),
        };
        Self {
            is_exclusive,
            writing: tokio::sync::Mutex::new(()),
            went_back: Mutex::new(None),
            state: Mutex::new(State {
                visible: empty.clone(),
                durable: empty,
                faults: VecDeque::new(),
                refused: BTreeSet::new(),
                answers: true,
                broken: false,
                appends_wait: false,
                unforced: Vec::new(),
            }),
            gate: Gate::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next `writes` writes fail so, after the ones that were asked for before.
    pub fn fail_next(&self, writes: usize, fault: Fault) {
        self.state()
            .faults
            .extend(std::iter::repeat_n(fault, writes));
    }

    /// Whether the log answers at all. While it does not, every call is unavailable and nothing is written.
    pub fn set_answering(&self, answers: bool) {
        self.state().answers = answers;
    }

    /// The store will have no record of this transaction.
    pub fn refuse(&self, id: TransactionId) {
        self.state().refused.insert(id);
    }

    /// Whether [`DecisionLog::append`] waits for a forced write, or for [`Self::flush`], instead of being durable at
    /// once.
    pub fn let_appends_wait(&self, wait: bool) {
        self.state().appends_wait = wait;
    }

    /// Makes all that is visible durable.
    pub fn flush(&self) {
        self.state().flush();
    }

    /// The machine dies and comes back: what was not durable is gone, and appends that waited are unavailable.
    pub fn crash(&self) {
        let mut state = self.state();
        state.visible = state.durable.clone();
        state.unforced.clear();
    }

    /// What is durable now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.state().durable.clone()
    }

    /// The log goes back: somebody restored a backup.
    pub fn restore(&self, snapshot: Snapshot) {
        let mut state = self.state();
        state.visible = snapshot.clone();
        state.durable = snapshot;
    }

    /// Lets time pass for the marks of all nodes.
    pub fn age_marks(&self, by: Duration) {
        let mut state = self.state();
        for unseen in state.visible.unseen_for.values_mut() {
            *unseen += by;
        }
        state.durable = state.visible.clone();
    }

    /// Says that records up to this one, of its prefix, may be gone.
    pub fn mark_forgotten(&self, through: TransactionId) {
        let mut state = self.state();
        state.visible.forgotten.insert(through.prefix(), through);
        state.durable = state.visible.clone();
    }

    fn read<T>(&self, read: impl FnOnce(&Snapshot) -> T) -> Result<T, LogError> {
        let state = self.state();
        state.check_answers()?;
        Ok(read(&state.visible))
    }

    /// One write: checked and changed on a copy, held, and then put in place as the next fault has it.
    async fn write<T>(
        &self,
        forced: bool,
        change: impl FnOnce(&mut Snapshot, &BTreeSet<TransactionId>) -> Result<T, WriteError> + Send,
    ) -> Result<T, WriteError> {
        let writing = self.writing.lock().await;
        let (mut next, refused) = {
            let state = self.state();
            state.check_answers()?;
            (state.visible.clone(), state.refused.clone())
        };
        let done = change(&mut next, &refused)?;
        drop(refused);
        self.gate.pass().await;
        let mut state = self.state();
        state.check_answers()?;
        let fault = state.faults.pop_front();
        match fault {
            None | Some(Fault::Visible | Fault::Durable) => state.visible = next,
            Some(Fault::Before) => {}
            Some(Fault::Broken) => state.broken = true,
        }
        if forced && matches!(fault, None | Some(Fault::Durable)) {
            state.flush();
        }
        drop(state);
        drop(writing);
        match fault {
            None => Ok(done),
            Some(Fault::Broken) => Err(WriteError::Broken("a test broke the log".into())),
            Some(Fault::Before | Fault::Visible | Fault::Durable) => Err(WriteError::Unavailable(
                "a test made the write unclear".into(),
            )),
        }
    }
}

impl State {
    fn flush(&mut self) {
        self.durable = self.visible.clone();
        for written in self.unforced.drain(..) {
            // Whoever waited may have gone away.
            let _ = written.send(());
        }
    }

    fn check_answers(&self) -> Result<(), LogError> {
        if self.broken {
            Err(LogError::Broken("a test broke the log".into()))
        } else if self.answers {
            Ok(())
        } else {
            Err(LogError::Unavailable("a test took the log away".into()))
        }
    }
}

impl Snapshot {
    fn head(&self, node: Node) -> Head {
        let (epoch, decisions) = self.epochs.get(&node).copied().unzip();
        Head {
            identity: self.identity(),
            former: self.former(),
            epoch,
            decisions: decisions.unwrap_or(0),
        }
    }

    fn identity(&self) -> LogIdentity {
        *self.identities.last().unwrap()
    }

    fn former(&self) -> Vec<LogIdentity> {
        self.identities[..self.identities.len() - 1].to_vec()
    }

    /// The first writer wins, over the id and over the key.
    fn insert(&mut self, proposal: &Record) -> Standing {
        let header = &proposal.header;
        if let Some(earlier) = self.records.get(&header.id) {
            return if earlier.decision == proposal.decision {
                Standing::Proposed
            } else {
                Standing::Earlier(earlier.decision.clone())
            };
        }
        if let Some(claim) = &header.key {
            if let Some(holder) = self.keys.get(&claim.key) {
                return Standing::KeyHeldBy(*holder);
            }
            self.keys.insert(claim.key.clone(), header.id);
        }
        self.records.insert(header.id, proposal.clone());
        Standing::Proposed
    }

    fn append(&mut self, appends: &Appends, refused: &BTreeSet<TransactionId>) {
        for record in &appends.records {
            if !refused.contains(&record.header.id) {
                self.insert(record);
            }
        }
        for (id, at) in &appends.finishes {
            if let Some(record) = self.records.get_mut(id) {
                record.finished_at.get_or_insert(*at);
            }
        }
    }

    fn forget(&mut self, before: WallMillis, at_most: u32) -> u64 {
        let identity = self.identity();
        let mut due: Vec<_> = self
            .records
            .iter()
            .filter(|(id, _)| id.identity() == identity)
            .filter_map(|(id, record)| Some((record.finished_at?, *id)))
            .filter(|(finished_at, _)| *finished_at < before)
            .collect();
        due.sort_unstable();
        due.truncate(usize::try_from(at_most).unwrap());
        for (_, id) in &due {
            let record = self.records.remove(id).unwrap();
            if let Some(claim) = &record.header.key {
                self.keys.remove(&claim.key);
            }
            let mark = self.forgotten.entry(id.prefix()).or_insert(*id);
            *mark = (*mark).max(*id);
        }
        u64::try_from(due.len()).unwrap()
    }

    fn owed(&self, node: Node) -> impl Iterator<Item = &Record> {
        let owed = move |record: &&Record| {
            record.header.id.node() == node
                && record.finished_at.is_none()
                && !record.decision.is_finished_at_once()
        };
        self.records.values().filter(owed)
    }

    fn open(&mut self, node: Node) -> Result<Opened, LogError> {
        let epoch = self.raise(node)?;
        self.unseen_for.insert(node, Duration::ZERO);
        let Head {
            identity,
            former,
            decisions,
            ..
        } = self.head(node);
        let writer = Writer {
            node,
            epoch,
            identity,
            decisions_at_least: decisions,
        };
        Ok(Opened { writer, former })
    }

    fn raise(&mut self, node: Node) -> Result<Epoch, LogError> {
        let row = self.epochs.get(&node);
        let (newest, decisions) =
            row.map_or((0, 0), |(epoch, decisions)| (epoch.number(), *decisions));
        let raised = Epoch::new(newest + 1).ok_or_else(|| {
            LogError::Broken(format!("node {node} has used up its epochs").into())
        })?;
        self.epochs.insert(node, (raised, decisions));
        Ok(raised)
    }
}

#[async_trait]
impl DecisionLog for MemoryLog {
    fn is_exclusive(&self) -> bool {
        self.is_exclusive
    }

    async fn nodes(&self) -> Result<Vec<Node>, LogError> {
        self.read(|log| log.epochs.keys().copied().collect())
    }

    async fn open_epoch(&self, node: Node) -> Result<Opened, LogError> {
        let opened = self.write(true, |log, _| Ok(log.open(node)?));
        opened.await.map_err(unfenced)
    }

    async fn mark(&self, writer: &Writer) -> Result<(), LogError> {
        let marked = self.write(true, |log, _| {
            if log.head(writer.node).check(writer).is_ok() {
                log.unseen_for.insert(writer.node, Duration::ZERO);
            }
            Ok(())
        });
        marked.await.map_err(unfenced)
    }

    async fn adopt(
        &self,
        node: Node,
        unseen_for: Option<Duration>,
    ) -> Result<Result<Opened, NotAdopted>, LogError> {
        let is_exclusive = self.is_exclusive;
        let went_back = self.went_back.lock().unwrap().is_some();
        let adopted = self.write(true, |log, _| {
            if went_back {
                return Ok(Err(NotAdopted::LogWentBack));
            }
            let Some(&unseen) = log.unseen_for.get(&node) else {
                return Ok(Err(NotAdopted::UnknownNode));
            };
            if !is_exclusive && unseen_for.is_some_and(|wanted| unseen < wanted) {
                return Ok(Err(NotAdopted::SeenLately));
            }
            Ok(Ok(log.open(node)?))
        });
        adopted.await.map_err(unfenced)
    }

    async fn abandoned(&self, unseen_for: Duration) -> Result<Vec<Abandoned>, LogError> {
        if self.is_exclusive {
            return Ok(Vec::new());
        }
        self.read(|log| {
            let unseen = log.unseen_for.iter();
            unseen
                .filter(|(_, unseen)| **unseen >= unseen_for)
                .map(|(&node, &unseen_for)| Abandoned {
                    node,
                    unfinished: u64::try_from(log.owed(node).count()).unwrap(),
                    unseen_for,
                })
                .filter(|abandoned| abandoned.unfinished > 0)
                .collect()
        })
    }

    async fn head(&self, node: Node) -> Result<Head, LogError> {
        self.read(|log| log.head(node))
    }

    async fn decide(&self, writer: &Writer, batch: &Batch) -> Result<Decided, WriteError> {
        let decided = self.write(true, |log, refused| {
            log.head(writer.node).check(writer)?;
            let decide = |proposal: &Record| {
                super::admit(writer, proposal)?;
                let transaction = proposal.header.id;
                if refused.contains(&transaction) {
                    return Err(Refused {
                        transaction,
                        cause: "a test refuses it".into(),
                    });
                }
                Ok(log.insert(proposal))
            };
            let standings = batch.proposals.iter().map(decide).collect();
            log.append(&batch.appends, refused);
            let (_, decisions) = log.epochs.get_mut(&writer.node).unwrap();
            *decisions += 1;
            Ok(Decided {
                standings,
                decisions: *decisions,
            })
        });
        decided.await
    }

    async fn append(&self, writer: &Writer, appends: &Appends) -> Result<(), WriteError> {
        let (durable, became_durable) = oneshot::channel();
        let written = self.write(false, |log, refused| {
            log.head(writer.node).check(writer)?;
            log.append(appends, refused);
            // A flush from now on has this write in it, for no other write is between check and commit.
            self.state().unforced.push(durable);
            Ok(())
        });
        written.await?;
        if !self.state().appends_wait {
            self.flush();
        }
        let lost = |_| WriteError::Unavailable("a crash came before the write was durable".into());
        became_durable.await.map_err(lost)
    }

    async fn look_up(&self, id: TransactionId) -> Result<View, LogError> {
        self.read(|log| View {
            record: log.records.get(&id).cloned(),
            epoch: log.epochs.get(&id.node()).map(|(epoch, _)| *epoch),
            identity: log.identity(),
            former: log.former(),
            forgotten_through: log.forgotten.get(&id.prefix()).copied(),
        })
    }

    async fn by_key(&self, keys: &[IdempotencyKey]) -> Result<Vec<Option<Record>>, LogError> {
        self.read(|log| {
            let holder = |key| log.records.get(log.keys.get(key)?).cloned();
            keys.iter().map(holder).collect()
        })
    }

    async fn unfinished(&self, node: Node) -> Result<Vec<Record>, LogError> {
        self.read(|log| log.owed(node).cloned().collect())
    }

    async fn went_back(&self) -> Result<Option<String>, LogError> {
        Ok(self.went_back.lock().unwrap().clone())
    }

    async fn remember_that_it_went_back(&self, why: &str) -> Result<(), LogError> {
        *self.went_back.lock().unwrap() = Some(why.to_owned());
        Ok(())
    }

    async fn forget(
        &self,
        writer: &Writer,
        before: WallMillis,
        at_most: u32,
    ) -> Result<u64, WriteError> {
        let forgotten = self.write(true, |log, _| {
            log.head(writer.node).check(writer)?;
            Ok(log.forget(before, at_most))
        });
        forgotten.await
    }

    async fn history(
        &self,
        filter: &Filter,
        after: Option<Position>,
        limit: u32,
    ) -> Result<Vec<Record>, LogError> {
        self.read(|log| {
            let mut found: Vec<_> = log.records.values().cloned().collect();
            found.retain(|record| {
                let is_older = after.is_none_or(|after| Position::of(&record.header) < after);
                is_older && filter.takes_record(record)
            });
            found.sort_by_key(|record| std::cmp::Reverse(Position::of(&record.header)));
            found.truncate(usize::try_from(limit).unwrap());
            found
        })
    }

    async fn participants(&self) -> Result<Vec<(ParticipantName, String)>, LogError> {
        self.read(|log| log.participants.clone().into_iter().collect())
    }

    async fn put_participant(
        &self,
        writer: &Writer,
        name: &ParticipantName,
        url: &str,
    ) -> Result<bool, WriteError> {
        let put = self.write(true, |log, _| {
            log.head(writer.node).check(writer)?;
            let replaced = log.participants.insert(name.clone(), url.to_owned());
            Ok(replaced.is_none())
        });
        put.await
    }

    async fn remove_participant(
        &self,
        writer: &Writer,
        name: &ParticipantName,
    ) -> Result<Removal, WriteError> {
        let removed = self.write(true, |log, _| {
            log.head(writer.node).check(writer)?;
            let in_use = log.records.values().any(|record| {
                record.finished_at.is_none()
                    && !record.decision.is_finished_at_once()
                    && record.decision.branches.contains_key(name)
            });
            if !log.participants.contains_key(name) {
                return Ok(Removal::Absent);
            }
            if in_use {
                return Ok(Removal::InUse);
            }
            log.participants.remove(name);
            Ok(Removal::Removed)
        });
        removed.await
    }

    async fn new_identity(&self) -> Result<IdentityChange, LogError> {
        self.went_back.lock().unwrap().take();
        let changed = self.write(true, |log, _| {
            let former = log.identity();
            let present = draw_identity(former, &log.former());
            log.identities.push(present);
            for node in log.epochs.keys().copied().collect::<Vec<_>>() {
                log.raise(node)?;
            }
            Ok(IdentityChange { former, present })
        });
        changed.await.map_err(unfenced)
    }
}

/// The errors of a write that no fence stands before.
fn unfenced(error: WriteError) -> LogError {
    match error {
        WriteError::Unavailable(cause) => LogError::Unavailable(cause),
        WriteError::Broken(cause) => LogError::Broken(cause),
        WriteError::Fenced(_) | WriteError::WentBack(_) => unreachable!("nobody checked"),
    }
}
