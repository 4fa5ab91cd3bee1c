//! What is logged, and whether the write is forced.
//!
//! A coordinator writes one [`Record`] for each transaction, when it is decided:
//!
//! | decision | forced | finished |
//! |---|---|---|
//! | commit with updating branches | yes: its durability *is* the commit point | when every updating branch acknowledged |
//! | commit without updating branches | only with an idempotency key | at once |
//! | abort | only with an idempotency key | at once |
//!
//! A finish is never forced: a commit record that lost its finish is driven again, which changes nothing.
//! What a participant logs is its branch's row: see [`crate::branch::State`].

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    id::{ParticipantName, TransactionId},
    message::Inform,
    operations::BodyDigest,
};

/// A client's name for a request that it may repeat: 1 to 255 printable ASCII characters. Unique in a decision log.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct IdempotencyKey(Arc<str>);

/// A text that can be no idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an idempotency key is 1 to 255 printable ASCII characters")]
pub struct InvalidIdempotencyKey;

impl std::str::FromStr for IdempotencyKey {
    type Err = InvalidIdempotencyKey;
    fn from_str(text: &str) -> Result<Self, InvalidIdempotencyKey> {
        let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if (1..=255).contains(&text.len()) && printable {
            Ok(Self(text.into()))
        } else {
            Err(InvalidIdempotencyKey)
        }
    }
}

impl IdempotencyKey {
    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The claim that a keyed transaction makes on its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyClaim {
    /// The key.
    pub key: IdempotencyKey,
    /// Of the request that the key was first sent with: another one under the same key is refused.
    pub request: BodyDigest,
}

/// Milliseconds since the Unix epoch, by a wall clock: for people, fairness and retention, never for a decision
/// (design rule 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallMillis(pub i64);

/// What a transaction is from its beginning on, apart from the protocol: the machine carries it into its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The transaction.
    pub id: TransactionId,
    /// Its idempotency key, with the digest of the request.
    pub key: Option<KeyClaim>,
    /// The client's labels.
    pub labels: BTreeMap<String, String>,
    /// When it began.
    pub created_at: WallMillis,
    /// When it aborts if it is undecided. Shown to people; the deadline itself is a timer.
    pub deadline: WallMillis,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every branch's effects are applied, or will be.
    Committed,
    /// No branch's effects are applied.
    Aborted,
}

impl Outcome {
    /// The outcome as the wire spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
        }
    }
}

/// Why a transaction aborted. `docs/API.md` section 1 explains the codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AbortReason {
    /// For programs.
    pub code: AbortCode,
    /// Whose answer, or silence, it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub participant: Option<ParticipantName>,
    /// For people; bounded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false, max_length = 1024))]
    pub detail: Option<String>,
    /// With `duplicate`: the transaction that holds the idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(nullable = false))]
    pub winner: Option<TransactionId>,
}

impl AbortReason {
    /// A reason that is only a code.
    #[must_use]
    pub fn new(code: AbortCode) -> Self {
        Self {
            code,
            participant: None,
            detail: None,
            winner: None,
        }
    }
}

/// The `code` of an [`AbortReason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum AbortCode {
    /// A branch voted no.
    Refused,
    /// A key was held by another transaction.
    Conflict,
    /// No answer by the deadline.
    Timeout,
    /// Never even connected by the deadline.
    Unreachable,
    /// A client asked for it.
    Requested,
    /// Interactive work of a branch is gone.
    WorkLost,
    /// Another transaction won the idempotency key.
    Duplicate,
    /// No record, and its coordinator's life has ended.
    CoordinatorRestarted,
    /// No record, though its coordinator still lives: the unforced record was lost.
    Unrecorded,
}

impl AbortCode {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 9] = [
        Self::Refused,
        Self::Conflict,
        Self::Timeout,
        Self::Unreachable,
        Self::Requested,
        Self::WorkLost,
        Self::Duplicate,
        Self::CoordinatorRestarted,
        Self::Unrecorded,
    ];

    /// As `docs/API.md` spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Requested => "requested",
            Self::WorkLost => "work-lost",
            Self::Duplicate => "duplicate",
            Self::CoordinatorRestarted => "coordinator-restarted",
            Self::Unrecorded => "unrecorded",
        }
    }
}

/// What became of one branch until the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Voted yes: takes part in the second phase.
    Updates,
    /// Voted read-only: needs no second phase.
    ReadOnly,
    /// Voted no.
    Refused,
    /// Was asked and had not answered; or enlisted itself. It may hold something.
    Unanswered,
    /// Was never asked and never enlisted itself. It holds nothing.
    Untouched,
}

/// A decision, as it is written to the log. A record names every branch (design rule 16).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Commit, or abort with its reason.
    pub verdict: Verdict,
    /// Every branch, and what became of it.
    pub branches: BTreeMap<ParticipantName, Part>,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All voted yes or read-only.
    Commit,
    /// Anything else.
    Abort(AbortReason),
}

impl Verdict {
    /// Without the reason.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Commit => Outcome::Committed,
            Self::Abort(_) => Outcome::Aborted,
        }
    }

    /// Of an abort.
    #[must_use]
    pub fn reason(&self) -> Option<&AbortReason> {
        match self {
            Self::Commit => None,
            Self::Abort(reason) => Some(reason),
        }
    }
}

impl Decision {
    /// What the branch of `participant` may be told about this decision (design rule 16).
    ///
    /// A read-only branch of a committed transaction is told "aborted": a late duplicate of its prepare may have left
    /// an effect that nobody counted, and it must not grow. A name that a committed transaction does not have is told
    /// "pending", for no answer would be true.
    #[must_use]
    pub fn inform(&self, participant: &ParticipantName) -> Inform {
        match (&self.verdict, self.branches.get(participant)) {
            (Verdict::Abort(_), _) | (Verdict::Commit, Some(Part::ReadOnly)) => Inform::Aborted,
            (Verdict::Commit, Some(Part::Updates)) => Inform::Committed,
            (Verdict::Commit, Some(Part::Refused | Part::Unanswered | Part::Untouched) | None) => {
                Inform::Pending
            }
        }
    }

    /// The branches that take part in the second phase of a commit.
    pub fn updating(&self) -> impl Iterator<Item = &ParticipantName> {
        self.branches
            .iter()
            .filter(|(_, part)| **part == Part::Updates)
            .map(|(name, _)| name)
    }

    /// Whether nothing is owed any more once this is decided: an abort, or a commit that no branch has to be told.
    #[must_use]
    pub fn is_finished_at_once(&self) -> bool {
        match self.verdict {
            Verdict::Abort(_) => true,
            Verdict::Commit => self.updating().next().is_none(),
        }
    }
}

/// A transaction in the decision log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What the transaction is.
    pub header: Arc<Header>,
    /// What was decided.
    pub decision: Decision,
    /// When it was handed to the log, by the wall clock.
    pub decided_at: WallMillis,
    /// When the last updating branch acknowledged; `None` while that is owed.
    pub finished_at: Option<WallMillis>,
}

/// Which decision stands after a forced write (design rule 1: the first writer wins).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The proposed one; also when it was already there from an unclear first attempt.
    Proposed,
    /// Another decision of the same transaction was there first.
    Earlier(Decision),
    /// Another transaction holds the idempotency key, so this one has no record.
    KeyHeldBy(TransactionId),
    /// The log clearly would not take this record, whatever it is; its neighbours in the write are not concerned
    /// (rule 23). The transaction has no record and can never get one.
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_abort_code_is_spelled_as_it_is_written_and_stands_at_its_own_place() {
        for (at, code) in AbortCode::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, at);
            let written = serde_json::to_value(code).unwrap();
            assert_eq!(written, code.as_str());
        }
    }
}
