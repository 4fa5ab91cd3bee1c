//! Where a test may make the process die, as if it were killed there: around every write to the log and every call.
//!
//! A point does something only with the feature `failpoints`, which the system tests' own programs switch on, and only in
//! a build with debug assertions: no released program has any. `FAILPOINTS=decision-after=return` makes the process abort
//! where the decision is durable and nobody has been told. All points are listed in `tests/system/tests/crash/points.rs`.

use unanimous_protocol::message::RequestKind;

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

/// A call is about to leave.
pub(crate) fn before_call(kind: RequestKind) {
    match kind {
        RequestKind::Prepare => crash::point("prepare-before"),
        RequestKind::Commit => crash::point("commit-before"),
        RequestKind::Abort => crash::point("abort-before"),
    }
}

/// A call was answered, or not, and nothing has come of it yet.
pub(crate) fn after_call(kind: RequestKind) {
    match kind {
        RequestKind::Prepare => crash::point("prepare-after"),
        RequestKind::Commit => crash::point("commit-after"),
        RequestKind::Abort => crash::point("abort-after"),
    }
}
