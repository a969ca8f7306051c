//! The sizes of one attention call.

use crate::error::Error;

/// The largest head dimension, of queries and keys as of values.
pub const MAX_HEAD_DIM: u32 = 576;

/// The sizes of one attention call: queries `[batch, query_heads, query_len, head_dim]`, keys
/// `[batch, key_heads, key_len, head_dim]`, values `[batch, value_heads, key_len, value_dim]`,
/// outputs `[batch, query_heads, query_len, value_dim]`.
///
/// Query head `h` reads key head `⌊h · key_heads / query_heads⌋` and value head
/// `⌊h · value_heads / query_heads⌋` (grouped-query attention; the two may differ).
///
/// ```
/// use wgpu_attention::Shape;
/// // 9 query heads over 3 key-value heads, one query against 1024 keys.
/// let shape = Shape::new(1, 9, 1, 64).with_key_value_heads(3).with_key_len(1024);
/// assert_eq!(shape.value_dim, 64);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Shape {
    /// Number of independent sequences.
    pub batch: u32,
    /// Heads of the queries and of the output.
    pub query_heads: u32,
    /// Heads of the keys; divides `query_heads`.
    pub key_heads: u32,
    /// Heads of the values; divides `query_heads`.
    pub value_heads: u32,
    /// Queries per sequence; may be 0.
    pub query_len: u32,
    /// Keys and values per sequence; may be 0.
    pub key_len: u32,
    /// Dimension of queries and keys, 1 to [`MAX_HEAD_DIM`].
    pub head_dim: u32,
    /// Dimension of values and outputs, 1 to [`MAX_HEAD_DIM`].
    pub value_dim: u32,
}

impl Shape {
    /// Self-attention with as many key and value heads as query heads.
    pub const fn new(batch: u32, heads: u32, len: u32, head_dim: u32) -> Self {
        Self {
            batch,
            query_heads: heads,
            key_heads: heads,
            value_heads: heads,
            query_len: len,
            key_len: len,
            head_dim,
            value_dim: head_dim,
        }
    }

    /// Sets the heads of keys and of values alike (grouped-query attention).
    #[must_use]
    pub const fn with_key_value_heads(mut self, heads: u32) -> Self {
        self.key_heads = heads;
        self.value_heads = heads;
        self
    }

    /// Sets the heads of the keys alone.
    #[must_use]
    pub const fn with_key_heads(mut self, heads: u32) -> Self {
        self.key_heads = heads;
        self
    }

    /// Sets the heads of the values alone.
    #[must_use]
    pub const fn with_value_heads(mut self, heads: u32) -> Self {
        self.value_heads = heads;
        self
    }

    /// Sets the number of keys and values.
    #[must_use]
    pub const fn with_key_len(mut self, len: u32) -> Self {
        self.key_len = len;
        self
    }

    /// Sets the dimension of values and outputs.
    #[must_use]
    pub const fn with_value_dim(mut self, dim: u32) -> Self {
        self.value_dim = dim;
        self
    }

    /// `[batch, query_heads, query_len, head_dim]`.
    pub const fn query(&self) -> [u32; 4] {
        [self.batch, self.query_heads, self.query_len, self.head_dim]
    }

    /// `[batch, key_heads, key_len, head_dim]`.
    pub const fn key(&self) -> [u32; 4] {
        [self.batch, self.key_heads, self.key_len, self.head_dim]
    }

    /// `[batch, value_heads, key_len, value_dim]`.
    pub const fn value(&self) -> [u32; 4] {
        [self.batch, self.value_heads, self.key_len, self.value_dim]
    }

    /// `[batch, query_heads, query_len, value_dim]`.
    pub const fn out(&self) -> [u32; 4] {
        [self.batch, self.query_heads, self.query_len, self.value_dim]
    }

    /// `[batch, query_heads, query_len, 1]`: one number a row.
    pub const fn lse(&self) -> [u32; 4] {
        [self.batch, self.query_heads, self.query_len, 1]
    }

    /// `[batch, query_heads, query_len, key_len]`: one number a pair.
    pub const fn scores(&self) -> [u32; 4] {
        [self.batch, self.query_heads, self.query_len, self.key_len]
    }

    /// The key head that a query head reads.
    pub const fn key_head(&self, query_head: u32) -> u32 {
        (query_head as u64 * self.key_heads as u64 / self.query_heads as u64) as u32
    }

    /// The value head that a query head reads.
    pub const fn value_head(&self, query_head: u32) -> u32 {
        (query_head as u64 * self.value_heads as u64 / self.query_heads as u64) as u32
    }

    /// Checks what the documentation of the fields says.
    pub fn validate(&self) -> Result<(), Error> {
        for (field, heads) in [("key_heads", self.key_heads), ("value_heads", self.value_heads)] {
            if heads == 0 || self.query_heads == 0 || !self.query_heads.is_multiple_of(heads) {
                return Err(Error::config(
                    format!("shape.{field}"),
                    format!(
                        "at least 1 and a divisor of the {} query heads (at least 1 too)",
                        self.query_heads
                    ),
                    heads.to_string(),
                ));
            }
        }
        for (field, dim) in [("head_dim", self.head_dim), ("value_dim", self.value_dim)] {
            if dim == 0 || dim > MAX_HEAD_DIM {
                return Err(Error::config(
                    format!("shape.{field}"),
                    format!("1 to {MAX_HEAD_DIM}"),
                    dim.to_string(),
                ));
            }
        }
        // Positions plus offsets plus windows must fit an i32 in the kernels.
        const MAX_LEN: u32 = 1 << 28;
        for (field, len) in [("query_len", self.query_len), ("key_len", self.key_len)] {
            if len > MAX_LEN {
                return Err(Error::config(
                    format!("shape.{field}"),
                    format!("at most {MAX_LEN}"),
                    len.to_string(),
                ));
            }
        }
        Ok(())
    }
}
