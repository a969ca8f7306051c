//! Which cases are timed: families × dtypes × head dims × causal × lengths.

use anyhow::Result;
use clap::ValueEnum;
use wgpu_attention::{Caps, DType, Shape};

use super::{Entry, attention, linear, merge};
use crate::keys::{ListKind, parse_block, parse_density};

/// What can be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Family {
    /// Dense attention with softmax.
    Flash,
    /// Dense attention with sigmoid weights.
    Sigmoid,
    /// Lists of keys, beside dense attention with the same tiles.
    Sparse,
    /// Linear attention.
    Linear,
    /// The merge of partial results of attention.
    Merge,
}

impl Family {
    pub const ALL: [Self; 5] =
        [Self::Flash, Self::Sigmoid, Self::Sparse, Self::Linear, Self::Merge];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Flash => "flash",
            Self::Sigmoid => "sigmoid",
            Self::Sparse => "sparse",
            Self::Linear => "linear",
            Self::Merge => "merge",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Causal {
    No,
    Yes,
}

/// The options that make a sweep.
#[derive(clap::Args)]
#[group(id = "sweep")]
pub struct Options {
    /// What is timed [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    family: Vec<Family>,
    /// Element types [default: f32,f16, or with --quick on a CPU f32]
    #[arg(long, value_delimiter = ',', value_parser = parse_dtype)]
    dtype: Vec<DType>,
    /// Dimensions of queries, keys and values
    #[arg(long, value_name = "DIM", value_delimiter = ',', default_value = "64")]
    head_dim: Vec<u32>,
    /// Query heads [default: 16, or with --quick on a CPU 4]
    #[arg(long, value_name = "COUNT")]
    heads: Option<u32>,
    /// Heads of keys and values [default: as many as query heads]
    #[arg(long, value_name = "COUNT")]
    kv_heads: Option<u32>,
    /// Sequences
    #[arg(long, value_name = "COUNT", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Numbers of queries and keys [default: 1024,2048,4096,8192,16384, with --quick 512,2048; on a
    /// CPU 128,256,512, with --quick 128,256; lists of keys at the longest alone]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    lengths: Vec<u32>,
    /// Masks causally, or times both with `no,yes`; linear attention always is causal
    #[arg(long, value_enum, value_delimiter = ',', num_args = 0..=1, require_equals = true,
          default_value = "no", default_missing_value = "yes")]
    causal: Vec<Causal>,
    /// Lists of random blocks, or of random columns of single keys that all queries share; where the
    /// mask is causal, the list that says causal
    #[arg(long, value_enum, default_value_t = ListKind::Blocks)]
    pub keys: ListKind,
    /// Queries and keys of a block of the list, as one number or two
    #[arg(long, value_name = "N|Q,K", default_value = "64", value_parser = parse_block)]
    pub block: (u32, u32),
    /// Shares of the keys that the lists visit [default: 0.05,0.1,0.2,0.5, with --quick 0.1,0.5]
    #[arg(long, value_delimiter = ',', value_parser = parse_density)]
    density: Vec<f64>,
    /// Partial results that are merged
    #[arg(long, value_name = "COUNT", default_value_t = 4,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub parts: u32,
    /// Kernels to time, or `all` that can [default: the one that `run` takes]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub variant: Vec<String>,
    /// Times dense attention with tuned kernels and tiles too, which takes half a minute a case at
    /// most, the first time
    #[arg(long)]
    pub tune: bool,
    #[command(flatten)]
    pub linear: linear::Options,
}

/// One shape of the sweep.
#[derive(Clone, Copy)]
pub struct Point {
    pub shape: Shape,
    pub dtype: DType,
    pub causal: bool,
}

/// The options with what they leave open decided for a device.
pub struct Sweep<'a> {
    pub options: &'a Options,
    pub densities: Vec<f64>,
    families: Vec<Family>,
    dtypes: Vec<DType>,
    heads: u32,
    lengths: Vec<u32>,
}

impl<'a> Sweep<'a> {
    pub fn new(options: &'a Options, caps: &Caps, quick: bool) -> Self {
        let small = quick && caps.is_cpu;
        let lengths: &[u32] = match (caps.is_cpu, quick) {
            (true, true) => &[128, 256],
            (true, false) => &[128, 256, 512],
            (false, true) => &[512, 2048],
            (false, false) => &[1024, 2048, 4096, 8192, 16384],
        };
        let dtypes: &[DType] = if small { &[DType::F32] } else { &[DType::F32, DType::F16] };
        let densities: &[f64] = if quick { &[0.1, 0.5] } else { &[0.05, 0.1, 0.2, 0.5] };
        Self {
            options,
            families: given(&options.family, &Family::ALL),
            dtypes: given(&options.dtype, dtypes),
            heads: options.heads.unwrap_or(if small { 4 } else { 16 }),
            lengths: given(&options.lengths, lengths),
            densities: given(&options.density, densities),
        }
    }

    /// Every case, not made yet.
    ///
    /// # Errors
    /// A configuration that is none, and a kernel that was asked for and cannot run one.
    pub fn entries(&self, caps: &Caps) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for &family in &self.families {
            for point in self.points(family) {
                entries.extend(match family {
                    Family::Flash | Family::Sigmoid | Family::Sparse => {
                        attention::entries(self, caps, family, &point)?
                    }
                    Family::Linear => linear::entries(self.options, caps, &point)?,
                    Family::Merge => merge::entries(self.options, &point)?,
                });
            }
        }
        Ok(entries)
    }

    fn points(&self, family: Family) -> Vec<Point> {
        let Options { batch, kv_heads, head_dim, causal, .. } = self.options;
        // A list costs what its share of the keys costs: one length tells.
        let longest_alone = family == Family::Sparse && self.options.lengths.is_empty();
        let lengths = &self.lengths[if longest_alone { self.lengths.len() - 1 } else { 0 }..];
        let masked = !matches!(family, Family::Linear | Family::Merge);
        let causal = if masked { &causal[..] } else { &causal[..1] };
        let mut points = Vec::new();
        for &dtype in &self.dtypes {
            for &dim in head_dim {
                for &causal in causal {
                    points.extend(lengths.iter().map(|&len| {
                        Point {
                            shape: Shape::new(*batch, self.heads, len, dim)
                                .with_key_value_heads(kv_heads.unwrap_or(self.heads)),
                            dtype,
                            causal: causal == Causal::Yes,
                        }
                    }));
                }
            }
        }
        points
    }
}

fn given<T: Clone>(given: &[T], otherwise: &[T]) -> Vec<T> {
    if given.is_empty() { otherwise.to_vec() } else { given.to_vec() }
}

/// The kernels that were asked for: the `usual` one if none was, with `all` those that are `able`.
///
/// # Errors
/// As `named`, for a name that is none or a kernel that cannot run the case.
pub fn variants<V: Copy>(
    asked: &[String],
    usual: impl Fn() -> Result<V>,
    able: &[V],
    named: impl Fn(&str) -> Result<V>,
) -> Result<Vec<V>> {
    if asked.is_empty() {
        return Ok(vec![usual()?]);
    }
    let mut variants = Vec::new();
    for asked in asked {
        match asked.as_str() {
            "all" => variants.extend(able),
            name => variants.push(named(name)?),
        }
    }
    Ok(variants)
}

fn parse_dtype(name: &str) -> Result<DType, String> {
    DType::ALL
        .into_iter()
        .find(|dtype| dtype.name() == name)
        .ok_or_else(|| format!("expected one of {}", DType::ALL.map(DType::name).join(", ")))
}
