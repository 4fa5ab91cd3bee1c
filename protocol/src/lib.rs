//! Under construction.

pub mod id;
pub mod message;
pub mod operations;
pub mod record;
