//! `wgpu-attention run`: attention over the tensors of a file.

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{ArgGroup, ValueEnum};
use serde::Serialize;
use wgpu_attention::attention::reference::Reference;
use wgpu_attention::attention::tolerance::Verdict;
use wgpu_attention::{Attention, Context, DType, Keys, Shape, Stage};

use crate::check::{Check, check};
use crate::compute::{self, Results};
use crate::input::{File, Tensors};
use crate::names::{ATTENTION, LINEAR};
use crate::output::{Named, OutputFile};
use crate::problem::{self, Options, Problem};
use crate::{Unjudged, bad_input, device, linear, print, warn};

/// Computes attention over the tensors of a safetensors file
///
/// Tensors of --op attention: q [B, Hq, Nq, dk], k [B, Hk, Nk, dk] and v [B, Hv, Nk, dv] in f32, f16 or bf16;
/// applied when present: alibi_slopes [Hq], key_bias [B|1, Hq|1, Nk], bias [B|1, Hq|1, Nq, Nk],
/// sinks [Hq], query_offset [B]; for masks: mask [B|1, Hq|1, Nq, Nk], cu_seqlens_q and cu_seqlens_k [docs+1],
/// key_lengths [B], roles_q [Nq], roles_k [Nk], role_table [R, R], tree_bits [Nq] or [Nq, 2]; for
/// lists of keys: block_mask [B|1, Hq|1, ⌈Nq/block⌉, ⌈Nk/block⌉], block_offsets [rows+1] and
/// block_entries, or key_index_offsets [rows+1] and key_indices, rows being (B|1)(Hq|Hk|1)⌈Nq/block⌉.
/// Tensors of --op linear: q, k and v with Nq = Nk = N and Hk = Hv = Hkv; by rule decay [Hkv]
/// (slopes), gate [B, Hkv, N] or [B, Hkv, N, dk] (logarithms of decay), beta [B, Hkv|1, N]; applied
/// when present: cu_seqlens [docs+1], state [B · docs, Hkv, f, dv], normalizer [B · docs, Hkv, f].
/// With --check, out [B, Hq, Nq, dv] is compared with the result.
/// What the file holds and this run does not use is named on stderr.
#[derive(clap::Args)]
#[command(group = ArgGroup::new("results")
    .args(["output", "check", "print_wgsl", "json"]).required(true).multiple(true))]
pub struct Args {
    /// The safetensors file with the tensors
    #[arg(value_name = "IN.safetensors")]
    input: PathBuf,
    /// Where the results go: `out`, `lse`, `scores`; `out`, `state`, `normalizer` of --op linear
    #[arg(long, short, value_name = "OUT.safetensors")]
    output: Option<PathBuf>,
    /// What the names of the file's tensors start with, such as `layer3.`
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Refuses a file with tensors that this run does not use, which are warned of otherwise
    #[arg(long)]
    strict: bool,
    /// What is computed
    #[arg(long, value_enum, default_value_t = Op::Attention)]
    op: Op,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    linear: linear::LinearOptions,
    /// Forces a kernel, such as `tiled` or `attention.tiled`
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Times kernels and tiles for two seconds and takes the fastest; the next run goes on where this
    /// one stopped, until all have been tried
    #[arg(long, conflicts_with = "variant")]
    tune: bool,
    /// Part of the name of the adapter to use; `reference` computes on the CPU in f64
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// Writes the scores too, as `scores`: scaled, modified, masked or probabilities
    #[arg(long, value_name = "STAGE", value_parser = parse_stage)]
    scores: Option<Stage>,
    /// Compares the results with the f64 reference, and with the file's own `out`
    ///
    /// The exit status is 1 and no output is written if an error is beyond its bound. It is 3 if none is,
    /// but rounding in f32 may err in some rows by more than their results are large (where logits are
    /// about 1e7 or more): such rows are counted as unjudged.
    #[arg(long)]
    check: bool,
    /// Prints the kernel's source
    #[arg(long)]
    print_wgsl: bool,
    /// Prints one JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Op {
    /// Queries against a list of keys.
    Attention,
    /// Queries against a state.
    Linear,
}

/// What is told about a run.
#[derive(Serialize)]
pub struct Report {
    adapter: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tiles: Option<String>,
    dtype: &'static str,
    query: [u32; 4],
    key: [u32; 4],
    value: [u32; 4],
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<String>,
    /// The list of keys, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    feature_map: Option<&'static str>,
    /// Wall-clock time with compilation and transfers.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<Check>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wgsl: Option<String>,
}

pub fn run(args: &Args) -> Result<()> {
    args.tell(&report(args, &File::read(&args.input)?, &warn)?)
}

/// Does what is asked for, all but the telling; what the user should know of at once goes to `warn`.
pub fn report(args: &Args, file: &File, warn: &dyn Fn(&str)) -> Result<Report> {
    let names = match args.op {
        Op::Attention => &ATTENTION,
        Op::Linear => &LINEAR,
    };
    let tensors = file.tensors(&args.prefix, names)?;
    let (given, other) = match args.op {
        Op::Attention => (args.linear.given(), "linear"),
        Op::Linear => {
            let tune = args.tune.then_some("--tune");
            let given = args.options.given().or(args.scores.map(|_| "--scores")).or(tune);
            (given, "attention")
        }
    };
    if let Some(option) = given {
        return Err(bad_input(format!("{option}: expected with --op {other} only")));
    }
    let done = match args.op {
        Op::Attention => run_attention(args, &tensors, warn),
        Op::Linear => run_linear(args, &tensors, warn),
    };
    done.map_err(|error| tensors.name_in_file(error, args.options.keys.names()))
}

fn run_attention(args: &Args, tensors: &Tensors<'_>, warn: &dyn Fn(&str)) -> Result<Report> {
    let mut problem = Problem::load(tensors, &args.options)?;
    tensors.check_unused(args.strict, warn)?;
    let on_host = args.adapter.as_deref() == Some("reference");
    let context = match problem.wants_oracle() {
        true if on_host => {
            return Err(bad_input("--pattern: expected a device for the oracle, got `reference`"));
        }
        true => Some(device::open(args.adapter.as_deref())?),
        false => None,
    };
    if let Some(context) = &context {
        problem.ask_oracle(context)?;
    }
    let problem = problem;
    let decoded = problem.decode()?;
    let inputs = decoded.host_inputs(problem.arrays());
    // This checks the side arrays too, before a device is opened.
    let reference = Reference::new(&problem.attention, &inputs)?;
    if let Some(stage) = args.scores {
        problem.attention.clone().with_scores(stage).validate()?;
    }
    let output = args.output_file()?;
    let attention = &problem.attention;
    let mut report = Report::new(&attention.shape, attention.dtype);
    report.mask = Some(attention.mask.to_string());
    report.keys = describe(&attention.keys);
    if let Some(results) = args.compute(context, &problem, &reference, &mut report)? {
        if args.check {
            report.check = Some(check(&reference, &problem, &results, args.scores)?);
        }
        args.write(output, &mut report, &self::tensors(&results, attention))?;
    }
    Ok(report)
}

fn run_linear(args: &Args, tensors: &Tensors<'_>, warn: &dyn Fn(&str)) -> Result<Report> {
    let problem = linear::Problem::load(tensors, &args.linear, args.options.scale)?;
    tensors.check_unused(args.strict, warn)?;
    let output = args.output_file()?;
    let linear = &problem.linear;
    let mut report = Report::new(&linear.shape, linear.dtype);
    report.rule = Some(linear.rule.name());
    report.feature_map = Some(linear.feature_map.name());
    if let Some(results) = args.compute_linear(&problem, &mut report)? {
        if args.check {
            report.check = Some(linear::check(&problem, &results)?);
        }
        args.write(output, &mut report, &results.tensors(&problem))?;
    }
    Ok(report)
}

impl Args {
    /// Computes what is asked for; nothing when that is the kernel's source alone.
    fn compute(
        &self,
        context: Option<Context>,
        problem: &Problem<'_>,
        reference: &Reference<'_>,
        report: &mut Report,
    ) -> Result<Option<Results>> {
        let started = Instant::now();
        let variant = self.variant.as_deref().map(problem::variant).transpose()?;
        let results = if self.is_on_host()? {
            report.adapter = "reference (CPU, f64)".into();
            compute::on_host(reference, &problem.attention, self.scores)?
        } else {
            let context = match context {
                Some(context) => context,
                None => device::open(self.adapter.as_deref())?,
            };
            let plan = compute::plan(&context, &problem.attention, variant, self.tune)?;
            report.adapter = context.caps().adapter.clone();
            report.variant = Some(plan.variant().label());
            report.tiles = plan.tiles().map(ToString::to_string);
            report.wgsl = self.print_wgsl.then(|| plan.wgsl().to_owned());
            if self.print_wgsl && self.output.is_none() && !self.check {
                return Ok(None);
            }
            compute::on_device(&context, problem, &plan, self.scores)?
        };
        report.seconds = Some(started.elapsed().as_secs_f64());
        Ok(Some(results))
    }

    /// As [`compute`](Self::compute), of linear attention.
    fn compute_linear(
        &self,
        problem: &linear::Problem<'_>,
        report: &mut Report,
    ) -> Result<Option<linear::Given>> {
        let started = Instant::now();
        let variant = self.variant.as_deref().map(problem::variant).transpose()?;
        let results = if self.is_on_host()? {
            report.adapter = "reference (CPU, f64)".into();
            linear::on_host(problem)?
        } else {
            let context = device::open(self.adapter.as_deref())?;
            let plan = linear::plan(&context, &problem.linear, variant)?;
            report.adapter = context.caps().adapter.clone();
            report.variant = Some(plan.variant().label());
            let kernels = || plan.wgsl().map(|(label, wgsl)| format!("// {label}\n{wgsl}"));
            report.wgsl = self.print_wgsl.then(|| kernels().collect());
            if self.print_wgsl && self.output.is_none() && !self.check {
                return Ok(None);
            }
            linear::on_device(&context, problem, &plan)?
        };
        report.seconds = Some(started.elapsed().as_secs_f64());
        Ok(Some(results))
    }

    /// Whether the reference computes, which has no kernels.
    fn is_on_host(&self) -> Result<bool> {
        let on_host = self.adapter.as_deref() == Some("reference");
        if on_host && (self.print_wgsl || self.variant.is_some() || self.tune) {
            return Err(bad_input(
                "--adapter: expected a device for --print-wgsl, --variant and --tune, got \
                 `reference`, which has no kernels",
            ));
        }
        Ok(on_host)
    }

    fn output_file(&self) -> Result<Option<OutputFile>> {
        self.output.as_ref().map(|path| OutputFile::create(path, &self.input)).transpose()
    }

    /// Writes the results, unless a check has failed.
    fn write(
        &self,
        output: Option<OutputFile>,
        report: &mut Report,
        tensors: &[Named<'_>],
    ) -> Result<()> {
        if let Some(output) = output.filter(|_| report.verdict() != Verdict::Failed) {
            output.write(tensors)?;
            report.output = self.output.as_ref().map(|path| path.display().to_string());
        }
        Ok(())
    }

    fn tell(&self, report: &Report) -> Result<()> {
        print(if self.json { serde_json::to_string_pretty(report)? } else { report.to_string() })?;
        match report.verdict() {
            Verdict::Ok => Ok(()),
            Verdict::Unjudged => {
                let (rows, of) =
                    report.check.as_ref().map_or((0, 0), |check| (check.unjudged(), check.rows));
                Err(Unjudged { rows, of }.into())
            }
            Verdict::Failed => {
                bail!("the check failed: an error is beyond its bound (no output is written then)")
            }
        }
    }
}

/// A list of keys in words.
fn describe(keys: &Keys) -> Option<String> {
    match keys {
        Keys::Blocks { block_q, block_k, .. } => Some(format!("blocks of {block_q} x {block_k}")),
        Keys::Indices { block_q, .. } => Some(format!("indices for {block_q} queries")),
        _ => None,
    }
}

/// The results as tensors of the output file.
fn tensors<'a>(results: &'a Results, attention: &Attention) -> Vec<Named<'a>> {
    let sizes = |shape: &[u32]| shape.iter().map(|&size| size as usize).collect();
    let shape = &attention.shape;
    let mut tensors = vec![Named {
        name: "out",
        dtype: attention.dtype,
        shape: sizes(&shape.out()),
        values: &results.out,
    }];
    if let Some(values) = &results.lse {
        let shape = sizes(&shape.lse()[..3]);
        tensors.push(Named { name: "lse", dtype: DType::F32, shape, values });
    }
    if let Some(values) = &results.scores {
        let shape = sizes(&shape.scores());
        tensors.push(Named { name: "scores", dtype: DType::F32, shape, values });
    }
    tensors
}

fn parse_stage(name: &str) -> Result<Stage, String> {
    Stage::ALL
        .into_iter()
        .find(|stage| stage.name() == name)
        .ok_or_else(|| format!("expected one of {}", Stage::ALL.map(Stage::name).join(", ")))
}

impl Report {
    fn new(shape: &Shape, dtype: DType) -> Self {
        Self {
            adapter: String::new(),
            variant: None,
            tiles: None,
            dtype: dtype.name(),
            query: shape.query(),
            key: shape.key(),
            value: shape.value(),
            mask: None,
            keys: None,
            rule: None,
            feature_map: None,
            seconds: None,
            check: None,
            output: None,
            wgsl: None,
        }
    }

    /// The check's verdict; `Ok` without a check.
    fn verdict(&self) -> Verdict {
        self.check.as_ref().map_or(Verdict::Ok, |check| check.verdict)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(wgsl) = &self.wgsl {
            f.write_str(wgsl)?;
            if self.seconds.is_none() {
                return Ok(());
            }
        }
        writeln!(f, "adapter  {}", self.adapter)?;
        if let Some(variant) = self.variant {
            let tiles = self.tiles.as_ref().map(|tiles| format!(", tiles {tiles}"));
            writeln!(f, "kernel   {variant}{}", tiles.unwrap_or_default())?;
        }
        let Self { query, key, value, dtype, .. } = self;
        write!(f, "tensors  q {query:?}, k {key:?}, v {value:?} in {dtype}")?;
        for (name, choice) in [
            ("mask", self.mask.as_deref()),
            ("keys", self.keys.as_deref()),
            ("rule", self.rule),
            ("features", self.feature_map),
        ] {
            if let Some(choice) = choice {
                write!(f, "; {name} {choice}")?;
            }
        }
        if let Some(seconds) = self.seconds {
            write!(f, "\ntime     {seconds:.2} s with compilation and transfers")?;
        }
        if let Some(check) = &self.check {
            write!(f, "\n{check}")?;
        }
        match &self.output {
            Some(output) => write!(f, "\nwritten  {output}"),
            None => Ok(()),
        }
    }
}
