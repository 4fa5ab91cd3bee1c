//! The bank's program; see the library.
fn main() -> std::process::ExitCode {
    unanimous_bank::run()
}
