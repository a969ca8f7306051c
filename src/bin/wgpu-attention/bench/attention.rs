//! The attention kernels' part of the benchmark.

use anyhow::Result;
use pollster::block_on;
use serde_json::json;
use wgpu_attention::attention::reference::{HostInputs, Reference};
use wgpu_attention::{
    Activation, Attention, Caps, Context, DType, Inputs, Mask, Outputs, Shape, Variant,
};

use super::{Args, Case, Entry};
use crate::device::DeviceTensor;
use crate::problem::{self, ActivationName};

/// Rows whose result is checked.
const CHECKED_ROWS: usize = 32;

/// Every case of the sweep.
pub fn entries(args: &Args, caps: &Caps) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for &dtype in &args.dtype {
        for &head_dim in &args.head_dim {
            for len in lengths(args, caps) {
                let shape = Shape::new(args.batch, args.heads, len, head_dim)
                    .with_key_value_heads(args.kv_heads.unwrap_or(args.heads));
                let mut attention = Attention::new(shape, dtype);
                if args.causal {
                    attention.mask = Mask::causal();
                }
                if args.activation == ActivationName::Sigmoid {
                    attention.activation = Activation::Sigmoid { bias: None };
                }
                attention.validate()?;
                let variants = variants(&args.variant, caps, &attention)?;
                entries.extend(variants.into_iter().map(|variant| entry(&attention, variant)));
            }
        }
    }
    Ok(entries)
}

pub(super) fn lengths(args: &Args, caps: &Caps) -> Vec<u32> {
    let mut lengths = match (&args.lengths[..], caps.is_cpu) {
        ([], true) => vec![128, 256, 512],
        ([], false) => vec![1024, 2048, 4096, 8192],
        (given, _) => given.to_vec(),
    };
    if args.quick {
        lengths.sort_unstable();
        lengths.truncate(1);
    }
    lengths
}

/// The variants that were asked for; an error for a single one that cannot run the configuration.
fn variants(asked: &[String], caps: &Caps, attention: &Attention) -> Result<Vec<Variant>> {
    let able = || Variant::ALL.into_iter().filter(|v| v.supports(caps, attention).is_ok());
    if asked.is_empty() {
        return Ok(able().take(1).collect());
    }
    let mut variants = Vec::new();
    for asked in asked {
        if asked == "all" {
            variants.extend(able());
        } else {
            let variant: Variant = problem::variant(asked)?;
            variant.supports(caps, attention).map_err(wgpu_attention::Error::from)?;
            variants.push(variant);
        }
    }
    Ok(variants)
}

fn entry(attention: &Attention, variant: Variant) -> Entry {
    let Shape { batch, query_heads, key_heads, query_len, head_dim, .. } = attention.shape;
    let activation = match attention.activation {
        Activation::Sigmoid { .. } => "sigmoid",
        _ => "softmax",
    };
    let causal = attention.mask == Mask::causal();
    let label = format!(
        "attention/{variant}/{}/{activation}{}/b{batch}h{query_heads}{}n{query_len}d{head_dim}",
        attention.dtype,
        if causal { "/causal" } else { "" },
        if key_heads == query_heads { String::new() } else { format!("kv{key_heads}") },
    );
    let shape = json!({
        "batch": batch, "heads": query_heads, "kv_heads": key_heads, "len": query_len,
        "head_dim": head_dim, "dtype": attention.dtype.name(), "activation": activation,
        "causal": causal,
    });
    let attention = attention.clone();
    let prepare = Box::new(move |context: &Context| prepare(context, &attention, variant));
    Entry { label, variant: variant.name(), shape, prepare }
}

/// Makes the tensors on host and device, and the plan.
fn prepare(context: &Context, attention: &Attention, variant: Variant) -> Result<Case> {
    let (shape, dtype) = (&attention.shape, attention.dtype);
    let plan = block_on(attention.plan_with(context, variant))?;
    let [(query, host_query), (key, host_key), (value, host_value)] = [
        random_tensor(context, "q", dtype, shape.query())?,
        random_tensor(context, "k", dtype, shape.key())?,
        random_tensor(context, "v", dtype, shape.value())?,
    ];
    let out = DeviceTensor::new(context, "out", dtype, shape.out())?;
    let inputs = Inputs::new(query.view(), key.view(), value.view());
    let bound = plan.bind(&inputs, &Outputs::new(out.view()))?;
    let checked = attention.clone();
    let check = Box::new(move |context: &Context| {
        let inputs = HostInputs::new(&host_query, &host_key, &host_value);
        let reference = Reference::new(&checked, &inputs)?;
        let rows = reference.sample(CHECKED_ROWS);
        Ok(reference.check_out(&rows, &out.read(context)?, None).0)
    });
    let tensors = [shape.query(), shape.key(), shape.value(), shape.out()];
    let bytes = tensors.map(|shape| elements(shape) * dtype.size() as f64).iter().sum();
    Ok(Case { flops: flops(attention), bytes, bound, check })
}

/// Elements of a tensor.
pub(super) fn elements(shape: [u32; 4]) -> f64 {
    shape.into_iter().map(f64::from).product()
}

/// Two matrix products over the pairs that count, a multiply and an add each.
fn flops(attention: &Attention) -> f64 {
    let shape = &attention.shape;
    let (queries, keys) = (f64::from(shape.query_len), f64::from(shape.key_len));
    // As many keys as queries: query i sees i + 1 of them.
    let causal = attention.mask == Mask::causal();
    let pairs = if causal { queries * (queries + 1.0) / 2.0 } else { queries * keys };
    let products = f64::from(shape.head_dim) + f64::from(shape.value_dim);
    2.0 * f64::from(shape.batch) * f64::from(shape.query_heads) * products * pairs
}

/// A tensor of numbers like those of a normal distribution, on the device and on the host.
pub(super) fn random_tensor(
    context: &Context,
    name: &str,
    dtype: DType,
    shape: [u32; 4],
) -> Result<(DeviceTensor, Vec<f32>)> {
    let tensor = DeviceTensor::new(context, name, dtype, shape)?;
    let elements: u64 = shape.into_iter().map(u64::from).product();
    let seed = name.bytes().fold(0, |seed, byte| seed * 31 + u64::from(byte));
    let numbers: Vec<f32> = (0..elements).map(|index| random_number(seed << 40 ^ index)).collect();
    Ok((tensor.write(context, &dtype.encode(&numbers)), numbers))
}

/// A multiple of 1/32 between −4 and 4, exact in every dtype, from the hash of an index.
fn random_number(index: u64) -> f32 {
    // The finaliser of SplitMix64.
    let mut hash = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    // The sum of four even distributions is close to a normal one.
    let sum: u64 = [0, 6, 12, 18].iter().map(|shift| hash >> shift & 63).sum();
    (sum as f32 - 126.0) / 32.0
}
