//! Who gets a connection: phase two never waits behind phase one (design rule 17).
//!
//! Of a pool of N, prepares use at most N - 2. Commits, aborts and inquiries have those two always, and any other that
//! is free. One of the prepares' is the lane's ([`crate::lane`]), where there are two of them; a smaller pool has no lane. What the service itself takes from the same pool is not counted here: a service whose own requests can use
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
    has_lane: bool,
    prepare_slots: Semaphore,
    prepares: Semaphore,
}

/// Counts one prepare, from its arrival to its answer.
pub(crate) type Admission<'a> = SemaphorePermit<'a>;

impl Connections {
    pub(crate) fn of(pool: Pool) -> Self {
        let for_prepares = pool.status().max_size.saturating_sub(FOR_PHASE_TWO);
        let has_lane = for_prepares > 1;
        let slots = for_prepares - usize::from(has_lane);
        Self {
            pool,
            has_lane,
            prepare_slots: Semaphore::new(slots),
            prepares: Semaphore::new(PREPARES_MAX),
        }
    }

    pub(crate) fn pool_size(&self) -> usize {
        self.pool.status().max_size
    }

    /// Whether one connection may be kept for the lane.
    pub(crate) fn has_lane(&self) -> bool {
        self.has_lane
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
