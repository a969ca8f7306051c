//! The device: one of our own or the page's.

use std::cell::Cell;
use std::rc::Rc;

use js_sys::{Array, Object, Promise, Reflect};
use wasm_bindgen::prelude::*;
use wgpu_attention::{DType, Error, wgpu};

use crate::buffer::{self, Buffer};
use crate::config::named;
use crate::error::{refuse, shown, thrown};
use crate::options::{Options, call, tag};
use crate::promise::promise;

/// What is asked of an adapter, beside its limits, when it has it.
const WANTED: [&str; 4] = ["subgroups", "subgroups-f16", "shader-f16", "timestamp-query"];

/// A device and the pipelines compiled on it.
#[wasm_bindgen]
#[derive(Clone)]
pub struct Context {
    library: wgpu_attention::Context,
    device: JsValue,
    lost: Rc<Cell<bool>>,
}

#[wasm_bindgen]
impl Context {
    /// Makes a device on the adapter that the browser thinks fastest.
    #[wasm_bindgen(unchecked_return_type = "Promise<Context>")]
    pub fn create(
        #[wasm_bindgen(unchecked_optional_param_type = "ContextOptions")] options: JsValue,
    ) -> Promise {
        promise(|| Ok(Self::on_adapter(Wish::read(&options).map_err(thrown)?)))
    }

    /// Computes on a device of the page's. Nothing of it is changed.
    #[wasm_bindgen(js_name = fromDevice, unchecked_return_type = "Promise<Context>")]
    pub fn from_device(
        #[wasm_bindgen(unchecked_param_type = "GPUDevice")] device: JsValue,
    ) -> Promise {
        promise(|| {
            if tag(&device) != "GPUDevice" {
                return Err(thrown(refuse("device", "a GPUDevice", shown(&device))));
            }
            // What wgpu reads of an adapter, the device has too.
            let adapter = Object::new();
            for (name, source) in
                [("features", "features"), ("limits", "limits"), ("info", "adapterInfo")]
            {
                let value = Reflect::get(&device, &source.into())?;
                if value.is_undefined() {
                    let got = format!("one without {source}");
                    return Err(thrown(refuse("device", "a GPUDevice", got)));
                }
                Reflect::set(&adapter, &name.into(), &value)?;
            }
            let answer = Closure::new(move |_| Ok(Promise::resolve(&device).into()));
            Ok(Self::open(adapter.into(), answer))
        })
    }

    /// The device.
    #[wasm_bindgen(getter, unchecked_return_type = "GPUDevice")]
    pub fn device(&self) -> JsValue {
        self.device.clone()
    }

    /// The adapter's name, as far as the browser tells.
    #[wasm_bindgen(getter)]
    pub fn adapter(&self) -> String {
        let info = Reflect::get(&self.device, &"adapterInfo".into()).unwrap_or_default();
        let told =
            ["vendor", "architecture", "device", "description"].into_iter().filter_map(|name| {
                Reflect::get(&info, &name.into()).ok()?.as_string().filter(|text| !text.is_empty())
            });
        let told: Vec<String> = told.collect();
        if told.is_empty() { "an adapter without a name".into() } else { told.join(" ") }
    }

    /// The optional features that the kernels use on this device.
    #[wasm_bindgen(getter)]
    pub fn features(&self) -> Vec<String> {
        let caps = self.library.caps();
        let subgroups = caps.subgroup.map(|(least, most)| match least == most {
            true => format!("subgroups of {least}"),
            false => format!("subgroups of {least} to {most}"),
        });
        let f16 = caps.shader_f16.then(|| "shader-f16".to_owned());
        subgroups.into_iter().chain(f16).collect()
    }

    /// Whether the device is a CPU.
    #[wasm_bindgen(getter, js_name = isCpu)]
    pub fn is_cpu(&self) -> bool {
        self.library.caps().is_cpu
    }

    /// How many pipelines have been compiled so far.
    #[wasm_bindgen(getter)]
    pub fn pipelines(&self) -> usize {
        self.library.pipelines()
    }

    /// A tensor on the device: room for a number of elements, or a copy of an array's.
    pub fn buffer(
        &self,
        #[wasm_bindgen(unchecked_param_type = "TensorData | number")] data: JsValue,
        #[wasm_bindgen(unchecked_optional_param_type = "DType")] dtype: Option<String>,
    ) -> Result<Buffer, JsValue> {
        let kind = match dtype {
            Some(name) => named(&name).map_err(thrown)?,
            None => buffer::size_of(&data).map_or(DType::F32, |(kind, _)| kind),
        };
        if let Some(elements) = data.as_f64() {
            let bytes = elements * kind.size() as f64;
            if elements < 0.0
                || elements.fract() != 0.0
                || bytes > self.library.caps().buffer as f64
            {
                let most = self.library.caps().buffer / kind.size();
                let expected = format!("a whole number of elements, at most {most}");
                return Err(thrown(refuse("data", expected, elements.to_string())));
            }
            return Ok(Buffer::empty(&self.library, kind, elements as usize));
        }
        Ok(Buffer::take(self, &data, kind, "data")?.0)
    }
}

/// What `create` is asked for.
struct Wish {
    power: &'static str,
    without: Vec<String>,
    as_gpu: bool,
}

impl Wish {
    fn read(options: &JsValue) -> Result<Self, Error> {
        const POWERS: [&str; 2] = ["high-performance", "low-power"];
        let none = Object::new();
        let left_out = options.is_undefined() || options.is_null();
        let options = if left_out { &none } else { options };
        let options =
            Options::new(options, "options", &[&["powerPreference", "without", "asGpu"]])?;
        let power = options.word("powerPreference", &POWERS.map(|power| (power, power)))?;
        let without = options.texts("without")?.unwrap_or_default();
        if let Some(other) = without.iter().find(|name| !WANTED.contains(&name.as_str())) {
            let expected = format!("features among {}", WANTED.join(", "));
            return Err(refuse("without", expected, format!("`{other}`")));
        }
        let power = power.unwrap_or(POWERS[0]);
        Ok(Self { power, without, as_gpu: options.flag("asGpu")? })
    }
}

impl Context {
    /// The library's own context.
    pub const fn library(&self) -> &wgpu_attention::Context {
        &self.library
    }

    /// Fails on a device that is no more.
    pub fn alive(&self) -> Result<(), JsValue> {
        if self.lost.get() {
            let lost = Error::DeviceLost("it was destroyed or the browser reset it".into());
            return Err(thrown(self.library.lost().map_or(lost, Error::DeviceLost)));
        }
        Ok(())
    }

    async fn on_adapter(Wish { power, without, as_gpu }: Wish) -> Result<Self, JsValue> {
        let missing = |why: &str| thrown(Error::NoAdapter(why.into()));
        let gpu = gpu().ok_or_else(|| missing("this browser has no WebGPU (navigator.gpu)"))?;
        let wish = Object::new();
        Reflect::set(&wish, &"powerPreference".into(), &power.into())?;
        let adapter = call(&gpu, "requestAdapter", &[wish.into()])?;
        let adapter = wasm_bindgen_futures::JsFuture::from(Promise::resolve(&adapter)).await?;
        if adapter.is_null() {
            return Err(missing("the browser offers none (navigator.gpu.requestAdapter)"));
        }
        let features = Reflect::get(&adapter, &"features".into())?;
        let wanted = Array::new();
        for name in WANTED.map(JsValue::from) {
            let offered = call(&features, "has", std::slice::from_ref(&name))?.is_truthy();
            if offered && !without.iter().any(|hidden| name == hidden.as_str()) {
                wanted.push(&name);
            }
        }
        let inner = adapter.clone();
        let opened = Self::open(
            adapter,
            Closure::new(move |descriptor: JsValue| {
                // wgpu knows no name for some of them.
                Reflect::set(&descriptor, &"requiredFeatures".into(), &wanted)?;
                let prototype = Object::get_prototype_of(&inner);
                let request: js_sys::Function =
                    Reflect::get(&prototype, &"requestDevice".into())?.dyn_into()?;
                request.call1(&inner, &descriptor)
            }),
        );
        let mut context = opened.await?;
        if as_gpu {
            let mut caps = context.library.caps().clone();
            caps.is_cpu = false;
            let (device, queue) = (context.library.device(), context.library.queue());
            context.library = wgpu_attention::Context::with_caps(caps, device, queue);
        }
        Ok(context)
    }

    /// Has wgpu open `adapter` while `request` answers in its name. Objects of our own stand in
    /// the way of wgpu's two calls, so that no prototype is changed.
    async fn open(
        adapter: JsValue,
        request: Closure<dyn FnMut(JsValue) -> Result<JsValue, JsValue>>,
    ) -> Result<Self, JsValue> {
        let gpu = gpu().unwrap_or_default();
        Reflect::set(&adapter, &"requestDevice".into(), request.as_ref())?;
        let given = adapter.clone();
        let answer: Closure<dyn FnMut(JsValue) -> JsValue> =
            Closure::new(move |_| Promise::resolve(&given).into());
        Reflect::set(&gpu, &"requestAdapter".into(), answer.as_ref())?;
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        // The call is made at once, the answer waited for afterwards.
        let opened = instance.request_adapter(&wgpu::RequestAdapterOptions::default());
        Reflect::delete_property(gpu.unchecked_ref::<Object>(), &"requestAdapter".into())?;
        let opened = opened.await.map_err(|error| thrown(Error::NoAdapter(error.to_string())))?;
        let library = wgpu_attention::Context::from_adapter(&opened).await;
        Reflect::delete_property(adapter.unchecked_ref::<Object>(), &"requestDevice".into())?;
        let library = library.map_err(thrown)?;
        let device = library.device().as_webgpu().map(|device| JsValue::from(device.clone()));
        let device = device.unwrap_or_default();
        let lost = Rc::new(Cell::new(false));
        let flag = lost.clone();
        let closure = Closure::once_into_js(move |_: JsValue| flag.set(true));
        call(&Reflect::get(&device, &"lost".into())?, "then", &[closure])?;
        Ok(Self { library, device, lost })
    }
}

/// `navigator.gpu`, in pages and in workers.
fn gpu() -> Option<JsValue> {
    let navigator = Reflect::get(&js_sys::global(), &"navigator".into()).ok()?;
    let gpu = Reflect::get(&navigator, &"gpu".into()).ok()?;
    gpu.is_object().then_some(gpu)
}
