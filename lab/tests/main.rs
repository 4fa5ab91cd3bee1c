//! The lab itself: what other tests rest on is tested with real processes and real servers.

mod audit;
mod check;
mod clusters;
mod gate;
mod processes;
mod with_clusters;
