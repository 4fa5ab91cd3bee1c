//! What a participant serves and asks (`docs/API.md` sections 2 and 3).

use serde::{Deserialize, Deserializer, Serialize};

use super::{
    BATCH_FEATURE, OutcomeAnswer, PROBLEM_JSON, Problem, Timestamp, parse_object, problem_type,
};
use crate::{
    id::{BranchId, ParticipantName, TransactionId},
    message::{
        Delivery, Inform, Refusal, RefusalCode, Reply, RequestKind, Session, Vote, bounded_reason,
    },
    operations::Operations,
};

/// `POST /v1/prepare`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrepareRequest {
    /// The global transaction.
    pub transaction: TransactionId,
    /// The name the coordinator knows the participant by.
    pub participant: ParticipantName,
    /// What to do.
    pub operations: Operations,
    /// What is left until the deadline; a participant that can not make it votes no.
    pub remaining_ms: u64,
    /// Orders the branches that want one key, with the id.
    pub begun_at_ms: i64,
    /// Set for a branch that enlisted itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
    /// Every id of its prefix below it is finished (design rule 15).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_water: Option<TransactionId>,
}

/// `POST /v1/commit` and `POST /v1/abort`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchRequest {
    /// The global transaction.
    pub transaction: TransactionId,
    /// The name the coordinator knows the participant by.
    pub participant: ParticipantName,
    /// As in [`PrepareRequest::low_water`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_water: Option<TransactionId>,
}

/// A vote as one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VoteWord {
    /// [`Vote::Yes`]
    Yes,
    /// [`Vote::No`]
    No,
    /// [`Vote::ReadOnly`]
    ReadOnly,
}

/// The 200 of prepare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteAnswer {
    /// The echo. A text: what does not echo exactly must still parse, to be called what it is.
    pub transaction: String,
    /// The echo.
    pub participant: String,
    /// The vote.
    pub vote: VoteWord,
    /// With *no*.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<RefusalCode>,
    /// With *no*.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With *no*, `below-low-water`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_water: Option<TransactionId>,
}

/// The state of a branch at its participant, as the wire spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BranchState {
    /// Interactive work, not voted on.
    Active,
    /// In doubt.
    Prepared,
    /// Applied.
    Committed,
    /// Undone, or never done.
    Aborted,
    /// Voted read-only, where that is stored.
    ReadOnly,
}

/// The 200 of commit and abort, and of `GET /v1/branches/{transaction}` (with `since`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchStateAnswer {
    /// The echo.
    pub transaction: String,
    /// The echo.
    pub participant: String,
    /// Where the branch stands.
    pub state: BranchState,
    /// Since when; only where a branch is looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// The 200 of `GET /v1/branches`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchList {
    /// In id order.
    pub branches: Vec<BranchStateAnswer>,
    /// What to pass as `after` for the next page; `null` on the last.
    pub next: Option<String>,
}

/// The 200 of `GET /v1/describe`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Describe {
    /// The name the service was configured with.
    pub participant: ParticipantName,
    /// 1
    pub protocol: u32,
    /// Optional parts; a coordinator uses only what is announced.
    #[serde(default, deserialize_with = "null_as_default")]
    pub features: Vec<String>,
}

impl Describe {
    /// Whether it announced `POST /v1/batch`.
    #[must_use]
    pub fn takes_batches(&self) -> bool {
        self.features.iter().any(|feature| feature == BATCH_FEATURE)
    }
}

/// A `null` member of ours is the same as an absent one.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// An HTTP answer, as far as the protocol cares.
#[derive(Clone, Copy, Debug)]
pub struct HttpAnswer<'a> {
    /// The status.
    pub status: u16,
    /// The `content-type`, if it is text.
    pub content_type: Option<&'a str>,
    /// The body, whole.
    pub body: &'a [u8],
}

impl HttpAnswer<'_> {
    /// One of our problems: the media type and the `type` both say so, and the status is the one it was sent with. A
    /// proxy's own error page, or another service's problem, is none.
    fn problem(&self) -> Option<Problem> {
        let media_type = self.content_type?.split(';').next()?.trim();
        if !media_type.eq_ignore_ascii_case(PROBLEM_JSON) {
            return None;
        }
        let problem: Problem = parse_object(self.body).ok()?;
        let ours = problem.problem_type == problem_type(&problem.code);
        (ours && problem.status == self.status).then_some(problem)
    }

    /// In words, for an answer that answers nothing.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.problem() {
            Some(problem) => bounded_reason(&format!(
                "{} {}: {}",
                self.status, problem.code, problem.detail
            )),
            None => format!("status {} with a body that is no answer", self.status),
        }
    }
}

/// What `branch` answered to a request of `kind`. Only a 200 that echoes transaction and participant exactly, or one of
/// the problems that `docs/API.md` section 2 calls an answer, is one; everything else is unknown (design rule 5).
#[must_use]
pub fn read_reply(
    kind: RequestKind,
    branch: &BranchId,
    answer: &HttpAnswer<'_>,
) -> Delivery<Reply> {
    if answer.status == 200 {
        let read = match kind {
            RequestKind::Prepare => read_vote(branch, answer.body),
            RequestKind::Commit => read_state(
                branch,
                answer.body,
                BranchState::Committed,
                Reply::Committed,
            ),
            RequestKind::Abort => {
                read_state(branch, answer.body, BranchState::Aborted, Reply::Aborted)
            }
        };
        return match read {
            Ok(reply) => Delivery::Answered(reply),
            Err(reason) => Delivery::Unknown(reason),
        };
    }
    let unknown = || Delivery::Unknown(answer.describe());
    let Some(problem) = answer.problem() else {
        return unknown();
    };
    match (kind, answer.status, problem.code.as_str()) {
        (RequestKind::Prepare, 400, "invalid-request")
        | (RequestKind::Prepare, 413 | 415, _)
        | (RequestKind::Prepare, 422, "prepare-changed") => {
            let reason = bounded_reason(&format!("{}: {}", problem.code, problem.detail));
            Delivery::Answered(Reply::Vote(Vote::No(Refusal {
                code: RefusalCode::Refused,
                reason,
            })))
        }
        (RequestKind::Commit, 409, "vote-lost") => Delivery::Answered(Reply::VoteLost),
        (RequestKind::Commit | RequestKind::Abort, 409, "outcome-differs") => {
            Delivery::Answered(Reply::OutcomeDiffers)
        }
        _ => unknown(),
    }
}

fn check_echo(branch: &BranchId, transaction: &str, participant: &str) -> Result<(), String> {
    if transaction == branch.transaction.to_string() && participant == branch.participant.as_str() {
        Ok(())
    } else {
        Err(bounded_reason(&format!(
            "the answer is for transaction {transaction:?} at {participant:?}, not for this branch"
        )))
    }
}

fn no_answer(error: &serde_json::Error) -> String {
    // What the parser names, a word that it does not know for one, is the participant's text.
    bounded_reason(&format!(
        "status 200 with a body that is no answer: {error}"
    ))
}

fn read_vote(branch: &BranchId, body: &[u8]) -> Result<Reply, String> {
    let answer: VoteAnswer = parse_object(body).map_err(|error| no_answer(&error))?;
    check_echo(branch, &answer.transaction, &answer.participant)?;
    Ok(Reply::Vote(match answer.vote {
        VoteWord::Yes => Vote::Yes,
        VoteWord::ReadOnly => Vote::ReadOnly,
        VoteWord::No => Vote::No(Refusal {
            code: answer.code.unwrap_or(RefusalCode::Refused),
            reason: bounded_reason(&answer.reason.unwrap_or_default()),
        }),
    }))
}

fn read_state(
    branch: &BranchId,
    body: &[u8],
    expected: BranchState,
    reply: Reply,
) -> Result<Reply, String> {
    /// What the contract asks of an acknowledgement, and no more: whatever else a participant adds, a `since` in a form
    /// of its own for one, must not turn it into an unknown that is asked again for ever.
    #[derive(Deserialize)]
    struct Acknowledgement {
        transaction: String,
        participant: String,
        state: BranchState,
    }
    let answer: Acknowledgement = parse_object(body).map_err(|error| no_answer(&error))?;
    check_echo(branch, &answer.transaction, &answer.participant)?;
    if answer.state == expected {
        Ok(reply)
    } else {
        Err(format!(
            "the answer names the state {:?}, which acknowledges nothing",
            answer.state
        ))
    }
}

/// The body of a vote.
#[must_use]
pub fn vote_answer(branch: &BranchId, vote: &Vote) -> VoteAnswer {
    let (word, refusal) = match vote {
        Vote::Yes => (VoteWord::Yes, None),
        Vote::ReadOnly => (VoteWord::ReadOnly, None),
        Vote::No(refusal) => (VoteWord::No, Some(refusal)),
    };
    VoteAnswer {
        transaction: branch.transaction.to_string(),
        participant: branch.participant.to_string(),
        vote: word,
        code: refusal.map(|refusal| refusal.code),
        reason: refusal.map(|refusal| refusal.reason.clone()),
        low_water: None,
    }
}

/// The body that answers a prepare below the participant's low-water mark: *no*, with the mark.
#[must_use]
pub fn below_low_water_answer(branch: &BranchId, low_water: TransactionId) -> VoteAnswer {
    let refusal = Refusal {
        code: RefusalCode::BelowLowWater,
        reason: "the transaction has ended: its id is below this participant's low-water mark"
            .to_owned(),
    };
    VoteAnswer {
        low_water: Some(low_water),
        ..vote_answer(branch, &Vote::No(refusal))
    }
}

/// How an inquiry ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InquiryAnswer {
    /// A 200 that echoes both exactly: the only answer.
    Informed(Inform),
    /// No answer: ask again, with backoff.
    AskAgain(String),
    /// 404: ask again too, but somebody has to look, for this coordinator has another log.
    Alarm(String),
}

/// What the coordinator answered to the inquiry of `branch` (`docs/API.md` section 3).
#[must_use]
pub fn read_inquiry(branch: &BranchId, answer: &HttpAnswer<'_>) -> InquiryAnswer {
    match answer.status {
        200 => match parse_object::<OutcomeAnswer>(answer.body) {
            Ok(told) => match check_echo(branch, &told.transaction, &told.participant) {
                Ok(()) => InquiryAnswer::Informed(told.outcome),
                Err(reason) => InquiryAnswer::AskAgain(reason),
            },
            Err(error) => InquiryAnswer::AskAgain(no_answer(&error)),
        },
        404 => InquiryAnswer::Alarm(answer.describe()),
        _ => InquiryAnswer::AskAgain(answer.describe()),
    }
}
