//! The JSON bodies of the HTTP contracts as types, once, for coordinator, participants and clients.
//!
//! Member names and codes are the contract, version 1. What the coordinator is sent refuses unknown members; what
//! participants and clients are sent ignores them. A `null` member of ours is the same as an absent one.
//! Answers are read by pure functions ([`read_reply`], [`read_inquiry`]): that an empty 200 is no vote is a rule of
//! the protocol, not a habit of an HTTP client.

mod batch;
mod coordinator;
mod object;
#[cfg(feature = "openapi")]
pub mod openapi;
mod participant;
mod problem;
mod timestamp;
mod view;

pub use batch::{
    BATCH_BYTES_MAX, BATCH_FEATURE, BATCH_MESSAGES_MAX, BatchLine, BatchMessage, BatchRequest,
    NDJSON, SingleRequest, write_batch_line,
};
pub use coordinator::{
    AbortRequest, BeginRequest, BranchView, CommitRequest, EnlistAnswer, EnlistRequest,
    InvalidWait, Labels, NamedBranch, OutcomeAnswer, ParticipantList, ParticipantRequest,
    ParticipantView, TransactionList, TransactionView, Wait,
};
pub use object::Object;
pub use participant::{
    BranchList, BranchRequest, BranchState, BranchStateAnswer, Describe, HttpAnswer, InquiryAnswer,
    PrepareRequest, VoteAnswer, VoteWord, below_low_water_answer, read_inquiry, read_reply,
    vote_answer,
};
pub use problem::{PROBLEM_JSON, Problem, problem_type};
pub use timestamp::Timestamp;
pub use view::Milestones;

/// Parses a body, which has to be one JSON object. Derived code alone would also take an array of the members' values,
/// so that `[]` would begin a transaction and `["<id>", "east", "yes"]` would be a vote.
///
/// # Errors
/// When the body is no JSON, no object, or not what `T` expects.
pub fn parse_object<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> serde_json::Result<T> {
    // The reader does not look into texts that it skips; a body that is not UTF-8 is no JSON all the same.
    let text = std::str::from_utf8(body)
        .map_err(|error| serde::de::Error::custom(format!("the body is not UTF-8: {error}")))?;
    if text
        .trim_start_matches([' ', '\t', '\n', '\r'])
        .starts_with('{')
    {
        serde_json::from_str(text)
    } else {
        Err(serde::de::Error::custom("the body is no JSON object"))
    }
}
