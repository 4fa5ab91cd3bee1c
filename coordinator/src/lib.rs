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
