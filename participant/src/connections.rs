//! Who gets a connection: phase two never waits behind phase one (design rule 17).
//!
//! Of a pool of N, prepares use at most N - 2. Commits, aborts and inquiries have those two always, and any other that
//! is free. What the service itself takes from the same pool is not counted here: a service whose own requests can use
//! the whole pool gives them a pool of their own.

use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

use crate::{calls::chain, intent_log::LogError};

/// Fewer can not keep two for phase two.
pub(crate) const POOL_MIN: usize = 3;
const FOR_PHASE_TWO: usize = 2;

/// Prepares that run or wait for a slot, at most; one more is told to come back (design rule 20).
const PREPARES_MAX: usize = 1_024;

/// Phase two waits so long for a connection before it says that there is none.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) struct Connections {
    pool: Pool,
    prepare_slots: Semaphore,
    prepares: Semaphore,
}

/// Counts one prepare, from its arrival to its answer.
pub(crate) type Admission<'a> = SemaphorePermit<'a>;

impl Connections {
    pub(crate) fn of(pool: Pool) -> Self {
        let slots = pool.status().max_size.saturating_sub(FOR_PHASE_TWO);
        Self {
            pool,
            prepare_slots: Semaphore::new(slots),
            prepares: Semaphore::new(PREPARES_MAX),
        }
    }

    pub(crate) fn pool_size(&self) -> usize {
        self.pool.status().max_size
    }

    /// `None` when too many prepares are under way.
    pub(crate) fn admit(&self) -> Option<Admission<'_>> {
        self.prepares.try_acquire().ok()
    }

    /// A prepare's slot, to be held as long as its connection. `None` when none came free by the deadline.
    pub(crate) async fn prepare_slot(&self, deadline: Instant) -> Option<SemaphorePermit<'_>> {
        let slot = tokio::time::timeout_at(deadline, self.prepare_slots.acquire()).await;
        slot.ok()?.ok()
    }

    /// A prepare's slot, if one is free.
    pub(crate) fn free_prepare_slot(&self) -> Option<SemaphorePermit<'_>> {
        self.prepare_slots.try_acquire().ok()
    }

    /// A connection: a prepare's behind its slot, anybody else's at once.
    pub(crate) async fn get(&self) -> Result<Object, LogError> {
        // Not the pool's own timeouts: those need a pool that was built with a runtime.
        match tokio::time::timeout(PATIENCE, self.pool.get()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(LogError::NoConnection(chain(&error))),
            Err(_elapsed) => Err(LogError::NoConnection("none within 5 s".to_owned())),
        }
    }
}
