//! What couriers need of threads and of time. `tests/threads` has another file in this one's place, over a scheduler that
//! tries the orders in which threads can meet.

pub(super) use std::sync::{Mutex, MutexGuard, RwLock};

pub(super) use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{sleep_until, timeout},
};

/// The monotonic clock.
pub(super) fn now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
