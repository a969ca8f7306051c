//! Tensors in buffers of the device, and typed arrays on their way in and out.

use std::cell::Cell;
use std::rc::Rc;

use js_sys::{Object, Promise, Reflect, Uint8Array};
use wasm_bindgen::prelude::*;
use wgpu_attention::{DType, Error, View, wgpu};

use crate::context::Context;
use crate::error::{refuse, shown, thrown};
use crate::options::{Options, call, floats, tag, view};
use crate::promise::promise;

/// Numbers of one dtype in a buffer of the device.
#[wasm_bindgen]
#[derive(Clone)]
pub struct Buffer {
    context: wgpu_attention::Context,
    pub(crate) raw: wgpu::Buffer,
    pub(crate) kind: DType,
    pub(crate) elements: usize,
    /// Whether LSEs or masked scores were written last, in which −1e30 stands for −∞.
    pub(crate) logits: Rc<Cell<bool>>,
}

/// The tensors of a call: the caller's buffers, or those that were made for it, which are freed with
/// this; and room that a call needs between its kernels.
#[derive(Default)]
pub struct Taken {
    made: Vec<Buffer>,
    /// Whether the caller handed over buffers and wants some back.
    pub on_device: bool,
}

impl Taken {
    /// The tensor that the options name.
    pub fn take(
        &mut self,
        context: &Context,
        options: &Options,
        name: &str,
        kind: DType,
    ) -> Result<Buffer, JsValue> {
        let value = options.get(name).unwrap_or_default();
        let (buffer, existing) = Buffer::take(context, &value, kind, name)?;
        self.on_device |= existing;
        if !existing {
            self.made.push(buffer.clone());
        }
        Ok(buffer)
    }

    /// Room for `elements` numbers.
    pub fn make(&mut self, context: &Context, kind: DType, elements: usize) -> Buffer {
        let buffer = Buffer::empty(context.library(), kind, elements);
        self.made.push(buffer.clone());
        buffer
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.made.iter().for_each(Buffer::destroy);
    }
}

#[wasm_bindgen]
impl Buffer {
    /// The buffer itself.
    #[wasm_bindgen(getter, js_name = gpuBuffer, unchecked_return_type = "GPUBuffer")]
    pub fn gpu_buffer(&self) -> JsValue {
        self.raw.as_webgpu().map_or(JsValue::NULL, |buffer| JsValue::from(buffer.clone()))
    }

    /// `"f32"`, `"f16"` or `"bf16"`.
    #[wasm_bindgen(getter, unchecked_return_type = "DType")]
    pub fn dtype(&self) -> String {
        self.kind.name().into()
    }

    /// Number of elements.
    #[wasm_bindgen(getter)]
    pub fn length(&self) -> usize {
        self.elements
    }

    /// Replaces the numbers.
    pub fn write(
        &self,
        #[wasm_bindgen(unchecked_param_type = "TensorData")] data: JsValue,
    ) -> Result<(), JsValue> {
        let bytes = encoded(&data, self.kind, "data").map_err(thrown)?;
        let expected = self.elements * self.kind.size() as usize;
        if bytes.length() as usize != expected {
            let got = format!("{} bytes", bytes.length());
            return Err(thrown(refuse("data", format!("{expected} bytes"), got)));
        }
        self.logits.set(false);
        upload(&self.context, &self.raw, &bytes)
    }

    /// Copies the numbers to the host, as they are after what was submitted before this call.
    #[wasm_bindgen(unchecked_return_type = "Promise<TypedArray>")]
    pub fn read(&self) -> Promise {
        let this = self.clone();
        promise(|| Ok(async move { Ok(typed(&this.numbers().await.map_err(thrown)?, this.kind)) }))
    }

    /// Frees the device's memory; the buffer is of no use afterwards.
    pub fn destroy(&self) {
        self.raw.destroy();
    }

    /// A second handle: a value that is handed over is gone on the other side.
    #[wasm_bindgen(js_name = __handle, skip_typescript)]
    pub fn handle(&self) -> Self {
        self.clone()
    }
}

impl Buffer {
    /// The numbers on the host; −∞ where LSEs and scores are −∞.
    pub async fn numbers(&self) -> Result<Vec<f32>, Error> {
        let view = View::new(&self.raw, self.kind, [1, 1, 1, self.elements as u32]);
        if self.logits.get() {
            self.context.read_logits(view).await
        } else {
            self.context.read(view).await
        }
    }

    /// Room for `elements` numbers.
    pub fn empty(context: &wgpu_attention::Context, kind: DType, elements: usize) -> Self {
        let size = (elements as u64 * kind.size()).next_multiple_of(4).max(4);
        let raw = context.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("tensor"),
            size,
            usage: wgpu::BufferUsages::STORAGE
                | wgpu::BufferUsages::COPY_SRC
                | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        Self { context: context.clone(), raw, kind, elements, logits: Rc::default() }
    }

    /// The buffer that a value is or, for a typed array, that its numbers are copied to. The
    /// second one says which.
    pub fn take(
        context: &Context,
        value: &JsValue,
        kind: DType,
        name: &str,
    ) -> Result<(Self, bool), JsValue> {
        if let Some(buffer) = Self::existing(value) {
            return Ok((buffer.of(context, name).map_err(thrown)?, true));
        }
        let bytes = encoded(value, kind, name).map_err(thrown)?;
        let elements = bytes.length() as usize / kind.size() as usize;
        let buffer = Self::empty(context.library(), kind, elements);
        upload(context.library(), &buffer.raw, &bytes)?;
        Ok((buffer, false))
    }

    /// The buffer that a value is.
    pub fn existing(value: &JsValue) -> Option<Self> {
        let ours = Reflect::has(value, &"__handle".into()).unwrap_or(false);
        let handle = ours.then(|| call(value, "__handle", &[]).ok())??;
        wasm_bindgen::convert::TryFromJsValue::try_from_js_value(handle).ok()
    }

    /// The buffer, if it is on the context's device.
    pub fn of(self, context: &Context, name: &str) -> Result<Self, Error> {
        let own = self.context.device().as_webgpu();
        if own.is_some_and(|own| Object::is(own, &context.device())) {
            return Ok(self);
        }
        Err(Error::Tensor {
            tensor: name.into(),
            expected: "a Buffer of this context's device".into(),
            got: "one of another device".into(),
        })
    }

    /// The numbers as a tensor `[batch, heads, len, dim]`, which they must fill exactly.
    pub fn tensor(&self, name: &str, shape: [u32; 4], packed: bool) -> Result<View<'_>, Error> {
        let elements: u64 = shape.iter().map(|&n| u64::from(n)).product();
        if elements != self.elements as u64 {
            return Err(Error::Tensor {
                tensor: name.into(),
                expected: format!("{elements} elements, {shape:?}"),
                got: self.elements.to_string(),
            });
        }
        let layout = if packed { View::packed } else { View::new };
        Ok(layout(&self.raw, self.kind, shape))
    }
}

/// The dtype that a value has by itself, that of a buffer, f32 for numbers, f16 for half ones; and
/// its number of elements.
pub fn size_of(value: &JsValue) -> Option<(DType, usize)> {
    if let Some(buffer) = Buffer::existing(value) {
        return Some((buffer.kind, buffer.elements));
    }
    let kind = match tag(value).as_str() {
        "Float32Array" => DType::F32,
        "Float16Array" | "Uint16Array" => DType::F16,
        _ => return None,
    };
    Some((kind, view(value)?.length() as usize / kind.size() as usize))
}

/// The numbers of a typed array as elements of `kind`, rounded to it.
pub fn host(value: &JsValue, kind: DType, name: &str) -> Result<Vec<f32>, Error> {
    Ok(kind.decode(&encoded(value, kind, name)?.to_vec()))
}

/// The bytes of a typed array's numbers as elements of `kind`. 16-bit arrays are taken as they are;
/// others are rounded.
pub fn encoded(value: &JsValue, kind: DType, name: &str) -> Result<Uint8Array, Error> {
    let tag = tag(value);
    let bytes = match (tag.as_str(), kind) {
        ("Float32Array", DType::F32)
        | ("Float16Array", DType::F16)
        | ("Uint16Array", DType::F16 | DType::BF16) => view(value),
        ("Float32Array", _) => {
            floats(value).map(|numbers| Uint8Array::from(kind.encode(&numbers).as_slice()))
        }
        ("Float16Array", _) => {
            let numbers = view(value).map(|bytes| DType::F16.decode(&bytes.to_vec()));
            numbers.map(|numbers| Uint8Array::from(kind.encode(&numbers).as_slice()))
        }
        _ => None,
    };
    let arrays = match kind {
        DType::F32 => "Float32Array or Float16Array",
        DType::F16 => "Float16Array, Uint16Array (bits) or Float32Array (rounded)",
        DType::BF16 => "Uint16Array (bits), or a Float32Array or Float16Array (rounded)",
    };
    bytes.ok_or_else(|| Error::Tensor {
        tensor: name.into(),
        expected: format!("a Buffer of this context, or for {kind} a {arrays}"),
        got: shown(value),
    })
}

/// Hands the bytes to the queue from JavaScript's own memory.
fn upload(
    context: &wgpu_attention::Context,
    buffer: &wgpu::Buffer,
    bytes: &Uint8Array,
) -> Result<(), JsValue> {
    if bytes.length() == 0 {
        return Ok(());
    }
    // Writes go by whole words.
    let words = bytes.length().next_multiple_of(4);
    let bytes = if words == bytes.length() {
        bytes.clone()
    } else {
        let padded = Uint8Array::new_with_length(words);
        padded.set(bytes, 0);
        padded
    };
    let (Some(queue), Some(buffer)) = (context.queue().as_webgpu(), buffer.as_webgpu()) else {
        return Err(JsValue::from_str("the device is not WebGPU's"));
    };
    call(queue.as_ref(), "writeBuffer", &[buffer.clone().into(), 0.into(), bytes.into()]).map(drop)
}

/// Numbers as the typed array of their dtype: `Float32Array`; `Float16Array` where the browser has
/// it, `Uint16Array` with the bits otherwise and for bf16.
pub fn typed(numbers: &[f32], kind: DType) -> JsValue {
    if kind == DType::F32 {
        return js_sys::Float32Array::from(numbers).into();
    }
    let bits: Vec<u16> =
        kind.encode(numbers).chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let bits = js_sys::Uint16Array::from(bits.as_slice());
    let halves = Reflect::get(&js_sys::global(), &"Float16Array".into()).ok();
    match halves.and_then(|class| class.dyn_into::<js_sys::Function>().ok()) {
        Some(class) if kind == DType::F16 => {
            let arguments = js_sys::Array::of1(&bits.buffer());
            Reflect::construct(&class, &arguments).unwrap_or_else(|_| bits.into())
        }
        _ => bits.into(),
    }
}
