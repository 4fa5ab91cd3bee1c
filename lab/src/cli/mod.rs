//! The commands, one file each.

pub(crate) mod check;
pub(crate) mod demo;
pub(crate) mod with_clusters;
