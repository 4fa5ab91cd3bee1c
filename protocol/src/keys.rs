//! Who waits for a key that another branch holds, and for how long.
//!
//! A key is held exclusively from a branch's prepare until its outcome. Wound-wait and wait-die (Rosenkrantz, Stearns,
//! Lewis 1978) order transactions by age so that no cycle of waiters lasts; here nobody is wounded, and both sides give
//! up in bounded time: the younger soon and for good, the older later and to be asked again. Every cycle has a younger
//! waiter, so it ends. The clock in the age only makes it fair (design rule 13).

use crate::id::TransactionId;

/// A transaction's age: when it began by its coordinator's wall clock, then its id. Smaller is older.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age {
    /// `begun_at_ms` of the prepare.
    pub begun_at_ms: i64,
    /// The transaction.
    pub transaction: TransactionId,
}

/// What a branch that finds a key held does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyWait {
    /// Longest wait, over all of the prepare's attempts to take its keys, in milliseconds.
    pub at_most_ms: u64,
    /// What to answer after it.
    pub then: GiveUp,
}

/// How a prepare ends that waited for a key in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// Vote no, code `conflict`: the transaction aborts.
    Conflict,
    /// 503 `key-busy`: unknown, asked again, so that no waiting prepare keeps its slot.
    Busy,
}

/// At most so many prepares wait for one key; one more gives up at once, in the way its age says.
pub const WAITERS_MAX: usize = 16;

/// The younger waits at most 100 ms and is then refused; the older at most 1 s and is then asked again.
#[must_use]
pub fn wait(mine: Age, holder: Age) -> KeyWait {
    if mine > holder {
        KeyWait {
            at_most_ms: 100,
            then: GiveUp::Conflict,
        }
    } else {
        KeyWait {
            at_most_ms: 1_000,
            then: GiveUp::Busy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_that_hold_each_others_key_exactly_one_is_refused() {
        let id = |text: &str| text.parse::<TransactionId>().unwrap();
        let older = id("00000001-0001-8000-8000-100000000001");
        let younger = id("00000001-0001-8000-8000-100000000002");
        for (a_begun, b_begun) in [(1, 2), (2, 1), (5, 5)] {
            let a = Age {
                begun_at_ms: a_begun,
                transaction: older,
            };
            let b = Age {
                begun_at_ms: b_begun,
                transaction: younger,
            };
            let refused = [wait(a, b), wait(b, a)]
                .iter()
                .filter(|w| w.then == GiveUp::Conflict)
                .count();
            assert_eq!(refused, 1, "{a:?} {b:?}");
        }
    }
}
