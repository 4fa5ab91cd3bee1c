//! What a courier is asked to do.

use std::fmt;

use tokio::time::Instant;
use unanimous_protocol::{
    coordinator::Pace,
    id::{BranchId, TransactionId},
    message::{Delivery, Reply, Request},
    trace::TraceContext,
};

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
    /// Somebody waits until it has been made.
    pub is_awaited: bool,
    /// The trace that this call belongs to. Each attempt is a parent of its own in it.
    pub trace: TraceContext,
    /// Takes the report, exactly once, unless the call is withdrawn unsent. It is dropped then:
    /// - a prepare when a commit or abort of its branch is sent, or, from attempt 2 on, when it could not leave by its
    ///   deadline (the transaction's own deadline aborts it). A first attempt that could not leave is reported as
    ///   refused, a moment before the deadline, so that the abort's reason says why nobody was asked;
    /// - a prepare or abort of a forgotten transaction ([`super::Couriers::forget`]);
    /// - any call once the couriers have closed.
    pub on_done: OnDone,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.request.kind().as_str();
        write!(f, "{kind} of {}, attempt {}", self.branch, self.attempt)
    }
}
