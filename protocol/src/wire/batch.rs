//! Many messages in one request (`docs/API.md` section 2, `POST /v1/batch`): a body of messages, and an answer of lines.
//!
//! A batch is many, not one (design rule 23): each message stays a text until it is read by itself, and each line names
//! the branch that it answers for and is judged as the answer to that message alone would be.

use std::{borrow::Cow, io};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{BranchRequest, HttpAnswer, PROBLEM_JSON, PrepareRequest, parse_object};
use crate::{
    id::{ParticipantName, TransactionId},
    message::{RequestKind, Session},
    operations::Operations,
};

/// What a participant that takes batches has among its [`super::Describe::features`].
pub const BATCH_FEATURE: &str = "batch";

/// Messages in a batch, at most.
pub const BATCH_MESSAGES_MAX: usize = 64;

/// Bytes of a batch, at most.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;

/// The media type of a batch's answer.
pub const NDJSON: &str = "application/x-ndjson";

/// `POST /v1/batch`
#[derive(Debug, Serialize, Deserialize)]
pub struct BatchRequest<'a> {
    /// Each a [`BatchMessage`], or whatever somebody sent in its place.
    #[serde(borrow)]
    pub messages: Vec<&'a RawValue>,
}

/// One message of a batch: the members of the request that it would be by itself, what kind it is, and the headers that
/// it would have had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchMessage {
    /// Which request.
    pub kind: RequestKind,
    /// The global transaction.
    pub transaction: TransactionId,
    /// The name the coordinator knows the participant by.
    pub participant: ParticipantName,
    /// As in [`PrepareRequest::operations`]; a prepare has it, and so with the next two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Operations>,
    /// As in [`PrepareRequest::remaining_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_ms: Option<u64>,
    /// As in [`PrepareRequest::begun_at_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begun_at_ms: Option<i64>,
    /// As in [`PrepareRequest::session`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    /// As in [`PrepareRequest::low_water`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_water: Option<TransactionId>,
    /// The header of the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The header of the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}

/// A [`BatchMessage`] as the request that it would be by itself.
#[derive(Clone, Debug, PartialEq)]
pub enum SingleRequest {
    /// `POST /v1/prepare`
    Prepare(PrepareRequest),
    /// `POST /v1/commit`
    Commit(BranchRequest),
    /// `POST /v1/abort`
    Abort(BranchRequest),
}

impl BatchMessage {
    /// As the request that it would be by itself.
    ///
    /// # Errors
    /// When a prepare lacks a member; the text names it.
    pub fn into_single(self) -> Result<SingleRequest, String> {
        fn present<T>(member: Option<T>, name: &str) -> Result<T, String> {
            member.ok_or_else(|| format!("missing field `{name}`"))
        }
        let outcome = BranchRequest {
            transaction: self.transaction,
            participant: self.participant,
            low_water: self.low_water,
        };
        Ok(match self.kind {
            RequestKind::Commit => SingleRequest::Commit(outcome),
            RequestKind::Abort => SingleRequest::Abort(outcome),
            RequestKind::Prepare => SingleRequest::Prepare(PrepareRequest {
                transaction: outcome.transaction,
                participant: outcome.participant,
                operations: present(self.operations, "operations")?,
                remaining_ms: present(self.remaining_ms, "remaining_ms")?,
                begun_at_ms: present(self.begun_at_ms, "begun_at_ms")?,
                session: self.session,
                low_water: outcome.low_water,
            }),
        })
    }
}

/// One line of a batch's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BatchLine<'a> {
    /// The echo. It names the message that is answered, also where `body` is a problem.
    #[serde(borrow)]
    pub transaction: Cow<'a, str>,
    /// The echo.
    #[serde(borrow)]
    pub participant: Cow<'a, str>,
    /// The status that the message would have been answered with by itself.
    pub status: u16,
    /// The body that it would have been answered with: the echo again, or a problem.
    #[serde(borrow, default)]
    pub body: Option<&'a RawValue>,
}

impl<'a> BatchLine<'a> {
    /// A line without its end; `None` for what is none.
    #[must_use]
    pub fn read(line: &'a [u8]) -> Option<Self> {
        parse_object(line).ok()
    }

    /// The answer to the message by itself. A line that names its branch comes from the participant, so a body that is
    /// no 200 is as good as one with the media type of a problem.
    #[must_use]
    pub fn answer(&self) -> HttpAnswer<'_> {
        HttpAnswer {
            status: self.status,
            content_type: Some(match self.status {
                200 => "application/json",
                _ => PROBLEM_JSON,
            }),
            body: self.body.map_or(b"", |body| body.get().as_bytes()),
        }
    }
}

/// Writes a line with its end. The body is JSON on one line.
///
/// # Errors
/// When `out` takes no more.
pub fn write_batch_line(
    out: &mut impl io::Write,
    transaction: &str,
    participant: &str,
    status: u16,
    body: &[u8],
) -> io::Result<()> {
    out.write_all(b"{\"transaction\":")?;
    serde_json::to_writer(&mut *out, transaction)?;
    out.write_all(b",\"participant\":")?;
    serde_json::to_writer(&mut *out, participant)?;
    write!(out, ",\"status\":{status},\"body\":")?;
    out.write_all(body)?;
    out.write_all(b"}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "5eed0001-0001-8000-8000-100000000001";

    #[test]
    fn a_line_reads_back_and_a_line_that_is_none_is_none() {
        let mut line = Vec::new();
        let body = format!(r#"{{"transaction":"{ID}","participant":"east","vote":"yes"}}"#);
        write_batch_line(&mut line, ID, "e\"ast\n", 200, body.as_bytes()).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let read = BatchLine::read(&line).unwrap();
        assert_eq!((&*read.transaction, &*read.participant), (ID, "e\"ast\n"));
        assert_eq!(
            (read.status, read.answer().body),
            (200, body.as_bytes()),
            "{read:?}"
        );
        for none in [
            "",
            "{}",
            "[]",
            "<html>",
            &format!(r#"["{ID}","east",200,{{}}]"#),
            &format!(r#"{{"transaction":"{ID}","participant":"east"}}"#),
            &format!(r#"{{"transaction":"{ID}","participant":"east","status":70000}}"#),
        ] {
            assert!(BatchLine::read(none.as_bytes()).is_none(), "{none}");
        }
    }

    #[test]
    fn a_prepare_in_a_batch_lacks_nothing_that_it_would_have_by_itself() {
        let whole = format!(
            r#"{{"kind":"prepare","transaction":"{ID}","participant":"east","operations":[1.00],"remaining_ms":1,"begun_at_ms":2}}"#
        );
        let read = |text: &str| parse_object::<BatchMessage>(text.as_bytes()).unwrap();
        let SingleRequest::Prepare(prepare) = read(&whole).into_single().unwrap() else {
            panic!("a prepare");
        };
        assert_eq!(prepare.operations.text(), "[1.00]");
        for (member, name) in [
            (r#","operations":[1.00]"#, "operations"),
            (r#","remaining_ms":1"#, "remaining_ms"),
            (r#","begun_at_ms":2"#, "begun_at_ms"),
        ] {
            let error = read(&whole.replace(member, "")).into_single().unwrap_err();
            assert!(error.contains(name), "{error}");
        }
        for (kind, is) in [("commit", true), ("abort", false)] {
            let text = format!(r#"{{"kind":"{kind}","transaction":"{ID}","participant":"east"}}"#);
            let single = read(&text).into_single().unwrap();
            assert_eq!(matches!(single, SingleRequest::Commit(_)), is);
        }
        let unknown = whole.replace("prepare", "vote");
        assert!(parse_object::<BatchMessage>(unknown.as_bytes()).is_err());
    }
}
