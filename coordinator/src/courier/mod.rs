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
//! is in `couriers`, and is one mutex and one timer task for each participant. `tests/threads` compiles that very file, and
//! all it needs, over a scheduler that tries the orders in which threads can meet.

mod announced;
mod backoff;
mod batches;
mod breaker;
mod call;
mod couriers;
mod endpoint;
mod http;
mod limits;
mod queue;
mod rides;
mod stats;
#[cfg(test)]
mod tests;
mod threads;
mod transport;

pub use backoff::Backoff;
pub use call::{Call, OnDone};
pub use couriers::Couriers;
pub use endpoint::{Endpoint, InvalidEndpoint};
pub use http::Http;
pub use limits::Limits;
pub use stats::{Counts, LastError, Stats};
pub use transport::{Ended, Outgoing, Transport};
