//! How long to wait before a call is repeated.

use std::time::Duration;

use rand::{Rng, RngExt as _};

/// Doubles from `first` up to `longest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The wait before the second attempt, at most.
    pub first: Duration,
    /// No wait is longer.
    pub longest: Duration,
}

impl Backoff {
    /// The wait before this attempt; none before the first. Half of it is certain, so that a participant gets time to
    /// breathe, and half is drawn, so that calls that failed together do not come back together.
    pub(super) fn before(&self, attempt: u32, rng: &mut impl Rng) -> Duration {
        let Some(doublings) = attempt.checked_sub(2) else {
            return Duration::ZERO;
        };
        // Past 2^30 of them every `first` of at least a nanosecond has reached a second: the cap is what counts.
        let whole = self
            .first
            .saturating_mul(1 << doublings.min(30))
            .min(self.longest);
        let half = whole / 2;
        half + half.mul_f64(rng.random())
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_millis(20),
        longest: Duration::from_secs(10),
    };

    #[test]
    fn the_first_attempt_does_not_wait() {
        let mut rng = StdRng::seed_from_u64(1);
        assert_eq!(BACKOFF.before(0, &mut rng), Duration::ZERO);
        assert_eq!(BACKOFF.before(1, &mut rng), Duration::ZERO);
    }

    #[test]
    fn waits_double_up_to_the_cap_and_keep_at_least_half() {
        let mut rng = StdRng::seed_from_u64(1);
        for (attempt, whole_ms) in [
            (2, 20),
            (3, 40),
            (4, 80),
            (10, 5_120),
            (11, 10_000),
            (12, 10_000),
            (100, 10_000),
            (u32::MAX, 10_000),
        ] {
            let whole = Duration::from_millis(whole_ms);
            for _ in 0..100 {
                let wait = BACKOFF.before(attempt, &mut rng);
                assert!(whole / 2 <= wait && wait <= whole, "{attempt}: {wait:?}");
            }
        }
    }

    #[test]
    fn calls_that_failed_together_do_not_come_back_together() {
        let mut rng = StdRng::seed_from_u64(1);
        let waits: Vec<_> = (0..100).map(|_| BACKOFF.before(11, &mut rng)).collect();
        let spread = waits
            .iter()
            .max()
            .unwrap()
            .abs_diff(*waits.iter().min().unwrap());
        assert!(spread > Duration::from_secs(4), "{spread:?}");
    }
}
