//! Under construction.

pub mod courier;
