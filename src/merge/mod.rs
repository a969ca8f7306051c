//! Merge: the results of attention over parts of the keys, joined into that over all of them.

mod bind;
pub mod reference;

use crate::device::Context;
use crate::error::{Error, Unsupported};
use crate::launch;
use crate::launch::workspace::{dtype_fragment, store_fragment, with_narrow};
use crate::launch::{Array, Bound};
use crate::shader::{Binding, Header, Source, Target, fragment};
use crate::tensor::{Alignment, DType, View};

/// Threads of one workgroup.
const THREADS: u32 = 256;

/// How many parts are loaded together. On an H100, where a copy moves 2911 GB/s, four parts of 64
/// dims moved 2124 GB/s at f16 and 2885 at f32 one by one, 2258 and 2888 by twos, 2309 and 2871 by
/// fours; with two vectors an invocation, at f16, 2530, 2546 and 2469.
const AHEAD: u32 = 2;

/// The bindings of `merge.merge`, by number.
const BINDINGS: &[Binding] = &[
    Binding::Uniform,
    Binding::Read,
    Binding::Read,
    Binding::Read,
    Binding::Read,
    Binding::Write,
    Binding::Write,
];

/// How much a part counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MergeRule {
    /// As `exp(ℓ_p)`, normalised over the parts, where `ℓ_p` is the part's LSE, or a logit in its
    /// place, plus a log-weight: what softmax over all keys gives.
    Lse,
    /// As a weight that is given: `Σ w_p · O_p`.
    Weights,
    /// Once: `Σ O_p`, what sigmoid over all keys gives.
    Sum,
}

/// A configuration of merge: `parts` results of shape `[batch, heads, len, dim]` into one.
///
/// Merging is associative and commutative, and a part without keys (an LSE of −1e30) changes
/// nothing, whatever its output holds. The merged LSE of parts that are not all empty is at least
/// [`LEAST_LOGIT`](crate::attention::tolerance::LEAST_LOGIT).
///
/// ```
/// use wgpu_attention::{DType, Merge, MergeRule};
/// let merge = Merge::new(2, [1, 16, 4096, 64], DType::F16).with_lse();
/// assert_eq!(merge.rule, MergeRule::Lse);
/// assert_eq!(merge.stacked(64), [2, 16, 4096, 64]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Merge {
    /// Number of parts.
    pub parts: u32,
    /// `[batch, heads, len, dim]` of the output.
    pub shape: [u32; 4],
    /// Element type of the parts and the output.
    pub dtype: DType,
    /// How much a part counts.
    pub rule: MergeRule,
    /// Whether the merged LSE is written ([`MergeRule::Lse`] only).
    pub lse: bool,
    /// How the outputs lie in memory; `None` decides by `dim` alone.
    pub access: Option<Alignment>,
}

/// The tensors that a merge reads. Parts lie behind one another along the batch axis: part `p` of
/// batch entry `b` is entry `p · batch + b`.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MergeInputs<'a> {
    /// `[parts · batch, heads, len, dim]`: the parts' outputs.
    pub out: View<'a>,
    /// f32 `[parts · batch, heads, len, 1]`, for [`MergeRule::Lse`]: the parts' LSEs.
    pub lse: Option<View<'a>>,
    /// f32 `[parts · batch, heads, len, 1]`, optional for [`MergeRule::Lse`]: numbers that take
    /// the place of the LSEs, NaN where a part keeps its own. A part that is empty stays so.
    pub logits: Option<View<'a>>,
    /// f32 `[parts · batch, heads, len, 1]`, for [`MergeRule::Weights`].
    pub weights: Option<View<'a>>,
    /// `f32 [parts]`, optional for [`MergeRule::Lse`]: added to each part's LSE or logit.
    pub log_weights: Option<Array<'a>>,
}

impl<'a> MergeInputs<'a> {
    /// The parts' outputs alone.
    pub const fn new(out: View<'a>) -> Self {
        Self { out, lse: None, logits: None, weights: None, log_weights: None }
    }

    /// Adds the parts' LSEs.
    #[must_use]
    pub const fn with_lse(mut self, lse: View<'a>) -> Self {
        self.lse = Some(lse);
        self
    }

    /// Adds numbers in place of the LSEs.
    #[must_use]
    pub const fn with_logits(mut self, logits: View<'a>) -> Self {
        self.logits = Some(logits);
        self
    }

    /// Adds the weights.
    #[must_use]
    pub const fn with_weights(mut self, weights: View<'a>) -> Self {
        self.weights = Some(weights);
        self
    }

    /// Adds a number to each part's LSE.
    #[must_use]
    pub const fn with_log_weights(mut self, log_weights: Array<'a>) -> Self {
        self.log_weights = Some(log_weights);
        self
    }
}

/// The tensors that a merge writes; each in a buffer that holds no input.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MergeOutputs<'a> {
    /// `[batch, heads, len, dim]`.
    pub out: View<'a>,
    /// f32 `[batch, heads, len, 1]`, where it is asked for: −1e30 where all parts are empty.
    pub lse: Option<View<'a>>,
}

impl<'a> MergeOutputs<'a> {
    /// The output alone.
    pub const fn new(out: View<'a>) -> Self {
        Self { out, lse: None }
    }

    /// Adds the merged LSE.
    #[must_use]
    pub const fn with_lse(mut self, lse: View<'a>) -> Self {
        self.lse = Some(lse);
        self
    }
}

impl Merge {
    /// A merge by LSE.
    pub const fn new(parts: u32, shape: [u32; 4], dtype: DType) -> Self {
        Self { parts, shape, dtype, rule: MergeRule::Lse, lse: false, access: None }
    }

    /// Sets how much a part counts.
    #[must_use]
    pub const fn with_rule(mut self, rule: MergeRule) -> Self {
        self.rule = rule;
        self
    }

    /// Asks for the merged LSE.
    #[must_use]
    pub const fn with_lse(mut self) -> Self {
        self.lse = true;
        self
    }

    /// Sets how the outputs lie in memory, for offsets and strides that are no multiples of four.
    #[must_use]
    pub const fn with_alignment(mut self, alignment: Alignment) -> Self {
        self.access = Some(alignment);
        self
    }

    /// How the outputs are reached: as set, or by fours when `dim` is a multiple of four.
    pub fn alignment(&self) -> Alignment {
        match self.access {
            Some(alignment) => alignment,
            None if self.shape[3].is_multiple_of(4) => Alignment::Vec4,
            None => Alignment::Any,
        }
    }

    /// The shape of all parts together, `[parts · batch, heads, len, dim]`.
    pub const fn stacked(&self, dim: u32) -> [u32; 4] {
        [self.parts * self.shape[0], self.shape[1], self.shape[2], dim]
    }

    /// Checks what can be checked before any tensor is seen.
    ///
    /// # Errors
    /// No parts, or more tensors than 32 bits number; no dimension; an LSE without
    /// [`MergeRule::Lse`]; vectors of four that the dimension does not have.
    pub fn validate(&self) -> Result<(), Error> {
        let [batch, _, _, dim] = self.shape;
        if self.parts == 0 || self.parts.checked_mul(batch).is_none() {
            let expected = "at least 1, and parts · batch below 2^32";
            return Err(Error::config("parts", expected, self.parts.to_string()));
        }
        if dim == 0 {
            return Err(Error::config("shape", "a last axis of at least 1", "0"));
        }
        let (alignment, elements) = (self.alignment(), self.alignment().elements());
        if !dim.is_multiple_of(elements) {
            let expected = format!("Any, or a last axis that is a multiple of {elements}");
            return Err(Error::config("alignment", expected, format!("{alignment:?} with {dim}")));
        }
        if self.lse && self.rule != MergeRule::Lse {
            let got = format!("lse with {:?}", self.rule);
            return Err(Error::config("lse", "none but for MergeRule::Lse", got));
        }
        Ok(())
    }

    /// How many vectors of four elements an invocation makes: 16 bytes' worth, where rows are made
    /// of such.
    fn vectors_each(&self) -> u32 {
        let by_sixteen_bytes = self.dtype.size() == 2 && self.shape[3].is_multiple_of(8);
        if by_sixteen_bytes && self.alignment() != Alignment::Any { 2 } else { 1 }
    }

    /// How many invocations make a row.
    fn per_row(&self) -> u32 {
        self.shape[3].div_ceil(4 * self.vectors_each())
    }

    /// The shaders that a plan compiles, in the order of their dispatches: `merge.merge` and, where
    /// 16-bit outputs are not written by whole words, `common.narrow`.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn compose(&self, target: Target) -> Result<Vec<Source>, Error> {
        self.validate()?;
        let header = Header::default()
            .unrolled(true)
            .size("THREADS", THREADS)
            .size("AHEAD", AHEAD)
            .size("EACH", self.vectors_each())
            .size("PER_ROW", self.per_row())
            .size("RULE", self.rule as u32);
        let fragments = [
            dtype_fragment(self.dtype),
            match self.alignment() {
                Alignment::Vec8 | Alignment::Vec4 => fragment!("merge/load_vec4.wgsl"),
                Alignment::Any => fragment!("merge/load_any.wgsl"),
            },
            store_fragment(self.alignment()),
            fragment!("merge/merge.wgsl"),
        ];
        let source = Source::compose("merge.merge", target, &header, &fragments, BINDINGS);
        Ok(with_narrow(source, self.alignment(), self.dtype, target))
    }

    /// Compiles the kernel.
    ///
    /// # Errors
    /// As [`validate`](Self::validate); more parts than loops of the driver have rounds; a shader that
    /// does not compile.
    pub async fn plan(&self, context: &Context) -> Result<MergePlan, Error> {
        let sources = self.compose(Target::current())?;
        if let Some(limit) = context.caps().loop_rounds {
            let rounds = sources.first().and_then(|merge| merge.rounds(&[]));
            let most = rounds.and_then(|rounds| rounds.walk_within(limit));
            if most.is_none_or(|most| most < u64::from(self.parts)) {
                return Err(Unsupported::rounds("merge.merge", limit).into());
            }
        }
        let pipelines = context.compile(&sources).await?;
        Ok(MergePlan { context: context.clone(), merge: *self, pipelines })
    }
}

/// A merge with its kernels compiled; see [`Merge::plan`].
#[derive(Clone, Debug)]
pub struct MergePlan {
    context: Context,
    merge: Merge,
    /// `merge.merge` and, where it is needed, `common.narrow`.
    pipelines: Vec<wgpu::ComputePipeline>,
}

impl MergePlan {
    /// The configuration that was planned.
    pub const fn merge(&self) -> &Merge {
        &self.merge
    }

    /// Checks the views against the plan and makes everything that encoding needs.
    ///
    /// # Errors
    /// A tensor or array of the wrong shape, dtype or strides; one that leaves its buffer; an
    /// output in the buffer of an input; a tensor beyond the device's binding limit; a device out
    /// of memory.
    pub fn bind(
        &self,
        inputs: &MergeInputs<'_>,
        outputs: &MergeOutputs<'_>,
    ) -> Result<Bound, Error> {
        launch::scoped(&self.context, || self.bind_checked(inputs, outputs))
    }
}
