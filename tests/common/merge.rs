//! A merge, run and compared with the f64 reference.

use super::{Layout, Placed, Random};
use wgpu_attention::attention::tolerance::compare;
use wgpu_attention::merge::reference::{self, HostParts, merge_eager};
use wgpu_attention::{Array, Context, DType, Error, Merge, MergeInputs, MergeOutputs, MergeRule};

/// The tensors of a merge, contiguous.
pub struct Parts {
    pub merge: Merge,
    pub layout: Layout,
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    pub logits: Option<Vec<f32>>,
    pub weights: Vec<f32>,
    pub log_weights: Option<Vec<f32>>,
}

impl Parts {
    /// One part in four is empty and holds NaNs; so is all of the first row.
    pub fn draw(merge: Merge, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let dim = merge.shape[3] as usize;
        let rows = merge.stacked(1).iter().map(|&n| n as usize).product::<usize>();
        let per_part = rows / merge.parts as usize;
        let mut out = random.normal(merge.dtype, rows * dim);
        let mut lse = random.normal(DType::F32, rows);
        let mut weights = random.normal(DType::F32, rows);
        for row in 0..rows {
            lse[row] *= 20.0;
            if random.below(4) == 0 || row % per_part == 0 {
                lse[row] = [-1e30, f32::NEG_INFINITY][row % 2];
                weights[row] = 0.0;
                if merge.rule != MergeRule::Sum {
                    out[row * dim..][..dim].fill(f32::NAN);
                }
            }
        }
        Self { merge, layout: Layout::Dense, out, lse, logits: None, weights, log_weights: None }
    }

    pub fn host(&self) -> HostParts<'_> {
        let mut host = HostParts::default();
        host.out = &self.out;
        host.lse = &self.lse;
        host.weights = &self.weights;
        host.logits = self.logits.as_deref().unwrap_or_default();
        host.log_weights = self.log_weights.as_deref().unwrap_or_default();
        host
    }

    /// The merged outputs and, where they are asked for, LSEs.
    pub fn run(&self, context: &Context) -> Result<(Vec<f32>, Vec<f32>), Error> {
        let merge = &self.merge;
        let [batch, heads, len, dim] = merge.shape;
        let rows = |values: &[f32]| {
            Placed::new(context, DType::F32, merge.stacked(1), Layout::Apart(1), Some(values))
        };
        let parts =
            Placed::new(context, merge.dtype, merge.stacked(dim), self.layout, Some(&self.out));
        let (lse, weights) = (rows(&self.lse), rows(&self.weights));
        let logits = self.logits.as_deref().map(rows);
        let mut inputs = MergeInputs::new(parts.view());
        match merge.rule {
            MergeRule::Lse => inputs.lse = Some(lse.view()),
            MergeRule::Weights => inputs.weights = Some(weights.view()),
            _ => {}
        }
        inputs.logits = logits.as_ref().map(Placed::view);
        inputs.log_weights = self.log_weights.as_deref().map(Array::f32);
        let out = Placed::new(context, merge.dtype, merge.shape, self.layout, None);
        let merged_lse =
            Placed::new(context, DType::F32, [batch, heads, len, 1], Layout::Dense, None);
        let mut outputs = MergeOutputs::new(out.view());
        if merge.lse {
            outputs = outputs.with_lse(merged_lse.view());
        }
        let bound = pollster::block_on(merge.plan(context))?.bind(&inputs, &outputs)?;
        pollster::block_on(context.run(&bound))?;
        let lse = if merge.lse { merged_lse.read_logits(context) } else { Vec::new() };
        Ok((out.read(context), lse))
    }

    pub fn check(&self, context: &Context) {
        let (out, lse) = self.run(context).expect("runs");
        self.judge(&out, &lse);
    }

    /// Compares results with the reference.
    pub fn judge(&self, out: &[f32], lse: &[f32]) {
        let (merge, host) = (&self.merge, self.host());
        let reference = reference::merge(merge, &host).expect("valid");
        let eager = merge_eager(merge, &host, merge.dtype).expect("valid");
        let finite = self.out.iter().filter(|x| x.is_finite());
        let largest = finite.fold(0.0f32, |most, x| most.max(x.abs()));
        // Exponents of LSEs up to 60 err by as much in f32.
        let magnitude = f64::from(largest) * f64::from(merge.parts) * 8.0;
        let found = compare(out, &reference.out, &eager.out, merge.dtype, magnitude);
        assert!(found.ok, "{merge:?} {:?}: {found:?}", self.layout);
        if merge.lse {
            let found = compare(lse, &reference.lse, &eager.lse, DType::F32, 80.0);
            assert!(found.ok, "{merge:?}: lse {found:?}");
        }
    }
}
