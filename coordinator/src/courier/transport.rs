//! The one thing a courier can not do itself: the call.

use futures_util::future::BoxFuture;
use unanimous_protocol::{
    id::{BranchId, TransactionId},
    message::{Delivery, Reply, Request},
    trace::TraceContext,
};

use super::Endpoint;

/// A call that leaves now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Whom, and about what.
    pub branch: BranchId,
    /// What is asked.
    pub request: Request,
    /// For a prepare: what is left until its deadline, read when it left.
    pub remaining_ms: u64,
    /// See [`super::Call::begun_at_ms`].
    pub begun_at_ms: i64,
    /// See [`super::Call::low_water`].
    pub low_water: Option<TransactionId>,
    /// See [`super::Call::is_awaited`].
    pub is_awaited: bool,
    /// See [`super::Call::trace`].
    pub trace: TraceContext,
}

/// How a call ended. A [`Delivery`] with one thing more: whether anybody was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Something came back, and the protocol judged it. It may still be unknown: a proxy's page is.
    Heard(Delivery<Reply>),
    /// The connection was refused, and nothing else: the branch certainly did not act.
    Refused(String),
    /// Nothing whole came back; the branch may have acted.
    Silent(String),
}

impl Ended {
    /// What the machine is told.
    #[must_use]
    pub fn into_delivery(self) -> Delivery<Reply> {
        match self {
            Self::Heard(delivery) => delivery,
            Self::Refused(reason) => Delivery::Refused(reason),
            Self::Silent(reason) => Delivery::Unknown(reason),
        }
    }
}

/// Makes calls to participants. Each `call` is one attempt: repeating is the courier's.
pub trait Transport: Send + Sync + 'static {
    /// Calls a branch. The future does nothing before it is polled, and dropping it cuts the call.
    fn call(&self, to: &Endpoint, call: Outgoing) -> BoxFuture<'static, Ended>;
}
