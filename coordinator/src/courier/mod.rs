//! Couriers: each carries the coordinator's calls to one participant, and reports how every one of them ended.
//!
//! What this module promises (design rule 17):
//! - **Phase two never waits behind phase one.** Prepares, commits and aborts have slots of their own ([`Limits`]); in
//!   each class whoever is ready first leaves first. Nobody waits behind another participant: they share nothing.
//! - **A call that waits takes no slot.** From its second attempt on a call waits first, longer each time, with jitter
//!   and a cap.
//! - **The breaker holds back prepares only** and never becomes an answer. While it is open one prepare at a time goes
//!   out as a probe. Any answer, a commit's too, closes it and lets everybody go.
//! - **A commit or abort withdraws a prepare of its branch that still waits**: nobody wants that vote any more.
//! - **A commit is never withdrawn.** A participant that is no longer registered makes its calls wait, visibly: they
//!   are reported as refused after the longest interval, so that the machine asks again (design rule 19).
//! - **Each call reports exactly once**, unless it is withdrawn unsent: see [`Call::on_done`].
//!
//! What it leaves out: what follows from a report (`protocol` decides), how a call is made ([`Transport`]; over HTTP
//! that is [`Http`]), and a bound on how many calls wait: each belongs to a branch of a transaction that the coordinator
//! holds, and those are bounded (design rule 20).
//!
//! `queue` decides what leaves when and is a plain structure: no task, no lock, no clock of its own. The concurrency
//! is in `couriers`, and is one mutex and one timer task for each participant.

mod backoff;
mod breaker;
mod couriers;
mod endpoint;
mod http;
mod queue;
mod stats;
#[cfg(test)]
mod tests;
mod transport;

use std::{fmt, time::Duration};

use tokio::time::Instant;
use unanimous_protocol::{
    coordinator::Pace,
    id::{BranchId, TransactionId},
    message::{Delivery, Reply, Request},
    trace::TraceContext,
};

pub use backoff::Backoff;
pub use couriers::Couriers;
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use http::Http;
pub use stats::{Counts, LastError, Stats};
pub use transport::{Ended, Outgoing, Transport};

/// Takes the report of a call. It is called on a task of the courier, without a lock held, and must not block.
pub type OnDone = Box<dyn FnOnce(Delivery<Reply>) + Send>;

/// One call to one branch.
pub struct Call {
    /// Whom, and about what.
    pub branch: BranchId,
    /// What is asked.
    pub request: Request,
    /// 1 for the first call of its phase; from 2 on it waits first.
    pub attempt: u32,
    /// How long it waits.
    pub pace: Pace,
    /// When a prepare becomes pointless. The other kinds have no deadline.
    pub deadline: Option<Instant>,
    /// When the transaction began, by the wall clock: only for the fairness of keys at participants.
    pub begun_at_ms: i64,
    /// The low-water mark to tell the participant (design rule 15).
    pub low_water: Option<TransactionId>,
    /// The trace that this call belongs to. Each attempt is a parent of its own in it.
    pub trace: TraceContext,
    /// Takes the report, exactly once, unless the call is withdrawn unsent. It is dropped then:
    /// - a prepare when a commit or abort of its branch is sent, or, from attempt 2 on, when it could not leave by its
    ///   deadline (the transaction's own deadline aborts it). A first attempt that could not leave is reported as
    ///   refused, a moment before the deadline, so that the abort's reason says why nobody was asked;
    /// - a prepare or abort of a forgotten transaction ([`Couriers::forget`]);
    /// - any call once the couriers have closed.
    pub on_done: OnDone,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.request.kind().as_str();
        write!(f, "{kind} of {}, attempt {}", self.branch, self.attempt)
    }
}

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
