//! Where a test may make the process die, as if it were killed there: around every local transaction that is committed
//! and every call.
//!
//! A point does something only with the feature `failpoints`, which the system tests' own programs switch on, and only in
//! a build with debug assertions. `FAILPOINTS=yes-after=return` makes the process abort where the promise is durable and
//! nobody has been told. All points are listed in `tests/system/tests/crash/points.rs`.

use unanimous_protocol::branch::State;

use crate::crash;

/// Dies here, if a test said so.
#[cfg(all(feature = "failpoints", debug_assertions))]
pub(crate) fn point(name: &'static str) {
    fail::fail_point!(name, |_| std::process::abort());
}

#[cfg(not(all(feature = "failpoints", debug_assertions)))]
pub(crate) fn point(_: &'static str) {}

/// Whether a test wants a weakness of this name: to see that it is found.
#[cfg(all(feature = "failpoints", debug_assertions))]
pub(crate) fn is_weakened(name: &'static str) -> bool {
    fail::fail_point!(name, |_| true);
    false
}

#[cfg(not(all(feature = "failpoints", debug_assertions)))]
pub(crate) fn is_weakened(_: &'static str) -> bool {
    false
}

/// A branch's message is about to be committed, with this row; `None` where only what was seen is made durable.
pub(crate) fn before_commit(row: Option<&State>) {
    match row {
        Some(State::Prepared { .. }) => crash::point("yes-before"),
        Some(State::Committed { .. }) => crash::point("committed-before"),
        Some(_) => crash::point("aborted-before"),
        None => crash::point("repeat-before"),
    }
}

/// It is committed, and nobody has been told.
pub(crate) fn after_commit(row: Option<&State>) {
    match row {
        Some(State::Prepared { .. }) => crash::point("yes-after"),
        Some(State::Committed { .. }) => crash::point("committed-after"),
        Some(_) => crash::point("aborted-after"),
        None => crash::point("repeat-after"),
    }
}
