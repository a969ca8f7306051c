//! Merge, rope and scatter on the device.

use arbitrary::{Result, Unstructured};
use wgpu_attention::{Context, DType, Merge, MergeRule, Rope, RopePairs, Scatter};

use crate::common::Layout;
use crate::common::merge::Parts;
use crate::common::rope::Case as Rotation;
use crate::common::scatter::Case as Rows;
use crate::{spoil, twice};

pub fn draw(u: &mut Unstructured<'_>, context: &Context) -> Result<()> {
    match u.int_in_range(0..=2)? {
        0 => merge(u, context),
        1 => rope(u, context),
        _ => scatter(u, context),
    }
}

/// `[batch, heads, len, dim]`, the dim one of two.
fn shape(u: &mut Unstructured<'_>, dims: [u32; 2]) -> Result<[u32; 4]> {
    let [batch, heads] = [u.int_in_range(0..=2)?, u.int_in_range(0..=3)?];
    Ok([batch, heads, u.int_in_range(0..=40)?, *u.choose(&dims)?])
}

fn layout(u: &mut Unstructured<'_>, dim: u32) -> Result<Layout> {
    let apart = if dim.is_multiple_of(4) { 4 } else { 1 + 2 * u.int_in_range(0..=3)? };
    u.choose(&[Layout::Dense, Layout::Packed, Layout::Apart(apart)]).copied()
}

fn merge(u: &mut Unstructured<'_>, context: &Context) -> Result<()> {
    let shape = shape(u, [32, 7])?;
    let rule = *u.choose(&[MergeRule::Lse, MergeRule::Weights, MergeRule::Sum])?;
    let dtype = *u.choose(&DType::ALL)?;
    let mut merge = Merge::new(u.int_in_range(1..=4)?, shape, dtype).with_rule(rule);
    merge.lse = rule == MergeRule::Lse && u.arbitrary()?;
    let mut parts = Parts::draw(merge, u.arbitrary::<u16>()?.into());
    parts.layout = layout(u, shape[3])?;
    if u.arbitrary()? && rule == MergeRule::Lse {
        parts.logits = Some(parts.lse.iter().rev().map(|x| x / 20.0).collect());
    }
    for _ in 0..u.int_in_range(0..=4)? {
        let which = u.choose_index(4)?;
        // -1e30 stands for -∞ among LSEs. Times a weight it is a number that reading takes for -∞, which no
        // result of a merge is meant to be.
        let least = if [0, 2].contains(&which) { -1e20 } else { -1e30 };
        let number = *u.choose(&[f32::NAN, f32::NEG_INFINITY, least, 0.0])?;
        let Parts { out, lse, weights, logits, .. } = &mut parts;
        let values = [out, lse, weights].into_iter().chain(logits).nth(which);
        let place = u.choose_index(values.as_ref().map_or(0, |values| values.len()).max(1))?;
        if let Some(old) = values.and_then(|values| values.get_mut(place)) {
            let rounded = || dtype.decode(&dtype.encode(&[number]))[0];
            *old = if which == 0 { rounded() } else { number };
        }
    }
    let numbers = |(out, lse): &(Vec<f32>, Vec<f32>)| [&out[..], lse].concat();
    if let Some((out, lse)) = twice(context, |context| parts.run(context), numbers) {
        parts.judge(&out, &lse);
    }
    Ok(())
}

fn rope(u: &mut Unstructured<'_>, context: &Context) -> Result<()> {
    let shape = shape(u, [32, 7])?;
    let rope = Rope::new(shape, *u.choose(&DType::ALL)?)
        .with_pairs(*u.choose(&[RopePairs::Halves, RopePairs::Interleaved])?)
        .with_rotary_dim(u.int_in_range(0..=shape[3] + 1)?)
        .with_table(*u.choose(&DType::ALL)?);
    let entries = *u.choose(&[1, shape[0]])?;
    let mut case = Rotation::draw(rope, entries, u.arbitrary::<u16>()?.into());
    case.layout = layout(u, shape[3])?;
    case.unseen = u.arbitrary::<bool>()? && !case.positions.is_empty();
    if case.positions.is_empty() {
        // Then a token has a row of the tables to itself.
        let rows = (shape[2] * (rope.rotary_dim / 2)) as usize;
        case.cos.truncate(rows);
        case.sin.truncate(rows);
    }
    let spoilt = spoil(u, &mut [&mut case.positions])?;
    if let Some(out) = twice(context, |context| case.run(context), Vec::clone) {
        if spoilt && case.unseen {
            assert!(out.iter().all(|x| x.is_finite()), "{rope:?}");
        } else {
            case.judge(&out);
        }
    }
    Ok(())
}

fn scatter(u: &mut Unstructured<'_>, context: &Context) -> Result<()> {
    let shape = shape(u, [6, 32])?;
    let scatter = Scatter::new(shape, u.int_in_range(0..=60)?, *u.choose(&DType::ALL)?)
        .with_circular(u.arbitrary()?);
    let mut case = Rows::draw(scatter, u.arbitrary::<u16>()?.into());
    let apart = Layout::Apart(u.int_in_range(0..=5)?);
    case.layout = *u.choose(&[Layout::Dense, Layout::Packed, apart])?;
    case.unseen = u.arbitrary()?;
    let spoilt = spoil(u, &mut [&mut case.starts])?;
    if let Some(cache) = twice(context, |context| case.run(context), Vec::clone) {
        if spoilt && case.unseen {
            assert!(cache.iter().all(|x| x.is_finite()), "{scatter:?}");
        } else {
            assert_eq!(cache, case.expected(), "{scatter:?}");
        }
    }
    Ok(())
}
