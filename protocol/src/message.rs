//! What coordinator and participants say to each other, and what a receiver may conclude from it.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize};

use crate::operations::Operations;

/// Longest reason that is kept, in characters (design rule 20).
pub const REASON_MAX: usize = 1024;

/// Removes U+0000, which Postgres can not store, and cuts to [`REASON_MAX`] characters. For texts that come from
/// participants; a client's text with U+0000 is refused before it gets here.
#[must_use]
pub fn bounded_reason(text: &str) -> String {
    text.chars()
        .filter(|&c| c != '\0')
        .take(REASON_MAX)
        .collect()
}

/// A random value that a participant draws for the database connection or memory that holds a branch's interactive
/// work. It ends with that work, so a prepare that names another session names work that is gone (design rule 22).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Session(Arc<str>);

/// A text that can be no session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a session is 1 to 255 printable ASCII characters")]
pub struct InvalidSession;

impl std::str::FromStr for Session {
    type Err = InvalidSession;
    fn from_str(text: &str) -> Result<Self, InvalidSession> {
        let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if (1..=255).contains(&text.len()) && printable {
            Ok(Self(text.into()))
        } else {
            Err(InvalidSession)
        }
    }
}

impl<'de> Deserialize<'de> for Session {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Session {
    /// The session as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the coordinator asks of a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Do the work, keep it undecided, and vote. The receiver may conclude nothing about the outcome.
    Prepare(Prepare),
    /// The transaction is committed: the record was durable before this left (design rule 2).
    Commit,
    /// The transaction is aborted, or will be: nobody will ever be told "committed".
    Abort,
}

impl Request {
    /// Which of the three it is.
    #[must_use]
    pub fn kind(&self) -> RequestKind {
        match self {
            Self::Prepare(_) => RequestKind::Prepare,
            Self::Commit => RequestKind::Commit,
            Self::Abort => RequestKind::Abort,
        }
    }
}

/// The kind of a [`Request`]; its text is the last segment of the route, and the `kind` of a message in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestKind {
    /// [`Request::Prepare`]
    Prepare,
    /// [`Request::Commit`]
    Commit,
    /// [`Request::Abort`]
    Abort,
}

impl RequestKind {
    /// `prepare`, `commit` or `abort`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::Abort => "abort",
        }
    }
}

/// The combined execute-and-prepare call of one branch. What is left until the deadline and when the transaction began
/// are clock readings: the shell that sends it adds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepare {
    /// What to do, opaque to the coordinator.
    pub operations: Operations,
    /// Set for a branch that enlisted itself: the work is all there in this session, or the vote is no.
    pub session: Option<Session>,
}

/// A branch's answer to prepare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vote {
    /// The work is durable and undecided. The participant will commit or abort as told, and never decides alone.
    Yes,
    /// The branch is aborted and will stay so; the transaction can only abort.
    No(Refusal),
    /// The branch changed nothing and holds nothing: it needs no second phase (Mohan, Lindsay, Obermarck 1986).
    ReadOnly,
}

/// Why a branch voted no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people; bounded by [`bounded_reason`].
    pub reason: String,
}

/// The `code` of a *no*. A code that we do not know reads as `refused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The service said no.
    Refused,
    /// Another transaction holds a key that this one needs.
    Conflict,
    /// Interactive work of this branch is gone (design rule 22).
    WorkLost,
    /// The participant could not make the deadline.
    Deadline,
    /// An abort came before the prepare.
    Aborted,
    /// The id is below the participant's low-water mark: finished long ago, or the log went back (design rule 11).
    BelowLowWater,
}

impl RefusalCode {
    /// As `docs/API.md` spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::WorkLost => "work-lost",
            Self::Deadline => "deadline",
            Self::Aborted => "aborted",
            Self::BelowLowWater => "below-low-water",
        }
    }

    /// The code of this text; `Refused` also for a code not known, as `docs/API.md` section 2 says.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        match text {
            "conflict" => Self::Conflict,
            "work-lost" => Self::WorkLost,
            "deadline" => Self::Deadline,
            "aborted" => Self::Aborted,
            "below-low-water" => Self::BelowLowWater,
            _ => Self::Refused,
        }
    }
}

impl<'de> Deserialize<'de> for RefusalCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Ok(Self::from_text(&text))
    }
}

/// What a branch answered, once it is certain that it was this branch that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// To prepare.
    Vote(Vote),
    /// To commit: the effects are applied and durable.
    Committed,
    /// To abort: nothing of the branch is left, and a late prepare of it will be refused.
    Aborted,
    /// To commit: there is no vote to commit. Never an acknowledgement (design rule 6).
    VoteLost,
    /// To commit or abort: the branch ended the other way. Never an acknowledgement (design rule 6).
    OutcomeDiffers,
}

/// How a call to a branch ended. Unknown is not no (design rules 5 and 9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery<T> {
    /// The branch answered, and proved that it was this branch by the echo.
    Answered(T),
    /// The branch certainly did not act: the connection was refused, and nothing else.
    Refused(String),
    /// It may have acted: timeout, broken connection, any answer that is not the echo we asked for.
    Unknown(String),
}

/// What the coordinator answers to an inquiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Inform {
    /// The decision record is durable and names this branch as an updating one.
    Committed,
    /// This branch will never be told "committed".
    Aborted,
    /// Not known, or not to be told yet: ask again.
    Pending,
}
