//! One decision write: the whole of it as one statement, and step by step where something is not as it was believed to be.

use sqlx::SqliteConnection;
use unanimous_protocol::life::Writer;

use super::{
    codes::is_refusal,
    read_head,
    rows::{Row, append, insert, json_array, standings},
    sql::{DECIDE, FENCE},
    writing::{Core, Job},
};
use crate::log::{
    LogError, WriteError,
    answers::{self, Answers},
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

impl Deciding {
    /// The counter, and what became of each proposal.
    pub(super) async fn on(
        self,
        core: &Core,
        connection: &mut SqliteConnection,
    ) -> Result<(u64, Answers), WriteError> {
        match self.at_once(connection).await {
            Ok(()) => Ok((
                self.writer.decisions_at_least + 1,
                self.rows.iter().map(|_| Ok(None)).collect(),
            )),
            // Not as it was believed to be; or a row is bad, and fails alone (rule 23). It undid itself.
            Err(error) if is_refusal(&error) => {
                core.transact(connection, self.step_by_step()).await
            }
            Err(error) => {
                let error = LogError::from(error);
                core.trust.mind(&error);
                Err(error.into())
            }
        }
    }

    /// All of it, or nothing.
    async fn at_once(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let Writer {
            node,
            epoch,
            identity,
            decisions_at_least,
        } = self.writer;
        let rows = self.rows.iter().chain(&self.riding);
        let query = sqlx::query(DECIDE)
            .bind(node.0)
            .bind(epoch.number())
            .bind(i64::try_from(decisions_at_least).unwrap_or(i64::MAX))
            .bind(identity.0)
            .bind(json_array(rows.map(Row::json)))
            .bind(self.finishes.as_str());
        query.execute(connection).await.map(drop)
    }

    /// What is there already is looked up, and a bad row refused alone.
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
