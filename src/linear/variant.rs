//! The algorithms that can compute linear attention, and the choice between them.

use std::fmt;
use std::str::FromStr;

use super::tiles::{COLUMN_THREADS, COLUMN_TOKENS, Half, SMALL_THREADS, THREADS, Tiles, alignment};
use super::{Carry, FeatureMap, LinearAttention};
use crate::caps::Caps;
use crate::error::{Error, Unsupported};
use crate::launch::workspace::{
    dtype_fragment, load_fragment, matrix_load_fragment, matrix_store_fragment, store_fragment,
};
use crate::shader::{Binding, Fragment, Header, Source, Target, fragment};
use crate::tensor::{Alignment, DType};

/// An algorithm: the recurrence itself, or the one over chunks of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinearVariant {
    /// As `Chunked`, on matrix units: f16 tensors, f32 states and sums; natively only.
    Coop,
    /// Token by token, a thread to whole columns of the state; on CPU drivers only.
    Columns,
    /// Token by token, for decoding: `shaders/linear/recurrent.wgsl`.
    Recurrent,
    /// What each chunk adds to the state, a scan over chunks, then the outputs of all chunks.
    Chunked,
}

/// Storage buffers that the kernels bind.
const STORAGE_BUFFERS: u32 = 8;

/// The largest dim of the kernels on matrix units, which keep the state in their matrices.
const COOP_DIM: u32 = 128;

/// The most tokens of a chunk of the portable kernels, which have it in workgroup memory.
const CHUNK: u32 = 128;

/// Up to so many tokens are taken one by one when nothing is forced.
const RECURRENT_TOKENS: u32 = 16;

/// The bindings of the kernels that see tokens: see `shaders/linear/tensors.wgsl`.
const TENSORS: &[Binding] = &[
    Binding::Uniform,
    Binding::Read,
    Binding::Read,
    Binding::Read,
    Binding::Write,
    Binding::Write,
    Binding::Read,
    Binding::Read,
    Binding::Read,
];

/// The bindings of the scans: see `shaders/linear/scan.wgsl`.
const SCAN: &[Binding] =
    &[Binding::Uniform, Binding::Write, Binding::Write, Binding::Read, Binding::Read];

/// The bindings of `linear.chunk_sums`.
const SUMS: &[Binding] = &[Binding::Uniform, Binding::Read, Binding::Write, Binding::Read];

/// One kernel: a file of `shaders/linear/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    Columns,
    Recurrent,
    ChunkSums,
    ChunkState,
    StateScan,
    ChunkCorrect,
    DeltaScan,
    ChunkOutput,
    CoopState,
    CoopOutput,
}

impl LinearVariant {
    /// All of them, in the order in which `plan` asks them.
    pub const ALL: [Self; 4] = [Self::Coop, Self::Columns, Self::Chunked, Self::Recurrent];

    /// The name on the command line and in files: `chunked`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coop => "coop",
            Self::Columns => "columns",
            Self::Recurrent => "recurrent",
            Self::Chunked => "chunked",
        }
    }

    /// The label on the device and in benchmarks: `linear.chunked`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Coop => "linear.coop",
            Self::Columns => "linear.columns",
            Self::Recurrent => "linear.recurrent",
            Self::Chunked => "linear.chunked",
        }
    }

    /// `Ok` exactly when planning `linear` with this variant on such a device succeeds.
    pub fn supports(self, caps: &Caps, linear: &LinearAttention) -> Result<(), Unsupported> {
        let refuse = |reason: String| Err(Unsupported::new(self.label(), reason));
        if let Err(error) = linear.validate() {
            return refuse(error.to_string());
        }
        if caps.storage_buffers < STORAGE_BUFFERS {
            return refuse(format!(
                "it binds {STORAGE_BUFFERS} storage buffers and the device's maxStorageBuffersPerShaderStage is {}",
                caps.storage_buffers
            ));
        }
        if self == Self::Coop
            && let Some(reason) = coop_lacks(caps, linear)
        {
            return refuse(reason.into());
        }
        self.fits(caps, linear)?;
        if caps.loop_rounds.is_some() {
            // The loops' rounds are counted in the texts.
            for half in linear.halves() {
                linear.sources(caps, self, half, Target::current())?;
            }
        }
        Ok(())
    }

    /// Whether the device has room for the variant's workgroups.
    fn fits(self, caps: &Caps, linear: &LinearAttention) -> Result<(), Unsupported> {
        let refuse = |reason: String| Err(Unsupported::new(self.label(), reason));
        if self == Self::Columns && !caps.is_cpu {
            return refuse("it is made for CPU drivers".into());
        }
        let (tiles, fits) = Tiles::new(caps, self, linear, Half::Values);
        let threads = match self {
            Self::Columns => COLUMN_THREADS,
            Self::Recurrent => THREADS,
            Self::Chunked => THREADS.max(2 * tiles.chunk),
            Self::Coop => THREADS.max(tiles.coop_threads()),
        };
        if threads > caps.workgroup_invocations {
            return refuse(format!(
                "it runs {threads} invocations a workgroup and the device's maxComputeInvocationsPerWorkgroup is {}",
                caps.workgroup_invocations
            ));
        }
        if self.takes_tokens() {
            return Ok(());
        }
        if self == Self::Coop && !tiles.chunk.is_multiple_of(tiles.block) {
            return refuse(format!(
                "its chunks are multiples of the {} tokens it takes at a time, not {}",
                tiles.block, tiles.chunk
            ));
        }
        if self == Self::Chunked && tiles.chunk > CHUNK {
            return refuse(format!("its chunks have at most {CHUNK} tokens, not {}", tiles.chunk));
        }
        if linear.rule.is_delta() && tiles.chunk > 32 {
            return refuse(format!(
                "chunks of the delta rules have at most 32 tokens, not {}",
                tiles.chunk
            ));
        }
        if !fits {
            return refuse(format!(
                "chunks of {} tokens do not fit {} bytes of workgroup memory (maxComputeWorkgroupStorageSize)",
                tiles.chunk, caps.workgroup_memory
            ));
        }
        Ok(())
    }

    /// The variant that [`LinearAttention::plan`] takes: the recurrence for few tokens, chunks for
    /// many or where their length is given, and on CPU drivers `linear.columns`; logs who was refused
    /// and why.
    ///
    /// Milliseconds of CPU time of 512 tokens of 8 heads, D=64, f32, SiLU (December 2026): SwiftShader
    /// 39 with `columns`, 283 with `chunked`, 370 with `recurrent`, and 208 with causal softmax; lavapipe
    /// 21, 36, 71 and 62.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the reasons of all, where none can.
    pub fn choose(caps: &Caps, linear: &LinearAttention) -> Result<Self, Error> {
        Self::choose_but(caps, linear, &[])
    }

    /// The same without those that have failed.
    pub(super) fn choose_but(
        caps: &Caps,
        linear: &LinearAttention,
        failed: &[Unsupported],
    ) -> Result<Self, Error> {
        let preferred = if linear.chunk.is_some() {
            [Self::Coop, Self::Chunked, Self::Columns, Self::Recurrent]
        } else if linear.shape.key_len <= RECURRENT_TOKENS {
            [Self::Columns, Self::Recurrent, Self::Chunked, Self::Coop]
        } else {
            Self::ALL
        };
        let mut refusals = failed.to_vec();
        let untried = |variant: &Self| failed.iter().all(|f| f.variant != variant.label());
        for variant in preferred.into_iter().filter(untried) {
            match variant.supports(caps, linear) {
                Ok(()) => {
                    log::info!("chose {}; refused: {refusals:?}", variant.label());
                    return Ok(variant);
                }
                Err(refusal) => refusals.push(refusal),
            }
        }
        let reasons: Vec<_> =
            refusals.iter().map(|r| format!("{}: {}", r.variant, r.reason)).collect();
        Err(Unsupported::new("linear", reasons.join("; ")).into())
    }

    /// Whether it takes token by token, and has no chunks.
    pub(super) const fn takes_tokens(self) -> bool {
        matches!(self, Self::Columns | Self::Recurrent)
    }

    /// The variant that computes one half: the denominators, a single column, are no work for
    /// matrix units.
    pub(super) const fn of_half(self, half: Half) -> Self {
        match (self, half) {
            (Self::Coop, Half::Ones) => Self::Chunked,
            _ => self,
        }
    }

    /// The kernels of the variant, in the order in which they run.
    pub(super) fn kernels(self, linear: &LinearAttention) -> Vec<Kernel> {
        match self {
            Self::Columns => return vec![Kernel::Columns],
            Self::Recurrent => return vec![Kernel::Recurrent],
            Self::Coop | Self::Chunked => {}
        }
        let sums = linear.rule.is_gated().then_some(Kernel::ChunkSums);
        let chain = match self {
            Self::Coop => [Kernel::CoopState, Kernel::StateScan, Kernel::CoopOutput],
            _ if linear.rule.is_delta() => {
                [Kernel::ChunkCorrect, Kernel::DeltaScan, Kernel::ChunkOutput]
            }
            _ => [Kernel::ChunkState, Kernel::StateScan, Kernel::ChunkOutput],
        };
        sums.into_iter().chain(chain).collect()
    }
}

impl Kernel {
    pub const fn label(self) -> &'static str {
        match self {
            Self::Columns => "linear.columns",
            Self::Recurrent => "linear.recurrent",
            Self::ChunkSums => "linear.chunk_sums",
            Self::ChunkState => "linear.chunk_state",
            Self::StateScan => "linear.state_scan",
            Self::ChunkCorrect => "linear.chunk_correct",
            Self::DeltaScan => "linear.delta_scan",
            Self::ChunkOutput => "linear.chunk_output",
            Self::CoopState => "linear.coop_state",
            Self::CoopOutput => "linear.coop_output",
        }
    }

    const fn fragment(self) -> Fragment {
        match self {
            Self::Columns => fragment!("linear/columns.wgsl"),
            Self::Recurrent => fragment!("linear/recurrent.wgsl"),
            Self::ChunkSums => fragment!("linear/chunk_sums.wgsl"),
            Self::ChunkState => fragment!("linear/chunk_state.wgsl"),
            Self::StateScan => fragment!("linear/state_scan.wgsl"),
            Self::ChunkCorrect => fragment!("linear/chunk_correct.wgsl"),
            Self::DeltaScan => fragment!("linear/delta_scan.wgsl"),
            Self::ChunkOutput => fragment!("linear/chunk_output.wgsl"),
            Self::CoopState => fragment!("linear/coop_state.wgsl"),
            Self::CoopOutput => fragment!("linear/coop_output.wgsl"),
        }
    }

    const fn bindings(self) -> &'static [Binding] {
        match self {
            Self::ChunkSums => SUMS,
            Self::StateScan | Self::DeltaScan => SCAN,
            _ => TENSORS,
        }
    }

    /// Whether it takes token by token, and sees the caller's state.
    pub const fn takes_tokens(self) -> bool {
        matches!(self, Self::Columns | Self::Recurrent)
    }

    /// Whether it computes on matrix units.
    pub const fn is_coop(self) -> bool {
        matches!(self, Self::CoopState | Self::CoopOutput)
    }

    /// The composed shader.
    pub fn source(
        self,
        linear: &LinearAttention,
        half: Half,
        tiles: &Tiles,
        (caps, target): (&Caps, Target),
    ) -> Source {
        let compose = |parts| self.source_of(linear, half, tiles, (caps, target), parts);
        let whole = compose(false);
        let is_enough = |limit| {
            let tokens = linear.walk_within(self, &whole, limit);
            tokens.is_some_and(|tokens| tokens >= linear.shape.key_len)
        };
        match caps.loop_rounds {
            Some(limit) if self.takes_tokens() && !is_enough(limit) => compose(true),
            _ => whole,
        }
    }

    /// The same, of a kernel that may take some of the tokens alone (`parts`).
    fn source_of(
        self,
        linear: &LinearAttention,
        half: Half,
        tiles: &Tiles,
        (caps, target): (&Caps, Target),
        parts: bool,
    ) -> Source {
        let rule = linear.rule;
        let mut header = Header::default().unrolled(!caps.is_cpu || self == Self::Columns);
        if self.takes_tokens() {
            header = header.switch("PARTS", parts);
        }
        if self.is_coop() {
            header = header.subgroups().matrices(caps);
        }
        header = header
            .switch("GATED", rule.is_gated())
            .switch("PER_KEY_DIM", rule.is_per_key_dim())
            .switch("DELTA", rule.is_delta())
            .size("FEATURE_VECS", tiles.feature_vecs)
            .size("CHUNK", tiles.chunk)
            .size("GATES", tiles.gates(linear));
        let mut fragments = vec![fragment!("linear/params.wgsl")];
        if self != Self::ChunkSums {
            header = header.size("VALUE_VECS", tiles.value_vecs);
        }
        if self.bindings() == TENSORS {
            header = header
                .switch("ONES", half == Half::Ones)
                .switch("NORMALIZE", linear.normalize.is_some() && half == Half::Values)
                .size("HEAD_VECS", tiles.head_vecs)
                .size(
                    "FEATURE_MAP",
                    match linear.feature_map {
                        FeatureMap::Identity => 0,
                        FeatureMap::Silu => 1,
                        FeatureMap::Elu1 => 2,
                        FeatureMap::Taylor2 => 3,
                    },
                );
            fragments.extend(tensor_fragments(self, linear, half));
        }
        fragments.push(fragment!("linear/sequences.wgsl"));
        if self.takes_tokens() {
            fragments.push(fragment!("linear/token_decay.wgsl"));
        } else if self != Self::ChunkSums {
            fragments.push(fragment!("linear/entry.wgsl"));
        }
        let (threads, slice) = match self {
            Self::Columns => {
                let tokens = if rule.is_delta() { 1 } else { COLUMN_TOKENS };
                let grouped = linear.shape.query_heads != linear.shape.key_heads;
                header = header.size("STAGED", tiles.staged_tokens()).size("TOKENS", tokens);
                header = header.switch("GROUPED", grouped);
                (Some(COLUMN_THREADS), None)
            }
            Self::Recurrent => (Some(THREADS), Some(tiles.recurrent_slice)),
            Self::DeltaScan => (Some(THREADS), Some(tiles.delta_slice)),
            Self::ChunkSums | Self::StateScan | Self::ChunkCorrect => (Some(SMALL_THREADS), None),
            Self::ChunkState => (None, Some(tiles.state_slice)),
            Self::ChunkOutput => {
                header = header.size("CHUNK_VECS", tiles.chunk_vecs);
                (None, Some(tiles.output_slice))
            }
            Self::CoopState | Self::CoopOutput => {
                let shape = &linear.shape;
                let whole = shape.head_dim == 4 * tiles.feature_vecs
                    && shape.value_dim == 4 * tiles.value_vecs;
                let is_state = self == Self::CoopState;
                // A state that is kept must be exact to f32, where outputs are rounded to f16.
                let exact = is_state && linear.carry != Carry::None;
                header =
                    header.size("BLOCK", tiles.block).switch("WHOLE", whole).switch("EXACT", exact);
                (None, Some(if is_state { tiles.state_slice } else { tiles.value_vecs }))
            }
        };
        if self == Self::ChunkSums {
            header = header.size("SPANS", tiles.spans(linear));
        }
        if let Some(threads) = threads {
            header = header.size("THREADS", threads);
        }
        if let Some(slice) = slice {
            header = header.size("SLICE_VECS", slice);
        }
        match self {
            Self::StateScan | Self::DeltaScan => {
                fragments.push(state_fragment(linear, half));
                fragments.push(fragment!("linear/scan.wgsl"));
            }
            Self::Columns | Self::Recurrent | Self::ChunkSums => {}
            _ => fragments.push(fragment!("linear/chunks.wgsl")),
        }
        if self.is_coop() {
            fragments.push(fragment!("linear/coop_block.wgsl"));
        }
        if self == Self::CoopOutput {
            fragments.push(fragment!("linear/coop_stage.wgsl"));
            fragments.push(fragment!("linear/coop_scores.wgsl"));
        }
        fragments.push(self.fragment());
        Source::compose(self.label(), target, &header, &fragments, self.bindings())
    }
}

/// The fragments through which a kernel sees its tensors.
fn tensor_fragments(kernel: Kernel, linear: &LinearAttention, half: Half) -> Vec<Fragment> {
    let alignment = alignment(linear, half);
    let mut fragments = vec![
        dtype_fragment(linear.dtype),
        match kernel.is_coop() {
            true => matrix_load_fragment(alignment, linear.dtype),
            false => load_fragment(alignment),
        },
        match kernel.is_coop() {
            true => matrix_store_fragment(alignment, linear.dtype),
            false => store_fragment(alignment),
        },
    ];
    if kernel.takes_tokens() {
        fragments.push(state_fragment(linear, half));
    }
    fragments.push(fragment!("linear/tensors.wgsl"));
    if !kernel.is_coop() {
        fragments.push(fragment!("linear/features.wgsl"));
    }
    fragments
}

/// The fragment through which a kernel sees the caller's state.
fn state_fragment(linear: &LinearAttention, half: Half) -> Fragment {
    match alignment(linear, half) {
        Alignment::Vec8 | Alignment::Vec4 => fragment!("linear/state_vec4.wgsl"),
        Alignment::Any => fragment!("linear/state_any.wgsl"),
    }
}

/// What the kernels on matrix units miss on a device or in a configuration, if anything.
fn coop_lacks(caps: &Caps, linear: &LinearAttention) -> Option<&'static str> {
    if let Some(reason) = caps.lacks_matrices() {
        Some(reason)
    } else if linear.dtype != DType::F16 {
        Some("it takes f16 tensors")
    } else if linear.alignment() == Alignment::Any {
        Some("it needs dims, offsets and strides that are multiples of 4")
    } else if linear.rule.is_delta() {
        Some("it has no form of the delta rules")
    } else if linear.rule.is_per_key_dim() {
        Some("gates per key dimension do not factor into products of whole matrices")
    } else if linear.feature_map != FeatureMap::Identity {
        Some("features that are no elements of an f16 tensor would lose bits in f16 products")
    } else if linear.shape.head_dim.max(linear.shape.value_dim) > COOP_DIM {
        Some("it keeps the state in matrices, which ends at dims of 128")
    } else {
        None
    }
}

impl fmt::Display for LinearVariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LinearVariant {
    type Err = Error;

    /// Takes the name or the label, `chunked` or `linear.chunked`.
    fn from_str(name: &str) -> Result<Self, Error> {
        let is_named = |v: &Self| v.name() == name || v.label() == name;
        Self::ALL.into_iter().find(is_named).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|v| v.name()).collect();
            Error::config("variant", format!("one of {}", names.join(", ")), format!("`{name}`"))
        })
    }
}
