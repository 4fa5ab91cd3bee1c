//! Whether an outcome waits for prepares that it can leave with ([`super::batches`]).
//!
//! Where clients come one behind the other, the next prepare follows an outcome within a fraction of [`RIDE_MAX`]. Where
//! they do not, waiting would only make it late; so after rides that did not come fewer and fewer wait.

use std::time::Duration;

/// How long an outcome waits for a ride, and some timer's tick.
pub(super) const RIDE_MAX: Duration = Duration::from_millis(1);

/// After rides that did not come so many outcomes, at most, leave without waiting for one.
const UNEXPECTING_MAX: u32 = 64;

/// What is known of rides to one participant.
#[derive(Debug, Default)]
pub(super) struct Rides {
    /// Somebody looks after those that wait for one.
    pub(super) are_expected: bool,
    /// In a row.
    missed: u32,
    /// So many leave before one is waited for again.
    unexpecting: u32,
}

impl Rides {
    /// Whether one more outcome is to wait for one.
    pub(super) fn are_worth_waiting_for(&mut self) -> bool {
        let now = self.unexpecting == 0;
        self.unexpecting = self.unexpecting.saturating_sub(1);
        now
    }

    pub(super) fn came(&mut self) {
        (self.missed, self.unexpecting) = (0, 0);
    }

    pub(super) fn did_not_come(&mut self) {
        self.missed = self.missed.saturating_add(1);
        self.unexpecting = UNEXPECTING_MAX.min(1 << self.missed.min(16));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waited_in_vain_waits_more_and_more_seldom_until_a_ride_comes() {
        let mut rides = Rides::default();
        let mut waited = 0;
        for _ in 0..1_000 {
            if rides.are_worth_waiting_for() {
                rides.did_not_come();
                waited += 1;
            }
        }
        assert!((10..=25).contains(&waited), "{waited} times in vain");
        rides.came();
        assert!(rides.are_worth_waiting_for() && rides.are_worth_waiting_for());
    }
}
