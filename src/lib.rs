//! Portable attention kernels: WGSL compute shaders behind a Rust dispatch layer, on Vulkan, Metal,
//! DX12 and WebGPU through wgpu.
//!
//! ```
//! use wgpu_attention::wgpu::util::DeviceExt as _;
//! use wgpu_attention::{Attention, Context, DType, Error, Inputs, Mask, Outputs, Shape, View, wgpu};
//!
//! # fn main() -> Result<(), Error> {
//! # pollster::block_on(async {
//! # let context = match Context::request().await {
//! #     Err(Error::NoAdapter(_)) => return Ok(()), // nothing to show it on
//! #     context => context?,
//! # };
//! # /*
//! let context = Context::new(&adapter, &device, &queue); // or Context::request().await?
//! # */
//! // 4 query heads share 2 key-value heads; causal; f16.
//! let shape = Shape::new(1, 4, 10, 16).with_key_value_heads(2);
//! let plan = Attention::new(shape, DType::F16).with_mask(Mask::causal()).plan(&context).await?;
//!
//! let buffer = |shape: [u32; 4]| {
//!     let numbers: Vec<f32> = (0..shape.iter().product()).map(|i: u32| (i % 7) as f32).collect();
//!     context.device().create_buffer_init(&wgpu::util::BufferInitDescriptor {
//!         label: None,
//!         contents: &DType::F16.encode(&numbers),
//!         usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
//!     })
//! };
//! let (query, key, value) = (buffer(shape.query()), buffer(shape.key()), buffer(shape.value()));
//! let out = buffer(shape.out());
//! let inputs = Inputs::new(
//!     View::new(&query, DType::F16, shape.query()),
//!     View::new(&key, DType::F16, shape.key()),
//!     View::new(&value, DType::F16, shape.value()),
//! );
//! let out = View::new(&out, DType::F16, shape.out());
//! let bound = plan.bind(&inputs, &Outputs::new(out))?;
//!
//! let mut encoder = context.device().create_command_encoder(&Default::default());
//! bound.encode(&mut encoder); // as often as you like
//! context.queue().submit([encoder.finish()]);
//! let numbers: Vec<f32> = context.read(out).await?;
//! // The first query sees the first key alone: its output is the first value.
//! assert_eq!(numbers[..4], [0.0, 1.0, 2.0, 3.0]);
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! There is one attention: tiles of queries walk tiles of keys. What the field calls by different
//! names is a choice on one of its axes: the [`Mask`] (which pairs count), the [`Score`] (what a
//! pair scores), the [`Activation`] (how scores become weights) and the [`Output`]. A
//! configuration is [planned](Attention::plan) once, [bound](Plan::bind) to buffers, and
//! [encoded](Bound::encode) any number of times. [`attention::reference`] is the f64 judge that
//! every kernel is tested against.
//!
//! Beside it stands [`LinearAttention`], which carries a state instead of visiting keys: Lightning
//! attention and its gated and delta-rule relatives, planned, bound and encoded in the same way,
//! with [`linear::reference`] as judge.
//!
//! In front of attention stand [`Rope`], which turns queries and keys by their positions, and
//! [`Scatter`], which writes new rows into a cache; behind it [`Merge`], which joins partial results.
//! [`onnx`] offers all of it under the names and conventions of ONNX operators.
//!
//! The `guide` has the maths, the shape of the kernels, the quirks of drivers, and what malicious input
//! can and cannot do.

pub mod attention;
mod caps;
mod device;
pub mod error;
mod launch;
pub mod linear;
pub mod merge;
pub mod onnx;
pub mod params;
mod reference;
pub mod rope;
pub mod scatter;
mod shader;
pub mod shape;
pub mod tensor;

pub use attention::arrays::Arrays;
pub use attention::keys::{KeyList, KeyRow, KeyRows, Keys, ListHeads, Lists, Pattern};
pub use attention::mask::{Mask, MaskRows, Term, pack_mask};
pub use attention::score::{Broadcast, Score};
pub use attention::{
    Activation, Attention, Inputs, Output, Outputs, Plan, Positions, Stage, Tiles, Variant,
};
pub use attention::{arrays, keys, mask, score};
pub use caps::Caps;
pub use device::Context;
pub use error::{Error, Unsupported};
pub use launch::{Array, Bound, PackedLayout, Piece};
pub use linear::{
    Carry, FeatureMap, LinearAttention, LinearInputs, LinearOutputs, LinearPlan, LinearVariant,
    Rule,
};
pub use merge::{Merge, MergeInputs, MergeOutputs, MergePlan, MergeRule};
pub use rope::{Rope, RopeInputs, RopePairs, RopePlan};
pub use scatter::{Scatter, ScatterInputs, ScatterPlan};
pub use shader::{Binding, Source, Target};
pub use shape::{MAX_HEAD_DIM, Shape};
pub use tensor::{Alignment, DType, View};
pub use wgpu;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Chapters about the library as a whole. They are files of the repository and exist in the
/// documentation only.
#[cfg(all(doc, not(doctest)))]
pub mod guide {
    #[doc = include_str!("attention/README.md")]
    pub mod attention_maths {}

    #[doc = include_str!("linear/README.md")]
    pub mod linear_maths {}

    #[doc = include_str!("merge/README.md")]
    pub mod merge_maths {}

    #[doc = include_str!("../docs/kernels/attention.md")]
    pub mod attention_kernels {}

    #[doc = include_str!("../docs/kernels/linear.md")]
    pub mod linear_kernels {}

    #[doc = include_str!("../docs/platform.md")]
    pub mod platform_notes {}

    #[doc = include_str!("../SECURITY.md")]
    pub mod security {}
}
