//! Linear attention on the device.

use arbitrary::{Result, Unstructured};
use wgpu_attention::{
    Carry, Context, DType, Error, FeatureMap, LinearAttention, LinearVariant, Rule, Shape,
};

use crate::common::Layout;
use crate::common::linear::{Case, Given};
use crate::{spoil, twice};

/// What a shader is compiled for.
struct Static {
    dtype: DType,
    rule: Rule,
    map: FeatureMap,
    normalize: bool,
    documents: bool,
    carry: Carry,
    dims: (u32, u32),
}

const fn fixed(dtype: DType, rule: Rule, carry: Carry, dims: (u32, u32)) -> Static {
    let map = FeatureMap::Identity;
    Static { dtype, rule, map, normalize: false, documents: false, carry, dims }
}

/// Every value of every member, in as few as may be.
const STATICS: [Static; 6] = {
    use Carry::{InOut, None, Out};
    use DType::{BF16, F16, F32};
    use FeatureMap::{Elu1, Silu, Taylor2};
    let gated = Rule::GatedDelta { per_key_dim: false };
    [
        fixed(F32, Rule::Decay, InOut, (16, 32)),
        Static { map: Silu, ..fixed(F16, Rule::Gated { per_key_dim: true }, None, (16, 16)) },
        fixed(BF16, Rule::Delta, Out, (16, 16)),
        Static { documents: true, ..fixed(F32, gated, InOut, (16, 16)) },
        Static {
            map: Elu1,
            normalize: true,
            documents: true,
            ..fixed(F16, Rule::Decay, InOut, (16, 32))
        },
        Static { map: Taylor2, ..fixed(F16, Rule::Decay, Out, (5, 7)) },
    ]
};

fn drawn(u: &mut Unstructured<'_>) -> Result<Case> {
    let fixed = &STATICS[u.choose_index(STATICS.len())?];
    let key_heads = u.int_in_range(1..=2)?;
    let heads = key_heads * u.int_in_range(1..=2)?;
    let len = u.int_in_range(0..=140)?;
    let shape = Shape::new(u.int_in_range(1..=2)?, heads, len, fixed.dims.0)
        .with_key_value_heads(key_heads)
        .with_value_dim(fixed.dims.1);
    let mut linear = LinearAttention::new(shape, fixed.dtype)
        .with_rule(fixed.rule)
        .with_feature_map(fixed.map)
        .with_scale(*u.choose(&[1.0, 0.25, -3.0, 0.0])?)
        .with_carry(fixed.carry);
    linear.documents = fixed.documents;
    linear.normalize = fixed.normalize.then_some(1e-6);
    let starts = match fixed.documents {
        true => {
            let mut starts = vec![0, len];
            for _ in 0..u.int_in_range(0..=4)? {
                starts.push(u.int_in_range(0..=len)?);
            }
            starts.sort_unstable();
            Some(starts)
        }
        false => None,
    };
    let mut case = Case::with_starts(linear, u.arbitrary::<u16>()?.into(), starts);
    for gate in case.gate.iter_mut().chain(&mut case.decay).flatten().step_by(7) {
        *gate *= *u.choose(&[1.0, 0.0, 100.0, 1e6])?;
    }
    case.side_dtype = *u.choose(&DType::ALL)?;
    case = {
        let side_dtype = case.side_dtype;
        case.with_side_dtype(side_dtype)
    };
    let apart = if fixed.dims.0.is_multiple_of(4) { 4 } else { 3 };
    let layouts = [Layout::Dense, Layout::Packed, Layout::Apart(apart), Layout::Shared];
    let layout = *u.choose(&layouts)?;
    Ok(case.with_layout(layout))
}

pub fn draw(u: &mut Unstructured<'_>, context: &Context) -> Result<()> {
    let mut case = drawn(u)?;
    case.unseen = u.arbitrary()?;
    let mut starts: Vec<&mut [u32]> = case.starts.as_deref_mut().into_iter().collect();
    let spoilt = spoil(u, &mut starts)?;
    let poison = poison(u, &case)?;
    let run = |context: &Context, variant| case.run(context, Some(variant));
    // Not `linear.coop`: it rounds factors to f16, for which the tolerance has no term. Numbers of any
    // kind are too much for it; those of `linear_coop.rs` are not.
    for variant in [LinearVariant::Columns, LinearVariant::Recurrent, LinearVariant::Chunked] {
        if variant.supports(context.caps(), &case.linear).is_err() {
            continue;
        }
        let Some(given) = twice(context, |context| run(context, variant), numbers) else {
            continue;
        };
        if !spoilt || !case.unseen {
            case.judge(&given, variant);
        } else {
            let astray = numbers(&given).into_iter().find(|x| !x.is_finite());
            assert_eq!(astray, None, "{variant}: {:?}", case.linear);
        }
        if let Some(poison) = &poison {
            poison.check(context, &case, &given, variant).expect("it ran before");
        }
    }
    Ok(())
}

fn numbers(given: &Given) -> Vec<f32> {
    let carried = given.state.iter().chain(&given.normalizer).flatten();
    given.out.iter().chain(carried).copied().collect()
}

/// A number that is none, in one tensor at one place.
struct Poison {
    tensor: usize,
    place: usize,
    number: f32,
}

/// One, where tensors are large enough for one and not shared.
fn poison(u: &mut Unstructured<'_>, case: &Case) -> Result<Option<Poison>> {
    let tensor = u.choose_index(3)?;
    let len = [&case.query, &case.key, &case.value][tensor].len();
    if len == 0 || case.layout == Layout::Shared || u.arbitrary()? {
        return Ok(None);
    }
    let number = *u.choose(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY])?;
    Ok(Some(Poison { tensor, place: u.choose_index(len)?, number }))
}

impl Poison {
    /// It reaches no other batch entry and no other head's state.
    fn check(
        &self,
        context: &Context,
        case: &Case,
        sound: &Given,
        variant: LinearVariant,
    ) -> std::result::Result<(), Error> {
        let mut case = case.clone();
        let shape = case.linear.shape;
        let tensors = [&mut case.query, &mut case.key, &mut case.value];
        let sizes = [shape.query(), shape.key(), shape.value()][self.tensor];
        tensors.into_iter().nth(self.tensor).expect("one of three")[self.place] = self.number;
        let [_, heads, len, dim] = sizes.map(|n| n as usize);
        let head = self.place / (len * dim);
        let group = shape.query_heads as usize / heads;
        let got = case.run(context, Some(variant))?;
        let rows = (shape.query_len * shape.value_dim) as usize;
        let heads = sound.out.chunks(rows).zip(got.out.chunks(rows)).enumerate();
        for (query_head, (sound, got)) in heads.filter(|(query_head, _)| query_head / group != head)
        {
            let same = sound.iter().zip(got).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{variant}: head {head} reaches {query_head}: {:?}", case.linear);
        }
        Ok(())
    }
}
