//! The bank's business: what its operations check and reserve, apply, and give back.
//!
//! A debit *reserves*: the amount goes into `held`, and what is held can not be promised twice. So debits of one account
//! run side by side in different transactions, and the bank needs no keys.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tokio_postgres::NoTls;
use unanimous_participant::{Failure, Resource, Tx, Vote};

/// More than this in one account is refused, so that no sum ever leaves 64 bits, however many credits are under way.
pub const BALANCE_MAX: i64 = 1_000_000_000_000_000_000;
/// More than this at once is refused.
const AMOUNT_MAX: i64 = 1_000_000_000_000;

/// Accounts and the append-only list of what moved. `balance` is the ledger's: money that is held is still in it.
const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS accounts (
        id      bigint PRIMARY KEY,
        balance bigint NOT NULL,
        held    bigint NOT NULL DEFAULT 0,
        CHECK (held >= 0 AND balance >= held)
    ) WITH (fillfactor = 70);
    CREATE TABLE IF NOT EXISTS entries (
        transaction text   NOT NULL,
        account     bigint NOT NULL,
        amount      bigint NOT NULL
    );
    CREATE INDEX IF NOT EXISTS entries_by_transaction ON entries (transaction);
";

/// What a branch may ask of the bank. Anything else (another kind, another member, an amount that is no positive
/// integer) is refused by the participant before any of this code runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Operation {
    /// Takes money out of an account.
    Debit {
        /// From where.
        account: Positive,
        /// How much.
        amount: Positive,
    },
    /// Puts money into an account.
    Credit {
        /// To where.
        account: Positive,
        /// How much.
        amount: Positive,
    },
    /// Looks whether an account has so much to spend, and changes nothing. It is so at the prepare; nothing keeps it so until
    /// the commit, for a read-only branch holds nothing.
    Check {
        /// Which account.
        account: Positive,
        /// How much.
        at_least: Positive,
    },
}

/// A positive integer. Money is counted in the smallest unit there is, and never in floating-point numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Positive(i64);

impl TryFrom<i64> for Positive {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        if number > 0 {
            Ok(Self(number))
        } else {
            Err(format!("{number} is not a positive integer"))
        }
    }
}

impl From<Positive> for i64 {
    fn from(number: Positive) -> Self {
        number.0
    }
}

/// The bank as a participant.
#[derive(Clone, Copy, Debug)]
pub struct Bank;

impl Resource for Bank {
    type Operation = Operation;

    async fn prepare(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<Vote, Failure> {
        match operation {
            Operation::Debit { account, amount } => {
                let held = tx
                    .execute(
                        "UPDATE accounts SET held = held + $2 WHERE id = $1 AND balance - held >= $2",
                        &[&account.0, &amount.0],
                    )
                    .await?;
                Ok(Vote::yes_if(held == 1, "insufficient funds"))
            }
            Operation::Check { account, at_least } => {
                let sql = "SELECT FROM accounts WHERE id = $1 AND balance - held >= $2";
                let found = tx.query_opt(sql, &[&account.0, &at_least.0]).await?;
                Ok(match found {
                    Some(_) => Vote::ReadOnly,
                    None => Vote::refuse("insufficient funds"),
                })
            }
            Operation::Credit { account, amount } => {
                let row = tx
                    .query_opt("SELECT balance FROM accounts WHERE id = $1", &[&account.0])
                    .await?;
                let Some(row) = row else {
                    return Ok(Vote::refuse(format!("there is no account {}", account.0)));
                };
                let balance: i64 = row.try_get(0)?;
                let has_room = amount.0 <= AMOUNT_MAX && balance <= BALANCE_MAX;
                Ok(Vote::yes_if(
                    has_room,
                    "more money than this bank can count",
                ))
            }
        }
    }

    async fn commit(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
        let (account, moved, released) = match operation {
            Operation::Debit { account, amount } => (account.0, -amount.0, amount.0),
            Operation::Credit { account, amount } => (account.0, amount.0, 0),
            // Read-only: it has no second phase, unless another operation of its branch has one.
            Operation::Check { .. } => return Ok(()),
        };
        // The entry is written only with the account's change: one statement, and both or neither.
        let written = tx
            .execute(
                "WITH moved AS ( \
                     UPDATE accounts SET balance = balance + $2, held = held - $3 WHERE id = $1 RETURNING id) \
                 INSERT INTO entries (transaction, account, amount) SELECT $4, id, $2 FROM moved",
                &[&account, &moved, &released, &tx.transaction().to_string()],
            )
            .await?;
        if written == 1 {
            Ok(())
        } else {
            Err(Failure::msg(format!("account {account} is gone")))
        }
    }

    async fn abort(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
        match operation {
            Operation::Debit { account, amount } => {
                tx.execute(
                    "UPDATE accounts SET held = held - $2 WHERE id = $1",
                    &[&account.0, &amount.0],
                )
                .await?;
            }
            // They reserved nothing.
            Operation::Credit { .. } | Operation::Check { .. } => {}
        }
        Ok(())
    }
}

/// Creates the tables and the accounts 1 to `accounts`. Run again, it starts over, and forgets what was promised too: a
/// branch of before would move money that is not there any more. No service does this with money that counts.
///
/// # Errors
/// When the database can not be reached or refuses it.
pub async fn init(
    config: &tokio_postgres::Config,
    accounts: i64,
    balance: i64,
) -> anyhow::Result<()> {
    let (mut client, connection) = config
        .connect(NoTls)
        .await
        .context("connecting to the bank's database")?;
    let connection = tokio::spawn(connection);
    let transaction = client.transaction().await?;
    transaction.batch_execute(SCHEMA).await?;
    transaction
        .batch_execute("TRUNCATE accounts, entries")
        .await?;
    let promised = "SELECT to_regclass('unanimous.branches') IS NOT NULL";
    if transaction.query_one(promised, &[]).await?.try_get(0)? {
        transaction
            .batch_execute("TRUNCATE unanimous.branches, unanimous.keys")
            .await?;
    }
    transaction
        .execute(
            "INSERT INTO accounts (id, balance) SELECT id, $2 FROM generate_series(1, $1::bigint) AS id",
            &[&accounts, &balance],
        )
        .await?;
    transaction.commit().await?;
    drop(client);
    connection.await??;
    tracing::info!(accounts, balance, "the bank starts over");
    Ok(())
}
