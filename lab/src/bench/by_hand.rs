//! Two-phase commit as a careful programmer writes it in a service of his own: statements prepared once, everything that
//! needs no answer sent behind each other, both servers at the same time.
//!
//! What it lacks is what a coordinator is for: when this program dies between the two phases, nobody knows what is to
//! become of what it prepared.

use futures_util::future::{try_join, try_join3};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client as Connection, Statement};
use unanimous_protocol::record::Outcome;

use super::drive::Client;
use crate::postgres::connect;
use crate::transfer::{Side, Transfer};

/// The account's change and its entry in one statement, as the bank does it: both or neither. No row where there is not
/// enough.
const MOVE: &str = "WITH moved AS ( \
     UPDATE accounts SET balance = balance + $2 WHERE id = $1 AND balance - held + $2 >= 0 RETURNING id) \
     INSERT INTO entries (transaction, account, amount) SELECT $3, id, $2 FROM moved";
/// Two clients that each hold at one server what the other one wants there wait for ever: no server sees both.
const WAITING: &str = "SET lock_timeout = '1s'";

/// One client: a connection to each server.
pub(super) struct ByHand {
    banks: [Bank; 2],
}

struct Bank {
    connection: Connection,
    moving: Statement,
}

/// How the first phase went at one server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Prepared {
    Moved,
    /// Prepared, with nothing in it.
    Refused,
    /// Rolled back: another one held the account for too long.
    Blocked,
}

impl ByHand {
    pub(super) async fn connect(urls: [&str; 2]) -> anyhow::Result<Self> {
        let [east, west] = urls;
        Ok(Self {
            banks: [Bank::connect(east).await?, Bank::connect(west).await?],
        })
    }

    /// Both phases, once. `None` where the transfer is to be tried again.
    async fn try_once(&self, name: &str, transfer: &Transfer) -> anyhow::Result<Option<Outcome>> {
        let [east, west] = &self.banks;
        let changes = transfer.changes();
        let change_at = |side: Side| {
            let change = changes.iter().find(|(account, _)| account.side == side);
            change.map_or((0, 0), |(account, change)| (account.number, *change))
        };
        let prepared = try_join(
            east.prepare(name, change_at(Side::East)),
            west.prepare(name, change_at(Side::West)),
        )
        .await?;
        if prepared == (Prepared::Moved, Prepared::Moved) {
            try_join(east.end("COMMIT", name), west.end("COMMIT", name)).await?;
            return Ok(Some(Outcome::Committed));
        }
        let undo = async |bank: &Bank, prepared| match prepared {
            Prepared::Blocked => Ok(()),
            Prepared::Moved | Prepared::Refused => bank.end("ROLLBACK", name).await,
        };
        try_join(undo(east, prepared.0), undo(west, prepared.1)).await?;
        let blocked = [prepared.0, prepared.1].contains(&Prepared::Blocked);
        Ok((!blocked).then_some(Outcome::Aborted))
    }
}

impl Bank {
    async fn connect(url: &str) -> anyhow::Result<Self> {
        let connection = connect(url).await?;
        connection.batch_execute(WAITING).await?;
        let moving = connection.prepare(MOVE).await?;
        Ok(Self { connection, moving })
    }

    /// The work and the vote, in one round trip. Nothing can be left out when the account has not enough, for all of it
    /// has been sent by then.
    async fn prepare(
        &self,
        name: &str,
        (account, change): (i64, i64),
    ) -> Result<Prepared, tokio_postgres::Error> {
        let prepare = format!("PREPARE TRANSACTION '{name}'");
        let done = try_join3(
            self.connection.batch_execute("BEGIN"),
            async {
                let row: [&(dyn ToSql + Sync); 3] = [&account, &change, &name];
                match self.connection.execute(&self.moving, &row).await {
                    Ok(0) => Ok(Prepared::Refused),
                    Ok(_) => Ok(Prepared::Moved),
                    // What follows is answered with ROLLBACK then.
                    Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                        Ok(Prepared::Blocked)
                    }
                    Err(error) => Err(error),
                }
            },
            self.connection.batch_execute(&prepare),
        );
        let ((), prepared, ()) = done.await?;
        Ok(prepared)
    }

    async fn end(&self, how: &str, name: &str) -> Result<(), tokio_postgres::Error> {
        let sql = format!("{how} PREPARED '{name}'");
        self.connection.batch_execute(&sql).await
    }
}

impl Client for ByHand {
    async fn transfer(&mut self, number: usize, transfer: &Transfer) -> anyhow::Result<Outcome> {
        let mut attempt = 0;
        loop {
            let name = format!("transfer-{number}-{attempt}");
            if let Some(outcome) = self.try_once(&name, transfer).await? {
                return Ok(outcome);
            }
            attempt += 1;
        }
    }
}
