//! Rows scattered into caches on the device.

mod common;

use common::{Layout, Placed, Random, context};
use wgpu_attention::{Array, Context, DType, Error, Scatter, ScatterInputs};

/// The cache after the rows have been written into it.
fn run(
    context: &Context,
    scatter: &Scatter,
    layout: Layout,
    (rows, starts, cache): (&[f32], &[u32], &[f32]),
) -> Result<Vec<f32>, Error> {
    let rows = Placed::new(context, scatter.dtype, scatter.shape, layout, Some(rows));
    let cache = Placed::new(context, scatter.dtype, scatter.cache(), layout, Some(cache));
    let inputs = ScatterInputs::new(rows.view(), Array::u32(starts));
    let bound = pollster::block_on(scatter.plan(context))?.bind(&inputs, cache.view())?;
    pollster::block_on(context.run(&bound))?;
    Ok(cache.read(context))
}

#[test]
fn rows_land_where_they_should() {
    let Some(context) = context() else { return };
    let mut random = Random::new(1);
    for dtype in DType::ALL {
        for (shape, capacity) in [([2, 3, 2, 8], 5), ([3, 1, 4, 6], 4), ([1, 2, 1, 130], 300)] {
            for circular in [false, true] {
                for layout in [Layout::Dense, Layout::Packed, Layout::Apart(2)] {
                    let scatter = Scatter::new(shape, capacity, dtype).with_circular(circular);
                    let [batch, heads, len, dim] = shape.map(|n| n as usize);
                    let highest = if circular { capacity } else { capacity - shape[2] + 1 };
                    let starts: Vec<u32> = (0..batch).map(|_| random.below(highest)).collect();
                    let rows = random.normal(dtype, batch * heads * len * dim);
                    let mut cache = random.normal(dtype, batch * heads * capacity as usize * dim);
                    let got = run(context, &scatter, layout, (&rows, &starts, &cache));
                    for (index, row) in rows.chunks(dim).enumerate() {
                        let (head, t) = (index / len, index % len);
                        let position = (starts[head / heads] as usize + t) % capacity as usize;
                        cache[(head * capacity as usize + position) * dim..][..dim]
                            .copy_from_slice(row);
                    }
                    assert_eq!(got, Ok(cache), "{scatter:?} {layout:?}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let Some(context) = context() else { return };
    let refused = |scatter: Scatter, starts: &[u32], words: &[&str]| {
        let count = |shape: [u32; 4]| vec![0.0; shape.iter().product::<u32>() as usize];
        let tensors = (&count(scatter.shape)[..], starts, &count(scatter.cache())[..]);
        let error = run(context, &scatter, Layout::Dense, tensors).expect_err("refused");
        for word in words {
            assert!(error.to_string().contains(word), "no `{word}` in: {error}");
        }
    };
    let scatter = Scatter::new([2, 1, 3, 4], 5, DType::F32);
    refused(scatter, &[0, 3], &["`starts`", "up to 2", "3 at index 1"]);
    refused(scatter.with_circular(true), &[5, 0], &["`starts`", "up to 4", "5 at index 0"]);
    refused(scatter, &[0], &["`starts`", "2 values", "1 values"]);
    refused(Scatter::new([1, 1, 6, 4], 5, DType::F32), &[0], &["capacity", "6 rows", "got 5"]);
    refused(Scatter::new([1, 1, 1, 3], 5, DType::F16), &[0], &["shape", "even last axis", "got 3"]);
}

#[test]
fn pieces_write_the_same_rows() {
    let Some(context) = context() else { return };
    let pieces = context.with_submission_time(std::time::Duration::ZERO);
    let scatter = Scatter::new([2, 3, 9, 34], 20, DType::F16).with_circular(true);
    let mut random = Random::new(2);
    let rows = random.normal(DType::F16, 2 * 3 * 9 * 34);
    let cache = random.normal(DType::F16, 2 * 3 * 20 * 34);
    let run = |context| run(context, &scatter, Layout::Dense, (&rows, &[3, 15], &cache));
    assert_eq!(run(context), run(&pieces));
}
