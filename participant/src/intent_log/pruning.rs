//! Drops what has an outcome below a low-water mark, and keeps the mark instead (design rule 15).
//!
//! Both in one local transaction: whoever finds a row gone finds the mark, too. A message whose row is just being dropped
//! waits for that transaction, and then reads the mark, in a later statement than its insert; or, where it had found the
//! row and not yet locked it, finds nothing to lock and is to be sent again ([`LogError::Pruned`]).

use std::time::Duration;

use deadpool_postgres::Object;
use futures_util::future::try_join4;
use tokio_postgres::Statement;
use unanimous_protocol::id::{Prefix, TransactionId};

use super::{LogError, SqlId};
use crate::crash;

/// Rows dropped by one local transaction, at most: it is short, whatever has piled up.
const ROWS_MAX: i64 = 1_000;
/// One statement of it, at most.
const STATEMENT_MAX: Duration = Duration::from_secs(5);

/// Never falls: of several processes on one database one may have heard a later mark than another.
const STORE_MARK: &str = "\
    INSERT INTO unanimous.low_water (prefix, mark) VALUES ($1, $2) \
    ON CONFLICT (prefix) DO UPDATE SET mark = excluded.mark WHERE low_water.mark < excluded.mark";

/// Only what has an outcome: a branch in doubt stays until it has been told, also below the mark (an abort that was never
/// delivered). What a message holds at this moment is left for the next round.
const DROP: &str = "\
    DELETE FROM unanimous.branches AS gone \
    USING (SELECT participant, transaction FROM unanimous.branches \
           WHERE transaction >= $1 AND transaction < $2 \
             AND state IN ('committed', 'refused', 'aborted', 'tombstone') \
           ORDER BY transaction, participant LIMIT $3 FOR UPDATE SKIP LOCKED) AS due \
    WHERE gone.transaction = due.transaction AND gone.participant = due.participant";

/// A prefix as Postgres' `bigint`: log identity (32 bits) and node (16).
pub(crate) fn sql_prefix(prefix: Prefix) -> i64 {
    i64::from(prefix.identity.0) << 16 | i64::from(prefix.node.0)
}

/// The first uuid of a prefix.
fn first(prefix: Prefix) -> SqlId {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&sql_prefix(prefix).to_be_bytes()[2..]);
    SqlId(bytes)
}

/// One local transaction's worth of what lies below `mark`, at or above `from` (without it: of all). `true` where more may
/// be left.
pub(crate) async fn prune(
    connection: Object,
    from: Option<TransactionId>,
    mark: TransactionId,
) -> Result<bool, LogError> {
    let pruned = prune_on(&connection, from, mark).await;
    if pruned.is_err() {
        // Nobody knows what it is in the middle of: it never goes back to the pool.
        drop(Object::take(connection));
    }
    pruned
}

async fn prune_on(
    connection: &Object,
    from: Option<TransactionId>,
    mark: TransactionId,
) -> Result<bool, LogError> {
    let from = from.map_or_else(|| first(mark.prefix()), SqlId::of);
    let store: Statement = connection.prepare_cached(STORE_MARK).await?;
    let drop_rows = connection.prepare_cached(DROP).await?;
    let timeout = STATEMENT_MAX.as_millis();
    // Not forced: lost together they are as if they had never been.
    let begin = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL synchronous_commit = off; \
         SET LOCAL lock_timeout = {timeout}; SET LOCAL statement_timeout = {timeout}; \
         SET LOCAL idle_in_transaction_session_timeout = {timeout}"
    );
    crash::point("prune-before");
    let (_, _, dropped, ()) = try_join4(
        connection.batch_execute(&begin),
        connection.execute(&store, &[&sql_prefix(mark.prefix()), &SqlId::of(mark)]),
        connection.execute(&drop_rows, &[&from, &SqlId::of(mark), &ROWS_MAX]),
        connection.batch_execute("COMMIT"),
    )
    .await?;
    crash::point("prune-after");
    Ok(dropped >= ROWS_MAX.unsigned_abs())
}
