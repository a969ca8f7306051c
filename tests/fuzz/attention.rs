//! Attention on the device.

use arbitrary::{Result, Unstructured};
use pollster::block_on;
use wgpu_attention::attention::reference::Reference;
use wgpu_attention::{Array, Context, DType, Error, Variant, View};

use crate::common::draw::{DENSE, Drawn, SPARSE, Static};
use crate::common::{Call, Case, Results, each_integer, emulating, on_device, variants};
use crate::{spoil, twice, word};

fn fixed(u: &mut Unstructured<'_>) -> Result<Static> {
    let all: Vec<Static> = DENSE.into_iter().chain(SPARSE).collect();
    u.choose(&all).copied()
}

fn drawn(u: &mut Unstructured<'_>) -> Result<Drawn> {
    Ok(Drawn {
        batch: u.int_in_range(1..=2)?,
        heads: (u.int_in_range(1..=4)?, u.arbitrary()?, u.arbitrary()?),
        lens: (u.int_in_range(0..=70)?, u.int_in_range(0..=160)?),
        dims: (u.int_in_range(0..=255)?, u.int_in_range(0..=255)?),
        words: u.arbitrary::<[u32; 4]>()?.to_vec(),
        positions: u.arbitrary()?,
        scale: *u.choose(&[None, None, Some(0.0), Some(-2.0), Some(1e-3), Some(20.0)])?,
        modifiers: u.arbitrary()?,
        output: u.arbitrary()?,
        layout: u.arbitrary()?,
        lists: u.arbitrary()?,
        seed: u.arbitrary::<u16>()?.into(),
    })
}

/// Where a call's arrays of integers are.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Host,
    /// Where nobody checks them.
    Device,
}

pub fn draw(u: &mut Unstructured<'_>, context: &Context) -> Result<()> {
    let mut case = fixed(u)?.case(&drawn(u)?);
    let finite = !poison(u, &mut case)?;
    let place = *u.choose(&[Place::Host, Place::Device])?;
    let spoilt = spoil(u, &mut case.sides.integers())?;
    let run = |context: &Context, variant| run(&case, context, variant, place);
    for variant in variants(context, &case.attention) {
        if let Some(results) = twice(context, |context| run(context, variant), numbers) {
            judge(&case, &results, variant.label(), (place, spoilt, finite));
        }
    }
    if let Some(emulating) = emulating(context)
        && Variant::Coop.supports(emulating.caps(), &case.attention).is_ok()
        && let Ok(results) = run(emulating, Variant::Coop)
    {
        judge(&case, &results, "attention.coop, emulated", (place, spoilt, finite));
    }
    Ok(())
}

/// Puts numbers that are none, or are extreme, in place of some; whether there are any.
fn poison(u: &mut Unstructured<'_>, case: &mut Case) -> Result<bool> {
    let mut poisoned = false;
    let dtype = case.attention.dtype;
    for _ in 0..u.int_in_range(0..=3)? {
        let tensor = u.choose_index(4)?;
        let bias = case.attention.score.bias.zip(case.bias.as_mut());
        let (values, dtype) = match (tensor, bias) {
            (0, _) => (&mut case.query, dtype),
            (1, _) => (&mut case.key, dtype),
            (2, _) => (&mut case.value, dtype),
            (_, Some(((dtype, _), values))) => (values, dtype),
            (_, None) => continue,
        };
        let numbers = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 65504.0, 1e-8, 1e18];
        let number = dtype.decode(&dtype.encode(&[*u.choose(&numbers)?]))[0];
        let place = u.choose_index(values.len().max(1))?;
        let shared = case.layout == crate::common::Layout::Shared;
        // What all batch entries share cannot be changed in one.
        if let Some(old) = values.get_mut(place).filter(|_| !shared) {
            *old = number;
            poisoned |= !number.is_finite();
        }
    }
    Ok(poisoned)
}

fn run(
    case: &Case,
    context: &Context,
    variant: Variant,
    place: Place,
) -> std::result::Result<Results, Error> {
    let plan = block_on(case.attention.plan_with(context, variant))?;
    if place == Place::Host {
        return case.run_plan(context, &plan);
    }
    let mut arrays = case.sides.arrays();
    let mut words = Vec::new();
    each_integer(&mut arrays, |array| words.extend(array.host().unwrap_or_default()));
    let buffer = on_device(context, &words);
    let mut offset = 0;
    each_integer(&mut arrays, |array| {
        let len = array.len();
        *array = Array::device(&buffer, offset, len);
        offset += len as u64;
    });
    let call = Call::new(context, case);
    let bound = plan.bind(&call.inputs().with_arrays(arrays), &call.outputs())?;
    block_on(context.run(&bound))?;
    Ok(call.results(context))
}

fn numbers(results: &Results) -> Vec<f32> {
    let lse = results.lse.iter().flatten();
    results.out.iter().chain(&results.scores).chain(lse).copied().collect()
}

/// By the reference, where the arrays are as they should be; otherwise nothing but the tensors counts,
/// so that finite ones among NaNs give finite results.
fn judge(
    case: &Case,
    results: &Results,
    label: &str,
    (place, spoilt, finite): (Place, bool, bool),
) {
    if place == Place::Host || !spoilt {
        assert!(Reference::new(&case.attention, &case.host()).is_ok(), "bound without a meaning");
        case.judge(results, label);
    } else if finite {
        let astray = numbers(results).into_iter().find(|x| x.is_nan() || *x == f32::INFINITY);
        assert_eq!(astray, None, "{label}: {:?}", case.attention);
    }
}

/// Views of other shapes, types, offsets and strides than the tensors'.
pub fn draw_views(u: &mut Unstructured<'_>, context: &Context) -> Result<()> {
    let case = DENSE[u.choose_index(4)?].case(&drawn(u)?);
    let variant = variants(context, &case.attention)[0];
    let changed = u.choose_index(5)?;
    let changes: Vec<(usize, usize, u32)> = (0..u.int_in_range(1..=3)?)
        .map(|_| Ok((u.choose_index(4)?, u.choose_index(4)?, word(u)?)))
        .collect::<Result<_>>()?;
    let change = |view: &mut View<'_>| {
        for &(what, axis, word) in &changes {
            match what {
                0 => view.shape[axis] = word,
                1 => view.strides[axis] = word.into(),
                2 => view.offset = word.into(),
                _ => view.dtype = DType::ALL[axis % 3],
            }
        }
    };
    let run = |context: &Context| {
        let plan = block_on(case.attention.plan_with(context, variant))?;
        let call = Call::new(context, &case);
        let (mut inputs, mut outputs) = (call.inputs(), call.outputs());
        match changed {
            0 => change(&mut inputs.query),
            1 => change(&mut inputs.key),
            2 => change(&mut inputs.value),
            3 => outputs.out.as_mut().into_iter().for_each(change),
            _ => outputs.lse.as_mut().into_iter().for_each(change),
        }
        let bound = plan.bind(&inputs.with_arrays(case.sides.arrays()), &outputs)?;
        block_on(context.run(&bound))?;
        // Where outputs have moved, theirs is another place.
        Ok(if changed < 3 { numbers(&call.results(context)) } else { Vec::new() })
    };
    twice(context, run, Vec::clone);
    Ok(())
}
