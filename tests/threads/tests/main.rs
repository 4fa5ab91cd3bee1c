//! Where threads meet in the coordinator, under many schedules.
//!
//! The files under test are the coordinator's own, compiled here once more: the couriers with all that they need, and the
//! log writer's batches. Only `courier/threads.rs` is another one: its locks, tasks and clock belong to shuttle, which runs
//! one thread at a time and chooses at each lock, each message and each `await` who goes on. Time passes when it lets
//! somebody sleep to his end, so any two things may happen in either order. A schedule that fails is printed, and
//! `shuttle::replay` runs it again.
//!
//! What is left out: memory orderings (nothing here is lock-free), tokio's and actix' own insides.

#![allow(dead_code, reason = "the coordinator uses what is not used here")]
#![allow(unreachable_pub, reason = "in the coordinator these are reached")]
#![allow(
    clippy::unwrap_used,
    reason = "a test that can not go on says so by panicking"
)]

mod actors;
mod courier;

use shuttle::scheduler::{PctScheduler, RandomScheduler};

/// No process dies here.
mod crash {
    use unanimous_protocol::message::RequestKind;

    pub fn before_call(_: RequestKind) {}
    pub fn after_call(_: RequestKind) {}
}

/// Nothing is counted here.
mod metrics {
    pub mod calls {
        use std::time::Duration;

        use unanimous_protocol::{
            id::ParticipantName,
            message::{Delivery, Reply, RequestKind},
        };

        #[derive(Clone)]
        pub struct Calls;
        pub struct CallsTo;

        impl Calls {
            pub fn to(&self, _: &ParticipantName) -> CallsTo {
                CallsTo
            }
        }

        impl CallsTo {
            pub fn ended(&self, _: RequestKind, _: &Delivery<Reply>, _: Duration) {}
        }
    }
}

#[path = "../../../coordinator/src/log/batch.rs"]
mod log;

/// How many schedules each test tries with each way of choosing; the seed is printed when one fails.
const SCHEDULES: usize = 5_000;
/// Changes of priority in a schedule: a mistake that needs so many orderings to go wrong is found with a known probability
/// (Burckhardt and others 2010, "A randomized scheduler with probabilistic guarantees of finding bugs").
const PRIORITY_CHANGES: usize = 3;

/// Tries them: by chance at every step, which mixes all threads, and by priorities, which starves some of them for long.
fn explore(test: fn()) {
    let by_chance = RandomScheduler::new(SCHEDULES);
    shuttle::Runner::new(by_chance, shuttle::Config::new()).run(test);
    let by_priority = PctScheduler::new(PRIORITY_CHANGES, SCHEDULES);
    shuttle::Runner::new(by_priority, shuttle::Config::new()).run(test);
}
