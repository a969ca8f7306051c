//! Rotary embedding on the device against its f64 reference.

mod common;

use common::rope::{Case, ROWS};
use common::{Layout, context};
use wgpu_attention::{Alignment, DType, Rope, RopePairs};

#[test]
fn pairs_dtypes_layouts_and_parts_of_rows() {
    let Some(context) = context() else { return };
    let mut seed = 0;
    for dtype in DType::ALL {
        for pairs in [RopePairs::Halves, RopePairs::Interleaved] {
            for (dim, rotary_dim, apart) in [(32, 32, 4), (32, 6, 8), (7, 4, 3), (2, 2, 1)] {
                for layout in [Layout::Dense, Layout::Packed, Layout::Apart(apart)] {
                    seed += 1;
                    let rope = Rope::new([2, 3, 17, dim], dtype)
                        .with_pairs(pairs)
                        .with_rotary_dim(rotary_dim)
                        .with_table(DType::ALL[seed as usize % 3]);
                    let mut case = Case::draw(rope, 1 + seed as u32 % 2, seed);
                    case.layout = layout;
                    case.check(context);
                }
            }
        }
    }
}

/// Without positions a token has a row of the table to itself.
#[test]
fn a_row_of_the_table_for_each_token() {
    let Some(context) = context() else { return };
    for entries in [1, 2] {
        let rope = Rope::new([2, 3, 25, 16], DType::F32);
        let mut case = Case::draw(rope, 0, 7);
        case.cos.truncate(entries * 25 * 8);
        case.sin.truncate(entries * 25 * 8);
        case.check(context);
    }
}

/// The product of a turned query and a turned key depends on their distance alone.
#[test]
fn products_depend_on_distances() {
    let Some(context) = context() else { return };
    for pairs in [RopePairs::Halves, RopePairs::Interleaved] {
        let rope = Rope::new([1, 1, 4, 32], DType::F32).with_pairs(pairs);
        let mut case = Case::draw(rope, 1, 3);
        // Two queries and two keys, alike; 5 apart both times.
        let (query, key) = (case.input[..32].to_vec(), case.input[32..64].to_vec());
        case.input = [&query[..], &key, &query, &key].concat();
        case.positions = vec![7, 2, 45, 40];
        let out = case.run(context).expect("runs");
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (near, far) = (dot(&out[..32], &out[32..64]), dot(&out[64..96], &out[96..]));
        assert!((near - far).abs() < 1e-4, "{near} {far}");
        assert!((near - dot(&query, &key)).abs() > 1e-2);
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let Some(context) = context() else { return };
    let refused = |rope: Rope, change: fn(&mut Case), words: &[&str]| {
        let mut case = Case::draw(rope, 1, 1);
        change(&mut case);
        let error = case.run(context).expect_err("refused").to_string();
        for word in words {
            assert!(error.contains(word), "no `{word}` in: {error}");
        }
    };
    let rope = Rope::new([2, 1, 3, 8], DType::F32);
    refused(
        rope,
        |case| case.positions[1] = ROWS,
        &["`positions`", "rows of the tables from 0 to 49", "50 at index 1"],
    );
    refused(rope, |case| case.positions.push(0), &["`positions`", "3 values", "4 values"]);
    refused(rope, |case| case.positions.clear(), &["`cos`", "[2 or 1, 1, 3, 4]", "[16, 1, 3, 4]"]);
    let keep = |_: &mut Case| {};
    refused(rope.with_rotary_dim(5), keep, &["rotary_dim", "even number from 2 to the 8", "got 5"]);
    refused(rope.with_rotary_dim(10), keep, &["rotary_dim", "got 10"]);
    let odd = Rope::new([1, 1, 3, 6], DType::F32).with_alignment(Alignment::Vec4);
    refused(odd, keep, &["alignment", "multiple of 4", "Vec4 with 6"]);
}

#[test]
fn pieces_rotate_the_same() {
    let Some(context) = context() else { return };
    let pieces = context.with_submission_time(std::time::Duration::ZERO);
    // Odd rows of 16 bits go through a second kernel.
    for dim in [32, 7] {
        let case = Case::draw(Rope::new([2, 3, 17, dim], DType::F16).with_rotary_dim(6), 1, 3);
        assert_eq!(case.run(context), case.run(&pieces));
    }
}
