//! The couriers.

#[path = "../../../../coordinator/src/courier/announced.rs"]
mod announced;
#[path = "../../../../coordinator/src/courier/backoff.rs"]
mod backoff;
#[path = "../../../../coordinator/src/courier/breaker.rs"]
mod breaker;
#[path = "../../../../coordinator/src/courier/call.rs"]
mod call;
#[path = "../../../../coordinator/src/courier/couriers.rs"]
mod couriers;
#[path = "../../../../coordinator/src/courier/endpoint.rs"]
mod endpoint;
#[path = "../../../../coordinator/src/courier/limits.rs"]
mod limits;
#[path = "../../../../coordinator/src/courier/queue.rs"]
mod queue;
#[path = "../../../../coordinator/src/courier/stats.rs"]
mod stats;
mod tests;
mod threads;
#[path = "../../../../coordinator/src/courier/transport.rs"]
mod transport;

use backoff::Backoff;
use call::{Call, OnDone};
use couriers::Couriers;
use endpoint::Endpoint;
use limits::Limits;
use stats::{Counts, LastError, Stats};
use transport::{Ended, Outgoing, Transport};
