//! The wasm half of the npm package `wgpu-attention`; `types.d.ts` is its documentation.
//!
//! JavaScript hands plain objects in and gets typed arrays, buffers of the device and errors out.
//! All that is decided here is how those map onto the library's own types.
#![cfg(target_family = "wasm")]

mod attention;
mod buffer;
mod config;
mod context;
mod error;
mod linear;
mod options;
mod plan;
mod promise;
mod sparse;

use wasm_bindgen::prelude::*;

#[wasm_bindgen(typescript_custom_section)]
const TYPES: &str = include_str!("types.d.ts");

/// Makes a panic, which is a fault of ours, readable in the console.
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(Box::new(|info| {
        wasm_bindgen::throw_str(&format!("a fault in wgpu-attention: {info}"));
    }));
}
