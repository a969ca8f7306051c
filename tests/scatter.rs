//! Rows scattered into caches on the device.

mod common;

use common::scatter::Case;
use common::{Layout, context};
use wgpu_attention::{DType, Scatter};

#[test]
fn rows_land_where_they_should() {
    let Some(context) = context() else { return };
    let mut seed = 0;
    for dtype in DType::ALL {
        for (shape, capacity) in [([2, 3, 2, 8], 5), ([3, 1, 4, 6], 4), ([1, 2, 1, 130], 300)] {
            for circular in [false, true] {
                for layout in [Layout::Dense, Layout::Packed, Layout::Apart(2)] {
                    seed += 1;
                    let scatter = Scatter::new(shape, capacity, dtype).with_circular(circular);
                    let mut case = Case::draw(scatter, seed);
                    case.layout = layout;
                    assert_eq!(case.run(context), Ok(case.expected()), "{scatter:?} {layout:?}");
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let Some(context) = context() else { return };
    let refused = |scatter: Scatter, starts: &[u32], words: &[&str]| {
        let mut case = Case::draw(scatter, 1);
        case.starts = starts.to_vec();
        let error = case.run(context).expect_err("refused");
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
    let mut case = Case::draw(scatter, 2);
    case.starts = vec![3, 15];
    assert_eq!(case.run(context), case.run(&pieces));
}
