//! What binding any plan needs: buffers of the workspace, packed side arrays, checks between views,
//! the cutting of large work into pieces, and the rounding of f32 results to 16-bit tensors.

use std::ops::Range;

use crate::device::Context;
use crate::error::Error;
use crate::launch::Array;
use crate::launch::pieces::moving;
use crate::launch::{Copy, Step};
use crate::params::{NarrowParams, WidenParams};
use crate::shader::{Binding, Fragment, Header, Source, Target, fragment};
use crate::tensor::{Alignment, DType, View};

/// Threads of one workgroup of `common.narrow` and `common.widen`.
pub(crate) const NARROW_THREADS: u32 = 64;

const NARROW_BINDINGS: &[Binding] = &[Binding::Uniform, Binding::Read, Binding::Write];

/// The fragment that reads and writes elements of a dtype.
pub(crate) const fn dtype_fragment(dtype: DType) -> Fragment {
    match dtype {
        DType::F32 => fragment!("common/f32.wgsl"),
        DType::F16 => fragment!("common/f16.wgsl"),
        DType::BF16 => fragment!("common/bf16.wgsl"),
    }
}

/// The fragment that stores outputs.
pub(crate) const fn store_fragment(alignment: Alignment) -> Fragment {
    match alignment {
        Alignment::Vec8 | Alignment::Vec4 => fragment!("common/store_vec4.wgsl"),
        Alignment::Any => fragment!("common/store_any.wgsl"),
    }
}

/// The same of the kernels on matrix units, which have no form for [`Alignment::Any`].
pub(crate) const fn matrix_store_fragment(alignment: Alignment, dtype: DType) -> Fragment {
    match (alignment, dtype) {
        (Alignment::Vec8, DType::F16 | DType::BF16) => fragment!("common/store_vec8.wgsl"),
        _ => fragment!("common/store_vec4.wgsl"),
    }
}

/// The fragment that loads tensors which are reached so.
pub(crate) const fn load_fragment(alignment: Alignment) -> Fragment {
    match alignment {
        Alignment::Vec8 | Alignment::Vec4 => fragment!("attention/load_vec4.wgsl"),
        Alignment::Any => fragment!("attention/load_any.wgsl"),
    }
}

/// The same for kernels on matrix units, which load 16 bytes at a time where they can.
pub(crate) const fn matrix_load_fragment(alignment: Alignment, dtype: DType) -> Fragment {
    match (alignment, dtype) {
        (Alignment::Vec8, DType::F16 | DType::BF16) => fragment!("attention/load_vec8.wgsl"),
        _ => load_fragment(alignment),
    }
}

/// Whether an output that is reached so goes through f32 in a workspace and `common.narrow`.
pub(crate) fn narrows(alignment: Alignment, dtype: DType) -> bool {
    alignment == Alignment::Any && dtype != DType::F32
}

/// The kernel that rounds an f32 workspace to a 16-bit output at any offset and stride.
pub(crate) fn narrow_source(dtype: DType, target: Target) -> Source {
    let header = Header::default().size("THREADS", NARROW_THREADS);
    let fragments = [dtype_fragment(dtype), fragment!("common/narrow.wgsl")];
    Source::compose("common.narrow", target, &header, &fragments, NARROW_BINDINGS)
}

/// The kernel of an op of one kernel and, where its output is not written by whole words,
/// `common.narrow`, in the order of their dispatches.
pub(crate) fn with_narrow(
    source: Source,
    alignment: Alignment,
    dtype: DType,
    target: Target,
) -> Vec<Source> {
    let narrow = narrows(alignment, dtype).then(|| narrow_source(dtype, target));
    std::iter::once(source).chain(narrow).collect()
}

/// The kernel that gives a contiguous tensor as f32.
pub(crate) fn widen_source(dtype: DType, target: Target) -> Source {
    let header = Header::default().size("THREADS", NARROW_THREADS);
    let fragments = [dtype_fragment(dtype), fragment!("common/widen.wgsl")];
    Source::compose("common.widen", target, &header, &fragments, NARROW_BINDINGS)
}

/// The dispatch of `common.widen`, from the first `count` elements of a buffer to those of another.
pub(crate) fn widen_step(
    context: &Context,
    pipeline: &wgpu::ComputePipeline,
    count: u32,
    (narrow, wide): (&wgpu::Buffer, &wgpu::Buffer),
) -> Result<Step, Error> {
    let params = WidenParams { count, padding_0: 0, padding_1: 0, padding_2: 0 };
    let uniform = uniform(context, bytemuck::bytes_of(&params));
    let resources = [
        uniform.as_entire_buffer_binding(),
        narrow.as_entire_buffer_binding(),
        wide.as_entire_buffer_binding(),
    ];
    Ok(Step {
        pipeline: pipeline.clone(),
        group: bind_group(context, pipeline, "common.widen", &resources),
        workgroups: grid(context, u64::from(count).div_ceil(u64::from(NARROW_THREADS)))?,
        cost: moving(6 * u64::from(count)),
    })
}

/// The dispatch of `common.narrow` from a contiguous f32 view to a 16-bit one.
pub(crate) fn narrow_step(
    context: &Context,
    pipeline: &wgpu::ComputePipeline,
    wide: &View<'_>,
    out: &View<'_>,
) -> Result<Step, Error> {
    let [_, _, _, offset] = out.reach(u64::from(context.caps().storage_alignment));
    let mut axes: Vec<usize> = (0..4).collect();
    axes.sort_by_key(|&axis| std::cmp::Reverse(out.strides[axis]));
    let sorted = |strides: [u64; 4]| std::array::from_fn(|i| strides[axes[i]] as u32);
    let end = u64::from(offset) + out.span().unwrap_or(0);
    let workgroups = end.div_ceil(2).div_ceil(u64::from(NARROW_THREADS));
    let params = NarrowParams {
        sizes: std::array::from_fn(|i| out.shape[axes[i]]),
        strides: sorted(out.strides),
        source: sorted(wide.strides),
        offset,
        end: end as u32,
        workgroups: workgroups as u32,
        padding: 0,
    };
    let uniform = uniform(context, bytemuck::bytes_of(&params));
    let resources = [
        uniform.as_entire_buffer_binding(),
        binding(context, Some(*wide), &context.absent().input),
        binding(context, Some(*out), &context.absent().outputs[0]),
    ];
    Ok(Step {
        pipeline: pipeline.clone(),
        group: bind_group(context, pipeline, "common.narrow", &resources),
        workgroups: grid(context, workgroups)?,
        cost: moving(6 * end),
    })
}

/// A dispatch of at least `workgroups`, in two dimensions where one is too short.
pub(crate) fn grid(context: &Context, workgroups: u64) -> Result<(u32, u32), Error> {
    let allowed = u64::from(context.caps().workgroups_per_dimension);
    let x = workgroups.min(allowed).max(1);
    let y = workgroups.div_ceil(x);
    if y > allowed || workgroups > u64::from(u32::MAX) {
        return Err(Error::Limit {
            what: "a dispatch in two dimensions".into(),
            limit: "maxComputeWorkgroupsPerDimension",
            needed: y,
            allowed,
        });
    }
    Ok((x as u32, y as u32))
}

/// Some batch entries and some heads of a call.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub batch: Range<u32>,
    pub heads: Range<u32>,
}

impl Piece {
    /// The piece's part of a view.
    pub fn of<'a>(&self, view: View<'a>) -> View<'a> {
        view.part(self.batch.clone(), self.heads.clone())
    }

    /// Cuts in halves, by batch entries and then by heads, until every tensor of every part can be
    /// bound; `sizes` names the bytes that a piece binds of each.
    pub fn split(
        self,
        context: &Context,
        sizes: &dyn Fn(&Self) -> Vec<(&'static str, u64)>,
    ) -> Result<Vec<Self>, Error> {
        let allowed = context.caps().storage_binding;
        let Some((name, needed)) = sizes(&self).into_iter().find(|&(_, size)| size > allowed)
        else {
            return Ok(vec![self]);
        };
        let halves = |range: &Range<u32>| {
            let middle = range.start + range.len() as u32 / 2;
            (range.start..middle, middle..range.end)
        };
        let (first, second) = if self.batch.len() > 1 {
            let (a, b) = halves(&self.batch);
            (Self { batch: a, ..self.clone() }, Self { batch: b, ..self })
        } else if self.heads.len() > 1 {
            let (a, b) = halves(&self.heads);
            (Self { heads: a, ..self.clone() }, Self { heads: b, ..self })
        } else {
            return Err(Error::Limit {
                what: format!("tensor `{name}`, bytes of one head of one batch entry"),
                limit: "maxStorageBufferBindingSize",
                needed,
                allowed,
            });
        };
        let mut pieces = first.split(context, sizes)?;
        pieces.extend(second.split(context, sizes)?);
        Ok(pieces)
    }
}

/// The bytes that a binding of the view covers.
pub(crate) fn bound_bytes(context: &Context, view: &View<'_>) -> u64 {
    let bytes = view.bytes(u64::from(context.caps().storage_alignment));
    bytes.end - bytes.start
}

/// A view that must be there exactly when the configuration asks for it.
pub(crate) fn expected<'a>(
    name: &str,
    view: Option<View<'a>>,
    wanted: Option<([u32; 4], DType)>,
) -> Result<Option<View<'a>>, Error> {
    match (view, wanted) {
        (Some(view), Some((shape, dtype))) => {
            view.check(name, shape, Some(dtype)).map(|()| Some(view))
        }
        (None, Some((shape, dtype))) => {
            Err(Error::tensor(name, format!("a view of {dtype} {shape:?}"), "none"))
        }
        (Some(_), None) => {
            Err(Error::tensor(name, "none: the configuration does not use it", "a view"))
        }
        (None, None) => Ok(None),
    }
}

/// A tensor's name and, where there is one, its view.
pub(crate) type Named<'a> = (&'static str, Option<View<'a>>);

/// No output shares a buffer with anything, but for two outputs whose bindings keep apart.
pub(crate) fn check_buffers(read: &[Named<'_>], written: &[Named<'_>]) -> Result<(), Error> {
    let present = |named: &[Named<'_>]| -> Vec<(&'static str, wgpu::Buffer, Range<u64>)> {
        let with_bytes = |(name, view): &Named<'_>| {
            // The strictest offset alignment there is, so that the answer suits every device.
            view.map(|view| (*name, view.buffer.clone(), view.bytes(256)))
        };
        named.iter().filter_map(with_bytes).collect()
    };
    let written = present(written);
    for (index, (output, buffer, bytes)) in written.iter().enumerate() {
        for (other, other_buffer, _) in present(read) {
            if *buffer == other_buffer {
                let (output, other) = (output.to_string(), other.to_string());
                return Err(Error::SharedBuffer { output, other });
            }
        }
        for (other, other_buffer, other_bytes) in &written[..index] {
            if buffer == other_buffer
                && bytes.start < other_bytes.end
                && other_bytes.start < bytes.end
            {
                return Err(Error::tensor(
                    *output,
                    format!("a range at least 256 bytes apart from that of `{other}`"),
                    format!("bytes {bytes:?} of one buffer, where `{other}` has {other_bytes:?}"),
                ));
            }
        }
    }
    Ok(())
}

/// Words so far, and the arrays that are to be copied in by the device.
pub(crate) struct Packer<'a> {
    words: Vec<u32>,
    devices: Vec<(&'a wgpu::Buffer, u64, u64, u64)>,
    /// Bytes so far, and of a binding.
    size: u64,
    allowed: u64,
}

impl<'a> Packer<'a> {
    pub fn new(context: &Context) -> Self {
        let allowed = context.caps().storage_binding;
        Self { words: Vec::new(), devices: Vec::new(), size: 0, allowed }
    }

    /// Adds an array and says where it starts. One that is too large is left to `finish` to refuse,
    /// before any memory is asked for.
    pub fn push(&mut self, array: Option<Array<'a>>) -> Option<u32> {
        let array = array?;
        let at = self.words.len();
        self.size = self.size.saturating_add((array.len() as u64).saturating_mul(4));
        if self.size > self.allowed {
            return None;
        }
        match array {
            Array::Host(values) => self.words.extend_from_slice(values),
            Array::Device { buffer, offset, len } => {
                self.devices.push((buffer, 4 * offset, 4 * at as u64, 4 * len as u64));
                self.words.resize(at + len, 0);
            }
            Array::Reserved { len } => self.words.resize(at + len, 0),
        }
        Some(at as u32)
    }

    pub fn finish(
        mut self,
        context: &Context,
        label: &str,
        copies: &mut Vec<Copy>,
    ) -> Result<wgpu::Buffer, Error> {
        if self.size > self.allowed {
            return Err(Error::Limit {
                what: format!("the {label} buffer of side arrays, in bytes"),
                limit: "maxStorageBufferBindingSize",
                needed: self.size,
                allowed: self.allowed,
            });
        }
        self.words.resize(self.words.len().max(4), 0);
        let size = 4 * self.words.len() as u64;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let words = bytemuck::cast_slice(&self.words);
        let target = buffer(context, label, size, usage, Some(words));
        copies.extend(self.devices.into_iter().map(
            |(source, source_offset, target_offset, size)| Copy {
                source: source.clone(),
                source_offset,
                target: target.clone(),
                target_offset,
                size,
            },
        ));
        Ok(target)
    }
}

/// A buffer of the workspace, filled with `contents` if there are any.
pub(crate) fn buffer(
    context: &Context,
    label: &str,
    size: u64,
    usage: wgpu::BufferUsages,
    contents: Option<&[u8]>,
) -> wgpu::Buffer {
    let buffer = context.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some(label),
        size,
        usage,
        mapped_at_creation: contents.is_some(),
    });
    if let Some(contents) = contents {
        // Creation may have failed for want of memory; the error scope around `bind` tells.
        if let Ok(mut mapped) = buffer.slice(..).get_mapped_range_mut() {
            mapped.copy_from_slice(contents);
        }
        buffer.unmap();
    }
    buffer
}

pub(crate) fn uniform(context: &Context, contents: &[u8]) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::UNIFORM;
    buffer(context, "params", contents.len() as u64, usage, Some(contents))
}

/// The binding of a view, or of `absent` where there is none or nothing in it.
pub(crate) fn binding<'b>(
    context: &Context,
    view: Option<View<'b>>,
    absent: &'b wgpu::Buffer,
) -> wgpu::BufferBinding<'b> {
    match view.filter(|view| view.span() != Some(0)) {
        Some(view) => {
            let bytes = view.bytes(u64::from(context.caps().storage_alignment));
            wgpu::BufferBinding {
                buffer: view.buffer,
                offset: bytes.start,
                size: wgpu::BufferSize::new(bytes.end - bytes.start),
            }
        }
        None => absent.as_entire_buffer_binding(),
    }
}

pub(crate) fn bind_group(
    context: &Context,
    pipeline: &wgpu::ComputePipeline,
    label: &str,
    resources: &[wgpu::BufferBinding<'_>],
) -> wgpu::BindGroup {
    bind_group_of(context, &pipeline.get_bind_group_layout(0), label, resources)
}

pub(crate) fn bind_group_of(
    context: &Context,
    layout: &wgpu::BindGroupLayout,
    label: &str,
    resources: &[wgpu::BufferBinding<'_>],
) -> wgpu::BindGroup {
    let entries: Vec<_> = resources
        .iter()
        .enumerate()
        .map(|(number, resource)| wgpu::BindGroupEntry {
            binding: number as u32,
            resource: wgpu::BindingResource::Buffer(resource.clone()),
        })
        .collect();
    context.device().create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(label),
        layout,
        entries: &entries,
    })
}
