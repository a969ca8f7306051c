//! Judging whole tensors by the reference, row by row.

use super::reference::Reference;
use super::{Activation, Stage};
use crate::reference::tolerance::{ALLOWANCE, Comparison, Part, compare_parts};
use crate::tensor::DType;

impl Reference<'_> {
    /// At most `limit` rows `[batch, head, query]`, all of them where they are no more, otherwise
    /// spread evenly with the first and the last among them.
    pub fn sample(&self, limit: usize) -> Vec<[u32; 3]> {
        let shape = &self.attention.shape;
        let [heads, len] = [shape.query_heads, shape.query_len].map(u64::from);
        let rows = u64::from(shape.batch) * heads * len;
        let count = rows.min(limit as u64);
        // One row of each of `count` equal parts, its place within the part stepping by the golden
        // ratio, which has no period in common with heads or lengths.
        let index = |part: u64| {
            let within = (part as f64 * 0.618_033_988_749_895).fract();
            let index = (part as f64 + within) * rows as f64 / count as f64;
            if part + 1 == count { rows - 1 } else { index as u64 }
        };
        let place = |i: u64| [i / (heads * len), i / len % heads, i % len].map(|x| x as u32);
        (0..count).map(|part| place(index(part))).collect()
    }

    /// Judges rows `[batch, head, query]` of a whole `out [batch, query_heads, query_len,
    /// value_dim]` and, where given, `lse [batch, query_heads, query_len]`.
    ///
    /// # Panics
    ///
    /// When a row lies outside of the shape.
    pub fn check_out(
        &self,
        rows: &[[u32; 3]],
        out: &[f32],
        lse: Option<&[f32]>,
    ) -> (Comparison, Option<Comparison>) {
        let mut outs = Rows::new(rows, self.attention.shape.out());
        let mut lses = Rows::new(rows, self.attention.shape.lse());
        for &[batch, head, query] in rows {
            let row = self.row(batch, head, query);
            let eager = self.row_eager(batch, head, query);
            let place = [batch, head, query];
            let sensitivity = self.sensitivity(row.lse, self.largest_capped(place, true));
            let magnitude = sensitivity * row.magnitude;
            // No weights make more of the values than `reach`, on either side.
            let (size, most) = (row.magnitude, 2.0 * row.reach);
            outs.push(row.out, eager.out, Sizes { magnitude, size, most });
            // An LSE that errs by 1 is that of another row.
            let size = 1.0 + row.lse.abs();
            let sizes = Sizes { magnitude: sensitivity, size, most: f64::INFINITY };
            lses.push(vec![row.lse], vec![eager.lse], sizes);
        }
        let lse = lse.map(|lse| lses.compare(lse, DType::F32));
        (outs.compare(out, self.attention.precision()), lse)
    }

    /// Judges rows `[batch, head, query]` of the whole `scores [batch, query_heads, query_len,
    /// key_len]` of a stage.
    ///
    /// # Panics
    ///
    /// When a row lies outside of the shape.
    pub fn check_scores(&self, stage: Stage, rows: &[[u32; 3]], scores: &[f32]) -> Comparison {
        let mut judged = Rows::new(rows, self.attention.shape.scores());
        for &[batch, head, query] in rows {
            let row = self.scores(stage, batch, head, query);
            let place = [batch, head, query];
            let capped = match stage {
                Stage::Scaled => 0.0,
                _ => self.largest_capped(place, stage != Stage::Modified),
            };
            let sizes = if stage == Stage::Probabilities {
                let magnitude = self.sensitivity(self.row(batch, head, query).lse, capped);
                Sizes { magnitude, size: 1.0, most: 1.0 }
            } else {
                let finite = row.iter().filter(|s| s.is_finite());
                let size = finite.fold(0.0f64, |most, s| most.max(s.abs()));
                Sizes { magnitude: capped + size, size, most: f64::INFINITY }
            };
            judged.push(row, self.scores_eager(stage, batch, head, query), sizes);
        }
        judged.compare(scores, DType::F32)
    }

    /// By how much the errors of a row's scores add to those of its weights: the factor on the
    /// magnitude of whatever is made from the weights.
    ///
    /// A score `s` in f32 is off by half an ulp at least, 2⁻²⁴·|s|, and under softmax the scores
    /// that count are about the LSE. A softcap of `c` inherits the errors of WGSL's `exp2` and of its
    /// division: a capped score `t` is off by up to 12·2⁻²⁴·|t|, and by up to 6·2⁻²⁴·c. An error of `δ`
    /// in the scores is one of `2δ` in the output; in units of [`ALLOWANCE`] that is
    /// `(|s| + min(12·|t|, 6·c)) / 16`.
    fn sensitivity(&self, lse: f64, capped: f64) -> f64 {
        let size = match self.attention.activation {
            Activation::Softmax if lse.is_finite() => lse.abs(),
            // Where a large score errs, the sigmoid is flat.
            _ => 0.0,
        };
        let cap = f64::from(self.attention.score.softcap.unwrap_or(0.0));
        1.0 + 2.0 * (size + (12.0 * capped).min(6.0 * cap)) / ALLOWANCE
    }
}

/// Chosen rows of a tensor, as the reference and the eager form have them.
struct Rows<'a> {
    places: &'a [[u32; 3]],
    shape: [u32; 4],
    reference: Vec<f64>,
    eager: Vec<f64>,
    parts: Vec<Part>,
}

/// What a row's errors are held against: see [`Part`].
struct Sizes {
    magnitude: f64,
    size: f64,
    most: f64,
}

impl<'a> Rows<'a> {
    fn new(places: &'a [[u32; 3]], shape: [u32; 4]) -> Self {
        Self { places, shape, reference: Vec::new(), eager: Vec::new(), parts: Vec::new() }
    }

    fn push(&mut self, reference: Vec<f64>, eager: Vec<f64>, sizes: Sizes) {
        let Sizes { magnitude, size, most } = sizes;
        self.parts.push(Part { len: reference.len(), magnitude, size, most });
        self.reference.extend(reference);
        self.eager.extend(eager);
    }

    /// Compares the rows with those of a whole tensor; one that is too short fails.
    fn compare(&self, tensor: &[f32], dtype: DType) -> Comparison {
        let [_, heads, len, dim] = self.shape.map(|size| size as usize);
        let start = |place: &[u32; 3]| {
            let [batch, head, row] = place.map(|index| index as usize);
            ((batch * heads + head) * len + row) * dim
        };
        let mut got = Vec::with_capacity(self.reference.len());
        for place in self.places {
            let start = start(place);
            got.extend(tensor.get(start..start + dim).unwrap_or_default());
        }
        let numbers = (&self.reference[..], &self.eager[..]);
        let mut found = compare_parts(&got, numbers, dtype, &self.parts);
        if let Some(place) = self.places.get(found.worst_index.checked_div(dim).unwrap_or(0)) {
            found.worst_index = start(place) + found.worst_index % dim.max(1);
        }
        found
    }
}
