//! Under construction.

pub mod branch;
pub mod coordinator;
pub mod id;
pub mod keys;
pub mod message;
pub mod operations;
pub mod record;
pub mod tally;
pub mod wire;
