//! Portable attention kernels.

pub mod arrays;
pub mod attention;
mod caps;
mod context;
pub mod error;
pub mod mask;
pub mod params;
mod plan;
mod readback;
mod real;
pub mod score;
mod shader;
pub mod shape;
pub mod tensor;
mod workspace;

pub use arrays::{Array, Arrays};
pub use attention::{Activation, Attention, Output, Positions, Stage, Tiles, Variant};
pub use caps::Caps;
pub use context::Context;
pub use error::{Error, Unsupported};
pub use mask::{Mask, MaskRows, Term, pack_mask};
pub use plan::{Bound, Inputs, Outputs, PackedLayout, Plan};
pub use score::{Broadcast, Score};
pub use shader::{Binding, Source, Target};
pub use shape::{MAX_HEAD_DIM, Shape};
pub use tensor::{Alignment, DType, View};
pub use wgpu;
