//! How the kernels of linear attention cut their work: a pure function of capabilities and
//! configuration.

use super::{FeatureMap, LinearAttention, LinearVariant};
use crate::caps::Caps;
use crate::tensor::Alignment;

/// Threads of one workgroup of `linear.recurrent` and `linear.delta_scan`.
pub(super) const THREADS: u32 = 128;

/// Threads of one workgroup of `linear.columns`, as many as are lanes of a CPU's vector.
pub(super) const COLUMN_THREADS: u32 = 8;

/// Tokens whose features `linear.columns` has in workgroup memory at most.
pub(super) const MOST_STAGED: u32 = 16;

/// Tokens that go through the state together in `linear.columns`.
pub(super) const COLUMN_TOKENS: u32 = 4;

/// Threads of the kernels that own an element a thread, and of `linear.chunk_correct`.
pub(super) const SMALL_THREADS: u32 = 64;

/// Workgroups of `linear.state_scan` at most: to launch one takes an H100 2 to 4 ns, which is more than
/// it has to do where many sequences have few chunks each.
pub(super) const SCAN_WORKGROUPS: u64 = 4096;

/// Which half of a normalised call: the normaliser is a call of its own with values that are ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Half {
    /// The outputs.
    Values,
    /// The denominators.
    Ones,
}

/// Sizes that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tiles {
    /// Vectors of four features, compiled.
    pub feature_vecs: u32,
    /// Vectors of four value dimensions, compiled.
    pub value_vecs: u32,
    /// Vectors of four head dimensions, compiled.
    pub head_vecs: u32,
    /// Tokens of a chunk.
    pub chunk: u32,
    /// Vectors of columns of one workgroup: of the kernel over tokens, ...
    pub recurrent_slice: u32,
    /// ... over what chunks add to the state, ...
    pub state_slice: u32,
    /// ... over the corrections of the delta rules, ...
    pub delta_slice: u32,
    /// ... and over the outputs of chunks.
    pub output_slice: u32,
    /// Vectors of features in workgroup memory at a time, for the outputs of chunks.
    pub chunk_vecs: u32,
    /// Tokens that are taken at a time on matrix units: a part of the chunk; all of it elsewhere.
    pub block: u32,
}

impl Tiles {
    /// The sizes for a configuration, and whether the variant's kernels fit the device's workgroup
    /// memory.
    pub fn new(
        caps: &Caps,
        variant: LinearVariant,
        linear: &LinearAttention,
        half: Half,
    ) -> (Self, bool) {
        match variant {
            LinearVariant::Coop => Self::coop(caps, linear),
            _ => Self::portable(caps, linear, half),
        }
    }

    /// Sizes of the kernels on matrix units: whole matrices of 16.
    fn coop(caps: &Caps, linear: &LinearAttention) -> (Self, bool) {
        let shape = &linear.shape;
        let block = linear.block.unwrap_or_else(|| default_block(caps, linear));
        let value_vecs = shape.value_dim.next_multiple_of(16) / 4;
        let tiles = Self {
            feature_vecs: shape.head_dim.next_multiple_of(16) / 4,
            value_vecs,
            head_vecs: shape.head_dim.next_multiple_of(16) / 4,
            chunk: linear.chunk.unwrap_or_else(|| coop_chunk(linear, block)),
            block,
            state_slice: coop_slice(value_vecs),
            ..Self::portable(caps, linear, Half::Values).0
        };
        (tiles, tiles.coop_bytes() <= caps.workgroup_memory)
    }

    /// Threads of a workgroup on matrix units: a subgroup of 32 for 16 columns.
    pub const fn coop_threads(&self) -> u32 {
        8 * self.value_vecs
    }

    /// Bytes of workgroup memory of `linear.coop_output`: the arithmetic of the shader.
    fn coop_bytes(&self) -> u32 {
        let strips = self.value_vecs / 4;
        let room_rows = strips.div_ceil(4);
        let rooms = room_rows * 16 * (4 * strips.div_ceil(room_rows) + 2);
        // The queries are as many as the keys, and the scores lie behind them.
        let keys = self.block * (self.feature_vecs + 2);
        let scores = self.block * (self.block / 4 + 2);
        let values = rooms.max(self.block * (self.value_vecs + 2));
        let matrices = self.block / 16 * (self.block / 16 + 1) / 2;
        let units = 4 * matrices.next_multiple_of(strips);
        16 * rooms + 8 * (2 * keys + scores + values) + units + 8 * self.block + 64 * strips + 32
    }

    /// Sizes of the kernels that need no matrix units.
    fn portable(caps: &Caps, linear: &LinearAttention, half: Half) -> (Self, bool) {
        let features = match linear.feature_map {
            FeatureMap::Taylor2 => linear.features().next_multiple_of(4),
            _ => caps.compiled_dim(linear.shape.head_dim),
        };
        let value_vecs = match half {
            Half::Values => caps.compiled_dim(linear.shape.value_dim) / 4,
            Half::Ones => 1,
        };
        let feature_vecs = features / 4;
        let power = value_vecs.next_power_of_two();
        // Of a normalised call on matrix units, a chunk that was asked for is the other half's.
        let asked = linear.chunk.filter(|&chunk| half == Half::Values || chunk <= 128);
        let chunk = asked.unwrap_or_else(|| default_chunk(linear));
        let mut tiles = Self {
            feature_vecs,
            value_vecs,
            head_vecs: caps.compiled_dim(linear.shape.head_dim) / 4,
            chunk,
            block: chunk,
            // 4096 elements of the state in registers, 32 a thread.
            recurrent_slice: (1024 / features.next_power_of_two()).min(power).min(32),
            state_slice: if value_vecs > 16 { 32 } else { 16 },
            delta_slice: if features > 128 { 2 } else { 4 },
            output_slice: value_vecs.min(32),
            chunk_vecs: 4,
        };
        let fits = loop {
            if tiles.output_bytes(linear) <= caps.workgroup_memory {
                break true;
            }
            if tiles.chunk_vecs > 1 {
                tiles.chunk_vecs /= 2;
            } else if tiles.output_slice > tiles.chunk / 4 {
                tiles.output_slice = tiles.output_slice.div_ceil(2);
            } else {
                break false;
            }
        };
        (tiles, fits && tiles.delta_bytes() <= caps.workgroup_memory)
    }

    /// Bytes of workgroup memory of `linear.chunk_output`: the arithmetic of the shader.
    fn output_bytes(&self, linear: &LinearAttention) -> u32 {
        let stage_stride = self.chunk_vecs | 1;
        let columns = self.output_slice.next_multiple_of(self.chunk / 4);
        let tokens = if linear.rule.is_per_key_dim() { 4 } else { 2 } * self.chunk * stage_stride;
        let products = tokens + 4 * self.chunk_vecs * columns;
        let weights = 4 * self.chunk + 16 * columns;
        16 * products.max(weights) + 8 * self.chunk
    }

    /// Tokens whose features `linear.columns` has in workgroup memory: in three tiles of 4 KiB, which
    /// are [`MOST_STAGED`] tokens at most.
    pub const fn staged_tokens(&self) -> u32 {
        let tokens = 256 / self.feature_vecs;
        if tokens > MOST_STAGED { MOST_STAGED } else { tokens / COLUMN_TOKENS * COLUMN_TOKENS }
    }

    /// Bytes of workgroup memory of `linear.delta_scan`.
    fn delta_bytes(&self) -> u32 {
        16 * self.delta_slice * (4 * self.feature_vecs + self.chunk)
    }

    /// Bytes that the workspace keeps of one chunk: the arithmetic of `entry.wgsl`.
    pub fn entry_bytes(&self, linear: &LinearAttention) -> u64 {
        let state = 4 * self.feature_vecs * self.value_vecs;
        let delta = self.chunk * (self.value_vecs + 2 * self.feature_vecs);
        16 * u64::from(state + if linear.rule.is_delta() { delta } else { 0 })
    }

    /// Columns of gates that are summed.
    pub fn gates(&self, linear: &LinearAttention) -> u32 {
        if linear.rule.is_per_key_dim() { 4 * self.feature_vecs } else { 1 }
    }

    /// Parts of a chunk whose gates are summed side by side, by neighbouring threads.
    pub fn spans(&self, linear: &LinearAttention) -> u32 {
        let most = if linear.rule.is_per_key_dim() { 1 } else { SMALL_THREADS };
        most.min(1 << self.chunk.trailing_zeros())
    }

    /// Bytes of the sums of one chunk's gates.
    pub fn sum_bytes(&self, linear: &LinearAttention) -> u64 {
        8 * u64::from(self.chunk) * u64::from(self.gates(linear))
    }

    /// Chunks of one sequence, empty ones among them: see `sequences.wgsl`.
    pub fn slots(&self, linear: &LinearAttention, documents: u32) -> u32 {
        let len = linear.shape.key_len;
        if documents == 1 { len.div_ceil(self.chunk).max(1) } else { len / self.chunk + documents }
    }
}

/// Tokens of a chunk where none are asked for. Exponentials for every pair and dimension, and the
/// substitution of the delta rules, grow with its square.
const fn default_chunk(linear: &LinearAttention) -> u32 {
    if linear.rule.is_per_key_dim() || linear.rule.is_delta() { 32 } else { 64 }
}

/// Tokens that the kernels on matrix units take at a time where none are asked for. Two workgroups
/// share a core of an H100 at D=64, and one of eight subgroups fills it at D=128.
fn default_block(caps: &Caps, linear: &LinearAttention) -> u32 {
    // Emulated: several matrices where the memory of a software driver lets them.
    if caps.is_cpu && linear.shape.head_dim.max(linear.shape.value_dim) > 64 { 16 } else { 32 }
}

/// Tokens of a chunk on matrix units where none are asked for: its state is written and read in f32,
/// which long chunks do seldom, while short ones keep more workgroups busy.
fn coop_chunk(linear: &LinearAttention, block: u32) -> u32 {
    let shape = &linear.shape;
    let tokens = u64::from(shape.batch) * u64::from(shape.key_heads) * u64::from(shape.key_len);
    let blocks = tokens / (WORKGROUPS * u64::from(block));
    // A power of two, so that few kernels are compiled.
    block << blocks.clamp(2, 64).ilog2()
}

/// Workgroups that a device should have to do: several for each of some hundred cores. On an H100, of
/// 65,536 tokens of 16 heads, 512 of them took 0.50 and 1.44 ms (D=64 and 128), 1024 took 0.52 and 1.51.
const WORKGROUPS: u64 = 512;

/// Vectors of columns of one workgroup of `linear.coop_state`: four subgroups, of which an H100 takes
/// two workgroups to a core, do better than eight that wait for each other (0.36 and 0.40 ms at D=128).
/// In `linear.coop_output` they would put down the queries twice, and lose more (1.41 and 0.92 ms).
const fn coop_slice(value_vecs: u32) -> u32 {
    if value_vecs > 16 && value_vecs.is_multiple_of(8) { value_vecs / 2 } else { value_vecs }
}

/// How the tensors of one half are reached: the denominators are f32 numbers of a workspace.
pub(super) fn alignment(linear: &LinearAttention, half: Half) -> Alignment {
    match half {
        Half::Values => linear.alignment(),
        Half::Ones => Alignment::Any,
    }
}
