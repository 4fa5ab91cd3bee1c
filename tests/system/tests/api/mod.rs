//! The coordinator's API, sentence by sentence.

mod begin;
mod enlist;
mod keys;
mod outcome;
mod requests;
mod retention;
mod settle;
