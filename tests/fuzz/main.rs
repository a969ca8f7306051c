//! Calls drawn from bytes, of every op, with numbers that are none, views that lie anywhere and arrays that
//! are wrong: each is refused with a sentence, or runs and gives what the reference gives, the same bits
//! with the shader compiler's checks as without. Nothing outside of a tensor counts or is written.
//!
//! This is the fuzz target `calls`; what it kept of a long run is replayed as a test.
#![cfg_attr(fuzzing, no_main)]

#[path = "../common/mod.rs"]
mod common;

mod attention;
mod linear;
mod others;
mod planned;

use std::sync::OnceLock;

use arbitrary::{Result, Unstructured};
use common::context;
use wgpu_attention::{Context, Error};

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| assert!(call(bytes), "there is no device to run on"));

/// Draws a call and makes it; false where there is no device.
fn call(bytes: &[u8]) -> bool {
    let Some(context) = context() else { return false };
    // Bytes that are too few for what is drawn are as good as none.
    let _ = draw(&mut Unstructured::new(bytes), context);
    true
}

fn draw(u: &mut Unstructured<'_>, context: &Context) -> Result<()> {
    match u.int_in_range(0..=9)? {
        0..4 => attention::draw(u, context),
        4 => attention::draw_views(u, context),
        5 | 6 => linear::draw(u, context),
        7 => others::draw(u, context),
        _ => planned::draw(u),
    }
}

/// Does the same with and without the shader compiler's checks: both are refused alike, or give the same
/// bits where a CPU computes. A GPU's compiler may join products and sums in other places once there are
/// checks.
fn twice<T>(
    context: &Context,
    run: impl Fn(&Context) -> std::result::Result<T, Error>,
    numbers: impl Fn(&T) -> Vec<f32>,
) -> Option<T> {
    static CHECKED: OnceLock<Context> = OnceLock::new();
    let checked = CHECKED.get_or_init(|| context.with_checked_shaders(true));
    match (run(context), run(checked)) {
        (Ok(plain), Ok(guarded)) => {
            // One NaN is as good as another.
            let bits = |numbers: Vec<f32>| -> Vec<u32> {
                numbers
                    .into_iter()
                    .map(|x| if x.is_nan() { f32::NAN } else { x }.to_bits())
                    .collect()
            };
            let same = bits(numbers(&plain)) == bits(numbers(&guarded));
            assert!(same || !context.caps().is_cpu, "checks change the result");
            Some(plain)
        }
        (Err(plain), Err(guarded)) => {
            assert_eq!(plain, guarded);
            refused(&plain);
            None
        }
        (plain, guarded) => {
            panic!("plain {:?}, checked {:?}", plain.map(|_| ()), guarded.map(|_| ()))
        }
    }
}

/// What is refused is refused by us, with a sentence, before the device sees it.
fn refused(error: &Error) {
    let by_us = matches!(
        error,
        Error::Tensor { .. }
            | Error::Config { .. }
            | Error::SharedBuffer { .. }
            | Error::Limit { .. }
            | Error::Unsupported(_)
    );
    assert!(by_us, "{error:?}");
    assert!(
        error.to_string().contains("expected")
            || matches!(
                error,
                Error::Limit { .. } | Error::Unsupported(_) | Error::SharedBuffer { .. }
            ),
        "{error}"
    );
}

/// Words that lie near limits, or any.
fn word(u: &mut Unstructured<'_>) -> Result<u32> {
    let near = [0, 1, 31, 63, 64, 65, 1 << 28, 1 << 29, (1 << 31) - 1, 1 << 31, u32::MAX];
    if u.ratio(2, 3)? { Ok(*u.choose(&near)?) } else { u.arbitrary() }
}

/// Puts words in place of some; whether there was one to replace.
fn spoil(u: &mut Unstructured<'_>, arrays: &mut [&mut [u32]]) -> Result<bool> {
    let mut spoilt = false;
    for _ in 0..u.int_in_range(0..=4)? {
        let array = u.choose_index(arrays.len().max(1))?;
        let Some(array) = arrays.get_mut(array) else { continue };
        let place = u.choose_index(array.len().max(1))?;
        if let Some(old) = array.get_mut(place) {
            *old = word(u)?;
            spoilt = true;
        }
    }
    Ok(spoilt)
}

/// What runs of the fuzzer have found worth keeping.
#[test]
fn the_corpus_is_right_or_refused() {
    let folder = common::corpus().join("calls");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the corpus")
        .map(|file| file.expect("a file").path())
        .collect();
    files.sort();
    assert!(files.len() > 10, "only {} files in {}", files.len(), folder.display());
    for file in files {
        // The last name before a panic is the culprit's.
        eprintln!("{}", file.file_name().unwrap_or_default().to_string_lossy());
        if !call(&std::fs::read(&file).expect("readable")) {
            return;
        }
    }
}
