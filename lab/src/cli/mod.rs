//! The commands, one file each.

pub(crate) mod with_clusters;
