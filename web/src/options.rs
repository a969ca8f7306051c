//! Reading the plain objects that JavaScript hands in.

use js_sys::{Array, Object, Reflect, Symbol, Uint8Array};
use wasm_bindgen::prelude::*;
use wgpu_attention::Error;

use crate::error::{refuse, shown};

/// An object of options, whose unknown names are errors: a misspelt one would be a wrong result.
pub struct Options {
    object: JsValue,
}

impl Options {
    /// Takes an object whose names are all among `known`.
    pub fn new(object: &JsValue, what: &str, known: &[&[&str]]) -> Result<Self, Error> {
        if !object.is_object() {
            return Err(refuse(what, "an object", shown(object)));
        }
        let keys = Object::keys(object.unchecked_ref::<Object>());
        for key in keys.iter().filter_map(|key| key.as_string()) {
            if !known.iter().any(|names| names.contains(&key.as_str())) {
                let names = known.concat().join(", ");
                return Err(refuse(what, format!("options among {names}"), format!("`{key}`")));
            }
        }
        Ok(Self { object: object.clone() })
    }

    /// What stands under a name; `None` for `undefined` and `null`.
    pub fn get(&self, name: &str) -> Option<JsValue> {
        let value = Reflect::get(&self.object, &name.into()).ok()?;
        (!value.is_undefined() && !value.is_null()).then_some(value)
    }

    fn read<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&JsValue) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let Some(value) = self.get(name) else { return Ok(None) };
        read(&value).map(Some).ok_or_else(|| refuse(name, expected, shown(&value)))
    }

    /// A number.
    pub fn number(&self, name: &str) -> Result<Option<f64>, Error> {
        self.read(name, "a number", JsValue::as_f64)
    }

    /// A whole number.
    pub fn count(&self, name: &str) -> Result<Option<u32>, Error> {
        self.read(name, "a whole number of at least 0", whole)
    }

    /// A truth value, false unless given.
    pub fn flag(&self, name: &str) -> Result<bool, Error> {
        Ok(self.read(name, "true or false", JsValue::as_bool)?.unwrap_or(false))
    }

    /// A text.
    pub fn text(&self, name: &str) -> Result<Option<String>, Error> {
        self.read(name, "a string", JsValue::as_string)
    }

    /// One of some words.
    pub fn word<T: Copy>(&self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, Error> {
        let names: Vec<_> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        self.read(name, &names.join(", "), |value| {
            let text = value.as_string()?;
            words.iter().find(|(word, _)| *word == text).map(|&(_, meaning)| meaning)
        })
    }

    /// Whole numbers: an array or a typed array.
    pub fn counts(&self, name: &str) -> Result<Option<Vec<u32>>, Error> {
        self.read(name, "an array of whole numbers of at least 0", |value| list(value, whole))
    }

    /// Whole numbers of either sign.
    pub fn integers(&self, name: &str) -> Result<Option<Vec<i32>>, Error> {
        self.read(name, "an array of whole numbers", |value| {
            list(value, |x| {
                let number = x.as_f64()?;
                let fits = number.fract() == 0.0 && number.abs() <= f64::from(i32::MAX);
                fits.then_some(number as i32)
            })
        })
    }

    /// Numbers, by way of f32.
    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>, Error> {
        self.read(name, "an array of numbers", |value| {
            if tag(value) == "Float32Array" {
                return Some(value.unchecked_ref::<js_sys::Float32Array>().to_vec());
            }
            list(value, |x| x.as_f64().map(|x| x as f32))
        })
    }
}

/// A whole number that fits 32 bits.
fn whole(value: &JsValue) -> Option<u32> {
    let number = value.as_f64()?;
    (number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number))
        .then_some(number as u32)
}

fn list<T>(value: &JsValue, element: impl Fn(&JsValue) -> Option<T>) -> Option<Vec<T>> {
    let is_list =
        Array::is_array(value) || (tag(value).ends_with("Array") && view(value).is_some());
    if !is_list {
        return None;
    }
    Array::from(value).iter().map(|x| element(&x)).collect()
}

/// The name of a built-in class: `Float32Array`, `Object`.
pub fn tag(value: &JsValue) -> String {
    let tag = Reflect::get(value, &Symbol::to_string_tag().into()).ok();
    let fallback = if Array::is_array(value) { "Array" } else { "an object" };
    tag.and_then(|tag| tag.as_string()).unwrap_or_else(|| fallback.into())
}

/// The bytes of a typed array, without a copy.
pub fn view(array: &JsValue) -> Option<Uint8Array> {
    let number = |name: &str| Reflect::get(array, &name.into()).ok()?.as_f64();
    let (offset, length) = (number("byteOffset")?, number("byteLength")?);
    let buffer = Reflect::get(array, &"buffer".into()).ok()?;
    Some(Uint8Array::new_with_byte_offset_and_length(&buffer, offset as u32, length as u32))
}

/// Calls a method that is not bound.
pub fn call(object: &JsValue, method: &str, arguments: &[JsValue]) -> Result<JsValue, JsValue> {
    let function: js_sys::Function = Reflect::get(object, &method.into())?.dyn_into()?;
    function.apply(object, &arguments.iter().collect::<Array>())
}
