//! The commands, one file each.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod demo;
pub(crate) mod power;
pub(crate) mod recovery;
pub(crate) mod with_clusters;
