//! What the list of transactions asks for: which ones, and from where on.

use unanimous_protocol::{
    coordinator::TransactionState,
    id::{ParticipantName, TransactionId},
    record::{Header, IdempotencyKey, Outcome, Record, WallMillis},
    wire::TransactionView,
};

/// Which transactions; all members have to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// In this state.
    pub state: Option<TransactionState>,
    /// With this outcome.
    pub outcome: Option<Outcome>,
    /// With a branch of this participant.
    pub participant: Option<ParticipantName>,
    /// With this key.
    pub idempotency_key: Option<IdempotencyKey>,
    /// With all of these labels: keys and values.
    pub labels: Vec<(String, String)>,
    /// Whether some branch voted yes and has not acknowledged the outcome.
    pub in_doubt: Option<bool>,
}

impl Filter {
    /// Whether this transaction is one.
    #[must_use]
    pub fn takes(&self, view: &TransactionView, is_in_doubt: bool) -> bool {
        let Self {
            state,
            outcome,
            participant,
            idempotency_key,
            labels,
            in_doubt,
        } = self;
        let key = idempotency_key.as_ref().map(IdempotencyKey::as_str);
        state.is_none_or(|state| state == view.state)
            && outcome.is_none_or(|outcome| Some(outcome) == view.outcome)
            && in_doubt.is_none_or(|wanted| wanted == is_in_doubt)
            && key.is_none_or(|key| Some(key) == view.idempotency_key.as_deref())
            && labels
                .iter()
                .all(|(key, value)| view.labels.get(key) == Some(value))
            && participant.as_ref().is_none_or(|name| {
                let mut branches = view.branches.iter();
                branches.any(|branch| branch.participant == *name)
            })
    }

    /// Whether this record is one. It is in doubt until its commit is acknowledged everywhere: what an aborted one is
    /// still telling, its coordinator's memory knows alone.
    #[must_use]
    pub fn takes_record(&self, record: &Record) -> bool {
        let view = TransactionView::of_record(record);
        self.takes(&view, view.state == TransactionState::Committing)
    }
}

/// A place in the list. It never changes for a transaction, so that whoever pages through the list while others are
/// added meets each one once. Greater is newer, and comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// When the transaction began.
    pub created_at: WallMillis,
    /// The transaction.
    pub id: TransactionId,
}

impl Position {
    /// Where the transaction with this header is.
    #[must_use]
    pub fn of(header: &Header) -> Self {
        Self {
            created_at: header.created_at,
            id: header.id,
        }
    }
}

/// What a filter means for records: the outcome, and whether the commit is owed to somebody. `None` when no record can
/// be meant.
pub(super) fn meant(filter: &Filter) -> Option<(Option<Outcome>, Option<bool>)> {
    let (of_state, unfinished) = match filter.state {
        None => (None, None),
        Some(TransactionState::Committing) => (Some(Outcome::Committed), Some(true)),
        Some(TransactionState::Committed) => (Some(Outcome::Committed), Some(false)),
        Some(TransactionState::Aborted) => (Some(Outcome::Aborted), None),
        Some(
            TransactionState::Active
            | TransactionState::Preparing
            | TransactionState::Deciding
            | TransactionState::Aborting,
        ) => return None,
    };
    Some((
        agreed(of_state, filter.outcome)?,
        agreed(unfinished, filter.in_doubt)?,
    ))
}

/// What both say, where they do not contradict each other.
fn agreed<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<Option<T>> {
    match (one, other) {
        (Some(one), Some(other)) if one != other => None,
        (one, other) => Some(one.or(other)),
    }
}
