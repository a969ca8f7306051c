//! The plot of `wgpu-attention quality`: error and covered mass over density, a panel a layer.

use anyhow::Result;
use plotters::prelude::*;

use super::{PATTERNS, Row};
use crate::plot::{Area, COLOURS, Drawn, svg};

const SIZE: (u32, u32) = (1080, 820);

/// Draws all rows as SVG.
pub fn plot(rows: &[Row], adapter: &str) -> Result<String> {
    let mut layers: Vec<&str> = rows.iter().map(|row| row.layer.as_str()).collect();
    layers.dedup();
    svg(SIZE, |root| {
        let title = format!("Sparse patterns against dense causal attention ({adapter})");
        let root = root.titled(&title, ("sans-serif", 18))?;
        let panels = root.split_evenly((2, layers.len().max(1)));
        for (column, layer) in layers.iter().enumerate() {
            let of_layer = || rows.iter().filter(|row| row.layer == *layer);
            let error = format!("{layer}: relative error of the output");
            let points = of_layer().map(|row| (row.pattern, row.density, row.relative_error));
            panel(&panels[column], &error, &points.collect::<Vec<_>>())?;
            let mass = format!("{layer}: attention mass covered");
            let points = of_layer().map(|row| (row.pattern, row.density, row.mass));
            panel(&panels[layers.len() + column], &mass, &points.collect::<Vec<_>>())?;
        }
        Ok(())
    })
}

/// One panel: a line for each pattern through its points `(pattern, density, value)`.
fn panel(area: &Area<'_>, title: &str, points: &[(&str, f64, f64)]) -> Drawn {
    let most = |pick: fn(&(&str, f64, f64)) -> f64| points.iter().map(pick).fold(0.0, f64::max);
    // The names of the lines stand to the right of them.
    let (right, top) = (most(|point| point.1) * 1.45, (most(|point| point.2) * 1.05).max(0.01));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(34)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("share of the causal pairs")
        .x_labels(6)
        .y_labels(6)
        .draw()?;
    for (pattern, colour) in PATTERNS.into_iter().zip(COLOURS) {
        let line: Vec<(f64, f64)> =
            points.iter().filter(|point| point.0 == pattern).map(|&(_, x, y)| (x, y)).collect();
        chart
            .draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))?
            .label(pattern)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(line.into_iter().map(|at| Circle::new(at, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}
