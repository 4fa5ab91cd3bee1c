//! The bank's program; see the library.

/// Faster than the system's where many threads make and drop small things.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    unanimous_bank::run()
}
