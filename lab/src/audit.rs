//! Whether the banks' books say what happened, and nothing else: no money made or lost, every
//! transfer that committed on both sides once, no other one anywhere, and nobody left waiting.
//!
//! It reads the banks' tables, not what our programs say of them.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use tokio_postgres::IsolationLevel;
use unanimous_protocol::id::TransactionId;

use crate::postgres;
use crate::town::{Bank, Total, Town};
use crate::transfer::{Account, Side, Transfer};

/// One line of a bank's `entries`: what a transaction did to an account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The transaction, as the bank wrote it.
    pub transaction: String,
    /// The account.
    pub account: Account,
    /// What was added; negative where it was taken.
    pub change: i64,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:+} on {} by {}",
            self.change, self.account, self.transaction
        )
    }
}

/// All that one bank has in its books at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Books {
    /// Which bank.
    pub side: Side,
    /// What each account holds.
    pub balances: BTreeMap<Account, i64>,
    /// What is promised to transactions in doubt.
    pub held: i64,
    /// How often each entry is there.
    pub entries: BTreeMap<Entry, usize>,
    /// The transactions that it voted yes to without knowing their outcome.
    pub in_doubt: Vec<String>,
    /// What it tells of all accounts.
    pub told: Total,
}

impl Books {
    /// Reads the books of one bank.
    pub async fn read(bank: &Bank) -> anyhow::Result<Self> {
        let side = bank.side();
        let told = bank.total().await?;
        let mut client = postgres::connect(bank.database_url()).await?;
        let reading = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true);
        let snapshot = reading.start().await?;
        let mut held = 0;
        let mut balances = BTreeMap::new();
        for row in snapshot
            .query("SELECT id, balance, held FROM accounts", &[])
            .await?
        {
            balances.insert(side.account(row.try_get(0)?), row.try_get(1)?);
            held += row.try_get::<_, i64>(2)?;
        }
        let mut entries = BTreeMap::new();
        for row in snapshot
            .query("SELECT transaction, account, amount FROM entries", &[])
            .await?
        {
            let entry = Entry {
                transaction: row.try_get(0)?,
                account: side.account(row.try_get(1)?),
                change: row.try_get(2)?,
            };
            *entries.entry(entry).or_default() += 1;
        }
        let in_doubt = snapshot
            .query(
                "SELECT transaction::text FROM unanimous.branches WHERE state = 'prepared'",
                &[],
            )
            .await?
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            side,
            balances,
            held,
            entries,
            in_doubt,
            told,
        })
    }

    /// Reads the books of both banks, east first.
    pub async fn read_both(town: &Town) -> anyhow::Result<[Self; 2]> {
        let read = async |side| {
            let books = Self::read(town.bank(side)).await;
            books.with_context(|| format!("cannot read the books of the bank {side}"))
        };
        Ok([read(Side::East).await?, read(Side::West).await?])
    }
}

/// What is wrong in the books.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// Money was made or lost.
    #[error("both banks together held {before} and now hold {after}")]
    Total {
        /// At first.
        before: i64,
        /// Now.
        after: i64,
    },
    /// What the bank tells is not what its accounts hold.
    #[error("{side} tells a total of {told}, and its accounts hold {booked}")]
    Told {
        /// Which bank.
        side: Side,
        /// By `GET /total`.
        told: i64,
        /// In the table.
        booked: i64,
    },
    /// A branch waits for its outcome.
    #[error("{transaction} is in doubt at {side}")]
    InDoubt {
        /// At which bank.
        side: Side,
        /// Which transaction.
        transaction: String,
    },
    /// Money is promised to nobody.
    #[error("{side} holds back {held} for transactions, and none is in doubt there")]
    Held {
        /// Which bank.
        side: Side,
        /// How much.
        held: i64,
    },
    /// An entry is missing, doubled, or nobody's.
    #[error("the entry {entry} is there {found} times instead of {expected}")]
    Entry {
        /// Which entry.
        entry: Entry,
        /// 1 where the transaction committed, 0 where not.
        expected: usize,
        /// How often it is there.
        found: usize,
    },
    /// An account does not hold what the transfers left in it.
    #[error("{account} holds {found} instead of {expected}")]
    Balance {
        /// Which account.
        account: Account,
        /// By the transfers that committed.
        expected: i64,
        /// In the table.
        found: i64,
    },
}

/// Compares the books of before and after with the transfers that committed in between, and
/// returns all that is wrong. It is for a town at rest: what is still under way is a finding.
pub fn compare(
    before: &[Books],
    committed: &[(TransactionId, Transfer)],
    after: &[Books],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for books in after {
        find_in_one(books, &mut findings);
    }
    let together = |books: &[Books]| books.iter().flat_map(|b| b.balances.values()).sum();
    let (total_before, total_after) = (together(before), together(after));
    if total_before != total_after {
        findings.push(Finding::Total {
            before: total_before,
            after: total_after,
        });
    }

    let mut balances: BTreeMap<Account, i64> = merged(before, |books| &books.balances);
    let mut entries: BTreeMap<Entry, usize> = merged(before, |books| &books.entries);
    for (id, transfer) in committed {
        for (account, change) in transfer.changes() {
            let transaction = id.to_string();
            let entry = Entry {
                transaction,
                account,
                change,
            };
            *balances.entry(account).or_default() += change;
            *entries.entry(entry).or_default() += 1;
        }
    }
    let differing = differences(entries, merged(after, |books| &books.entries));
    findings.extend(differing.map(|(entry, expected, found)| Finding::Entry {
        entry,
        expected,
        found,
    }));
    let differing = differences(balances, merged(after, |books| &books.balances));
    findings.extend(
        differing.map(|(account, expected, found)| Finding::Balance {
            account,
            expected,
            found,
        }),
    );
    findings
}

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
    if books.in_doubt.is_empty() && books.held != 0 {
        findings.push(Finding::Held {
            side,
            held: books.held,
        });
    }
    findings.extend(books.in_doubt.iter().map(|transaction| Finding::InDoubt {
        side,
        transaction: transaction.clone(),
    }));
}

fn merged<K: Clone + Ord, V: Copy>(
    books: &[Books],
    part: impl Fn(&Books) -> &BTreeMap<K, V>,
) -> BTreeMap<K, V> {
    books
        .iter()
        .flat_map(|books| part(books).iter().map(|(key, value)| (key.clone(), *value)))
        .collect()
}

/// Where two tables differ, with both values; what is not there counts as zero.
fn differences<K: Ord, V: Copy + Default + PartialEq>(
    expected: BTreeMap<K, V>,
    mut found: BTreeMap<K, V>,
) -> impl Iterator<Item = (K, V, V)> {
    let mut all: Vec<(K, V, V)> = expected
        .into_iter()
        .map(|(key, expected)| {
            let found = found.remove(&key).unwrap_or_default();
            (key, expected, found)
        })
        .collect();
    all.extend(
        found
            .into_iter()
            .map(|(key, found)| (key, V::default(), found)),
    );
    all.into_iter()
        .filter(|(_, expected, found)| expected != found)
}
