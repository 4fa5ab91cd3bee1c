//! Problems (RFC 9457): the only file that knows status codes of errors.
//!
//! Codes are for programs and stay stable; details say what happened, to which transaction and participant, and what the
//! reader can do.

use actix_web::{HttpResponse, ResponseError, http::StatusCode, http::header};
use unanimous_protocol::{
    coordinator::EnlistRefused,
    id::{InvalidId, Node, ParticipantName, TransactionId},
    life::Unknown,
    record::AbortReason,
    wire::{PROBLEM_JSON, Problem, TransactionView},
};

/// Everything a request can fail with.
#[derive(Debug, thiserror::Error)]
pub enum ApiProblem {
    /// A member, query member, header or path is not what the contract says.
    #[error("{0}")]
    InvalidRequest(String),
    /// The id in the path is none.
    #[error("{text:?} is no transaction id: {cause}")]
    InvalidId {
        /// What stood in its place.
        text: String,
        /// Why it is none.
        cause: InvalidId,
    },
    /// A branch names a participant that nobody registered.
    #[error(
        "{member}: no participant {participant} is registered at this coordinator; register it, or correct the name"
    )]
    UnknownParticipant {
        /// Where the name stood.
        member: String,
        /// The name.
        participant: ParticipantName,
    },
    /// The path names a participant that nobody registered.
    #[error("no participant {0} is registered at this coordinator")]
    NoSuchParticipant(ParticipantName),
    /// A participant given at start is not changed at run time.
    #[error(
        "participant {0} was given when the coordinator was started; change it there, and start it again"
    )]
    ParticipantConfigured(ParticipantName),
    /// A participant that is still needed.
    #[error(
        "participant {0} has branches of unfinished transactions, which could not be told their outcome without it; \
         remove it once they have finished"
    )]
    ParticipantInUse(ParticipantName),
    /// The key was used with another body.
    #[error(
        "the Idempotency-Key was sent before with another request; repeat that request, or choose a new key"
    )]
    KeyReused,
    /// The path names nothing.
    #[error("there is nothing at {0}")]
    NotFound(String),
    /// The path has no such method.
    #[error("{path} has no method {method}; it has {allow}")]
    MethodNotAllowed {
        /// The path.
        path: String,
        /// What was tried.
        method: String,
        /// What there is.
        allow: &'static str,
    },
    /// The body is too large.
    #[error("the body is larger than {limit} bytes, the most that is taken")]
    PayloadTooLarge {
        /// The most that is taken.
        limit: usize,
    },
    /// The body did not come in time.
    #[error(
        "the body was not there {seconds} s after the request had begun; nothing was changed, send it again"
    )]
    BodyTooSlow {
        /// How long it is waited for.
        seconds: u64,
    },
    /// There is a body, and it is not JSON by its content type.
    #[error("the content type is {0}, and only application/json is understood")]
    UnsupportedMediaType(String),
    /// The transaction is aborted: an answer rather than an error.
    #[error("{}", aborted_detail(.0))]
    Aborted(Box<TransactionView>),
    /// An abort was asked for, and the transaction is committed.
    #[error("transaction {} is committed and can not be aborted any more", .0.id)]
    Committed(Box<TransactionView>),
    /// An enlist was refused.
    #[error("transaction {transaction}, participant {participant}: {refused}")]
    Enlist {
        /// The transaction.
        transaction: TransactionId,
        /// Whose branch.
        participant: ParticipantName,
        /// Why.
        refused: EnlistRefused,
    },
    /// An id of this life that it has not issued.
    #[error("no transaction {0} was begun at this coordinator; look at the id")]
    UnknownTransaction(TransactionId),
    /// It lives elsewhere.
    #[error("transaction {id} lives at node {node} of this log; ask the coordinator that runs it")]
    OtherNode {
        /// The transaction.
        id: TransactionId,
        /// Its node.
        node: Node,
    },
    /// Another log's.
    #[error(
        "transaction {0} belongs to another decision log; ask the coordinator that it was begun at"
    )]
    Foreign(TransactionId),
    /// It had a record once.
    #[error("transaction {0} ended longer ago than the retention, and its record was forgotten")]
    Forgotten(TransactionId),
    /// It may have committed, and nobody here can know.
    #[error("{}", unknown_detail(*.id, *.why))]
    OutcomeUnknown {
        /// The transaction.
        id: TransactionId,
        /// Why nobody knows.
        why: Unknown,
    },
    /// Too much is under way.
    #[error("{0}; repeat the request later")]
    Overloaded(&'static str),
    /// The decision log does not answer.
    #[error(
        "the decision log does not answer, so nothing can be begun, and nothing be said that is not in memory; nothing \
         is lost: repeat the request, with its Idempotency-Key if it had one"
    )]
    LogUnavailable,
    /// The decision log went back.
    #[error(
        "the decision log has lost what it had promised to keep, so nothing is decided any more, and nothing said of what \
         it does not hold; an operator brings back the newest log there is, or runs `unanimous log new-identity`"
    )]
    LogWentBack,
    /// A mistake in this program.
    #[error("a mistake in the coordinator: {0}")]
    Internal(String),
}

fn aborted_detail(view: &TransactionView) -> String {
    let why = view
        .reason
        .as_ref()
        .map(describe_reason)
        .unwrap_or_default();
    format!(
        "transaction {} is aborted{why}; nothing of it was applied",
        view.id
    )
}

fn describe_reason(reason: &AbortReason) -> String {
    // Prints as the wire spells it.
    let code = serde_json::to_value(reason.code).ok();
    let code = code
        .as_ref()
        .and_then(serde_json::Value::as_str)
        .unwrap_or("aborted")
        .to_owned();
    let participant = reason
        .participant
        .as_ref()
        .map(|name| format!(" by {name}"))
        .unwrap_or_default();
    let detail = reason
        .detail
        .as_ref()
        .map(|detail| format!(": {detail}"))
        .unwrap_or_default();
    format!(" ({code}{participant}{detail})")
}

fn unknown_detail(id: TransactionId, why: Unknown) -> String {
    let why = match why {
        Unknown::NewerEpoch => {
            "its epoch is newer than any that the log knows: perhaps the log was restored from a backup. An operator \
             runs `unanimous log new-identity` after a restore"
        }
        Unknown::NodeWithoutEpoch => {
            "the log knows nothing of its node: perhaps the log was restored from a backup. An operator compares the \
             log with the participants' rows"
        }
        Unknown::FormerIdentity => {
            "it belongs to the log as it was before it was restored, and the lost part may have committed it. An \
             operator compares the participants' rows and resolves it"
        }
    };
    format!("nobody can know what became of transaction {id}: {why}")
}

impl ApiProblem {
    fn problem(&self) -> Problem {
        let detail = self.to_string();
        match self {
            Self::InvalidRequest(_) | Self::InvalidId { .. } => {
                Problem::new(400, "invalid-request", detail)
            }
            Self::UnknownParticipant { .. } => Problem::new(400, "unknown-participant", detail),
            Self::NoSuchParticipant(_) => Problem::new(404, "unknown-participant", detail),
            Self::ParticipantConfigured(_) => Problem::new(409, "participant-configured", detail),
            Self::ParticipantInUse(_) => Problem::new(409, "participant-in-use", detail),
            Self::NotFound(_) => Problem::new(404, "not-found", detail),
            Self::UnknownTransaction(_) => Problem::new(404, "unknown-transaction", detail),
            Self::OtherNode { node, .. } => {
                Problem::new(404, "other-node", detail).with("node", node)
            }
            Self::Foreign(_) => Problem::new(404, "foreign-transaction", detail),
            Self::MethodNotAllowed { .. } => Problem::new(405, "method-not-allowed", detail),
            Self::Aborted(view) => Problem::new(409, "transaction-aborted", detail)
                .with("transaction", view)
                .with("reason", &view.reason),
            Self::Committed(view) => {
                Problem::new(409, "transaction-committed", detail).with("transaction", view)
            }
            Self::Enlist { refused, .. } => {
                let code = match refused {
                    EnlistRefused::NotActive => "transaction-not-active",
                    EnlistRefused::AlreadyEnlisted => "already-enlisted",
                    EnlistRefused::TooManyBranches => "too-many-branches",
                    EnlistRefused::WorkLost => "work-lost",
                };
                Problem::new(409, code, detail)
            }
            Self::Forgotten(_) => Problem::new(410, "forgotten", detail),
            Self::PayloadTooLarge { .. } => Problem::new(413, "payload-too-large", detail),
            Self::UnsupportedMediaType(_) => Problem::new(415, "unsupported-media-type", detail),
            Self::KeyReused => Problem::new(422, "idempotency-key-reused", detail),
            Self::Overloaded(_) => Problem::new(503, "overloaded", detail),
            Self::LogUnavailable | Self::LogWentBack => {
                Problem::new(503, "log-unavailable", detail)
            }
            Self::Internal(_) => Problem::new(500, "internal-error", detail),
            Self::BodyTooSlow { .. } => Problem::new(408, "request-timeout", detail),
            Self::OutcomeUnknown { .. } => Problem::new(503, "outcome-unknown", detail),
        }
    }

    fn retry_after_s(&self) -> Option<&'static str> {
        if matches!(
            self,
            Self::Overloaded(_) | Self::LogUnavailable | Self::LogWentBack
        ) {
            Some("1")
        } else if matches!(self, Self::OutcomeUnknown { .. }) {
            Some("60")
        } else {
            None
        }
    }
}

impl ResponseError for ApiProblem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.problem().status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let problem = self.problem();
        let status =
            StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = HttpResponse::build(status);
        response.content_type(PROBLEM_JSON);
        if let Some(seconds) = self.retry_after_s() {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        if let Self::BodyTooSlow { .. } = self {
            // Or the connection would be kept for the rest of a body that may never end (RFC 9110, section 15.5.9).
            response.force_close();
        }
        if let Self::MethodNotAllowed { allow, .. } = self {
            response.insert_header((header::ALLOW, *allow));
        }
        if let Self::Aborted(view) | Self::Committed(view) = self {
            response.insert_header((header::LOCATION, super::location(view.id)));
        }
        response.json(problem)
    }
}
