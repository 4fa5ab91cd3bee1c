//! What was measured, for people.

use std::io::{self, Write};

use super::{History, InFlight, Report};

/// Prints all of it.
pub fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    in_flight(report, out)?;
    histories(report, out)
}

fn in_flight(report: &Report, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{:>12}{:>30}{:>12}{:>22}{:>22}{:>10}",
        "", "coordinator's memory, MiB", "bytes", "quiet, ms", "fresh, ms", "settled"
    )?;
    writeln!(
        out,
        "{:>12}{:>10}{:>10}{:>10}{:>12}{:>11}{:>11}{:>11}{:>11}{:>10}",
        "in flight", "before", "during", "peak", "for each", "p50", "p99", "p50", "p99", "after s"
    )?;
    for measured in &report.in_flight {
        let InFlight {
            transactions,
            memory_before,
            memory_during,
            memory_peak,
            ..
        } = measured;
        let mebi = |bytes: &f64| bytes / 1024.0 / 1024.0;
        writeln!(
            out,
            "{transactions:>12}{:>10.1}{:>10.1}{:>10.1}{:>12.0}{:>11.2}{:>11.2}{:>11.2}{:>11.2}{:>10.1}",
            mebi(memory_before),
            mebi(memory_during),
            mebi(memory_peak),
            measured.bytes_each,
            measured.quiet_p50_ms,
            measured.quiet_p99_ms,
            measured.fresh_p50_ms,
            measured.fresh_p99_ms,
            measured.settled_s,
        )?;
    }
    writeln!(
        out,
        "quiet, fresh: a transfer between participants that answer at once, with none and with so many in flight at late \
         ones; settled: from their answers until all was applied"
    )?;
    if let Some(most) = report.most_in_flight() {
        writeln!(
            out,
            "memory per transaction in flight, with {} of them: {:.0} bytes, wanted <= {:.0}  {}",
            most.transactions,
            most.bytes_each,
            report.bytes_max,
            if most.bytes_each <= report.bytes_max {
                "reached"
            } else {
                "NOT REACHED"
            }
        )?;
    }
    Ok(())
}

fn histories(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let Some(first) = report.histories.first() else {
        return Ok(());
    };
    let records = report.histories.iter();
    let records: String = { records }
        .map(|history| format!("{:>12}", history.records))
        .collect();
    writeln!(out, "\n{:<52}{records}", "records in the log")?;
    let mut line = |name: &str, value: &dyn Fn(&History) -> String| {
        let values = report.histories.iter();
        let values: String = values
            .map(|history| format!("{:>12}", value(history)))
            .collect();
        writeln!(out, "{name:<52}{values}")
    };
    line("ready after, ms", &|history| {
        format!("{:.0}", history.ready_ms)
    })?;
    for (place, page) in first.pages.iter().enumerate() {
        line(&format!("page {}, p50 ms", page.name), &|history| {
            let page = history.pages.get(place);
            page.map_or_else(String::new, |page| format!("{:.2}", page.p50_ms))
        })?;
    }
    line("transfer, p50 ms", &|history| {
        format!("{:.2}", history.transfer_p50_ms)
    })?;
    line("transfer, p99 ms", &|history| {
        format!("{:.2}", history.transfer_p99_ms)
    })?;
    line("coordinator's CPU for it, µs", &|history| {
        format!("{:.0}", history.coordinator_us)
    })?;
    line("write of decisions, ms", &|history| {
        format!("{:.2}", history.decide_ms)
    })?;
    line("decisions in a write", &|history| {
        format!("{:.1}", history.decisions_each)
    })
}
