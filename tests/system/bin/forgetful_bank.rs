//! A bank that forgets one credit.

use std::process::ExitCode;

mod wrong_once;

use wrong_once::WrongOnce;

fn main() -> ExitCode {
    unanimous_bank::run_with(WrongOnce { times: 0 })
}
