//! Binding attention: views are checked, side arrays packed, and large tensors cut into pieces.

use super::{Activation, Attention, Output, Positions, Stage};
use crate::params::{ABSENT, AttentionParams, UNBOUNDED};
use crate::plan::{Bound, Copy, Inputs, Outputs, PackedLayout, Plan, Step};
use crate::shader::{Source, Target};
use crate::workspace::{
    Packer, Piece, bind_group, binding, bound_bytes, buffer, check_buffers, expected, grid,
    narrow_source, narrow_step, uniform,
};
use crate::{Alignment, Arrays, Broadcast, Context, DType, Error, Term, View};

impl Attention {
    /// The kernel that rounds an f32 workspace to the output, where the attention kernel cannot
    /// write whole words: 16-bit elements at any offset and stride.
    pub(super) fn narrow_source(&self, target: Target) -> Option<Source> {
        let needed = matches!(self.output, Output::Attention { .. })
            && self.alignment() == Alignment::Any
            && self.dtype != DType::F32;
        needed.then(|| narrow_source(self.dtype, target))
    }
}

/// The tensors of a call by name; the order is that of the bindings.
struct Tensors<'a> {
    query: View<'a>,
    key: View<'a>,
    value: View<'a>,
    out: Option<View<'a>>,
    /// The LSE, or the scores.
    rows: Option<View<'a>>,
    bias: Option<View<'a>>,
}

impl Plan {
    pub(crate) fn bind_checked(
        &self,
        inputs: &Inputs<'_>,
        outputs: &Outputs<'_>,
    ) -> Result<Bound, Error> {
        let attention = &self.attention;
        let tensors = Tensors::check(attention, inputs, outputs)?;
        crate::arrays::check_arrays(attention, &inputs.arrays)?;
        let packed = Packed::new(&self.context, &inputs.arrays)?;

        let mut steps = Vec::new();
        let shape = &attention.shape;
        if !shape.out().contains(&0) {
            let whole = Piece { batch: 0..shape.batch, heads: 0..shape.query_heads };
            let pieces = whole.split(&self.context, &|piece| tensors.sizes(self, piece))?;
            let workspace = self.workspace(&pieces)?;
            for piece in &pieces {
                let part = tensors.part(attention, piece);
                if !part.rows.is_some_and(|rows| rows.shape.contains(&0)) {
                    self.push_steps(&mut steps, piece, &part, &packed, workspace.as_ref())?;
                }
            }
        }
        Ok(Bound {
            label: self.variant.label(),
            copies: packed.copies,
            steps,
            metadata: packed.metadata,
            side: packed.side,
            layout: packed.layout,
        })
    }

    /// The f32 output of the largest piece, where the output goes through one.
    fn workspace(&self, pieces: &[Piece]) -> Result<Option<wgpu::Buffer>, Error> {
        if self.narrow.is_none() {
            return Ok(None);
        }
        let shape = &self.attention.shape;
        let rows = |piece: &Piece| piece.batch.len() as u64 * piece.heads.len() as u64;
        let largest = pieces.iter().map(rows).max().unwrap_or(0);
        let size = 4 * largest * u64::from(shape.query_len) * u64::from(shape.value_dim);
        let allowed = self.context.caps().buffer;
        if size > allowed {
            return Err(Error::Limit {
                what: "the f32 workspace behind `out`".into(),
                limit: "maxBufferSize",
                needed: size,
                allowed,
            });
        }
        Ok(Some(buffer(&self.context, "workspace", size, wgpu::BufferUsages::STORAGE, None)))
    }

    /// The dispatches of one piece.
    fn push_steps(
        &self,
        steps: &mut Vec<Step>,
        piece: &Piece,
        part: &Tensors<'_>,
        packed: &Packed,
        workspace: Option<&wgpu::Buffer>,
    ) -> Result<(), Error> {
        let shape = &self.attention.shape;
        let (batches, heads) = (piece.batch.len() as u32, piece.heads.len() as u32);
        let wide = workspace
            .map(|w| View::new(w, DType::F32, [batches, heads, shape.query_len, shape.value_dim]));
        let direct = Tensors { out: wide.or(part.out), ..*part };

        let block_q = self.tiles.map_or(1, |tiles| tiles.block_q);
        let query_blocks = shape.query_len.div_ceil(block_q);
        let workgroups = u64::from(query_blocks) * u64::from(batches) * u64::from(heads);
        let params = AttentionParams {
            workgroups: workgroups as u32,
            query_blocks,
            ..self.params(piece, &direct, packed)
        };
        steps.push(Step {
            pipeline: self.pipeline.clone(),
            group: self.group(&params, &direct, packed),
            workgroups: grid(&self.context, workgroups)?,
        });
        if let (Some(pipeline), Some(wide), Some(out)) = (&self.narrow, wide, part.out) {
            steps.push(narrow_step(&self.context, pipeline, &wide, &out)?);
        }
        Ok(())
    }

    fn params(&self, piece: &Piece, part: &Tensors<'_>, packed: &Packed) -> AttentionParams {
        let attention = &self.attention;
        let (shape, score) = (&attention.shape, &attention.score);
        let alignment = u64::from(self.context.caps().storage_alignment);
        let reach = |view: Option<View<'_>>| view.map_or([0; 4], |view| view.reach(alignment));
        let at = |at: Option<u32>| at.unwrap_or(ABSENT);
        let layout = &packed.layout;
        let softmax = attention.activation == Activation::Softmax;
        let scores = matches!(attention.output, Output::Scores(_));
        // Scores are handed out in natural units; weights are powers of two.
        let folds = !score.is_modified() && !scores;
        let log2_e = std::f32::consts::LOG2_E;
        let terms = attention.mask.terms();
        let term = |f: fn(&Term) -> u32| std::array::from_fn(|i| terms.get(i).map_or(0, f));
        let bound = |f: fn(&Term) -> i32| std::array::from_fn(|i| terms.get(i).map_or(0, f));
        let dense_mask_row = shape.key_len.div_ceil(32);
        let (dense_mask_batch, dense_mask_head) = broadcast_strides(
            packed.dense_mask,
            shape.query_heads,
            shape.query_len * dense_mask_row,
        );
        let (key_bias_batch, key_bias_head) =
            broadcast_strides(score.key_bias, shape.query_heads, shape.key_len);
        AttentionParams {
            query: reach(Some(part.query)),
            key: reach(Some(part.key)),
            value: reach(Some(part.value)),
            out: reach(part.out),
            lse: reach(part.rows),
            bias: reach(part.bias),
            term_words: term(words),
            term_left: bound(|t| clamp_bound(t.window.and_then(|w| w.0))),
            term_right: bound(|t| {
                let right = clamp_bound(t.window.and_then(|w| w.1));
                if t.causal { right.min(0) } else { right }
            }),
            term_limit: bound(|t| clamp_bound(t.sink).min(clamp_bound(t.prefix))),
            batch: piece.batch.len() as u32,
            heads: piece.heads.len() as u32,
            query_len: shape.query_len,
            key_len: shape.key_len,
            head_dim: shape.head_dim,
            value_dim: shape.value_dim,
            workgroups: 0,
            query_blocks: 0,
            batch_base: piece.batch.start,
            head_base: piece.heads.start,
            key_head_base: shape.key_head(piece.heads.start),
            value_head_base: shape.value_head(piece.heads.start),
            query_heads: shape.query_heads,
            key_heads: shape.key_heads,
            value_heads: shape.value_heads,
            offset_kind: match attention.positions {
                Positions::TopLeft => 0,
                Positions::BottomRight if attention.mask.any(|t| t.lengths) => 2,
                Positions::BottomRight => 1,
                Positions::PerBatch => 3,
            },
            offset: match attention.positions {
                Positions::BottomRight => shape.key_len as i32 - shape.query_len as i32,
                _ => 0,
            },
            query_scale: attention.scale() * if folds { log2_e } else { 1.0 },
            softcap: score.softcap.unwrap_or(0.0),
            sigmoid_bias: if softmax { 0.0 } else { attention.sigmoid_bias() * log2_e },
            bias_dtype: match score.bias {
                None => 0,
                Some((DType::F32, _)) => 1,
                Some((DType::F16, _)) => 2,
                Some((DType::BF16, _)) => 3,
            },
            has_lse: u32::from(attention.output == (Output::Attention { lse: true })),
            document_positions: u32::from(terms.iter().all(|t| t.documents)),
            nan: f32::NAN.to_bits(),
            query_offset_at: at(layout.query_offset),
            query_starts_at: at(layout.query_starts),
            key_starts_at: at(layout.key_starts),
            documents: packed.documents,
            key_lengths_at: at(layout.key_lengths),
            query_roles_at: at(layout.query_roles),
            key_roles_at: at(layout.key_roles),
            role_table_at: at(layout.role_table),
            tree_bits_at: at(layout.tree_bits),
            dense_mask_at: at(layout.dense_mask),
            dense_mask_batch,
            dense_mask_head,
            dense_mask_row,
            alibi_slopes_at: at(layout.alibi_slopes),
            key_bias_at: at(layout.key_bias),
            key_bias_batch,
            key_bias_head,
            stage: match attention.output {
                Output::Scores(Stage::Modified) => 1,
                Output::Scores(Stage::Masked) => 2,
                Output::Scores(Stage::Probabilities) => 3,
                _ => 0,
            },
            terms: terms.len() as u32,
            padding: 0,
        }
    }

    fn group(
        &self,
        params: &AttentionParams,
        part: &Tensors<'_>,
        packed: &Packed,
    ) -> wgpu::BindGroup {
        let context = &self.context;
        let uniform = uniform(context, bytemuck::bytes_of(params));
        let absent = context.absent();
        let resources = [
            uniform.as_entire_buffer_binding(),
            binding(context, Some(part.query), &absent.input),
            binding(context, Some(part.key), &absent.input),
            binding(context, Some(part.value), &absent.input),
            binding(context, part.out, &absent.outputs[0]),
            binding(context, part.rows, &absent.outputs[1]),
            packed.metadata.as_entire_buffer_binding(),
            packed.side.as_entire_buffer_binding(),
            binding(context, part.bias, &absent.input),
        ];
        bind_group(context, &self.pipeline, self.variant.label(), &resources)
    }
}

impl<'a> Tensors<'a> {
    /// Checks every view against the configuration and against the others.
    fn check(
        attention: &Attention,
        inputs: &Inputs<'a>,
        outputs: &Outputs<'a>,
    ) -> Result<Self, Error> {
        let (shape, dtype) = (&attention.shape, Some(attention.dtype));
        inputs.query.check("query", shape.query(), dtype)?;
        inputs.key.check("key", shape.key(), dtype)?;
        inputs.value.check("value", shape.value(), dtype)?;
        let bias = attention.score.bias.map(|(dtype, broadcast)| {
            let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
            ([batch, heads, shape.query_len, shape.key_len], dtype)
        });
        let bias = expected("bias", inputs.bias, bias)?;
        let (out, lse, scores) = match attention.output {
            Output::Attention { lse } => {
                (Some((shape.out(), attention.dtype)), lse.then(|| (shape.lse(), DType::F32)), None)
            }
            Output::Scores(_) => (None, None, Some((shape.scores(), DType::F32))),
        };
        let out = expected("out", outputs.out, out)?;
        let lse = expected("lse", outputs.lse, lse)?;
        let scores = expected("scores", outputs.scores, scores)?;

        let read = [
            ("query", Some(inputs.query)),
            ("key", Some(inputs.key)),
            ("value", Some(inputs.value)),
            ("bias", bias),
        ];
        let written = [("out", out), ("lse", lse), ("scores", scores)];
        for (name, view) in written {
            view.map_or(Ok(()), |view| view.check_disjoint(name))?;
        }
        check_buffers(&read, &written)?;
        if attention.alignment() == Alignment::Vec4 {
            for (name, view) in read.iter().take(3).chain(&written[..1]) {
                if let Some(view) = view {
                    view.check_vec4(name)?;
                }
            }
        }
        let Inputs { query, key, value, .. } = *inputs;
        Ok(Self { query, key, value, out, rows: lse.or(scores), bias })
    }

    /// The views of one piece.
    fn part(&self, attention: &Attention, piece: &Piece) -> Self {
        let shape = &attention.shape;
        let heads_of = |head: fn(&crate::Shape, u32) -> u32| {
            head(shape, piece.heads.start)..head(shape, piece.heads.end - 1) + 1
        };
        let whole = |view: View<'a>| view.part(piece.batch.clone(), piece.heads.clone());
        let bias = attention.score.bias.map(|(_, broadcast)| broadcast);
        Self {
            query: whole(self.query),
            key: self.key.part(piece.batch.clone(), heads_of(crate::Shape::key_head)),
            value: self.value.part(piece.batch.clone(), heads_of(crate::Shape::value_head)),
            out: self.out.map(whole),
            rows: self.rows.map(whole),
            bias: self.bias.zip(bias).map(|(view, broadcast)| {
                let batch = if broadcast.per_batch { piece.batch.clone() } else { 0..1 };
                let heads = if broadcast.per_head { piece.heads.clone() } else { 0..1 };
                view.part(batch, heads)
            }),
        }
    }

    /// The bytes that a piece binds of each tensor.
    fn sizes(&self, plan: &Plan, piece: &Piece) -> Vec<(&'static str, u64)> {
        let part = self.part(&plan.attention, piece);
        let named = [
            ("query", Some(part.query)),
            ("key", Some(part.key)),
            ("value", Some(part.value)),
            ("out", part.out),
            ("lse or scores", part.rows),
            ("bias", part.bias),
        ];
        let size =
            |(name, view): (_, Option<View<'_>>)| Some((name, bound_bytes(&plan.context, &view?)));
        named.into_iter().filter_map(size).collect()
    }
}

/// The bits of a term's words that are not numbers, as `shaders/attention/mask.wgsl` reads them.
fn words(term: &Term) -> u32 {
    [term.causal_top_left, term.documents, term.lengths, term.roles, term.tree, term.dense]
        .into_iter()
        .enumerate()
        .map(|(bit, set)| u32::from(set) << bit)
        .sum()
}

fn clamp_bound(bound: Option<u32>) -> i32 {
    bound.map_or(UNBOUNDED, |bound| bound.min(UNBOUNDED as u32) as i32)
}

/// Numbers between batch entries and between heads of an array of `row` numbers each.
fn broadcast_strides(broadcast: Option<Broadcast>, heads: u32, row: u32) -> (u32, u32) {
    let Some(broadcast) = broadcast else { return (0, 0) };
    let (_, own_heads) = broadcast.sizes(1, heads);
    (
        if broadcast.per_batch { own_heads * row } else { 0 },
        if broadcast.per_head { row } else { 0 },
    )
}

/// The side arrays in two buffers, and the copies that fill what lies on the device.
struct Packed {
    metadata: wgpu::Buffer,
    side: wgpu::Buffer,
    layout: PackedLayout,
    copies: Vec<Copy>,
    documents: u32,
    /// Along which axes the dense mask has bits of its own.
    dense_mask: Option<Broadcast>,
}

impl Packed {
    fn new(context: &Context, arrays: &Arrays<'_>) -> Result<Self, Error> {
        let (mut metadata, mut side) = (Packer::default(), Packer::default());
        let layout = PackedLayout {
            query_offset: metadata.push(arrays.query_offset),
            query_starts: metadata.push(arrays.query_starts),
            key_starts: metadata.push(arrays.key_starts),
            key_lengths: metadata.push(arrays.key_lengths),
            query_roles: metadata.push(arrays.query_roles),
            key_roles: metadata.push(arrays.key_roles),
            role_table: metadata.push(arrays.role_table),
            tree_bits: metadata.push(arrays.tree_bits),
            dense_mask: metadata.push(arrays.dense_mask.map(|(array, _)| array)),
            alibi_slopes: side.push(arrays.alibi_slopes),
            key_bias: side.push(arrays.key_bias),
        };
        let mut copies = Vec::new();
        let documents = arrays.query_starts.map_or(0, |starts| starts.len() - 1) as u32;
        Ok(Self {
            metadata: metadata.finish(context, "metadata", &mut copies)?,
            side: side.finish(context, "side", &mut copies)?,
            layout,
            copies,
            documents,
            dense_mask: arrays.dense_mask.map(|(_, broadcast)| broadcast),
        })
    }
}
