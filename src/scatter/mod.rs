//! Scatter: rows written into a cache of keys or values, in place.

mod bind;

use crate::device::Context;
use crate::error::Error;
use crate::launch;
use crate::launch::{Array, Bound};
use crate::shader::{Binding, Header, Source, Target, fragment};
use crate::tensor::{DType, View};

/// Threads of one workgroup.
const THREADS: u32 = 256;

/// The bindings of `scatter.scatter`, by number.
const BINDINGS: &[Binding] = &[Binding::Uniform, Binding::Read, Binding::Read, Binding::Write];

/// A configuration of scatter: rows `[batch, heads, len, dim]` into a cache
/// `[batch, heads, capacity, dim]`.
///
/// Row `t` of batch entry `b` comes to stand at position `starts[b] + t`; the other positions stay
/// as they are. With [`circular`](Self::circular) positions wrap around at the end of the cache,
/// as in one that keeps the last `capacity` tokens.
///
/// ```
/// use wgpu_attention::{DType, Scatter};
/// // One new token for each of two sequences, into caches of 4096.
/// let scatter = Scatter::new([2, 8, 1, 64], 4096, DType::F16).with_circular(true);
/// assert_eq!(scatter.cache(), [2, 8, 4096, 64]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Scatter {
    /// `[batch, heads, len, dim]` of the rows.
    pub shape: [u32; 4],
    /// Positions of the cache.
    pub capacity: u32,
    /// Element type of rows and cache.
    pub dtype: DType,
    /// Whether positions wrap around at `capacity`.
    pub circular: bool,
}

/// The tensors that a scatter reads.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ScatterInputs<'a> {
    /// `[batch, heads, len, dim]`.
    pub rows: View<'a>,
    /// `u32 [batch]`: the first position of each batch entry's rows.
    pub starts: Array<'a>,
}

impl<'a> ScatterInputs<'a> {
    /// Rows and their first positions.
    pub const fn new(rows: View<'a>, starts: Array<'a>) -> Self {
        Self { rows, starts }
    }
}

impl Scatter {
    /// Rows that go to ascending positions.
    pub const fn new(shape: [u32; 4], capacity: u32, dtype: DType) -> Self {
        Self { shape, capacity, dtype, circular: false }
    }

    /// Sets whether positions wrap around at the end of the cache.
    #[must_use]
    pub const fn with_circular(mut self, circular: bool) -> Self {
        self.circular = circular;
        self
    }

    /// `[batch, heads, capacity, dim]`.
    pub const fn cache(&self) -> [u32; 4] {
        [self.shape[0], self.shape[1], self.capacity, self.shape[3]]
    }

    /// Checks what can be checked before any tensor is seen.
    ///
    /// # Errors
    /// More rows than the cache has positions; 16-bit rows of an odd dimension.
    pub fn validate(&self) -> Result<(), Error> {
        let [_, _, len, dim] = self.shape;
        if len > self.capacity || self.capacity > 1 << 30 {
            let expected = "positions for all rows, at most 2^30";
            let got = format!("{} for {len} rows", self.capacity);
            return Err(Error::config("capacity", expected, got));
        }
        if self.dtype != DType::F32 && !dim.is_multiple_of(2) {
            let expected = format!("an even last axis with {}", self.dtype);
            return Err(Error::config("shape", expected, dim.to_string()));
        }
        Ok(())
    }

    /// The shader that a plan compiles.
    pub fn compose(&self, target: Target) -> Source {
        let header = Header::default().size("THREADS", THREADS);
        let fragments = [fragment!("scatter/scatter.wgsl")];
        Source::compose("scatter.scatter", target, &header, &fragments, BINDINGS)
    }

    /// Compiles the kernel.
    ///
    /// # Errors
    /// As [`validate`](Self::validate); a shader that does not compile.
    pub async fn plan(&self, context: &Context) -> Result<ScatterPlan, Error> {
        self.validate()?;
        let pipeline = context.pipeline(&self.compose(Target::current())).await?;
        Ok(ScatterPlan { context: context.clone(), scatter: *self, pipeline })
    }
}

/// A scatter with its kernel compiled; see [`Scatter::plan`].
#[derive(Clone, Debug)]
pub struct ScatterPlan {
    context: Context,
    scatter: Scatter,
    pipeline: wgpu::ComputePipeline,
}

impl ScatterPlan {
    /// The configuration that was planned.
    pub const fn scatter(&self) -> &Scatter {
        &self.scatter
    }

    /// Checks the views against the plan and makes everything that encoding needs. `cache` is
    /// `[batch, heads, capacity, dim]`, in a buffer that does not hold the rows.
    ///
    /// # Errors
    /// A tensor or array of the wrong shape, dtype, strides or values, or one that leaves its
    /// buffer; 16-bit tensors whose offset or strides are odd; a limit that no splitting
    /// satisfies; a device out of memory.
    pub fn bind(&self, inputs: &ScatterInputs<'_>, cache: View<'_>) -> Result<Bound, Error> {
        launch::scoped(&self.context, || self.bind_checked(inputs, cache))
    }
}
