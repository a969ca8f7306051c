//! The plots of the report.

use std::ops::Range;

use anyhow::Result;
use plotters::prelude::*;

use crate::bench::ceilings::Ceilings;
use crate::bench::record::Row;
use crate::bench::sweep::Family;
use crate::bench::tables::significant;
use crate::plot::{COLOURS, svg};

const SIZE: (u32, u32) = (840, 420);

/// The width of the names beside the chart.
const LEGEND: u32 = 250;

/// A named line through points, ascending in x.
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
    is_line: bool,
    /// A bound drawn thin and grey, not a measurement.
    is_bound: bool,
}

/// Time against length, for a family of which several lengths were timed.
pub fn time_over_length(rows: &[Row], family: Family) -> Result<Option<String>> {
    let of_family = rows.iter().filter(|row| row.family == family.name());
    let point = |row: &Row| (name_of(row, false), (f64::from(row.len), row.median_ms));
    let series = lines(of_family.map(point).collect());
    if series.iter().all(|series| series.points.len() < 2) {
        return Ok(None);
    }
    let title = format!("{}: time", family.name());
    chart(&title, ["queries and keys", "ms"], &series).map(Some)
}

/// What each case reached, under the device's ceilings.
pub fn roofline(rows: &[Row], ceilings: &Ceilings) -> Result<Option<String>> {
    let at = |row: &Row| (1e3 * row.tflops / row.gigabytes_per_second, row.tflops);
    let mut series: Vec<Series> = Vec::new();
    for family in Family::ALL {
        let points: Vec<_> =
            rows.iter().filter(|row| row.family == family.name()).map(at).collect();
        if !points.is_empty() {
            let name = family.name().into();
            series.push(Series { name, points, is_line: false, is_bound: false });
        }
    }
    if series.is_empty() {
        return Ok(None);
    }
    let intensities = extent(series.iter().flat_map(|series| &series.points).map(|point| point.0));
    let mut peaks = vec![("fma", ceilings.fma_tflops)];
    peaks.extend(ceilings.matrix_tflops.map(|peak| ("matrix", peak)));
    for (name, peak) in peaks {
        let slope = ceilings.copy_gigabytes_per_second / 1e3;
        let Range { start, end } = intensities.clone();
        let end = end.max(4.0 * peak / slope);
        let roof = |x: f64| (x, peak.min(x * slope));
        let points = vec![roof(start), roof((peak / slope).max(start)), roof(end)];
        series.push(Series {
            name: format!("{name} and copy"),
            points,
            is_line: true,
            is_bound: true,
        });
    }
    let axes = ["FLOP per byte of inputs and outputs", "TFLOP/s"];
    chart("roofline", axes, &series).map(Some)
}

/// How much faster lists of keys are than dense attention with the same tiles.
pub fn speed_over_density(rows: &[Row]) -> Result<Option<String>> {
    let sparse: Vec<&Row> =
        rows.iter().filter(|row| row.family == Family::Sparse.name() && !row.causal).collect();
    let dense = |row: &Row| {
        let name = name_of(row, true);
        let same = |other: &&&Row| other.density == Some(1.0) && name_of(other, true) == name;
        sparse.iter().find(same).map(|dense| dense.median_ms)
    };
    let mut points = Vec::new();
    for row in &sparse {
        let (Some(density), Some(dense)) = (row.density, dense(row)) else { continue };
        points.push((name_of(row, true), (density, dense / row.median_ms)));
    }
    let mut series = lines(points);
    let least = series.iter().flat_map(|series| &series.points).map(|point| point.0);
    let least = least.fold(1.0, f64::min);
    if least == 1.0 {
        return Ok(None);
    }
    let points = vec![(least, 1.0 / least), (1.0, 1.0)];
    series.push(Series { name: "1 / density".into(), points, is_line: true, is_bound: true });
    let axes = ["share of the keys that are visited", "dense time / time"];
    chart("lists of keys against dense", axes, &series).map(Some)
}

/// A line for each name.
fn lines(points: Vec<(String, (f64, f64))>) -> Vec<Series> {
    let mut lines: Vec<Series> = Vec::new();
    for (name, point) in points {
        match lines.iter_mut().find(|line| line.name == name) {
            Some(line) => line.points.push(point),
            None => {
                lines.push(Series { name, points: vec![point], is_line: true, is_bound: false })
            }
        }
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    lines
}

/// What a line is called: all but the length, or for lists all but the density.
fn name_of(row: &Row, over_density: bool) -> String {
    let mut words = vec![row.variant.clone(), row.dtype.clone(), format!("d{}", row.head_dim)];
    if over_density {
        words.push(format!("n{}", row.len));
    } else if !row.detail.is_empty() {
        words.push(row.detail.clone());
    }
    if row.causal && row.family != Family::Linear.name() {
        words.push("causal".into());
    }
    words.join(" ")
}

/// A chart with logarithmic axes, and what its lines are called beside it.
fn chart(title: &str, [x_name, y_name]: [&str; 2], series: &[Series]) -> Result<String> {
    let all = || series.iter().flat_map(|series| &series.points);
    let (x, y) = (extent(all().map(|point| point.0)), extent(all().map(|point| point.1)));
    svg(SIZE, |area| {
        let (left, right) = area.split_horizontally(SIZE.0 - LEGEND);
        let mut chart = ChartBuilder::on(&left)
            .caption(title, ("sans-serif", 17))
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(62)
            .build_cartesian_2d(x.log_scale().base(2.0), y.log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.12))
            .x_desc(x_name)
            .y_desc(y_name)
            .x_labels(6)
            .x_label_formatter(&tick)
            .y_label_formatter(&tick)
            .label_style(("sans-serif", 13))
            .draw()?;
        for (index, series) in series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let style = match series.is_bound {
                true => BLACK.mix(0.45).stroke_width(1),
                false => colour.stroke_width(2),
            };
            if series.is_line {
                chart.draw_series(LineSeries::new(series.points.iter().copied(), style))?;
            }
            // Colours that come around again are told apart by rings in place of dots.
            let dot = if index < COLOURS.len() { colour.filled() } else { style };
            if !series.is_bound {
                chart.draw_series(series.points.iter().map(|&at| Circle::new(at, 3, dot)))?;
            }
            let y = 46 + 17 * index as i32;
            right.draw(&PathElement::new([(2, y), (20, y)], style))?;
            if !series.is_bound {
                right.draw(&Circle::new((11, y), 3, dot))?;
            }
            right.draw(&Text::new(series.name.as_str(), (26, y - 6), ("sans-serif", 13)))?;
        }
        Ok(())
    })
}

/// A number at an axis.
fn tick(number: &f64) -> String {
    let digits = significant(*number);
    match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits,
    }
}

/// The range of numbers above 0, with a margin that keeps it from being empty.
fn extent(numbers: impl Iterator<Item = f64>) -> Range<f64> {
    let positive = numbers.filter(|&number| number > 0.0 && number.is_finite());
    let none = (f64::INFINITY, 0.0);
    let (least, most) = positive.fold(none, |(a, b), number| (number.min(a), number.max(b)));
    if least > most { 0.5..2.0 } else { least / 1.3..most * 1.3 }
}
