//! Runs worlds and scripts from the command line.
//!
//! - `--seed N`: one world with its full event log.
//! - `--from N --count M`: many without, until one fails.
//! - `--hours H` (or `--minutes M`) `--from N`: as many as there is time for, on all cores; failures are counted.
//! - `--transactions N` `--from SEED`: one world that goes on for so many, with bounded storage.
//! - `--scripts DIRECTORY`: the golden scripts.
//!
//! `--threads N` takes so many cores instead of all. `--small` runs worlds of 10 to 40 clients instead of 200 transactions and more.
//! Whether participants batch is drawn from the seed; with `--alone` none does, with `--together` all do.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use unanimous_world::{Batching, Counters, Failure, Size, replay, run, run_long, script::play_all};

/// What counts as a crash, for the figures of a long run.
const CRASHES: [&str; 4] = [
    "coordinator crashes",
    "participant crashes",
    "participant process crashes",
    "log crashes",
];

#[derive(Debug)]
struct Wanted {
    seed: Option<u64>,
    from: u64,
    count: u64,
    minutes: Option<u64>,
    size: Size,
    batching: Batching,
    scripts: Option<String>,
    transactions: Option<u64>,
    threads: Option<usize>,
}

fn main() -> std::io::Result<ExitCode> {
    let Some(wanted) = parse(std::env::args().skip(1)) else {
        writeln!(
            std::io::stderr(),
            "usage: [--small] [--alone | --together] [--seed N | --from N --count M | --hours H | --minutes M | --transactions N | --scripts DIRECTORY]"
        )?;
        return Ok(ExitCode::from(2));
    };
    let mut out = std::io::stdout().lock();
    if let Some(directory) = &wanted.scripts {
        return scripts(directory.as_ref(), &mut out);
    }
    if let Some(seed) = wanted.seed {
        let (result, events) = replay(seed, wanted.size, wanted.batching);
        for line in events {
            writeln!(out, "{line}")?;
        }
        return match result {
            Ok(counters) => {
                writeln!(out, "seed {seed} holds: {counters}")?;
                Ok(ExitCode::SUCCESS)
            }
            Err(failure) => failed(&failure, &wanted, &mut out),
        };
    }
    if let Some(transactions) = wanted.transactions {
        return match run_long(wanted.from, transactions) {
            Ok((counters, maxima)) => {
                writeln!(out, "{counters}")?;
                writeln!(
                    out,
                    "{} transactions in one world: {maxima}",
                    counters.get("transactions")
                )?;
                Ok(ExitCode::SUCCESS)
            }
            Err(failure) => {
                writeln!(
                    out,
                    "seed {} FAILS after {} events: {}",
                    failure.seed, failure.events, failure.what
                )?;
                Ok(ExitCode::FAILURE)
            }
        };
    }
    let (counters, failures) = many(&wanted);
    let crashes: u64 = CRASHES.iter().map(|name| counters.get(name)).sum();
    writeln!(out, "{counters}")?;
    writeln!(
        out,
        "{} worlds, {} transactions, {crashes} crashes, {} violations",
        counters.get("worlds") + failures.len() as u64,
        counters.get("transactions"),
        failures.len()
    )?;
    match failures.iter().min_by_key(|failure| failure.seed) {
        None => Ok(ExitCode::SUCCESS),
        Some(first) => failed(first, &wanted, &mut out),
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Wanted> {
    let mut wanted = Wanted {
        seed: None,
        from: 0,
        count: 1_000,
        minutes: None,
        size: Size::Large,
        batching: Batching::Drawn,
        scripts: None,
        transactions: None,
        threads: None,
    };
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--small" => wanted.size = Size::Small,
            "--alone" => wanted.batching = Batching::Off,
            "--together" => wanted.batching = Batching::On,
            _ => {}
        }
        if ["--small", "--alone", "--together"].contains(&name.as_str()) {
            continue;
        }
        let value = arguments.next()?;
        if name == "--scripts" {
            wanted.scripts = Some(value);
            continue;
        }
        let number: u64 = value.parse().ok()?;
        match name.as_str() {
            "--threads" => wanted.threads = usize::try_from(number).ok(),
            "--transactions" => wanted.transactions = Some(number),
            "--seed" => wanted.seed = Some(number),
            "--from" => wanted.from = number,
            "--count" => wanted.count = number,
            "--hours" => wanted.minutes = Some(number * 60),
            "--minutes" => wanted.minutes = Some(number),
            _ => return None,
        }
    }
    Some(wanted)
}

fn failed(
    failure: &Failure,
    wanted: &Wanted,
    out: &mut impl std::io::Write,
) -> std::io::Result<ExitCode> {
    let Failure { seed, what, events } = failure;
    writeln!(out, "seed {seed} FAILS after {events} events: {what}")?;
    let small = match wanted.size {
        Size::Small => " --small",
        Size::Large => "",
    };
    let batching = match wanted.batching {
        Batching::Drawn => "",
        Batching::Off => " --alone",
        Batching::On => " --together",
    };
    writeln!(
        out,
        "replay it: cargo run -p unanimous-world --bin unanimous-world --{small}{batching} --seed {seed}"
    )?;
    Ok(ExitCode::FAILURE)
}

/// Runs worlds on all cores: until one fails, or, with a time limit, until that is over.
fn many(wanted: &Wanted) -> (Counters, Vec<Failure>) {
    let next = AtomicU64::new(wanted.from);
    let over = AtomicBool::new(false);
    let found = Mutex::new((Counters::default(), Vec::new()));
    let all = || thread::available_parallelism().map_or(1, usize::from);
    let threads = wanted.threads.unwrap_or_else(all);
    thread::scope(|scope| {
        if let Some(minutes) = wanted.minutes {
            let (over, found) = (&over, &found);
            scope.spawn(move || {
                for minute in 1..=minutes {
                    thread::sleep(Duration::from_secs(60));
                    progress(minute, found);
                }
                over.store(true, Ordering::Relaxed);
            });
        }
        for _ in 0..threads {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if wanted.minutes.is_none() && seed >= wanted.from + wanted.count {
                        return;
                    }
                    let result = run(seed, wanted.size, wanted.batching);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    match result {
                        Ok(counters) => found.0.merge(&counters),
                        Err(failure) => {
                            found.1.push(*failure);
                            if wanted.minutes.is_none() {
                                over.store(true, Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// One line each minute of a long run; where it can not be written, the figures at the end are.
fn progress(minute: u64, found: &Mutex<(Counters, Vec<Failure>)>) {
    let found = found.lock().unwrap_or_else(PoisonError::into_inner);
    let mut line = format!(
        "{minute} min: {} worlds, {} transactions, {} violations",
        found.0.get("worlds"),
        found.0.get("transactions"),
        found.1.len()
    );
    if let Some(first) = found.1.iter().min_by_key(|failure| failure.seed) {
        write!(line, ", the first in seed {}", first.seed).ok();
    }
    writeln!(std::io::stderr(), "{line}").ok();
}

fn scripts(
    directory: &std::path::Path,
    out: &mut impl std::io::Write,
) -> std::io::Result<ExitCode> {
    let played = play_all(directory)?;
    let mut wrong = 0;
    for script in &played {
        if let Some(difference) = script.difference() {
            wrong += 1;
            writeln!(out, "script {} DIFFERS {difference}", script.name)?;
        }
    }
    writeln!(
        out,
        "{} scripts, {wrong} play otherwise than recorded",
        played.len()
    )?;
    Ok(if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
