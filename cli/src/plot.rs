//! What all plots share: their colours, and drawing into text.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

/// Colours that are told apart with any kind of sight (Okabe and Ito).
pub const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(153, 153, 153),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(60, 60, 60),
];

/// An area of a plot to be.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Success, or the drawing library's complaint.
pub type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Draws on white and gives the SVG.
pub fn svg(size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
    let drawn = area.fill(&WHITE).map_err(Into::into).and_then(|()| draw(&area));
    drawn
        .and_then(|()| Ok(area.present()?))
        .map_err(|error| anyhow!("drawing the plot: {error}"))?;
    drop(area);
    Ok(text)
}
