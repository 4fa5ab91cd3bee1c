//! What the participant at an address has announced (`GET /v1/describe`), and when it is asked again.
//!
//! It may be another one behind a restart: an older version that takes no batches any more, or a newer one that does. So
//! silence, a refused connection and an answer that says "no batches here" make what is known doubtful, and with the
//! next answer of any kind the participant is asked again, at most every [`AGAIN`]. Being wrong costs a request, never an
//! answer: what nobody took as a batch is sent by itself.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use unanimous_protocol::wire::Describe;

/// Between two questions of ours, at least.
const AGAIN: Duration = Duration::from_secs(10);
/// Whoever takes no batches is asked again after this long: a rolling upgrade need not cost a single call.
const IN_CASE_OF_AN_UPGRADE: Duration = Duration::from_secs(60);

/// Shared by all clones of an [`super::Endpoint`].
#[derive(Debug, Default)]
pub(super) struct Announced {
    takes_batches: AtomicBool,
    is_doubtful: AtomicBool,
    /// When it was asked last, by whomever.
    asked_at: Mutex<Option<Instant>>,
}

impl Announced {
    /// Whether it takes batches, as far as is known; nobody does before he has said so.
    pub(super) fn takes_batches(&self) -> bool {
        self.takes_batches.load(Ordering::Relaxed)
    }

    /// It described itself.
    pub(super) fn described(&self, described: &Describe, now: Instant) {
        self.takes_batches
            .store(described.takes_batches(), Ordering::Relaxed);
        self.is_doubtful.store(false, Ordering::Relaxed);
        *self.asked_at() = Some(now);
    }

    /// Nobody answered: whoever does next may be another version.
    pub(super) fn is_silent(&self) {
        self.is_doubtful.store(true, Ordering::Relaxed);
    }

    /// It did not take a batch.
    pub(super) fn takes_none(&self) {
        self.takes_batches.store(false, Ordering::Relaxed);
        self.is_doubtful.store(true, Ordering::Relaxed);
    }

    /// Somebody answered a call. Whether he is to be asked now what he can do; he then counts as asked.
    pub(super) fn is_to_be_asked(&self, now: Instant) -> bool {
        let is_doubtful = self.is_doubtful.load(Ordering::Relaxed);
        if !is_doubtful && self.takes_batches() {
            return false;
        }
        let mut asked_at = self.asked_at();
        let ago = asked_at.map(|at| now.saturating_duration_since(at));
        let is_due = match ago {
            Some(ago) if is_doubtful => ago >= AGAIN,
            Some(ago) => ago >= IN_CASE_OF_AN_UPGRADE,
            // Before the first answer the asking is the registry's.
            None => is_doubtful,
        };
        if is_due {
            *asked_at = Some(now);
        }
        is_due
    }

    fn asked_at(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.asked_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(features: &[&str]) -> Describe {
        Describe {
            participant: "east".parse().unwrap(),
            protocol: 1,
            features: features
                .iter()
                .map(|feature| (*feature).to_owned())
                .collect(),
        }
    }

    #[test]
    fn nobody_takes_batches_who_has_not_said_so() {
        let (announced, now) = (Announced::default(), Instant::now());
        assert!(!announced.takes_batches());
        assert!(!announced.is_to_be_asked(now), "the registry asks first");
        announced.described(&with(&["batches", "sql"]), now);
        assert!(!announced.takes_batches());
        announced.described(&with(&["sql", "batch"]), now);
        assert!(announced.takes_batches());
        announced.described(&with(&[]), now);
        assert!(
            !announced.takes_batches(),
            "and it counts no longer than that"
        );
    }

    #[test]
    fn whoever_may_be_another_version_is_asked_again_and_not_too_often() {
        let (announced, begun) = (Announced::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        announced.described(&with(&["batch"]), at(0));
        assert!(!announced.is_to_be_asked(at(1_000)), "nothing is doubtful");
        announced.is_silent();
        assert!(announced.takes_batches(), "until it is known better");
        assert!(!announced.is_to_be_asked(at(9)));
        assert!(announced.is_to_be_asked(at(10)));
        assert!(!announced.is_to_be_asked(at(19)), "it counts as asked");
        assert!(announced.is_to_be_asked(at(20)), "and did not answer");
        announced.takes_none();
        assert!(!announced.takes_batches());
        assert!(announced.is_to_be_asked(at(30)));
        announced.described(&with(&[]), at(30));
        assert!(!announced.is_to_be_asked(at(89)));
        assert!(
            announced.is_to_be_asked(at(90)),
            "it may have been upgraded"
        );
    }

    #[test]
    fn who_was_silent_when_the_registry_asked_is_asked_when_it_answers_a_call() {
        let (announced, now) = (Announced::default(), Instant::now());
        announced.is_silent();
        assert!(announced.is_to_be_asked(now));
        assert!(!announced.is_to_be_asked(now));
    }
}
