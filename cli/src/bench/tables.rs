//! What the benchmark found as lines of cells, for the terminal and for the report.

use comfy_table::{CellAlignment, Table, presets};

use super::record::{Record, Row};

/// The columns of [`row_lines`].
pub const ROWS: [&str; 8] =
    ["case", "median ms", "spread", "TFLOP/s", "GB/s", "of ceiling", "max error", "bound"];

/// Every case and what it took.
pub fn row_lines(record: &Record) -> Vec<Vec<String>> {
    let line = |row: &Row| {
        let unsteady = if row.steady { "" } else { " *" };
        vec![
            format!("{}{unsteady}", row.label),
            significant(row.median_ms),
            format!("{:.1} %", row.spread_percent()),
            significant(row.tflops),
            significant(row.gigabytes_per_second),
            format!("{:.0} % {}", row.percent_of_ceiling, row.ceiling),
            format!("{:.1e}", row.max_error),
            format!("{:.1e}", row.bound),
        ]
    };
    let failed = record.failures.iter().map(|failure| vec![failure.label.clone(), "failed".into()]);
    record.rows.iter().map(line).chain(failed).collect()
}

/// The columns of [`ratio_lines`].
pub const RATIOS: [&str; 5] = ["case", "against", "its ms", "our ms", "ratio"];

/// Pairs of an earlier or other row and ours; above 1, ours is faster.
pub fn ratio_lines(pairs: &[(&Row, &Row)]) -> Vec<Vec<String>> {
    let ratio = |(other, our): &(&Row, &Row)| other.median_ms / our.median_ms;
    let line = |pair: &(&Row, &Row)| {
        let (other, our) = pair;
        vec![
            our.label.clone(),
            other.program.clone(),
            significant(other.median_ms),
            significant(our.median_ms),
            format!("{:.2}", ratio(pair)),
        ]
    };
    let mut lines: Vec<_> = pairs.iter().map(line).collect();
    let mut programs: Vec<&str> = pairs.iter().map(|pair| pair.0.program.as_str()).collect();
    programs.sort_unstable();
    programs.dedup();
    for program in programs {
        let of_program = pairs.iter().filter(|pair| pair.0.program == program);
        let logarithms: Vec<f64> = of_program.map(|pair| ratio(pair).ln()).collect();
        let mean = (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp();
        let [none, also] = [(); 2].map(|()| String::new());
        lines.push(vec!["geometric mean".into(), program.into(), none, also, format!("{mean:.2}")]);
    }
    lines
}

/// A table for the terminal.
pub fn table(header: &[&str], lines: &[Vec<String>]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(header);
    table.add_rows(lines);
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
