//! One local transaction: the cells of the disk, and the service's code in it.

use std::collections::{BTreeMap, BTreeSet};

use unanimous_protocol::{
    branch::State,
    id::{ParticipantName, Prefix, TransactionId},
    keys::{self, Age, GiveUp},
    message::{Refusal, RefusalCode, Vote},
};

use super::ledger::Operation;
use crate::{disk::Disk, surroundings::Millis};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cell {
    Row(TransactionId),
    Key(u64),
    Account(u64),
    Applied(TransactionId),
    /// The low-water mark of a prefix.
    Mark(Prefix),
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Row(Row),
    Holder(Age),
    Account { balance: u64, held: u64 },
    Applied(u32),
    Mark(TransactionId),
}

/// What the intent log keeps of a branch.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The participant's name as the branch's prepare said it: the service may be called otherwise by now.
    pub(super) name: ParticipantName,
    pub(super) state: State,
    pub(super) operations: Vec<Operation>,
    /// Interactive pieces of work among them.
    pub(super) pieces: BTreeSet<u32>,
}

impl Row {
    pub(super) fn keys(&self) -> impl Iterator<Item = u64> {
        self.operations.iter().filter_map(Operation::key)
    }
}

/// One local transaction.
pub(super) struct Local<'a> {
    pub(super) disk: &'a Disk<Cell, Value>,
    pub(super) writes: BTreeMap<Cell, Option<Value>>,
}

/// A prepare that found a key held.
pub(super) enum KeyHeld {
    Wait(u64),
    GiveUp(u64, GiveUp),
    /// A rule is broken.
    OlderRefused(u64),
}

impl Local<'_> {
    pub(super) fn get(&self, cell: Cell) -> Option<&Value> {
        match self.writes.get(&cell) {
            Some(written) => written.as_ref(),
            None => self.disk.get(&cell),
        }
    }

    pub(super) fn account(&self, account: u64) -> (u64, u64) {
        match self.get(Cell::Account(account)) {
            Some(Value::Account { balance, held }) => (*balance, *held),
            Some(Value::Row(_) | Value::Applied(_) | Value::Holder(_) | Value::Mark(_)) | None => {
                (0, 0)
            }
        }
    }

    pub(super) fn set(&mut self, account: u64, balance: u64, held: u64) {
        let value = Value::Account { balance, held };
        self.writes.insert(Cell::Account(account), Some(value));
    }

    pub(super) fn holder(&self, key: u64) -> Option<Age> {
        match self.get(Cell::Key(key)) {
            Some(Value::Holder(age)) => Some(*age),
            Some(Value::Row(_) | Value::Applied(_) | Value::Account { .. } | Value::Mark(_))
            | None => None,
        }
    }

    /// All keys or none.
    pub(super) fn take_keys(
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
                // Of two that hold each other's key exactly one may be refused, and it is the younger (rule 17).
                if wait.then == GiveUp::Conflict && mine < holder {
                    return Err(KeyHeld::OlderRefused(key));
                }
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

    pub(super) fn release_keys(&mut self, id: TransactionId, row: &Row) {
        for key in row.keys() {
            if self.holder(key).is_some_and(|age| age.transaction == id) {
                self.writes.insert(Cell::Key(key), None);
            }
        }
    }

    /// The service's prepare: checks and reserves. What it found nothing to do for, it drops.
    pub(super) fn prepare(&mut self, operations: &mut Vec<Operation>) -> Vote {
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

    pub(super) fn commit(&mut self, id: TransactionId, operations: &[Operation]) {
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

    pub(super) fn abort(&mut self, operations: &[Operation]) {
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

    pub(super) fn applied(&self, id: TransactionId) -> u32 {
        match self.get(Cell::Applied(id)) {
            Some(Value::Applied(count)) => *count,
            Some(Value::Row(_) | Value::Account { .. } | Value::Holder(_) | Value::Mark(_))
            | None => 0,
        }
    }
}

pub(super) fn refused(reason: &str) -> Vote {
    no(RefusalCode::Refused, reason.to_owned())
}

pub(super) fn no(code: RefusalCode, reason: String) -> Vote {
    Vote::No(Refusal { code, reason })
}

pub(super) fn cells(cells: &[Cell]) -> String {
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
