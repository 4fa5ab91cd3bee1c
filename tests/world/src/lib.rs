//! The real protocol machines over a simulated clock, network and disks.
//!
//! One seed fixes everything: who asks what and when, what is lost, repeated, delayed and reordered, who crashes and
//! between which two effects, what a disk loses with them. There is no second model of the protocol here; the shells
//! in `coordinator` and `participant` carry out what the machines say, over a decision log (`log`) and disks
//! (`disk`) that keep no more than they have promised. `checker` watches.
//!
//! What no world has yet: heuristic decisions.
//! `model` searches small worlds exhaustively, with shells of its own over the same machines.
//! `docs/PROOF.md` says what is checked, and what is not.
//!
//! `cargo run -p unanimous-world -- --seed N` prints the event log of one world.

mod checker;
mod client;
mod coordinator;
mod director;
mod disk;
mod log;
pub mod model;
mod participant;
mod rng;
pub mod script;
mod surroundings;
mod words;
mod world;

pub use surroundings::{Batching, Counters};
pub use world::{Failure, Maxima, Size, replay, run, run_long};
