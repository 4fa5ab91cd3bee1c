//! The participant on a real Postgres, by the routes that a coordinator uses. `UNANIMOUS_TEST_POSTGRES_1` is the URL of
//! a superuser on a private cluster; every test takes a database of its own there.

#![allow(
    clippy::unwrap_used,
    reason = "a test that can not go on says so by panicking"
)]
#![allow(clippy::print_stdout, reason = "what is measured is printed")]

mod batch;
mod durability;
mod inquiry;
mod interactive;
mod keys;
mod lane;
mod low_water;
mod service;
mod slots;
mod table;
mod testing;
mod wire;
