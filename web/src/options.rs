//! Reading the plain objects that JavaScript hands in.

use std::cell::Cell;

use js_sys::{Array, Reflect, Symbol, Uint8Array};
use wasm_bindgen::prelude::*;
use wgpu_attention::Error;

use crate::error::{refuse, shown};

/// The options of one object, taken at the call: what the caller does with the object later changes
/// nothing. Unknown names are errors, and with [`finish`](Self::finish) unused ones too: a misspelt
/// or ignored option would be a wrong result.
pub struct Options {
    given: Vec<Given>,
}

struct Given {
    name: &'static str,
    value: JsValue,
    used: Cell<bool>,
}

impl Options {
    /// Takes an object whose names are all among `known`.
    pub fn new(
        object: &JsValue,
        what: &str,
        known: &[&'static [&'static str]],
    ) -> Result<Self, Error> {
        if !object.is_object() || elements(object).is_some() {
            return Err(refuse(what, "an object", shown(object)));
        }
        // Proxies and getters may throw.
        let unreadable = |name: &str, error: JsValue| {
            let message = error.dyn_ref::<js_sys::Error>().map(|error| error.message().into());
            let message = message.unwrap_or_else(|| shown(&error));
            refuse(name, "a property that can be read", format!("an exception: {message}"))
        };
        let names = known.concat();
        let keys = Reflect::own_keys(object).map_err(|error| unreadable(what, error))?;
        for key in keys.iter().filter_map(|key| key.as_string()) {
            if !names.contains(&key.as_str()) {
                let expected = format!("options among {}", names.join(", "));
                return Err(refuse(what, expected, format!("`{key}`")));
            }
        }
        let mut given = Vec::new();
        for name in names {
            let value = Reflect::get(object, &name.into()).map_err(|e| unreadable(name, e))?;
            if !value.is_undefined() && !value.is_null() {
                given.push(Given { name, value, used: Cell::new(false) });
            }
        }
        Ok(Self { given })
    }

    /// What stands under a name, which counts as used; `None` for `undefined` and `null`.
    pub fn get(&self, name: &str) -> Option<JsValue> {
        let given = self.given.iter().find(|given| given.name == name)?;
        given.used.set(true);
        Some(given.value.clone())
    }

    /// Fails at the first option that was given and never read. `needs` says by name what an option
    /// needs to have an effect.
    pub fn finish(&self, needs: &[(&str, &str)]) -> Result<(), Error> {
        let Some(unused) = self.given.iter().find(|given| !given.used.get()) else {
            return Ok(());
        };
        let need = needs.iter().find(|(name, _)| *name == unused.name);
        let need = need.map_or("what the other options ask for", |(_, need)| need);
        let expected = format!("nothing, for it has an effect only with {need}");
        Err(refuse(unused.name, expected, shown(&unused.value)))
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

    /// A list: an array or a typed array.
    fn list<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&JsValue) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        let Some(list) = self.read(name, &format!("an array of {expected}"), elements)? else {
            return Ok(None);
        };
        let element = |(index, element): (usize, JsValue)| {
            let refused = || format!("{} at index {index}", shown(&element));
            read(&element).ok_or_else(|| refuse(name, expected, refused()))
        };
        list.iter().enumerate().map(element).collect::<Result<_, _>>().map(Some)
    }

    /// A number.
    pub fn number(&self, name: &str) -> Result<Option<f64>, Error> {
        self.read(name, "a number", JsValue::as_f64)
    }

    /// A whole number.
    pub fn count(&self, name: &str) -> Result<Option<u32>, Error> {
        self.read(name, WHOLE, whole)
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
        self.list(name, "whole numbers from 0 to 4294967295", whole)
    }

    /// Whole numbers of either sign.
    pub fn integers(&self, name: &str) -> Result<Option<Vec<i32>>, Error> {
        self.list(name, "whole numbers from -2147483647 to 2147483647", |x| {
            let number = x.as_f64()?;
            let fits = number.fract() == 0.0 && number.abs() <= f64::from(i32::MAX);
            fits.then_some(number as i32)
        })
    }

    /// Numbers, by way of f32.
    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>, Error> {
        if let Some(floats) = self.get(name).as_ref().and_then(floats) {
            return Ok(Some(floats));
        }
        self.list(name, "numbers", |x| x.as_f64().map(|x| x as f32))
    }

    /// Strings.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<String>>, Error> {
        self.list(name, "strings", JsValue::as_string)
    }
}

const WHOLE: &str = "a whole number from 0 to 4294967295";

/// A whole number that fits 32 bits.
fn whole(value: &JsValue) -> Option<u32> {
    let number = value.as_f64()?;
    (number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number))
        .then_some(number as u32)
}

/// An argument that is a whole number; `default` where it is left out.
pub fn argument(value: &JsValue, name: &str, default: Option<u32>) -> Result<u32, Error> {
    let left_out = value.is_undefined() || value.is_null();
    let number = if left_out { default } else { whole(value) };
    number.ok_or_else(|| refuse(name, WHOLE, shown(value)))
}

/// The elements of an array or a typed array; `None` for anything else, a detached array among it.
pub fn elements(value: &JsValue) -> Option<Array> {
    let is_list =
        Array::is_array(value) || (tag(value).ends_with("Array") && view(value).is_some());
    if !is_list {
        return None;
    }
    let class = Reflect::get(&js_sys::global(), &"Array".into()).ok()?;
    call(&class, "from", std::slice::from_ref(value)).ok()?.dyn_into().ok()
}

/// The numbers of a `Float32Array`.
pub fn floats(value: &JsValue) -> Option<Vec<f32>> {
    if tag(value) != "Float32Array" {
        return None;
    }
    view(value).map(|bytes| wgpu_attention::DType::F32.decode(&bytes.to_vec()))
}

/// The name of a built-in class: `Float32Array`, `Object`.
pub fn tag(value: &JsValue) -> String {
    let tag = Reflect::get(value, &Symbol::to_string_tag().into()).ok();
    let fallback = if Array::is_array(value) { "Array" } else { "an object" };
    tag.and_then(|tag| tag.as_string()).unwrap_or_else(|| fallback.into())
}

/// The bytes of a typed array, without a copy; `None` for a detached one.
pub fn view(array: &JsValue) -> Option<Uint8Array> {
    let number =
        |name: &str| Some(JsValue::from(Reflect::get(array, &name.into()).ok()?.as_f64()?));
    let (offset, length) = (number("byteOffset")?, number("byteLength")?);
    let buffer = Reflect::get(array, &"buffer".into()).ok()?;
    // By the constructor as a value: a detached buffer makes it throw.
    let class = Reflect::get(&js_sys::global(), &"Uint8Array".into()).ok()?;
    let class: js_sys::Function = class.dyn_into().ok()?;
    Reflect::construct(&class, &Array::of3(&buffer, &offset, &length)).ok()?.dyn_into().ok()
}

/// Calls a method that is not bound.
pub fn call(object: &JsValue, method: &str, arguments: &[JsValue]) -> Result<JsValue, JsValue> {
    let function: js_sys::Function = Reflect::get(object, &method.into())?.dyn_into()?;
    function.apply(object, &arguments.iter().collect::<Array>())
}
