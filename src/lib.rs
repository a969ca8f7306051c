//! Portable attention kernels.

pub mod arrays;
pub mod attention;
pub mod error;
pub mod mask;
pub mod score;
pub mod shape;
pub mod tensor;

pub use arrays::{Array, Arrays};
pub use attention::{Activation, Attention, Output, Positions, Stage};
pub use error::{Error, Unsupported};
pub use mask::{Mask, Term};
pub use score::{Broadcast, Score};
pub use shape::{MAX_HEAD_DIM, Shape};
pub use tensor::{DType, View};
pub use wgpu;
