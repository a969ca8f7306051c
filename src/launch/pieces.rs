//! Long work in several submissions: systems stop a device that answers nothing for some seconds,
//! and nobody else gets a turn on it meanwhile.
//!
//! Work is cut between workgroups, which know their number in the whole dispatch wherever a part of
//! it begins (`shaders/common/workgroup.wgsl`): what is computed, and in which order within a
//! workgroup, stays the same to the bit. Dispatches keep their order too.

use std::time::Duration;

use crate::device::{Context, readback};
use crate::error::Error;
use crate::launch::workspace::{bind_group_of, uniform};
use crate::launch::{Bound, Copy, Step, scoped};

/// What moving a byte counts as, in operations.
const BYTE: f64 = 4.0;

/// What it costs to read and write so many bytes, in operations.
pub(crate) fn moving(bytes: u64) -> f64 {
    BYTE * bytes as f64
}

/// A part of a call's work that makes one submission; see [`Bound::pieces`].
#[derive(Clone, Debug)]
pub struct Piece {
    label: &'static str,
    copies: Vec<Copy>,
    dispatches: Vec<Dispatch>,
    /// Operations.
    cost: f64,
}

/// Some workgroups of a step.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    step: Step,
    /// The number of the first one, as group 1 of the bindings.
    first: wgpu::BindGroup,
}

/// How far work has been cut up: steps, and workgroups of the next one.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    step: usize,
    workgroup: u64,
}

impl Piece {
    /// Records the piece into the caller's encoder. Pieces of one call are submitted in order.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        for copy in &self.copies {
            copy.record(encoder);
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: Some(self.label),
            timestamp_writes: None,
        });
        for Dispatch { step, first } in &self.dispatches {
            step.record(&mut pass, first);
        }
    }
}

impl Bound {
    /// The work in pieces for callers who submit themselves: each is expected to take no longer than
    /// the plan's context [allows](Context::with_submission_time), by the speed that runs on it have
    /// shown so far. Submitted in order they give the bits of [`encode`](Self::encode). There is
    /// always one; a single workgroup is never cut.
    ///
    /// # Errors
    /// A lost device or one out of memory, since a dispatch that begins in the middle of another
    /// needs a small buffer of its own.
    pub fn pieces(&self) -> Result<Vec<Piece>, Error> {
        let context = &self.context;
        let budget = budget(context, self.label);
        scoped(context, || {
            let mut pieces = Vec::new();
            let mut place = Place::default();
            loop {
                pieces.push(self.piece(context, &mut place, budget));
                if place.step == self.steps.len() {
                    return Ok(pieces);
                }
            }
        })
    }

    /// The next piece, of at least one workgroup and no more operations than `budget`.
    fn piece(&self, context: &Context, place: &mut Place, budget: f64) -> Piece {
        let copies = if (place.step, place.workgroup) == (0, 0) { &self.copies[..] } else { &[] };
        let (label, copies, dispatches) = (self.label, copies.to_vec(), Vec::new());
        let mut piece = Piece { label, copies, dispatches, cost: 0.0 };
        while let Some(step) = self.steps.get(place.step) {
            let (x, y) = (u64::from(step.workgroups.0), u64::from(step.workgroups.1));
            let each = step.cost / (x * y) as f64;
            // As many as fit, at least one, in whole rows where they make more than one.
            let fitting = ((budget - piece.cost) / each) as u64;
            let count = fitting.max(u64::from(piece.dispatches.is_empty()));
            let count = count.min(x * y - place.workgroup);
            let count = if count > x { count - count % x } else { count };
            if count == 0 {
                break;
            }
            let workgroups = (count.min(x) as u32, count.div_ceil(x) as u32);
            let first = first_workgroup(context, step, place.workgroup as u32);
            let step = Step { workgroups, cost: each * count as f64, ..step.clone() };
            piece.cost += step.cost;
            piece.dispatches.push(Dispatch { step, first });
            place.workgroup += count;
            if place.workgroup == x * y {
                *place = Place { step: place.step + 1, workgroup: 0 };
            }
        }
        piece
    }
}

impl Context {
    /// Submits the work of `bound` and waits until the device has done it; long work in several
    /// submissions, see [`with_submission_time`](Self::with_submission_time). Each shows how fast the
    /// device is.
    ///
    /// # Errors
    /// A lost device, or one out of memory.
    pub async fn run(&self, bound: &Bound) -> Result<(), Error> {
        run(self, bound).await
    }
}

async fn run(context: &Context, bound: &Bound) -> Result<(), Error> {
    let device = context.device();
    let mut place = Place::default();
    loop {
        // Scopes are thread-local: both are closed before anything is awaited.
        let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
        let piece = bound.piece(context, &mut place, budget(context, bound.label));
        let mut encoder = device.create_command_encoder(&Default::default());
        piece.encode(&mut encoder);
        let start = Clock::now();
        context.queue().submit([encoder.finish()]);
        let (validation, memory) = (validation.pop(), memory.pop());
        if let Some(error) = validation.await {
            return Err(context.failure(error));
        }
        if let Some(error) = memory.await {
            return Err(context.failure(error));
        }
        readback::finished(context).await?;
        context.rates().learn(context.caps(), (piece.label, piece.cost), start.elapsed());
        if place.step == bound.steps.len() {
            return Ok(());
        }
    }
}

/// The operations of one submission.
fn budget(context: &Context, label: &str) -> f64 {
    context.submission_time().as_secs_f64() * context.rates().of(context.caps(), label)
}

/// Group 1 of a dispatch that begins at workgroup `first` of a step.
fn first_workgroup(context: &Context, step: &Step, first: u32) -> wgpu::BindGroup {
    if first == 0 {
        return context.whole_dispatch().clone();
    }
    let number = uniform(context, bytemuck::bytes_of(&[first, 0, 0, 0]));
    let layout = step.pipeline.get_bind_group_layout(1);
    bind_group_of(context, &layout, "first workgroup", &[number.as_entire_buffer_binding()])
}

/// A clock, which the standard library lacks in a browser.
struct Clock(
    #[cfg(not(target_family = "wasm"))] std::time::Instant,
    #[cfg(target_family = "wasm")] f64,
);

#[cfg(not(target_family = "wasm"))]
impl Clock {
    fn now() -> Self {
        Self(std::time::Instant::now())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[cfg(target_family = "wasm")]
impl Clock {
    fn now() -> Self {
        Self(js_sys::Date::now())
    }

    fn elapsed(&self) -> Duration {
        // The page's clock may be set back.
        Duration::from_secs_f64((js_sys::Date::now() - self.0).max(0.0) / 1000.0)
    }
}
