//! Judging results by the f64 reference, and by the file's own `out`.

use std::fmt;

use anyhow::Result;
use comfy_table::{Table, presets};
use serde::Serialize;
use wgpu_attention::attention::reference::Reference;
use wgpu_attention::attention::tolerance::{Comparison, Verdict, compare};
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
    /// The worst of the tensors' verdicts: `ok`, `unjudged` or `failed`.
    #[serde(serialize_with = "by_name")]
    pub verdict: Verdict,
    /// Whether the verdict is `ok`.
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
    /// Rows in which f32 cannot tell what is right, so that no result could fail.
    pub unjudged: usize,
    /// Elements left out because the plain form in f32 overflows there.
    pub overflowed: usize,
    /// `ok`, `unjudged` or `failed`.
    #[serde(serialize_with = "by_name")]
    pub verdict: Verdict,
    /// Whether the verdict is `ok`.
    pub ok: bool,
}

fn by_name<S: serde::Serializer>(verdict: &Verdict, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(verdict.name())
}

impl Finding {
    pub fn new(tensor: &'static str, against: &str, found: Comparison) -> Self {
        Self {
            tensor,
            against: against.to_owned(),
            max_abs_error: found.max_abs,
            bound: found.bound,
            relative_error: found.relative,
            unjudged: found.unjudged,
            overflowed: found.overflowed,
            verdict: found.verdict(),
            ok: found.ok,
        }
    }

    /// The verdict, with what was left out.
    fn words(&self) -> String {
        let mut words = match self.verdict {
            Verdict::Failed => vec!["FAILED".to_owned()],
            Verdict::Ok => vec!["ok".to_owned()],
            Verdict::Unjudged => Vec::new(),
        };
        let left_out = [(self.unjudged, "rows unjudged"), (self.overflowed, "elements overflow")];
        let some = left_out.into_iter().filter(|(count, _)| *count > 0);
        words.extend(some.map(|(count, what)| format!("{count} {what}")));
        words.join(", ")
    }

    /// Judged rows of a result against the file's own numbers, within the bound that `judged` has.
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
        found.unjudged = judged.unjudged;
        found.ok = found.max_abs <= found.bound && found.unjudged == 0;
        Self::new("out", &file.name, found)
    }
}

impl Check {
    pub fn new(rows: usize, of: u64, tensors: Vec<Finding>) -> Self {
        let verdict = tensors.iter().map(|finding| finding.verdict).max().unwrap_or(Verdict::Ok);
        Self { rows, of, tensors, verdict, ok: verdict == Verdict::Ok }
    }

    /// The most rows that a tensor has unjudged.
    pub fn unjudged(&self) -> usize {
        self.tensors.iter().map(|finding| finding.unjudged).max().unwrap_or(0)
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
                finding.words(),
            ]);
        }
        write!(f, "{table}")?;
        if self.unjudged() > 0 {
            write!(
                f,
                "\nunjudged rows: rounding in f32 may err there by more than the result is large"
            )?;
        }
        Ok(())
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
        let mut judged = rows.clone();
        if out.unjudged > 0 {
            judged.retain(|&row| reference.check_out(&[row], &results.out, None).0.unjudged == 0);
        }
        let pick = |tensor: &[f32]| pick_rows(tensor, &judged, shape.out());
        let numbers = (&pick(&results.out)[..], &pick(&file.floats()?)[..]);
        tensors.push(Finding::against_file(file, numbers, attention.dtype, out));
    }
    let of = shape.lse().into_iter().map(u64::from).product();
    Ok(Check::new(rows.len(), of, tensors))
}

/// Rows `[batch, head, query]` of a tensor, one after the other.
fn pick_rows(tensor: &[f32], rows: &[[u32; 3]], shape: [u32; 4]) -> Vec<f32> {
    let [_, heads, len, dim] = shape.map(|size| size as usize);
    let start = |&[batch, head, row]: &[u32; 3]| {
        ((batch as usize * heads + head as usize) * len + row as usize) * dim
    };
    rows.iter().flat_map(|row| &tensor[start(row)..start(row) + dim]).copied().collect()
}
