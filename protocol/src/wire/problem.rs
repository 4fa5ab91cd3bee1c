//! RFC 9457 problem details with our codes.

use serde::{Deserialize, Serialize};

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

const TYPE_PREFIX: &str = "urn:unanimous:problem:";

/// The `type` of the problem with this code.
#[must_use]
pub fn problem_type(code: &str) -> String {
    format!("{TYPE_PREFIX}{code}")
}

/// A problem (RFC 9457). `code` is for programs and stays stable; `detail` is for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:unanimous:problem:<code>`
    #[serde(rename = "type")]
    pub problem_type: String,
    /// The code in words: the same for every problem of this code.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, to which transaction and participant, and what the reader can do.
    pub detail: String,
    /// For programs.
    pub code: String,
    /// Members of this problem's own, as `docs/API.md` names them.
    #[serde(flatten)]
    pub members: serde_json::Map<String, serde_json::Value>,
}

impl Problem {
    /// A problem without members of its own.
    #[must_use]
    pub fn new(status: u16, code: &str, detail: impl Into<String>) -> Self {
        let words = code.replace('-', " ");
        Self {
            problem_type: problem_type(code),
            title: words,
            status,
            detail: detail.into(),
            code: code.to_owned(),
            members: serde_json::Map::new(),
        }
    }

    /// With one more member. A value that can not be written as JSON is left out.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Serialize) -> Self {
        if let Ok(value) = serde_json::to_value(value) {
            self.members.insert(name.to_owned(), value);
        }
        self
    }
}
