//! When not to try the short way: it costs something where it turns out to be none.

/// As few as go round at once.
const FIRST: u32 = 64;
/// As many, at most: of a service that never fits, so few are tried.
const MOST: u32 = 4_096;

/// Counts what fitted and what did not. After a misfit the next ones go round, and more of them each time that the one
/// which is then tried does not fit either; whatever fits shortens that again.
#[derive(Debug)]
pub(crate) struct Detour {
    left: u32,
    next: u32,
    fitted: u32,
}

impl Default for Detour {
    fn default() -> Self {
        Self {
            left: 0,
            next: FIRST,
            fitted: 0,
        }
    }
}

impl Detour {
    /// Whether the next one goes round.
    pub(crate) fn takes(&mut self) -> bool {
        let round = self.left > 0;
        self.left = self.left.saturating_sub(1);
        round
    }

    /// Some did not fit.
    pub(crate) fn misfit(&mut self) {
        self.left = self.next;
        self.next = (2 * self.next).min(MOST);
        self.fitted = 0;
    }

    /// So many fitted.
    pub(crate) fn fits(&mut self, count: u32) {
        self.fitted = self.fitted.saturating_add(count);
        if self.fitted >= self.next {
            self.fitted = 0;
            self.next = (self.next / 2).max(FIRST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(detour: &mut Detour) -> u32 {
        (0..).take_while(|_| detour.takes()).count() as u32
    }

    #[test]
    fn nothing_goes_round_before_something_did_not_fit() {
        assert_eq!(taken(&mut Detour::default()), 0);
    }

    #[test]
    fn each_misfit_in_a_row_sends_more_of_them_round_up_to_a_bound() {
        let mut detour = Detour::default();
        let mut seen = Vec::new();
        for _ in 0..9 {
            detour.misfit();
            seen.push(taken(&mut detour));
        }
        assert_eq!(seen, [64, 128, 256, 512, 1_024, 2_048, 4_096, 4_096, 4_096]);
    }

    #[test]
    fn what_fits_makes_the_next_detour_short_again() {
        let mut detour = Detour::default();
        for _ in 0..3 {
            detour.misfit();
        }
        taken(&mut detour);
        detour.fits(511);
        detour.misfit();
        assert_eq!(taken(&mut detour), 512);
        for _ in 0..10 {
            detour.fits(4_096);
        }
        detour.misfit();
        assert_eq!(taken(&mut detour), 64);
    }
}
