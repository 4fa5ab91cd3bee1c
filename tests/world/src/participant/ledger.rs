//! The toy ledger that is the participant's service: what it can do, as text and as what was read.

use std::fmt;

pub(crate) const ACCOUNTS: u64 = 4;

pub(crate) const BALANCE: u64 = 100;

/// What the toy ledger can do. Its JSON is flat: a kind, and up to three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Debit {
        account: u64,
        amount: u64,
    },
    Credit {
        account: u64,
        amount: u64,
    },
    /// Moves within one participant, where there is enough; else it has nothing to change, and says read-only. So a
    /// late duplicate of its prepare may answer otherwise than the first.
    Shuffle {
        from: u64,
        to: u64,
        amount: u64,
    },
    Look,
    Refuse,
    /// Changes nothing, and holds a key until the outcome.
    Lock {
        key: u64,
    },
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debit { account, amount } => write!(f, "debit {account} {amount}"),
            Self::Credit { account, amount } => write!(f, "credit {account} {amount}"),
            Self::Shuffle { from, to, amount } => write!(f, "shuffle {from} {to} {amount}"),
            Self::Look => f.write_str("look"),
            Self::Refuse => f.write_str("refuse"),
            Self::Lock { key } => write!(f, "lock {key}"),
        }
    }
}

impl Operation {
    /// The key that it holds until the outcome.
    pub(crate) fn key(&self) -> Option<u64> {
        match self {
            Self::Lock { key } => Some(*key),
            Self::Debit { .. }
            | Self::Credit { .. }
            | Self::Shuffle { .. }
            | Self::Look
            | Self::Refuse => None,
        }
    }

    pub(crate) fn json(self) -> String {
        match self {
            Self::Debit { account, amount } => format!(r#"{{"debit":[{account},{amount}]}}"#),
            Self::Credit { account, amount } => format!(r#"{{"credit":[{account},{amount}]}}"#),
            Self::Shuffle { from, to, amount } => {
                format!(r#"{{"shuffle":[{from},{to},{amount}]}}"#)
            }
            Self::Look => r#"{"look":[]}"#.to_owned(),
            Self::Refuse => r#"{"refuse":[]}"#.to_owned(),
            Self::Lock { key } => format!(r#"{{"lock":[{key}]}}"#),
        }
    }

    fn parse_one(text: &str) -> Option<Self> {
        let mut numbers = text
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse::<u64>().ok());
        let mut number = || numbers.next();
        Some(match text.split('"').nth(1)? {
            "debit" => Self::Debit {
                account: number()?,
                amount: number()?,
            },
            "credit" => Self::Credit {
                account: number()?,
                amount: number()?,
            },
            "shuffle" => Self::Shuffle {
                from: number()?,
                to: number()?,
                amount: number()?,
            },
            "look" => Self::Look,
            "lock" => Self::Lock { key: number()? },
            _ => Self::Refuse,
        })
    }

    pub(crate) fn parse(text: &str) -> Vec<Self> {
        text.split('}').filter_map(Self::parse_one).collect()
    }
}
