//! Plans of linear attention: what is decided and compiled once, and what they are bound to.

use super::tiles::{Half, Tiles};
#[cfg(not(target_family = "wasm"))]
use super::trial;
use super::variant::Kernel;
use super::{LinearAttention, LinearVariant};
use crate::caps::Caps;
use crate::device::Context;
use crate::error::{Error, Unsupported};
use crate::launch;
use crate::launch::{Array, Bound, workspace};
use crate::shader::{Source, Target};
use crate::tensor::View;

/// The tensors that a call of linear attention reads.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LinearInputs<'a> {
    /// `[batch, query_heads, len, head_dim]`.
    pub query: View<'a>,
    /// `[batch, key_heads, len, head_dim]`.
    pub key: View<'a>,
    /// `[batch, key_heads, len, value_dim]`.
    pub value: View<'a>,
    /// `[batch, key_heads, len, 1 | head_dim]` of any dtype, where the rule is gated: logarithms of
    /// what a token leaves of the state, at most 0.
    pub gate: Option<View<'a>>,
    /// `[batch, key_heads, len, 1]` of any dtype, for the delta rules; stride 0 shares it between
    /// heads.
    pub beta: Option<View<'a>>,
    /// `f32 [key_heads]`: slopes `≥ 0` of [`Rule::Decay`](super::Rule::Decay), `λ = exp(−slope)`;
    /// without them `λ = 1`.
    pub decay: Option<Array<'a>>,
    /// `u32 [documents + 1]`, where there are documents: from 0, ascending, to the length.
    pub starts: Option<Array<'a>>,
}

impl<'a> LinearInputs<'a> {
    /// Queries, keys and values alone.
    pub const fn new(query: View<'a>, key: View<'a>, value: View<'a>) -> Self {
        Self { query, key, value, gate: None, beta: None, decay: None, starts: None }
    }

    /// Adds the gates.
    #[must_use]
    pub const fn with_gate(mut self, gate: View<'a>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Adds the factors of the delta rules.
    #[must_use]
    pub const fn with_beta(mut self, beta: View<'a>) -> Self {
        self.beta = Some(beta);
        self
    }

    /// Adds the slopes.
    #[must_use]
    pub const fn with_decay(mut self, slopes: Array<'a>) -> Self {
        self.decay = Some(slopes);
        self
    }

    /// Adds the starts of the documents.
    #[must_use]
    pub const fn with_starts(mut self, starts: Array<'a>) -> Self {
        self.starts = Some(starts);
        self
    }
}

/// The tensors that a call of linear attention writes; each in a buffer that holds no input.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LinearOutputs<'a> {
    /// `[batch, query_heads, len, value_dim]`, in the dtype of the inputs.
    pub out: View<'a>,
    /// f32 `[batch · documents, key_heads, features, value_dim]`, where the state is carried; read
    /// first and then written with [`Carry::InOut`](super::Carry::InOut).
    pub state: Option<View<'a>>,
    /// f32 `[batch · documents, key_heads, features, 1]`, where the state is carried and there is a
    /// normaliser.
    pub normalizer: Option<View<'a>>,
}

impl<'a> LinearOutputs<'a> {
    /// The output alone.
    pub const fn new(out: View<'a>) -> Self {
        Self { out, state: None, normalizer: None }
    }

    /// Adds the state.
    #[must_use]
    pub const fn with_state(mut self, state: View<'a>) -> Self {
        self.state = Some(state);
        self
    }

    /// Adds the normaliser's state.
    #[must_use]
    pub const fn with_normalizer(mut self, normalizer: View<'a>) -> Self {
        self.normalizer = Some(normalizer);
        self
    }
}

/// A configuration with its algorithm chosen and its kernels compiled; see
/// [`LinearAttention::plan`].
#[derive(Clone, Debug)]
pub struct LinearPlan {
    pub(super) context: Context,
    pub(super) linear: LinearAttention,
    pub(super) variant: LinearVariant,
    /// The denominators first, where there is a normaliser, then the outputs.
    pub(super) halves: Vec<Compiled>,
    /// Rounds the f32 workspace to a 16-bit output, where that cannot be written directly.
    pub(super) narrow: Option<wgpu::ComputePipeline>,
}

/// The kernels of one half of a call, in the order in which they run.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    pub half: Half,
    pub tiles: Tiles,
    /// As that of [`Composed`].
    pub walk: Option<u32>,
    pub kernels: Vec<(Kernel, Source, wgpu::ComputePipeline)>,
}

/// The shaders of one half of a call, in the order in which they run.
pub(super) struct Composed {
    pub tiles: Tiles,
    /// Chunks, or tokens of `linear.recurrent`, that one dispatch walks at most, where the driver
    /// limits the rounds of loops.
    pub walk: Option<u32>,
    pub kernels: Vec<(Kernel, Source)>,
}

impl LinearAttention {
    /// Chooses an algorithm by the length, compiles its kernels and, where they depend on experimental
    /// features, [tries](Context::with_verification) them; those that compute wrong results are passed
    /// over.
    ///
    /// # Errors
    /// As [`validate`](Self::validate); no variant for this device; a shader that does not compile.
    pub async fn plan(&self, context: &Context) -> Result<LinearPlan, Error> {
        self.validate()?;
        let mut refusals = Vec::new();
        loop {
            let variant = LinearVariant::choose_but(context.caps(), self, &refusals)?;
            match self.compile(context, variant).await {
                Err(Error::Unsupported(refusal)) => refusals.push(refusal),
                planned => return planned,
            }
        }
    }

    /// Compiles `variant`, or says why it cannot run this configuration here.
    ///
    /// # Errors
    /// As [`plan`](Self::plan).
    pub async fn plan_with(
        &self,
        context: &Context,
        variant: LinearVariant,
    ) -> Result<LinearPlan, Error> {
        self.validate()?;
        variant.supports(context.caps(), self)?;
        self.compile(context, variant).await
    }

    /// The shaders that a plan on a device of `caps` compiles, in the order in which they run,
    /// without such a device at hand.
    ///
    /// # Errors
    /// As those of [`plan_with`](Self::plan_with), but for the device's own.
    pub fn compose(
        &self,
        caps: &Caps,
        variant: LinearVariant,
        target: Target,
    ) -> Result<Vec<Source>, Error> {
        self.validate()?;
        variant.supports(caps, self)?;
        if variant == LinearVariant::Coop && target == Target::Web {
            return Err(Unsupported::new(variant.label(), "browsers have no matrix units").into());
        }
        let mut sources = Vec::new();
        for half in self.halves() {
            let composed = self.sources(caps, variant, half, target)?;
            sources.extend(composed.kernels.into_iter().map(|(_, source)| source));
        }
        Ok(sources.into_iter().chain(self.narrow_source(target)).collect())
    }

    /// The halves of the call: the denominators first, where there is a normaliser.
    pub(super) fn halves(&self) -> impl Iterator<Item = Half> {
        self.normalize.map(|_| Half::Ones).into_iter().chain([Half::Values])
    }

    /// The kernels of one half, in the order in which they run.
    pub(super) fn sources(
        &self,
        caps: &Caps,
        variant: LinearVariant,
        half: Half,
        target: Target,
    ) -> Result<Composed, Unsupported> {
        let variant = variant.of_half(half);
        let (tiles, _) = Tiles::new(caps, variant, self, half);
        let compose = |kernel: Kernel| (kernel, kernel.source(self, half, &tiles, (caps, target)));
        let kernels: Vec<_> = variant.kernels(self).into_iter().map(compose).collect();
        let walk = self.walk(caps, &kernels)?;
        Ok(Composed { tiles, walk, kernels })
    }

    /// Rounds the f32 workspace to a 16-bit output whose words the kernels cannot write whole.
    fn narrow_source(&self, target: Target) -> Option<Source> {
        workspace::narrows(self.alignment(), self.dtype)
            .then(|| workspace::narrow_source(self.dtype, target))
    }

    async fn compile(
        &self,
        context: &Context,
        variant: LinearVariant,
    ) -> Result<LinearPlan, Error> {
        let target = Target::current();
        let mut halves = Vec::new();
        for half in self.halves() {
            let composed = self.sources(context.caps(), variant, half, target)?;
            let Composed { tiles, walk, .. } = composed;
            let mut kernels = Vec::new();
            for (kernel, source) in composed.kernels {
                let pipeline = context.pipeline(&source).await?;
                kernels.push((kernel, source, pipeline));
            }
            halves.push(Compiled { half, tiles, walk, kernels });
        }
        let narrow = match self.narrow_source(target) {
            Some(narrow) => Some(context.pipeline(&narrow).await?),
            None => None,
        };
        let plan = LinearPlan { context: context.clone(), linear: *self, variant, halves, narrow };
        #[cfg(not(target_family = "wasm"))]
        {
            let kernels = plan.halves.iter().flat_map(|half| &half.kernels);
            let sources: Vec<&Source> = kernels.map(|(_, source, _)| source).collect();
            if context.verifies(&sources) {
                context.verify(variant.label(), &sources, trial::trial(&plan)).await?;
            }
        }
        Ok(plan)
    }
}

impl LinearPlan {
    /// The configuration that was planned.
    pub const fn linear(&self) -> &LinearAttention {
        &self.linear
    }

    /// The algorithm that was chosen.
    pub const fn variant(&self) -> LinearVariant {
        self.variant
    }

    /// Tokens of a chunk; 1 for the recurrence.
    pub fn chunk(&self) -> u32 {
        match self.variant {
            LinearVariant::Columns | LinearVariant::Recurrent => 1,
            LinearVariant::Coop | LinearVariant::Chunked => {
                self.halves.last().map_or(1, |half| half.tiles.chunk)
            }
        }
    }

    /// The composed shaders by label, as the compiler saw them, in the order in which they run.
    pub fn wgsl(&self) -> impl Iterator<Item = (&str, &str)> {
        let kernels = self.halves.iter().flat_map(|half| &half.kernels);
        kernels.map(|(_, source, _)| (source.label(), source.wgsl()))
    }

    /// Checks the views against the plan and makes everything that encoding needs.
    ///
    /// A tensor beyond the device's binding limit is processed by batch entries and heads, and the
    /// chunks of a long sequence segment by segment, so that the workspace does not grow with length.
    ///
    /// # Errors
    /// A tensor or array of the wrong shape, dtype, strides or values; one that leaves its buffer; an
    /// output in the buffer of an input; a limit that no splitting satisfies; a device out of memory.
    pub fn bind(
        &self,
        inputs: &LinearInputs<'_>,
        outputs: &LinearOutputs<'_>,
    ) -> Result<Bound, Error> {
        launch::scoped(&self.context, || self.bind_checked(inputs, outputs))
    }
}
