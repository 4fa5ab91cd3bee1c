//! The example's bank, built here so that the tests always run the present one.

use std::process::ExitCode;

fn main() -> ExitCode {
    // `FAILPOINTS` says where it is to die.
    let _armed = fail::FailScenario::setup();
    unanimous_bank::run()
}
