//! Searches exhaustively.

use std::io::Write as _;

use unanimous_world::model::{LARGE, SMALL, search};

fn main() -> std::io::Result<std::process::ExitCode> {
    let mut out = std::io::stdout().lock();
    let names: Vec<String> = std::env::args().skip(1).collect();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut failed = false;
    for configuration in SMALL.iter().chain(LARGE) {
        if !names.is_empty() && !names.iter().any(|name| configuration.name.contains(name)) {
            continue;
        }
        let bfs = std::env::var("BFS").is_ok();
        let report = search(configuration, threads, bfs);
        writeln!(
            out,
            "{}: {} states, {} steps, depth {}, {:?}",
            configuration.name, report.states, report.steps, report.depth, report.took
        )?;
        if let Some(failure) = report.failure {
            failed = true;
            writeln!(out, "FAILS {}: {}", failure.property, failure.what)?;
            for step in failure.steps {
                writeln!(out, "  {step}")?;
            }
        }
    }
    Ok(if failed {
        std::process::ExitCode::FAILURE
    } else {
        std::process::ExitCode::SUCCESS
    })
}
