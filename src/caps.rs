//! What a device can do, as far as the kernels care.

/// The facts about a device that decide which variants run on it and with which tiles.
///
/// Taken from the *device's* features and limits (what its owner asked for), not the adapter's;
/// only the matrix configurations are asked of the adapter, which alone knows them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Caps {
    /// The adapter's name, its driver and its backend, for people.
    pub adapter: String,
    /// Whether the "GPU" is a CPU: its shader compilers are slow, so fewer kernels are made.
    pub is_cpu: bool,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Invocations of one workgroup.
    pub workgroup_invocations: u32,
    /// Workgroups along one dimension of a dispatch.
    pub workgroups_per_dimension: u32,
    /// Storage buffers one shader may bind.
    pub storage_buffers: u32,
    /// Bytes of one storage binding.
    pub storage_binding: u64,
    /// Bytes of one buffer.
    pub buffer: u64,
    /// Bytes that a storage binding's offset is a multiple of.
    pub storage_alignment: u32,
    /// Smallest and largest subgroup, when the device has subgroup operations.
    pub subgroup: Option<(u32, u32)>,
    /// Whether shaders may use native f16 arithmetic.
    pub shader_f16: bool,
    /// Whether passes can be timed.
    pub timestamps: bool,
    /// The cooperative-matrix configurations the adapter reports, when the device may use them and
    /// let a subgroup wait for itself.
    pub matrices: Vec<wgpu::CooperativeMatrixProperties>,
    /// How many rounds all loops of an invocation make together at most, on a driver that ends them
    /// then without a word: longer walks are cut into several dispatches. `None` where loops end by
    /// themselves. See docs/platform.md.
    pub loop_rounds: Option<u32>,
    /// Whether kernels on matrix units are rewritten to do without: for tests.
    #[doc(hidden)]
    pub emulates_matrices: bool,
}

/// Whether the browser's device has a feature that wgpu knows natively only.
#[cfg(target_family = "wasm")]
fn browser_has(device: &wgpu::Device, feature: &str) -> bool {
    device.as_webgpu().is_some_and(|device| device.features().has(feature))
}

/// Natively wgpu knows all features.
#[cfg(not(target_family = "wasm"))]
fn browser_has(_: &wgpu::Device, _: &str) -> bool {
    false
}

/// The rounds after which lavapipe (Mesa's llvmpipe) ends all loops of an invocation, without a word.
/// Seen with Mesa 22.3.6 in December 2026: one counter for all loops of the invocations that share a
/// vector, which also counts the question that ends a loop, is never set back, and leaves every later
/// loop one round (`LP_MAX_TGSI_LOOP_ITERATIONS` of gallivm). See docs/platform.md.
fn lavapipe_loop_rounds(info: &wgpu::AdapterInfo) -> Option<u32> {
    (info.driver == "llvmpipe" || info.name.starts_with("llvmpipe")).then_some(65_535)
}

/// What a kernel on matrix units needs of the device.
const MATRIX_FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SUBGROUP_BARRIER);

impl Caps {
    /// The facts about `device`, which was made by `adapter`.
    pub fn new(adapter: &wgpu::Adapter, device: &wgpu::Device) -> Self {
        let info = adapter.get_info();
        let (features, limits) = (device.features(), device.limits());
        let has = |feature| features.contains(feature);
        Self {
            adapter: format!(
                "{} ({} {}, {})",
                info.name, info.driver, info.driver_info, info.backend
            ),
            is_cpu: info.device_type == wgpu::DeviceType::Cpu,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            workgroup_invocations: limits
                .max_compute_invocations_per_workgroup
                .min(limits.max_compute_workgroup_size_x),
            workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            storage_binding: limits.max_storage_buffer_binding_size,
            buffer: limits.max_buffer_size,
            storage_alignment: limits.min_storage_buffer_offset_alignment,
            subgroup: (has(wgpu::Features::SUBGROUP) || browser_has(device, "subgroups"))
                .then_some((info.subgroup_min_size, info.subgroup_max_size)),
            shader_f16: has(wgpu::Features::SHADER_F16),
            timestamps: has(wgpu::Features::TIMESTAMP_QUERY),
            matrices: if has(MATRIX_FEATURES) {
                adapter.cooperative_matrix_properties()
            } else {
                Vec::new()
            },
            loop_rounds: lavapipe_loop_rounds(&info),
            emulates_matrices: false,
        }
    }

    /// WebGPU's guaranteed floor: what every device can do. For tests without a GPU.
    pub fn portable() -> Self {
        let limits = wgpu::Limits::default();
        Self {
            adapter: "WebGPU's floor".into(),
            is_cpu: false,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            workgroups_per_dimension: limits.max_compute_workgroups_per_dimension,
            storage_buffers: limits.max_storage_buffers_per_shader_stage,
            storage_binding: limits.max_storage_buffer_binding_size,
            buffer: limits.max_buffer_size,
            storage_alignment: limits.min_storage_buffer_offset_alignment,
            subgroup: None,
            shader_f16: false,
            timestamps: false,
            matrices: Vec::new(),
            loop_rounds: None,
            emulates_matrices: false,
        }
    }

    /// The same device with matrices of 16x16x16 that shaders emulate, so that tests can run the
    /// kernels on matrix units without any. It still needs native f16, and subgroups of 2 at least.
    #[doc(hidden)]
    #[must_use]
    pub fn with_emulated_matrices(mut self) -> Self {
        self.subgroup = self.subgroup.map(|_| (32, 32));
        self.matrices = vec![wgpu::CooperativeMatrixProperties {
            m_size: 16,
            n_size: 16,
            k_size: 16,
            ab_type: wgpu::CooperativeScalarType::F16,
            cr_type: wgpu::CooperativeScalarType::F32,
            saturating_accumulation: false,
        }];
        self.emulates_matrices = true;
        self
    }

    /// What the device lacks of the matrices that the kernels use, if anything.
    pub(crate) fn lacks_matrices(&self) -> Option<&'static str> {
        use wgpu::CooperativeScalarType::{F16, F32};
        let has_matrix = self.matrices.iter().any(|m| {
            (m.m_size, m.n_size, m.k_size, m.ab_type, m.cr_type) == (16, 16, 16, F16, F32)
        });
        if !has_matrix || !self.shader_f16 {
            Some("the device has no matrices of 16x16x16 with f16 products and f32 sums")
        } else if self.subgroup != Some((32, 32)) {
            Some("it needs subgroups of 32")
        } else {
            None
        }
    }

    /// The dimension a kernel is compiled for: the true one as whole vectors of four, or on a CPU,
    /// whose shader compilers take seconds, the next of a few.
    pub(crate) fn compiled_dim(&self, dim: u32) -> u32 {
        let dim = dim.next_multiple_of(4);
        if !self.is_cpu {
            return dim;
        }
        let buckets = [16, 32, 64, 96, 128, 192, 256, 384, 512, 576];
        buckets.into_iter().find(|&bucket| bucket >= dim).unwrap_or(dim)
    }
}
