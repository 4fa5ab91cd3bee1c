//! Randomness from a seed: splitmix64 (Steele, Lea, Flood 2014). Its numbers may not change between versions of a
//! library, for a failed seed is kept.

/// A stream of numbers that its seed fixes; or, for scripts, no chance at all.
#[derive(Clone, Debug)]
pub(crate) enum Rng {
    Seeded(u64),
    /// Always the least, the first, and the likelier.
    Steady,
}

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self::Seeded(seed)
    }

    /// A stream beside this one, of which it takes nothing.
    pub(crate) fn another(&self) -> Self {
        match self {
            Self::Seeded(state) => Self::Seeded(state.rotate_left(32) ^ 0x5851_f42d_4c95_7f2d),
            Self::Steady => Self::Steady,
        }
    }

    pub(crate) fn next(&mut self) -> u64 {
        let Self::Seeded(state) = self else {
            return 0;
        };
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, not including, `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Both ends included.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// So many times in ten thousand.
    pub(crate) fn chance(&mut self, in_ten_thousand: u64) -> bool {
        match self {
            Self::Seeded(_) => in_ten_thousand > 0 && self.below(10_000) < in_ten_thousand,
            Self::Steady => in_ten_thousand > 5_000,
        }
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() {
            return None;
        }
        let at = self.below(from.len() as u64) as usize;
        from.get(at)
    }
}
