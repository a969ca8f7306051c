//! How the portable kernels cut their work: a pure function of capabilities and shape.

use std::fmt;

use super::{Attention, Variant};
use crate::caps::Caps;
use crate::shape::Shape;

/// The sizes of one kernel's tiles. One workgroup of `threads_x · threads_y` threads computes
/// `block_q` rows of output over tiles of `block_k` keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Tiles {
    /// Queries of one workgroup.
    pub block_q: u32,
    /// Keys of one step.
    pub block_k: u32,
    /// Threads side by side over keys, and over value dimensions; a power of two.
    pub threads_x: u32,
    /// Threads below each other over queries.
    pub threads_y: u32,
    /// Keys that are scored at a time in `attention.coop`, a part of `block_k`; all of them elsewhere.
    pub step_k: u32,
    /// Neighbouring threads that own a row of scores together; 1 in `attention.tiled`.
    pub lanes: u32,
    /// Compiled head dimension in vectors of four; the true one may be smaller.
    pub head_vecs: u32,
    /// Compiled value dimension in vectors of four.
    pub value_vecs: u32,
    /// Vectors of the head dimension in workgroup memory at a time; all of them keep the queries
    /// there for good.
    pub chunk_vecs: u32,
    /// Values in workgroup memory at a time.
    pub value_keys: u32,
    /// Bytes of workgroup memory to take at most, whatever the device has: workgroups share a core
    /// while there is room for several.
    pub memory: u32,
}

impl fmt::Display for Tiles {
    /// What tells tiles of one configuration apart: `128x64/16x16 lanes 2 step 64 chunk 16 values 64`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { block_q, block_k, threads_x, threads_y, lanes, step_k, .. } = self;
        let Self { chunk_vecs, value_keys, .. } = self;
        write!(
            f,
            "{block_q}x{block_k}/{threads_x}x{threads_y} lanes {lanes} step {step_k} chunk \
             {chunk_vecs} values {value_keys}"
        )
    }
}

/// Workgroup memory that the walk and the row factors take beside the tiles.
const RESERVED_BYTES: u32 = 256;

/// No device's workgroup has more threads, rows or keys; keeps the arithmetic within a u32.
const MAX_SIZE: u32 = 1024;

impl Tiles {
    /// Threads of a workgroup.
    pub const fn threads(&self) -> u32 {
        self.threads_x * self.threads_y
    }

    /// Bytes of workgroup memory that `variant` needs: the arithmetic of
    /// `shaders/attention/forward.wgsl` or `coop.wgsl`; `rows.wgsl` has none beside the walk.
    pub fn workgroup_bytes(&self, variant: Variant) -> u32 {
        if variant == Variant::Coop {
            // Rooms for the scores and the weights of one band of rows of each subgroup, four abreast.
            let abreast = self.threads_y.clamp(1, 4);
            let row = abreast * (2 / self.lanes.max(1)) * self.step_k / 4 + 2;
            let rooms = 16 * self.threads_y.div_ceil(abreast) * row * (16 + 8);
            let staged = 8 * (self.head_vecs + 2 + self.value_vecs + 2);
            // Each subgroup has ranges of its own, of up to four terms.
            return rooms + self.block_k * staged + RESERVED_BYTES + 64 * self.threads_y;
        }
        if variant == Variant::Rows {
            return RESERVED_BYTES;
        }
        let stride = self.chunk_vecs | 1;
        let key_at = self.block_q * stride;
        let value_at = if self.chunk_vecs == self.head_vecs { key_at } else { 0 };
        let value_stride = self.value_vecs.next_multiple_of(self.threads_x);
        let stage = (key_at + self.block_k * stride).max(value_at + self.value_keys * value_stride);
        let weights = self.block_q * self.block_k / 4;
        16 * (stage + weights) + 4 * self.block_q + RESERVED_BYTES
    }

    /// A tile shape: `block_q · block_k` pairs, `threads_x · threads_y` threads, and the lanes that
    /// own a row; everything else is left to [`Tiles::fitted`].
    pub const fn block(
        (block_q, block_k): (u32, u32),
        (threads_x, threads_y): (u32, u32),
        lanes: u32,
    ) -> Self {
        Self {
            block_q,
            block_k,
            step_k: block_k,
            threads_x,
            threads_y,
            lanes,
            head_vecs: 1,
            value_vecs: 1,
            chunk_vecs: 1,
            value_keys: 4,
            memory: u32::MAX,
        }
    }

    /// The same in at most so many bytes of workgroup memory.
    pub const fn within(self, memory: u32) -> Self {
        Self { memory, ..self }
    }

    /// Whether the sizes divide each other as the kernel needs.
    pub(super) fn is_consistent(&self, variant: Variant, caps: &Caps) -> bool {
        let smallest = caps.subgroup.map_or(1, |(smallest, _)| smallest);
        let lanes = match variant {
            Variant::Subgroup => {
                self.lanes <= smallest && self.block_q * self.lanes == self.threads()
            }
            Variant::Coop => {
                // Whole matrices of rows and keys to a subgroup.
                return self.threads_x == 32
                    && [1, 2].contains(&self.lanes)
                    && self.threads_y > 0
                    && self.block_q.is_multiple_of(32 / self.lanes * self.threads_y)
                    && [16, 32].contains(&self.step_k)
                    && self.block_k.is_power_of_two()
                    && self.block_k.is_multiple_of(self.step_k);
            }
            Variant::Rows => {
                return self.threads_x == 1
                    && self.lanes == 1
                    && self.block_k.is_multiple_of(4)
                    && self.threads_y > 0
                    && self.block_q.is_multiple_of(self.threads_y)
                    && self.block_q / self.threads_y <= MOST_ROWS;
            }
            Variant::Tiled => self.lanes == 1 && self.block_q <= self.threads(),
            Variant::Scores | Variant::BlockSums => false,
        };
        lanes
            && [self.block_k, self.threads_x, self.lanes].iter().all(|n| n.is_power_of_two())
            && self.threads_y > 0
            && self.block_q.is_multiple_of(self.threads_y)
            && self.block_k.is_multiple_of(4 * self.threads_x)
    }

    /// Whether no tile has queries of two rows of the configuration's list of keys.
    pub(super) fn divides(&self, attention: &Attention) -> bool {
        attention.keys.block_q().is_none_or(|block_q| block_q.is_multiple_of(self.block_q))
    }

    /// The same with `step_k` keys scored at a time.
    pub const fn with_step(self, step_k: u32) -> Self {
        Self { step_k, ..self }
    }

    /// As [`fitted`](Self::fitted), for `attention.coop`: whole matrices of 16, nothing in pieces.
    pub(super) fn fitted_coop(mut self, caps: &Caps, shape: &Shape) -> Option<Self> {
        self.head_vecs = shape.head_dim.next_multiple_of(16) / 4;
        self.value_vecs = shape.value_dim.next_multiple_of(16) / 4;
        self.whole(Variant::Coop, caps)
    }

    /// The dims that are compiled, in one piece, where the device has room for that.
    fn whole(mut self, variant: Variant, caps: &Caps) -> Option<Self> {
        self.chunk_vecs = self.head_vecs;
        self.value_keys = self.block_k;
        let sizes = [self.block_q, self.block_k, self.step_k, self.threads_x, self.threads_y];
        let fits = sizes.iter().all(|size| (1..=MAX_SIZE).contains(size))
            && self.threads() <= caps.workgroup_invocations
            && self.workgroup_bytes(variant) <= caps.workgroup_memory;
        fits.then_some(self)
    }

    /// As [`fitted`](Self::fitted), for `attention.rows`: nothing in workgroup memory, nothing in pieces.
    pub(super) fn fitted_rows(mut self, caps: &Caps, shape: &Shape) -> Option<Self> {
        self.head_vecs = caps.compiled_dim(shape.head_dim) / 4;
        self.value_vecs = caps.compiled_dim(shape.value_dim) / 4;
        self.whole(Variant::Rows, caps)
    }

    /// Compiles for the shape's dims and takes as much of the head dimension, then as many values,
    /// at a time as workgroup memory holds. `None` when not even the least fits the device.
    pub fn fitted(mut self, caps: &Caps, shape: &Shape) -> Option<Self> {
        let memory = self.memory.min(caps.workgroup_memory);
        let sizes = [self.block_q, self.block_k, self.threads_x, self.threads_y];
        let possible = sizes.iter().all(|size| (1..=MAX_SIZE).contains(size));
        if !possible || self.threads() > caps.workgroup_invocations {
            return None;
        }
        self.value_vecs = caps.compiled_dim(shape.value_dim) / 4;
        self.value_keys = 4;
        let whole = caps.compiled_dim(shape.head_dim) / 4;
        // Pieces of the head dimension are a quarter of a cache line or more.
        let padded = whole.next_multiple_of(4);
        let choices = std::iter::once((whole, whole)).chain(
            [16, 8, 4].into_iter().filter(|&c| padded.is_multiple_of(c)).map(|c| (padded, c)),
        );
        let fits = |tiles: &Self| tiles.workgroup_bytes(Variant::Tiled) <= memory;
        let mut tiles = choices
            .map(|(head_vecs, chunk_vecs)| Self { head_vecs, chunk_vecs, ..self })
            .find(fits)?;
        while tiles.value_keys < tiles.block_k {
            let more = Self { value_keys: 2 * tiles.value_keys, ..tiles };
            if !fits(&more) {
                break;
            }
            tiles = more;
        }
        Some(tiles)
    }
}

/// Value dims beyond this one are spread over as many threads as there are vectors of keys, so that
/// no thread holds more than 36 vectors of output.
const HUGE_DIM: u32 = 256;

/// So few workgroups leave cores of a large device idle: blocks of queries are halved then.
const WORKGROUPS: u64 = 132;

/// The measured tiles of a kernel that a device has room for, best first; a tuner times them all.
pub(super) fn table(variant: Variant, caps: &Caps, attention: &Attention) -> Vec<Tiles> {
    match variant {
        Variant::Coop => coop(caps, attention),
        Variant::Rows => rows(caps, attention),
        Variant::Subgroup => subgroup(caps, attention),
        Variant::Tiled => tiled(caps, attention),
        Variant::Scores | Variant::BlockSums => Vec::new(),
    }
}

/// Tiles of `attention.coop`: `threads_y` subgroups of 32 lanes.
fn coop(caps: &Caps, attention: &Attention) -> Vec<Tiles> {
    let shape = &attention.shape;
    let dim = shape.head_dim.max(shape.value_dim);
    let tiles = |block, subgroups, lanes| Tiles::block(block, (32, subgroups), lanes).with_step(16);
    // TFLOP/s of an H100 (f16, B=4 H=16 N=4096).
    let widest = match dim {
        // Emulated: the least that has all of the kernel's loops, with one band of rows and with two.
        ..=32 if caps.is_cpu => tiles((64, 32), 2, 1),
        _ if caps.is_cpu => tiles((64, 32), 2, 2),
        // 201; two workgroups share a core.
        ..=64 => tiles((128, 32), 4, 1),
        // 246; the next one, where two share a core, is a tenth slower.
        65..=128 => tiles((256, 32), 8, 2),
        // 212 at D=256.
        _ => tiles((128, 16), 8, 2),
    };
    // For lists in smaller blocks of queries, and for few queries. In ms at N=16k and D=128, 20 % of
    // blocks of 128 take 2.14 (2.18 with tiles of 16 keys), 20 % of blocks of 64 take 2.67 (2.95), and at
    // D=64 1.44 (1.46 with two subgroups of 32 rows).
    let halved = tiles((128, 32), 4, 2);
    let quarter = tiles((64, if dim <= 128 { 32 } else { 16 }), 4, 2);
    let small = [quarter, tiles((32, 16), 2, 2), tiles((16, 16), 1, 2)];
    let heads = u64::from(shape.batch) * u64::from(shape.query_heads);
    let usable = |block: &Tiles| {
        let blocks = u64::from(shape.query_len.div_ceil(block.block_q));
        let busy = block.block_q <= 128 || heads * blocks >= WORKGROUPS;
        busy && (block.block_q <= 64 || shape.query_len > 64) && block.divides(attention)
    };
    let candidates = [widest].into_iter().chain((dim <= 128).then_some(halved)).chain(small);
    let mut usable = candidates.filter(usable);
    let fitted = |block: Tiles| block.fitted_coop(caps, shape);
    // The first or none: a device that has no room for it lacks it for what is slower too.
    let Some(first) = usable.next().and_then(fitted) else { return Vec::new() };
    std::iter::once(first).chain(usable.filter_map(fitted)).collect()
}

/// Rows of one thread at most.
const MOST_ROWS: u32 = 4;

/// Keys of a tile of `attention.rows`.
const ROWS_KEYS: u32 = 8;

/// Tiles of `attention.rows`: `threads_y` threads of `block_q / threads_y` rows. In ms on two cores,
/// SwiftShader, f32, 8 heads, N=256, D=64: 107 with 4 rows and 8 keys, 138 with 2 rows, 116 with 4 keys;
/// `attention.tiled` takes 285.
fn rows(caps: &Caps, attention: &Attention) -> Vec<Tiles> {
    // The second for lists in blocks of 16 queries.
    [(8 * MOST_ROWS, ROWS_KEYS), (16, ROWS_KEYS)]
        .map(|block| Tiles::block(block, (1, 8), 1))
        .into_iter()
        .filter(|block| block.divides(attention))
        .filter_map(|block| block.fitted_rows(caps, &attention.shape))
        .collect()
}

/// Workgroup memory that lets three workgroups share a core of an H100, which has 48 KiB there for
/// this API: tiles that fill it alone reach half of what these do.
const SHARED_BYTES: u32 = 16 << 10;

/// Tiles of `attention.tiled`. TFLOP/s are those of an H100 in f32, B=4 H=16 N=4096.
fn tiled(caps: &Caps, attention: &Attention) -> Vec<Tiles> {
    let value_dim = attention.shape.value_dim;
    let dim = attention.shape.head_dim.max(value_dim);
    let wide = value_dim > 128;
    let candidates: &[Option<Tiles>] = if caps.is_cpu {
        &[
            (!wide).then_some(Tiles::block((64, 32), (8, 8), 1)),
            Some(Tiles::block((32, 64), (16, 4), 1)),
        ]
    } else {
        &[
            // 26.6 at D=64 ...
            (dim <= 64).then_some(Tiles::block((64, 32), (8, 16), 1).within(SHARED_BYTES)),
            // ... 25.3 at D=128.
            Some(Tiles::block((32, 64), (16, 8), 1).within(SHARED_BYTES)),
        ]
    };
    let huge = [Tiles::block((32, 64), (16, 16), 1), Tiles::block((16, 64), (16, 8), 1)];
    let huge = huge.into_iter().filter(|_| value_dim > HUGE_DIM);
    let least = [Tiles::block((32, 32), (8, 4), 1), Tiles::block((16, 32), (8, 4), 1)];
    let blocks = huge.chain(candidates.iter().copied().flatten()).chain(least);
    fitting(blocks, caps, attention)
}

/// Tiles of `attention.subgroup`. TFLOP/s as above.
fn subgroup(caps: &Caps, attention: &Attention) -> Vec<Tiles> {
    let value_dim = attention.shape.value_dim;
    let dim = attention.shape.head_dim.max(value_dim);
    let wide = value_dim > 128;
    let candidates: &[Option<Tiles>] = if caps.is_cpu {
        &[Some(Tiles::block((64, 32), (8, 16), 2))]
    } else {
        &[
            // 28.3 at D=64 and 31.3 at D=128 ...
            (!wide).then_some(Tiles::block((128, 64), (16, 16), 2)),
            // ... 25.6 at D=64 in a third of the memory ...
            (dim <= 64).then_some(Tiles::block((64, 32), (8, 16), 2).within(SHARED_BYTES)),
            // ... 26.7 at D=128 ...
            Some(Tiles::block((64, 64), (16, 16), 4)),
            // ... 26.8 at D=128, again in a third.
            Some(Tiles::block((32, 64), (16, 8), 4).within(SHARED_BYTES)),
        ]
    };
    let huge = [
        Tiles::block((32, 64), (16, 16), 8),
        Tiles::block((32, 64), (16, 8), 4),
        Tiles::block((16, 64), (16, 4), 4),
    ];
    let huge = huge.into_iter().filter(|_| value_dim > HUGE_DIM);
    let least = [Tiles::block((32, 32), (8, 8), 2), Tiles::block((16, 32), (8, 4), 2)];
    let blocks = huge.chain(candidates.iter().copied().flatten()).chain(least);
    let smallest = caps.subgroup.map_or(1, |(smallest, _)| smallest);
    fitting(blocks.filter(|block| block.lanes <= smallest), caps, attention)
}

/// Those that fit the device and divide the query blocks of the configuration's list.
fn fitting(
    candidates: impl Iterator<Item = Tiles>,
    caps: &Caps,
    attention: &Attention,
) -> Vec<Tiles> {
    candidates
        .filter(|block| block.divides(attention))
        .filter_map(|block| block.fitted(caps, &attention.shape))
        .collect()
}
