//! Actors: the shells around the protocol's machines. The only files that name the actor crate.
//!
//! An actor takes an event in, lets the machine `step`, carries the effects out, and gets each completion back as an
//! event. What follows from what is decided in `protocol`, never here: a test reads these files and fails when one of
//! them names a vote, a tally or a state.
//!
//! | actor | holds |
//! |---|---|
//! | [`registry::Registry`] | one life: issues ids, finds transactions, looks keys up, judges ids that are not in memory |
//! | [`transaction::TransactionActor`] | one live global transaction, and who waits for it |
//! | [`log_writer::LogWriter`] | the decisions that wait for the next durable write |
//!
//! Facts of actix 0.13 that the code rests on: futures returned by a handler interleave with other messages, so no
//! rule lives across an `.await`; `do_send` ignores the mailbox bound, so bounds are kept by the registry, which counts;
//! a panic ends an actor for good while the process lives on, so the process's panic hook aborts; a supervised actor
//! restarts with its old fields, so nothing is supervised: a coordinator is rebuilt from its log, never from memory.
//!
//! All of them live on one thread: a message between them is a push into a queue. It is one of their own, apart from the
//! HTTP workers, where there are cores for both; on a small machine they live where the only worker serves, and nothing is
//! handed from thread to thread. `Addr`s are the only way in.

pub mod log_writer;
pub mod recovery;
pub mod registry;
pub mod transaction;

use std::time::{SystemTime, UNIX_EPOCH};

use actix::{Actor as _, Arbiter, System};
use unanimous_protocol::record::WallMillis;

use self::registry::Registry;

/// How an actor is reached.
pub type Address<A> = actix::Addr<A>;

/// A thread of their own for all actors. It ends with the process.
pub struct Engine {
    thread: Arbiter,
}

impl Engine {
    /// Starts it, with nobody on it.
    #[must_use]
    pub fn start() -> Self {
        Self {
            thread: Arbiter::new(),
        }
    }

    /// Puts the registry on it.
    #[must_use]
    pub fn host(&self, registry: Registry) -> Address<Registry> {
        Registry::start_in_arbiter(&self.thread.handle(), |_| registry)
    }
}

/// Puts the registry on this thread: an HTTP worker's.
#[must_use]
pub fn host_here(registry: Registry) -> Address<Registry> {
    registry.start()
}

/// Runs what may start actors or servers to its end, with which the process ends. Nothing is taken down piece by piece: a
/// server that still runs would answer for actors that are gone already, and a fenced coordinator says nothing more.
pub fn run<T>(program: impl Future<Output = T>) -> T {
    let system = System::new();
    let ended = system.block_on(program);
    std::mem::forget(system);
    ended
}

/// Ends the process: after a failed flush nothing that this one reads of the log may be believed (design rule 10).
fn broken(cause: &(dyn std::error::Error + 'static)) -> ! {
    crate::telemetry::end_at_once(&format!(
        "the decision log can not be trusted any more ({cause}): the process ends, and its next life reads the log anew"
    ))
}

/// The wall clock: for people, fairness and retention (design rule 13).
pub(crate) fn wall_clock() -> WallMillis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    WallMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
