//! Binding a scatter.

use super::{Scatter, ScatterInputs, ScatterPlan, THREADS};
use crate::error::Error;
use crate::launch::array::check_device;
use crate::launch::pieces::moving;
use crate::launch::workspace::{
    Packer, Piece, bind_group, binding, bound_bytes, check_buffers, grid, uniform,
};
use crate::launch::{Bound, PackedLayout, Step};
use crate::params::ScatterParams;
use crate::tensor::{DType, View};

impl ScatterPlan {
    pub(super) fn bind_checked(
        &self,
        inputs: &ScatterInputs<'_>,
        cache: View<'_>,
    ) -> Result<Bound, Error> {
        let (context, scatter) = (&self.context, &self.scatter);
        check(scatter, inputs, &cache)?;
        let (mut metadata, mut copies) = (Packer::new(context), Vec::new());
        let starts = metadata.push(Some(inputs.starts));
        let layout = PackedLayout { starts, ..PackedLayout::default() };
        let metadata = metadata.finish(context, "metadata", &mut copies)?;
        let side = Packer::new(context).finish(context, "side", &mut copies)?;

        let mut steps = Vec::new();
        if !scatter.shape.contains(&0) {
            let [batch, heads, ..] = scatter.shape;
            let part = |view, piece: &Piece| bound_bytes(context, &piece.of(view));
            let sizes = |piece: &Piece| {
                vec![("rows", part(inputs.rows, piece)), ("cache", part(cache, piece))]
            };
            for piece in (Piece { batch: 0..batch, heads: 0..heads }).split(context, &sizes)? {
                let (rows, cache) = (piece.of(inputs.rows), piece.of(cache));
                steps.push(self.step(&piece, &rows, &cache, &metadata)?);
            }
        }
        let context = context.clone();
        Ok(Bound { context, label: "scatter.scatter", copies, steps, metadata, side, layout })
    }

    fn step(
        &self,
        piece: &Piece,
        rows: &View<'_>,
        cache: &View<'_>,
        starts: &wgpu::Buffer,
    ) -> Result<Step, Error> {
        let (context, scatter) = (&self.context, &self.scatter);
        let [_, _, len, dim] = scatter.shape;
        let per_word = (4 / scatter.dtype.size()) as u32;
        let alignment = u64::from(context.caps().storage_alignment);
        let reach = |view: &View<'_>| view.reach(alignment).map(|elements| elements / per_word);
        let params = ScatterParams {
            rows: reach(rows),
            cache: reach(cache),
            batch: piece.batch.len() as u32,
            heads: piece.heads.len() as u32,
            len,
            words: dim / per_word,
            capacity: scatter.capacity,
            circular: u32::from(scatter.circular),
            batch_base: piece.batch.start,
            padding: 0,
        };
        let uniform = uniform(context, bytemuck::bytes_of(&params));
        let resources = [
            uniform.as_entire_buffer_binding(),
            binding(context, Some(*rows), &context.absent().input),
            starts.as_entire_buffer_binding(),
            binding(context, Some(*cache), &context.absent().outputs[0]),
        ];
        let words = [params.batch, params.heads, len, params.words].map(u64::from);
        let threads: u64 = words.into_iter().product();
        Ok(Step {
            pipeline: self.pipeline.clone(),
            group: bind_group(context, &self.pipeline, "scatter.scatter", &resources),
            workgroups: grid(context, threads.div_ceil(u64::from(THREADS)))?,
            cost: moving(8 * threads),
        })
    }
}

fn check(scatter: &Scatter, inputs: &ScatterInputs<'_>, cache: &View<'_>) -> Result<(), Error> {
    inputs.rows.check("rows", scatter.shape, Some(scatter.dtype))?;
    cache.check("cache", scatter.cache(), Some(scatter.dtype))?;
    cache.check_disjoint("cache")?;
    check_buffers(&[("rows", Some(inputs.rows))], &[("cache", Some(*cache))])?;
    if scatter.dtype != DType::F32 {
        for (name, view) in [("rows", &inputs.rows), ("cache", cache)] {
            let strides =
                view.shape.iter().zip(view.strides).take(3).filter(|(size, _)| **size > 1);
            let even = strides.map(|(_, stride)| stride).chain([view.offset]).all(|n| n % 2 == 0);
            if !even {
                let got = format!("offset {} and strides {:?}", view.offset, view.strides);
                return Err(Error::tensor(name, "an even offset and even strides", got));
            }
        }
    }
    let [batch, _, len, _] = scatter.shape;
    if inputs.starts.len() != batch as usize {
        let got = format!("{} values", inputs.starts.len());
        return Err(Error::tensor("starts", format!("{batch} values, one a batch entry"), got));
    }
    check_device("starts", inputs.starts)?;
    // A start that wraps around is below the capacity; another leaves room for all rows.
    let last = match scatter.circular {
        true => scatter.capacity.saturating_sub(1),
        false => scatter.capacity - len,
    };
    let starts = inputs.starts.host().unwrap_or_default();
    match starts.iter().position(|&start| start > last) {
        Some(index) if len > 0 => {
            let got = format!("{} at index {index}", starts[index]);
            Err(Error::tensor("starts", format!("positions up to {last}"), got))
        }
        _ => Ok(()),
    }
}
