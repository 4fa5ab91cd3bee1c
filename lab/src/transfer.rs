//! The one piece of work that demo, tests and benchmark ask for: money from one account to another,
//! in one transaction or not at all.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, bail};
use unanimous_protocol::id::ParticipantName;
use unanimous_protocol::operations::Operations;
use unanimous_protocol::wire::{
    BeginRequest, NamedBranch, Problem, TransactionList, TransactionView, Wait,
};

use crate::town::{get, http_client};

/// Longer than the coordinator ever holds an answer.
const ANSWER: Duration = Duration::from_secs(90);

/// One of the two banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The participant `east`.
    East,
    /// The participant `west`.
    West,
}

impl Side {
    /// Both, in the order in which they are shown.
    pub const BOTH: [Self; 2] = [Self::East, Self::West];

    /// The participant's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::East => "east",
            Self::West => "west",
        }
    }

    /// Account `number` of this bank.
    pub fn account(self, number: i64) -> Account {
        Account { side: self, number }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An account, printed as `east/7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account {
    /// At which bank.
    pub side: Side,
    /// Counted from 1.
    pub number: i64,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.side, self.number))
    }
}

/// Money to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transfer {
    /// Where it is taken.
    pub from: Account,
    /// Where it is put.
    pub to: Account,
    /// How much, in the smallest unit there is. Zero only looks at both accounts: a transaction whose branches all vote
    /// read-only.
    pub amount: i64,
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {} to {}", self.amount, self.from, self.to)
    }
}

impl Transfer {
    /// What it changes: each account, and by how much.
    pub fn changes(&self) -> [(Account, i64); 2] {
        [(self.from, -self.amount), (self.to, self.amount)]
    }

    /// The operation that makes a change, as JSON.
    fn operation(account: Account, change: i64) -> String {
        let (account, amount) = (account.number, change.abs());
        match change {
            0 => format!(r#"{{"kind": "check", "account": {account}, "at_least": 1}}"#),
            ..0 => format!(r#"{{"kind": "debit", "account": {account}, "amount": {amount}}}"#),
            1.. => format!(r#"{{"kind": "credit", "account": {account}, "amount": {amount}}}"#),
        }
    }

    /// The request that runs it at once.
    pub fn request(&self, wait: Wait) -> anyhow::Result<BeginRequest> {
        let mut branches = Vec::new();
        for side in Side::BOTH {
            // Within one bank it is one branch with both operations: a participant has no more.
            let operations: Vec<String> = self
                .changes()
                .into_iter()
                .filter(|(account, _)| account.side == side)
                .map(|(account, change)| Self::operation(account, change))
                .collect();
            if !operations.is_empty() {
                branches.push(NamedBranch {
                    participant: side.name().parse::<ParticipantName>()?,
                    operations: Some(Operations::parse(&format!("[{}]", operations.join(", ")))?),
                });
            }
        }
        Ok(BeginRequest {
            branches: Some(branches),
            commit: Some(true),
            wait: Some(wait),
            ..BeginRequest::default()
        })
    }
}

/// What the coordinator answered to a request about a transaction.
#[derive(Clone, Debug)]
pub struct Answer {
    /// 200 committed, 409 aborted, 202 not known yet.
    pub status: u16,
    /// The transaction, as it stood then.
    pub transaction: TransactionView,
}

/// A client of the coordinator, as anybody could write it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api {
    http: reqwest::Client,
    coordinator: String,
}

impl Api {
    pub(crate) fn new(http: reqwest::Client, coordinator: String) -> Self {
        Self { http, coordinator }
    }

    /// Of a coordinator that somebody else started.
    pub fn at(coordinator: &str) -> anyhow::Result<Self> {
        Ok(Self::new(http_client()?, coordinator.to_owned()))
    }

    /// The coordinator's address, `http://…`.
    pub fn url(&self) -> &str {
        &self.coordinator
    }

    /// Begins a transaction under an idempotency key. An abort is an answer, not an error; an error
    /// means that nothing is known, and the same request may be sent again.
    pub async fn begin(&self, request: &BeginRequest, key: &str) -> anyhow::Result<Answer> {
        let url = format!("{}/v1/transactions", self.coordinator);
        let sent = self.http.post(url).header("Idempotency-Key", key);
        let answered = sent.json(request).timeout(ANSWER).send().await;
        let answered = answered.context("no answer to POST /v1/transactions")?;
        let status = answered.status().as_u16();
        let body = answered.text().await.context("an answer without end")?;
        read_answer(status, &body)
    }

    /// All transactions that the coordinator lists for this query, in as many pages as there are.
    pub async fn list(&self, query: &str) -> anyhow::Result<Vec<TransactionView>> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/v1/transactions?limit=1000{query}{after}");
            let page: TransactionList = get(&self.http, &self.coordinator, &path).await?;
            all.extend(page.transactions);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(all),
            }
        }
    }
}

/// What a 200, 202 or 409 says.
pub(crate) fn read_answer(status: u16, body: &str) -> anyhow::Result<Answer> {
    let unexpected = || format!("the coordinator answered {status}: {body}");
    let transaction = match status {
        200..=202 => serde_json::from_str(body).with_context(unexpected)?,
        409 => {
            let mut problem: Problem = serde_json::from_str(body).with_context(unexpected)?;
            let aborted = problem.members.remove("transaction");
            serde_json::from_value(aborted.with_context(unexpected)?).with_context(unexpected)?
        }
        _ => bail!(unexpected()),
    };
    Ok(Answer {
        status,
        transaction,
    })
}
