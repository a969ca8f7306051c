//! Timing of work that is repeated: timestamp queries, or the wall clock where there are none.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use pollster::block_on;
use wgpu_attention::{Bound, Context, wgpu};

/// Repetitions, at least and at most.
const REPETITIONS: [f64; 2] = [10.0, 1000.0];

/// A GPU that idled needs up to a second of load to reach its clock rate; a CPU does not.
const WARM_UP: [Duration; 2] = [Duration::from_secs(1), Duration::from_millis(200)];

/// The times of all repetitions.
pub struct Timing {
    /// In seconds, ascending.
    pub seconds: Vec<f64>,
    /// What measured them.
    pub clock: &'static str,
}

impl Timing {
    fn new(mut seconds: Vec<f64>, clock: &'static str) -> Self {
        seconds.sort_by(f64::total_cmp);
        Self { seconds, clock }
    }

    /// Least, median and most.
    pub fn spread(&self) -> [f64; 3] {
        let n = self.seconds.len();
        [0, n / 2, n - 1].map(|index| self.seconds[index])
    }
}

/// Repeats `bound` for about `duration` and at least ten times, after a warm-up.
pub fn time(context: &Context, bound: &Bound, duration: Duration) -> Result<Timing> {
    let once = warm_up(context, bound)?;
    let [least, most] = REPETITIONS;
    let repetitions = (duration.as_secs_f64() / once).clamp(least, most) as u32;
    if context.caps().timestamps {
        let seconds = by_timestamps(context, bound, repetitions)?;
        // Some drivers offer timestamps and count nothing.
        if seconds.iter().all(|&seconds| seconds > 0.0) {
            return Ok(Timing::new(seconds, "timestamps"));
        }
    }
    let seconds = (0..repetitions).map(|_| {
        let started = Instant::now();
        block_on(context.run(bound))?;
        Ok(started.elapsed().as_secs_f64())
    });
    Ok(Timing::new(seconds.collect::<Result<_>>()?, "wall clock"))
}

/// Runs until the device is warm and gives the mean time of a run.
fn warm_up(context: &Context, bound: &Bound) -> Result<f64> {
    let enough = WARM_UP[usize::from(context.caps().is_cpu)];
    let started = Instant::now();
    let mut runs = 0.0;
    while runs == 0.0 || started.elapsed() < enough {
        block_on(context.run(bound))?;
        runs += 1.0;
    }
    Ok(started.elapsed().as_secs_f64() / runs)
}

/// Each repetition is a submission with a timestamp at either end; nothing waits in between, so
/// that the device stays warm.
fn by_timestamps(context: &Context, bound: &Bound, repetitions: u32) -> Result<Vec<f64>> {
    let (device, queue) = (context.device(), context.queue());
    let count = 2 * repetitions;
    let queries = device.create_query_set(&wgpu::QuerySetDescriptor {
        label: Some("bench timestamps"),
        ty: wgpu::QueryType::Timestamp,
        count,
    });
    let buffer = |usage| {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("bench timestamps"),
            size: u64::from(count) * 8,
            usage,
            mapped_at_creation: false,
        })
    };
    let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
    let readable = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
    for repetition in 0..repetitions {
        let mut encoder = device.create_command_encoder(&Default::default());
        bound.encode_timed(
            &mut encoder,
            wgpu::ComputePassTimestampWrites {
                query_set: &queries,
                beginning_of_pass_write_index: Some(2 * repetition),
                end_of_pass_write_index: Some(2 * repetition + 1),
            },
        );
        queue.submit([encoder.finish()]);
    }
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
    encoder.copy_buffer_to_buffer(&resolved, 0, &readable, 0, readable.size());
    queue.submit([encoder.finish()]);
    readable.map_async(wgpu::MapMode::Read, .., |_| {});
    device.poll(wgpu::PollType::wait_indefinitely()).context("waiting for timestamps")?;
    let ticks = readable.get_mapped_range(..).context("reading timestamps")?;
    let tick = f64::from(queue.get_timestamp_period()) * 1e-9;
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
    let spans = ticks.chunks_exact(16).map(|pair| {
        let (begin, end) = pair.split_at(8);
        word(end).saturating_sub(word(begin)) as f64 * tick
    });
    Ok(spans.collect())
}
