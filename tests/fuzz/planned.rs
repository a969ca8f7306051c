//! Configurations of any numbers, for devices of any limits, as far as they go without a device: what is
//! supported composes, and what is not is refused by the same sentence.

use arbitrary::{Result, Unstructured};
use wgpu_attention::keys::BLOCK_KEYS;
use wgpu_attention::{
    Activation, Alignment, Arrays, Attention, Broadcast, Caps, DType, FeatureMap, KeyList, KeyRows,
    Keys, LinearAttention, LinearVariant, ListHeads, Lists, Mask, Merge, Pattern, Positions, Rope,
    Rule, Scatter, Shape, Stage, Target, Variant,
};

use crate::common::add_matrices;
use crate::{refused, word};

pub fn draw(u: &mut Unstructured<'_>) -> Result<()> {
    match u.int_in_range(0..=5)? {
        0 | 1 => attention(u),
        2 => linear(u),
        3 => small_ops(u),
        _ => lists(u),
    }
}

fn caps(u: &mut Unstructured<'_>) -> Result<Caps> {
    let mut caps = Caps::portable();
    if u.ratio(1, 4)? {
        add_matrices(&mut caps);
    }
    let sizes = [0, 4, 8, 16, 32, 64, 128];
    caps.subgroup = *u.choose(&[None, Some((4, 4)), Some((8, 32)), Some((32, 32))])?;
    if u.ratio(1, 4)? {
        caps.subgroup = Some((*u.choose(&sizes)?, *u.choose(&sizes)?));
    }
    caps.is_cpu = u.arbitrary()?;
    caps.shader_f16 = u.arbitrary()?;
    if u.ratio(1, 4)? {
        caps.workgroup_memory = word(u)?;
    }
    if u.ratio(1, 4)? {
        caps.workgroup_invocations = *u.choose(&[0, 1, 64, 128, 256, 1024, u32::MAX])?;
    }
    if u.ratio(1, 4)? {
        caps.storage_buffers = u.int_in_range(0..=9)?;
    }
    Ok(caps)
}

/// A size that means something, or any.
fn size(u: &mut Unstructured<'_>, most: u32) -> Result<u32> {
    if u.ratio(1, 12)? { word(u) } else { u.int_in_range(1..=most) }
}

fn shape(u: &mut Unstructured<'_>) -> Result<Shape> {
    let heads = size(u, 6)?;
    let mut shape = Shape::new(size(u, 3)?, heads, size(u, 300)?, size(u, 576)?)
        .with_key_value_heads(if u.ratio(1, 4)? { size(u, 6)? } else { heads });
    if u.arbitrary()? {
        shape = shape.with_key_len(size(u, 300)?);
    }
    Ok(if u.arbitrary()? { shape.with_value_dim(size(u, 576)?) } else { shape })
}

fn lists_of(u: &mut Unstructured<'_>) -> Result<Lists> {
    let heads = [ListHeads::Shared, ListHeads::KeyHead, ListHeads::QueryHead];
    Ok(Lists { per_batch: u.arbitrary()?, heads: *u.choose(&heads)? })
}

fn keys(u: &mut Unstructured<'_>) -> Result<Keys> {
    let lists = lists_of(u)?;
    let block_q = if u.ratio(1, 8)? { word(u)? } else { 16 * u.int_in_range(1..=9)? };
    let block_k = if u.ratio(1, 8)? { word(u)? } else { *u.choose(&BLOCK_KEYS)? };
    let blocks = Keys::Blocks { block_q, block_k, lists };
    u.choose(&[Keys::Dense, blocks, Keys::Indices { block_q, lists }]).copied()
}

/// Up to five terms, one more than there may be.
fn mask(u: &mut Unstructured<'_>) -> Result<Mask> {
    let mut mask = Mask::full();
    for _ in 0..u.int_in_range(0..=6)? {
        let bounds = [u.arbitrary::<Option<u32>>()?, Some(word(u)?)];
        let words = [
            Mask::causal(),
            Mask::causal_top_left(),
            Mask::window(bounds[0], bounds[1]),
            Mask::sink(word(u)?),
            Mask::prefix(word(u)?),
            Mask::documents(),
            Mask::lengths(),
            Mask::roles(),
            Mask::tree(),
            Mask::dense(),
        ];
        let word = u.choose(&words)?.clone();
        mask = if u.ratio(1, 3)? { mask | word } else { mask & word };
    }
    Ok(mask)
}

fn number(u: &mut Unstructured<'_>) -> Result<f32> {
    let numbers = [0.0, 1.0, -2.0, 1e-30, 1e30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    u.choose(&numbers).copied()
}

fn some<T>(
    u: &mut Unstructured<'_>,
    make: fn(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Option<T>> {
    if u.ratio(1, 3)? { make(u).map(Some) } else { Ok(None) }
}

fn broadcast(u: &mut Unstructured<'_>) -> Result<Broadcast> {
    Ok(Broadcast { per_batch: u.arbitrary()?, per_head: u.arbitrary()? })
}

fn attention_of(u: &mut Unstructured<'_>) -> Result<Attention> {
    let dtype = *u.choose(&DType::ALL)?;
    let positions = [Positions::BottomRight, Positions::TopLeft, Positions::PerBatch];
    let mut attention = Attention::new(shape(u)?, dtype)
        .with_mask(mask(u)?)
        .with_keys(if u.ratio(1, 3)? { keys(u)? } else { Keys::Dense })
        .with_positions(*u.choose(&positions)?);
    attention.access =
        *u.choose(&[None, Some(Alignment::Vec4), Some(Alignment::Any), Some(Alignment::Vec8)])?;
    let score = &mut attention.score;
    score.scale = some(u, number)?;
    score.softcap = some(u, number)?;
    score.alibi = u.arbitrary()?;
    score.sinks = u.ratio(1, 4)?;
    score.key_bias = some(u, broadcast)?;
    score.bias = some(u, broadcast)?.map(|broadcast| (dtype, broadcast));
    if u.ratio(1, 4)? {
        attention.activation = Activation::Sigmoid { bias: some(u, number)? };
    }
    Ok(match u.int_in_range(0..=7)? {
        0 => attention.with_scores(*u.choose(&Stage::ALL)?),
        1 => attention.with_block_sums(*u.choose(&BLOCK_KEYS)?, word(u)?),
        2 => attention.with_block_sums(*u.choose(&BLOCK_KEYS)?, *u.choose(&BLOCK_KEYS)?),
        3 => attention.with_lse(),
        _ => attention,
    })
}

fn attention(u: &mut Unstructured<'_>) -> Result<()> {
    let (caps, attention) = (caps(u)?, attention_of(u)?);
    for variant in Variant::ALL {
        let supported = variant.supports(&caps, &attention);
        match attention.compose(&caps, variant, Target::Native) {
            Ok(sources) => {
                assert_eq!(supported, Ok(()), "{variant}");
                assert!(sources.iter().all(|source| !source.wgsl().is_empty()));
            }
            Err(error) => {
                refused(&error);
                assert!(attention.validate().is_err() || supported.is_err(), "{variant}: {error}");
            }
        }
    }
    Ok(())
}

fn linear(u: &mut Unstructured<'_>) -> Result<()> {
    let caps = caps(u)?;
    let per_key_dim = u.arbitrary()?;
    let rules =
        [Rule::Decay, Rule::Gated { per_key_dim }, Rule::Delta, Rule::GatedDelta { per_key_dim }];
    let mut linear = LinearAttention::new(shape(u)?, *u.choose(&DType::ALL)?)
        .with_rule(*u.choose(&rules)?)
        .with_feature_map(*u.choose(&FeatureMap::ALL)?);
    linear.shape.key_len = if u.ratio(7, 8)? { linear.shape.query_len } else { size(u, 300)? };
    if u.ratio(3, 4)? {
        linear.shape.head_dim %= 257;
        linear.shape.value_dim %= 257;
    }
    linear.access = *u.choose(&[None, Some(Alignment::Vec4), Some(Alignment::Any)])?;
    linear.normalize = some(u, number)?;
    linear.scale = if u.ratio(1, 4)? { number(u)? } else { 1.0 };
    linear.chunk = some(u, |u| size(u, 128))?;
    linear.block = some(u, |u| size(u, 128))?;
    linear.documents = u.arbitrary()?;
    for variant in LinearVariant::ALL {
        let supported = variant.supports(&caps, &linear);
        match linear.compose(&caps, variant, Target::Native) {
            Ok(_) => assert_eq!(supported, Ok(()), "{variant}"),
            Err(error) => {
                refused(&error);
                assert!(linear.validate().is_err() || supported.is_err(), "{variant}: {error}");
            }
        }
    }
    Ok(())
}

fn small_ops(u: &mut Unstructured<'_>) -> Result<()> {
    let shape = [size(u, 3)?, size(u, 3)?, size(u, 50)?, size(u, 600)?];
    let dtype = *u.choose(&DType::ALL)?;
    let (parts, rotary_dim, capacity) = (size(u, 5)?, size(u, 64)?, size(u, 60)?);
    let mut merge = Merge::new(parts, shape, dtype);
    merge.access = *u.choose(&[None, Some(Alignment::Vec4), Some(Alignment::Any)])?;
    let rope = Rope::new(shape, dtype).with_rotary_dim(rotary_dim);
    let results = [
        merge.compose(Target::Native).map(|_| ()),
        rope.compose(Target::Native).map(|_| ()),
        Scatter::new(shape, capacity, dtype).validate(),
    ];
    results.iter().filter_map(|result| result.as_ref().err()).for_each(refused);
    Ok(())
}

/// Lists from words, from block masks, from masks and from patterns: each is refused, or is one that
/// can be asked about every pair.
fn lists(u: &mut Unstructured<'_>) -> Result<()> {
    let shape = Shape::new(u.int_in_range(1..=2)?, 2, u.int_in_range(0..=70)?, 8)
        .with_key_heads(u.int_in_range(1..=2)?)
        .with_key_len(u.int_in_range(0..=130)?);
    let keys = keys(u)?;
    let attention = Attention::new(shape, DType::F32).with_mask(mask(u)?);
    let arrays = Arrays::default();
    let words = |u: &mut Unstructured<'_>| -> Result<Vec<u32>> {
        (0..u.int_in_range(0..=12)?)
            .map(|_| if u.arbitrary()? { word(u) } else { u.int_in_range(0..=130) })
            .collect()
    };
    let made = match u.int_in_range(0..=4)? {
        0 => {
            let mut offsets = words(u)?;
            if u.arbitrary()? {
                offsets.sort_unstable();
            }
            KeyList::new(keys, &shape, offsets, words(u)?)
        }
        1 => {
            let rows = keys.rows(&shape).min(64);
            let rows: Vec<Vec<u32>> = (0..rows).map(|_| words(u)).collect::<Result<_>>()?;
            KeyList::from_rows(keys, &shape, &rows)
        }
        2 => {
            let (batch, heads) = keys.lists().sizes(&shape);
            let columns = shape.key_len.div_ceil(keys.block_k().max(1));
            let blocks = batch * heads * keys.query_blocks(&shape) * columns;
            KeyList::from_block_mask(keys, &shape, &vec![u.arbitrary()?; blocks as usize])
        }
        3 => KeyList::from_mask(&attention, &arrays, (keys.block_q().unwrap_or(0), keys.block_k())),
        _ => {
            let patterns = [
                Pattern::sink(word(u)?),
                Pattern::window(word(u)?),
                Pattern::strided(word(u)?),
                Pattern::dilated(word(u)?, word(u)?),
                Pattern::global(word(u)?),
                Pattern::documents(),
                Pattern::random(number(u)?.into(), 1),
                Pattern::big_bird(word(u)?, word(u)?, word(u)?, 1),
            ];
            let mut pattern = u.choose(&patterns)?.clone();
            for _ in 0..u.int_in_range(0..=2)? {
                pattern = pattern + u.choose(&patterns)?.clone();
            }
            let block = (keys.block_q().unwrap_or(0), keys.block_k());
            pattern.source(&attention, &arrays, block).map(|source| source.list)
        }
    };
    match made {
        Err(error) => refused(&error),
        Ok(list) => {
            let listed = Attention::new(shape, DType::F32).with_keys(list.keys);
            let rows = KeyRows::new(&listed, &list.arrays(arrays)).expect("a sound list");
            for query in 0..shape.query_len {
                let row = rows.row(shape.batch - 1, shape.query_heads - 1, query);
                let kept = (0..shape.key_len).filter(|&key| row.contains(key)).count();
                assert!(kept > 0 || row.entries().is_empty());
            }
            let density = list.density(&shape);
            assert!((0.0..=1.0).contains(&density), "{density}");
        }
    }
    Ok(())
}
