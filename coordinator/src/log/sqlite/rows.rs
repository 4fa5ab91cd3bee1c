//! Records as rows, and rows as records; and the statements that take many rows at once.

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

use serde::Serialize;
use sqlx::{Row as _, SqliteConnection, sqlite::SqliteRow};
use unanimous_protocol::{
    id::{Epoch, LogIdentity, ParticipantName, TransactionId},
    life::Head,
    operations::BodyDigest,
    record::{
        AbortReason, Decision, Header, IdempotencyKey, KeyClaim, Outcome, Part, Record, Verdict,
        WallMillis,
    },
};

use super::{
    codes::is_refusal,
    sql::{FINISH, INSERT, STANDING},
};
use crate::log::{
    Appends, Found, LogError, Refused, View,
    answers::{Inserted, Proposal},
    damaged, parsed,
};

/// The columns of a record, in the order of [`INSERT`].
#[derive(Serialize)]
struct Columns<'a>(
    String,
    Option<&'a str>,
    Option<String>,
    &'a BTreeMap<String, String>,
    WallMillis,
    WallMillis,
    Outcome,
    Option<&'a AbortReason>,
    &'a BTreeMap<ParticipantName, Part>,
    bool,
    WallMillis,
    Option<WallMillis>,
);

/// A record on its way into the log.
pub(super) struct Row {
    id: TransactionId,
    key: Option<IdempotencyKey>,
    json: String,
}

impl Row {
    pub(super) fn json(&self) -> &str {
        &self.json
    }

    pub(super) fn of(record: &Record) -> Result<Self, Refused> {
        let Record {
            header,
            decision,
            decided_at,
            finished_at,
        } = record;
        let columns = Columns(
            hex(&header.id.to_bytes()),
            header.key.as_ref().map(|claim| claim.key.as_str()),
            header.key.as_ref().map(|claim| hex(&claim.request.0)),
            &header.labels,
            header.created_at,
            header.deadline,
            decision.verdict.outcome(),
            match &decision.verdict {
                Verdict::Commit => None,
                Verdict::Abort(reason) => Some(reason),
            },
            &decision.branches,
            !decision.is_finished_at_once(),
            *decided_at,
            *finished_at,
        );
        match serde_json::to_string(&columns) {
            Ok(json) => {
                let key = header.key.as_ref().map(|claim| claim.key.clone());
                Ok(Self {
                    id: header.id,
                    key,
                    json,
                })
            }
            Err(error) => Err(Refused {
                transaction: header.id,
                cause: error.into(),
            }),
        }
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            // Writing to a string does not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// A JSON array of texts that are JSON already.
pub(super) fn json_array<'a>(elements: impl IntoIterator<Item = &'a str>) -> String {
    let mut array = String::from("[");
    for element in elements {
        if array.len() > 1 {
            array.push(',');
        }
        array.push_str(element);
    }
    array.push(']');
    array
}

pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, LogError> {
    serde_json::to_string(value).map_err(|error| LogError::Broken(error.into()))
}

/// Inserts what has neither its id nor its key in the log. One bad row fails alone (rule 23): SQLite undoes a statement
/// that it refuses, and leaves the transaction as it was.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    rows: &[Row],
) -> Result<Vec<Inserted>, LogError> {
    match insert_some(connection, rows).await {
        Ok(inserted) => Ok(inserted),
        Err(error) if is_refusal(&error) => {
            let mut one_by_one = Vec::with_capacity(rows.len());
            for row in rows {
                match insert_some(connection, std::slice::from_ref(row)).await {
                    Ok(inserted) => one_by_one.extend(inserted),
                    Err(error) if is_refusal(&error) => {
                        one_by_one.push(Inserted::Refused(error.into()));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(one_by_one)
        }
        Err(error) => Err(error.into()),
    }
}

async fn insert_some(
    connection: &mut SqliteConnection,
    rows: &[Row],
) -> Result<Vec<Inserted>, sqlx::Error> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let returned = sqlx::query(INSERT)
        .bind(json_array(rows.iter().map(Row::json)))
        .fetch_all(connection)
        .await?;
    let mut inserted = BTreeMap::new();
    for row in &returned {
        inserted.insert(row.try_get::<Vec<u8>, _>(0)?, ());
    }
    // An id is taken out when it is met: a second proposal of the same transaction was not inserted.
    let of = |row: &Row| match inserted.remove(row.id.to_bytes().as_slice()) {
        Some(()) => Inserted::Yes,
        None => Inserted::No,
    };
    Ok(rows.iter().map(of).collect())
}

pub(super) async fn standings(
    connection: &mut SqliteConnection,
    rows: &[&Row],
) -> Result<Vec<Found>, LogError> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let asked: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                hex(&row.id.to_bytes()),
                row.key.as_ref().map(IdempotencyKey::as_str),
            )
        })
        .collect();
    let found = sqlx::query(STANDING)
        .bind(json(&asked)?)
        .fetch_all(connection)
        .await?;
    if found.len() != rows.len() {
        return Err(damaged(
            "the log answered for another number of proposals than were asked",
        ));
    }
    let of = |(row, proposal): (&SqliteRow, &&Row)| {
        if row.try_get::<Option<&str>, _>("outcome")?.is_some() {
            Ok(Found::Own(decision(row)?))
        } else if let Some(holder) = row.try_get::<Option<&[u8]>, _>("holder")? {
            Ok(Found::Holder(transaction_id(holder)?))
        } else {
            Err(damaged(format!(
                "nothing is in the way of transaction {}",
                proposal.id
            )))
        }
    };
    found.iter().zip(rows).map(of).collect()
}

/// Finishes and unforced records. What the store refuses of them is history that is lost, and no decision.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    rows: &[Row],
    finishes: &str,
) -> Result<(), LogError> {
    for (row, inserted) in rows.iter().zip(insert(connection, rows).await?) {
        if let Inserted::Refused(cause) = inserted {
            let error = crate::telemetry::chain(&*cause);
            tracing::error!(transaction = %row.id, %error, "an unforced record was refused");
        }
    }
    if finishes != "[]" {
        sqlx::query(FINISH)
            .bind(finishes)
            .execute(connection)
            .await?;
    }
    Ok(())
}

/// The rows and finishes of what rides along, ready for the statements.
pub(super) fn encoded(appends: &Appends) -> Result<(Vec<Row>, String), LogError> {
    let mut rows = Vec::with_capacity(appends.records.len());
    for record in &appends.records {
        match Row::of(record) {
            Ok(row) => rows.push(row),
            Err(refused) => tracing::error!(
                transaction = %refused.transaction,
                error = %crate::telemetry::chain(&*refused.cause),
                "an unforced record was refused"
            ),
        }
    }
    let finishes: Vec<_> = appends
        .finishes
        .iter()
        .map(|(id, at)| (hex(&id.to_bytes()), at))
        .collect();
    Ok((rows, json(&finishes)?))
}

pub(super) fn transaction_id(bytes: &[u8]) -> Result<TransactionId, LogError> {
    let bytes = parsed("id", <[u8; 16]>::try_from(bytes))?;
    parsed("id", TransactionId::from_bytes(bytes))
}

pub(super) fn identities(row: &SqliteRow) -> Result<(LogIdentity, Vec<LogIdentity>), LogError> {
    let all = serde_json::from_str::<Vec<LogIdentity>>(row.try_get("identities")?);
    let mut former = parsed("identities", all)?;
    let present = former
        .pop()
        .ok_or_else(|| damaged("the log has no identity"))?;
    Ok((present, former))
}

pub(super) fn epoch(row: &SqliteRow) -> Result<Option<Epoch>, LogError> {
    let Some(number) = row.try_get::<Option<u32>, _>("epoch")? else {
        return Ok(None);
    };
    Epoch::new(number)
        .map(Some)
        .ok_or_else(|| damaged("an epoch has more than 30 bits"))
}

pub(super) fn head(row: &SqliteRow) -> Result<Head, LogError> {
    let (identity, former) = identities(row)?;
    let decisions = row
        .try_get::<Option<i64>, _>("decisions")?
        .unwrap_or(0)
        .unsigned_abs();
    Ok(Head {
        identity,
        former,
        epoch: epoch(row)?,
        decisions,
    })
}

pub(super) fn view(row: &SqliteRow) -> Result<View, LogError> {
    let (identity, former) = identities(row)?;
    let forgotten_through = row.try_get::<Option<&[u8]>, _>("forgotten_through")?;
    Ok(View {
        record: match row.try_get::<Option<&[u8]>, _>("id")? {
            Some(_) => Some(record(row)?),
            None => None,
        },
        epoch: epoch(row)?,
        identity,
        former,
        forgotten_through: forgotten_through.map(transaction_id).transpose()?,
    })
}

pub(super) fn record(row: &SqliteRow) -> Result<Record, LogError> {
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
    let labels = parsed("labels", serde_json::from_str(row.try_get("labels")?))?;
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

pub(super) fn decision(row: &SqliteRow) -> Result<Decision, LogError> {
    let verdict = match row.try_get::<Option<&str>, _>("reason")? {
        // The schema has it that an abort, and nothing else, has a reason.
        None => Verdict::Commit,
        Some(reason) => Verdict::Abort(parsed("reason", serde_json::from_str(reason))?),
    };
    let branches = parsed("branches", serde_json::from_str(row.try_get("branches")?))?;
    Ok(Decision { verdict, branches })
}

impl Proposal for Row {
    fn transaction(&self) -> TransactionId {
        self.id
    }
}
