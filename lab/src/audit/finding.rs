//! What an audit may find: each says which transaction, at which bank, and where to look.

use unanimous_protocol::id::TransactionId;
use unanimous_protocol::record::Outcome;

use super::Entry;
use crate::transfer::{Account, Side};

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A client repeated its request for as long as it had patience, and was never told.
    #[error(
        "the client of {key:?} was never told how it ended; look at GET /v1/transactions?idempotency_key=… of the coordinator"
    )]
    Unknown {
        /// The request's idempotency key.
        key: String,
    },
    /// The log knows nothing of what a client was told.
    #[error(
        "{transaction}: the client of {key:?} was told {}, and the log has no record of it; look at GET \
         /v1/transactions/{transaction} of the coordinator",
        word(*told)
    )]
    NotInLog {
        /// The transaction.
        transaction: TransactionId,
        /// The request's idempotency key.
        key: String,
        /// What the client was told.
        told: Outcome,
    },
    /// The log says other than the client was told.
    #[error(
        "{transaction}: the client of {key:?} was told {}, and the log says {}; look at GET /v1/transactions/{transaction} \
         of the coordinator",
        word(*told), logged.map_or("that it is undecided", word)
    )]
    ToldOtherwise {
        /// The transaction.
        transaction: TransactionId,
        /// The request's idempotency key.
        key: String,
        /// What the client was told.
        told: Outcome,
        /// What the log says; `None` where it has not ended.
        logged: Option<Outcome>,
    },
    /// One request, two transactions that committed.
    #[error(
        "{first} and {second} both committed for the idempotency key {key:?}; look at GET \
         /v1/transactions?idempotency_key=… of the coordinator"
    )]
    KeyTwice {
        /// The request's idempotency key.
        key: String,
        /// One of the transactions.
        first: TransactionId,
        /// The other one.
        second: TransactionId,
    },
    /// A commit that none of the clients asked for.
    #[error(
        "{transaction} committed, and no client asked for it (its key: {key:?}); look at GET /v1/transactions/{transaction} \
         of the coordinator"
    )]
    NobodyAsked {
        /// The transaction.
        transaction: TransactionId,
        /// Its idempotency key.
        key: Option<String>,
    },
    /// A commit that both banks know nothing of.
    #[error(
        "{transaction} committed ({}) and is applied at neither bank; look at the table entries of east and west, and at \
         GET /v1/transactions/{transaction} of the coordinator",
        if *told { "its client was told so" } else { "by the log" }
    )]
    Lost {
        /// The transaction.
        transaction: TransactionId,
        /// Whether its client was told that it committed.
        told: bool,
    },
    /// A commit of which a part is missing.
    #[error(
        "{transaction} committed and is applied in part: at {side} the entry {missing} is missing; look at the table \
         entries of {side} and at GET /unanimous/v1/branches/{transaction} there",
        side = missing.account.side
    )]
    HalfApplied {
        /// The transaction.
        transaction: TransactionId,
        /// What is not there.
        missing: Entry,
    },
    /// An entry that is there more than once.
    #[error(
        "{transaction} is applied {times} times at {side}: the entry {entry}; look at the table entries of {side}",
        side = entry.account.side
    )]
    AppliedTwice {
        /// The transaction.
        transaction: TransactionId,
        /// Which entry.
        entry: Entry,
        /// How often it is there.
        times: usize,
    },
    /// An effect of a transaction that is not committed.
    #[error(
        "{transaction} is applied at {side} (the entry {entry}), and the log {}{}; look at the table entries of {side} and \
         at GET /v1/transactions/{transaction} of the coordinator",
        match logged {
            None => "has no record of it",
            Some(None) => "says that it is undecided",
            Some(Some(outcome)) => said(*outcome),
        },
        match told {
            Some(Outcome::Aborted) => "; its client was told that it aborted",
            Some(Outcome::Committed) => "; its client was told that it committed",
            None => "",
        },
        side = entry.account.side
    )]
    AppliedUncommitted {
        /// The transaction, as the bank wrote it.
        transaction: String,
        /// What is there.
        entry: Entry,
        /// What the log says; inside, `None` where it has not ended.
        logged: Option<Option<Outcome>>,
        /// What a client was told of it.
        told: Option<Outcome>,
    },
    /// An entry that is no part of what was asked for.
    #[error(
        "{transaction} committed, and the entry {entry} at {side} is no part of what was asked; look at the table entries \
         of {side}",
        side = entry.account.side
    )]
    Altered {
        /// The transaction.
        transaction: TransactionId,
        /// What is there.
        entry: Entry,
    },
    /// A branch waits for its outcome.
    #[error(
        "{transaction} is in doubt at {side}; look at GET /unanimous/v1/branches/{transaction} of {side}"
    )]
    InDoubt {
        /// At which bank.
        side: Side,
        /// Which transaction.
        transaction: String,
    },
    /// The coordinator waits for an acknowledgement.
    #[error(
        "{transaction} is in doubt by the coordinator's list; look at GET /v1/transactions/{transaction}, at last_error \
         of its branches"
    )]
    Unacknowledged {
        /// Which transaction.
        transaction: TransactionId,
    },
    /// Money is promised to nobody.
    #[error(
        "{account} holds back {held} for transactions, and none is in doubt there; look at the table accounts of {}",
        account.side
    )]
    Held {
        /// Which account.
        account: Account,
        /// How much.
        held: i64,
    },
    /// A key is held for nobody.
    #[error(
        "{transaction} holds a key at {side} and is not in doubt there; look at the table unanimous.keys of {side}"
    )]
    KeyHeld {
        /// At which bank.
        side: Side,
        /// Which transaction.
        transaction: String,
    },
    /// An account does not hold what its entries add up to.
    #[error(
        "{account} holds {found}, and its entries add up to {expected}; look at the tables accounts and entries of {}",
        account.side
    )]
    Balance {
        /// Which account.
        account: Account,
        /// What it held at first, with all entries since.
        expected: i64,
        /// What it holds.
        found: i64,
    },
    /// What the bank tells is not what its accounts hold.
    #[error(
        "{side} tells a total of {told}, and its accounts hold {booked}; look at GET /total and the table accounts of {side}"
    )]
    Told {
        /// Which bank.
        side: Side,
        /// By `GET /total`.
        told: i64,
        /// In the table.
        booked: i64,
    },
    /// Money was made or lost.
    #[error("both banks together held {before} and hold {after}")]
    Total {
        /// At first.
        before: i64,
        /// Now.
        after: i64,
    },
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Committed => "committed",
        Outcome::Aborted => "aborted",
    }
}

fn said(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Committed => "says that it committed",
        Outcome::Aborted => "says that it aborted",
    }
}

/// What holds where nothing is found, in the order in which people read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Claim {
    /// Nobody is left without an answer.
    EveryClientTold,
    /// What was told is what the log says.
    ToldIsLogged,
    /// No commit is lost.
    NothingLost,
    /// All or nothing.
    NothingHalf,
    /// Exactly once.
    NothingTwice,
    /// Nothing is applied that did not commit.
    NothingElse,
    /// Everything has ended, everywhere.
    NothingInDoubt,
    /// No reservation or key is left.
    NothingHeld,
    /// The books agree with themselves.
    BooksAddUp,
    /// No money was made or lost.
    TotalUnchanged,
}

impl Claim {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::EveryClientTold,
        Self::ToldIsLogged,
        Self::NothingLost,
        Self::NothingHalf,
        Self::NothingTwice,
        Self::NothingElse,
        Self::NothingInDoubt,
        Self::NothingHeld,
        Self::BooksAddUp,
        Self::TotalUnchanged,
    ];

    /// The claim in words.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::EveryClientTold => "every client was told how its transfer ended",
            Self::ToldIsLogged => "what clients were told is what the log says",
            Self::NothingLost => "no commit is lost",
            Self::NothingHalf => "no commit is applied at one bank only",
            Self::NothingTwice => "no commit is applied twice",
            Self::NothingElse => "nothing else is applied",
            Self::NothingInDoubt => "nothing is in doubt",
            Self::NothingHeld => "nothing is held back",
            Self::BooksAddUp => "every balance is what its entries add up to",
            Self::TotalUnchanged => "no money was made or lost",
        }
    }
}

impl Finding {
    /// Which claim it breaks.
    pub fn breaks(&self) -> Claim {
        match self {
            Self::Unknown { .. } => Claim::EveryClientTold,
            Self::NotInLog { .. } | Self::ToldOtherwise { .. } | Self::KeyTwice { .. } => {
                Claim::ToldIsLogged
            }
            Self::Lost { .. } => Claim::NothingLost,
            Self::HalfApplied { .. } => Claim::NothingHalf,
            Self::AppliedTwice { .. } => Claim::NothingTwice,
            Self::NobodyAsked { .. } | Self::AppliedUncommitted { .. } | Self::Altered { .. } => {
                Claim::NothingElse
            }
            Self::InDoubt { .. } | Self::Unacknowledged { .. } => Claim::NothingInDoubt,
            Self::Held { .. } | Self::KeyHeld { .. } => Claim::NothingHeld,
            Self::Balance { .. } | Self::Told { .. } => Claim::BooksAddUp,
            Self::Total { .. } => Claim::TotalUnchanged,
        }
    }
}
