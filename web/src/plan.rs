//! What plans of both families share: bindings, outputs, verdicts.

use js_sys::{Object, Promise, Reflect};
use wasm_bindgen::prelude::*;
use wgpu_attention::attention::tolerance::Comparison;
use wgpu_attention::{DType, Error, View};

use crate::buffer::{Buffer, Taken, typed};
use crate::context::Context;
use crate::error::{refuse, shown, thrown};
use crate::options::{Options, argument};
use crate::promise::promise;

/// A plan bound to buffers.
#[wasm_bindgen]
pub struct Bound {
    context: Context,
    bound: wgpu_attention::Bound,
    results: Results,
    /// Held as long as the buffers are bound.
    _taken: Taken,
}

#[wasm_bindgen]
impl Bound {
    /// Computes, as often as asked, and resolves when the device is done.
    #[wasm_bindgen(unchecked_return_type = "Promise<void>")]
    pub fn run(
        &self,
        #[wasm_bindgen(unchecked_optional_param_type = "number")] times: JsValue,
    ) -> Promise {
        promise(|| {
            self.context.alive()?;
            let times = argument(&times, "times", Some(1)).map_err(thrown)?;
            let (context, bound) = (self.context.clone(), self.bound.clone());
            Ok(async move {
                let library = context.library();
                if let Some(more) = times.checked_sub(1) {
                    let mut encoder = library.device().create_command_encoder(&Default::default());
                    (0..more).for_each(|_| bound.encode(&mut encoder));
                    library.queue().submit([encoder.finish()]);
                    library.run(&bound).await.map_err(thrown)?;
                }
                context.alive()?;
                Ok(JsValue::UNDEFINED)
            })
        })
    }

    /// The output.
    #[wasm_bindgen(getter)]
    pub fn out(&self) -> Option<Buffer> {
        self.results.list.first().map(|result| result.buffer.clone())
    }
}

impl Bound {
    pub fn new(
        context: &Context,
        bound: wgpu_attention::Bound,
        mut results: Results,
        taken: Taken,
    ) -> Self {
        // `out` hands them over.
        results.list.iter_mut().for_each(|output| output.held = true);
        Self { context: context.clone(), bound, results, _taken: taken }
    }
}

/// The outputs of a call, the main one first. Those that no caller holds are freed with this.
#[derive(Default)]
pub struct Results {
    list: Vec<Output>,
}

struct Output {
    name: &'static str,
    shape: [u32; 4],
    buffer: Buffer,
    /// Whether the caller holds the buffer.
    held: bool,
}

impl Drop for Results {
    fn drop(&mut self) {
        self.list.iter().filter(|output| !output.held).for_each(|output| output.buffer.destroy());
    }
}

impl Results {
    /// Adds an output: the caller's buffer, named by the second name, or one of its own.
    pub fn add(
        &mut self,
        context: &Context,
        options: &Options,
        (name, option): (&'static str, &str),
        (shape, kind): ([u32; 4], DType),
    ) -> Result<(), JsValue> {
        let given = options.get(option).map(|value| -> Result<_, Error> {
            let buffer = Buffer::existing(&value).filter(|buffer| buffer.kind == kind);
            let expected = || refuse(option, format!("a Buffer of {kind}"), shown(&value));
            buffer.ok_or_else(expected)?.of(context, option)
        });
        let (buffer, held) = match given {
            Some(buffer) => (buffer.map_err(thrown)?, true),
            None => {
                let count: u64 = shape.iter().map(|&n| u64::from(n)).product();
                let allowed = context.library().caps().buffer;
                if count.saturating_mul(kind.size()) > allowed {
                    return Err(thrown(Error::Limit {
                        what: format!("output `{name}` of shape {shape:?}, bytes"),
                        limit: "maxBufferSize",
                        needed: count.saturating_mul(kind.size()),
                        allowed,
                    }));
                }
                (Buffer::empty(context.library(), kind, count as usize), false)
            }
        };
        buffer.logits.set(false);
        self.list.push(Output { name, shape, buffer, held });
        Ok(())
    }

    /// Adds an output that is an input too.
    pub fn add_buffer(&mut self, name: &'static str, shape: [u32; 4], buffer: Buffer, held: bool) {
        self.list.push(Output { name, shape, buffer, held });
    }

    /// Says that an output holds LSEs or masked scores.
    pub fn mark_logits(&self, name: &str) {
        let found = self.list.iter().filter(|result| result.name == name);
        found.for_each(|result| result.buffer.logits.set(true));
    }

    pub fn view(&self, name: &str, packed: bool) -> Result<View<'_>, Error> {
        let found = self.list.iter().find(|result| result.name == name);
        let found = found.ok_or_else(|| refuse(name, "an output", "none"))?;
        found.buffer.tensor(name, found.shape, packed)
    }

    /// The results for JavaScript: the one, or all by name; buffers for `on_device` and where the
    /// caller gave some, typed arrays otherwise.
    pub async fn hand_out(mut self, on_device: bool) -> Result<JsValue, JsValue> {
        let object = Object::new();
        let alone = self.list.len() == 1;
        for Output { name, buffer, held, .. } in &mut self.list {
            *held |= on_device;
            let value = if *held {
                JsValue::from(buffer.clone())
            } else {
                typed(&buffer.numbers().await.map_err(thrown)?, buffer.kind)
            };
            if alone {
                return Ok(value);
            }
            Reflect::set(&object, &(*name).into(), &value)?;
        }
        Ok(object.into())
    }
}

/// What a comparison found, for JavaScript.
pub fn verdict(found: &Comparison) -> Result<JsValue, JsValue> {
    let object = Object::new();
    let set = |name: &str, value: JsValue| Reflect::set(&object, &name.into(), &value);
    set("ok", found.ok.into())?;
    set("verdict", found.verdict().name().into())?;
    set("unjudged", (found.unjudged as f64).into())?;
    set("maxAbs", found.max_abs.into())?;
    set("bound", found.bound.into())?;
    set("relative", found.relative.into())?;
    set("worstIndex", (found.worst_index as f64).into())?;
    Ok(object.into())
}
