//! What the device can do at best, measured: the ceilings that times are held against.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use anyhow::{Result, anyhow};
use half::f16;
use pollster::block_on;
use serde::{Deserialize, Serialize};
use wgpu_attention::{Caps, Context, Error, wgpu};

use super::tables::significant;
use super::timing::{self, Work};

/// Invocations of a workgroup.
const THREADS: u32 = 256;

/// The device's own ceilings.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Ceilings {
    /// f32 multiply-adds in registers, two operations each.
    pub fma_tflops: f64,
    /// f16 matrix products summed in f32, in registers, where the device has matrix units.
    pub matrix_tflops: Option<f64>,
    /// Bytes read and bytes written by a kernel that copies.
    pub copy_gigabytes_per_second: f64,
}

impl Ceilings {
    /// Measures each for about `seconds`.
    pub fn measure(context: &Context, seconds: Duration) -> Result<Self> {
        let best = |ceiling: Kernel| -> Result<f64> {
            let [_, median, _] = timing::time(context, &ceiling, seconds)?.spread();
            Ok(ceiling.work / median)
        };
        Ok(Self {
            fma_tflops: best(fma(context)?)? / 1e12,
            matrix_tflops: match has_matrices(context.caps()) {
                true => Some(best(matrix(context)?)? / 1e12),
                false => None,
            },
            copy_gigabytes_per_second: best(copy(context)?)? / 1e9,
        })
    }

    /// The TFLOP/s within reach of work that asks for `flops` operations and `bytes` moved: the lower
    /// of the arithmetic's and the memory's ceiling, and which of them it is.
    pub fn roof(&self, variant: &str, flops: f64, bytes: f64) -> (f64, &'static str) {
        let (peak, name) = match self.matrix_tflops {
            Some(peak) if variant.contains("coop") => (peak, "matrix"),
            _ => (self.fma_tflops, "fma"),
        };
        let by_memory = flops / bytes * self.copy_gigabytes_per_second / 1e3;
        if by_memory < peak { (by_memory, "copy") } else { (peak, name) }
    }
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ceilings: fma {} TFLOP/s", significant(self.fma_tflops))?;
        if let Some(peak) = self.matrix_tflops {
            write!(f, ", matrix {} TFLOP/s", significant(peak))?;
        }
        write!(f, ", copy {} GB/s", significant(self.copy_gigabytes_per_second))
    }
}

/// A small kernel and how much it does: operations or bytes.
struct Kernel {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    workgroups: u32,
    work: f64,
}

impl Work for Kernel {
    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some("bench ceiling"),
            timestamp_writes,
        });
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups(self.workgroups, 1, 1);
    }
}

fn copy(context: &Context) -> Result<Kernel> {
    const VECTORS: u32 = 4;
    let caps = context.caps();
    // More than any cache holds, and less than any GPU.
    let wanted: u64 = if caps.is_cpu { 64 << 20 } else { 256 << 20 };
    let a_workgroup = u64::from(THREADS * VECTORS) * 16;
    let workgroups = wanted.min(caps.storage_binding).min(caps.buffer) / a_workgroup;
    let bytes = workgroups * a_workgroup;
    let text = format!(
        "const THREADS: u32 = {THREADS}u;\nconst VECTORS: u32 = {VECTORS}u;\n{}",
        include_str!("ceilings/copy.wgsl")
    );
    let [source, copied] = [bytes, bytes].map(|size| buffer(context, size));
    kernel(context, &text, [&source, &copied], (workgroups as u32, 2.0 * bytes as f64))
}

fn fma(context: &Context) -> Result<Kernel> {
    const FMAS: u32 = 128;
    let (workgroups, rounds) = if context.caps().is_cpu { (16, 64) } else { (4096, 64) };
    let text = format!(
        "const THREADS: u32 = {THREADS}u;\nconst ROUNDS: u32 = {rounds}u;\n\
         const FMAS_PER_ROUND: u32 = {FMAS}u;\n{}",
        include_str!("ceilings/fma.wgsl")
    );
    let invocations = workgroups * THREADS;
    let numbers = buffer(context, 32);
    let given: [[f32; 4]; 2] = [[0.999, 0.998, 0.997, 0.996], [0.4, 0.3, 0.2, 0.1]];
    context.queue().write_buffer(&numbers, 0, bytemuck::bytes_of(&given));
    let sums = buffer(context, u64::from(invocations) * 16);
    let flops = 2.0 * f64::from(invocations) * f64::from(rounds * FMAS);
    kernel(context, &text, [&numbers, &sums], (workgroups, flops))
}

/// Whether the device has the matrices that the kernels use.
fn has_matrices(caps: &Caps) -> bool {
    use wgpu::CooperativeScalarType::{F16, F32};
    let usable = |m: &wgpu::CooperativeMatrixProperties| {
        (m.m_size, m.n_size, m.k_size, m.ab_type, m.cr_type) == (16, 16, 16, F16, F32)
    };
    caps.shader_f16 && caps.subgroup == Some((32, 32)) && caps.matrices.iter().any(usable)
}

fn matrix(context: &Context) -> Result<Kernel> {
    const MATRICES: u32 = 8;
    const ROUNDS: u32 = 1024;
    const WORKGROUPS: u32 = 1024;
    let text = matrix_text(MATRICES, ROUNDS);
    let factors = buffer(context, 2 * 256 * 2);
    let given: Vec<f16> = (0..512).map(|i| f16::from_f32((i % 31) as f32 / 31.0 - 0.5)).collect();
    context.queue().write_buffer(&factors, 0, bytemuck::cast_slice(&given));
    let subgroups = WORKGROUPS * THREADS / 32;
    let sums = buffer(context, u64::from(subgroups) * 1024);
    let flops = f64::from(subgroups) * f64::from(ROUNDS * MATRICES) * f64::from(2 * 16 * 16 * 16);
    kernel(context, &text, [&factors, &sums], (WORKGROUPS, flops))
}

fn matrix_text(matrices: u32, rounds: u32) -> String {
    format!(
        "enable f16;\nenable wgpu_cooperative_matrix;\nconst THREADS: u32 = {THREADS}u;\n\
         const ROUNDS: u32 = {rounds}u;\nconst MATRICES: u32 = {matrices}u;\n{}",
        include_str!("ceilings/matrix.wgsl")
    )
}

fn buffer(context: &Context, size: u64) -> wgpu::Buffer {
    context.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("bench ceiling"),
        size,
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

fn kernel(
    context: &Context,
    text: &str,
    buffers: [&wgpu::Buffer; 2],
    (workgroups, work): (u32, f64),
) -> Result<Kernel> {
    let device = context.device();
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some("bench ceiling"),
        source: wgpu::ShaderSource::Wgsl(Cow::Borrowed(text)),
    };
    // SAFETY: the loops are of a constant number of rounds, and every invocation has its own place in
    // buffers that are made for all of them.
    let module = unsafe {
        device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
    };
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some("bench ceiling"),
        layout: None,
        module: &module,
        entry_point: Some("main"),
        compilation_options: Default::default(),
        cache: None,
    });
    let entries = [0, 1].map(|binding| wgpu::BindGroupEntry {
        binding,
        resource: buffers[binding as usize].as_entire_binding(),
    });
    let group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some("bench ceiling"),
        layout: &pipeline.get_bind_group_layout(0),
        entries: &entries,
    });
    for scope in [validation, memory] {
        if let Some(error) = block_on(scope.pop()) {
            return Err(anyhow!(Error::from(error)).context("measuring the device's ceilings"));
        }
    }
    Ok(Kernel { pipeline, group, workgroups, work })
}

#[cfg(test)]
mod tests {
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    use super::*;

    /// No software driver has matrix units, so that nothing else compiles this one in the tests.
    #[test]
    fn the_kernel_of_matrices_is_valid() {
        let module = naga::front::wgsl::parse_str(&matrix_text(8, 4)).expect("WGSL");
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
        let info = validator.validate(&module).expect("valid");
        naga::back::spv::write_vec(&module, &info, &Default::default(), None).expect("SPIR-V");
    }

    #[test]
    fn the_roof_is_the_lower_ceiling() {
        let ceilings = Ceilings {
            fma_tflops: 60.0,
            matrix_tflops: Some(600.0),
            copy_gigabytes_per_second: 3000.0,
        };
        assert_eq!(ceilings.roof("tiled", 1e12, 1e9), (60.0, "fma"));
        assert_eq!(ceilings.roof("coop", 1e12, 1e9), (600.0, "matrix"));
        assert_eq!(ceilings.roof("merge", 1e9, 1e9), (3.0, "copy"));
    }
}
