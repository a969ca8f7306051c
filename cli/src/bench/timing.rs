//! Timing of work that is repeated: timestamp queries, or the wall clock where there are none.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use wgpu_attention::{Bound, Context, wgpu};

/// Repetitions, at least and at most.
const REPETITIONS: [f64; 2] = [10.0, 1000.0];

/// A GPU that idled needs up to a second of load to reach its clock rate; a CPU does not.
const WARM_UP: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(200)];

/// How long a steady clock is waited for, at most.
const PATIENCE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(1)];

/// The clock is steady when the medians of two successive batches differ by no more than this.
const STEADY: f64 = 0.02;

/// How long a batch takes, and how many runs are in it.
const BATCH: Duration = Duration::from_millis(100);
const BATCH_RUNS: [f64; 2] = [3.0, 1000.0];

/// Work that can be recorded as often as one likes.
pub trait Work {
    /// Records it as one pass, with timestamps at both ends where asked for.
    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        timestamps: Option<wgpu::ComputePassTimestampWrites<'_>>,
    );
}

impl Work for Bound {
    fn record(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        timestamps: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        match timestamps {
            Some(timestamps) => self.encode_timed(encoder, timestamps),
            None => self.encode(encoder),
        }
    }
}

/// The times of all repetitions.
pub struct Timing {
    /// In seconds, ascending.
    pub seconds: Vec<f64>,
    /// What measured them.
    pub clock: &'static str,
    /// Whether the clock rate had settled before they were measured.
    pub steady: bool,
}

impl Timing {
    /// Least, median and most.
    pub fn spread(&self) -> [f64; 3] {
        let n = self.seconds.len();
        [0, n / 2, n - 1].map(|index| self.seconds[index])
    }
}

/// Repeats `work` for about `duration` and at least ten times, once the clock rate is steady: after
/// the warm-up, when the medians of two successive batches agree, or when patience has run out.
pub fn time(context: &Context, work: &dyn Work, duration: Duration) -> Result<Timing> {
    let cpu = usize::from(context.caps().is_cpu);
    let mut watch = Stopwatch::new(context, work)?;
    let started = Instant::now();
    let mut last = watch.median(1.0)?;
    let steady = loop {
        let [least, most] = BATCH_RUNS;
        let median = watch.median((BATCH.as_secs_f64() / last).clamp(least, most))?;
        let steady = (median / last - 1.0).abs() <= STEADY;
        last = median;
        let elapsed = started.elapsed();
        if elapsed >= WARM_UP[cpu] && (steady || elapsed >= PATIENCE[cpu]) {
            break steady;
        }
    };
    let [least, most] = REPETITIONS;
    let seconds = watch.sample((duration.as_secs_f64() / last).clamp(least, most))?;
    Ok(Timing { seconds, clock: watch.clock(), steady })
}

/// Times one piece of work.
struct Stopwatch<'a> {
    context: &'a Context,
    work: &'a dyn Work,
    timestamps: Option<Timestamps>,
}

/// Where the device writes the times at which passes begin and end.
struct Timestamps {
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    readable: wgpu::Buffer,
}

impl<'a> Stopwatch<'a> {
    fn new(context: &'a Context, work: &'a dyn Work) -> Result<Self> {
        let timestamps = context.caps().timestamps.then(|| Timestamps::new(context.device()));
        let mut watch = Self { context, work, timestamps };
        // Some drivers offer timestamps and count nothing.
        if watch.timestamps.is_some() && watch.sample(1.0)?.iter().all(|&seconds| seconds == 0.0) {
            watch.timestamps = None;
        }
        Ok(watch)
    }

    const fn clock(&self) -> &'static str {
        if self.timestamps.is_some() { "timestamps" } else { "wall clock" }
    }

    fn median(&mut self, runs: f64) -> Result<f64> {
        let seconds = self.sample(runs)?;
        Ok(seconds[seconds.len() / 2].max(1e-9))
    }

    /// The seconds of so many runs, ascending.
    fn sample(&mut self, runs: f64) -> Result<Vec<f64>> {
        let runs = runs as u32;
        let mut seconds = match &self.timestamps {
            Some(timestamps) => self.by_timestamps(timestamps, runs)?,
            None => (0..runs).map(|_| self.by_wall_clock()).collect::<Result<_>>()?,
        };
        seconds.sort_by(f64::total_cmp);
        Ok(seconds)
    }

    fn by_wall_clock(&self) -> Result<f64> {
        let started = Instant::now();
        let mut encoder = self.context.device().create_command_encoder(&Default::default());
        self.work.record(&mut encoder, None);
        self.context.queue().submit([encoder.finish()]);
        self.wait()?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Each run is a submission with a timestamp at either end; nothing waits in between, so that the
    /// device stays warm.
    fn by_timestamps(&self, timestamps: &Timestamps, runs: u32) -> Result<Vec<f64>> {
        let (device, queue) = (self.context.device(), self.context.queue());
        let Timestamps { queries, resolved, readable } = timestamps;
        for run in 0..runs {
            let mut encoder = device.create_command_encoder(&Default::default());
            let writes = wgpu::ComputePassTimestampWrites {
                query_set: queries,
                beginning_of_pass_write_index: Some(2 * run),
                end_of_pass_write_index: Some(2 * run + 1),
            };
            self.work.record(&mut encoder, Some(writes));
            queue.submit([encoder.finish()]);
        }
        let used = u64::from(runs) * 16;
        let mut encoder = device.create_command_encoder(&Default::default());
        encoder.resolve_query_set(queries, 0..2 * runs, resolved, 0);
        encoder.copy_buffer_to_buffer(resolved, 0, readable, 0, used);
        queue.submit([encoder.finish()]);
        readable.map_async(wgpu::MapMode::Read, ..used, |_| {});
        self.wait()?;
        let ticks = readable.get_mapped_range(..used).context("reading timestamps")?;
        let tick = f64::from(queue.get_timestamp_period()) * 1e-9;
        let word =
            |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        let spans = ticks.chunks_exact(16).map(|pair| {
            let (begin, end) = pair.split_at(8);
            word(end).saturating_sub(word(begin)) as f64 * tick
        });
        let spans = spans.collect();
        drop(ticks);
        readable.unmap();
        Ok(spans)
    }

    fn wait(&self) -> Result<()> {
        let device = self.context.device();
        device.poll(wgpu::PollType::wait_indefinitely()).context("waiting for the device")?;
        Ok(())
    }
}

impl Timestamps {
    fn new(device: &wgpu::Device) -> Self {
        let [_, most] = REPETITIONS;
        let count = 2 * most as u32;
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("bench timestamps"),
                size: u64::from(count) * 8,
                usage,
                mapped_at_creation: false,
            })
        };
        Self {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("bench timestamps"),
                ty: wgpu::QueryType::Timestamp,
                count,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            readable: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
        }
    }
}
