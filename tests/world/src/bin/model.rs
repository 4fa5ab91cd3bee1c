//! Searches exhaustively: `model [--large] [--compare] [--breadth-first] [--threads N] [NAME…]`.

use std::{
    io::{self, Write as _},
    num::NonZero,
    process::ExitCode,
    thread::available_parallelism,
};

use unanimous_world::model::{Configuration, LARGE, OPEN, Order, Report, SMALL, compare, search};

/// A line about a search that is under way comes after so many states more.
const LINE_EVERY: usize = 1_000_000;

struct Wanted {
    large: bool,
    compares: bool,
    order: Order,
    threads: usize,
    names: Vec<String>,
}

fn main() -> io::Result<ExitCode> {
    let Some(wanted) = parse(std::env::args().skip(1)) else {
        let usage = "usage: [--large] [--compare] [--breadth-first] [--threads N] [NAME...]";
        writeln!(io::stderr(), "{usage}")?;
        return Ok(ExitCode::from(2));
    };
    let mut out = io::stdout().lock();
    let large = if wanted.large { LARGE } else { &[] };
    // A run of all of them is to end.
    let open = if wanted.large && !wanted.names.is_empty() {
        OPEN
    } else {
        &[]
    };
    let all = || SMALL.iter().chain(large).chain(open);
    let chosen = all().filter(|configuration| {
        let named = |name: &String| {
            // A whole name is that one, a part of names all that have it.
            let is_whole = all().any(|other| other.name == name.as_str());
            configuration.name == name.as_str()
                || !is_whole && configuration.name.contains(name.as_str())
        };
        wanted.names.is_empty() || wanted.names.iter().any(named)
    });
    let mut states = 0;
    let mut seen_through = 0;
    for configuration in chosen {
        let report = run(configuration, &wanted)?;
        writeln!(
            out,
            "{}: {} distinct states, {} steps, {} deep, {:.1} s",
            configuration.name,
            report.states,
            report.steps,
            report.depth,
            report.took.as_secs_f64()
        )?;
        if let Some(failure) = report.failure {
            for (number, step) in failure.steps.iter().enumerate() {
                writeln!(out, "  {:3} {step}", number + 1)?;
            }
            let (property, what) = (failure.property, failure.what);
            writeln!(out, "{} FAILS {property}: {what}", configuration.name)?;
            return Ok(ExitCode::FAILURE);
        }
        states += report.states;
        seen_through += 1;
    }
    writeln!(
        out,
        "{seen_through} searches ran dry, {states} distinct states"
    )?;
    Ok(ExitCode::SUCCESS)
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Wanted> {
    let mut wanted = Wanted {
        large: false,
        compares: false,
        order: Order::DepthFirst,
        threads: available_parallelism().map_or(1, NonZero::get),
        names: Vec::new(),
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--large" => wanted.large = true,
            "--compare" => wanted.compares = true,
            "--breadth-first" => wanted.order = Order::BreadthFirst,
            "--threads" => wanted.threads = arguments.next()?.parse().ok()?,
            option if option.starts_with('-') => return None,
            name => wanted.names.push(name.to_owned()),
        }
    }
    Some(wanted)
}

fn run(configuration: &Configuration, wanted: &Wanted) -> io::Result<Report> {
    let mut told = 0;
    let mut failed = Ok(());
    let so_far = |states| {
        if states >= told + LINE_EVERY {
            told = states;
            failed = writeln!(io::stderr(), "{}: {states} so far", configuration.name);
        }
    };
    let report = if wanted.compares {
        compare(configuration, wanted.threads, wanted.order, so_far)
    } else {
        search(configuration, wanted.threads, wanted.order, so_far)
    };
    failed.map(|()| report)
}
