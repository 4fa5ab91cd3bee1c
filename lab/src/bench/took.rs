//! How long things took.

use std::time::Duration;

/// In rising order.
#[derive(Debug, Default)]
pub(crate) struct Took(Vec<Duration>);

impl Took {
    pub(crate) fn new(mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        Self(took)
    }

    /// The time within which so many of a hundred were done, in milliseconds: 50 is the median. Zero where none was.
    pub(crate) fn ms(&self, of_hundred: usize) -> f64 {
        let place = (self.0.len() * of_hundred).div_ceil(100);
        let found = self.0.get(place.saturating_sub(1)).copied();
        found.unwrap_or_default().as_secs_f64() * 1e3
    }
}

/// The middle one, or what lies between the two of them. Zero of nothing.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let of = |place: usize| values.get(place).copied().unwrap_or_default();
    f64::midpoint(of(values.len().saturating_sub(1) / 2), of(values.len() / 2))
}
