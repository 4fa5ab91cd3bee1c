//! What stands on a participant's disk, what a crash leaves of it, and the pruning.

use unanimous_protocol::{
    branch::State,
    id::{Epoch, Prefix, Sequence, TransactionId},
};

use super::{
    Participant, Process, ProcessNumber, WaitingAnswer,
    local::{Cell, Row, Value, cells},
};
use crate::surroundings::{Crashed, Happening, LifeNumber, Surroundings, trace};

impl Participant {
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

    pub(super) fn crash_process(&mut self, number: ProcessNumber, s: &mut Surroundings) {
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
        self.outlived.clear();
        for process in std::mem::take(&mut self.processes).into_values() {
            if s.batches.shared.contains(&self.name) && s.batches.rng.chance(6_000) {
                self.outlived.push(process.lane.promises);
            }
        }
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

    pub(super) fn became_durable(&self, cells: Vec<Cell>, s: &mut Surroundings) {
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

    pub(super) fn row(&self, id: TransactionId) -> Option<&Row> {
        match self.disk.get(&Cell::Row(id)) {
            Some(Value::Row(row)) => Some(row),
            Some(Value::Account { .. } | Value::Applied(_) | Value::Holder(_) | Value::Mark(_))
            | None => None,
        }
    }

    /// The low-water mark as it is stored.
    pub(super) fn mark(&self, prefix: Prefix) -> Option<TransactionId> {
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
        // No id of the prefix is lower.
        let lowest = Epoch::new(0).zip(Sequence::new(0));
        let lowest = lowest.map_or(mark, |(epoch, at)| TransactionId::new(prefix, epoch, at));
        let rows = self.disk.cells_from(Cell::Row(lowest));
        let below = rows.map_while(|(cell, value)| match (cell, value) {
            (Cell::Row(id), Value::Row(row)) if *id < mark => Some((*id, &row.state)),
            (
                Cell::Row(_) | Cell::Account(_) | Cell::Applied(_) | Cell::Key(_) | Cell::Mark(_),
                _,
            ) => None,
        });
        let below = below.filter(|(_, state)| {
            matches!(
                state,
                State::Committed { .. } | State::Refused { .. } | State::Aborted | State::Tombstone
            )
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

    /// Whether it holds a prepared branch: for a coordinator that wonders.
    pub(crate) fn peek(&self, life: LifeNumber, id: TransactionId, s: &mut Surroundings) {
        if self.is_up && !self.processes.is_empty() {
            let row = self.row(id);
            let prepared = row.is_some_and(|row| matches!(row.state, State::Prepared { .. }));
            s.transmit_once(Happening::Peeked {
                life,
                participant: self.name.clone(),
                id,
                prepared,
            });
        }
    }

    /// What it keeps of a transaction.
    pub(crate) fn kept_of(&self, id: TransactionId) -> Option<String> {
        let held = |process: &Process| {
            process.sessions.contains_key(&id)
                || process.waiters.contains_key(&id)
                || process.answers.iter().any(|answer| answer.id == id)
                || process.lane.holds(id)
        };
        if let Some(row) = self.row(id) {
            let mark = self.mark(id.prefix());
            Some(format!("row ({:?}, its mark is {mark:?})", row.state))
        } else if self.keys().any(|(_, holder)| holder == id) {
            Some("key".to_owned())
        } else if self.processes.values().any(held) {
            Some("memory".to_owned())
        } else {
            None
        }
    }

    /// How often its effect was applied; that is counted for the checker, and not kept any more.
    pub(crate) fn forget_what_was_applied(&mut self, id: TransactionId) -> u32 {
        let applied = self.applied(id);
        self.disk.drop_instrument(&Cell::Applied(id));
        applied
    }

    /// Rows, and how many of them are tombstones.
    pub(crate) fn row_counts(&self) -> (usize, usize) {
        let count = |(rows, tombstones), (_, state): (TransactionId, &State)| {
            let is_tombstone = *state == State::Tombstone;
            (rows + 1, tombstones + usize::from(is_tombstone))
        };
        self.rows().fold((0, 0), count)
    }

    /// How many things its processes hold.
    pub(crate) fn in_memory(&self) -> usize {
        let held = |process: &Process| {
            let Process {
                sessions,
                waiters,
                answers,
                lane,
                ..
            } = process;
            sessions.len() + waiters.len() + answers.len() + lane.len()
        };
        self.processes.values().map(held).sum()
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
}
