//! A device and what was compiled on it: contexts, the files that outlive a process, trials of kernels,
//! and waiting.

#[cfg(not(target_family = "wasm"))]
pub(crate) mod cache;
mod context;
mod rates;
pub(crate) mod readback;
#[cfg(not(target_family = "wasm"))]
pub(crate) mod verification;

pub use context::Context;
#[cfg(not(target_family = "wasm"))]
pub(crate) use context::lock;
pub(crate) use context::ready;
