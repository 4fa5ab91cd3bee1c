//! What a batch does to the tables, in one statement and, where the server refuses that clearly, one by one.

use std::collections::BTreeMap;

use sqlx::{
    PgConnection, Postgres, Row as _,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use unanimous_protocol::{id::TransactionId, life::Writer};

use super::{
    rows::{self, Row},
    shut, sql,
    writing::is_refusal,
};
use crate::log::{Appends, Found, LogError, Refused, WriteError, answers::Inserted, damaged};

/// What a write that passed the fence did.
struct Written {
    decisions: u64,
    /// How often each id was inserted: once, or not at all.
    inserted: BTreeMap<String, ()>,
}

impl Written {
    /// Whether it was this row that was inserted. Taken out when it is met: a second proposal of the same transaction
    /// was not inserted.
    fn has(&mut self, row: &Row) -> bool {
        self.inserted.remove(&row.uuid).is_some()
    }
}

/// A statement with what its fence asks for.
pub(super) fn fenced(
    statement: &'static str,
    writer: &Writer,
) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(statement)
        .bind(i32::from(writer.node.0))
        .bind(i32::try_from(writer.epoch.number()).unwrap_or(i32::MAX))
        .bind(i64::try_from(writer.decisions_at_least).unwrap_or(i64::MAX))
        .bind(i64::from(writer.identity.0))
}

/// One statement. `None` when the fence let nothing through.
async fn write(
    connection: &mut PgConnection,
    statement: &'static str,
    writer: &Writer,
    rows: &[&Row],
    finishes: &Finishes,
) -> Result<Option<Written>, sqlx::Error> {
    let row = rows::bind(fenced(statement, writer), rows)
        .bind(&finishes.ids)
        .bind(&finishes.times)
        // Returns when the server is ready for the next statement, which is after the commit.
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let inserted: Vec<String> = row.try_get("inserted")?;
    Ok(Some(Written {
        decisions: row.try_get::<i64, _>("decisions")?.unsigned_abs(),
        inserted: inserted.into_iter().map(|id| (id, ())).collect(),
    }))
}

#[derive(Default)]
struct Finishes {
    ids: Vec<String>,
    times: Vec<i64>,
}

/// What rides along.
pub(super) struct Riding {
    rows: Vec<Row>,
    finishes: Finishes,
}

impl Riding {
    pub(super) fn of(appends: &Appends) -> Self {
        let mut rows = Vec::with_capacity(appends.records.len());
        for record in &appends.records {
            match Row::of(record) {
                Ok(row) => rows.push(row),
                Err(Refused { transaction, cause }) => lost(transaction, &*cause),
            }
        }
        let finishes = Finishes {
            ids: appends
                .finishes
                .iter()
                .map(|(id, _)| id.to_string())
                .collect(),
            times: appends.finishes.iter().map(|(_, at)| at.0).collect(),
        };
        Self { rows, finishes }
    }

    pub(super) async fn append(
        &self,
        connection: &mut PgConnection,
        writer: &Writer,
    ) -> Result<(), WriteError> {
        let rows: Vec<_> = self.rows.iter().collect();
        match write(connection, sql::APPEND, writer, &rows, &self.finishes).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(shut(connection, writer).await),
            Err(error) if is_refusal(&error) => self.append_one_by_one(connection, writer).await,
            Err(error) => Err(LogError::from(error).into()),
        }
    }

    /// What the store refuses of them is history that is lost, and no decision.
    async fn append_one_by_one(
        &self,
        connection: &mut PgConnection,
        writer: &Writer,
    ) -> Result<(), WriteError> {
        let none = Finishes::default();
        for row in &self.rows {
            match write(connection, sql::APPEND, writer, &[row], &none).await {
                Ok(Some(_)) => {}
                Ok(None) => return Err(shut(connection, writer).await),
                Err(error) if is_refusal(&error) => lost(row.id, &error),
                Err(error) => return Err(LogError::from(error).into()),
            }
        }
        match write(connection, sql::APPEND, writer, &[], &self.finishes).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(shut(connection, writer).await),
            Err(error) => Err(LogError::from(error).into()),
        }
    }
}

fn lost(transaction: TransactionId, cause: &(dyn std::error::Error + 'static)) {
    tracing::error!(%transaction, error = %crate::telemetry::chain(cause), "an unforced record was refused");
}

/// Writes a batch, and tells what became of each row and the counter.
pub(super) async fn decide(
    connection: &mut PgConnection,
    writer: &Writer,
    rows: &[Row],
    riding: &Riding,
) -> Result<(u64, Vec<Inserted>), WriteError> {
    let all: Vec<_> = rows.iter().chain(&riding.rows).collect();
    match write(connection, sql::DECIDE, writer, &all, &riding.finishes).await {
        Ok(Some(mut written)) => {
            let inserted = rows.iter().map(|row| {
                if written.has(row) {
                    Inserted::Yes
                } else {
                    Inserted::No
                }
            });
            let inserted = inserted.collect();
            Ok((written.decisions, inserted))
        }
        Ok(None) => Err(shut(connection, writer).await),
        Err(error) if is_refusal(&error) => {
            let decided = decide_one_by_one(connection, writer, rows).await?;
            riding.append_one_by_one(connection, writer).await?;
            Ok(decided)
        }
        Err(error) => Err(LogError::from(error).into()),
    }
}

/// One bad row fails alone (design rule 23). Each is a write of its own, and is counted as one.
async fn decide_one_by_one(
    connection: &mut PgConnection,
    writer: &Writer,
    rows: &[Row],
) -> Result<(u64, Vec<Inserted>), WriteError> {
    let none = Finishes::default();
    let mut decisions = writer.decisions_at_least;
    let mut inserted = Vec::with_capacity(rows.len());
    for row in rows {
        inserted.push(
            match write(connection, sql::DECIDE, writer, &[row], &none).await {
                Ok(Some(mut written)) => {
                    decisions = written.decisions;
                    if written.has(row) {
                        Inserted::Yes
                    } else {
                        Inserted::No
                    }
                }
                Ok(None) => return Err(shut(connection, writer).await),
                Err(error) if is_refusal(&error) => Inserted::Refused(error.into()),
                Err(error) => return Err(LogError::from(error).into()),
            },
        );
    }
    Ok((decisions, inserted))
}

/// What stands in the way of rows that were not inserted. It was committed before the write that met it, so that
/// write's own commit has made it durable.
pub(super) async fn standings(
    connection: &mut PgConnection,
    rows: &[&Row],
) -> Result<std::vec::IntoIter<Found>, LogError> {
    if rows.is_empty() {
        return Ok(Vec::new().into_iter());
    }
    let ids: Vec<_> = rows.iter().map(|row| row.uuid.clone()).collect();
    let keys: Vec<_> = rows.iter().map(|row| row.key.clone()).collect();
    let answers = sqlx::query(sql::STANDING)
        .bind(ids)
        .bind(keys)
        .fetch_all(connection)
        .await?;
    if answers.len() != rows.len() {
        return Err(damaged(
            "the log answered for another number of proposals than were asked",
        ));
    }
    let of = |(answer, row): (&PgRow, &&Row)| {
        if answer.try_get::<Option<&str>, _>("outcome")?.is_some() {
            Ok(Found::Own(rows::decision(answer)?))
        } else if let Some(holder) = answer.try_get::<Option<&str>, _>("holder")? {
            Ok(Found::Holder(rows::transaction_id(holder)?))
        } else {
            // It was forgotten in between: a repeat will find the way free.
            let cause = format!(
                "what was in the way of transaction {} is gone by now",
                row.id
            );
            Err(LogError::Unavailable(cause.into()))
        }
    };
    let found: Result<Vec<_>, _> = answers.iter().zip(rows).map(of).collect();
    Ok(found?.into_iter())
}
