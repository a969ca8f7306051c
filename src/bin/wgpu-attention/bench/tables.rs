//! What the benchmark prints.

use comfy_table::{CellAlignment, Table, presets};

use super::record::{Record, Row};

/// Every case and what it took.
pub fn rows(record: &Record) -> Table {
    let mut table = table(&[
        "case",
        "median ms",
        "spread",
        "TFLOP/s",
        "GB/s",
        "of ceiling",
        "max error",
        "bound",
    ]);
    for row in &record.rows {
        let unsteady = if row.steady { "" } else { " *" };
        table.add_row([
            format!("{}{unsteady}", row.label),
            significant(row.median_ms),
            format!("{:.1} %", row.spread_percent()),
            significant(row.tflops),
            significant(row.gigabytes_per_second),
            format!("{:.0} % {}", row.percent_of_ceiling, row.ceiling),
            format!("{:.1e}", row.max_error),
            format!("{:.1e}", row.bound),
        ]);
    }
    for failure in &record.failures {
        table.add_row([failure.label.as_str(), "failed"]);
    }
    table
}

/// Pairs of an earlier or other row and ours; above 1, ours is faster.
pub fn ratios(title: &str, pairs: &[(&Row, &Row)]) -> Table {
    let mut table = table(&["case", title, "its ms", "our ms", "ratio"]);
    let ratio = |(other, our): &(&Row, &Row)| other.median_ms / our.median_ms;
    for pair @ (other, our) in pairs {
        table.add_row([
            our.label.clone(),
            other.program.clone(),
            significant(other.median_ms),
            significant(our.median_ms),
            format!("{:.2}", ratio(pair)),
        ]);
    }
    if !pairs.is_empty() {
        let logarithms: f64 = pairs.iter().map(|pair| ratio(pair).ln()).sum();
        let mean = (logarithms / pairs.len() as f64).exp();
        table.add_row(["geometric mean", "", "", "", &format!("{mean:.2}")]);
    }
    table
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Three significant digits for small and large numbers alike.
pub fn significant(number: f64) -> String {
    let digits = if number > 0.0 { (2.0 - number.log10().floor()).clamp(0.0, 9.0) } else { 0.0 };
    format!("{number:.*}", digits as usize)
}
