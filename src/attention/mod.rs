//! The one attention: its configuration, and the choice of a kernel for it.

pub mod arrays;
mod bind;
mod cost;
mod judge;
pub mod keys;
pub mod mask;
mod pack;
mod parts;
mod plan;
pub mod reference;
pub mod score;
#[cfg(not(target_family = "wasm"))]
mod synthetic;
mod tensors;
mod tiles;
#[cfg(not(target_family = "wasm"))]
mod tune;
mod variant;

pub use crate::reference::tolerance;
pub use plan::{Inputs, Outputs, Plan};
pub use tiles::Tiles;
pub use variant::Variant;

use crate::attention::keys::BLOCK_KEYS;
use crate::attention::keys::Keys;
use crate::attention::mask::Mask;
use crate::attention::score::{Broadcast, Score};
use crate::caps::Caps;
use crate::device::Context;
#[cfg(not(target_family = "wasm"))]
use crate::device::verification::Outcome;
use crate::error::{Error, Unsupported};
use crate::shader::{Source, Target};
use crate::shape::Shape;
use crate::tensor::{Alignment, DType};
use parts::Planned;
#[cfg(not(target_family = "wasm"))]
use synthetic::Synthetic;

/// How scores become weights.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// `exp(s) / Σ exp(s)` over the kept keys of a row.
    Softmax,
    /// `σ(s + bias)` for each kept key by itself (Ramapuram et al., 2024).
    Sigmoid {
        /// Added to every score; `None` is `−ln key_len`.
        bias: Option<f32>,
    },
}

/// Where query `i` stands among the keys: at `i' = i + offset`.
///
/// Causal (`j ≤ i'`), windows (`i' − left ≤ j ≤ i' + right`) and ALiBi all use `i'`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Positions {
    /// The last query stands at the last key: `offset = key_len − query_len`, or
    /// `key_lengths[b] − query_len` when the mask has `lengths`, or per document
    /// `len_k[d] − len_q[d]` in a term with `documents`.
    #[default]
    BottomRight,
    /// The first query stands at the first key (of its document): `offset = 0`.
    TopLeft,
    /// The offsets are given per batch entry, in [`Arrays::query_offset`](crate::Arrays::query_offset).
    PerBatch,
}

/// A point in the making of weights at which [`Output::Scores`] hands the scores out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// `scale · q·k`.
    Scaled,
    /// Then softcap, then ALiBi and biases.
    Modified,
    /// Then −∞ (−1e30 in buffers) where the pair is masked.
    Masked,
    /// The weights: softmax or sigmoid of the masked scores, 0 where masked.
    Probabilities,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Scaled, Self::Modified, Self::Masked, Self::Probabilities];

    /// Whether a score may be −∞ here, by a bias or a mask: then
    /// [`Context::read_logits`](crate::Context::read_logits) reads it.
    pub const fn may_be_masked(self) -> bool {
        matches!(self, Self::Modified | Self::Masked)
    }

    /// The name used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scaled => "scaled",
            Self::Modified => "modified",
            Self::Masked => "masked",
            Self::Probabilities => "probabilities",
        }
    }
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Output {
    /// `out [batch, query_heads, query_len, value_dim]` in the dtype of the inputs and, when
    /// asked for, `lse [batch, query_heads, query_len]` in f32: the natural logarithm of
    /// `Σ exp(s)`, the sink's own among them, −1e30 for a row without keys and sink.
    Attention {
        /// Whether the LSE is written (softmax only).
        lse: bool,
    },
    /// The scores themselves, f32 `[batch, query_heads, query_len, key_len]`.
    Scores(Stage),
    /// The weights, summed over blocks of queries and keys: f32 `[batch, query_heads,
    /// ⌈query_len / block_q⌉, ⌈key_len / block_k⌉]`, written to [`Outputs::scores`]. Time grows
    /// with the square of the length, memory does not.
    ///
    /// [`Outputs::scores`]: crate::Outputs::scores
    BlockSums {
        /// Queries of a block: 16, 32, 64 or 128.
        block_q: u32,
        /// Keys of a block: 16, 32, 64 or 128.
        block_k: u32,
    },
}

/// A configuration of attention: five axes over one [`Shape`].
///
/// ```
/// use wgpu_attention::{Attention, DType, Mask, Shape};
/// let attention = Attention::new(Shape::new(1, 8, 1024, 64), DType::F16)
///     .with_mask(Mask::causal() & Mask::window(Some(255), Some(0)));
/// assert_eq!(attention.scale(), 0.125);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Attention {
    /// The sizes.
    pub shape: Shape,
    /// Element type of queries, keys, values and output.
    pub dtype: DType,
    /// Which keys a block of queries visits.
    pub keys: Keys,
    /// Which pairs count, of those that are visited.
    pub mask: Mask,
    /// Where the queries stand among the keys.
    pub positions: Positions,
    /// What a pair scores.
    pub score: Score,
    /// How scores become weights.
    pub activation: Activation,
    /// What comes back.
    pub output: Output,
    /// Whether queries, keys and values may be rounded to f16 before they are multiplied; see
    /// [`with_f16_products`](Self::with_f16_products).
    pub f16_products: bool,
    /// Whether weights must keep the precision of f32; see [`with_f32_weights`](Self::with_f32_weights).
    pub f32_weights: bool,
    /// How tensors lie in memory; `None` decides by the dims alone, see
    /// [`alignment`](Self::alignment).
    pub access: Option<Alignment>,
}

impl Attention {
    /// Softmax attention without mask or modifiers, scaled by `1/√head_dim`.
    pub fn new(shape: Shape, dtype: DType) -> Self {
        Self {
            shape,
            dtype,
            keys: Keys::Dense,
            mask: Mask::full(),
            positions: Positions::BottomRight,
            score: Score::default(),
            activation: Activation::Softmax,
            output: Output::Attention { lse: false },
            f16_products: false,
            f32_weights: false,
            access: None,
        }
    }

    /// Sets which keys a block of queries visits; the lists are [`Arrays::list_offsets`] and
    /// [`Arrays::list_entries`].
    ///
    /// [`Arrays::list_offsets`]: crate::Arrays::list_offsets
    /// [`Arrays::list_entries`]: crate::Arrays::list_entries
    #[must_use]
    pub const fn with_keys(mut self, keys: Keys) -> Self {
        self.keys = keys;
        self
    }

    /// Lets f32 and bf16 tensors use matrix units, in f16: queries, keys, values and weights are rounded
    /// to 11 significant bits (a relative error of up to 2⁻¹¹ each) and what is smaller than 6·10⁻⁵ to
    /// multiples of 6·10⁻⁸. Elements of 65520 or more count as infinite: rows that keep such a key come out
    /// as NaN. Scores, sums and outputs stay f32 or bf16. Kernels without matrix units compute as ever. The
    /// [`Reference`](reference::Reference) then wants numbers that are rounded to f16.
    #[must_use]
    pub const fn with_f16_products(mut self) -> Self {
        self.f16_products = true;
        self
    }

    /// Leaves out kernels that round weights to f16 before they multiply values, which are those on matrix
    /// units: such rounding adds up to 2⁻¹² of `Σ weight · |value|` to the error of an output. On an H200
    /// the kernels that remain take about eight times as long for f16 tensors.
    #[must_use]
    pub const fn with_f32_weights(mut self) -> Self {
        self.f32_weights = true;
        self
    }

    /// The dtype whose rounding a result must be expected to have.
    pub(crate) fn precision(&self) -> DType {
        match self.dtype {
            DType::F32 if self.f16_products => DType::F16,
            dtype => dtype,
        }
    }

    /// Sets the mask.
    #[must_use]
    pub fn with_mask(mut self, mask: Mask) -> Self {
        self.mask = mask;
        self
    }

    /// Sets where the queries stand among the keys.
    #[must_use]
    pub const fn with_positions(mut self, positions: Positions) -> Self {
        self.positions = positions;
        self
    }

    /// Sets the factor of the dot products.
    #[must_use]
    pub const fn with_scale(mut self, scale: f32) -> Self {
        self.score.scale = Some(scale);
        self
    }

    /// Caps scores at `±cap` by `cap · tanh(s/cap)`.
    #[must_use]
    pub const fn with_softcap(mut self, cap: f32) -> Self {
        self.score.softcap = Some(cap);
        self
    }

    /// Adds ALiBi; the slopes are [`Arrays::alibi_slopes`](crate::Arrays::alibi_slopes).
    #[must_use]
    pub const fn with_alibi(mut self) -> Self {
        self.score.alibi = true;
        self
    }

    /// Adds a bias per key; the numbers are [`Arrays::key_bias`](crate::Arrays::key_bias).
    #[must_use]
    pub const fn with_key_bias(mut self, broadcast: Broadcast) -> Self {
        self.score.key_bias = Some(broadcast);
        self
    }

    /// Adds a bias per pair, the input `bias`.
    #[must_use]
    pub const fn with_bias(mut self, dtype: DType, broadcast: Broadcast) -> Self {
        self.score.bias = Some((dtype, broadcast));
        self
    }

    /// Adds a sink per query head; the logits are [`Arrays::sinks`](crate::Arrays::sinks).
    #[must_use]
    pub const fn with_sinks(mut self) -> Self {
        self.score.sinks = true;
        self
    }

    /// Sets the activation.
    #[must_use]
    pub const fn with_activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Asks for the LSE beside the output.
    #[must_use]
    pub const fn with_lse(mut self) -> Self {
        self.output = Output::Attention { lse: true };
        self
    }

    /// Asks for the scores instead of the output.
    #[must_use]
    pub const fn with_scores(mut self, stage: Stage) -> Self {
        self.output = Output::Scores(stage);
        self
    }

    /// Asks for the weights summed over blocks of queries and of keys instead of the output.
    #[must_use]
    pub const fn with_block_sums(mut self, block_q: u32, block_k: u32) -> Self {
        self.output = Output::BlockSums { block_q, block_k };
        self
    }

    /// Sets how tensors lie in memory, for offsets and strides that are no such multiples as
    /// [`alignment`](Self::alignment) expects.
    #[must_use]
    pub const fn with_alignment(mut self, alignment: Alignment) -> Self {
        self.access = Some(alignment);
        self
    }

    /// How tensors are reached: as set, or as both dims allow, by eights where elements have 16 bits.
    pub fn alignment(&self) -> Alignment {
        let Shape { head_dim, value_dim, .. } = self.shape;
        self.access.unwrap_or_else(|| Alignment::natural(self.dtype, [head_dim, value_dim]))
    }

    /// The factor of the dot products: the one given, or `1/√head_dim`.
    pub fn scale(&self) -> f32 {
        self.score.scale.unwrap_or_else(|| (1.0 / f64::from(self.shape.head_dim).sqrt()) as f32)
    }

    /// The sigmoid's bias: the one given, or `−ln key_len`; 0 for softmax.
    pub fn sigmoid_bias(&self) -> f32 {
        match self.activation {
            Activation::Softmax => 0.0,
            Activation::Sigmoid { bias } => {
                bias.unwrap_or_else(|| -(f64::from(self.shape.key_len.max(1)).ln() as f32))
            }
        }
    }

    /// Checks what can be checked before any tensor is seen.
    pub fn validate(&self) -> Result<(), Error> {
        self.shape.validate()?;
        self.keys.validate()?;
        self.score.validate()?;
        self.mask.validate()?;
        let Shape { head_dim, value_dim, .. } = self.shape;
        let alignment = self.alignment();
        let elements = alignment.elements();
        if !head_dim.is_multiple_of(elements) || !value_dim.is_multiple_of(elements) {
            return Err(Error::config(
                "alignment",
                format!("Any, or head_dim and value_dim that are multiples of {elements}"),
                format!("{alignment:?} with head_dim {head_dim} and value_dim {value_dim}"),
            ));
        }
        if self.keys != Keys::Dense && !matches!(self.output, Output::Attention { .. }) {
            return Err(Error::config("keys", "dense, where scores are the output", "a list"));
        }
        if let Output::BlockSums { block_q, block_k } = self.output
            && !([block_q, block_k].iter().all(|size| BLOCK_KEYS.contains(size)))
        {
            let expected = format!("block sizes of {BLOCK_KEYS:?}");
            return Err(Error::config("output", expected, format!("{block_q}, {block_k}")));
        }
        if let Activation::Sigmoid { bias } = self.activation {
            if let Some(bias) = bias.filter(|b| !b.is_finite()) {
                return Err(Error::config("sigmoid bias", "a finite number", bias.to_string()));
            }
            if self.score.sinks {
                let expected = "none with the sigmoid activation, which divides by no sum";
                return Err(Error::config("score.sinks", expected, "sinks"));
            }
            if self.output == (Output::Attention { lse: true }) {
                return Err(Error::config(
                    "output",
                    "no LSE with the sigmoid activation (its parts join by addition)",
                    "lse",
                ));
            }
        }
        Ok(())
    }

    /// Chooses the first variant that supports this configuration, compiles it and, where it depends on
    /// experimental features, [tries](Context::with_verification) it; one that computes wrong results is
    /// passed over.
    ///
    /// # Errors
    /// A configuration without meaning; no variant for this device; a shader that does not compile; a
    /// lost device, or one out of memory.
    pub async fn plan(&self, context: &Context) -> Result<Plan, Error> {
        self.validate()?;
        let mut refusals = Vec::new();
        loop {
            let (variant, tiles) = Variant::choose(context.caps(), self, &refusals)?;
            match self.compile(context, variant, tiles).await {
                Err(Error::Unsupported(refusal)) => refusals.push(refusal),
                planned => return planned,
            }
        }
    }

    /// Compiles `variant`, or says why it cannot run this configuration here.
    ///
    /// # Errors
    /// As [`plan`](Self::plan); [`Error::Unsupported`] also for a kernel that has failed its
    /// [trial](Context::with_verification).
    pub async fn plan_with(&self, context: &Context, variant: Variant) -> Result<Plan, Error> {
        self.validate()?;
        let tiles = variant.tiles(context.caps(), self)?;
        self.compile(context, variant, tiles).await
    }

    /// Compiles `variant` with tiles of the caller's choice, for tuners.
    ///
    /// The tiles are [fitted](Tiles::fitted) to the device first; those that do not fit it, or
    /// whose sizes do not divide each other, are an error.
    pub async fn plan_tiles(
        &self,
        context: &Context,
        variant: Variant,
        tiles: Tiles,
    ) -> Result<Plan, Error> {
        self.validate()?;
        variant.supports(context.caps(), self)?;
        let fitted = match variant {
            Variant::Coop => tiles.fitted_coop(context.caps(), &self.shape),
            Variant::Rows => tiles.fitted_rows(context.caps(), &self.shape),
            _ => tiles.fitted(context.caps(), &self.shape),
        };
        let fitted =
            fitted.filter(|t| t.is_consistent(variant, context.caps()) && t.divides(self)).ok_or_else(|| {
                Error::config(
                    "tiles",
                    "sizes that divide each other and a list's blocks of queries, and fit the device",
                    format!("{tiles:?}"),
                )
            })?;
        self.compile(context, variant, Some(fitted)).await
    }

    /// The shaders that a plan on a device of `caps` compiles, in the order of their dispatches,
    /// without such a device at hand: the kernel of `variant` and, where 16-bit outputs are not
    /// written by whole words, `common.narrow`.
    ///
    /// # Errors
    /// As those of [`plan_with`](Self::plan_with), but for the device's own.
    pub fn compose(
        &self,
        caps: &Caps,
        variant: Variant,
        target: Target,
    ) -> Result<Vec<Source>, Error> {
        self.validate()?;
        let tiles = variant.tiles(caps, self)?;
        if variant == Variant::Coop && target == Target::Web {
            return Err(Unsupported::new(variant.label(), "browsers have no matrix units").into());
        }
        let planned = variant.planned(self, tiles.as_ref(), caps, target)?;
        let narrow = self.narrow_source(planned.part, target);
        Ok(std::iter::once(planned.source).chain(narrow).collect())
    }

    /// Compiles a kernel and, where it depends on experimental features, tries it.
    async fn compile(
        &self,
        context: &Context,
        variant: Variant,
        tiles: Option<Tiles>,
    ) -> Result<Plan, Error> {
        let plan = self.compile_untried(context, variant, tiles).await?;
        #[cfg(not(target_family = "wasm"))]
        if let (Some(tiles), true) = (&plan.tiles, context.verifies(&[&plan.source])) {
            let trial = self.trial(&plan, tiles);
            context.verify(variant.label(), &[&plan.source], trial).await?;
        }
        Ok(plan)
    }

    /// Runs a plan's kernel on a small problem and judges the results.
    #[cfg(not(target_family = "wasm"))]
    async fn trial(&self, plan: &Plan, tiles: &Tiles) -> Result<Outcome, Error> {
        let call = Synthetic::trial(&plan.context, self, tiles)?;
        let (variant, tiles) = (plan.variant, plan.tiles);
        let tried = call.attention.compile_untried(&plan.context, variant, tiles).await?;
        // Sizes are no part of a text.
        debug_assert_eq!(tried.source, plan.source);
        call.judge(&tried).await
    }

    async fn compile_untried(
        &self,
        context: &Context,
        variant: Variant,
        tiles: Option<Tiles>,
    ) -> Result<Plan, Error> {
        let target = Target::current();
        let Planned { source, part } =
            variant.planned(self, tiles.as_ref(), context.caps(), target)?;
        let pipeline = context.pipeline(&source).await?;
        let narrow = match self.narrow_source(part, target) {
            Some(narrow) => Some(context.pipeline(&narrow).await?),
            None => None,
        };
        Ok(Plan {
            context: context.clone(),
            attention: self.clone(),
            variant,
            tiles,
            source,
            pipeline,
            part,
            narrow,
        })
    }
}
