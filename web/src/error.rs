//! The library's errors as JavaScript's.

use js_sys::Reflect;
use wasm_bindgen::prelude::*;
use wgpu_attention::Error;

use crate::options::tag;

/// An `Error` with the library's sentence, its kind as `name`, and for mask expressions the column.
pub fn thrown(error: Error) -> JsValue {
    let object = js_sys::Error::new(&error.to_string());
    object.set_name(match &error {
        Error::Tensor { .. } | Error::SharedBuffer { .. } => "TensorError",
        Error::Config { .. } => "ConfigError",
        Error::MaskSyntax { .. } => "MaskSyntaxError",
        Error::Limit { .. } => "LimitError",
        Error::Unsupported(_) => "UnsupportedError",
        Error::NoAdapter(_) | Error::NoDevice(_) => "NoDeviceError",
        Error::Shader { .. } => "ShaderError",
        Error::OutOfMemory(_) => "OutOfMemoryError",
        Error::DeviceLost(_) => "DeviceLostError",
        _ => "ValidationError",
    });
    if let Error::MaskSyntax { column, .. } = error {
        // A new object takes any property.
        let _ = Reflect::set(&object, &"column".into(), &(column as f64).into());
    }
    object.into()
}

/// A configuration that is not what was asked for.
pub fn refuse(field: &str, expected: impl Into<String>, got: impl Into<String>) -> Error {
    Error::Config { field: field.into(), expected: expected.into(), got: got.into() }
}

/// A value in a few words, for messages.
pub fn shown(value: &JsValue) -> String {
    match (value.as_string(), value.as_f64(), value.as_bool()) {
        (Some(text), ..) => format!("`{text}`"),
        (_, Some(number), _) => number.to_string(),
        (_, _, Some(flag)) => flag.to_string(),
        _ if value.is_undefined() => "nothing".into(),
        _ if value.is_null() => "null".into(),
        _ if !value.is_object() => {
            format!("a {}", value.js_typeof().as_string().unwrap_or_default())
        }
        _ if is_detached(value) => format!("a detached {}", tag(value)),
        _ => tag(value),
    }
}

/// Whether a typed array has lost its numbers, which `postMessage` gave to somebody else.
fn is_detached(value: &JsValue) -> bool {
    let buffer = Reflect::get(value, &"buffer".into());
    let detached = buffer.and_then(|buffer| Reflect::get(&buffer, &"detached".into()));
    detached.is_ok_and(|detached| detached.is_truthy())
}
