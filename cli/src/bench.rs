//! `wgpu-attention bench`: how fast the kernels are here, on results that were checked first.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use pollster::block_on;
use wgpu_attention::attention::tolerance::{Comparison, Verdict};
use wgpu_attention::{Bound, Context};

use crate::{device, print};
use ceilings::Ceilings;
use peers::Peer;
use record::{Failure, Machine, Record, Row};
use sweep::Sweep;

mod attention;
mod ceilings;
mod linear;
mod merge;
mod peers;
mod record;
mod report;
mod sweep;
mod tables;
pub mod timing;

/// Measures what this machine can do: the device's ceilings, and then each family of kernels over a
/// sweep of shapes, every result checked before it is timed
#[derive(clap::Args)]
pub struct Args {
    /// A small sweep: under a minute on a laptop's GPU, under two on a software driver
    #[arg(long)]
    quick: bool,
    /// Part of the name of the adapter to use
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// How long each case is repeated, in seconds; at least 10 times whatever it takes [default: 1,
    /// with --quick 0.2]
    #[arg(long, value_parser = parse_seconds)]
    seconds: Option<Duration>,
    /// Writes the record as JSON, to stdout instead of the tables if no file is named
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Writes the rows as CSV, to stdout instead of the tables if no file is named
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    csv: Option<PathBuf>,
    /// Writes one HTML page into a folder, with plots and the machine's description
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Times other programs on the same shapes, those in a folder, and prints the ratios
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "benches/peers")]
    peers: Option<PathBuf>,
    /// Compares with the record of an earlier run, JSON or CSV
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    #[command(flatten)]
    sweep: sweep::Options,
}

type Prepare = dyn Fn(&Context) -> Result<Case>;

type Check = dyn Fn(&Context) -> Result<Comparison>;

/// One thing to be timed, not made yet: its tensors may be large.
struct Entry {
    /// What it is; nothing is measured yet.
    row: Row,
    prepare: Box<Prepare>,
}

/// One thing to be timed.
struct Case {
    /// Floating-point operations that the definition asks for.
    flops: f64,
    bound: Bound,
    /// Bytes that the definition asks to be moved: inputs and outputs, each once.
    bytes: f64,
    /// The share of the keys that a list visits.
    density: Option<f64>,
    /// Judges the result of a run.
    check: Box<Check>,
}

pub fn bench(args: &Args) -> Result<()> {
    let old = args.compare.as_deref().map(Record::read).transpose()?;
    let report = args.report.as_deref().map(report::Folder::create).transpose()?;
    let peers = args.peers.as_deref().map(peers::find).transpose()?.unwrap_or_default();
    let context = device::open(args.adapter.as_deref())?;
    let entries = Sweep::new(&args.sweep, context.caps(), args.quick).entries(context.caps())?;
    let record = measure_all(args, &context, entries, &peers)?;
    let earlier = old.as_ref().map(|old| record.matched(old)).unwrap_or_default();
    let beside_peers = record.beside_peers();
    let mut printed = false;
    for (path, text) in [(&args.json, Record::json as fn(&_) -> _), (&args.csv, Record::csv)] {
        let Some(path) = path else { continue };
        printed |= write(path, text(&record)?)?;
    }
    if !printed {
        print_tables(&record)?;
    }
    if let (Some(old), false) = (&old, printed) {
        print_earlier(old, &earlier)?;
    }
    if !printed && !beside_peers.is_empty() {
        print("\nagainst other programs; above 1, ours is faster")?;
        print(tables::table(&tables::RATIOS, &tables::ratio_lines(&beside_peers)))?;
    }
    if let Some(report) = report {
        eprintln!("the report is {}", report.write(&record, [&earlier, &beside_peers])?.display());
    }
    for Failure { label, error } in &record.failures {
        eprintln!("{label}: {error}");
    }
    match record.failures.len() {
        0 => Ok(()),
        failed => bail!("{failed} of {} cases have no time", failed + record.rows.len()),
    }
}

/// Writes a file, or prints for `-`; says whether it printed.
fn write(path: &Path, text: String) -> Result<bool> {
    if path == Path::new("-") {
        print(text.trim_end())?;
        return Ok(true);
    }
    std::fs::write(path, text).with_context(|| format!("writing `{}`", path.display()))?;
    Ok(false)
}

fn print_tables(record: &Record) -> Result<()> {
    print(&record.machine.adapter)?;
    if let Some(ceilings) = &record.ceilings {
        print(ceilings)?;
    }
    print(tables::table(&tables::ROWS, &tables::row_lines(record)))?;
    if record.rows.iter().any(|row| !row.steady) {
        print("*: the clock rate did not settle")?;
    }
    Ok(())
}

fn print_earlier(old: &Record, earlier: &[(&Row, &Row)]) -> Result<()> {
    let Machine { adapter, date, .. } = &old.machine;
    if earlier.is_empty() {
        return print(format!("\nno case is in the earlier record too ({adapter} {date})"));
    }
    print(format!("\nagainst {adapter} {date}; above 1, this run is faster"))?;
    print(tables::table(&tables::RATIOS, &tables::ratio_lines(earlier)))
}

/// The ceilings first, then every case, then the peers.
fn measure_all(
    args: &Args,
    context: &Context,
    entries: Vec<Entry>,
    peers: &[Peer],
) -> Result<Record> {
    let usual = if args.quick { Duration::from_millis(200) } else { Duration::from_secs(1) };
    let seconds = args.seconds.unwrap_or(usual);
    let steps = 1 + entries.len() + peers.len();
    let bar = ProgressBar::new(steps as u64).with_style(ProgressStyle::with_template(
        "{pos}/{len} {wide_bar} {elapsed}, {eta} left  {msg}",
    )?);
    bar.enable_steady_tick(Duration::from_millis(500));
    bar.set_message("ceilings");
    let ceilings = Ceilings::measure(context, seconds)?;
    bar.inc(1);
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for entry in entries {
        let label = entry.row.label.clone();
        bar.set_message(label.clone());
        match measure(context, entry, &ceilings, seconds) {
            Ok(row) => rows.push(row.rounded()),
            Err(error) => failures.push(Failure { label, error: format!("{error:#}") }),
        }
        bar.inc(1);
    }
    let mut of_peers = Vec::new();
    for peer in peers {
        bar.set_message(peer.name.clone());
        of_peers.extend(peer.measure(&rows, seconds));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let machine = Machine::new(context.caps());
    Ok(Record { machine, ceilings: Some(ceilings), rows, peers: of_peers, failures })
}

/// Times a case whose result is right.
fn measure(context: &Context, entry: Entry, ceilings: &Ceilings, seconds: Duration) -> Result<Row> {
    let case = (entry.prepare)(context)?;
    block_on(context.run(&case.bound))?;
    let found = (case.check)(context)?;
    if found.verdict() == Verdict::Unjudged {
        bail!("{} rows cannot be judged, so that no result could be wrong", found.unjudged);
    }
    if !found.ok {
        bail!(
            "wrong result: the largest error {:.2e} is beyond the bound {:.2e}",
            found.max_abs,
            found.bound
        );
    }
    let timing = timing::time(context, &case.bound, seconds)?;
    let [min, median, max] = timing.spread();
    let tflops = case.flops / median / 1e12;
    let (roof, ceiling) = ceilings.roof(&entry.row.variant, case.flops, case.bytes);
    Ok(Row {
        density: case.density.or(entry.row.density),
        median_ms: median * 1e3,
        min_ms: min * 1e3,
        max_ms: max * 1e3,
        repetitions: timing.seconds.len(),
        steady: timing.steady,
        clock: timing.clock.into(),
        tflops,
        gigabytes_per_second: case.bytes / median / 1e9,
        ceiling: ceiling.into(),
        percent_of_ceiling: 100.0 * tflops / roof,
        max_error: found.max_abs,
        bound: found.bound,
        ..entry.row
    })
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| "expected a number of seconds, 0 or more".to_owned())
}
