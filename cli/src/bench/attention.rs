//! The attention kernels' part of the benchmark.

use anyhow::Result;
use pollster::block_on;
use wgpu_attention::attention::reference::{HostInputs, Reference};
use wgpu_attention::{
    Activation, Arrays, Attention, Caps, Context, DType, Error, Inputs, KeyList, Keys, Mask,
    Outputs, Pattern, Plan, Shape, Variant,
};

use super::record::Row;
use super::sweep::{Family, Point, Sweep};
use super::{Case, Entry};
use crate::device::DeviceTensor;
use crate::{bad_input, problem};

/// Rows whose result is checked.
const CHECKED_ROWS: usize = 32;

/// As many as there are candidates: at least one is tried each time, or nothing ever.
const TUNING_CALLS: usize = 15;

/// Every case of a family at one point of the sweep.
pub fn entries(
    sweep: &Sweep<'_>,
    caps: &Caps,
    family: Family,
    point: &Point,
) -> Result<Vec<Entry>> {
    let mut attention = Attention::new(point.shape, point.dtype);
    if point.causal {
        attention.mask = Mask::causal();
    }
    if family == Family::Sigmoid {
        attention.activation = Activation::Sigmoid { bias: None };
    }
    attention.validate()?;
    let jobs = match family {
        Family::Sparse => jobs(sweep, &attention),
        _ => vec![Job::Dense],
    };
    let mut entries = Vec::new();
    let variants = variants(&sweep.options.variant, caps, &attention)?;
    for &variant in &variants {
        entries.extend(jobs.iter().map(|&job| entry(&attention, variant, family, job)));
    }
    if let (Some(&variant), true) =
        (variants.first(), sweep.options.tune && family != Family::Sparse)
    {
        entries.push(entry(&attention, variant, family, Job::Tuned));
    }
    Ok(entries)
}

fn variants(asked: &[String], caps: &Caps, attention: &Attention) -> Result<Vec<Variant>> {
    let able = |v: &Variant| v.supports(caps, attention).is_ok();
    let able: Vec<_> = Variant::ALL.into_iter().filter(able).collect();
    let usual = || able.first().copied().ok_or_else(|| bad_input("no kernel can run this"));
    super::sweep::variants(asked, usual, &able, |name| {
        let variant: Variant = problem::variant(name)?;
        variant.supports(caps, attention).map_err(Error::from)?;
        Ok(variant)
    })
}

/// How keys are visited in one case.
#[derive(Clone, Copy)]
enum Job {
    /// All of them, with the kernel's own tiles.
    Dense,
    /// All of them, with the fastest kernel and tiles.
    Tuned,
    /// All of them, with the tiles of a list.
    DenseTiled(Keys),
    /// Those of a random list.
    Random(Keys, f64),
    /// Those that a list says which says the mask.
    Masked(Keys),
}

/// Dense attention with the tiles of lists, and then the lists.
fn jobs(sweep: &Sweep<'_>, attention: &Attention) -> Vec<Job> {
    let keys = sweep.options.keys.keys(sweep.options.block, attention);
    let lists = match attention.mask == Mask::causal() {
        true => vec![Job::Masked(keys)],
        false => sweep.densities.iter().map(|&density| Job::Random(keys, density)).collect(),
    };
    std::iter::once(Job::DenseTiled(keys)).chain(lists).collect()
}

impl Job {
    /// What it adds to the label of a case.
    fn label(&self) -> String {
        match self {
            Self::Dense | Self::Tuned => String::new(),
            Self::DenseTiled(_) => "/dense".into(),
            Self::Random(keys, density) => format!("/{}/density{density}", name(keys)),
            Self::Masked(keys) => format!("/{}/as-mask", name(keys)),
        }
    }

    /// The list of keys, where there is one.
    fn list(&self, attention: &Attention) -> Result<Option<KeyList>, Error> {
        let shape = &attention.shape;
        let arrays = Arrays::default();
        match *self {
            Self::Dense | Self::Tuned | Self::DenseTiled(_) => Ok(None),
            Self::Random(Keys::Blocks { block_q, block_k, .. }, density) => {
                let source =
                    Pattern::random(density, 1).source(attention, &arrays, (block_q, block_k))?;
                Ok(Some(source.list))
            }
            Self::Random(keys, density) => {
                let share = (density * f64::from(u32::MAX)) as u64;
                let chosen = |head: u64, key: u32| {
                    hash(head << 32 | u64::from(key)) & u64::from(u32::MAX) < share
                };
                let columns = |row: u64| (0..shape.key_len).filter(move |&key| chosen(row, key));
                let rows: Vec<_> =
                    (0..keys.rows(shape)).map(|row| columns(row).collect()).collect();
                Ok(Some(KeyList::from_rows(keys, shape, &rows)?))
            }
            Self::Masked(keys) => {
                let block = (keys.block_q().unwrap_or(64), keys.block_k().max(16));
                Ok(Some(KeyList::from_mask(attention, &arrays, block)?))
            }
        }
    }
}

fn name(keys: &Keys) -> String {
    match *keys {
        Keys::Blocks { block_q, block_k, .. } => format!("blocks{block_q}x{block_k}"),
        _ => "indices".into(),
    }
}

fn entry(attention: &Attention, variant: Variant, family: Family, job: Job) -> Entry {
    let Shape { batch, query_heads, key_heads, query_len, head_dim, .. } = attention.shape;
    let activation = match attention.activation {
        Activation::Sigmoid { .. } => "sigmoid",
        _ => "softmax",
    };
    let causal = attention.mask == Mask::causal();
    let kernel = if let Job::Tuned = job { "tuned" } else { variant.name() };
    let label = format!(
        "attention/{kernel}/{}/{activation}{}/b{batch}h{query_heads}{}n{query_len}d{head_dim}{}",
        attention.dtype,
        if causal { "/causal" } else { "" },
        if key_heads == query_heads { String::new() } else { format!("kv{key_heads}") },
        job.label(),
    );
    let row = Row {
        label,
        family: family.name().into(),
        variant: variant.name().into(),
        detail: match job {
            Job::Tuned => kernel.into(),
            _ => job.label().trim_start_matches('/').into(),
        },
        density: match job {
            Job::DenseTiled(_) => Some(1.0),
            // A random list has about the share that was asked for; the case knows.
            Job::Dense | Job::Tuned | Job::Random(..) | Job::Masked(_) => None,
        },
        causal,
        ..Row::at(&attention.shape, attention.dtype)
    };
    let attention = attention.clone();
    let prepare = Box::new(move |context: &Context| prepare(context, &attention, variant, job));
    Entry { row, prepare }
}

/// Makes the tensors on host and device, and the plan.
fn prepare(context: &Context, attention: &Attention, variant: Variant, job: Job) -> Result<Case> {
    let list = job.list(attention)?;
    let mut attention = attention.clone();
    if let Some(list) = &list {
        attention.keys = list.keys;
    }
    let (shape, dtype) = (attention.shape, attention.dtype);
    let plan = plan(context, &attention, variant, job)?;
    let [(query, host_query), (key, host_key), (value, host_value)] = [
        random_tensor(context, "q", dtype, shape.query())?,
        random_tensor(context, "k", dtype, shape.key())?,
        random_tensor(context, "v", dtype, shape.value())?,
    ];
    let out = DeviceTensor::new(context, "out", dtype, shape.out())?;
    let listed = list.as_ref().map_or_else(Arrays::default, |list| list.arrays(Arrays::default()));
    let inputs = Inputs::new(query.view(), key.view(), value.view()).with_arrays(listed);
    let bound = plan.bind(&inputs, &Outputs::new(out.view()))?;
    let flops = flops(&attention, list.as_ref(), job);
    let density = list.as_ref().map(|list| list.density(&attention.shape));
    let check = Box::new(move |context: &Context| {
        let listed = list.as_ref().map_or_else(Arrays::default, |l| l.arrays(Arrays::default()));
        let inputs = HostInputs::new(&host_query, &host_key, &host_value).with_arrays(listed);
        let reference = Reference::new(&attention, &inputs)?;
        let rows = reference.sample(CHECKED_ROWS);
        Ok(reference.check_out(&rows, &out.read(context)?, None).0)
    });
    let tensors = [shape.query(), shape.key(), shape.value(), shape.out()];
    let bytes = tensors.map(|shape| elements(shape) * dtype.size() as f64).iter().sum();
    Ok(Case { flops, bytes, density, bound, check })
}

/// The plan of a case; dense attention beside lists gets their tiles.
fn plan(context: &Context, attention: &Attention, variant: Variant, job: Job) -> Result<Plan> {
    if let Job::Tuned = job {
        // A call tries what there is time for.
        for _ in 1..TUNING_CALLS {
            block_on(attention.plan_tuned(context))?;
        }
        return Ok(block_on(attention.plan_tuned(context))?);
    }
    if let Job::DenseTiled(keys) = job {
        let listed = attention.clone().with_keys(keys);
        if let Some(tiles) = variant.tiles(context.caps(), &listed).map_err(Error::from)? {
            return Ok(block_on(attention.plan_tiles(context, variant, tiles))?);
        }
    }
    Ok(block_on(attention.plan_with(context, variant))?)
}

/// Elements of a tensor.
pub(super) fn elements(shape: [u32; 4]) -> f64 {
    shape.into_iter().map(f64::from).product()
}

/// Two matrix products over the pairs that count, a multiply and an add each.
fn flops(attention: &Attention, list: Option<&KeyList>, job: Job) -> f64 {
    let shape = &attention.shape;
    let (queries, keys) = (f64::from(shape.query_len), f64::from(shape.key_len));
    // As many keys as queries: query i sees i + 1 of them.
    let causal = attention.mask == Mask::causal();
    let pairs = match (list, job) {
        (Some(list), Job::Random(..)) => queries * keys * list.density(shape),
        _ if causal => queries * (queries + 1.0) / 2.0,
        _ => queries * keys,
    };
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
    let numbers: Vec<f32> = random_numbers(name, elements).collect();
    Ok((tensor.write(context, &dtype.encode(&numbers)), numbers))
}

/// Numbers for the tensor of a name, see [`random_number`].
pub(super) fn random_numbers(name: &str, count: u64) -> impl Iterator<Item = f32> + use<> {
    let seed = name.bytes().fold(0, |seed, byte| seed * 31 + u64::from(byte));
    (0..count).map(move |index| random_number(seed << 40 ^ index))
}

/// The finaliser of SplitMix64.
fn hash(index: u64) -> u64 {
    let mut hash = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ hash >> 31
}

/// A multiple of 1/32 between −4 and 4, exact in every dtype, from the hash of an index.
fn random_number(index: u64) -> f32 {
    let hash = hash(index);
    // The sum of four even distributions is close to a normal one.
    let sum: u64 = [0, 6, 12, 18].iter().map(|shift| hash >> shift & 63).sum();
    (sum as f32 - 126.0) / 32.0
}
