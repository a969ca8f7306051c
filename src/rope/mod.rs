//! Rotary position embedding of queries and keys, in front of attention (Su et al., 2021).
//!
//! A row is cut into pairs of elements, and pair `i` of the token at position `p` is turned by the
//! angle `p · θ_i`: the dot product of a turned query and a turned key then depends on the
//! distance of their positions alone. Cosines and sines come from tables, so that every scheme of
//! angles (scaled, interpolated, YaRN) is a matter of the table; [`table`] makes the usual one.
//!
//! It is an op of its own and not a part of attention's loading, since that would not be free. The
//! attention kernels bind the eight storage buffers that every device has, which leaves none for
//! the tables. A key would be turned once for every block of queries that visits it instead of
//! once, and a cache of keys holds them turned anyway. And where the head dimension is staged in
//! pieces, the other half of a pair is in another piece.

mod bind;
pub mod reference;

use crate::device::Context;
use crate::error::Error;
use crate::launch;
use crate::launch::workspace::{dtype_fragment, store_fragment, with_narrow};
use crate::launch::{Array, Bound};
use crate::shader::{Binding, Header, Source, Target, fragment};
use crate::tensor::{Alignment, DType, View};

/// Threads of one workgroup.
const THREADS: u32 = 256;

/// The bindings of `rope.rope`, by number.
const BINDINGS: &[Binding] =
    &[Binding::Uniform, Binding::Read, Binding::Read, Binding::Read, Binding::Read, Binding::Write];

/// Which elements of a row turn together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RopePairs {
    /// Element `i` and element `i + rotary_dim / 2` (GPT-NeoX, Llama's released weights).
    #[default]
    Halves,
    /// Elements `2i` and `2i + 1` (the paper, GPT-J).
    Interleaved,
}

/// A configuration of rotary embedding over `[batch, heads, len, dim]`.
///
/// ```
/// use wgpu_attention::{DType, Rope, RopePairs};
/// let rope = Rope::new([1, 8, 1024, 128], DType::F16).with_rotary_dim(64);
/// assert_eq!((rope.pairs, rope.rotary_dim), (RopePairs::Halves, 64));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Rope {
    /// `[batch, heads, len, dim]` of the input and the output.
    pub shape: [u32; 4],
    /// Element type of the input and the output.
    pub dtype: DType,
    /// Elements of a row that are turned, from the first; even. The others pass through.
    pub rotary_dim: u32,
    /// Which elements turn together.
    pub pairs: RopePairs,
    /// Element type of the tables.
    pub table: DType,
    /// How the output lies in memory; `None` decides by `dim` alone.
    pub access: Option<Alignment>,
}

/// The tensors that a rotation reads.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RopeInputs<'a> {
    /// `[batch, heads, len, dim]`.
    pub input: View<'a>,
    /// `[1, 1, rows, rotary_dim / 2]`: the cosines of each position's angles; without positions
    /// `[batch | 1, 1, len, rotary_dim / 2]`, those of each token's.
    pub cos: View<'a>,
    /// The sines, of the same shape.
    pub sin: View<'a>,
    /// `u32 [batch, len]` or `[len]`, each below `rows`: the positions of the tokens.
    pub positions: Option<Array<'a>>,
}

impl<'a> RopeInputs<'a> {
    /// A row of the tables for each token.
    pub const fn new(input: View<'a>, cos: View<'a>, sin: View<'a>) -> Self {
        Self { input, cos, sin, positions: None }
    }

    /// Sets the positions of the tokens.
    #[must_use]
    pub const fn with_positions(mut self, positions: Array<'a>) -> Self {
        self.positions = Some(positions);
        self
    }
}

/// Cosines and sines, `[rows, rotary_dim / 2]` each, of the angles `position · base^(−2i /
/// rotary_dim)` (the paper's base is 10,000).
pub fn table(rows: u32, rotary_dim: u32, base: f64) -> (Vec<f32>, Vec<f32>) {
    let angle = |index: u64| {
        let half = u64::from(rotary_dim / 2).max(1);
        let (position, pair) = (index / half, index % half);
        position as f64 * base.powf(-2.0 * pair as f64 / f64::from(rotary_dim))
    };
    let count = u64::from(rows) * u64::from(rotary_dim / 2);
    let cos = (0..count).map(|index| angle(index).cos() as f32).collect();
    (cos, (0..count).map(|index| angle(index).sin() as f32).collect())
}

impl Rope {
    /// All of a row turned, in halves, by f32 tables.
    pub const fn new(shape: [u32; 4], dtype: DType) -> Self {
        let (rotary_dim, pairs, table) = (shape[3], RopePairs::Halves, DType::F32);
        Self { shape, dtype, rotary_dim, pairs, table, access: None }
    }

    /// Sets how much of a row is turned.
    #[must_use]
    pub const fn with_rotary_dim(mut self, rotary_dim: u32) -> Self {
        self.rotary_dim = rotary_dim;
        self
    }

    /// Sets which elements turn together.
    #[must_use]
    pub const fn with_pairs(mut self, pairs: RopePairs) -> Self {
        self.pairs = pairs;
        self
    }

    /// Sets the element type of the tables.
    #[must_use]
    pub const fn with_table(mut self, table: DType) -> Self {
        self.table = table;
        self
    }

    /// Sets how the output lies in memory, for offsets and strides that are no multiples of four.
    #[must_use]
    pub const fn with_alignment(mut self, alignment: Alignment) -> Self {
        self.access = Some(alignment);
        self
    }

    /// How the output is reached: as set, or by fours when `dim` is a multiple of four.
    pub fn alignment(&self) -> Alignment {
        match self.access {
            Some(alignment) => alignment,
            None if self.shape[3].is_multiple_of(4) => Alignment::Vec4,
            None => Alignment::Any,
        }
    }

    /// Checks what can be checked before any tensor is seen.
    ///
    /// # Errors
    /// A rotary dimension that is odd, 0 or longer than a row; vectors of four that rows do not
    /// have.
    pub fn validate(&self) -> Result<(), Error> {
        let dim = self.shape[3];
        if !self.rotary_dim.is_multiple_of(2) || !(2..=dim).contains(&self.rotary_dim) {
            let expected = format!("an even number from 2 to the {dim} elements of a row");
            return Err(Error::config("rotary_dim", expected, self.rotary_dim.to_string()));
        }
        let (alignment, elements) = (self.alignment(), self.alignment().elements());
        if !dim.is_multiple_of(elements) {
            let expected = format!("Any, or a last axis that is a multiple of {elements}");
            return Err(Error::config("alignment", expected, format!("{alignment:?} with {dim}")));
        }
        Ok(())
    }

    /// The shaders that a plan compiles, in the order of their dispatches: `rope.rope` and, where
    /// 16-bit outputs are not written by whole words, `common.narrow`.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn compose(&self, target: Target) -> Result<Vec<Source>, Error> {
        self.validate()?;
        let header = Header::default().size("THREADS", THREADS);
        let fragments = [
            dtype_fragment(self.dtype),
            store_fragment(self.alignment()),
            fragment!("rope/rope.wgsl"),
        ];
        let source = Source::compose("rope.rope", target, &header, &fragments, BINDINGS);
        Ok(with_narrow(source, self.alignment(), self.dtype, target))
    }

    /// Compiles the kernel.
    ///
    /// # Errors
    /// As [`validate`](Self::validate); a shader that does not compile.
    pub async fn plan(&self, context: &Context) -> Result<RopePlan, Error> {
        let pipelines = context.compile(&self.compose(Target::current())?).await?;
        Ok(RopePlan { context: context.clone(), rope: *self, pipelines })
    }
}

/// A rotation with its kernels compiled; see [`Rope::plan`].
#[derive(Clone, Debug)]
pub struct RopePlan {
    context: Context,
    rope: Rope,
    /// `rope.rope` and, where it is needed, `common.narrow`.
    pipelines: Vec<wgpu::ComputePipeline>,
}

impl RopePlan {
    /// The configuration that was planned.
    pub const fn rope(&self) -> &Rope {
        &self.rope
    }

    /// Checks the views against the plan and makes everything that encoding needs. `out` is
    /// `[batch, heads, len, dim]`, in a buffer that holds no input.
    ///
    /// # Errors
    /// A tensor or array of the wrong shape, dtype, strides or values; one that leaves its buffer;
    /// an output in the buffer of an input; a limit that no splitting satisfies; a device out of
    /// memory.
    pub fn bind(&self, inputs: &RopeInputs<'_>, out: View<'_>) -> Result<Bound, Error> {
        launch::scoped(&self.context, || self.bind_checked(inputs, out))
    }
}
