//! # Unanimous, the coordinator
//!
//! Commits a change in several services together, or in none of them: an HTTP API, actors as shells around the pure
//! machines of `unanimous-protocol`, a decision log, and couriers that carry calls to participants.
//!
//! ```text
//! http ──> actors ──> protocol
//!             ├────> log (trait DecisionLog)
//!             └────> courier
//! ```
//!
//! | what | where |
//! |---|---|
//! | one live transaction: an event in, a step of the machine, its effects carried out | [`actors::transaction`] |
//! | which transactions there are, and who may answer for an id | [`actors::registry`] |
//! | the decisions that wait, in one durable write | [`actors::log_writer`] |
//! | what durable means, as a contract that every log keeps | [`log`] |
//! | calls to participants: slots, pauses, a breaker that only holds prepares back | [`courier`] |
//! | requests read and answers written; nothing is decided here | [`http`] |
//! | what Prometheus reads | [`metrics`] |
//! | where all of it is joined | [`app`] |
//!
//! An actor carries out what the machine says, in its order, and brings each completion back as an event: *logged before told*
//! is then a property of a state that has no way to tell. A walk through a commit and a crash is in `docs/ARCHITECTURE.md`.
//!
//! This library exists for the binary `unanimous` and for the tests that build it under their own roof. The contract is
//! the HTTP API, not these types.

pub mod actors;
pub mod app;
pub mod cli;
pub mod config;
pub mod courier;
mod crash;
pub mod http;
pub mod log;
pub mod metrics;
pub mod telemetry;
