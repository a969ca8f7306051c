//! Merge's part of the benchmark.

use anyhow::Result;
use pollster::block_on;
use wgpu_attention::attention::tolerance::compare;
use wgpu_attention::merge::reference::{self, HostParts};
use wgpu_attention::{Context, DType, Merge, MergeInputs, MergeOutputs};

use super::attention::{elements, random_tensor};
use super::record::Row;
use super::sweep::{self, Family, Point};
use super::{Case, Entry};
use crate::device::DeviceTensor;

/// The case at one point of the sweep: so many results of its size into one, with its LSE.
pub fn entries(options: &sweep::Options, point: &Point) -> Result<Vec<Entry>> {
    let shape = point.shape;
    let merge = Merge::new(options.parts, shape.out(), point.dtype).with_lse();
    merge.validate()?;
    let ([batch, heads, len, dim], parts) = (merge.shape, merge.parts);
    let row = Row {
        label: format!("merge/{}/p{parts}/b{batch}h{heads}n{len}d{dim}", merge.dtype),
        family: Family::Merge.name().into(),
        variant: "merge".into(),
        detail: format!("p{parts}"),
        ..Row::at(&shape, merge.dtype)
    };
    let prepare = Box::new(move |context: &Context| prepare(context, merge));
    Ok(vec![Entry { row, prepare }])
}

fn prepare(context: &Context, merge: Merge) -> Result<Case> {
    let [batch, heads, len, dim] = merge.shape;
    let plan = block_on(merge.plan(context))?;
    let (parts, host_parts) = random_tensor(context, "parts", merge.dtype, merge.stacked(dim))?;
    let (lses, host_lses) = random_tensor(context, "lses", DType::F32, merge.stacked(1))?;
    let out = DeviceTensor::new(context, "out", merge.dtype, merge.shape)?;
    let lse_shape = [batch, heads, len, 1];
    let lse = DeviceTensor::new(context, "lse", DType::F32, lse_shape)?;
    let inputs = MergeInputs::new(parts.view()).with_lse(lses.view());
    let bound = plan.bind(&inputs, &MergeOutputs::new(out.view()).with_lse(lse.view()))?;
    let size = merge.dtype.size() as f64;
    let bytes = size * (elements(merge.stacked(dim)) + elements(merge.shape))
        + 4.0 * (elements(merge.stacked(1)) + elements(lse_shape));
    let flops = 2.0 * elements(merge.stacked(dim));
    let check = Box::new(move |context: &Context| {
        let mut host = HostParts::default();
        (host.out, host.lse) = (&host_parts, &host_lses);
        let reference = reference::merge(&merge, &host)?;
        let eager = reference::merge_eager(&merge, &host, merge.dtype)?;
        // Numbers of up to 4, whose weights add up to 1.
        Ok(compare(&out.read(context)?, &reference.out, &eager.out, merge.dtype, 4.0))
    });
    Ok(Case { flops, bytes, density: None, bound, check })
}
