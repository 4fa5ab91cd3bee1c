//! Waiting for a key that another branch holds, without a connection and without a slot.
//!
//! How long, and what then, is [`unanimous_protocol::keys`]' to say. A release in this process wakes its waiters; one in
//! another process of the same service is found by looking again.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use unanimous_protocol::keys::WAITERS_MAX;

/// How often a waiter looks by itself.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

#[derive(Default)]
pub(crate) struct KeyWaiters {
    waiting: Mutex<HashMap<String, usize>>,
    released: Notify,
}

/// One that waits for a key.
pub(crate) struct Waiter<'a> {
    waiters: &'a KeyWaiters,
    key: String,
}

impl KeyWaiters {
    fn waiting(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when enough wait for this key already.
    pub(crate) fn enter(&self, key: &str) -> Option<Waiter<'_>> {
        let mut waiting = self.waiting();
        let count = waiting.entry(key.to_owned()).or_default();
        if *count >= WAITERS_MAX {
            return None;
        }
        *count += 1;
        Some(Waiter {
            waiters: self,
            key: key.to_owned(),
        })
    }

    /// Some branch released its keys.
    pub(crate) fn released(&self) {
        self.released.notify_waiters();
    }
}

impl Waiter<'_> {
    /// Which key it waits for.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Returns when it is worth trying again.
    pub(crate) async fn wait(&self) {
        drop(tokio::time::timeout(LOOK_AGAIN, self.waiters.released.notified()).await);
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiters.waiting();
        if let Some(count) = waiting.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.key);
            }
        }
    }
}
