//! Binding a merge.

use super::{Merge, MergeInputs, MergeOutputs, MergePlan, MergeRule, THREADS};
use crate::error::Error;
use crate::launch::array::check_device;
use crate::launch::pieces::moving;
use crate::launch::workspace::{
    Packer, Piece, bind_group, binding, bound_bytes, buffer, check_buffers, expected, grid,
    narrow_step, uniform,
};
use crate::launch::{Bound, PackedLayout, Step};
use crate::params::MergeParams;
use crate::tensor::{DType, View};

/// The tensors of a call by name.
struct Tensors<'a> {
    parts: View<'a>,
    lse: Option<View<'a>>,
    /// Logits or weights.
    weights: Option<View<'a>>,
    out: View<'a>,
    out_lse: Option<View<'a>>,
}

impl MergePlan {
    pub(super) fn bind_checked(
        &self,
        inputs: &MergeInputs<'_>,
        outputs: &MergeOutputs<'_>,
    ) -> Result<Bound, Error> {
        let (context, merge) = (&self.context, &self.merge);
        let tensors = Tensors::check(merge, inputs, outputs)?;
        check_log_weights(merge, inputs)?;
        let (mut side, mut copies) = (Packer::new(context), Vec::new());
        let log_weights = side.push(inputs.log_weights);
        let layout = PackedLayout { log_weights, ..PackedLayout::default() };
        let metadata = Packer::new(context).finish(context, "metadata", &mut copies)?;
        let side = side.finish(context, "side", &mut copies)?;

        let mut steps = Vec::new();
        if !merge.shape.contains(&0) {
            self.check_limits(&tensors)?;
            let wide = match self.pipelines.get(1) {
                Some(_) => Some(self.wide()?),
                None => None,
            };
            let wide = wide.as_ref().map(|wide| View::new(wide, DType::F32, merge.shape));
            steps.push(self.step(
                &tensors,
                wide.as_ref().unwrap_or(&tensors.out),
                &side,
                inputs,
            )?);
            if let (Some(pipeline), Some(wide)) = (self.pipelines.get(1), wide) {
                steps.push(narrow_step(context, pipeline, &wide, &tensors.out)?);
            }
        }
        let context = context.clone();
        Ok(Bound { context, label: "merge.merge", copies, steps, metadata, side, layout })
    }

    /// Parts lie a stride apart, so that cutting by batch entries or heads would bind no less.
    fn check_limits(&self, tensors: &Tensors<'_>) -> Result<(), Error> {
        let whole = Piece { batch: 0..1, heads: 0..1 };
        let sizes = |_: &Piece| {
            let named = [("out (parts)", Some(tensors.parts)), ("out", Some(tensors.out))];
            let size = |(name, view): (_, Option<View<'_>>)| {
                Some((name, bound_bytes(&self.context, &view?)))
            };
            named.into_iter().filter_map(size).collect()
        };
        whole.split(&self.context, &sizes).map(|_| ())
    }

    /// The f32 output, where 16-bit elements cannot be written by whole words.
    fn wide(&self) -> Result<wgpu::Buffer, Error> {
        let elements: u64 = self.merge.shape.into_iter().map(u64::from).product();
        let allowed = self.context.caps().storage_binding.min(self.context.caps().buffer);
        if 4 * elements > allowed {
            return Err(Error::Limit {
                what: "the f32 workspace behind `out`".into(),
                limit: "maxStorageBufferBindingSize",
                needed: 4 * elements,
                allowed,
            });
        }
        Ok(buffer(&self.context, "workspace", 4 * elements, wgpu::BufferUsages::STORAGE, None))
    }

    fn step(
        &self,
        tensors: &Tensors<'_>,
        out: &View<'_>,
        side: &wgpu::Buffer,
        inputs: &MergeInputs<'_>,
    ) -> Result<Step, Error> {
        let (context, merge) = (&self.context, &self.merge);
        let alignment = u64::from(context.caps().storage_alignment);
        let reach = |view: Option<View<'_>>| view.map_or([0; 4], |view| view.reach(alignment));
        let [batch, heads, len, dim] = merge.shape;
        let params = MergeParams {
            parts: reach(Some(tensors.parts)),
            lse: reach(tensors.lse),
            weights: reach(tensors.weights),
            out: reach(Some(*out)),
            out_lse: reach(tensors.out_lse),
            count: merge.parts,
            batch,
            heads,
            len,
            dim,
            has_logits: u32::from(inputs.logits.is_some()),
            has_log_weights: u32::from(inputs.log_weights.is_some()),
            has_lse: u32::from(merge.lse),
            nan: f32::NAN.to_bits(),
            padding_0: 0,
            padding_1: 0,
            padding_2: 0,
        };
        let uniform = uniform(context, bytemuck::bytes_of(&params));
        let absent = context.absent();
        let resources = [
            uniform.as_entire_buffer_binding(),
            binding(context, Some(tensors.parts), &absent.input),
            binding(context, tensors.lse, &absent.input),
            binding(context, tensors.weights, &absent.input),
            side.as_entire_buffer_binding(),
            binding(context, Some(*out), &absent.outputs[0]),
            binding(context, tensors.out_lse, &absent.outputs[1]),
        ];
        let rows = u64::from(batch) * u64::from(heads) * u64::from(len);
        let threads = rows * u64::from(merge.per_row());
        Ok(Step {
            pipeline: self.pipelines[0].clone(),
            group: bind_group(context, &self.pipelines[0], "merge.merge", &resources),
            workgroups: grid(context, threads.div_ceil(u64::from(THREADS)))?,
            cost: moving(rows * u64::from(dim) * u64::from(merge.parts + 1) * merge.dtype.size()),
        })
    }
}

impl<'a> Tensors<'a> {
    fn check(
        merge: &Merge,
        inputs: &MergeInputs<'a>,
        outputs: &MergeOutputs<'a>,
    ) -> Result<Self, Error> {
        let [_, _, _, dim] = merge.shape;
        let by_lse = merge.rule == MergeRule::Lse;
        let by_weights = merge.rule == MergeRule::Weights;
        let rows = (merge.stacked(1), DType::F32);
        inputs.out.check("out (parts)", merge.stacked(dim), Some(merge.dtype))?;
        let lse = expected("lse (parts)", inputs.lse, by_lse.then_some(rows))?;
        let wants_logits = by_lse && inputs.logits.is_some();
        let logits = expected("logits", inputs.logits, wants_logits.then_some(rows))?;
        let weights = expected("weights", inputs.weights, by_weights.then_some(rows))?;
        outputs.out.check("out", merge.shape, Some(merge.dtype))?;
        let [batch, heads, len, _] = merge.shape;
        let merged = merge.lse.then_some(([batch, heads, len, 1], DType::F32));
        let out_lse = expected("lse", outputs.lse, merged)?;

        let read = [
            ("out (parts)", Some(inputs.out)),
            ("lse (parts)", lse),
            ("logits", logits),
            ("weights", weights),
        ];
        let written = [("out", Some(outputs.out)), ("lse", out_lse)];
        for (name, view) in written {
            view.map_or(Ok(()), |view| view.check_disjoint(name))?;
        }
        check_buffers(&read, &written)?;
        inputs.out.check_alignment("out (parts)", merge.alignment())?;
        outputs.out.check_alignment("out", merge.alignment())?;
        Ok(Self { parts: inputs.out, lse, weights: logits.or(weights), out: outputs.out, out_lse })
    }
}

fn check_log_weights(merge: &Merge, inputs: &MergeInputs<'_>) -> Result<(), Error> {
    let Some(array) = inputs.log_weights else { return Ok(()) };
    if merge.rule != MergeRule::Lse {
        let expected = "nothing: the configuration does not merge by LSE";
        return Err(Error::tensor("log_weights", expected, format!("{} values", array.len())));
    }
    if array.len() != merge.parts as usize {
        let expected = format!("{} values, one a part", merge.parts);
        return Err(Error::tensor("log_weights", expected, format!("{} values", array.len())));
    }
    check_device("log_weights", array)
}
