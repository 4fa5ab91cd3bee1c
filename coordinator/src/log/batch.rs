//! What goes into one write.

use unanimous_protocol::{
    id::TransactionId,
    record::{Record, WallMillis},
};

/// What goes into one decision write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The decisions to force. Their answers come in this order.
    pub proposals: Vec<Record>,
    /// What rides along.
    pub appends: Appends,
}

/// What need not be forced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appends {
    /// Records of what ended without a forced write.
    pub records: Vec<Record>,
    /// Transactions whose last updating branch has acknowledged, and when.
    pub finishes: Vec<(TransactionId, WallMillis)>,
}

impl Appends {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.finishes.is_empty()
    }

    /// How much there is.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len() + self.finishes.len()
    }
}
