//! The real coordinator, built here so that the tests always run the present one.

use std::process::ExitCode;

fn main() -> ExitCode {
    unanimous::cli::run()
}
