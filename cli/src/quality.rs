//! `wgpu-attention quality`: what sparse patterns keep of dense attention on real activations, and
//! what they save.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use pollster::block_on;
use wgpu_attention::{
    Arrays, Attention, Context, DType, KeyRows, MaskRows, Outputs, Pattern, Shape,
};

use crate::bench::timing;
use crate::device::{self, DeviceTensor};
use crate::input::File;
use crate::keys::{self, Uploaded, parse_density};
use crate::names::QUALITY;
use crate::problem::{Options, Problem};
use crate::{bad_input, print, warn};

mod plot;

/// Side of the blocks of all patterns that are made of some.
const BLOCK: u32 = 64;

/// Queries whose pairs are counted for the density.
const COUNTED_QUERIES: u32 = 256;

/// Compares sparse patterns with dense causal attention: error, attention mass covered, and time
///
/// For each layer and density: the relative error of the output, the mean share of the attention
/// weight that the visited keys hold, and the time on the device, as a table, and as CSV and SVG
/// where asked for.
#[derive(clap::Args)]
pub struct Args {
    /// A safetensors file with q, k and v of one or several layers
    #[arg(value_name = "IN.safetensors")]
    input: PathBuf,
    /// What the names of the layers' tensors start with
    #[arg(long, value_delimiter = ',', default_value = "layer10.,layer20.")]
    prefix: Vec<String>,
    /// Refuses a file with tensors that are not used, which are warned of otherwise
    #[arg(long)]
    strict: bool,
    /// Shares of the causal pairs that the patterns aim at
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0.05,0.1,0.2,0.4",
        value_parser = parse_density
    )]
    density: Vec<f64>,
    /// Part of the name of the adapter to use
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// How long each case is timed, in seconds; at least 10 times whatever it takes
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Where the table goes as CSV
    #[arg(long, value_name = "OUT.csv")]
    csv: Option<PathBuf>,
    /// Where the plot goes
    #[arg(long, value_name = "OUT.svg")]
    svg: Option<PathBuf>,
}

/// One pattern at one density on one layer.
pub struct Row {
    pub layer: String,
    pub pattern: &'static str,
    /// The share of the causal pairs that it keeps.
    pub density: f64,
    pub relative_error: f64,
    /// The mean share of a row's weight.
    pub mass: f64,
    pub milliseconds: f64,
    pub dense_milliseconds: f64,
}

pub fn quality(args: &Args) -> Result<()> {
    let seconds = Duration::try_from_secs_f64(args.seconds)
        .map_err(|error| bad_input(format!("--seconds: {error}")))?;
    let file = File::read(&args.input)?;
    let context = device::open(args.adapter.as_deref())?;
    let cases = args.prefix.len() * args.density.len() * PATTERNS.len();
    let bar = ProgressBar::new(cases as u64)
        .with_style(ProgressStyle::with_template("{pos}/{len} {wide_bar} {msg}")?);
    let mut rows = Vec::new();
    for prefix in &args.prefix {
        let tensors = file.tensors(prefix, &QUALITY)?;
        let problem = Problem::load(&tensors, &Options::causal())?;
        tensors.check_unused(args.strict, &warn)?;
        let layer = prefix.trim_end_matches('.');
        rows.extend(measure_layer(&context, &problem, (layer, &args.density, seconds), &bar)?);
    }
    bar.finish_and_clear();
    print(&context.caps().adapter)?;
    print(table(&rows))?;
    if let Some(path) = &args.csv {
        let text = csv(&rows, &context.caps().adapter);
        std::fs::write(path, text).with_context(|| format!("writing `{}`", path.display()))?;
    }
    if let Some(path) = &args.svg {
        let svg = plot::plot(&rows, &context.caps().adapter)?;
        std::fs::write(path, svg).with_context(|| format!("writing `{}`", path.display()))?;
    }
    Ok(())
}

const PATTERNS: [&str; 6] =
    ["window", "sink + window", "strided columns", "random", "bigbird", "oracle"];

fn measure_layer(
    context: &Context,
    problem: &Problem<'_>,
    (layer, densities, seconds): (&str, &[f64], Duration),
    bar: &ProgressBar,
) -> Result<Vec<Row>> {
    let tensors = problem.upload(context)?;
    let (attention, side) = (&problem.attention, problem.arrays());
    let dense = attend(context, attention, &tensors, side, seconds)?;
    let mut rows = Vec::new();
    for &density in densities {
        for pattern in PATTERNS {
            bar.set_message(format!("{layer}: {pattern} {density}"));
            let (sparse, arrays);
            let (source, list);
            match static_pattern(pattern, &attention.shape, density) {
                Some(parts) => {
                    source = parts.source(attention, &side, (BLOCK, BLOCK))?;
                    sparse = source.apply(attention);
                    arrays = source.arrays(side);
                }
                None => {
                    list = keys::oracle(context, problem, density, (BLOCK, BLOCK))?;
                    sparse = attention.clone().with_keys(list.keys);
                    arrays = list.arrays(side);
                }
            }
            let found = attend(context, &sparse, &tensors, arrays, seconds)?;
            rows.push(Row {
                layer: layer.to_owned(),
                pattern,
                density: counted_density((attention, &side), (&sparse, &arrays))?,
                relative_error: relative_error(&found.out, &dense.out),
                mass: mass(&found.lse, &dense.lse),
                milliseconds: found.milliseconds,
                dense_milliseconds: dense.milliseconds,
            });
            bar.inc(1);
        }
    }
    Ok(rows)
}

/// The static pattern whose share of the causal pairs is about `density`; `None` for the oracle.
fn static_pattern(name: &str, shape: &Shape, density: f64) -> Option<Pattern> {
    const SINK: u32 = 4;
    let len = f64::from(shape.key_len);
    // A window of w keeps about w·n − w²/2 of n²/2 pairs.
    let window = len * (1.0 - (1.0 - density).sqrt());
    let left = |keys: f64| (keys.round().max(1.0) as u32) - 1;
    // Half of the blocks are visible on average.
    let blocks = (density * len / f64::from(2 * BLOCK)).round().max(3.0) as u32;
    match name {
        "window" => Some(Pattern::window(left(window))),
        "sink + window" => {
            Some(Pattern::sink(SINK) + Pattern::window(left(window - f64::from(SINK))))
        }
        "strided columns" => Some(Pattern::strided((1.0 / density).round() as u32)),
        "random" => Some(Pattern::random(density, 1)),
        "bigbird" => Some(Pattern::big_bird(blocks / 2, 1, blocks - blocks / 2 - 1, 1)),
        _ => None,
    }
}

struct Attended {
    out: Vec<f32>,
    lse: Vec<f32>,
    milliseconds: f64,
}

fn attend(
    context: &Context,
    attention: &Attention,
    tensors: &Uploaded,
    arrays: Arrays<'_>,
    seconds: Duration,
) -> Result<Attended> {
    let shape = &attention.shape;
    let plan = block_on(attention.clone().with_lse().plan(context))?;
    let out = DeviceTensor::new(context, "out", attention.dtype, shape.out())?;
    let lse = DeviceTensor::new(context, "lse", DType::F32, shape.lse())?;
    let outputs = Outputs::new(out.view()).with_lse(lse.view());
    let bound = plan.bind(&tensors.inputs(arrays), &outputs)?;
    block_on(context.run(&bound))?;
    let [_, median, _] = timing::time(context, &bound, seconds)?.spread();
    let (out, lse) = (out.read(context)?, lse.read_logits(context)?);
    Ok(Attended { out, lse, milliseconds: median * 1e3 })
}

/// The share of the causal pairs that list and mask keep, by evenly spread queries.
fn counted_density(
    (causal, side): (&Attention, &Arrays<'_>),
    (sparse, arrays): (&Attention, &Arrays<'_>),
) -> Result<f64> {
    let shape = &causal.shape;
    let whole = MaskRows::new(causal, side)?;
    let (masks, lists) = (MaskRows::new(sparse, arrays)?, KeyRows::new(sparse, arrays)?);
    let step = shape.query_len.div_ceil(COUNTED_QUERIES).max(1);
    let (mut kept, mut all) = (0u64, 0u64);
    for batch in 0..shape.batch {
        for query in (step / 2..shape.query_len).step_by(step as usize) {
            let (dense, row) = (whole.row(batch, query), masks.row(batch, query));
            for head in 0..shape.query_heads {
                let visited = lists.row(batch, head, query);
                for key in (0..shape.key_len).filter(|&key| dense.keeps(head, key)) {
                    all += 1;
                    kept += u64::from(visited.contains(key) && row.keeps(head, key));
                }
            }
        }
    }
    Ok(kept as f64 / all.max(1) as f64)
}

fn relative_error(got: &[f32], wanted: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let pairs = got.iter().zip(wanted).map(|(&g, &w)| (f64::from(g), f64::from(w)));
    let (error, size) =
        pairs.fold((0.0, 0.0), |(error, size), (g, w)| (error + square(g - w), size + square(w)));
    (error / size).sqrt()
}

/// A part's share of a row's weight is the exponential of the difference of their LSEs.
fn mass(part: &[f32], whole: &[f32]) -> f64 {
    let shares = part.iter().zip(whole).map(|(&part, &whole)| f64::from(part - whole).exp());
    shares.sum::<f64>() / part.len().max(1) as f64
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header(["layer", "pattern", "density", "relative error", "mass", "ms", "of dense"]);
    for row in rows {
        table.add_row([
            row.layer.clone(),
            row.pattern.to_owned(),
            format!("{:.3}", row.density),
            format!("{:.3}", row.relative_error),
            format!("{:.4}", row.mass),
            format!("{:.3}", row.milliseconds),
            format!("{:.3}", row.milliseconds / row.dense_milliseconds),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn csv(rows: &[Row], adapter: &str) -> String {
    let mut text = format!("# {adapter}\n");
    text.push_str("layer,pattern,density,relative_error,mass,ms,dense_ms\n");
    for row in rows {
        let Row { layer, pattern, density, relative_error, mass, .. } = row;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{layer},{pattern},{density:.5},{relative_error:.5},{mass:.5},{:.4},{:.4}",
            row.milliseconds, row.dense_milliseconds
        );
    }
    text
}
