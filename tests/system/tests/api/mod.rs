//! The coordinator's API, sentence by sentence.

mod begin;
mod enlist;
mod keys;
mod list;
mod low_water;
mod metrics;
mod outcome;
mod participants;
mod raw;
mod requests;
mod retention;
mod settle;
