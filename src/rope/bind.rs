//! Binding a rotation.

use super::{Rope, RopeInputs, RopePairs, RopePlan, THREADS};
use crate::error::Error;
use crate::launch::array::{check_device, within};
use crate::launch::pieces::moving;
use crate::launch::workspace::{
    Packer, Piece, bind_group, binding, bound_bytes, buffer, check_buffers, grid, narrow_step,
    uniform,
};
use crate::launch::{Bound, PackedLayout, Step};
use crate::params::RopeParams;
use crate::tensor::{DType, View};

impl RopePlan {
    pub(super) fn bind_checked(
        &self,
        inputs: &RopeInputs<'_>,
        out: View<'_>,
    ) -> Result<Bound, Error> {
        let (context, rope) = (&self.context, &self.rope);
        check(rope, inputs, &out)?;
        let (mut metadata, mut copies) = (Packer::new(context), Vec::new());
        let positions = metadata.push(inputs.positions);
        let layout = PackedLayout { positions, ..PackedLayout::default() };
        let metadata = metadata.finish(context, "metadata", &mut copies)?;
        let side = Packer::new(context).finish(context, "side", &mut copies)?;

        let mut steps = Vec::new();
        if !rope.shape.contains(&0) {
            let [batch, heads, ..] = rope.shape;
            let sizes = |piece: &Piece| {
                let part = |view| bound_bytes(context, &piece.of(view));
                let mut sizes = vec![("input", part(inputs.input)), ("out", part(out))];
                sizes.extend(self.wide_bytes(piece).map(|size| ("out in f32", size)));
                sizes
            };
            let pieces = Piece { batch: 0..batch, heads: 0..heads }.split(context, &sizes)?;
            let size = pieces.iter().filter_map(|piece| self.wide_bytes(piece)).max();
            let usage = wgpu::BufferUsages::STORAGE;
            let wide = size.map(|size| buffer(context, "workspace", size, usage, None));
            for piece in &pieces {
                self.push_steps(&mut steps, piece, (inputs, &out), (&metadata, wide.as_ref()))?;
            }
        }
        let context = context.clone();
        Ok(Bound { context, label: "rope.rope", copies, steps, metadata, side, layout })
    }

    /// Bytes of a piece's output in f32, where it goes through a workspace.
    fn wide_bytes(&self, piece: &Piece) -> Option<u64> {
        let rows =
            piece.batch.len() as u64 * piece.heads.len() as u64 * u64::from(self.rope.shape[2]);
        self.pipelines.get(1).map(|_| 4 * rows * u64::from(self.rope.shape[3]))
    }

    fn push_steps(
        &self,
        steps: &mut Vec<Step>,
        piece: &Piece,
        (inputs, out): (&RopeInputs<'_>, &View<'_>),
        (positions, wide): (&wgpu::Buffer, Option<&wgpu::Buffer>),
    ) -> Result<(), Error> {
        let (context, rope) = (&self.context, &self.rope);
        let (input, out) = (piece.of(inputs.input), piece.of(*out));
        let own_table = inputs.cos.shape[0] > 1;
        let entries = if own_table { piece.batch.clone() } else { 0..1 };
        let cos = inputs.cos.part(entries.clone(), 0..1);
        let sin = inputs.sin.part(entries, 0..1);
        let wide = wide.map(|wide| View::new(wide, DType::F32, out.shape));
        let direct = wide.unwrap_or(out);

        let alignment = u64::from(context.caps().storage_alignment);
        let [batch, heads, len, dim] = out.shape;
        let own = inputs.positions.is_some_and(|positions| positions.len() as u32 != len);
        let params = RopeParams {
            input: input.reach(alignment),
            out: direct.reach(alignment),
            cos: cos.reach(alignment),
            sin: sin.reach(alignment),
            batch,
            heads,
            len,
            dim,
            rotary_dim: rope.rotary_dim,
            interleaved: u32::from(rope.pairs == RopePairs::Interleaved),
            table_rows: inputs.cos.shape[2],
            table_dtype: rope.table as u32,
            has_positions: u32::from(inputs.positions.is_some()),
            positions_batch: if own { len } else { 0 },
            batch_base: piece.batch.start,
            padding: 0,
        };
        let uniform = uniform(context, bytemuck::bytes_of(&params));
        let absent = context.absent();
        let resources = [
            uniform.as_entire_buffer_binding(),
            binding(context, Some(input), &absent.input),
            binding(context, Some(cos), &absent.input),
            binding(context, Some(sin), &absent.input),
            positions.as_entire_buffer_binding(),
            binding(context, Some(direct), &absent.outputs[0]),
        ];
        let vectors = [batch, heads, len, dim.div_ceil(4)].map(u64::from);
        let threads: u64 = vectors.into_iter().product();
        steps.push(Step {
            pipeline: self.pipelines[0].clone(),
            group: bind_group(context, &self.pipelines[0], "rope.rope", &resources),
            workgroups: grid(context, threads.div_ceil(u64::from(THREADS)))?,
            cost: moving(4 * threads * 2 * rope.dtype.size()),
        });
        if let (Some(pipeline), Some(wide)) = (self.pipelines.get(1), wide) {
            steps.push(narrow_step(context, pipeline, &wide, &out)?);
        }
        Ok(())
    }
}

fn check(rope: &Rope, inputs: &RopeInputs<'_>, out: &View<'_>) -> Result<(), Error> {
    let [batch, _, len, _] = rope.shape;
    inputs.input.check("input", rope.shape, Some(rope.dtype))?;
    out.check("out", rope.shape, Some(rope.dtype))?;
    out.check_disjoint("out")?;
    let [tables, heads, rows, columns] = inputs.cos.shape;
    let half = rope.rotary_dim / 2;
    let (fits, expected) = match inputs.positions {
        Some(_) => {
            (tables == 1 && rows > 0, format!("shape [1, 1, rows, {half}] of at least one row"))
        }
        None => {
            let fits = (tables == 1 || tables == batch) && rows == len;
            (fits, format!("shape [{batch} or 1, 1, {len}, {half}]"))
        }
    };
    if !fits || heads != 1 || columns != half {
        return Err(Error::tensor("cos", expected, format!("{:?}", inputs.cos.shape)));
    }
    inputs.cos.check("cos", inputs.cos.shape, Some(rope.table))?;
    inputs.sin.check("sin", inputs.cos.shape, Some(rope.table))?;
    let read =
        [("input", Some(inputs.input)), ("cos", Some(inputs.cos)), ("sin", Some(inputs.sin))];
    check_buffers(&read, &[("out", Some(*out))])?;
    out.check_alignment("out", rope.alignment())?;
    let Some(positions) = inputs.positions else { return Ok(()) };
    if ![u64::from(len), u64::from(batch) * u64::from(len)].contains(&(positions.len() as u64)) {
        let expected = format!("{len} values, or as many for each of {batch} batch entries");
        return Err(Error::tensor("positions", expected, format!("{} values", positions.len())));
    }
    check_device("positions", positions)?;
    let values = positions.host().unwrap_or_default();
    match values.iter().position(|&position| position >= rows) {
        Some(index) => Err(Error::tensor(
            "positions",
            within("rows of the tables", rows.into()),
            format!("{} at index {index}", values[index]),
        )),
        None => Ok(()),
    }
}
