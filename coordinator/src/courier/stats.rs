//! What a courier tells an operator.

use std::time::Duration;

use super::Endpoint;

/// What an operator may want to know of one courier.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Where it calls; `None` for a participant that is not registered.
    pub endpoint: Option<Endpoint>,
    /// Of its prepares.
    pub prepares: Counts,
    /// Of its commits.
    pub commits: Counts,
    /// Of its aborts.
    pub aborts: Counts,
    /// Whether prepares are held back.
    pub breaker_open: bool,
    /// Whether a prepare is trying meanwhile.
    pub probing: bool,
    /// Calls in a row, up to now, from which nothing came back.
    pub silent_in_a_row: u32,
    /// The last call that was not answered. It stays when others are.
    pub last_error: Option<LastError>,
    /// Calls that were withdrawn unsent since the start.
    pub withdrawn: u64,
}

/// Calls of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// They have left and not ended.
    pub in_flight: usize,
    /// They wait for a slot, for the breaker, or for the participant to be registered.
    pub ready: usize,
    /// They wait before another attempt.
    pub backing_off: usize,
}

/// How a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// What went wrong.
    pub text: String,
    /// How long ago.
    pub ago: Duration,
}
