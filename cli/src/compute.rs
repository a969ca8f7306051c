//! Computing a problem, on a device or by the reference on the CPU.

use std::thread;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use pollster::block_on;
use wgpu_attention::attention::reference::Reference;
use wgpu_attention::{Attention, Context, DType, Output, Outputs, Plan, Stage, Variant};

use crate::device::DeviceTensor;
use crate::problem::Problem;

/// What came out, contiguous.
pub struct Results {
    /// `[B, Hq, Nq, dv]`.
    pub out: Vec<f32>,
    /// `[B, Hq, Nq]`, −∞ for rows without keys; where it was asked for.
    pub lse: Option<Vec<f32>>,
    /// `[B, Hq, Nq, Nk]`, −∞ where masked; where a stage was asked for.
    pub scores: Option<Vec<f32>>,
}

/// Whether a configuration has the LSE among its results.
fn has_lse(attention: &Attention) -> bool {
    attention.output == Output::Attention { lse: true }
}

/// Plans a problem for a device, with the variant that was asked for, or the fastest, or the first
/// that can.
pub fn plan(
    context: &Context,
    attention: &Attention,
    variant: Option<Variant>,
    tune: bool,
) -> Result<Plan> {
    Ok(match variant {
        Some(variant) => block_on(attention.plan_with(context, variant))?,
        None if tune => block_on(attention.plan_tuned(context))?,
        None => block_on(attention.plan(context))?,
    })
}

/// Runs a plan of the problem, and another for the scores of `stage`.
pub fn on_device(
    context: &Context,
    problem: &Problem<'_>,
    plan: &Plan,
    stage: Option<Stage>,
) -> Result<Results> {
    let attention = &problem.attention;
    let (shape, dtype) = (&attention.shape, attention.dtype);
    let tensors = problem.upload(context)?;
    let inputs = tensors.inputs(problem.arrays());

    let out = DeviceTensor::new(context, "out", dtype, shape.out())?;
    let lse = match has_lse(attention) {
        true => Some(DeviceTensor::new(context, "lse", DType::F32, shape.lse())?),
        false => None,
    };
    let mut outputs = Outputs::new(out.view());
    if let Some(lse) = &lse {
        outputs = outputs.with_lse(lse.view());
    }
    block_on(context.run(&plan.bind(&inputs, &outputs)?))?;

    let scores = match stage {
        Some(stage) => {
            let scores = DeviceTensor::new(context, "scores", DType::F32, shape.scores())?;
            let plan = block_on(attention.clone().with_scores(stage).plan(context))?;
            block_on(context.run(&plan.bind(&inputs, &Outputs::scores(scores.view()))?))?;
            Some(scores)
        }
        None => None,
    };
    Ok(Results {
        out: out.read(context)?,
        lse: lse.map(|lse| lse.read_logits(context)).transpose()?,
        scores: scores
            .map(|scores| match stage {
                Some(stage) if stage.may_be_masked() => scores.read_logits(context),
                _ => scores.read(context),
            })
            .transpose()?,
    })
}

/// Computes a problem by the f64 reference, on all cores.
pub fn on_host(
    reference: &Reference<'_>,
    attention: &Attention,
    stage: Option<Stage>,
) -> Result<Results> {
    let rows = reference.sample(usize::MAX);
    let bar = ProgressBar::new(rows.len() as u64).with_style(ProgressStyle::with_template(
        "reference {wide_bar} {pos} of {len} rows, {eta} left",
    )?);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let share = rows.len().div_ceil(threads).max(1);
    let parts = thread::scope(|scope| {
        let workers: Vec<_> = rows
            .chunks(share)
            .map(|rows| scope.spawn(|| rows_on_host(reference, rows, stage, &bar)))
            .collect();
        workers.into_iter().map(|worker| worker.join()).collect::<Vec<_>>()
    });
    bar.finish_and_clear();
    let mut results = Rows::default();
    for part in parts {
        let part = part.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        results.out.extend(part.out);
        results.lse.extend(part.lse);
        results.scores.extend(part.scores);
    }
    Ok(Results {
        // As it will be written.
        out: attention.dtype.decode(&attention.dtype.encode(&results.out)),
        lse: has_lse(attention).then_some(results.lse),
        scores: stage.map(|_| results.scores),
    })
}

#[derive(Default)]
struct Rows {
    out: Vec<f32>,
    lse: Vec<f32>,
    scores: Vec<f32>,
}

fn rows_on_host(
    reference: &Reference<'_>,
    rows: &[[u32; 3]],
    stage: Option<Stage>,
    bar: &ProgressBar,
) -> Rows {
    let mut results = Rows::default();
    for &[batch, head, query] in rows {
        let row = reference.row(batch, head, query);
        results.out.extend(row.out.into_iter().map(|x| x as f32));
        results.lse.push(row.lse as f32);
        if let Some(stage) = stage {
            let scores = reference.scores(stage, batch, head, query);
            results.scores.extend(scores.into_iter().map(|x| x as f32));
        }
        bar.inc(1);
    }
    results
}
