//! Binding linear attention: views are checked, and the work cut into pieces by batch entries and
//! heads, and the chunks of each piece into segments that fit the workspace.

use super::check::check_arrays;
use super::plan::{Compiled, LinearInputs, LinearOutputs, LinearPlan};
use super::tensors::Tensors;
use super::tiles::{COLUMN_THREADS, Half, SCAN_WORKGROUPS, SMALL_THREADS};
use super::variant::Kernel;
use super::{Carry, LinearVariant};
use crate::error::Error;
use crate::launch::workspace::{
    Packer, Piece, bind_group, binding, bound_bytes, buffer, grid, narrow_step, uniform,
};
use crate::launch::{Bound, PackedLayout, Step};
use crate::params::{ABSENT, LinearParams};
use crate::tensor::{DType, View};

/// The workspace of the chunked kernels grows no further than this for the sake of parallel work:
/// what one kernel leaves there should still be in the cache when the next one reads it.
const WORKSPACE_BYTES: u64 = 64 << 20;

/// Chunks of a segment, unless the binding limit asks for fewer.
const LEAST_SEGMENT: u64 = 4;

/// Buffers that the pieces use one after the other.
struct Workspace {
    /// `[batch, query_heads, len]` of the largest piece.
    denominators: Option<wgpu::Buffer>,
    /// The f32 output of the largest piece, where it goes through one.
    wide: Option<wgpu::Buffer>,
    /// The entries of chunks and the sums of their gates.
    chunks: Option<wgpu::Buffer>,
    sums: Option<wgpu::Buffer>,
    /// The state between dispatches of `linear.recurrent`, where no other is carried.
    between: Option<wgpu::Buffer>,
}

/// The packed side arrays, and how many documents there are.
struct Packed {
    metadata: wgpu::Buffer,
    layout: PackedLayout,
    documents: u32,
}

/// What the dispatches of one half of one piece have in common.
struct Job<'a> {
    half: &'a Compiled,
    piece: &'a Piece,
    tensors: Tensors<'a>,
    /// Denominators: written by the first half and read by the second.
    denominators: Option<View<'a>>,
}

impl LinearPlan {
    pub(super) fn bind_checked(
        &self,
        inputs: &LinearInputs<'_>,
        outputs: &LinearOutputs<'_>,
    ) -> Result<Bound, Error> {
        let linear = &self.linear;
        let documents = check_arrays(linear, inputs.decay, inputs.starts)?;
        let tensors = Tensors::check(linear, inputs, outputs, documents)?;
        let (mut packer, mut copies) = (Packer::new(&self.context), Vec::new());
        let layout = PackedLayout {
            starts: packer.push(inputs.starts),
            decay: packer.push(inputs.decay),
            ..PackedLayout::default()
        };
        let metadata = packer.finish(&self.context, "metadata", &mut copies)?;
        let side = Packer::new(&self.context).finish(&self.context, "side", &mut copies)?;
        let packed = Packed { metadata, layout, documents };

        let mut steps = Vec::new();
        let shape = &linear.shape;
        let has_work = !shape.out().contains(&0) || linear.carry != Carry::None;
        if has_work && shape.batch > 0 {
            let whole = Piece { batch: 0..shape.batch, heads: 0..shape.key_heads };
            let sizes = |piece: &Piece| self.sizes(&tensors, piece, documents);
            let pieces = whole.split(&self.context, &sizes)?;
            let workspace = self.workspace(&pieces, documents)?;
            for piece in &pieces {
                let part = tensors.part(linear, piece, documents);
                self.push_piece(&mut steps, piece, &part, &packed, &workspace)?;
            }
        }
        let label = self.variant.label();
        let (context, metadata) = (self.context.clone(), packed.metadata);
        Ok(Bound { context, label, copies, steps, metadata, side, layout })
    }

    /// The bytes that a piece binds of each tensor and, with segments of one chunk, of the workspace.
    fn sizes(
        &self,
        tensors: &Tensors<'_>,
        piece: &Piece,
        documents: u32,
    ) -> Vec<(&'static str, u64)> {
        let part = tensors.part(&self.linear, piece, documents);
        let named = [
            ("query", Some(part.query)),
            ("key", Some(part.key)),
            ("value", Some(part.value)),
            ("out", Some(part.out)),
            ("state", part.state),
            ("normalizer", part.normalizer),
            ("gate", part.gate),
            ("beta", part.beta),
        ];
        let size =
            |(name, view): (_, Option<View<'_>>)| Some((name, bound_bytes(&self.context, &view?)));
        let mut sizes: Vec<_> = named.into_iter().filter_map(size).collect();
        if self.narrow.is_some() {
            sizes.push(("the f32 workspace behind `out`", 4 * elements(self.wide_shape(piece))));
        }
        if self.keeps_state() {
            sizes.push(("the state in the workspace", self.between_bytes(piece, documents)));
        }
        if !self.variant.takes_tokens() {
            for half in &self.halves {
                sizes.push(("the workspace of two chunks", 2 * self.slot_bytes(half, piece)));
            }
        }
        sizes
    }

    /// Bytes of the workspace for one chunk of every key head of a piece: of whichever of its two
    /// buffers is larger.
    fn slot_bytes(&self, half: &Compiled, piece: &Piece) -> u64 {
        let heads = piece.batch.len() as u64 * piece.heads.len() as u64;
        heads * half.tiles.entry_bytes(&self.linear).max(half.tiles.sum_bytes(&self.linear))
    }

    /// Chunks that are processed at a time.
    fn segment(&self, half: &Compiled, piece: &Piece, documents: u32) -> u32 {
        let slot = self.slot_bytes(half, piece).max(1);
        let wanted = (WORKSPACE_BYTES / slot).max(LEAST_SEGMENT);
        // One more where segments follow each other: see `entries`.
        let most = (self.context.caps().storage_binding / slot).saturating_sub(1);
        let most = most.min(u64::from(half.walk.unwrap_or(u32::MAX)));
        wanted.min(most).clamp(1, u64::from(half.tiles.slots(&self.linear, documents))) as u32
    }

    /// Entries that the workspace has for each key head: one more where segments follow each other,
    /// for the state between them.
    fn entries(&self, half: &Compiled, piece: &Piece, documents: u32) -> u32 {
        let segment = self.segment(half, piece, documents);
        segment + u32::from(segment < half.tiles.slots(&self.linear, documents))
    }

    /// Whether nobody sees a state, since none is carried and every half is a single chunk: before that
    /// stand the zeros of a new workspace, which the halves share, so that no other may write there.
    fn leaves_workspace_zero(&self, documents: u32) -> bool {
        let is_single = |half: &Compiled| half.tiles.slots(&self.linear, documents) == 1;
        self.linear.carry == Carry::None && self.halves.iter().all(is_single)
    }

    /// Whether a state passes through the workspace from one dispatch of `linear.recurrent` to the next.
    fn keeps_state(&self) -> bool {
        let is_cut = |half: &Compiled| half.walk.is_some_and(|w| w < self.linear.shape.key_len);
        self.variant.takes_tokens()
            && self.linear.carry == Carry::None
            && self.halves.iter().any(is_cut)
    }

    /// `[batch · documents, key_heads, features, value_dim]` of a piece.
    fn state_shape(&self, half: &Compiled, piece: &Piece, documents: u32) -> [u32; 4] {
        let columns = if half.half == Half::Ones { 1 } else { self.linear.shape.value_dim };
        let sequences = piece.batch.len() as u32 * documents;
        [sequences, piece.heads.len() as u32, self.linear.features(), columns]
    }

    /// Bytes of the larger state of a piece that passes through the workspace.
    fn between_bytes(&self, piece: &Piece, documents: u32) -> u64 {
        let bytes = |half| 4 * elements(self.state_shape(half, piece, documents));
        self.halves.iter().map(bytes).max().unwrap_or(0)
    }

    /// `[batch, query_heads, len, value_dim]` of a piece.
    fn wide_shape(&self, piece: &Piece) -> [u32; 4] {
        let shape = &self.linear.shape;
        let heads = piece.heads.len() as u32 * (shape.query_heads / shape.key_heads);
        [piece.batch.len() as u32, heads, shape.query_len, shape.value_dim]
    }

    fn workspace(&self, pieces: &[Piece], documents: u32) -> Result<Workspace, Error> {
        let allowed = self.context.caps().buffer;
        let make = |label: &str, size: u64| {
            if size > allowed {
                let what = format!("the workspace `{label}`");
                return Err(Error::Limit { what, limit: "maxBufferSize", needed: size, allowed });
            }
            let usage = wgpu::BufferUsages::STORAGE;
            Ok(Some(buffer(&self.context, label, size.max(16), usage, None)))
        };
        let largest = |size: &dyn Fn(&Piece) -> u64| pieces.iter().map(size).max().unwrap_or(0);
        let rows = |piece: &Piece| {
            let [batch, heads, len, _] = self.wide_shape(piece);
            4 * elements([batch, heads, len, 1])
        };
        let chunks = |size: &dyn Fn(&Compiled) -> u64| {
            largest(&|piece| {
                let of_half = |half: &Compiled| {
                    let heads = piece.batch.len() as u64 * piece.heads.len() as u64;
                    let entries = u64::from(self.entries(half, piece, documents));
                    heads * entries * size(half)
                };
                self.halves.iter().map(of_half).max().unwrap_or(0)
            })
        };
        let linear = &self.linear;
        let chunked = !self.variant.takes_tokens();
        let when = |wanted: bool, label: &str, size: u64| {
            if wanted { make(label, size) } else { Ok(None) }
        };
        let wide = largest(&|piece| 4 * elements(self.wide_shape(piece)));
        let between = |piece: &Piece| self.between_bytes(piece, documents);
        let entries = chunks(&|half| half.tiles.entry_bytes(linear));
        let sums = chunks(&|half| half.tiles.sum_bytes(linear));
        Ok(Workspace {
            denominators: when(linear.normalize.is_some(), "denominators", largest(&rows))?,
            wide: when(self.narrow.is_some(), "wide output", wide)?,
            chunks: when(chunked, "chunks", entries)?,
            sums: when(chunked && linear.rule.is_gated(), "sums of gates", sums)?,
            between: when(self.keeps_state(), "state", largest(&between))?,
        })
    }

    /// The dispatches of one piece: denominators, outputs, rounding.
    fn push_piece(
        &self,
        steps: &mut Vec<Step>,
        piece: &Piece,
        part: &Tensors<'_>,
        packed: &Packed,
        workspace: &Workspace,
    ) -> Result<(), Error> {
        let shape = self.wide_shape(piece);
        let [batch, heads, len, _] = shape;
        let f32_view = |buffer, shape| View::new(buffer, DType::F32, shape);
        let wide = workspace.wide.as_ref().map(|buffer| f32_view(buffer, shape));
        let denominators = workspace.denominators.as_ref();
        let denominators = denominators.map(|buffer| f32_view(buffer, [batch, heads, len, 1]));
        for half in &self.halves {
            let tensors = match (half.half, denominators) {
                (Half::Ones, Some(out)) => Tensors { out, state: part.normalizer, ..*part },
                _ => Tensors { out: wide.unwrap_or(part.out), ..*part },
            };
            let between = workspace
                .between
                .as_ref()
                .map(|buffer| f32_view(buffer, self.state_shape(half, piece, packed.documents)));
            let tensors = Tensors { state: tensors.state.or(between), ..tensors };
            let job = Job { half, piece, tensors, denominators };
            self.push_half(steps, &job, packed, workspace)?;
        }
        if let (Some(pipeline), Some(wide)) = (&self.narrow, wide)
            && !part.out.shape.contains(&0)
        {
            steps.push(narrow_step(&self.context, pipeline, &wide, &part.out)?);
        }
        Ok(())
    }

    fn push_half(
        &self,
        steps: &mut Vec<Step>,
        job: &Job<'_>,
        packed: &Packed,
        workspace: &Workspace,
    ) -> Result<(), Error> {
        let params = self.params(job, packed);
        if self.variant.takes_tokens() {
            let (len, most) = (params.len, job.half.walk.unwrap_or(u32::MAX));
            // One dispatch at least: a state may have to be written.
            for first_slot in (0..len.max(1)).step_by(most as usize) {
                let segment_slots = most.min(len - first_slot);
                let params = LinearParams { slots: len, first_slot, segment_slots, ..params };
                self.push_kernels(steps, job, &params, packed, workspace)?;
            }
            return Ok(());
        }
        let segment = self.segment(job.half, job.piece, packed.documents);
        let slot_capacity = self.entries(job.half, job.piece, packed.documents);
        let slots = job.half.tiles.slots(&self.linear, packed.documents);
        for first_slot in (0..slots).step_by(segment as usize) {
            let params = LinearParams {
                slots,
                first_slot,
                segment_slots: segment.min(slots - first_slot),
                slot_capacity,
                ..params
            };
            self.push_kernels(steps, job, &params, packed, workspace)?;
        }
        Ok(())
    }

    /// The kernels of one half, for one segment.
    fn push_kernels(
        &self,
        steps: &mut Vec<Step>,
        job: &Job<'_>,
        params: &LinearParams,
        packed: &Packed,
        workspace: &Workspace,
    ) -> Result<(), Error> {
        for (kernel, _, pipeline) in &job.half.kernels {
            let (workgroups, slices) = self.workgroups(*kernel, job, params);
            if workgroups == 0 {
                continue;
            }
            let params = LinearParams { workgroups: workgroups as u32, slices, ..*params };
            let group = self.group((*kernel, pipeline), job, &params, packed, workspace);
            steps.push(Step {
                pipeline: pipeline.clone(),
                group,
                workgroups: grid(&self.context, workgroups)?,
                cost: self.cost(job, &params),
            });
        }
        Ok(())
    }

    /// What a kernel is bound to: see `tensors.wgsl`, `scan.wgsl` and `chunk_sums.wgsl`.
    fn group(
        &self,
        (kernel, pipeline): (Kernel, &wgpu::ComputePipeline),
        job: &Job<'_>,
        params: &LinearParams,
        packed: &Packed,
        workspace: &Workspace,
    ) -> wgpu::BindGroup {
        let (context, tensors) = (&self.context, &job.tensors);
        let uniform = uniform(context, bytemuck::bytes_of(params));
        let uniform = uniform.as_entire_buffer_binding();
        let absent = context.absent();
        let chunks = workspace.chunks.as_ref().unwrap_or(&absent.outputs[0]);
        let chunks = chunks.as_entire_buffer_binding();
        let sums = workspace.sums.as_ref().unwrap_or(&absent.input).as_entire_buffer_binding();
        let metadata = packed.metadata.as_entire_buffer_binding();
        let state = binding(context, tensors.state, &absent.outputs[1]);
        let gate = binding(context, tensors.gate, &absent.input);
        let resources = match kernel {
            Kernel::ChunkSums => vec![uniform, gate, sums, metadata],
            Kernel::StateScan | Kernel::DeltaScan => vec![uniform, chunks, state, sums, metadata],
            _ => {
                let is_recurrent = kernel.takes_tokens();
                let writes =
                    is_recurrent || matches!(kernel, Kernel::ChunkOutput | Kernel::CoopOutput);
                let out = Some(tensors.out).filter(|_| writes);
                let denominators = job.denominators.filter(|_| job.half.half == Half::Values);
                vec![
                    uniform,
                    binding(context, Some(tensors.query), &absent.input),
                    binding(context, Some(tensors.key), &absent.input),
                    binding(context, Some(tensors.value), &absent.input),
                    binding(context, out, &absent.outputs[0]),
                    if is_recurrent { state } else { chunks },
                    if is_recurrent { gate } else { sums },
                    binding(context, tensors.beta.or(denominators), &absent.input),
                    metadata,
                ]
            }
        };
        bind_group(context, pipeline, kernel.label(), &resources)
    }

    /// An estimate of a dispatch's operations: as if every kernel did what the longest does.
    fn cost(&self, job: &Job<'_>, params: &LinearParams) -> f64 {
        let (tokens, chunk) = match self.variant {
            LinearVariant::Columns | LinearVariant::Recurrent => (params.segment_slots, 1),
            _ => (job.half.tiles.chunk * params.segment_slots, self.chunk()),
        };
        let sizes = [params.features, params.value_dim, params.group, chunk].map(f64::from);
        let [features, value_dim, group, chunk] = sizes;
        let each = (4.0 + 2.0 * group) * features * value_dim
            + 2.0 * group * chunk * (features + value_dim);
        each * f64::from(tokens) * f64::from(params.batch) * f64::from(params.heads)
    }

    /// The workgroups of a dispatch, and the slices that columns are cut into.
    fn workgroups(&self, kernel: Kernel, job: &Job<'_>, params: &LinearParams) -> (u64, u32) {
        let tiles = &job.half.tiles;
        let heads = u64::from(params.batch) * u64::from(params.heads);
        let entries = heads * u64::from(params.segment_slots);
        let cut = |slice: u32| tiles.value_vecs.div_ceil(slice);
        let threads = |elements: u64| elements.div_ceil(u64::from(SMALL_THREADS));
        match kernel {
            Kernel::ChunkState | Kernel::CoopState | Kernel::StateScan
                if self.leaves_workspace_zero(params.documents) =>
            {
                (0, 1)
            }
            Kernel::Recurrent => {
                let slices = cut(tiles.recurrent_slice);
                (heads * u64::from(params.documents) * u64::from(slices), slices)
            }
            Kernel::Columns => {
                let slices = cut(COLUMN_THREADS);
                (heads * u64::from(params.documents) * u64::from(slices), slices)
            }
            Kernel::ChunkSums => {
                let sums = tiles.gates(&self.linear) * tiles.spans(&self.linear);
                (threads(entries * u64::from(sums)), 1)
            }
            Kernel::ChunkState => {
                let slices = cut(tiles.state_slice);
                (entries * u64::from(tiles.feature_vecs.div_ceil(16) * slices), slices)
            }
            Kernel::StateScan => {
                let vectors = 4 * tiles.feature_vecs * tiles.value_vecs;
                let limited = self.context.caps().loop_rounds.is_some();
                let most = if limited { u64::MAX } else { SCAN_WORKGROUPS };
                (threads(heads * u64::from(vectors)).min(most), 1)
            }
            Kernel::ChunkCorrect => (entries, 1),
            Kernel::CoopState => {
                let slices = cut(tiles.state_slice);
                (entries * u64::from(slices), slices)
            }
            Kernel::CoopOutput => (entries * u64::from(params.group), 1),
            Kernel::DeltaScan => {
                let slices = cut(tiles.delta_slice);
                (heads * u64::from(slices), slices)
            }
            Kernel::ChunkOutput => {
                let slices = cut(tiles.output_slice);
                (entries * u64::from(params.group) * u64::from(slices), slices)
            }
        }
    }

    fn params(&self, job: &Job<'_>, packed: &Packed) -> LinearParams {
        let (linear, tensors) = (&self.linear, &job.tensors);
        let shape = &linear.shape;
        let alignment = u64::from(self.context.caps().storage_alignment);
        let reach = |view: Option<View<'_>>| view.map_or([0; 4], |view| view.reach(alignment));
        let dtype = |view: Option<View<'_>>| match view.map(|view| view.dtype) {
            None | Some(DType::F32) => 0,
            Some(DType::F16) => 1,
            Some(DType::BF16) => 2,
        };
        let is_ones = job.half.half == Half::Ones;
        let token = tensors.beta.or(job.denominators.filter(|_| !is_ones));
        LinearParams {
            query: reach(Some(tensors.query)),
            key: reach(Some(tensors.key)),
            value: reach(Some(tensors.value)),
            out: reach(Some(tensors.out)),
            state: reach(tensors.state),
            gate: reach(tensors.gate),
            token: reach(token),
            batch: job.piece.batch.len() as u32,
            heads: job.piece.heads.len() as u32,
            group: shape.query_heads / shape.key_heads,
            len: shape.key_len,
            head_dim: shape.head_dim,
            features: linear.features(),
            value_dim: if is_ones { 1 } else { shape.value_dim },
            head_base: job.piece.heads.start,
            documents: packed.documents,
            starts_at: packed.layout.starts.unwrap_or(ABSENT),
            slopes_at: packed.layout.decay.unwrap_or(ABSENT),
            gate_dtype: dtype(tensors.gate),
            token_dtype: dtype(token),
            carries_in: u32::from(linear.carry == Carry::InOut),
            carries_out: u32::from(linear.carry != Carry::None),
            scale: linear.scale,
            epsilon: linear.normalize.unwrap_or(0.0),
            ..LinearParams::default()
        }
    }
}

fn elements(shape: [u32; 4]) -> u64 {
    shape.into_iter().map(u64::from).product()
}
