//! Promises: what a call does before it returns, what it does later, and that every failure rejects.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use js_sys::{Array, Promise};
use wasm_bindgen::prelude::*;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(catch, js_namespace = Reflect, js_name = apply)]
    fn apply(
        function: &mut dyn FnMut(),
        this: &JsValue,
        arguments: &Array,
    ) -> Result<JsValue, JsValue>;
}

type Later = Pin<Box<dyn Future<Output = Result<JsValue, JsValue>>>>;

/// Runs `now` before it returns, which reads what the caller gave, then the future that `now` makes.
///
/// The future runs to its first pause before this returns too: its first commands enter the
/// device's queue before those that the caller submits next.
pub fn promise<F, T>(now: impl FnOnce() -> Result<F, JsValue>) -> Promise
where
    F: Future<Output = Result<T, JsValue>> + 'static,
    T: Into<JsValue> + 'static,
{
    let begin = || -> Result<(Later, _), JsValue> {
        let later = now()?;
        let mut later: Later = Box::pin(async move { later.await.map(Into::into) });
        let first = later.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        Ok((later, first))
    };
    match caught(begin).unwrap_or_else(Err) {
        Err(error) => Promise::reject(&error),
        Ok((_, Poll::Ready(Err(error)))) => Promise::reject(&error),
        Ok((_, Poll::Ready(Ok(value)))) => Promise::resolve(&value),
        Ok((later, Poll::Pending)) => {
            let mut later = Some(later);
            wasm_bindgen_futures::future_to_promise(std::future::poll_fn(move |cx| {
                let Some(mut future) = later.take() else { return Poll::Pending };
                // What an exception interrupts is leaked: its destructors cannot run.
                let polled = caught(move || (future.as_mut().poll(cx), future));
                match polled {
                    Err(error) => Poll::Ready(Err(error)),
                    Ok((polled, future)) => {
                        later = Some(future);
                        polled
                    }
                }
            }))
        }
    }
}

/// What `work` returns, or the exception that it ends with. An exception skips the destructors of
/// `work`, so that what it holds is leaked.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, JsValue> {
    let (mut work, mut result) = (Some(work), None);
    let mut function = || result = work.take().map(|work| work());
    apply(&mut function, &JsValue::UNDEFINED, &Array::new())?;
    result.ok_or(JsValue::UNDEFINED)
}
