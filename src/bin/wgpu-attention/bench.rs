//! `wgpu-attention bench`: how fast the kernels are here, on results that were checked first.

use std::time::Duration;

use anyhow::{Result, bail};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pollster::block_on;
use serde::Serialize;
use wgpu_attention::attention::tolerance::Comparison;
use wgpu_attention::{Bound, Context, DType};

use crate::keys::{ListKind, parse_block};
use crate::problem::ActivationName;
use crate::run::Op;
use crate::{device, print};

mod attention;
mod linear;
pub mod timing;

/// Times the kernels over a sweep of lengths, after checking their results
#[derive(clap::Args)]
pub struct Args {
    /// What is timed
    #[arg(long, value_enum, default_value_t = Op::Attention)]
    op: Op,
    #[command(flatten)]
    linear: linear::Options,
    /// Element types
    #[arg(long, value_delimiter = ',', default_value = "f32,f16", value_parser = parse_dtype)]
    dtype: Vec<DType>,
    /// Dimensions of queries, keys and values
    #[arg(long, value_name = "DIM", value_delimiter = ',', default_value = "64")]
    head_dim: Vec<u32>,
    /// Query heads
    #[arg(long, value_name = "COUNT", default_value_t = 16)]
    heads: u32,
    /// Heads of keys and values [default: as many as query heads]
    #[arg(long, value_name = "COUNT")]
    kv_heads: Option<u32>,
    /// Sequences
    #[arg(long, value_name = "COUNT", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,
    /// Numbers of queries and keys [default: 1024,2048,4096,8192, or 128,256,512 on a CPU]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    lengths: Vec<u32>,
    /// Masks causally
    #[arg(long)]
    causal: bool,
    /// Times lists of keys too, beside dense attention with the same tiles: random blocks, or random
    /// columns of single keys that all queries share; with --causal, the list that says causal
    #[arg(long, value_enum)]
    keys: Option<ListKind>,
    /// Queries and keys of a block of the list, as one number or two
    #[arg(long, value_name = "N|Q,K", default_value = "64", value_parser = parse_block)]
    block: (u32, u32),
    /// Shares of the keys that the lists visit
    #[arg(long, value_delimiter = ',', default_value = "0.05,0.1,0.2,0.5")]
    density: Vec<f64>,
    /// How scores become weights
    #[arg(long, value_enum, default_value_t = ActivationName::Softmax)]
    activation: ActivationName,
    /// Kernels to time, or `all` that can [default: the one that `run` takes]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    variant: Vec<String>,
    /// Part of the name of the adapter to use
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// How long each case is repeated, in seconds; at least 10 times whatever it takes
    #[arg(long, default_value = "1", value_parser = parse_seconds)]
    seconds: Duration,
    /// Only the shortest length, and few repetitions: to see that everything works
    #[arg(long)]
    quick: bool,
    /// Prints a JSON array instead of a table
    #[arg(long)]
    json: bool,
}

type Prepare = dyn Fn(&Context) -> Result<Case>;

type Check = dyn Fn(&Context) -> Result<Comparison>;

/// One thing to be timed, not made yet: its tensors may be large.
struct Entry {
    /// `attention/tiled/f16/softmax/b1h16n1024d64`
    label: String,
    variant: &'static str,
    shape: serde_json::Value,
    prepare: Box<Prepare>,
}

/// One thing to be timed.
struct Case {
    /// Floating-point operations that the definition asks for.
    flops: f64,
    bound: Bound,
    /// Bytes that the definition asks to be moved; see `Measured`.
    bytes: f64,
    /// Judges the result of a run.
    check: Box<Check>,
}

/// What was found about one case.
#[derive(Serialize)]
struct Row {
    label: String,
    variant: &'static str,
    shape: serde_json::Value,
    machine: String,
    /// Name, driver and backend.
    adapter: String,
    #[serde(flatten)]
    measured: Option<Measured>,
    /// Why there is no time.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct Measured {
    median_ms: f64,
    min_ms: f64,
    max_ms: f64,
    repetitions: usize,
    clock: &'static str,
    tflops: f64,
    /// Bytes of inputs and outputs, each moved once, over the time.
    gigabytes_per_second: f64,
    max_error: f64,
    bound: f64,
}

pub fn bench(args: &Args) -> Result<()> {
    let context = device::open(args.adapter.as_deref())?;
    let entries = match args.op {
        Op::Attention => attention::entries(args, context.caps())?,
        Op::Linear => linear::entries(args, context.caps())?,
    };
    let bar = ProgressBar::new(entries.len() as u64)
        .with_style(ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg}")?);
    if args.json {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let seconds = if args.quick { Duration::ZERO } else { args.seconds };
    let mut rows = Vec::new();
    for entry in entries {
        bar.set_message(entry.label.clone());
        let measured = measure(&context, &entry, seconds);
        rows.push(Row::new(&context, entry, measured));
        bar.inc(1);
    }
    bar.finish_and_clear();
    if args.json {
        print(serde_json::to_string_pretty(&rows)?)?;
    } else {
        print(&context.caps().adapter)?;
        print(table(&rows))?;
        for row in &rows {
            if let Some(error) = &row.error {
                eprintln!("{}: {error}", row.label);
            }
        }
    }
    match rows.iter().filter(|row| row.error.is_some()).count() {
        0 => Ok(()),
        failed => bail!("{failed} of {} cases have no time", rows.len()),
    }
}

/// Times a case whose result is right.
fn measure(context: &Context, entry: &Entry, seconds: Duration) -> Result<Measured> {
    let case = (entry.prepare)(context)?;
    block_on(context.run(&case.bound))?;
    let found = (case.check)(context)?;
    if !found.ok {
        bail!(
            "wrong result: the largest error {:.2e} is beyond the bound {:.2e}",
            found.max_abs,
            found.bound
        );
    }
    let timing = timing::time(context, &case.bound, seconds)?;
    let [min, median, max] = timing.spread();
    Ok(Measured {
        median_ms: median * 1e3,
        min_ms: min * 1e3,
        max_ms: max * 1e3,
        repetitions: timing.seconds.len(),
        clock: timing.clock,
        tflops: case.flops / median / 1e12,
        gigabytes_per_second: case.bytes / median / 1e9,
        max_error: found.max_abs,
        bound: found.bound,
    })
}

impl Row {
    fn new(context: &Context, entry: Entry, measured: Result<Measured>) -> Self {
        let Entry { label, variant, shape, .. } = entry;
        let (measured, error) = match measured {
            Ok(measured) => (Some(measured), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let machine = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
        let adapter = context.caps().adapter.clone();
        Self { label, variant, shape, machine, adapter, measured, error }
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["case", "median ms", "min", "max", "TFLOP/s", "GB/s", "max error", "bound"]);
    for row in rows {
        match &row.measured {
            Some(measured) => table.add_row([
                row.label.clone(),
                format!("{:.3}", measured.median_ms),
                format!("{:.3}", measured.min_ms),
                format!("{:.3}", measured.max_ms),
                significant(measured.tflops),
                significant(measured.gigabytes_per_second),
                format!("{:.1e}", measured.max_error),
                format!("{:.1e}", measured.bound),
            ]),
            None => table.add_row([row.label.as_str(), "failed"]),
        };
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Three significant digits for small and large numbers alike.
fn significant(number: f64) -> String {
    let digits = if number > 0.0 { (2.0 - number.log10().floor()).clamp(0.0, 9.0) } else { 0.0 };
    format!("{number:.*}", digits as usize)
}

fn parse_dtype(name: &str) -> Result<DType, String> {
    DType::ALL
        .into_iter()
        .find(|dtype| dtype.name() == name)
        .ok_or_else(|| format!("expected one of {}", DType::ALL.map(DType::name).join(", ")))
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "expected a number of seconds, 0 or more".to_owned())
}
