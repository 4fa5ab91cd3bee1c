//! The example's bank, built here so that the tests always run the present one.

use std::process::ExitCode;

fn main() -> ExitCode {
    unanimous_bank::run()
}
