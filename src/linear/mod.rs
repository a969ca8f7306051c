//! Linear attention: a state instead of a list of keys, so that cost grows with length and not
//! with its square. Lightning attention, its gated and its delta-rule relatives.

mod bind;
mod check;
mod plan;
pub mod reference;
mod rounds;
pub mod slopes;
mod tensors;
mod tiles;
#[cfg(not(target_family = "wasm"))]
mod trial;
mod variant;

pub use check::check_gates;
pub use plan::{LinearInputs, LinearOutputs, LinearPlan};
pub use variant::LinearVariant;

use crate::error::Error;
use crate::shape::Shape;
use crate::tensor::{Alignment, DType};

/// The most features a key may have.
pub const MAX_FEATURES: u32 = 256;

/// The largest value dimension.
pub const MAX_VALUE_DIM: u32 = 256;

/// How a token changes the state `S [features, value_dim]` of its head, given its features `k` and
/// its value `v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rule {
    /// `S ← λS + k vᵀ`, one `λ = exp(−slope)` a head; without slopes `λ = 1`.
    Decay,
    /// `S ← exp(g) S + k vᵀ`, a gate `g ≤ 0` for each token.
    Gated {
        /// Whether each key dimension (row of the state) has a gate of its own.
        per_key_dim: bool,
    },
    /// `S ← S + k (β(v − Sᵀk))ᵀ`: what the state answers to the key is corrected towards the value.
    Delta,
    /// The delta rule on the gated state `exp(g) S`.
    GatedDelta {
        /// Whether each key dimension (row of the state) has a gate of its own.
        per_key_dim: bool,
    },
}

impl Rule {
    /// Whether tokens have gates.
    pub const fn is_gated(self) -> bool {
        matches!(self, Self::Gated { .. } | Self::GatedDelta { .. })
    }

    /// Whether values are corrected, by the factor β.
    pub const fn is_delta(self) -> bool {
        matches!(self, Self::Delta | Self::GatedDelta { .. })
    }

    /// Whether each key dimension has a gate of its own.
    pub const fn is_per_key_dim(self) -> bool {
        matches!(self, Self::Gated { per_key_dim: true } | Self::GatedDelta { per_key_dim: true })
    }

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decay => "decay",
            Self::Gated { .. } => "gated",
            Self::Delta => "delta",
            Self::GatedDelta { .. } => "gated-delta",
        }
    }
}

/// What is made of queries and keys before they meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FeatureMap {
    /// Nothing.
    Identity,
    /// `x · σ(x)`, element by element.
    Silu,
    /// `elu(x) + 1`, element by element: positive.
    Elu1,
    /// Based's second-order Taylor map, whose features multiply to `1 + u + u²/2` with
    /// `u = q·k/√d`. Their order, which is that of the state's rows: the 1; then `x_a / d^¼` for
    /// each `a`; then for each `a` the products with `b = a, a + 1, …`: `x_a² / √(2d)` and
    /// `x_a x_b / √d`.
    Taylor2,
}

impl FeatureMap {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Identity, Self::Silu, Self::Elu1, Self::Taylor2];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Silu => "silu",
            Self::Elu1 => "elu1",
            Self::Taylor2 => "taylor2",
        }
    }

    /// How many features a vector of `dim` elements has: `dim`, or `1 + dim + dim(dim + 1)/2`.
    pub const fn features(self, dim: u32) -> u32 {
        match self {
            Self::Taylor2 => (1 + dim).saturating_add(dim.saturating_mul(dim + 1) / 2),
            _ => dim,
        }
    }
}

/// What becomes of the state beside the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Carry {
    /// The state begins at zero and is dropped.
    None,
    /// The state begins at zero and its end is written to [`LinearOutputs::state`].
    Out,
    /// The state begins with what [`LinearOutputs::state`] holds, which is updated in place.
    InOut,
}

/// A configuration of linear attention.
///
/// `out_i = scale · S_iᵀ φ(q_i)` where `S_i` is the state after token `i`; with the normaliser,
/// `out_i = Σ_j w_ij v_j / (Σ_j w_ij + ε)` for the weights `w_ij = scale · φ(q_i)·φ(k_j) · decay`.
///
/// ```
/// use wgpu_attention::linear::slopes;
/// use wgpu_attention::{DType, FeatureMap, LinearAttention, Shape};
/// let lightning = LinearAttention::new(Shape::new(1, 8, 4096, 64), DType::F16)
///     .with_feature_map(FeatureMap::Silu);
/// assert_eq!(lightning.state(1), [1, 8, 64, 64]);
/// assert_eq!(slopes::released(8, 0, 24)?.len(), 8);
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct LinearAttention {
    /// The sizes: as many keys as queries, as many key as value heads.
    pub shape: Shape,
    /// Element type of queries, keys, values and output. The state is f32.
    pub dtype: DType,
    /// How a token changes the state.
    pub rule: Rule,
    /// What is made of queries and keys.
    pub feature_map: FeatureMap,
    /// The ε of the normaliser, where there is one.
    pub normalize: Option<f32>,
    /// The factor of the dot products; 1 unless set.
    pub scale: f32,
    /// Whether sequences are packed documents, each with a state of its own:
    /// [`LinearInputs::starts`].
    pub documents: bool,
    /// What becomes of the state.
    pub carry: Carry,
    /// Tokens of one chunk in the chunked kernels, a multiple of 16 up to 4096 (128 without matrix
    /// units); `None` leaves it to the device.
    pub chunk: Option<u32>,
    /// Tokens of a chunk that the kernels on matrix units take at a time, a multiple of 16 up to 128
    /// that divides the chunk; `None` leaves it to the device.
    pub block: Option<u32>,
    /// How tensors lie in memory; `None` decides by the dims alone.
    pub access: Option<Alignment>,
}

impl LinearAttention {
    /// Lightning attention without feature map or normaliser.
    pub const fn new(shape: Shape, dtype: DType) -> Self {
        Self {
            shape,
            dtype,
            rule: Rule::Decay,
            feature_map: FeatureMap::Identity,
            normalize: None,
            scale: 1.0,
            documents: false,
            carry: Carry::None,
            chunk: None,
            block: None,
            access: None,
        }
    }

    /// Sets how a token changes the state.
    #[must_use]
    pub const fn with_rule(mut self, rule: Rule) -> Self {
        self.rule = rule;
        self
    }

    /// Sets what is made of queries and keys.
    #[must_use]
    pub const fn with_feature_map(mut self, map: FeatureMap) -> Self {
        self.feature_map = map;
        self
    }

    /// Divides each output by the sum of its weights and `epsilon`.
    #[must_use]
    pub const fn with_normalizer(mut self, epsilon: f32) -> Self {
        self.normalize = Some(epsilon);
        self
    }

    /// Sets the factor of the dot products.
    #[must_use]
    pub const fn with_scale(mut self, scale: f32) -> Self {
        self.scale = scale;
        self
    }

    /// Makes the sequences packed documents.
    #[must_use]
    pub const fn with_documents(mut self) -> Self {
        self.documents = true;
        self
    }

    /// Sets what becomes of the state.
    #[must_use]
    pub const fn with_carry(mut self, carry: Carry) -> Self {
        self.carry = carry;
        self
    }

    /// Sets the tokens of one chunk.
    #[must_use]
    pub const fn with_chunk(mut self, tokens: u32) -> Self {
        self.chunk = Some(tokens);
        self
    }

    /// Sets the tokens that the kernels on matrix units take at a time.
    #[must_use]
    pub const fn with_block(mut self, tokens: u32) -> Self {
        self.block = Some(tokens);
        self
    }

    /// Sets how tensors lie in memory, for offsets and strides that are no multiples of four.
    #[must_use]
    pub const fn with_alignment(mut self, alignment: Alignment) -> Self {
        self.access = Some(alignment);
        self
    }

    /// Features of a query or key: rows of the state.
    pub const fn features(&self) -> u32 {
        self.feature_map.features(self.shape.head_dim)
    }

    /// `[batch · documents, key_heads, features, value_dim]`, with `documents` 1 where there are
    /// none: the document counts faster.
    pub const fn state(&self, documents: u32) -> [u32; 4] {
        let shape = &self.shape;
        [shape.batch * documents, shape.key_heads, self.features(), shape.value_dim]
    }

    /// `[batch · documents, key_heads, features, 1]`: the normaliser's own state, `Σ φ(k)`.
    pub const fn normalizer(&self, documents: u32) -> [u32; 4] {
        let shape = &self.shape;
        [shape.batch * documents, shape.key_heads, self.features(), 1]
    }

    /// `[batch, key_heads, len, 1 | head_dim]`.
    pub const fn gate(&self) -> [u32; 4] {
        let shape = &self.shape;
        let dim = if self.rule.is_per_key_dim() { shape.head_dim } else { 1 };
        [shape.batch, shape.key_heads, shape.key_len, dim]
    }

    /// `[batch, key_heads, len, 1]`.
    pub const fn beta(&self) -> [u32; 4] {
        let shape = &self.shape;
        [shape.batch, shape.key_heads, shape.key_len, 1]
    }

    /// How tensors are reached: as set, or as both dims allow, by eights where elements have 16 bits.
    pub fn alignment(&self) -> Alignment {
        let Shape { head_dim, value_dim, .. } = self.shape;
        self.access.unwrap_or_else(|| Alignment::natural(self.dtype, [head_dim, value_dim]))
    }

    /// Checks what can be checked before any tensor is seen.
    pub fn validate(&self) -> Result<(), Error> {
        let shape = &self.shape;
        shape.validate()?;
        if shape.key_heads != shape.value_heads {
            return Err(Error::config(
                "shape.value_heads",
                format!("the {} heads of the keys: both make one state", shape.key_heads),
                shape.value_heads.to_string(),
            ));
        }
        if shape.query_len != shape.key_len {
            return Err(Error::config(
                "shape.query_len",
                format!("the {} tokens that keys and values have", shape.key_len),
                shape.query_len.to_string(),
            ));
        }
        if shape.value_dim > MAX_VALUE_DIM {
            return Err(Error::config(
                "shape.value_dim",
                format!("1 to {MAX_VALUE_DIM}"),
                shape.value_dim.to_string(),
            ));
        }
        if self.features() > MAX_FEATURES {
            return Err(Error::config(
                "feature_map",
                format!("a map with at most {MAX_FEATURES} features"),
                format!("{}, {} features", self.feature_map.name(), self.features()),
            ));
        }
        if self.feature_map == FeatureMap::Taylor2 && self.rule.is_per_key_dim() {
            return Err(Error::config(
                "rule",
                "gates per token with the feature map taylor2, whose features mix dimensions",
                "gates per key dimension",
            ));
        }
        if !self.scale.is_finite() {
            return Err(Error::config("scale", "a finite number", self.scale.to_string()));
        }
        if let Some(epsilon) = self.normalize {
            if self.rule.is_delta() {
                return Err(Error::config(
                    "normalize",
                    "none with the delta rules, whose weights have no sum to divide by",
                    "a normaliser",
                ));
            }
            if !(epsilon.is_finite() && epsilon >= 0.0) {
                return Err(Error::config(
                    "normalize",
                    "an ε that is finite and not negative",
                    epsilon.to_string(),
                ));
            }
        }
        for (name, tokens, most) in [("chunk", self.chunk, 4096), ("block", self.block, 128)] {
            let is_wrong = |n: &u32| !(n.is_multiple_of(16) && (16..=most).contains(n));
            if let Some(tokens) = tokens.filter(is_wrong) {
                let expected = format!("a multiple of 16 from 16 to {most}");
                return Err(Error::config(name, expected, tokens.to_string()));
            }
        }
        let (alignment, elements) = (self.alignment(), self.alignment().elements());
        let Shape { head_dim, value_dim, .. } = *shape;
        if !head_dim.is_multiple_of(elements) || !value_dim.is_multiple_of(elements) {
            return Err(Error::config(
                "alignment",
                format!("Any, or head_dim and value_dim that are multiples of {elements}"),
                format!("{alignment:?} with head_dim {head_dim} and value_dim {value_dim}"),
            ));
        }
        Ok(())
    }
}
