//! What was measured, for people.

use std::io::{self, Write};

use super::{Point, Report};

/// Prints all of it.
pub fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    let machine = &report.machine;
    writeln!(
        out,
        "{} cores ({}), Linux {}, disk {}; decision log: {}; {} accounts at each bank, one transfer in {} refused; \
         {} connections for each participant; medians of {} measurements of {} s",
        machine.cores,
        machine.processor.as_deref().unwrap_or("unknown"),
        machine.kernel,
        machine.disk.as_deref().unwrap_or("unknown"),
        report.log,
        report.accounts,
        report.refused_one_in,
        report.connections,
        report.repeat,
        report.seconds,
    )?;
    speed(report, out)?;
    costs(report, out)?;
    figures(report, out)?;
    match report.findings.len() {
        0 => writeln!(
            out,
            "\nThe audit after each measurement found nothing wrong."
        ),
        found => {
            writeln!(out, "\nThe audits FOUND {found}:")?;
            report
                .findings
                .iter()
                .try_for_each(|found| writeln!(out, "  {found}"))
        }
    }
}

/// One line for each median, an empty one between two numbers of clients.
fn rows(
    report: &Report,
    out: &mut impl Write,
    mut row: impl FnMut(&mut dyn Write, &Point) -> io::Result<()>,
) -> io::Result<()> {
    let mut clients = None;
    for point in &report.medians {
        if clients
            .replace(point.clients)
            .is_some_and(|before| before != point.clients)
        {
            writeln!(out)?;
        }
        write!(out, "{:>7}  {:<16}", point.clients, point.way)?;
        row(out, point)?;
        writeln!(out)?;
    }
    Ok(())
}

fn speed(report: &Report, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "\nclients  {:<16}{:>11}{:>10}{:>10}{:>10}{:>10}{:>13}",
        "way", "transfers/s", "p50 ms", "p95 ms", "p99 ms", "max ms", "settled ms"
    )?;
    rows(report, out, |out, point| {
        write!(
            out,
            "{:>11.0}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>13.0}",
            point.per_second,
            point.p50_ms,
            point.p95_ms,
            point.p99_ms,
            point.max_ms,
            point.settled_ms
        )
    })?;
    writeln!(
        out,
        "settled: from the last answer until everything was applied everywhere"
    )
}

fn costs(report: &Report, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "\nper transfer{:>13}{:>36}{:>8}{:>44}",
        "", "CPU, µs", "", "forced writes"
    )?;
    writeln!(
        out,
        "clients  {:<16}{:>9}{:>13}{:>14}{:>8}{:>8}{:>9}{:>9}{:>8}{:>10}{:>12}",
        "way",
        "Postgres",
        "coordinator",
        "participants",
        "client",
        "all",
        "Postgres",
        "log",
        "all",
        "disk's",
        "peak, MiB"
    )?;
    rows(report, out, |out, point| {
        let costs = &point.costs;
        let all =
            costs.postgres_us + costs.coordinator_us + costs.participants_us + costs.client_us;
        write!(
            out,
            "{:>9.0}{:>13.0}{:>14.0}{:>8.0}{:>8.0}{:>9.2}{:>9.2}{:>8.2}{:>10}{:>12}",
            costs.postgres_us,
            costs.coordinator_us,
            costs.participants_us,
            costs.client_us,
            all,
            costs.wal_syncs,
            costs.log_syncs,
            costs.forced,
            or_dash(costs.disk_flushes, 2),
            or_dash(
                costs
                    .coordinator_peak_bytes
                    .map(|bytes| bytes / 1024.0 / 1024.0),
                1
            ),
        )
    })?;
    writeln!(
        out,
        "disk's: flushes that the disk carried out, for everybody on this machine; peak: the coordinator's memory"
    )
}

fn or_dash(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn figures(report: &Report, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "\n{:<40}{:>8}{:>10}{:>10}{:>18}",
        "figures to reach", "clients", "measured", "by hand", "wanted"
    )?;
    for figure in &report.figures {
        let sign = if figure.more_is_better { ">=" } else { "<=" };
        let later = figure.wanted_later;
        let later = later.map_or_else(String::new, |later| format!(", then {later}"));
        writeln!(
            out,
            "{:<40}{:>8}{:>10.2}{:>10}{:>18}  {}",
            figure.name,
            figure.clients,
            figure.measured,
            or_dash(figure.by_hand, 2),
            format!("{sign} {}{later}", figure.wanted),
            if figure.reached {
                "reached"
            } else {
                "NOT REACHED"
            }
        )?;
    }
    Ok(())
}
