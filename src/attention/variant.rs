//! The kernels that can compute attention, and the choice between them.

use std::fmt;
use std::str::FromStr;

use super::tiles::{self, Tiles};
use super::{Activation, Attention, Output};
use crate::attention::keys::Keys;
use crate::caps::Caps;
use crate::error::{Error, Unsupported};
use crate::launch::workspace::{
    NARROW_THREADS, dtype_fragment, load_fragment, matrix_load_fragment, matrix_store_fragment,
    store_fragment,
};
use crate::reference::tolerance::LEAST_LOGIT;
use crate::shader::{Binding, Fragment, Header, Source, Target, fragment};
use crate::tensor::{Alignment, DType};

/// A kernel: one file of `shaders/attention/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Variant {
    /// Matrix units: f16 products, f32 scores and sums; natively only.
    Coop,
    /// Whole rows in the registers of a thread, without workgroup memory; on CPU drivers only.
    Rows,
    /// Register tiles; a row is joined by shuffles within a subgroup of any size from 4 up.
    Subgroup,
    /// Register tiles on WebGPU's floor: 16 KiB of workgroup memory, no optional feature.
    Tiled,
    /// The scores themselves, plainly.
    Scores,
    /// Weights summed over blocks, in two passes.
    BlockSums,
}

/// Storage buffers that the kernels bind.
const STORAGE_BUFFERS: u32 = 8;

/// The largest dim of `attention.coop`.
const COOP_DIM: u32 = 256;

/// The largest dim of `attention.rows`.
const ROWS_DIM: u32 = 128;

/// Threads of one workgroup of `attention.scores`.
pub(super) const SCORES_THREADS: u32 = 64;

/// The bindings of every attention kernel, by number: see `shaders/attention/params.wgsl`.
const BINDINGS: &[Binding] = &[
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

impl Variant {
    /// All of them, in the order in which `plan` asks them.
    pub const ALL: [Self; 6] =
        [Self::Coop, Self::Rows, Self::Subgroup, Self::Tiled, Self::Scores, Self::BlockSums];

    /// The name on the command line and in files: `tiled`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Coop => "coop",
            Self::Rows => "rows",
            Self::Subgroup => "subgroup",
            Self::Tiled => "tiled",
            Self::Scores => "scores",
            Self::BlockSums => "block_sums",
        }
    }

    /// The label of the kernel on the device: `attention.tiled`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Coop => "attention.coop",
            Self::Rows => "attention.rows",
            Self::Subgroup => "attention.subgroup",
            Self::Tiled => "attention.tiled",
            Self::Scores => "attention.scores",
            Self::BlockSums => "attention.block_sums",
        }
    }

    /// What comes out of it, in words.
    const fn gives(self) -> &'static str {
        match self {
            Self::Coop | Self::Rows | Self::Subgroup | Self::Tiled => "an output",
            Self::Scores => "scores",
            Self::BlockSums => "sums over blocks",
        }
    }

    /// `Ok` exactly when planning `attention` with this variant on such a device succeeds, as long as the
    /// kernel computes what it should: see [`Context::with_verification`](crate::Context::with_verification).
    pub fn supports(self, caps: &Caps, attention: &Attention) -> Result<(), Unsupported> {
        self.tiles(caps, attention).map(|_| ())
    }

    /// The tiles this variant would use; `None` for the one that has none.
    pub fn tiles(self, caps: &Caps, attention: &Attention) -> Result<Option<Tiles>, Unsupported> {
        let tiles = self.fitting_tiles(caps, attention)?;
        if caps.loop_rounds.is_some() {
            // The loops' rounds are counted in the text.
            self.planned(attention, tiles.as_ref(), caps, Target::current())?;
        }
        Ok(tiles)
    }

    fn fitting_tiles(
        self,
        caps: &Caps,
        attention: &Attention,
    ) -> Result<Option<Tiles>, Unsupported> {
        let refuse = |reason: String| Err(Unsupported::new(self.label(), reason));
        if let Err(error) = attention.validate() {
            return refuse(error.to_string());
        }
        if caps.storage_buffers < STORAGE_BUFFERS {
            return refuse(format!(
                "it binds {STORAGE_BUFFERS} storage buffers and the device's maxStorageBuffersPerShaderStage is {}",
                caps.storage_buffers
            ));
        }
        if attention.narrows() && caps.workgroup_invocations < NARROW_THREADS {
            return refuse(format!(
                "its 16-bit output is written by common.narrow, which runs {NARROW_THREADS} invocations a workgroup, and the device's maxComputeInvocationsPerWorkgroup is {}",
                caps.workgroup_invocations
            ));
        }
        let (gives, wanted) = (self.gives(), output_name(&attention.output));
        if gives != wanted {
            return refuse(format!("it gives {gives}, not {wanted}"));
        }
        let tiles = match (self, attention.output) {
            (Self::Scores, _) if caps.workgroup_invocations >= SCORES_THREADS => return Ok(None),
            (Self::BlockSums, Output::BlockSums { block_q, .. })
                if caps.workgroup_invocations >= block_q =>
            {
                return Ok(None);
            }
            (Self::Scores | Self::BlockSums, _) => Vec::new(),
            (Self::Coop, _) => match coop_lacks(caps, attention) {
                Some(reason) => return refuse(reason.into()),
                None => tiles::table(self, caps, attention),
            },
            (Self::Rows, _) => match rows_lack(caps, attention) {
                Some(reason) => return refuse(reason.into()),
                None => tiles::table(self, caps, attention),
            },
            (Self::Tiled, _) => tiles::table(self, caps, attention),
            (Self::Subgroup, _) => match caps.subgroup {
                Some((smallest, _)) if smallest >= 4 => tiles::table(self, caps, attention),
                Some((smallest, _)) => {
                    return refuse(format!(
                        "it needs subgroups of at least 4 and the device has some of {smallest}"
                    ));
                }
                None => return refuse("the device has no subgroup operations".into()),
            },
        };
        match tiles.first() {
            Some(tiles) => Ok(Some(*tiles)),
            None => refuse(format!(
                "its least tile does not fit {} invocations and {} bytes of workgroup memory (maxComputeInvocationsPerWorkgroup, maxComputeWorkgroupStorageSize)",
                caps.workgroup_invocations, caps.workgroup_memory
            )),
        }
    }

    /// The kernels and tiles that suit `attention`, in the order of the table: what `plan` chooses,
    /// and then what a tuner tries. None where the kernel has no tiles.
    #[cfg(not(target_family = "wasm"))]
    pub(super) fn candidates(caps: &Caps, attention: &Attention) -> Vec<(Self, Tiles)> {
        let supports = |variant: &Self| variant.supports(caps, attention).is_ok();
        let tiles = |variant| tiles::table(variant, caps, attention).into_iter();
        let each = Self::ALL.into_iter().filter(supports);
        let all = each.flat_map(|variant| tiles(variant).map(move |tiles| (variant, tiles)));
        let mut different = Vec::new();
        for candidate in all {
            if !different.contains(&candidate) {
                different.push(candidate);
            }
        }
        different
    }

    /// The first variant that supports `attention` and has not failed, with its tiles; logs who was
    /// refused and why.
    pub(crate) fn choose(
        caps: &Caps,
        attention: &Attention,
        failed: &[Unsupported],
    ) -> Result<(Self, Option<Tiles>), Error> {
        let mut refusals = failed.to_vec();
        let untried = |variant: &Self| failed.iter().all(|f| f.variant != variant.label());
        for variant in Self::ALL.into_iter().filter(untried) {
            match variant.tiles(caps, attention) {
                Ok(tiles) => {
                    log::info!("chose {}; refused: {refusals:?}", variant.label());
                    return Ok((variant, tiles));
                }
                Err(refusal) => refusals.push(refusal),
            }
        }
        let reasons: Vec<_> =
            refusals.iter().map(|r| format!("{}: {}", r.variant, r.reason)).collect();
        Err(Unsupported::new("attention", reasons.join("; ")).into())
    }

    /// The composed shader, for a walk that may be cut into `parts` or for a whole one.
    pub(super) fn source(
        self,
        attention: &Attention,
        tiles: Option<&Tiles>,
        caps: &Caps,
        target: Target,
        parts: bool,
    ) -> Source {
        let alignment = attention.alignment();
        let mut header = Header::default()
            // Arrays in registers need constant indices; CPU drivers compile too slowly for it, but for
            // the short loops of one kernel.
            .unrolled(!caps.is_cpu || self == Self::Rows)
            .switch("PARTS", parts)
            .switch("SOFTMAX", attention.activation == Activation::Softmax)
            .switch("MODIFIED", attention.score.is_modified())
            .switch("PAIR_TESTS", attention.mask.any(crate::attention::mask::Term::tests_pairs))
            // One term or the most there may be: fewer kernels, and one term is the common case.
            .size("TERMS", if attention.mask.terms().len() > 1 { 4 } else { 1 });
        let mut fragments = vec![
            dtype_fragment(attention.dtype),
            match self {
                Self::Coop => matrix_load_fragment(alignment, attention.dtype),
                _ => load_fragment(alignment),
            },
            match self {
                Self::Coop => matrix_store_fragment(alignment, attention.dtype),
                // Parts go on from what others left in f32.
                _ if parts && (attention.dtype != DType::F32 || self == Self::BlockSums) => {
                    store_fragment(Alignment::Any)
                }
                _ => store_fragment(alignment),
            },
            fragment!("attention/params.wgsl"),
            fragment!("attention/mask.wgsl"),
            fragment!("attention/score.wgsl"),
        ];
        match tiles {
            Some(tiles) => {
                header = header
                    .size("BLOCK_Q", tiles.block_q)
                    .size("BLOCK_K", tiles.block_k)
                    .size("STEP_K", tiles.step_k)
                    .size("THREADS_X", tiles.threads_x)
                    .size("THREADS_Y", tiles.threads_y)
                    .size("LANES", tiles.lanes)
                    .size("HEAD_VECS", tiles.head_vecs)
                    .size("VALUE_VECS", tiles.value_vecs)
                    .size("CHUNK_VECS", tiles.chunk_vecs)
                    .size("VALUE_KEYS", tiles.value_keys)
                    .size("OWNERS", if self == Self::Coop { tiles.threads_y } else { 1 });
                fragments.push(fragment!("attention/walk.wgsl"));
                fragments.extend(keys_fragments(&attention.keys, tiles));
                fragments.push(fragment!("attention/judge.wgsl"));
                fragments.push(fragment!("attention/finish.wgsl"));
                if self != Self::Coop {
                    fragments.push(fragment!("attention/resume.wgsl"));
                }
                if self == Self::Coop {
                    fragments.push(fragment!("attention/coop_stage.wgsl"));
                    fragments.push(fragment!("attention/coop_rows.wgsl"));
                } else if self != Self::Rows {
                    fragments.push(fragment!("attention/stage.wgsl"));
                    fragments.push(fragment!("attention/outputs.wgsl"));
                    fragments.push(fragment!("attention/forward.wgsl"));
                }
                if [Self::Coop, Self::Subgroup].contains(&self) {
                    fragments.push(fragment!("attention/lanes.wgsl"));
                }
            }
            None => match attention.output {
                Output::BlockSums { block_q, block_k } => {
                    header = header
                        .size("THREADS", block_q)
                        .size("OWNERS", 1)
                        .size("BLOCK_K", block_k)
                        .size("HEAD_VECS", attention.shape.head_dim.div_ceil(4));
                    fragments.push(fragment!("attention/walk.wgsl"));
                    fragments.push(fragment!("attention/keys_dense.wgsl"));
                }
                _ => header = header.size("THREADS", SCORES_THREADS),
            },
        }
        fragments.push(match self {
            Self::Coop => {
                header = header.subgroups().matrices(caps);
                fragment!("attention/coop.wgsl")
            }
            Self::Rows => fragment!("attention/rows.wgsl"),
            Self::Subgroup => {
                header = header.subgroups();
                fragment!("attention/subgroup.wgsl")
            }
            Self::Tiled => fragment!("attention/tiled.wgsl"),
            Self::Scores => fragment!("attention/scores.wgsl"),
            Self::BlockSums => fragment!("attention/block_sums.wgsl"),
        });
        Source::compose(self.label(), target, &header, &fragments, BINDINGS)
    }
}

const fn output_name(output: &Output) -> &'static str {
    match output {
        Output::Attention { .. } => "an output",
        Output::Scores(_) => "scores",
        Output::BlockSums { .. } => "sums over blocks",
    }
}

/// The keys axis. Entries shorter than a tile are gathered like single keys.
fn keys_fragments(keys: &Keys, tiles: &Tiles) -> Vec<Fragment> {
    let list = fragment!("attention/keys_list.wgsl");
    match keys {
        Keys::Dense => vec![fragment!("attention/keys_dense.wgsl")],
        Keys::Blocks { block_k, .. } if *block_k >= tiles.block_k => {
            vec![list, fragment!("attention/keys_blocks.wgsl")]
        }
        Keys::Blocks { .. } | Keys::Indices { .. } => {
            vec![list, fragment!("attention/keys_gathered.wgsl")]
        }
    }
}

/// What keeps `attention.rows` from a device or a configuration, if anything.
fn rows_lack(caps: &Caps, attention: &Attention) -> Option<&'static str> {
    if !caps.is_cpu {
        Some("it is made for CPU drivers")
    } else if attention.alignment() == Alignment::Any {
        Some("it needs dims, offsets and strides that are multiples of 4")
    } else if attention.shape.head_dim.max(attention.shape.value_dim) > ROWS_DIM {
        Some("it keeps queries and outputs in registers, which ends at dims of 128")
    } else {
        None
    }
}

/// What `attention.coop` misses on a device or in a configuration, if anything.
fn coop_lacks(caps: &Caps, attention: &Attention) -> Option<&'static str> {
    if let Some(reason) = caps.lacks_matrices() {
        Some(reason)
    } else if attention.f32_weights {
        Some("it rounds weights to f16, and they must keep the precision of f32")
    } else if attention.dtype != DType::F16 && !attention.f16_products {
        Some("it multiplies in f16, which tensors of other types must be asked for")
    } else if attention.alignment() == Alignment::Any {
        Some("it needs dims, offsets and strides that are multiples of 4")
    } else if attention.shape.head_dim.max(attention.shape.value_dim) > COOP_DIM {
        Some("it keeps queries and outputs in matrices, which ends at dims of 256")
    } else if !attention.score.is_modified() && largest_f16_logit(attention) > -LEAST_LOGIT {
        Some(
            "it does not look for logits below −5e29 in full tiles, and with this scale there may be some",
        )
    } else {
        None
    }
}

/// What no logit of finite f16 queries and keys exceeds, before modifiers.
fn largest_f16_logit(attention: &Attention) -> f64 {
    let largest = f64::from(attention.shape.head_dim) * 65504.0 * 65504.0;
    f64::from(attention.scale()).abs() * largest
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Variant {
    type Err = Error;

    /// Takes the name or the label, `tiled` or `attention.tiled`.
    fn from_str(name: &str) -> Result<Self, Error> {
        let is_named = |v: &Self| v.name() == name || v.label() == name;
        Self::ALL.into_iter().find(is_named).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|v| v.name()).collect();
            Error::config("variant", format!("one of {}", names.join(", ")), format!("`{name}`"))
        })
    }
}
