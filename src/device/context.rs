//! Handles to a device and its queue, and the pipelines compiled on it.
#![cfg_attr(
    target_family = "wasm",
    allow(clippy::arc_with_non_send_sync, reason = "natively the same handles cross threads")
)]

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::rates::{Rates, SUBMISSION_TIME};
use crate::caps::Caps;
#[cfg(not(target_family = "wasm"))]
use crate::device::cache::{Cache, Choice};
use crate::device::readback;
#[cfg(not(target_family = "wasm"))]
use crate::device::verification::Outcomes;
use crate::error::Error;
use crate::shader::{Binding, Source};
use crate::shape::MAX_HEAD_DIM;
use crate::tensor::{EMPTY, View};

/// A device, its queue, what it can do, and the pipelines compiled for it so far.
///
/// Cheap to clone; clones share the pipelines. On a device of the caller's the library installs no
/// callbacks and changes no state.
#[derive(Clone, Debug)]
pub struct Context {
    inner: Arc<Inner>,
}

#[derive(Clone, Debug)]
struct Inner {
    device: wgpu::Device,
    queue: wgpu::Queue,
    caps: Caps,
    checked_shaders: bool,
    submission_time: Duration,
    pipelines: Arc<Mutex<HashMap<Source, wgpu::ComputePipeline>>>,
    rates: Arc<Mutex<Rates>>,
    #[cfg(not(target_family = "wasm"))]
    cache: Option<Arc<Cache>>,
    /// What the tuner has found out in this process.
    #[cfg(not(target_family = "wasm"))]
    choices: Arc<Mutex<HashMap<String, Choice>>>,
    /// Whether kernels on experimental features are tried before they are handed out.
    #[cfg(not(target_family = "wasm"))]
    verification: bool,
    #[cfg(not(target_family = "wasm"))]
    outcomes: Outcomes,
    /// For tests of the verification: what is wrong with a kernel's text.
    #[cfg(not(target_family = "wasm"))]
    fault: Option<Fault>,
    absent: Absent,
    first: FirstWorkgroup,
    /// Why the device was lost; only ever set on a device of our own.
    lost: Arc<Mutex<Option<String>>>,
}

/// See [`Context::with_fault`].
#[cfg(not(target_family = "wasm"))]
#[derive(Clone, Copy, Debug)]
struct Fault {
    label: &'static str,
    find: &'static str,
    replace: &'static str,
}

/// Bound where a kernel has a binding that a configuration leaves empty; what is written has a
/// buffer of its own for each binding.
#[derive(Clone, Debug)]
pub(crate) struct Absent {
    pub input: wgpu::Buffer,
    pub outputs: [wgpu::Buffer; 2],
}

/// Group 1 of every kernel's bindings, and that of a dispatch from its first workgroup on.
#[derive(Clone, Debug)]
struct FirstWorkgroup {
    layout: wgpu::BindGroupLayout,
    zero: wgpu::BindGroup,
}

impl FirstWorkgroup {
    fn new(device: &wgpu::Device) -> Self {
        let label = Some("first workgroup");
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label,
            entries: &[entry((0, &Binding::Uniform))],
        });
        let number = device.create_buffer(&wgpu::BufferDescriptor {
            label,
            // All zeros, as new buffers are.
            size: 16,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: false,
        });
        let zero = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label,
            layout: &layout,
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: number.as_entire_binding() }],
        });
        Self { layout, zero }
    }
}

/// The features that make something faster or possible here; asked for when the adapter has them.
const WANTED: wgpu::Features = wgpu::Features::SUBGROUP
    .union(wgpu::Features::SUBGROUP_BARRIER)
    .union(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX)
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::PIPELINE_CACHE)
    .union(wgpu::Features::TIMESTAMP_QUERY);

impl Context {
    /// Wraps the caller's own handles; `adapter` is the one that made `device`.
    pub fn new(adapter: &wgpu::Adapter, device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        Self::with_caps(Caps::new(adapter, device), device, queue)
    }

    /// Wraps the caller's own handles and plans for `caps` instead of what the device reports, to
    /// hold a strong device to a weaker one's limits.
    pub fn with_caps(caps: Caps, device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        // A row long: the first one is loaded ahead, whether a tensor has any or not.
        let absent = || {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("absent tensor"),
                size: 4 * u64::from(MAX_HEAD_DIM),
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        };
        let inner = Inner {
            absent: Absent { input: absent(), outputs: [absent(), absent()] },
            device: device.clone(),
            queue: queue.clone(),
            // Emulated matrices are plain WGSL, which no driver is suspected of.
            #[cfg(not(target_family = "wasm"))]
            verification: !caps.emulates_matrices,
            #[cfg(not(target_family = "wasm"))]
            outcomes: Arc::default(),
            #[cfg(not(target_family = "wasm"))]
            fault: None,
            caps,
            checked_shaders: false,
            submission_time: SUBMISSION_TIME,
            pipelines: Arc::default(),
            rates: Arc::default(),
            #[cfg(not(target_family = "wasm"))]
            cache: None,
            #[cfg(not(target_family = "wasm"))]
            choices: Arc::default(),
            first: FirstWorkgroup::new(device),
            lost: Arc::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Makes a device of its own on the adapter that the system thinks fastest.
    pub async fn request() -> Result<Self, Error> {
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        let adapter = instance()
            .request_adapter(&options)
            .await
            .map_err(|error| Error::NoAdapter(error.to_string()))?;
        Self::from_adapter(&adapter).await
    }

    /// Every adapter of this machine.
    pub async fn adapters() -> Vec<wgpu::Adapter> {
        instance().enumerate_adapters(wgpu::Backends::all()).await
    }

    /// Makes a device of its own on `adapter`, with all its limits and the features that help.
    pub async fn from_adapter(adapter: &wgpu::Adapter) -> Result<Self, Error> {
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("wgpu-attention"),
                required_features: adapter.features() & WANTED,
                required_limits: adapter.limits(),
                // SAFETY: the only experimental feature asked for is cooperative matrices, which
                // `attention.coop` and `linear.coop` use in the configurations that the adapter
                // reports.
                experimental_features: unsafe { wgpu::ExperimentalFeatures::enabled() },
                ..Default::default()
            })
            .await
            .map_err(|error| Error::NoDevice(error.to_string()))?;
        let context = Self::new(adapter, &device, &queue);
        let lost = context.inner.lost.clone();
        device.set_device_lost_callback(move |reason, message| {
            *lock(&lost) = Some(format!("{reason:?}: {message}"));
        });
        Ok(context)
    }

    /// The same device with pipelines of its own, compiled with every run-time check of the shader
    /// compiler turned on (or off again). Slower by a third to a half; for hunting faults.
    #[must_use]
    pub fn with_checked_shaders(&self, checked: bool) -> Self {
        let pipelines = Arc::default();
        Self::from(Inner { checked_shaders: checked, pipelines, ..(*self.inner).clone() })
    }

    /// The same device and pipelines, with another time for a submission of [`run`](Self::run) and
    /// of [`Bound::pieces`](crate::Bound::pieces) to take at most, by estimate; 500 ms at first. `Duration::MAX` cuts
    /// nothing.
    #[must_use]
    pub fn with_submission_time(&self, time: Duration) -> Self {
        Self::from(Inner { submission_time: time, ..(*self.inner).clone() })
    }

    /// The same device and pipelines, with a folder for what is worth keeping between runs of a
    /// program: what [`Attention::plan_tuned`](crate::Attention::plan_tuned) finds out, and pipelines
    /// compiled from now on, where the device has
    /// [`Features::PIPELINE_CACHE`](wgpu::Features::PIPELINE_CACHE) (Vulkan; contexts with a device of
    /// their own ask for it).
    ///
    /// The folder is made when there is something to keep. Several processes may use it at once, and
    /// no file of it can do worse than be ignored, as long as nobody else may write there: what a
    /// driver keeps is machine code. A folder that cannot be written is logged, not an error.
    #[cfg(not(target_family = "wasm"))]
    #[must_use]
    pub fn with_cache(&self, folder: &std::path::Path) -> Self {
        let cache = Some(Arc::new(Cache::open(self.device(), folder)));
        let choices = Arc::default();
        Self::from(Inner { cache, choices, ..(*self.inner).clone() })
    }

    /// The same device and pipelines, with or without trials of the kernels that depend on experimental
    /// features, which are those on matrix units; with them at first.
    ///
    /// A trial runs a kernel of the same text on a small made-up problem the first time that it is
    /// planned (some tens of milliseconds) and compares with the f64 reference. A kernel that computes wrong
    /// results is refused: plans choose the next one and log a warning, and those that force it are an
    /// [`Error::Unsupported`]. The outcome is kept in the [folder](Self::with_cache), by driver and text.
    #[cfg(not(target_family = "wasm"))]
    #[must_use]
    pub fn with_verification(&self, verification: bool) -> Self {
        Self::from(Inner { verification, ..(*self.inner).clone() })
    }

    /// The same device with pipelines and outcomes of its own, for which `find` in the text of the kernel
    /// `label` reads `replace`: a driver that is wrong, for tests.
    #[cfg(not(target_family = "wasm"))]
    #[doc(hidden)]
    #[must_use]
    pub fn with_fault(
        &self,
        label: &'static str,
        find: &'static str,
        replace: &'static str,
    ) -> Self {
        Self::from(Inner {
            fault: Some(Fault { label, find, replace }),
            pipelines: Arc::default(),
            outcomes: Arc::default(),
            ..(*self.inner).clone()
        })
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.inner.queue
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        &self.inner.caps
    }

    /// Why a device of our own was lost, when it was.
    pub fn lost(&self) -> Option<String> {
        lock(&self.inner.lost).clone()
    }

    /// How many pipelines have been compiled so far.
    pub fn pipelines(&self) -> usize {
        lock(&self.inner.pipelines).len()
    }

    /// Reads a tensor back to the host: its numbers as they are, contiguous `[batch, heads, len, dim]`.
    /// LSEs and scores are for [`read_logits`](Self::read_logits).
    ///
    /// The buffer needs the usage `COPY_SRC`. On native the future polls the device itself.
    ///
    /// # Errors
    /// A view that leaves its buffer, a buffer without `COPY_SRC`, a lost device, or one out of memory.
    pub async fn read(&self, view: View<'_>) -> Result<Vec<f32>, Error> {
        readback::read(self, view).await
    }

    /// Reads LSEs or scores back to the host, as [`read`](Self::read) does other tensors. Kernels cannot
    /// write −∞ and write −1e30 in its place (a masked score, the LSE of a row without keys): numbers up
    /// to −5e29 come back as −∞.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub async fn read_logits(&self, view: View<'_>) -> Result<Vec<f32>, Error> {
        let mut logits = readback::read(self, view).await?;
        for logit in logits.iter_mut().filter(|logit| f64::from(**logit) <= EMPTY) {
            *logit = f32::NEG_INFINITY;
        }
        Ok(logits)
    }

    pub(crate) fn absent(&self) -> &Absent {
        &self.inner.absent
    }

    /// Group 1 of the bindings of a dispatch from its first workgroup on.
    pub(crate) fn whole_dispatch(&self) -> &wgpu::BindGroup {
        &self.inner.first.zero
    }

    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn has_checked_shaders(&self) -> bool {
        self.inner.checked_shaders
    }

    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn has_verification(&self) -> bool {
        self.inner.verification
    }

    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn outcomes(&self) -> &Outcomes {
        &self.inner.outcomes
    }

    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn cache(&self) -> Option<&Cache> {
        self.inner.cache.as_deref()
    }

    pub(crate) fn submission_time(&self) -> Duration {
        self.inner.submission_time
    }

    pub(crate) fn rates(&self) -> MutexGuard<'_, Rates> {
        lock(&self.inner.rates)
    }

    /// The device's own account of a loss, or `fallback`.
    pub(crate) fn loss(&self, fallback: &str) -> Error {
        Error::DeviceLost(self.lost().unwrap_or_else(|| fallback.into()))
    }

    /// An error on a lost device, where much seems to work that does nothing.
    pub(crate) fn alive(&self) -> Result<(), Error> {
        // A loss is told to who looks at the device.
        let _ = self.device().poll(wgpu::PollType::Poll);
        match self.lost() {
            Some(_) => Err(self.loss("")),
            None => Ok(()),
        }
    }

    /// What an error of the device means: on a lost one everything fails.
    pub(crate) fn failure(&self, error: wgpu::Error) -> Error {
        self.alive().err().unwrap_or_else(|| error.into())
    }

    /// The compiled pipelines of `sources`.
    pub(crate) async fn compile(
        &self,
        sources: &[Source],
    ) -> Result<Vec<wgpu::ComputePipeline>, Error> {
        let mut pipelines = Vec::with_capacity(sources.len());
        for source in sources {
            pipelines.push(self.pipeline(source).await?);
        }
        Ok(pipelines)
    }

    /// The compiled pipeline of `source`, from the cache or newly made.
    pub(crate) async fn pipeline(&self, source: &Source) -> Result<wgpu::ComputePipeline, Error> {
        if let Some(pipeline) = lock(&self.inner.pipelines).get(source) {
            return Ok(pipeline.clone());
        }
        let device = self.device();
        // Scopes are thread-local: both are closed before anything is awaited.
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let module = self.module(source);
        let layout = self.layout(source);
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(source.label()),
            layout: Some(&layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: self.inner.checked_shaders,
                ..Default::default()
            },
            cache: self.compiled(),
        });
        let (validation, memory) = (validation.pop(), memory.pop());
        let (validation, memory) = (validation.await, memory.await);
        self.alive()?;
        if let Some(error) = validation {
            return Err(source.compile_error(&error.to_string()));
        }
        if let Some(error) = memory {
            return Err(error.into());
        }
        lock(&self.inner.pipelines).insert(source.clone(), pipeline.clone());
        log::debug!("compiled {}", source.label());
        #[cfg(not(target_family = "wasm"))]
        if let Some(cache) = &self.inner.cache {
            cache.keep_pipelines();
        }
        Ok(pipeline)
    }

    /// What the tuner has found out about a configuration, here or in an earlier process.
    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn choice(&self, key: &str) -> Option<Choice> {
        let here = lock(&self.inner.choices).get(key).cloned();
        here.or_else(|| self.inner.cache.as_ref()?.choice(key))
    }

    #[cfg(not(target_family = "wasm"))]
    pub(crate) fn keep_choice(&self, key: &str, choice: Choice) {
        if let Some(cache) = &self.inner.cache {
            cache.keep_choice(key, &choice);
        }
        lock(&self.inner.choices).insert(key.to_owned(), choice);
    }

    /// What earlier runs of the program have compiled.
    #[cfg(not(target_family = "wasm"))]
    fn compiled(&self) -> Option<&wgpu::PipelineCache> {
        self.inner.cache.as_ref()?.pipelines()
    }

    /// Browsers keep what they compile by themselves.
    #[cfg(target_family = "wasm")]
    fn compiled(&self) -> Option<&wgpu::PipelineCache> {
        None
    }

    /// Binding numbers are fixed, whether a configuration uses them or not, so the layout is
    /// spelled out rather than derived from the shader.
    fn layout(&self, source: &Source) -> wgpu::PipelineLayout {
        let entries: Vec<_> = source.bindings().iter().enumerate().map(entry).collect();
        let group = self.device().create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(source.label()),
            entries: &entries,
        });
        self.device().create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(source.label()),
            bind_group_layouts: &[Some(&group), Some(&self.inner.first.layout)],
            immediate_size: 0,
        })
    }

    #[cfg(not(target_family = "wasm"))]
    fn text<'s>(&self, source: &'s Source) -> Cow<'s, str> {
        match &self.inner.fault {
            Some(fault) if fault.label == source.label() => {
                Cow::Owned(source.wgsl().replace(fault.find, fault.replace))
            }
            _ => Cow::Borrowed(source.wgsl()),
        }
    }

    #[cfg(target_family = "wasm")]
    fn text<'s>(&self, source: &'s Source) -> Cow<'s, str> {
        Cow::Borrowed(source.wgsl())
    }

    fn module(&self, source: &Source) -> wgpu::ShaderModule {
        let descriptor = wgpu::ShaderModuleDescriptor {
            label: Some(source.label()),
            source: wgpu::ShaderSource::Wgsl(self.text(source)),
        };
        if self.inner.checked_shaders {
            return self.device().create_shader_module(descriptor);
        }
        // SAFETY: every loop of the kernels ends (their bounds are constants or lengths), and every
        // index is bounded by the plan, by a guard in the shader, or clamped where it comes from
        // data; `with_checked_shaders` exists to prove it.
        unsafe {
            self.device()
                .create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        }
    }
}

impl From<Inner> for Context {
    fn from(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }
}

fn entry((binding, kind): (usize, &Binding)) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: match kind {
                Binding::Uniform => wgpu::BufferBindingType::Uniform,
                Binding::Read => wgpu::BufferBindingType::Storage { read_only: true },
                Binding::Write => wgpu::BufferBindingType::Storage { read_only: false },
            },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}

fn instance() -> wgpu::Instance {
    wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle_from_env())
}

/// A panic elsewhere while the lock was held leaves nothing half-done behind it here.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The value of a future that needs no waiting, as those of error scopes on native.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}
