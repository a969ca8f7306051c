//! Binding attention: the dispatches of each piece of a call, with their parameters and bind groups.

use super::pack::{Packed, broadcast_strides};
use super::parts::Part;
use super::tensors::Tensors;
use super::{Activation, Attention, Output, Positions, Stage, Variant};
use crate::attention::mask::Term;
use crate::attention::{Inputs, Outputs, Plan};
use crate::error::Error;
use crate::launch::workspace::{
    Piece, bind_group, binding, buffer, grid, narrow_source, narrow_step, narrows, uniform,
};
use crate::launch::{Bound, Step};
use crate::params::{ABSENT, AttentionParams, UNBOUNDED};
use crate::shader::{Source, Target};
use crate::tensor::{DType, View};

impl Attention {
    /// The kernel that rounds an f32 workspace to the output, where the attention kernel cannot
    /// write whole words: 16-bit elements at any offset and stride.
    pub(super) fn narrow_source(&self, part: Option<u32>, target: Target) -> Option<Source> {
        (self.narrows() || self.widens(part)).then(|| narrow_source(self.dtype, target))
    }

    /// Whether 16-bit outputs go through a workspace and `common.narrow`.
    pub(super) fn narrows(&self) -> bool {
        matches!(self.output, Output::Attention { .. }) && narrows(self.alignment(), self.dtype)
    }
}

impl Plan {
    pub(crate) fn bind_checked(
        &self,
        inputs: &Inputs<'_>,
        outputs: &Outputs<'_>,
    ) -> Result<Bound, Error> {
        let attention = &self.attention;
        let tensors = Tensors::check(attention, inputs, outputs)?;
        crate::attention::arrays::check_arrays(attention, &inputs.arrays)?;
        let packed = Packed::new(&self.context, attention, &inputs.arrays)?;

        let mut steps = Vec::new();
        let shape = &attention.shape;
        if !shape.out().contains(&0) {
            let whole = Piece { batch: 0..shape.batch, heads: 0..shape.query_heads };
            let pieces = whole.split(&self.context, &|piece| tensors.sizes(self, piece))?;
            let workspaces = self.workspaces(&pieces);
            for piece in &pieces {
                let part = tensors.part(attention, piece);
                if !part.rows.is_some_and(|rows| rows.shape.contains(&0)) {
                    self.push_steps(&mut steps, piece, &part, &packed, &workspaces)?;
                }
            }
        }
        Ok(Bound {
            context: self.context.clone(),
            label: self.variant.label(),
            copies: packed.copies,
            steps,
            metadata: packed.metadata,
            side: packed.side,
            layout: packed.layout,
        })
    }

    /// What of a piece lies in the workspace, if anything: its output in f32, or what parts of sums
    /// over blocks hand on for each row.
    fn wide_shape(&self, piece: &Piece) -> Option<[u32; 4]> {
        let shape = &self.attention.shape;
        let hands_on = self.part.is_some() && self.variant == Variant::BlockSums;
        let dim = if hands_on { ROW_STATE } else { shape.value_dim };
        (hands_on || self.narrow.is_some())
            .then(|| [piece.batch.len() as u32, piece.heads.len() as u32, shape.query_len, dim])
    }

    /// The LSEs of a piece that its parts hand on, where the caller wants none.
    fn lse_shape(&self, piece: &Piece) -> Option<[u32; 4]> {
        let lacks = self.attention.output == Output::Attention { lse: false };
        let hands_on = self.attention.hands_on_lse(self.part) && lacks;
        hands_on.then(|| {
            let len = self.attention.shape.query_len;
            [piece.batch.len() as u32, piece.heads.len() as u32, len, 1]
        })
    }

    /// The bytes of a piece's parts of the workspaces.
    pub(super) fn workspace_sizes(
        &self,
        piece: &Piece,
    ) -> impl Iterator<Item = (&'static str, u64)> {
        let wide = self.wide_shape(piece).map(|shape| ("out in f32", bytes(shape)));
        wide.into_iter().chain(self.lse_shape(piece).map(|shape| ("lse", bytes(shape))))
    }

    /// Those of the largest piece.
    fn workspaces(&self, pieces: &[Piece]) -> Workspaces {
        let make = |shape: &dyn Fn(&Piece) -> Option<[u32; 4]>| {
            let size = pieces.iter().filter_map(|piece| shape(piece).map(bytes)).max()?;
            Some(buffer(&self.context, "workspace", size, wgpu::BufferUsages::STORAGE, None))
        };
        Workspaces {
            wide: make(&|piece| self.wide_shape(piece)),
            lse: make(&|piece| self.lse_shape(piece)),
        }
    }

    /// The dispatches of one piece.
    fn push_steps(
        &self,
        steps: &mut Vec<Step>,
        piece: &Piece,
        part: &Tensors<'_>,
        packed: &Packed,
        workspaces: &Workspaces,
    ) -> Result<(), Error> {
        let shape = &self.attention.shape;
        let (batches, heads) = (piece.batch.len() as u32, piece.heads.len() as u32);
        let view = |(buffer, shape)| View::new(buffer, DType::F32, shape);
        let wide = workspaces.wide.as_ref().zip(self.wide_shape(piece)).map(view);
        let lse = workspaces.lse.as_ref().zip(self.lse_shape(piece)).map(view);
        let direct = Tensors { out: wide.or(part.out), rows: lse.or(part.rows), ..*part };

        let block_q = match (self.tiles, self.attention.output) {
            (Some(tiles), _) => tiles.block_q,
            (None, Output::BlockSums { block_q, .. }) => block_q,
            (None, _) => 1,
        };
        let query_blocks = shape.query_len.div_ceil(block_q);
        let workgroups = u64::from(query_blocks) * u64::from(batches) * u64::from(heads);
        let params = AttentionParams {
            workgroups: workgroups as u32,
            query_blocks,
            ..self.params(piece, &direct, packed)
        };
        let parts = self.attention.parts(self.part);
        for part in &parts {
            let params = self.params_of(part, &params);
            steps.push(Step {
                pipeline: self.pipeline.clone(),
                group: self.group(&params, &direct, packed),
                workgroups: grid(&self.context, workgroups)?,
                // A product and a sum for each number of a key and of a value.
                cost: workgroups as f64
                    * f64::from(block_q)
                    * (packed.keys_per_query / parts.len() as f64).max(1.0)
                    * f64::from(2 * (shape.head_dim + shape.value_dim)),
            });
        }
        if let (Some(pipeline), Some(wide), Some(out)) = (&self.narrow, wide, part.out) {
            steps.push(narrow_step(&self.context, pipeline, &wide, &out)?);
        }
        Ok(())
    }

    /// The parameters of one part, given those of the whole.
    fn params_of(&self, part: &Part, whole: &AttentionParams) -> AttentionParams {
        let hands_on_lse = self.attention.hands_on_lse(self.part);
        AttentionParams {
            part_first: part.first,
            part_end: part.end,
            resumes: u32::from(part.resumes),
            has_lse: whole.has_lse | u32::from(hands_on_lse),
            // A sink joins once, behind the last key.
            sinks_at: if part.is_last || !hands_on_lse { whole.sinks_at } else { ABSENT },
            stage: if part.pass > 0 { part.pass } else { whole.stage },
            ..*whole
        }
    }

    fn params(&self, piece: &Piece, part: &Tensors<'_>, packed: &Packed) -> AttentionParams {
        let attention = &self.attention;
        let (shape, score) = (&attention.shape, &attention.score);
        let alignment = u64::from(self.context.caps().storage_alignment);
        let reach = |view: Option<View<'_>>| view.map_or([0; 4], |view| view.reach(alignment));
        let at = |at: Option<u32>| at.unwrap_or(ABSENT);
        let layout = &packed.layout;
        let softmax = attention.activation == Activation::Softmax;
        let scores = !matches!(attention.output, Output::Attention { .. });
        // Scores are handed out in natural units; weights are powers of two.
        let folds = !score.is_modified() && !scores;
        let log2_e = std::f32::consts::LOG2_E;
        let terms = attention.mask.terms();
        let term = |f: fn(&Term) -> u32| std::array::from_fn(|i| terms.get(i).map_or(0, f));
        let bound = |f: fn(&Term) -> i32| std::array::from_fn(|i| terms.get(i).map_or(0, f));
        let dense_mask_row = shape.key_len.div_ceil(32);
        let (dense_mask_batch, dense_mask_head) =
            broadcast_strides(packed.dense_mask, shape, [shape.query_len, dense_mask_row]);
        let (key_bias_batch, key_bias_head) =
            broadcast_strides(score.key_bias, shape, [1, shape.key_len]);
        let (keys, lists) = (&attention.keys, attention.keys.lists());
        let (list_rows, (_, list_heads)) = (keys.query_blocks(shape), lists.sizes(shape));
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
            sinks_at: at(layout.sinks),
            stage: match attention.output {
                Output::Scores(Stage::Modified) => 1,
                Output::Scores(Stage::Masked) => 2,
                Output::Scores(Stage::Probabilities) => 3,
                _ => 0,
            },
            terms: terms.len() as u32,
            list_offsets_at: at(layout.list_offsets),
            list_entries_at: at(layout.list_entries),
            list_len: packed.list_len,
            list_batch: if lists.per_batch { list_heads * list_rows } else { 0 },
            list_head: list_rows,
            list_head_group: lists.group(shape),
            list_block_q: keys.block_q().unwrap_or(1),
            list_shift: keys.block_k().trailing_zeros(),
            list_trust: packed.list_trust,
            part_first: 0,
            part_end: 0,
            resumes: 0,
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

/// Buffers that the pieces use one after the other.
struct Workspaces {
    /// See [`Plan::wide_shape`].
    wide: Option<wgpu::Buffer>,
    /// See [`Plan::lse_shape`].
    lse: Option<wgpu::Buffer>,
}

/// Numbers that parts of sums over blocks hand on for each row.
const ROW_STATE: u32 = 4;

fn bytes(shape: [u32; 4]) -> u64 {
    4 * shape.into_iter().map(u64::from).product::<u64>()
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
