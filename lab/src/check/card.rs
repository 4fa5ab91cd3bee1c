//! What came of the checks: for people as lines, for programs as one JSON object.

use std::fmt::{self, Write as _};

use serde::Serialize;
use serde::ser::{SerializeStruct as _, Serializer};

use super::{Check, Exchange};

/// How a check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The participant does what the contract says.
    Passed,
    /// It does not: what was seen.
    Failed(String),
    /// It could not be seen, and why.
    NotApplicable(String),
}

impl Verdict {
    fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::NotApplicable(_) => "not applicable",
        }
    }

    fn detail(&self) -> Option<&str> {
        match self {
            Self::Passed => None,
            Self::Failed(detail) | Self::NotApplicable(detail) => Some(detail),
        }
    }
}

/// A check that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The check's name.
    pub id: &'static str,
    /// Where the sentence stands, and the sentence.
    pub source: String,
    /// What goes wrong without it.
    pub without_it: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was said.
    pub exchanges: Vec<Exchange>,
}

impl Finished {
    pub(super) fn new(check: &Check, verdict: Verdict, exchanges: Vec<Exchange>) -> Self {
        Self {
            id: check.id,
            source: check.source.to_string(),
            without_it: check.without_it,
            verdict,
            exchanges,
        }
    }

    /// The lines of the card: one for a check that passed, all that shows a failure for one that did not.
    pub fn lines(&self, verbose: bool) -> String {
        let failed = matches!(self.verdict, Verdict::Failed(_));
        let word = if failed {
            "FAILED"
        } else {
            self.verdict.word()
        };
        let mut lines = format!("{word:<15} {}", self.id);
        if let Verdict::NotApplicable(why) = &self.verdict {
            // Nothing fails to write into a text.
            write!(lines, ": {why}").ok();
        }
        lines.push('\n');
        if failed || verbose {
            let mut told = vec![
                ("the sentence", self.source.as_str()),
                ("without it", self.without_it),
            ];
            if let Verdict::Failed(why) = &self.verdict {
                told.push(("what was seen", why));
            }
            for (name, text) in told {
                writeln!(lines, "    {name}: {text}").ok();
            }
            for exchange in &self.exchanges {
                writeln!(
                    lines,
                    "    $ {}\n      {}",
                    exchange.request, exchange.answer
                )
                .ok();
            }
        }
        lines
    }
}

impl Serialize for Finished {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Finished", 6)?;
        object.serialize_field("id", self.id)?;
        object.serialize_field("result", self.verdict.word())?;
        object.serialize_field("detail", &self.verdict.detail())?;
        object.serialize_field("rule", &self.source)?;
        object.serialize_field("without_it", self.without_it)?;
        object.serialize_field("requests", &self.exchanges)?;
        object.end()
    }
}

/// All that was checked.
#[derive(Clone, Debug, Serialize)]
pub struct Card {
    /// The participant's name.
    pub participant: String,
    /// Its base URL.
    pub url: String,
    /// Where it had to ask.
    pub coordinator: String,
    /// The checks, in the order in which they ran.
    pub checks: Vec<Finished>,
}

impl Card {
    /// The names of the checks that failed.
    pub fn failed(&self) -> Vec<&'static str> {
        self.named(|verdict| matches!(verdict, Verdict::Failed(_)))
    }

    /// The names of the checks that could not be made.
    pub fn not_applicable(&self) -> Vec<&'static str> {
        self.named(|verdict| matches!(verdict, Verdict::NotApplicable(_)))
    }

    fn named(&self, which: impl Fn(&Verdict) -> bool) -> Vec<&'static str> {
        let checks = self.checks.iter();
        checks
            .filter(|check| which(&check.verdict))
            .map(|check| check.id)
            .collect()
    }

    /// Whether nothing failed; what is not applicable fails nothing.
    pub fn is_passed(&self) -> bool {
        self.failed().is_empty()
    }
}

/// The last line.
impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (failed, not_applicable) = (self.failed().len(), self.not_applicable().len());
        let passed = self.checks.len() - failed - not_applicable;
        write!(
            f,
            "{} checks: {passed} passed, {failed} failed, {not_applicable} not applicable",
            self.checks.len()
        )
    }
}
