//! The bounds of a courier.

use std::time::Duration;

use super::Backoff;

/// What one courier may do at once, and how long it waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// A prepare takes a participant some milliseconds, so this many keep it busy with thousands each second; it has
    /// fewer connections than this for them, and more would only wait there instead of here.
    pub prepares_in_flight_max: usize,
    /// Commits free what branches hold, so they get many; they are short.
    pub commits_in_flight_max: usize,
    /// Nothing is lost when an abort is late, for the branch would ask. Slots of their own, so that a wave of aborts
    /// never takes the commits'.
    pub aborts_in_flight_max: usize,
    /// Of each kind, at a participant that takes batches: there a call costs no connection of its own, and what is
    /// under way is what the next batch is made of.
    pub batched_in_flight_max: usize,
    /// Between the attempts of a prepare, and between the probes of an open breaker. Capped low: after a short outage
    /// there must be time left until the deadline.
    pub prepare_backoff: Backoff,
    /// Between the attempts of a commit or abort, which have all the time in the world.
    pub outcome_backoff: Backoff,
    /// Calls in a row without any answer until prepares are held back.
    pub breaker_opens_after: u32,
    /// A prepare is given until its deadline, but not longer than this. It may well take long, for it may wait for a
    /// key; a dead connection is noticed by TCP, much earlier.
    pub prepare_timeout: Duration,
    /// A commit, an abort, or the probe of an open breaker that takes longer is cut, and asked again.
    pub outcome_timeout: Duration,
    /// Until a connection stands.
    pub connect_timeout: Duration,
    /// How long data may stay unacknowledged by the peer's TCP, and about how long an idle connection's silence is
    /// believed, until a connection is given up.
    pub peer_silence_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            prepares_in_flight_max: 64,
            commits_in_flight_max: 32,
            aborts_in_flight_max: 16,
            batched_in_flight_max: 256,
            prepare_backoff: Backoff {
                first: Duration::from_millis(20),
                longest: Duration::from_secs(1),
            },
            outcome_backoff: Backoff {
                first: Duration::from_millis(20),
                longest: Duration::from_secs(10),
            },
            breaker_opens_after: 5,
            prepare_timeout: Duration::from_secs(30),
            outcome_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(1),
            peer_silence_max: Duration::from_secs(10),
        }
    }
}
