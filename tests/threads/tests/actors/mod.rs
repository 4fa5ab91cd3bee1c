//! The log writer's batches.

#[path = "../../../../coordinator/src/actors/log_writer/batches.rs"]
mod batches;
mod tests;
