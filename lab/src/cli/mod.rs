//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod demo;
mod file;
pub(crate) mod growth;
mod interruptions;
mod log;
pub(crate) mod power;
mod programs;
pub(crate) mod recovery;
pub(crate) mod with_clusters;
