//! Small arrays beside the tensors of a call.

use crate::error::Error;

/// A small side array of 32-bit numbers: cumulative lengths, slopes, roles, ...
///
/// On the host its values are checked; on the device they cannot be, and the kernels clamp what
/// they read.
#[derive(Clone, Copy, Debug)]
pub enum Array<'a> {
    /// Values on the host, as bits; see [`Array::u32`], [`Array::i32`], [`Array::f32`].
    Host(&'a [u32]),
    /// Values on the device, copied at every `encode`; the buffer needs the usage `COPY_SRC`.
    Device {
        /// The caller's buffer.
        buffer: &'a wgpu::Buffer,
        /// Words before the first one of the array.
        offset: u64,
        /// Number of values.
        len: usize,
    },
    /// Room that is left for the caller to write into [`Bound::metadata`](crate::Bound::metadata)
    /// or [`Bound::side`](crate::Bound::side), on the device, before the commands run.
    Reserved {
        /// Number of values.
        len: usize,
    },
}

impl<'a> Array<'a> {
    /// Unsigned numbers on the host.
    pub const fn u32(values: &'a [u32]) -> Self {
        Self::Host(values)
    }

    /// Signed numbers on the host.
    pub fn i32(values: &'a [i32]) -> Self {
        Self::Host(bytemuck::cast_slice(values))
    }

    /// Floating-point numbers on the host.
    pub fn f32(values: &'a [f32]) -> Self {
        Self::Host(bytemuck::cast_slice(values))
    }

    /// `len` numbers in a buffer of the caller's, `offset` words in.
    pub const fn device(buffer: &'a wgpu::Buffer, offset: u64, len: usize) -> Self {
        Self::Device { buffer, offset, len }
    }

    /// Number of values.
    pub const fn len(&self) -> usize {
        match self {
            Self::Host(values) => values.len(),
            Self::Device { len, .. } | Self::Reserved { len } => *len,
        }
    }

    /// Whether there are no values.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values, where the host has them.
    pub const fn host(&self) -> Option<&'a [u32]> {
        match self {
            Self::Host(values) => Some(values),
            _ => None,
        }
    }
}

/// Checks that an array on the device can be copied from its buffer.
pub(crate) fn check_device(name: &str, array: Array<'_>) -> Result<(), Error> {
    let Array::Device { buffer, offset, len } = array else { return Ok(()) };
    if !buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
        let got = format!("usages {:?}", buffer.usage());
        return Err(Error::tensor(name, "a buffer with usage COPY_SRC", got));
    }
    let end = offset.checked_add(len as u64).and_then(|end| end.checked_mul(4));
    if end.is_none_or(|end| end > buffer.size()) {
        return Err(Error::tensor(
            name,
            format!("an array inside its buffer of {} bytes", buffer.size()),
            format!("{len} words from word {offset} on"),
        ));
    }
    Ok(())
}

/// What was expected of numbers of which there are `count`, counted from 0.
pub(crate) fn within(what: &str, count: u64) -> String {
    match count.checked_sub(1) {
        Some(last) => format!("{what} from 0 to {last}"),
        None => format!("no {what}, since there are none"),
    }
}
