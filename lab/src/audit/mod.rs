//! The one audit: what clients were told, what the log says, and what the banks applied have to be the same. All or
//! nothing, exactly once, nothing in doubt, nothing held, the total unchanged.
//!
//! The banks' books are read from their own tables, and what is in doubt also from what participants and coordinator list.
//! The log is read through the coordinator's API, so that it does not matter which kind it is; it has to hold all that was
//! asked, so an audit comes before the retention is over. Demo, tests, benchmark and chaos all take this one.

mod books;
mod finding;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use unanimous_protocol::id::TransactionId;
use unanimous_protocol::record::{AbortReason, Outcome};

pub(crate) use self::books::IN_DOUBT;
pub use self::books::{Books, Entry};
pub use self::finding::{Claim, Finding};
use crate::town::Site;
use crate::transfer::{Account, Api, Side, Transfer};
use crate::wait::until;

/// One request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its idempotency key.
    pub key: String,
    /// How it ended; `None` where the client gave up before it was told.
    pub told: Option<Told>,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Of which transaction.
    pub transaction: TransactionId,
    /// How it ended.
    pub outcome: Outcome,
    /// Of an abort.
    pub reason: Option<AbortReason>,
}

/// What the coordinator says of one transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    /// `None` where it is undecided.
    pub outcome: Option<Outcome>,
    /// Its idempotency key.
    pub key: Option<String>,
}

/// What the coordinator lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// Every transaction.
    pub transactions: BTreeMap<TransactionId, Logged>,
    /// Those of which some branch voted yes and has not acknowledged the outcome.
    pub in_doubt: BTreeSet<TransactionId>,
}

impl Log {
    /// Reads all of it through the coordinator's API.
    pub async fn read(api: &Api) -> anyhow::Result<Self> {
        let list = async |query| api.list(query).await.context("cannot read the log");
        let transactions = list("").await?.into_iter().map(|view| {
            let logged = Logged {
                outcome: view.outcome,
                key: view.idempotency_key,
            };
            (view.id, logged)
        });
        let transactions = transactions.collect();
        let in_doubt = list("&in_doubt=true").await?;
        Ok(Self {
            transactions,
            in_doubt: in_doubt.into_iter().map(|view| view.id).collect(),
        })
    }

    fn count(&self, outcome: Outcome) -> usize {
        let ended = self.transactions.values().filter_map(|one| one.outcome);
        ended.filter(|one| *one == outcome).count()
    }
}

/// Waits until nothing is in doubt, by the lists of coordinator and participants.
pub async fn settled(site: &Site, patience: Duration) -> anyhow::Result<()> {
    until("nothing is in doubt", patience, async || {
        for bank in &site.banks {
            let branches = site.in_doubt(bank).await?;
            ensure!(branches.is_empty(), "{}: {branches:?}", bank.side);
        }
        let listed = site.api().list("&in_doubt=true").await?;
        ensure!(listed.is_empty(), "the coordinator: {listed:?}");
        Ok(())
    })
    .await
}

/// All that an audit compares.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// What clients asked and were told since `before`.
    pub asked: Vec<Asked>,
    /// What they asked for, by key.
    pub transfers: BTreeMap<String, Transfer>,
    /// What the log says.
    pub log: Log,
    /// The books at first.
    pub before: [Books; 2],
    /// The books when everything had come to rest, or should have.
    pub after: [Books; 2],
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// All that is wrong.
    pub findings: Vec<Finding>,
    /// What clients were told.
    pub told: Counts,
    /// What the log says.
    pub logged: Counts,
    /// Transactions that each bank has entries of, east first.
    pub applied: [usize; 2],
    /// What both banks together held at first.
    pub total_before: i64,
    /// What they hold now.
    pub total_after: i64,
}

/// How many transactions ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Committed.
    pub committed: usize,
    /// Aborted.
    pub aborted: usize,
    /// Neither, as far as is known.
    pub unknown: usize,
}

impl Counts {
    /// Of what clients were told.
    pub fn of(asked: &[Asked]) -> Self {
        let mut counts = Self::default();
        for asked in asked {
            match asked.told.as_ref().map(|told| told.outcome) {
                Some(Outcome::Committed) => counts.committed += 1,
                Some(Outcome::Aborted) => counts.aborted += 1,
                None => counts.unknown += 1,
            }
        }
        counts
    }
}

impl Report {
    /// How many findings break a claim.
    pub fn broken(&self, claim: Claim) -> usize {
        let findings = self.findings.iter();
        findings.filter(|finding| finding.breaks() == claim).count()
    }
}

impl Evidence {
    /// Reads books and log as they are now.
    pub async fn collect(
        site: &Site,
        asked: Vec<Asked>,
        transfers: BTreeMap<String, Transfer>,
        before: [Books; 2],
    ) -> anyhow::Result<Self> {
        Ok(Self {
            asked,
            transfers,
            log: Log::read(&site.api()).await?,
            before,
            after: Books::read_both(site).await?,
        })
    }

    /// Compares all of it.
    pub fn examine(&self) -> Report {
        let mut findings = told_and_logged(&self.asked, &self.log);
        self.find_in_entries(&mut findings);
        let unacknowledged = self.log.in_doubt.iter();
        findings.extend(unacknowledged.map(|&transaction| Finding::Unacknowledged { transaction }));
        for books in &self.after {
            find_in_one(books, &mut findings);
        }
        self.find_in_balances(&mut findings);
        let together = |books: &[Books; 2]| books.iter().flat_map(|b| b.balances.values()).sum();
        let (before, after) = (together(&self.before), together(&self.after));
        if before != after {
            findings.push(Finding::Total { before, after });
        }
        Report {
            findings,
            told: Counts::of(&self.asked),
            logged: Counts {
                committed: self.log.count(Outcome::Committed),
                aborted: self.log.count(Outcome::Aborted),
                unknown: self.undecided(),
            },
            applied: [0, 1].map(|bank| self.applied_at(bank)),
            total_before: before,
            total_after: after,
        }
    }

    fn undecided(&self) -> usize {
        let all = self.log.transactions.values();
        all.filter(|logged| logged.outcome.is_none()).count()
    }

    fn applied_at(&self, bank: usize) -> usize {
        let transactions: BTreeSet<_> = self
            .new_entries()
            .filter(|(entry, _)| entry.account.side == Side::BOTH[bank])
            .map(|(entry, _)| &entry.transaction)
            .collect();
        transactions.len()
    }

    /// What both banks wrote since `before`.
    fn new_entries(&self) -> impl Iterator<Item = (&Entry, usize)> {
        let earlier = |entry: &Entry| {
            let counts = self.before.iter().filter_map(|b| b.entries.get(entry));
            counts.sum::<usize>()
        };
        self.after
            .iter()
            .flat_map(|books| &books.entries)
            .map(move |(entry, &count)| (entry, count.saturating_sub(earlier(entry))))
            .filter(|(_, count)| *count > 0)
    }

    /// Holds every entry against the log, and every commit against the entries.
    fn find_in_entries(&self, findings: &mut Vec<Finding>) {
        let mut applied: BTreeMap<&str, BTreeMap<&Entry, usize>> = BTreeMap::new();
        for (entry, count) in self.new_entries() {
            let of_transaction = applied.entry(&entry.transaction).or_default();
            of_transaction.insert(entry, count);
        }
        let told: BTreeMap<TransactionId, (&str, Outcome)> = self
            .asked
            .iter()
            .filter_map(|asked| Some((asked.told.as_ref()?, asked)))
            .map(|(told, asked)| (told.transaction, (asked.key.as_str(), told.outcome)))
            .collect();
        let mut committed: BTreeMap<TransactionId, Option<&str>> = BTreeMap::new();
        for (id, logged) in &self.log.transactions {
            if logged.outcome == Some(Outcome::Committed) {
                committed.insert(*id, logged.key.as_deref());
            }
        }
        for (id, (key, outcome)) in &told {
            if *outcome == Outcome::Committed {
                committed.entry(*id).or_insert(Some(key));
            }
        }
        for (&transaction, &key) in &committed {
            let Some(transfer) = key.and_then(|key| self.transfers.get(key)) else {
                findings.push(Finding::NobodyAsked {
                    transaction,
                    key: key.map(str::to_owned),
                });
                continue;
            };
            let entries = applied.get(transaction.to_string().as_str());
            let was_told = matches!(told.get(&transaction), Some((_, Outcome::Committed)));
            find_in_commit(transaction, transfer, entries, was_told, findings);
        }
        for (&transaction, entries) in &applied {
            let id = transaction.parse::<TransactionId>().ok();
            let logged = id.and_then(|id| self.log.transactions.get(&id));
            let logged = logged.map(|logged| logged.outcome);
            if logged == Some(Some(Outcome::Committed)) {
                continue;
            }
            let told = id.and_then(|id| told.get(&id)).map(|(_, outcome)| *outcome);
            findings.extend(entries.keys().map(|&entry| Finding::AppliedUncommitted {
                transaction: transaction.to_owned(),
                entry: entry.clone(),
                logged,
                told,
            }));
        }
    }

    /// Every account holds what it held at first and all its entries since.
    fn find_in_balances(&self, findings: &mut Vec<Finding>) {
        let of = |books: &[Books; 2]| -> BTreeMap<Account, i64> {
            let balances = books.iter().flat_map(|books| &books.balances);
            balances.map(|(account, held)| (*account, *held)).collect()
        };
        let (mut expected, mut found) = (of(&self.before), of(&self.after));
        for (entry, count) in self.new_entries() {
            let times = i64::try_from(count).unwrap_or(i64::MAX);
            *expected.entry(entry.account).or_default() += entry.change.saturating_mul(times);
        }
        for account in found.keys() {
            expected.entry(*account).or_default();
        }
        findings.extend(expected.into_iter().filter_map(|(account, expected)| {
            let found = found.remove(&account).unwrap_or_default();
            (found != expected).then_some(Finding::Balance {
                account,
                expected,
                found,
            })
        }));
    }
}

/// Holds what clients were told against what the log says. For participants that are no banks it is the whole audit of
/// the coordinator.
pub fn told_and_logged(asked: &[Asked], log: &Log) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Asked { key, told } in asked {
        let Some(told) = told else {
            findings.push(Finding::Unknown { key: key.clone() });
            continue;
        };
        let (transaction, key, told) = (told.transaction, key.clone(), told.outcome);
        match log.transactions.get(&transaction) {
            None => findings.push(Finding::NotInLog {
                transaction,
                key,
                told,
            }),
            Some(logged) if logged.outcome == Some(told) => {}
            Some(logged) => findings.push(Finding::ToldOtherwise {
                transaction,
                key,
                told,
                logged: logged.outcome,
            }),
        }
    }
    let mut by_key: BTreeMap<&str, TransactionId> = BTreeMap::new();
    for (&id, logged) in &log.transactions {
        let Logged {
            outcome: Some(Outcome::Committed),
            key: Some(key),
        } = logged
        else {
            continue;
        };
        if let Some(first) = by_key.insert(key, id) {
            findings.push(Finding::KeyTwice {
                key: key.clone(),
                first,
                second: id,
            });
        }
    }
    findings
}

/// Whether a commit's entries are all there, once, and no others.
fn find_in_commit(
    transaction: TransactionId,
    transfer: &Transfer,
    entries: Option<&BTreeMap<&Entry, usize>>,
    told: bool,
    findings: &mut Vec<Finding>,
) {
    let changes = transfer.changes().into_iter();
    let expected: Vec<Entry> = changes
        .filter(|(_, change)| *change != 0)
        .map(|(account, change)| Entry {
            transaction: transaction.to_string(),
            account,
            change,
        })
        .collect();
    let none = BTreeMap::new();
    let entries = match entries {
        Some(entries) => entries,
        None if expected.is_empty() => &none,
        None => {
            findings.push(Finding::Lost { transaction, told });
            return;
        }
    };
    for missing in &expected {
        if !entries.contains_key(missing) {
            findings.push(Finding::HalfApplied {
                transaction,
                missing: missing.clone(),
            });
        }
    }
    for (&entry, &times) in entries {
        let entry = entry.clone();
        if !expected.contains(&entry) {
            findings.push(Finding::Altered { transaction, entry });
        } else if times > 1 {
            findings.push(Finding::AppliedTwice {
                transaction,
                entry,
                times,
            });
        }
    }
}

/// What one bank's books say by themselves.
fn find_in_one(books: &Books, findings: &mut Vec<Finding>) {
    let side = books.side;
    let booked = books.balances.values().sum();
    if books.told.balance != booked {
        findings.push(Finding::Told {
            side,
            told: books.told.balance,
            booked,
        });
    }
    // What is in doubt holds what it reserved, and that is a finding of its own.
    if books.in_doubt.is_empty() {
        let held = books.held.iter();
        findings.extend(held.map(|(&account, &held)| Finding::Held { account, held }));
    }
    findings.extend(books.in_doubt.iter().map(|transaction| Finding::InDoubt {
        side,
        transaction: transaction.clone(),
    }));
    let orphans = books.keys.difference(&books.in_doubt);
    findings.extend(orphans.map(|transaction| Finding::KeyHeld {
        side,
        transaction: transaction.clone(),
    }));
}
