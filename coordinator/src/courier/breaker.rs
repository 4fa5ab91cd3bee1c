//! Notices that nobody answers at a participant, and then lets one prepare at a time try.
//!
//! It decides when a prepare may leave and nothing else: it is never the reason that a call is answered, and commits
//! and aborts do not ask it.

use rand::Rng;
use tokio::time::Instant;

use super::Backoff;

#[derive(Debug)]
pub(super) struct Breaker {
    opens_after: u32,
    pace: Backoff,
    silent_in_a_row: u32,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    /// The prepare that is trying. Named, so that a straggler from before can not pass for it.
    probe: Option<u64>,
    probes: u32,
    next_probe: Instant,
}

impl Breaker {
    pub(super) fn new(opens_after: u32, pace: Backoff) -> Self {
        Self {
            opens_after,
            pace,
            silent_in_a_row: 0,
            open: None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn is_probing(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.probe.is_some())
    }

    pub(super) fn silent_in_a_row(&self) -> u32 {
        self.silent_in_a_row
    }

    /// Whether a prepare may leave now.
    pub(super) fn permits(&self, now: Instant) -> bool {
        match &self.open {
            None => true,
            Some(open) => open.probe.is_none() && open.next_probe <= now,
        }
    }

    /// When a prepare that waits here should be looked at again, if only time has to pass.
    pub(super) fn next_probe(&self) -> Option<Instant> {
        self.open
            .as_ref()
            .filter(|open| open.probe.is_none())
            .map(|open| open.next_probe)
    }

    /// A prepare leaves. Whether it is a probe.
    pub(super) fn prepare_leaves(&mut self, serial: u64) -> bool {
        match &mut self.open {
            None => false,
            Some(open) => {
                open.probe = Some(serial);
                open.probes += 1;
                true
            }
        }
    }

    /// A call was answered: somebody is there, and it is the participant. Whether this closed it.
    pub(super) fn answered(&mut self) -> bool {
        self.silent_in_a_row = 0;
        self.open.take().is_some()
    }

    /// Somebody said something that is no answer (the participant in trouble, or a proxy in front of a dead one), or was
    /// given hardly any time. It neither opens nor closes; a probe has ended, though.
    pub(super) fn proved_nothing(&mut self, serial: u64, now: Instant, rng: &mut impl Rng) {
        self.probe_ended(serial, now, rng);
    }

    /// Nothing came back from a call. Whether this opened it.
    pub(super) fn silent(&mut self, serial: u64, now: Instant, rng: &mut impl Rng) -> bool {
        self.silent_in_a_row = self.silent_in_a_row.saturating_add(1);
        self.probe_ended(serial, now, rng);
        if self.open.is_some() || self.silent_in_a_row < self.opens_after {
            return false;
        }
        self.open = Some(Open {
            probe: None,
            probes: 0,
            next_probe: now + self.pace.before(2, rng),
        });
        true
    }

    fn probe_ended(&mut self, serial: u64, now: Instant, rng: &mut impl Rng) {
        if let Some(open) = &mut self.open
            && open.probe == Some(serial)
        {
            open.probe = None;
            open.next_probe = now + self.pace.before(open.probes.saturating_add(2), rng);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rand::{SeedableRng as _, rngs::StdRng};

    use super::*;

    const PACE: Backoff = Backoff {
        first: Duration::from_millis(20),
        longest: Duration::from_secs(1),
    };

    fn opened(now: Instant, rng: &mut StdRng) -> Breaker {
        let mut breaker = Breaker::new(2, PACE);
        assert!(!breaker.silent(1, now, rng));
        assert!(breaker.permits(now));
        assert!(breaker.silent(2, now, rng));
        breaker
    }

    #[test]
    fn it_opens_after_silence_in_a_row_and_an_answer_between_starts_the_count_anew() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut breaker = Breaker::new(2, PACE);
        assert!(!breaker.silent(1, now, &mut rng));
        assert!(!breaker.answered(), "it was not open");
        assert!(!breaker.silent(2, now, &mut rng));
        breaker.proved_nothing(3, now, &mut rng);
        assert!(
            breaker.silent(4, now, &mut rng),
            "an error page is no answer"
        );
        assert!(breaker.is_open());
        assert!(breaker.answered());
        assert!(!breaker.is_open());
    }

    #[test]
    fn one_probe_at_a_time_and_only_its_own_end_makes_room_for_the_next() {
        let (now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut breaker = opened(now, &mut rng);
        assert!(!breaker.permits(now), "not before a first wait");
        let later = now + PACE.first;
        assert!(breaker.permits(later));
        assert!(breaker.prepare_leaves(7));
        let much_later = later + Duration::from_secs(60);
        assert!(!breaker.permits(much_later), "one at a time");
        breaker.silent(3, later, &mut rng);
        assert!(!breaker.permits(much_later), "a straggler is not the probe");
        breaker.silent(7, later, &mut rng);
        assert!(!breaker.permits(later) && breaker.permits(later + 2 * PACE.first));
    }

    #[test]
    fn probes_become_rarer_up_to_the_cap() {
        let (mut now, mut rng) = (Instant::now(), StdRng::seed_from_u64(1));
        let mut breaker = opened(now, &mut rng);
        let mut waits = Vec::new();
        for serial in 10..30 {
            let next = breaker.next_probe().unwrap();
            waits.push(next - now);
            now = next;
            breaker.prepare_leaves(serial);
            breaker.silent(serial, now, &mut rng);
        }
        assert!(waits[0] <= PACE.first);
        assert!(waits.iter().all(|wait| *wait <= PACE.longest));
        assert!(waits[10..].iter().all(|wait| *wait >= PACE.longest / 2));
    }
}
