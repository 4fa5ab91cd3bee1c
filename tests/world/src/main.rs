//! Runs worlds from the command line: `--seed N` one with its full event log, `--from N --count M` many without.

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (mut seed, mut from, mut count) = (None, 0, 1_000);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<u64>().ok());
        match (name.as_str(), value) {
            ("--seed", Some(value)) => seed = Some(value),
            ("--from", Some(value)) => from = value,
            ("--count", Some(value)) => count = value,
            _ => {
                writeln!(std::io::stderr(), "usage: [--seed N | --from N --count M]")?;
                std::process::exit(2);
            }
        }
    }
    let mut out = std::io::stdout().lock();
    if let Some(seed) = seed {
        let (result, events) = unanimous_world::replay(seed);
        for line in events {
            writeln!(out, "{line}")?;
        }
        return match result {
            Ok(counters) => writeln!(out, "seed {seed} holds: {counters}"),
            Err(failure) => {
                writeln!(out, "seed {seed} FAILS: {}", failure.what)?;
                std::process::exit(1);
            }
        };
    }
    let mut counters = unanimous_world::Counters::default();
    for seed in from..from + count {
        match unanimous_world::run(seed) {
            Ok(more) => counters.merge(&more),
            Err(failure) => {
                writeln!(out, "seed {seed} FAILS: {}", failure.what)?;
                writeln!(
                    out,
                    "replay it: cargo run -p unanimous-world -- --seed {seed}"
                )?;
                std::process::exit(1);
            }
        }
    }
    writeln!(out, "seeds {from} to {}: {counters}", from + count - 1)
}
