//! Records as rows, and rows as records.

use std::{collections::BTreeMap, sync::Arc};

use sqlx::{Postgres, Row as _, postgres::PgRow, query::Query};
use unanimous_protocol::{
    id::{Epoch, LogIdentity, TransactionId},
    life::Head,
    operations::BodyDigest,
    record::{Decision, Header, KeyClaim, Outcome, Record, Verdict, WallMillis},
};

use crate::log::{LogError, Refused, View, answers::Proposal, damaged, parsed};

/// A record on its way into the log.
pub(super) struct Row {
    pub(super) id: TransactionId,
    /// As it is in the database.
    pub(super) uuid: String,
    pub(super) key: Option<String>,
    request: Option<Vec<u8>>,
    labels: String,
    created_at: i64,
    deadline: i64,
    outcome: &'static str,
    reason: Option<String>,
    branches: String,
    second_phase: bool,
    decided_at: i64,
    finished_at: Option<i64>,
}

impl Row {
    pub(super) fn of(record: &Record) -> Result<Self, Refused> {
        Self::encoded(record).map_err(|error| Refused {
            transaction: record.header.id,
            cause: error.into(),
        })
    }

    fn encoded(record: &Record) -> Result<Self, serde_json::Error> {
        let Record {
            header,
            decision,
            decided_at,
            finished_at,
        } = record;
        let claim = header.key.as_ref();
        Ok(Self {
            id: header.id,
            uuid: header.id.to_string(),
            key: claim.map(|claim| claim.key.as_str().to_owned()),
            request: claim.map(|claim| claim.request.0.to_vec()),
            labels: labels(&header.labels)?,
            created_at: header.created_at.0,
            deadline: header.deadline.0,
            outcome: outcome(decision.verdict.outcome()),
            reason: match &decision.verdict {
                Verdict::Commit => None,
                Verdict::Abort(reason) => Some(serde_json::to_string(reason)?),
            },
            branches: serde_json::to_string(&decision.branches)?,
            second_phase: !decision.is_finished_at_once(),
            decided_at: decided_at.0,
            finished_at: finished_at.map(|at| at.0),
        })
    }
}

impl Proposal for Row {
    fn transaction(&self) -> TransactionId {
        self.id
    }
}

pub(super) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Committed => "committed",
        Outcome::Aborted => "aborted",
    }
}

/// An array of what [`label`] makes of each.
fn labels(labels: &BTreeMap<String, String>) -> Result<String, serde_json::Error> {
    serde_json::to_string(&labels.iter().collect::<Vec<_>>())
}

/// A label as its digest is taken of it.
pub(super) fn label(key: &str, value: &str) -> Result<String, serde_json::Error> {
    serde_json::to_string(&(key, value))
}

/// Binds one array for each column, in the order of `sql::ROWS`.
pub(super) fn bind<'q>(
    query: Query<'q, Postgres, sqlx::postgres::PgArguments>,
    rows: &[&Row],
) -> Query<'q, Postgres, sqlx::postgres::PgArguments> {
    fn column<T>(rows: &[&Row], of: impl Fn(&Row) -> T) -> Vec<T> {
        rows.iter().map(|row| of(row)).collect()
    }
    query
        .bind(column(rows, |row| row.uuid.clone()))
        .bind(column(rows, |row| i32::from(row.id.node().0)))
        .bind(column(rows, |row| row.key.clone()))
        .bind(column(rows, |row| row.request.clone()))
        .bind(column(rows, |row| row.labels.clone()))
        .bind(column(rows, |row| row.created_at))
        .bind(column(rows, |row| row.deadline))
        .bind(column(rows, |row| row.outcome))
        .bind(column(rows, |row| row.reason.clone()))
        .bind(column(rows, |row| row.branches.clone()))
        .bind(column(rows, |row| row.second_phase))
        .bind(column(rows, |row| row.decided_at))
        .bind(column(rows, |row| row.finished_at))
}

pub(super) fn transaction_id(text: &str) -> Result<TransactionId, LogError> {
    parsed("id", text.parse())
}

/// The present identity, and the former ones.
pub(super) fn identities(row: &PgRow) -> Result<(LogIdentity, Vec<LogIdentity>), LogError> {
    let numbers: Option<Vec<i64>> = row.try_get("identities")?;
    let all = numbers.unwrap_or_default().into_iter().map(u32::try_from);
    let all: Result<Vec<_>, _> = all.map(|number| number.map(LogIdentity)).collect();
    let mut former = parsed("identities", all)?;
    let present = former
        .pop()
        .ok_or_else(|| damaged("the log has no identity"))?;
    Ok((present, former))
}

pub(super) fn epoch(number: i32) -> Result<Epoch, LogError> {
    u32::try_from(number)
        .ok()
        .and_then(Epoch::new)
        .ok_or_else(|| damaged("an epoch is not a number of 30 bits"))
}

pub(super) fn head(row: &PgRow) -> Result<Head, LogError> {
    let (identity, former) = identities(row)?;
    let decisions = row.try_get::<Option<i64>, _>("decisions")?.unwrap_or(0);
    Ok(Head {
        identity,
        former,
        epoch: row
            .try_get::<Option<i32>, _>("epoch")?
            .map(epoch)
            .transpose()?,
        decisions: decisions.unsigned_abs(),
    })
}

pub(super) fn view(row: &PgRow) -> Result<View, LogError> {
    let (identity, former) = identities(row)?;
    let forgotten_through = row.try_get::<Option<&str>, _>("forgotten_through")?;
    Ok(View {
        record: match row.try_get::<Option<&str>, _>("id")? {
            Some(_) => Some(record(row)?),
            None => None,
        },
        epoch: row
            .try_get::<Option<i32>, _>("epoch")?
            .map(epoch)
            .transpose()?,
        identity,
        former,
        forgotten_through: forgotten_through.map(transaction_id).transpose()?,
    })
}

pub(super) fn record(row: &PgRow) -> Result<Record, LogError> {
    let id = transaction_id(row.try_get("id")?)?;
    let key = match row.try_get::<Option<&str>, _>("idempotency_key")? {
        None => None,
        Some(key) => Some(KeyClaim {
            key: parsed("idempotency_key", key.parse())?,
            request: BodyDigest(parsed(
                "request",
                row.try_get::<&[u8], _>("request")?.try_into(),
            )?),
        }),
    };
    let labels = serde_json::from_str::<Vec<(String, String)>>(row.try_get("labels")?);
    let labels = parsed("labels", labels)?.into_iter().collect();
    let millis = |column| row.try_get(column).map(WallMillis);
    let (created_at, deadline) = (millis("created_at")?, millis("deadline")?);
    Ok(Record {
        header: Arc::new(Header {
            id,
            key,
            labels,
            created_at,
            deadline,
        }),
        decision: decision(row)?,
        decided_at: millis("decided_at")?,
        finished_at: row
            .try_get::<Option<i64>, _>("finished_at")?
            .map(WallMillis),
    })
}

pub(super) fn decision(row: &PgRow) -> Result<Decision, LogError> {
    let verdict = match row.try_get::<Option<&str>, _>("reason")? {
        // The schema has it that an abort, and nothing else, has a reason.
        None => Verdict::Commit,
        Some(reason) => Verdict::Abort(parsed("reason", serde_json::from_str(reason))?),
    };
    let branches = parsed("branches", serde_json::from_str(row.try_get("branches")?))?;
    Ok(Decision { verdict, branches })
}
