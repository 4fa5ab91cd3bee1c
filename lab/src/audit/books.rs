//! What a bank has in its books, read from its own tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::Context;
use tokio_postgres::IsolationLevel;

use crate::postgres;
use crate::town::{BankAt, Site, Total};
use crate::transfer::{Account, Side};

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
        write!(f, "{:+} on {}", self.change, self.account)
    }
}

/// All that one bank has in its books at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Books {
    /// Which bank.
    pub side: Side,
    /// What each account holds.
    pub balances: BTreeMap<Account, i64>,
    /// What is promised to transactions in doubt, by account; none that promises nothing.
    pub held: BTreeMap<Account, i64>,
    /// How often each entry is there.
    pub entries: BTreeMap<Entry, usize>,
    /// The transactions that it voted yes to without knowing their outcome: by its tables, or by what its participant
    /// lists.
    pub in_doubt: BTreeSet<String>,
    /// The transactions that hold a key of its participant.
    pub keys: BTreeSet<String>,
    /// What it tells of all accounts.
    pub told: Total,
}

impl Books {
    /// Reads the books of one bank.
    pub async fn read(site: &Site, bank: &BankAt) -> anyhow::Result<Self> {
        let side = bank.side;
        let told = site.total(bank).await?;
        let listed = site.in_doubt(bank).await?;
        let mut client = postgres::connect(&bank.database_url).await?;
        let reading = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true);
        let snapshot = reading.start().await?;
        let (mut balances, mut held) = (BTreeMap::new(), BTreeMap::new());
        let accounts = "SELECT id, balance, held FROM accounts";
        for row in snapshot.query(accounts, &[]).await? {
            let account = side.account(row.try_get(0)?);
            balances.insert(account, row.try_get(1)?);
            match row.try_get(2)? {
                0 => {}
                promised => {
                    held.insert(account, promised);
                }
            }
        }
        let mut entries = BTreeMap::new();
        let all = "SELECT transaction, account, amount FROM entries";
        for row in snapshot.query(all, &[]).await? {
            let entry = Entry {
                transaction: row.try_get(0)?,
                account: side.account(row.try_get(1)?),
                change: row.try_get(2)?,
            };
            *entries.entry(entry).or_default() += 1;
        }
        let texts = async |sql: &'static str| -> anyhow::Result<BTreeSet<String>> {
            let rows = snapshot.query(sql, &[]).await?;
            let texts = rows.iter().map(|row| row.try_get(0));
            Ok(texts.collect::<Result<_, _>>()?)
        };
        let mut in_doubt = texts(IN_DOUBT).await?;
        in_doubt.extend(listed.into_iter().map(|branch| branch.transaction));
        let keys = texts("SELECT transaction::text FROM unanimous.keys").await?;
        Ok(Self {
            side,
            balances,
            held,
            entries,
            in_doubt,
            keys,
            told,
        })
    }

    /// Reads the books of both banks, east first.
    pub async fn read_both(site: &Site) -> anyhow::Result<[Self; 2]> {
        let [east, west] = &site.banks;
        let read = async |bank: &BankAt| {
            let books = Self::read(site, bank).await;
            books.with_context(|| format!("cannot read the books of the bank {}", bank.side))
        };
        Ok([read(east).await?, read(west).await?])
    }
}

/// The transactions in doubt in a participant's database.
pub(crate) const IN_DOUBT: &str =
    "SELECT transaction::text FROM unanimous.branches WHERE state = 'prepared'";
