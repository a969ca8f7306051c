//! Merge's part of the benchmark.

use anyhow::Result;
use pollster::block_on;
use serde_json::json;
use wgpu_attention::attention::tolerance::compare;
use wgpu_attention::merge::reference::{self, HostParts};
use wgpu_attention::{Caps, Context, DType, Merge, MergeInputs, MergeOutputs};

use super::attention::{elements, lengths, random_tensor};
use super::{Args, Case, Entry};
use crate::device::DeviceTensor;

/// Every case of the sweep: `parts` results of each size into one, with its LSE.
pub fn entries(args: &Args, caps: &Caps, parts: u32) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for &dtype in &args.dtype {
        for &dim in &args.head_dim {
            for len in lengths(args, caps) {
                let shape = [args.batch, args.heads, len, dim];
                let merge = Merge::new(parts, shape, dtype).with_lse();
                merge.validate()?;
                entries.push(entry(merge));
            }
        }
    }
    Ok(entries)
}

fn entry(merge: Merge) -> Entry {
    let ([batch, heads, len, dim], parts) = (merge.shape, merge.parts);
    let label = format!("merge/{}/p{parts}/b{batch}h{heads}n{len}d{dim}", merge.dtype);
    let shape = json!({
        "batch": batch, "heads": heads, "len": len, "head_dim": dim, "parts": parts,
        "dtype": merge.dtype.name(),
    });
    let prepare = Box::new(move |context: &Context| prepare(context, merge));
    Entry { label, variant: "merge", shape, prepare }
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
    Ok(Case { flops, bytes, bound, check })
}
