//! Latency against load, as a picture: up and to the right a way does more and takes longer.

use std::ops::Range;

use anyhow::Context;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Point, Report, Way};

const SIZE: (u32, u32) = (960, 600);
const FONT: &str = "sans-serif";
/// Room beyond the outermost points, as a factor.
const ROOM: f64 = 1.3;

/// One colour for each way, also for those who do not see red and green apart (Okabe and Ito).
fn colour(way: Way) -> RGBColor {
    match way {
        Way::ByHand => RGBColor(213, 94, 0),
        Way::Unanimous => RGBColor(0, 114, 178),
        Way::Applied => RGBColor(86, 180, 233),
        Way::OneDatabase => RGBColor(120, 120, 120),
    }
}

/// The picture, as SVG.
pub fn plot(report: &Report) -> anyhow::Result<String> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    draw(report, &area)?;
    area.present()?;
    drop(area);
    Ok(svg)
}

fn draw(report: &Report, area: &DrawingArea<SVGBackend<'_>, Shift>) -> anyhow::Result<()> {
    let points = report.medians.iter();
    let loads = extent(points.clone().map(|point| point.per_second))?;
    let latencies = extent(points.flat_map(|point| [point.p50_ms, point.p99_ms]))?;

    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(area)
        .margin(16)
        .caption("Latency against load", (FONT, 22))
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(loads.log_scale(), latencies.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(BLACK.mix(0.06))
        .x_desc("transfers per second; the numbers are clients")
        .y_desc("milliseconds until the client knows")
        .x_label_formatter(&|per_second| format!("{per_second}"))
        .y_label_formatter(&|milliseconds| format!("{milliseconds}"))
        .label_style((FONT, 14))
        .draw()?;
    for way in Way::ALL {
        let of_way: Vec<&Point> = { report.medians.iter() }
            .filter(|point| point.way == way)
            .collect();
        let line = |latency: fn(&Point) -> f64| {
            let of_way = of_way.iter();
            of_way.map(move |point| (point.per_second, latency(point)))
        };
        let solid = colour(way).stroke_width(2);
        let faint = colour(way).mix(0.5).stroke_width(1);
        chart.draw_series(LineSeries::new(line(|point| point.p99_ms), faint).point_size(2))?;
        chart
            .draw_series(LineSeries::new(line(|point| point.p50_ms), solid).point_size(3))?
            .label(way.name())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], solid));
        let below = (FONT, 12)
            .into_font()
            .color(&colour(way))
            .pos(Pos::new(HPos::Center, VPos::Top));
        chart.draw_series(of_way.iter().map(|point| {
            let number = Text::new(point.clients.to_string(), (0, 6), below.clone());
            EmptyElement::at((point.per_second, point.p50_ms)) + number
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .label_font((FONT, 14))
        .draw()?;
    let note = (FONT, 12).into_font().color(&BLACK.mix(0.6));
    area.draw_text("thick: p50, thin: p99", &note, (90, 16))?;
    Ok(())
}

/// From the least to the most, with room on both sides.
fn extent(values: impl Iterator<Item = f64> + Clone) -> anyhow::Result<Range<f64>> {
    let least = values.clone().reduce(f64::min);
    let most = values.reduce(f64::max);
    let (least, most) = least.zip(most).context("nothing was measured")?;
    Ok(least / ROOM..most * ROOM)
}
