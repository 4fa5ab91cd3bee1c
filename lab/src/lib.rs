//! Everything that tests, the demo and the benchmark need around Unanimous: private Postgres
//! clusters, our programs as child processes, and the faults that are done to both.
//!
//! The lab starts real processes and talks to them from outside; nothing depends on it. It needs
//! Linux (`/proc`, and `setpriv` of util-linux), because only there can a child be made to die with
//! its parent whatever kills the parent.
//!
//! Errors here are [`anyhow::Error`]: nobody can repair a server that does not start in the middle
//! of a test, so they are written for the person who reads the failure, with the end of the output.

pub mod at_size;
pub mod audit;
pub mod check;
pub mod demo;
pub mod disk;
pub mod fault;
pub mod gate;
pub mod lean;
pub mod load;
pub mod ports;
pub mod postgres;
pub mod power;
pub mod process;
pub mod recovery;
pub mod scratch;
pub mod server;
mod stand;
pub mod testing;
pub mod town;
pub mod transfer;
pub mod wait;

mod spawn;
mod tree;
mod vault;

pub use fault::{Fault, Victim};
pub use gate::Gate;
pub use load::{Load, Transfers};
pub use postgres::{Cluster, Options, Stop, Template};
pub use process::{Process, Program};
pub use spawn::{DeathSignal, command_that_dies_with_us, spawn};
pub use town::Town;
pub use transfer::Transfer;
pub use tree::{is_alive, kill_all_descendants};
