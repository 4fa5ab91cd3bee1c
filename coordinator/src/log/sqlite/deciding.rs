//! One decision write: the whole of it in one trip to SQLite's thread, and step by step where SQLite refuses a row.

use futures_util::TryStreamExt as _;
use sqlx::{Either, Executor as _, Row as _, SqliteConnection};
use unanimous_protocol::life::Writer;

use super::{
    codes::is_refusal,
    read_head,
    rows::{Row, append, insert, json_array, standings},
    sql::{DECIDE, DECIDE_ONLY, FENCE},
    writing::{Core, Job, rolled_back},
};
use crate::log::{
    LogError, WriteError,
    answers::{self, Answers, Inserted},
    damaged,
};

/// What one decision write holds, as the statements take it.
pub(super) struct Deciding {
    pub(super) writer: Writer,
    /// The proposals.
    pub(super) rows: Vec<Row>,
    /// The records that ride along.
    pub(super) riding: Vec<Row>,
    /// The finishes, as JSON.
    pub(super) finishes: String,
}

/// What a write has done that went through as a whole.
struct Done {
    /// The counter; `None` where the fence let nothing through.
    decisions: Option<u64>,
    inserted: u64,
}

impl Deciding {
    /// The counter, and what became of each proposal.
    pub(super) async fn on(
        self,
        core: &Core,
        connection: &mut SqliteConnection,
    ) -> Result<(u64, Answers), WriteError> {
        let written = self.at_once(connection).await;
        // One bad row fails alone (rule 23), so each is looked at.
        if written.as_ref().is_err_and(is_refusal) && rolled_back(connection).await {
            return core.transact(connection, self.step_by_step()).await;
        }
        let done = core.trust.noting(written)?;
        let Some(decisions) = done.decisions else {
            return Err(shut(connection, &self.writer).await);
        };
        let everything = self.rows.len() + self.riding.len();
        let inserted = if done.inserted == everything as u64 {
            self.rows.iter().map(|_| Inserted::Yes).collect()
        } else {
            // Some were there before, and which does not matter: whatever there is of each one now is durable, and stands.
            self.rows.iter().map(|_| Inserted::No).collect::<Vec<_>>()
        };
        let found = standings(connection, &answers::in_the_way(&self.rows, &inserted)).await;
        let found = core.trust.noting(found)?;
        let answers = answers::joined(&self.rows, inserted, found);
        Ok((decisions, core.trust.noting(answers)?))
    }

    async fn at_once(&self, connection: &mut SqliteConnection) -> Result<Done, sqlx::Error> {
        let Writer {
            node,
            epoch,
            identity,
            decisions_at_least,
        } = self.writer;
        let has_finishes = self.finishes != "[]";
        let sql = if has_finishes { DECIDE } else { DECIDE_ONLY };
        let rows = self.rows.iter().chain(&self.riding);
        let mut query = sqlx::query(sql)
            .bind(node.0)
            .bind(epoch.number())
            .bind(i64::try_from(decisions_at_least).unwrap_or(i64::MAX))
            .bind(identity.0)
            .bind(json_array(rows.map(Row::json)));
        if has_finishes {
            query = query.bind(self.finishes.as_str());
        }
        let mut done = Done {
            decisions: None,
            inserted: 0,
        };
        // What each statement changed, in their order; among them what the fence returns.
        let mut statements = 0;
        // Several statements with parameters in one query are a thing of this driver alone, so sqlx advises against them
        // where it can not know which driver it is (launchbadge/sqlx#3108).
        let mut steps = connection.fetch_many(query);
        while let Some(step) = steps.try_next().await? {
            match step {
                Either::Right(row) => {
                    done.decisions = Some(row.try_get::<i64, _>(0)?.unsigned_abs());
                }
                Either::Left(ended) => {
                    statements += 1;
                    if statements == THE_INSERT {
                        done.inserted = ended.rows_affected();
                    }
                }
            }
        }
        Ok(done)
    }

    /// For a write that SQLite has refused as a whole.
    fn step_by_step(self) -> Job<(u64, Answers)> {
        Box::new(move |connection| {
            Box::pin(async move {
                let Self {
                    writer,
                    rows,
                    riding,
                    finishes,
                } = self;
                let passed: Option<i64> = sqlx::query_scalar(FENCE)
                    .bind(writer.node.0)
                    .bind(writer.epoch.number())
                    .bind(i64::try_from(writer.decisions_at_least).unwrap_or(i64::MAX))
                    .bind(writer.identity.0)
                    .fetch_optional(&mut *connection)
                    .await
                    .map_err(LogError::from)?;
                let Some(decisions) = passed else {
                    return Err(shut(connection, &writer).await);
                };
                let inserted = insert(connection, &rows).await?;
                let in_the_way = answers::in_the_way(&rows, &inserted);
                let found = standings(connection, &in_the_way).await?;
                let answers = answers::joined(&rows, inserted, found)?;
                append(connection, &riding, &finishes).await?;
                Ok((decisions.unsigned_abs(), answers))
            })
        })
    }
}

/// The place of the insert among the statements of [`DECIDE`].
const THE_INSERT: u32 = 3;

/// Why the fence let nothing through.
async fn shut(connection: &mut SqliteConnection, writer: &Writer) -> WriteError {
    match read_head(connection, writer.node).await {
        Ok(head) => match head.check(writer) {
            Err(shut) => shut.into(),
            Ok(()) => damaged(format!("the fence shuts out {writer} for no reason")).into(),
        },
        Err(error) => error.into(),
    }
}
