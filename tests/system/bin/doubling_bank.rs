//! A bank that applies one credit twice.

use std::process::ExitCode;

mod wrong_once;

use wrong_once::WrongOnce;

fn main() -> ExitCode {
    unanimous_bank::run_with(WrongOnce { times: 2 })
}
