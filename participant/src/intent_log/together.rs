//! One local transaction for the messages of many branches: their rows go in and out set-wise.
//!
//! A [`Line`] is a connection that is kept for this. What travels on it is pipelined: the service's statements are sent
//! behind a BEGIN that has not been answered yet. Were that BEGIN cancelled (`pg_cancel_backend` may come at any moment),
//! they would each run, and be committed, on their own. So the session of a line is read-only but inside the transactions
//! that are begun here: such a statement fails instead.
//!
//! The rows are written first, each as it is hoped to end: a prepare's as `prepared`, an outcome's as `committed` or
//! `aborted`. Whether that was right is known before the COMMIT, and where it was not, all is rolled back and the rest is
//! run again. So a row is written once, and no row that claims more than was done is ever committed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    future::Future,
    time::Duration,
};

use deadpool_postgres::{ClientWrapper, Object};
use futures_util::{
    future::{try_join, try_join_all, try_join3, try_join4},
    poll,
};
use tokio_postgres::{Statement, error::SqlState, types::ToSql};
use unanimous_protocol::{
    branch::State,
    id::{BranchId, ParticipantName, TransactionId},
    operations::{BodyDigest, Operations},
};

use super::{LogError, SqlId, Stored, at_commit, pruning::sql_prefix, unreadable};
use crate::crash;

/// Nothing waits for a lock for longer, and then everybody goes alone: nobody is to be held up by somebody else's lock.
pub(crate) const LOCK_MAX: Duration = Duration::from_millis(25);
/// One statement, at most: the server's bound, a little behind the process's own.
const STATEMENT_MAX: Duration = Duration::from_millis(400);
/// The pause between two statements, at most: ends what a frozen process would hold for ever.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// A rollback that takes longer has a hanging statement in front of it.
const ROLLBACK_MAX: Duration = Duration::from_millis(250);

/// A write outside a transaction that a line has begun fails.
const READ_ONLY_BUT_INSIDE: &str =
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED, READ ONLY";
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// So many rows go by a statement each, at most.
const ONE_BY_ONE_MAX: usize = 4;

const INSERT_ONE: &str = "\
    INSERT INTO unanimous.branches (participant, transaction, state, operations, digest, voted_yes) \
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING RETURNING txid_current()";

const INSERT_ALL: &str = "\
    INSERT INTO unanimous.branches (participant, transaction, state, operations, digest, voted_yes) \
    SELECT new.participant, new.transaction, new.state, new.operations, new.digest, new.voted_yes::int[] \
    FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::bytea[], $6::text[]) \
         AS new (participant, transaction, state, operations, digest, voted_yes) \
    ORDER BY new.transaction \
    ON CONFLICT DO NOTHING RETURNING participant, transaction";

/// Finds, locks and writes those in doubt that hold no keys; what else there is answers alone.
///
/// The word `prepared` travels with each branch. Were it a constant, Postgres would walk over the whole index of what is in
/// doubt, and over what was since the oldest snapshot, instead of looking these branches up.
const END_ALL: &str = "\
    UPDATE unanimous.branches AS branch SET state = ending.state, since = clock_timestamp() \
    FROM unnest($1::text[], $2::uuid[], $3::text[], $4::text[], $5::bool[]) \
         AS ending (participant, transaction, before, state, known) \
    WHERE branch.participant = ending.participant AND branch.transaction = ending.transaction \
      AND branch.state = ending.before AND branch.keys_held = 0 \
    RETURNING branch.participant, branch.transaction, branch.digest, branch.added, branch.voted_yes, \
              CASE WHEN ending.known THEN NULL ELSE branch.operations END";

/// As [`END_ALL`].
const END_ONE: &str = "\
    UPDATE unanimous.branches AS branch SET state = $4, since = clock_timestamp() \
    WHERE branch.participant = $1 AND branch.transaction = $2 AND branch.state = $3 AND branch.keys_held = 0 \
    RETURNING txid_current(), branch.digest, branch.added, branch.voted_yes, \
              CASE WHEN $5 THEN NULL ELSE branch.operations END";

/// Begins where rows are written set-wise: for these statements plan once, and look each row up. By its statistics, which
/// lag behind a table that grows and shrinks all the time, Postgres would read the whole of it for every batch, and take as
/// long again to plan that.
const BEGIN_AND_LOOK_UP: &str = "\
    BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL plan_cache_mode = force_generic_plan; \
    SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
    SET LOCAL enable_bitmapscan = off";

/// As the session has them.
const AS_EVER: &str = "\
    SELECT pg_backend_pid(), \
           ARRAY[current_setting('plan_cache_mode'), current_setting('enable_seqscan'), \
                 current_setting('enable_hashjoin'), current_setting('enable_mergejoin'), \
                 current_setting('enable_bitmapscan')]";

/// Behind rows that were written set-wise: the service's statements are planned as ever.
const WRITTEN: &str = "\
    SELECT txid_current(), set_config('plan_cache_mode', $1, true), set_config('enable_seqscan', $2, true), \
           set_config('enable_hashjoin', $3, true), set_config('enable_mergejoin', $4, true), \
           set_config('enable_bitmapscan', $5, true)";

/// Where not all operations of a branch voted yes. Fails, by a division, unless it writes all of these rows.
const CORRECT: &str = "\
    WITH corrected AS ( \
        UPDATE unanimous.branches AS branch SET voted_yes = right_one.voted_yes::int[] \
        FROM unnest($1::text[], $2::uuid[], $3::text[]) AS right_one (participant, transaction, voted_yes) \
        WHERE branch.participant = right_one.participant AND branch.transaction = right_one.transaction \
        RETURNING 1) \
    SELECT 1 / (count(*) = cardinality($2::uuid[]))::int FROM corrected";

/// Fails, by a division, in any other transaction than the one that wrote the rows (design rule 5), and where a mark has
/// passed one of the new ids: whoever has such an id goes alone. What travels right
/// behind it, the COMMIT, is then not carried out.
///
/// The marks are read in a later statement than the insert: under READ COMMITTED it sees every pruning that the insert found
/// done, or waited for (design rule 15). It is prepared by SQL, so that it can be run in one message with the COMMIT.
const PREPARE_GUARD: &str = "\
    PREPARE unanimous_guard (bigint, bigint[], uuid[]) AS \
    SELECT 1 / (txid_current() = $1 AND NOT EXISTS ( \
        SELECT FROM unnest($2, $3) AS new (prefix, transaction) \
        JOIN unanimous.low_water USING (prefix) WHERE low_water.mark > new.transaction))::int";

/// The marks that may have stopped a commit.
const MARKS: &str = "SELECT mark FROM unanimous.low_water WHERE prefix = ANY ($1)";

/// A branch that is prepared: its row is not there yet.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub(crate) branch: &'a BranchId,
    pub(crate) operations: &'a Operations,
    /// As it is hoped to end.
    pub(crate) state: &'a State,
    /// How many operations there are: all of them are hoped to vote yes.
    pub(crate) count: usize,
}

/// A branch that gets its outcome: its row says prepared.
#[derive(Debug)]
pub(crate) struct Ending<'a> {
    pub(crate) branch: &'a BranchId,
    /// As it is hoped to end.
    pub(crate) state: &'a State,
    /// Whether its operations are known, and need not be read.
    pub(crate) known: bool,
}

/// What a row in doubt held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Promised {
    pub(crate) digest: BodyDigest,
    pub(crate) added: Option<String>,
    pub(crate) voted_yes: Vec<i32>,
    /// `None` where they were known.
    pub(crate) operations: Option<String>,
}

/// What became of a commit.
#[derive(Debug)]
pub(crate) enum Committed {
    All,
    /// It was stopped, and is rolled back.
    Nothing {
        /// Of the new ones' prefixes, as of now.
        marks: Vec<TransactionId>,
    },
}

/// What was found when the rows were written.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    /// `None` where no row was written.
    transaction: Option<i64>,
    /// Those of the new ones whose row was not there.
    pub(crate) inserted: HashSet<BranchId>,
    /// Those of the ending ones that were in doubt.
    pub(crate) ended: HashMap<BranchId, Promised>,
}

impl Begun {
    /// Of each prefix the lowest new id: it speaks for the others.
    fn lowest(&self) -> BTreeMap<i64, TransactionId> {
        let mut lowest = BTreeMap::new();
        for branch in &self.inserted {
            let id = branch.transaction;
            let least = lowest.entry(sql_prefix(id.prefix())).or_insert(id);
            *least = id.min(*least);
        }
        lowest
    }

    /// Runs [`PREPARE_GUARD`] for what was written; numbers and ids of our own, so they need no parameters.
    fn guard(&self) -> String {
        let Some(transaction) = self.transaction else {
            return String::new();
        };
        let lowest = self.lowest();
        let prefixes: Vec<String> = lowest.keys().map(i64::to_string).collect();
        let ids: Vec<String> = lowest.values().map(TransactionId::to_string).collect();
        format!(
            "EXECUTE unanimous_guard ({transaction}, '{{{}}}', '{{{}}}'); ",
            prefixes.join(","),
            ids.join(",")
        )
    }
}

/// A connection for shared local transactions, with its statements. See the module's head.
pub(crate) struct Line {
    connection: Kept,
    backend: i32,
    /// What [`AS_EVER`] says.
    as_ever: Vec<String>,
    insert_one: Statement,
    insert_all: Statement,
    end_one: Statement,
    end_all: Statement,
    written: Statement,
    correct: Statement,
}

impl Line {
    /// Makes this connection a line, one round trip. It never goes back to its pool, also where this is given up half way.
    pub(crate) async fn on(connection: Object) -> Result<Self, LogError> {
        let kept = Kept(Some(connection));
        let connection = kept.client();
        let settings = format!(
            "{READ_ONLY_BUT_INSIDE}; SET lock_timeout = {}; SET statement_timeout = {}; \
             SET idle_in_transaction_session_timeout = {}; {PREPARE_GUARD}",
            LOCK_MAX.as_millis(),
            STATEMENT_MAX.as_millis(),
            IDLE_MAX.as_millis(),
        );
        let statements = try_join_all(
            [INSERT_ONE, INSERT_ALL, END_ONE, END_ALL, WRITTEN, CORRECT]
                .map(|sql| connection.prepare(sql)),
        );
        let ((), session, statements) = try_join3(
            connection.batch_execute(&settings),
            connection.query_one(AS_EVER, &[]),
            statements,
        )
        .await?;
        let Ok([insert_one, insert_all, end_one, end_all, written, correct]) =
            <[Statement; 6]>::try_from(statements)
        else {
            unreachable!("as many as were prepared");
        };
        Ok(Self {
            backend: session.try_get(0)?,
            as_ever: session.try_get(1)?,
            connection: kept,
            insert_one,
            insert_all,
            end_one,
            end_all,
            written,
            correct,
        })
    }

    /// The server's process behind this connection.
    pub(crate) fn backend(&self) -> i32 {
        self.backend
    }

    /// What the service's statements run on.
    pub(crate) fn connection(&self) -> &ClientWrapper {
        self.connection.client()
    }

    /// After a failure: a statement prepared before a schema change may have been what failed.
    pub(crate) fn forget_statements(&self) {
        self.connection().statement_cache.clear();
    }

    /// Begins and writes the rows, one round trip. `beside` is polled once the statements of all that are on their way, so
    /// that what it sends arrives behind them.
    pub(crate) async fn begin<T>(
        &self,
        new: &[New<'_>],
        ending: &[Ending<'_>],
        beside: impl Future<Output = T>,
    ) -> Result<(Begun, T), LogError> {
        let mut writing = std::pin::pin!(self.write(new, ending));
        // Sends all of them; the answers come later.
        let early = poll!(writing.as_mut());
        let written = async {
            match early {
                std::task::Poll::Ready(written) => written,
                std::task::Poll::Pending => writing.await,
            }
        };
        try_join(written, async { Ok(beside.await) }).await
    }

    async fn write(&self, new: &[New<'_>], ending: &[Ending<'_>]) -> Result<Begun, LogError> {
        if new.len() + ending.len() <= ONE_BY_ONE_MAX {
            self.write_one_by_one(new, ending).await
        } else {
            self.write_all(new, ending).await
        }
    }

    async fn write_one_by_one(
        &self,
        new: &[New<'_>],
        ending: &[Ending<'_>],
    ) -> Result<Begun, LogError> {
        let mut in_order: Vec<&New<'_>> = new.iter().collect();
        in_order.sort_by_key(|new| new.branch.transaction);
        let inserting = try_join_all(in_order.iter().map(|new| async {
            let digest = new.operations.digest();
            let params: [&(dyn ToSql + Sync); 6] = [
                &new.branch.participant.as_str(),
                &SqlId::of(new.branch.transaction),
                &word(new.branch, new.state)?,
                &new.operations.text(),
                &digest.0.as_slice(),
                &(0..new.count as i32).collect::<Vec<_>>(),
            ];
            let inserted = self.connection().query_opt(&self.insert_one, &params);
            Ok(inserted.await?)
        }));
        let ends = try_join_all(ending.iter().map(|ending| async {
            let params: [&(dyn ToSql + Sync); 5] = [
                &ending.branch.participant.as_str(),
                &SqlId::of(ending.branch.transaction),
                &PREPARED,
                &word(ending.branch, ending.state)?,
                &ending.known,
            ];
            let ended = self.connection().query_opt(&self.end_one, &params);
            Ok(ended.await?)
        }));
        // The futures are polled in this order first, and so the statements travel in this order.
        let begin = async { Ok::<_, LogError>(self.connection().batch_execute(BEGIN).await?) };
        let ((), inserted, ended) = try_join3(begin, inserting, ends).await?;
        let mut found = Begun::default();
        for (new, row) in in_order.iter().zip(inserted) {
            if let Some(row) = row {
                found.transaction = Some(row.try_get(0)?);
                found.inserted.insert(new.branch.clone());
            }
        }
        for (ending, row) in ending.iter().zip(ended) {
            if let Some(row) = row {
                found.transaction = Some(row.try_get(0)?);
                let promised = read_promised(ending.branch, &row, 1)?;
                found.ended.insert(ending.branch.clone(), promised);
            }
        }
        Ok(found)
    }

    async fn write_all(&self, new: &[New<'_>], ending: &[Ending<'_>]) -> Result<Begun, LogError> {
        let inserting = Inserting::of(new)?;
        let ends = Ends::of(ending)?;
        let [plans, seqscan, hashjoin, mergejoin, bitmapscan] = self.as_ever.as_slice() else {
            unreachable!("as many settings as were read");
        };
        // The futures are polled in this order first, and so the statements travel in this order.
        let ((), inserted, ended, written) = try_join4(
            self.connection().batch_execute(BEGIN_AND_LOOK_UP),
            async {
                if new.is_empty() {
                    return Ok(Vec::new());
                }
                let params: [&(dyn ToSql + Sync); 6] = [
                    &inserting.participants,
                    &inserting.transactions,
                    &inserting.states,
                    &inserting.operations,
                    &inserting.digests,
                    &inserting.voted_yes,
                ];
                self.connection().query(&self.insert_all, &params).await
            },
            async {
                if ending.is_empty() {
                    return Ok(Vec::new());
                }
                let params: [&(dyn ToSql + Sync); 5] = [
                    &ends.participants,
                    &ends.transactions,
                    &ends.before,
                    &ends.states,
                    &ends.known,
                ];
                self.connection().query(&self.end_all, &params).await
            },
            async {
                let params: [&(dyn ToSql + Sync); 5] =
                    [plans, seqscan, hashjoin, mergejoin, bitmapscan];
                self.connection().query_one(&self.written, &params).await
            },
        )
        .await?;
        let mut found = Begun {
            transaction: Some(written.try_get(0)?),
            inserted: HashSet::with_capacity(inserted.len()),
            ended: HashMap::with_capacity(ended.len()),
        };
        for row in &inserted {
            found.inserted.insert(read_branch(row)?);
        }
        for row in &ended {
            let branch = read_branch(row)?;
            let promised = read_promised(&branch, row, 2)?;
            found.ended.insert(branch, promised);
        }
        Ok(found)
    }

    /// Commits, one round trip. `corrected`: branches of which other operations voted yes than all. `states`: what is
    /// written. Answers may be given once this returns [`Committed::All`], and not before. After an error nobody knows.
    pub(crate) async fn commit(
        &self,
        begun: &Begun,
        corrected: &[(&BranchId, &[i32])],
        states: &[&State],
        forced: bool,
    ) -> Result<Committed, LogError> {
        let commit = format!(
            "{}SET LOCAL synchronous_commit = {}; COMMIT",
            begun.guard(),
            if forced && !crash::is_weakened("synchronous-commit-off") {
                "on"
            } else {
                "off"
            },
        );
        let participants: Vec<&str> = corrected
            .iter()
            .map(|(branch, _)| branch.participant.as_str())
            .collect();
        let transactions: Vec<SqlId> = corrected
            .iter()
            .map(|(branch, _)| SqlId::of(branch.transaction))
            .collect();
        let voted_yes: Vec<String> = corrected
            .iter()
            .map(|(_, yes)| sql_places(yes.iter().copied()))
            .collect();
        // Nothing of these is sent before they are polled, in this order.
        let correcting = async {
            if !corrected.is_empty() {
                let params: [&(dyn ToSql + Sync); 3] = [&participants, &transactions, &voted_yes];
                self.connection().query_one(&self.correct, &params).await?;
            }
            Ok(())
        };
        let committing = self.connection().batch_execute(&commit);
        for state in states {
            crash::before_commit(Some(state));
        }
        let committed = try_join(correcting, committing).await;
        if committed.is_ok() {
            for state in states {
                crash::after_commit(Some(state));
            }
        }
        match committed {
            Ok(_) => Ok(Committed::All),
            // Whoever divided, what was sent behind it was not carried out, and a COMMIT in which it happens is none.
            Err(error) if error.code() == Some(&SqlState::DIVISION_BY_ZERO) => {
                self.stopped(begun).await
            }
            Err(error) => Err(at_commit(error)),
        }
    }

    async fn stopped(&self, begun: &Begun) -> Result<Committed, LogError> {
        if !self.roll_back().await {
            return Err(LogError::NoAnswer);
        }
        let prefixes: Vec<i64> = begun.lowest().into_keys().collect();
        let rows = self.connection().query(MARKS, &[&prefixes]).await?;
        let marks = rows
            .iter()
            .map(|row| row.try_get::<_, SqlId>(0)?.transaction());
        Ok(Committed::Nothing {
            marks: marks.collect::<Result<_, LogError>>()?,
        })
    }

    /// Rolls back; also what a rollback leaves, for this session is kept. `false`: something hangs in front of it, or the
    /// connection is broken.
    pub(crate) async fn roll_back(&self) -> bool {
        let rolled_back = self
            .connection()
            .batch_execute("ROLLBACK; SELECT pg_advisory_unlock_all()");
        let rolled_back = tokio::time::timeout(ROLLBACK_MAX, rolled_back).await;
        matches!(rolled_back, Ok(Ok(())))
    }
}

/// A connection that counts among its pool's and never goes back to it: dropped, it is closed.
struct Kept(Option<Object>);

impl Kept {
    fn client(&self) -> &ClientWrapper {
        match &self.0 {
            Some(connection) => connection,
            None => unreachable!("it is taken out only when it is dropped"),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(Object::take(connection));
        }
    }
}

/// The columns of [`INSERT_ALL`].
struct Inserting<'a> {
    participants: Vec<&'a str>,
    transactions: Vec<SqlId>,
    states: Vec<&'static str>,
    operations: Vec<&'a str>,
    digests: Vec<Vec<u8>>,
    voted_yes: Vec<String>,
}

impl<'a> Inserting<'a> {
    fn of(new: &'a [New<'a>]) -> Result<Self, LogError> {
        let states: Result<_, _> = new.iter().map(|new| word(new.branch, new.state)).collect();
        Ok(Self {
            participants: new
                .iter()
                .map(|new| new.branch.participant.as_str())
                .collect(),
            transactions: new
                .iter()
                .map(|new| SqlId::of(new.branch.transaction))
                .collect(),
            states: states?,
            operations: new.iter().map(|new| new.operations.text()).collect(),
            digests: new
                .iter()
                .map(|new| new.operations.digest().0.to_vec())
                .collect(),
            voted_yes: new
                .iter()
                .map(|new| sql_places(0..new.count as i32))
                .collect(),
        })
    }
}

/// As the rows spell it.
const PREPARED: &str = "prepared";

/// The columns of [`END_ALL`].
struct Ends<'a> {
    participants: Vec<&'a str>,
    transactions: Vec<SqlId>,
    before: Vec<&'static str>,
    states: Vec<&'static str>,
    known: Vec<bool>,
}

impl<'a> Ends<'a> {
    fn of(ending: &'a [Ending<'a>]) -> Result<Self, LogError> {
        let states: Result<_, _> = ending
            .iter()
            .map(|ending| word(ending.branch, ending.state))
            .collect();
        Ok(Self {
            participants: ending
                .iter()
                .map(|ending| ending.branch.participant.as_str())
                .collect(),
            transactions: ending
                .iter()
                .map(|ending| SqlId::of(ending.branch.transaction))
                .collect(),
            before: vec![PREPARED; ending.len()],
            states: states?,
            known: ending.iter().map(|ending| ending.known).collect(),
        })
    }
}

fn word(branch: &BranchId, state: &State) -> Result<&'static str, LogError> {
    let stored = Stored::of(state);
    let stored = stored.ok_or_else(|| unreadable(branch, "a state that is never stored"))?;
    Ok(stored.word)
}

/// An array as text: arrays of arrays would have to be of one length.
fn sql_places(places: impl Iterator<Item = i32>) -> String {
    let places: Vec<String> = places.map(|place| place.to_string()).collect();
    format!("{{{}}}", places.join(","))
}

fn read_branch(row: &tokio_postgres::Row) -> Result<BranchId, LogError> {
    let participant: &str = row.try_get(0)?;
    let participant: ParticipantName = participant
        .parse()
        .map_err(|_| LogError::Foreign("a participant that is no name"))?;
    Ok(BranchId {
        transaction: row.try_get::<_, SqlId>(1)?.transaction()?,
        participant,
    })
}

/// From the column `at` on.
fn read_promised(
    branch: &BranchId,
    row: &tokio_postgres::Row,
    at: usize,
) -> Result<Promised, LogError> {
    let digest: Option<&[u8]> = row.try_get(at)?;
    let digest = digest.and_then(|bytes| bytes.try_into().ok());
    Ok(Promised {
        digest: digest
            .map(BodyDigest)
            .ok_or_else(|| unreadable(branch, "its digest is not 32 bytes"))?,
        added: row.try_get(at + 1)?,
        voted_yes: row.try_get(at + 2)?,
        operations: row.try_get(at + 3)?,
    })
}
