//! Judging results by the f64 reference, and by the file's own `out`.

use std::fmt;

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;
use wgpu_attention::attention::reference::Reference;
use wgpu_attention::attention::tolerance::{Comparison, compare};
use wgpu_attention::{DType, Stage};

use crate::compute::Results;
use crate::input::Tensor;
use crate::problem::Problem;

/// Multiply-adds that a check may cost, in f64 and once more in f32: some seconds.
const BUDGET: u64 = 2_000_000_000;

/// Rows that are checked however long they are.
const MIN_ROWS: u64 = 16;

/// What a check found.
#[derive(Serialize)]
pub struct Check {
    /// Rows that were compared.
    pub rows: usize,
    /// Rows there are.
    pub of: u64,
    pub tensors: Vec<Finding>,
    pub ok: bool,
}

/// How far one tensor lies from what it should be. In JSON an infinite error is null.
#[derive(Serialize)]
pub struct Finding {
    pub tensor: &'static str,
    /// `reference`, or the tensor's name in the file.
    pub against: String,
    pub max_abs_error: f64,
    pub bound: f64,
    pub relative_error: f64,
    pub ok: bool,
}

impl Finding {
    pub fn new(tensor: &'static str, against: &str, found: Comparison) -> Self {
        Self {
            tensor,
            against: against.to_owned(),
            max_abs_error: found.max_abs,
            bound: found.bound,
            relative_error: found.relative,
            ok: found.ok,
        }
    }

    /// A result against the file's own numbers, within the bound that `judged` has.
    pub fn against_file(
        file: &Tensor<'_>,
        (got, wanted): (&[f32], &[f32]),
        dtype: DType,
        judged: Comparison,
    ) -> Self {
        let wanted: Vec<f64> = wanted.iter().map(|&x| f64::from(x)).collect();
        let mut found = compare(got, &wanted, &wanted, dtype, 0.0);
        // The file's numbers are no eager form to take a bound from.
        found.bound = judged.bound;
        found.ok = found.max_abs <= found.bound;
        Self::new("out", &file.name, found)
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rows as u64 {
            all if all == self.of => writeln!(f, "check    all {all} rows")?,
            some => writeln!(f, "check    {some} of {} rows, spread evenly", self.of)?,
        }
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header(["tensor", "against", "max abs error", "bound", "relative error", ""]);
        for finding in &self.tensors {
            table.add_row([
                finding.tensor.to_owned(),
                finding.against.clone(),
                format!("{:.2e}", finding.max_abs_error),
                format!("{:.2e}", finding.bound),
                format!("{:.2e}", finding.relative_error),
                if finding.ok { "ok" } else { "FAILED" }.to_owned(),
            ]);
        }
        write!(f, "{table}")
    }
}

/// Compares results with the reference on as many rows as the budget allows, spread evenly.
pub fn check(
    reference: &Reference<'_>,
    problem: &Problem<'_>,
    results: &Results,
    stage: Option<Stage>,
) -> Result<Check> {
    let attention = &problem.attention;
    let shape = &attention.shape;
    let row_cost = u64::from(shape.key_len) * u64::from(shape.head_dim + shape.value_dim);
    let limit = (BUDGET / row_cost.max(1)).max(MIN_ROWS);
    let rows = reference.sample(usize::try_from(limit)?);

    let (out, lse) = reference.check_out(&rows, &results.out, results.lse.as_deref());
    let mut tensors = vec![Finding::new("out", "reference", out)];
    tensors.extend(lse.map(|lse| Finding::new("lse", "reference", lse)));
    if let (Some(stage), Some(scores)) = (stage, &results.scores) {
        let scores = reference.check_scores(stage, &rows, scores);
        tensors.push(Finding::new("scores", "reference", scores));
    }
    if let Some(file) = &problem.out {
        let pick = |tensor: &[f32]| pick_rows(tensor, &rows, shape.out());
        let numbers = (&pick(&results.out)[..], &pick(&file.floats()?)[..]);
        tensors.push(Finding::against_file(file, numbers, attention.dtype, out));
    }
    let of = shape.lse().into_iter().map(u64::from).product();
    Ok(Check { rows: rows.len(), of, ok: tensors.iter().all(|t| t.ok), tensors })
}

/// Rows `[batch, head, query]` of a tensor, one after the other.
fn pick_rows(tensor: &[f32], rows: &[[u32; 3]], shape: [u32; 4]) -> Vec<f32> {
    let [_, heads, len, dim] = shape.map(|size| size as usize);
    let start = |&[batch, head, row]: &[u32; 3]| {
        ((batch as usize * heads + head as usize) * len + row as usize) * dim
    };
    rows.iter().flat_map(|row| &tensor[start(row)..start(row) + dim]).copied().collect()
}
