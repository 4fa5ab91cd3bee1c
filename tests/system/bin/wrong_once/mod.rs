//! A bank that does one credit otherwise than it should, and notes in its own database which.

use unanimous_bank::bank::{Bank, Operation};
use unanimous_participant::{Failure, Resource, Tx, Vote};

/// The example's bank, but for the first small credit that it commits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WrongOnce {
    /// How often it applies that one.
    pub(crate) times: u32,
}

/// Larger ones are left alone: those that a demo shows one by one.
const SMALL: i64 = 100;

/// Takes the one place that there is in the table.
const TAKE_THE_PLACE: &str = "
    INSERT INTO wrong (one, transaction) VALUES (1, $1) ON CONFLICT (one) DO NOTHING";

const PLACE: &str =
    "CREATE TABLE IF NOT EXISTS wrong (one bigint PRIMARY KEY, transaction text NOT NULL)";

impl Resource for WrongOnce {
    type Operation = Operation;

    async fn prepare(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<Vote, Failure> {
        Bank.prepare(operation, tx).await
    }

    async fn commit(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
        let is_small_credit = match operation {
            Operation::Credit { amount, .. } => i64::from(*amount) < SMALL,
            Operation::Debit { .. } | Operation::Check { .. } => false,
        };
        if is_small_credit {
            // Two at once may fail here; the coordinator asks again.
            tx.execute(PLACE, &[]).await?;
            let transaction = tx.transaction().to_string();
            if tx.execute(TAKE_THE_PLACE, &[&transaction]).await? == 1 {
                for _ in 0..self.times {
                    Bank.commit(operation, tx).await?;
                }
                return Ok(());
            }
        }
        Bank.commit(operation, tx).await
    }

    async fn abort(&self, operation: &Operation, tx: &mut Tx<'_>) -> Result<(), Failure> {
        Bank.abort(operation, tx).await
    }
}
