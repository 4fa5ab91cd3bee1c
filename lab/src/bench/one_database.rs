//! The floor: both accounts in one database, and nobody to agree with.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client as Connection, Statement};
use unanimous_protocol::record::Outcome;

use super::drive::Client;
use super::{ACCOUNTS, Work};
use crate::postgres::connect;
use crate::transfer::Transfer;

/// All of it in one statement, which is a transaction of its own: one round trip and one forced write.
const TRANSFER: &str = "WITH debit AS ( \
         UPDATE accounts SET balance = balance - $3 WHERE id = $1 AND balance - held >= $3 RETURNING id), \
     credit AS ( \
         UPDATE accounts SET balance = balance + $3 WHERE id = $2 AND EXISTS (SELECT FROM debit) RETURNING id) \
     INSERT INTO entries (transaction, account, amount) \
         SELECT $4, id, -$3 FROM debit UNION ALL SELECT $4, id, $3 FROM credit";

/// One client: one connection.
pub(super) struct OneDatabase {
    connection: Connection,
    transfer: Statement,
}

impl OneDatabase {
    pub(super) async fn connect(url: &str) -> anyhow::Result<Self> {
        let connection = connect(url).await?;
        let transfer = connection.prepare(TRANSFER).await?;
        Ok(Self {
            connection,
            transfer,
        })
    }
}

impl Client for OneDatabase {
    async fn transfer(&mut self, number: usize, transfer: &Transfer) -> anyhow::Result<Outcome> {
        let (from, mut to) = (transfer.from.number, transfer.to.number);
        // Accounts of the same number at two banks are two; here it would be one.
        if to == from {
            to = to % ACCOUNTS + 1;
        }
        let key = Work::key(number);
        loop {
            let row: [&(dyn ToSql + Sync); 4] = [&from, &to, &transfer.amount, &key];
            match self.connection.execute(&self.transfer, &row).await {
                Ok(0) => return Ok(Outcome::Aborted),
                Ok(_) => return Ok(Outcome::Committed),
                // There and back again at the same moment: the server has chosen one to give way.
                Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
