//! Waiting for the device, and copies to the host.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::device::Context;
use crate::error::Error;
use crate::tensor::View;

/// The first and the longest pause between two looks at the device; each is twice the one before.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

/// Resolves once the device has finished what was submitted so far.
pub(crate) async fn finished(context: &Context) -> Result<(), Error> {
    let done = Signal::<()>::default();
    let setter = done.clone();
    context.queue().on_submitted_work_done(move || setter.set(()));
    done.wait(context).await?;
    match context.lost() {
        Some(_) => Err(context.loss("")),
        None => Ok(()),
    }
}

/// The numbers of a view, contiguous in the order `[batch, heads, len, dim]`.
pub(crate) async fn read(context: &Context, view: View<'_>) -> Result<Vec<f32>, Error> {
    view.check("read", view.shape, None)?;
    if !view.buffer.usage().contains(wgpu::BufferUsages::COPY_SRC) {
        return Err(Error::tensor(
            "read",
            "a buffer with usage COPY_SRC",
            format!("usages {:?}", view.buffer.usage()),
        ));
    }
    let size = view.dtype.size();
    let span = view.span().unwrap_or(0);
    if span == 0 {
        return Ok(Vec::new());
    }
    // Copies go by whole words.
    let first_byte = view.offset * size / 4 * 4;
    let end_byte = ((view.offset + span) * size).next_multiple_of(4);
    let bytes = read_bytes(context, view.buffer, first_byte, end_byte - first_byte).await?;
    let elements = view.dtype.decode(&bytes);
    let origin = view.offset - first_byte / size;
    let [batches, heads, rows, columns] = view.shape.map(u64::from);
    let [batch, head, row, column] = view.strides;
    let count = batches.saturating_mul(heads).saturating_mul(rows).saturating_mul(columns);
    let mut numbers = Vec::new();
    // With strides of 0 a small buffer may stand for any number of elements.
    let reserved = usize::try_from(count).map(|count| numbers.try_reserve_exact(count));
    if !matches!(reserved, Ok(Ok(()))) {
        let got = format!("shape {:?}", view.shape);
        return Err(Error::tensor("read", "a number of elements that the host can hold", got));
    }
    for b in 0..batches {
        for h in 0..heads {
            for i in 0..rows {
                let start = origin + b * batch + h * head + i * row;
                numbers.extend((0..columns).map(|d| elements[(start + d * column) as usize]));
            }
        }
    }
    Ok(numbers)
}

async fn read_bytes(
    context: &Context,
    buffer: &wgpu::Buffer,
    offset: u64,
    size: u64,
) -> Result<Vec<u8>, Error> {
    let device = context.device();
    // Scopes are thread-local: both are closed before anything is awaited.
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let staging = device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("readback"),
        size,
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        mapped_at_creation: false,
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, size);
    context.queue().submit([encoder.finish()]);
    let mapped = Signal::default();
    let setter = mapped.clone();
    staging.map_async(wgpu::MapMode::Read, .., move |result| setter.set(result));
    let (validation, memory) = (validation.pop(), memory.pop());
    if let Some(error) = memory.await {
        return Err(context.failure(error));
    }
    if let Some(error) = validation.await {
        return Err(context.failure(error));
    }
    mapped
        .wait(context)
        .await?
        .map_err(|error| context.loss(&format!("a buffer could not be mapped ({error})")))?;
    let bytes = staging
        .get_mapped_range(..)
        .map_err(|error| context.loss(&format!("a buffer could not be read ({error})")))?
        .to_vec();
    staging.unmap();
    Ok(bytes)
}

/// A value that a callback of the device will set.
struct Signal<T>(Arc<Mutex<State<T>>>);

struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
}

impl<T> Clone for Signal<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Signal<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State { value: None, waker: None })))
    }
}

impl<T> Signal<T> {
    fn set(&self, value: T) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.value = Some(value);
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }

    /// Waits for the value. On native nobody else polls the device, so this does; in a browser
    /// polling does nothing and the callback wakes the task.
    async fn wait(&self, context: &Context) -> Result<T, Error> {
        let mut pause = PAUSES.0;
        std::future::poll_fn(|cx| self.poll(context, &mut pause, cx)).await
    }

    /// Looks for the value, then at the device and for the value again.
    fn poll(
        &self,
        context: &Context,
        pause: &mut Duration,
        cx: &std::task::Context<'_>,
    ) -> Poll<Result<T, Error>> {
        let take = || {
            let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.waker = Some(cx.waker().clone());
            state.value.take()
        };
        // A look, not a wait with a timeout: wgpu 30 panics when such a wait runs out while another
        // thread polls the device too. What it may return concerns waits alone.
        let value = take().or_else(|| {
            let _ = context.device().poll(wgpu::PollType::Poll);
            take()
        });
        if let Some(value) = value {
            return Poll::Ready(Ok(value));
        }
        if context.lost().is_some() {
            return Poll::Ready(Err(context.loss("")));
        }
        if cfg!(not(target_family = "wasm")) {
            std::thread::sleep(*pause);
            *pause = (*pause * 2).min(PAUSES.1);
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
