//! `unanimous`: see the library for what it does.

use std::process::ExitCode;

/// Many small things are made and dropped for each transaction, on several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    unanimous::cli::run()
}
