//! Element types, and strided views over the caller's buffers.

use std::ops::Range;

use crate::error::Error;

/// Numbers in buffers up to this one stand for −∞: kernels write −1e30, since WGSL may assume
/// that there are no infinities.
pub const EMPTY: f64 = -5e29;

/// The least f32 that does not stand for −∞, the next one above [`EMPTY`]: lower logits of kept pairs,
/// and lower LSEs of rows that keep some, count as this number.
pub const LEAST_LOGIT: f64 = f32::from_bits(0xf0c9_f2c9) as f64;

/// The element type of a tensor. Arithmetic is f32 whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16, two to a 32-bit word; needs no device feature.
    F16,
    /// bfloat16: the upper half of a binary32, two to a 32-bit word; needs no device feature.
    BF16,
}

impl DType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::BF16];

    /// Bytes of one element.
    pub const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The name used in labels, files and tables: `f32`, `f16`, `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    /// Rounds numbers to this type (to nearest, ties to even) and gives the bytes of the buffer.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => bytemuck::cast_slice(values).to_vec(),
            Self::F16 => {
                values.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect()
            }
            Self::BF16 => {
                values.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()
            }
        }
    }

    /// The numbers in the bytes of a buffer; a last incomplete element is left out.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Self::F16 => bytes
                .chunks_exact(2)
                .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            Self::BF16 => bytes
                .chunks_exact(2)
                .map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How the kernels reach tensors in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alignment {
    /// Four elements at a time, and eight of 16 bits where matrix units wait for them: dims, offsets
    /// and strides are multiples of eight.
    Vec8,
    /// Four elements at a time: dims, offsets and strides are multiples of four.
    Vec4,
    /// Element by element, for any dims, offsets and strides.
    Any,
}

impl Alignment {
    /// What dims, offsets and strides are multiples of.
    pub const fn elements(self) -> u32 {
        match self {
            Self::Vec8 => 8,
            Self::Vec4 => 4,
            Self::Any => 1,
        }
    }

    /// The widest that such dims allow, by eights where elements have 16 bits.
    pub(crate) fn natural(dtype: DType, dims: [u32; 2]) -> Self {
        let multiples = |of: u32| dims.iter().all(|dim| dim.is_multiple_of(of));
        if dtype != DType::F32 && multiples(8) {
            Self::Vec8
        } else if multiples(4) {
            Self::Vec4
        } else {
            Self::Any
        }
    }
}

/// A strided tensor `[batch, heads, len, dim]` inside a buffer of the caller's.
///
/// Offset and strides count elements, not bytes. A stride of 0 repeats one element along its axis
/// (inputs only); the last axis has stride 1. A packed tensor `[batch, len, heads, dim]` is a
/// choice of strides, see [`View::packed`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct View<'a> {
    /// The buffer; inputs need the usage `STORAGE`, outputs too.
    pub buffer: &'a wgpu::Buffer,
    /// The element type.
    pub dtype: DType,
    /// Elements before the first one of the tensor.
    pub offset: u64,
    /// `[batch, heads, len, dim]`.
    pub shape: [u32; 4],
    /// Elements between neighbours along each axis; the last is 1.
    pub strides: [u64; 4],
}

impl<'a> View<'a> {
    /// A dense `[batch, heads, len, dim]` tensor at the start of `buffer`.
    pub fn new(buffer: &'a wgpu::Buffer, dtype: DType, shape: [u32; 4]) -> Self {
        let [_, heads, len, dim] = shape.map(u64::from);
        let strides = [heads * len * dim, len * dim, dim, 1];
        Self { buffer, dtype, offset: 0, shape, strides }
    }

    /// A tensor of logical shape `[batch, heads, len, dim]` that lies in memory as
    /// `[batch, len, heads, dim]`, as projections write it.
    pub fn packed(buffer: &'a wgpu::Buffer, dtype: DType, shape: [u32; 4]) -> Self {
        let [_, heads, len, dim] = shape.map(u64::from);
        let strides = [heads * len * dim, dim, heads * dim, 1];
        Self { buffer, dtype, offset: 0, shape, strides }
    }

    /// Moves the start to `offset` elements into the buffer.
    #[must_use]
    pub const fn with_offset(mut self, offset: u64) -> Self {
        self.offset = offset;
        self
    }

    /// Sets the strides, in elements.
    #[must_use]
    pub const fn with_strides(mut self, strides: [u64; 4]) -> Self {
        self.strides = strides;
        self
    }

    /// Elements from the first to one past the last that the view reaches; 0 when it is empty.
    /// `None` when the number does not fit 64 bits.
    pub fn span(&self) -> Option<u64> {
        if self.shape.contains(&0) {
            return Some(0);
        }
        let mut last = 0u64;
        for (size, stride) in self.shape.into_iter().zip(self.strides) {
            last = last.checked_add(u64::from(size - 1).checked_mul(stride)?)?;
        }
        last.checked_add(1)
    }

    /// Checks that the view has the shape and dtype asked for, stays inside its buffer, and that
    /// the buffer may be bound as storage.
    pub(crate) fn check(
        &self,
        name: &str,
        shape: [u32; 4],
        dtype: Option<DType>,
    ) -> Result<(), Error> {
        if self.shape != shape {
            return Err(Error::tensor(
                name,
                format!("shape {shape:?} ([batch, heads, len, dim])"),
                format!("{:?}", self.shape),
            ));
        }
        if let Some(dtype) = dtype.filter(|&d| d != self.dtype) {
            return Err(Error::tensor(name, format!("dtype {dtype}"), self.dtype.to_string()));
        }
        if self.strides[3] != 1 && self.shape[3] > 1 {
            return Err(Error::tensor(
                name,
                "stride 1 on the last axis",
                format!("strides {:?}", self.strides),
            ));
        }
        if !self.buffer.usage().contains(wgpu::BufferUsages::STORAGE) {
            return Err(Error::tensor(
                name,
                "a buffer with usage STORAGE",
                format!("usages {:?}", self.buffer.usage()),
            ));
        }
        let end = self
            .span()
            .and_then(|span| span.checked_add(self.offset))
            .and_then(|end| end.checked_mul(self.dtype.size()));
        // A binding's size is a multiple of 4 bytes, so the last 16-bit element needs its word.
        match end.map(|end| end.next_multiple_of(4)) {
            Some(end) if end <= self.buffer.size() => Ok(()),
            end => Err(Error::tensor(
                name,
                format!("a view inside its buffer of {} bytes", self.buffer.size()),
                match end {
                    Some(end) => format!(
                        "offset {} and strides {:?}, which reach byte {end}",
                        self.offset, self.strides
                    ),
                    None => format!(
                        "offset {} and strides {:?}, which overflow",
                        self.offset, self.strides
                    ),
                },
            )),
        }
    }

    /// Checks that offset and strides are the multiples that a plan counts on.
    pub(crate) fn check_alignment(&self, name: &str, alignment: Alignment) -> Result<(), Error> {
        let elements = u64::from(alignment.elements());
        let strides = self.shape.iter().zip(self.strides).take(3);
        let mut strides = strides.filter(|(size, _)| **size > 1);
        if strides.all(|(_, stride)| stride.is_multiple_of(elements))
            && self.offset.is_multiple_of(elements)
        {
            return Ok(());
        }
        let other = if alignment == Alignment::Vec8 { "Vec4" } else { "Any" };
        Err(Error::tensor(
            name,
            format!(
                "offset and strides that are multiples of {elements} elements, or a plan with \
                 Alignment::{other}"
            ),
            format!("offset {} and strides {:?}", self.offset, self.strides),
        ))
    }

    /// The part of the view for some batch entries and some heads.
    pub(crate) fn part(&self, batch: Range<u32>, heads: Range<u32>) -> Self {
        let [_, _, len, dim] = self.shape;
        let shape = [batch.end - batch.start, heads.end - heads.start, len, dim];
        // The strides of an empty view may be anything.
        let moved = if shape.contains(&0) {
            0
        } else {
            u64::from(batch.start) * self.strides[0] + u64::from(heads.start) * self.strides[1]
        };
        Self { offset: self.offset + moved, shape, ..*self }
    }

    /// The bytes a binding of the view covers: from its offset, rounded down to `alignment`, to
    /// its end, rounded up to a word.
    pub(crate) fn bytes(&self, alignment: u64) -> Range<u64> {
        let size = self.dtype.size();
        let start = self.offset * size / alignment * alignment;
        let end = (self.offset + self.span().unwrap_or(0)) * size;
        start..end.next_multiple_of(4)
    }

    /// Strides of batch, heads and rows, then the offset from the start of the binding: what a
    /// kernel is told. The stride of an axis with one entry does not matter and is 0. All are 0 for an
    /// empty view, which has an absent tensor's buffer.
    pub(crate) fn reach(&self, alignment: u64) -> [u32; 4] {
        if self.span() == Some(0) {
            return [0; 4];
        }
        let stride = |axis: usize| if self.shape[axis] > 1 { self.strides[axis] as u32 } else { 0 };
        let offset = self.offset - self.bytes(alignment).start / self.dtype.size();
        [stride(0), stride(1), stride(2), offset as u32]
    }

    /// Checks that no two indices reach one element, as an output must.
    pub(crate) fn check_disjoint(&self, name: &str) -> Result<(), Error> {
        let mut axes: Vec<(u64, u64)> = self
            .shape
            .into_iter()
            .zip(self.strides)
            .filter(|&(size, _)| size > 1)
            .map(|(size, stride)| (stride, u64::from(size)))
            .collect();
        axes.sort_unstable();
        let nested = self.shape.contains(&0)
            || axes.windows(2).all(|w| w[0].0.saturating_mul(w[0].1) <= w[1].0)
                && axes.first().is_none_or(|axis| axis.0 > 0);
        if nested {
            Ok(())
        } else {
            Err(Error::tensor(
                name,
                "strides that give every element a place of its own, axis within axis",
                format!("shape {:?} with strides {:?}", self.shape, self.strides),
            ))
        }
    }
}
