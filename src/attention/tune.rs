//! The tuner: kernels and tiles chosen by their time on the device at hand.
//!
//! A call is a contest between the best one known and as many others as there is time for; who loses
//! is not asked again, and what is left is left for the next call.

use std::time::{Duration, Instant};

use super::synthetic::Synthetic;
use super::{Attention, Tiles, Variant};
use crate::attention::Plan;
use crate::device::cache::Choice;
use crate::device::{Context, readback};
use crate::error::Error;
use crate::launch::Bound;
use crate::shape::Shape;

/// What a call may take in all, unless planning takes as long by itself.
const DEADLINE: Duration = Duration::from_secs(2);

/// Operations of the calls that are timed: some milliseconds' worth.
const CPU_WORK: f64 = 2e8;
const GPU_WORK: f64 = 2e10;

/// Short calls are repeated until they take about so long.
const TIMED: Duration = Duration::from_millis(15);
const REPEATS: u32 = 100;

/// How often each is timed, while there is time. The least time counts: clocks rise under load, and
/// others use the device.
const ROUNDS: u32 = 5;

/// What compiling is expected to take as long as only the best one has been: drivers may have kept
/// that from earlier days.
const UNKNOWN: Duration = Duration::from_millis(1500);

/// The next compilation may take that much longer than the longest so far.
const SLOWER: f64 = 1.25;

/// Planning in such a part of what compiling has taken: the best one was compiled before, by this
/// context or in earlier days.
const KEPT: f64 = 0.25;

/// A challenger is to be faster by more than chance.
const FASTER: f64 = 0.98;

/// A kernel with its tiles in the contest.
struct Entrant {
    name: String,
    candidate: (Variant, Tiles),
    bound: Bound,
    /// The least so far.
    time: Duration,
}

impl Attention {
    /// As [`plan`](Self::plan), but by time: tries the kernels and tiles of the measured table on the
    /// device, on made-up tensors of this configuration's dims and at most its sizes.
    ///
    /// What is found out is kept with the context and in its [folder](Context::with_cache), for the
    /// adapter, its driver and the configuration (with lengths and batch entries rounded up to a power
    /// of two). A call is to take two seconds at most, or the time of `plan` where that is more: it
    /// begins to compile another kernel only when there is time for what the slowest has taken so far,
    /// and leaves the rest to the next call. A call that finds its best kernel compiled tries one other at
    /// least, however slow the device, so that tuning ends. Configurations whose outputs are scores have
    /// one kernel, which is not timed. Natively only.
    ///
    /// # Errors
    /// As [`plan`](Self::plan). Where there is no room to time anything that is logged, and the plan is
    /// that of the best kernel known.
    pub async fn plan_tuned(&self, context: &Context) -> Result<Plan, Error> {
        self.validate()?;
        let start = Instant::now();
        let mut candidates: Vec<_> = Variant::candidates(context.caps(), self)
            .into_iter()
            .map(|(variant, tiles)| (format!("{variant} {tiles}"), (variant, tiles)))
            .collect();
        let key = key(context, self);
        let mut choice = context.choice(&key).unwrap_or_default();
        let (best, plan) = loop {
            let known = candidates.iter().position(|(name, _)| *name == choice.best);
            if known.is_none() {
                // Another version's, of other tiles.
                choice = Choice::default();
            }
            let index = known.unwrap_or(0);
            let Some(best) = candidates.get(index).cloned() else {
                return self.plan(context).await;
            };
            match self.compile(context, best.1.0, Some(best.1.1)).await {
                // It computes wrong results here.
                Err(Error::Unsupported(_)) => drop(candidates.remove(index)),
                plan => break (best, plan?),
            }
        };
        let must_advance = start.elapsed() < choice.compiling.mul_f64(KEPT);
        let open: Vec<_> = candidates
            .iter()
            .filter(|(name, _)| *name != best.0 && !choice.slower.contains(name))
            .collect();
        if open.is_empty() {
            return Ok(plan);
        }
        let before = choice.clone();
        choice.best.clone_from(&best.0);
        choice.compiling = choice.compiling.max(start.elapsed());
        let found = match must_advance || time_left(start.elapsed(), &choice) {
            true => {
                contest(context, self, (start, must_advance), &mut choice, (&best, &open)).await
            }
            false => Ok(best.1),
        };
        context.alive()?;
        if choice != before {
            context.keep_choice(&key, choice);
        }
        match found {
            Ok((variant, tiles)) => self.compile(context, variant, Some(tiles)).await,
            Err(error) => {
                log::warn!("not tuned, {key}: {error}");
                Ok(plan)
            }
        }
    }
}

/// Whether another kernel can be compiled in time, after so much of it.
fn time_left(elapsed: Duration, choice: &Choice) -> bool {
    let known = !choice.slower.is_empty();
    let compiling = choice.compiling.mul_f64(SLOWER);
    let compiling = if known { compiling } else { compiling.max(UNKNOWN) };
    elapsed + compiling < DEADLINE
}

type Named = (String, (Variant, Tiles));

/// Times the best one and as many of the open ones as there is time for, one at least where it must
/// advance; notes who is slower.
async fn contest(
    context: &Context,
    attention: &Attention,
    (start, must_advance): (Instant, bool),
    choice: &mut Choice,
    (best, open): (&Named, &[&Named]),
) -> Result<(Variant, Tiles), Error> {
    let work = if context.caps().is_cpu { CPU_WORK } else { GPU_WORK };
    let call = Synthetic::new(context, attention, work)?;
    let mut entrants = vec![Entrant::new(context, &call, best, choice).await?];
    let once = entrants[0].time.as_secs_f64().max(1e-9);
    let repeats = ((TIMED.as_secs_f64() / once) as u32).clamp(1, REPEATS);
    for (tried, candidate) in open.iter().enumerate() {
        // Time for a round is kept, of one more.
        let round = round(&entrants, repeats) + entrants[0].time * repeats;
        let must = must_advance && tried == 0;
        if !must && !time_left(start.elapsed() + round, choice) {
            break;
        }
        match Entrant::new(context, &call, candidate, choice).await {
            Ok(entrant) => entrants.push(entrant),
            // What does not compile here will not be asked again.
            Err(Error::Shader { label, message }) => {
                log::warn!("{label} ({}) does not compile: {message}", candidate.0);
                choice.slower.push(candidate.0.clone());
            }
            // Nor what computes wrong results.
            Err(Error::Unsupported(_)) => choice.slower.push(candidate.0.clone()),
            Err(error) => return Err(error),
        }
    }
    for _ in 0..ROUNDS {
        if start.elapsed() + round(&entrants, repeats) > DEADLINE {
            break;
        }
        for entrant in &mut entrants {
            entrant.time = entrant.time.min(time(context, &entrant.bound, repeats).await?);
        }
    }
    let winner = winner(&entrants);
    let Entrant { name, candidate, time, .. } = &entrants[winner];
    log::info!("{name} of {} timed ones takes {time:?}", entrants.len());
    choice.best.clone_from(name);
    let losers = entrants.iter().enumerate().filter(|(index, _)| *index != winner);
    choice.slower.extend(losers.map(|(_, loser)| loser.name.clone()));
    Ok(*candidate)
}

/// How long timing all of them takes.
fn round(entrants: &[Entrant], repeats: u32) -> Duration {
    entrants.iter().map(|entrant| entrant.time).sum::<Duration>() * repeats
}

/// The fastest; the first, whose tiles are the table's or have won before, unless another is clearly
/// faster.
fn winner(entrants: &[Entrant]) -> usize {
    let times = entrants.iter().map(|entrant| entrant.time);
    let (index, time) = times.enumerate().min_by_key(|&(_, time)| time).unwrap_or_default();
    let first = entrants.first().map_or(Duration::ZERO, |first| first.time);
    if time < first.mul_f64(FASTER) { index } else { 0 }
}

impl Entrant {
    /// Compiles and times once; notes how long compiling takes.
    async fn new(
        context: &Context,
        call: &Synthetic,
        named: &Named,
        choice: &mut Choice,
    ) -> Result<Self, Error> {
        let ((name, candidate), start) = (named.clone(), Instant::now());
        let plan = call.attention.compile(context, candidate.0, Some(candidate.1)).await?;
        let bound = call.bind(&plan)?;
        // Some drivers compile when a pipeline is first used.
        time(context, &bound, 1).await?;
        choice.compiling = choice.compiling.max(start.elapsed());
        let time = time(context, &bound, 1).await?;
        Ok(Self { name, candidate, bound, time })
    }
}

/// How long one of some repetitions takes.
async fn time(context: &Context, bound: &Bound, repeats: u32) -> Result<Duration, Error> {
    let mut encoder = context.device().create_command_encoder(&Default::default());
    for _ in 0..repeats {
        bound.encode(&mut encoder);
    }
    let start = Instant::now();
    context.queue().submit([encoder.finish()]);
    readback::finished(context).await?;
    Ok(start.elapsed() / repeats)
}

/// Device and configuration in words, as the key of what was found out.
fn key(context: &Context, attention: &Attention) -> String {
    let mut alike = attention.clone();
    for size in [&mut alike.shape.batch, &mut alike.shape.query_len, &mut alike.shape.key_len] {
        *size = size.checked_next_power_of_two().unwrap_or(*size);
    }
    let Shape { batch, query_heads, key_heads, value_heads, .. } = alike.shape;
    let Shape { query_len, key_len, head_dim, value_dim, .. } = alike.shape;
    let Attention {
        shape: _,
        dtype,
        keys,
        mask,
        positions,
        score,
        activation,
        output,
        access: _,
        f16_products,
        f32_weights,
    } = &alike;
    let products = if *f16_products { " f16 products" } else { "" };
    let weights = if *f32_weights { " f32 weights" } else { "" };
    let text = format!(
        "{}\t{}{dtype}{products}{weights} b{batch} h{query_heads}/{key_heads}/{value_heads} n{query_len}/{key_len} \
         d{head_dim}/{value_dim} {:?} mask {mask} {keys:?} {positions:?} {activation:?} {output:?} {score:?}",
        context.caps().adapter.replace(['\t', '\n'], " "),
        if context.has_checked_shaders() { "checked " } else { "" },
        alike.alignment(),
    );
    text.replace('\n', " ")
}
