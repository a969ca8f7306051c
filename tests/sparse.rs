//! Lists of keys on the device, every supported variant forced, against the f64 reference and
//! against dense attention under the mask that says the same.

mod common;

use common::{Case, Layout, Placed, Random, context, layouts, random_list};
use wgpu_attention::attention::reference::Reference;
use wgpu_attention::keys::{BLOCK_KEYS, FULL};
use wgpu_attention::wgpu::util::DeviceExt as _;
use wgpu_attention::{
    Activation, Array, Arrays, Attention, Broadcast, DType, Error, Inputs, KeyList, KeyRows, Keys,
    ListHeads, Lists, Mask, MaskRows, Outputs, Shape, Variant, pack_mask, wgpu,
};

const SIGMOID: Activation = Activation::Sigmoid { bias: None };

/// Lengths that no block divides.
fn shape() -> Shape {
    Shape::new(2, 2, 150, 32).with_key_value_heads(1).with_key_len(277)
}

fn blocks(block_q: u32, block_k: u32, lists: Lists) -> Keys {
    Keys::Blocks { block_q, block_k, lists }
}

fn lists(per_batch: bool, heads: ListHeads) -> Lists {
    Lists { per_batch, heads }
}

/// A case with a random list.
fn case(attention: Attention, seed: u64) -> Case {
    let mut case = Case::new(attention, seed);
    let mut random = Random::new(seed ^ 0x5eed);
    let list = random_list(case.attention.keys, &case.attention.shape, &mut random);
    case.sides.list = Some(list);
    case
}

/// The same pairs by a dense mask, without a list.
fn as_dense_mask(case: &Case) -> Case {
    let shape = case.attention.shape;
    let arrays = case.sides.arrays();
    let keys = KeyRows::new(&case.attention, &arrays).expect("a list");
    let masks = MaskRows::new(&case.attention, &arrays).expect("a mask");
    let mut keep = Vec::new();
    for batch in 0..shape.batch {
        for head in 0..shape.query_heads {
            for query in 0..shape.query_len {
                let (visited, row) = (keys.row(batch, head, query), masks.row(batch, query));
                let kept = |key| visited.contains(key) && row.keeps(head, key);
                keep.extend((0..shape.key_len).map(kept));
            }
        }
    }
    let mut attention = case.attention.clone().with_keys(Keys::Dense);
    attention.mask = Mask::dense();
    let mut dense = Case::new(attention, 0);
    dense.query.clone_from(&case.query);
    dense.key.clone_from(&case.key);
    dense.value.clone_from(&case.value);
    let broadcast = Broadcast { per_batch: true, per_head: true };
    dense.sides.dense_mask = Some((pack_mask(&keep, shape.key_len), broadcast));
    dense
}

/// Runs all variants with the list and judges them, and dense attention under the equivalent mask,
/// by one reference.
fn check_both(case: &Case) {
    let Some(context) = context() else { return };
    case.check(context);
    let dense = as_dense_mask(case);
    let (listed, masked) = (case.host(), dense.host());
    let listed = Reference::new(&case.attention, &listed).expect("valid");
    let masked = Reference::new(&dense.attention, &masked).expect("valid");
    assert_eq!(listed.out(), masked.out(), "the mask that says the same says the same");
    let supports = |v: &Variant| v.supports(context.caps(), &case.attention).is_ok();
    for variant in Variant::ALL.into_iter().filter(supports) {
        dense.judge(&case.run(context, variant).expect("it runs"), variant.label());
    }
}

#[test]
fn block_sizes() {
    for (index, block_q) in [16, 32, 64, 128].into_iter().enumerate() {
        for block_k in BLOCK_KEYS {
            let keys = blocks(block_q, block_k, lists(index % 2 == 0, ListHeads::QueryHead));
            let attention = Attention::new(shape(), DType::F32).with_keys(keys).with_lse();
            check_both(&case(attention.clone(), u64::from(block_q * block_k)));
            let Some(context) = context() else { return };
            let causal = attention.with_mask(Mask::causal());
            case(causal, u64::from(block_k)).check(context);
        }
    }
}

#[test]
fn single_keys() {
    let Some(context) = context() else { return };
    for (index, block_q) in [16, 32, 64, 160].into_iter().enumerate() {
        for mask in [Mask::full(), Mask::causal() & Mask::window(Some(100), None)] {
            let heads = [ListHeads::Shared, ListHeads::KeyHead, ListHeads::QueryHead][index % 3];
            let keys = Keys::Indices { block_q, lists: lists(index % 2 == 0, heads) };
            let attention =
                Attention::new(shape(), DType::F32).with_keys(keys).with_mask(mask).with_lse();
            check_both(&case(attention, index as u64));
        }
    }
    // Rows of one and of all keys.
    let keys = Keys::Indices { block_q: 64, lists: Lists::SHARED };
    let attention = Attention::new(shape(), DType::F32).with_keys(keys).with_lse();
    let rows = [vec![276], (0..277).collect(), vec![]];
    let mut case = Case::new(attention, 4);
    case.sides.list = Some(KeyList::from_rows(keys, &shape(), &rows).expect("valid"));
    case.check(context);
}

#[test]
fn who_shares_a_list() {
    for per_batch in [false, true] {
        for heads in [ListHeads::Shared, ListHeads::KeyHead, ListHeads::QueryHead] {
            let keys = blocks(64, 64, lists(per_batch, heads));
            let attention = Attention::new(shape(), DType::F32).with_keys(keys);
            check_both(&case(attention, 77));
        }
    }
}

#[test]
fn activations_dtypes_and_layouts() {
    let Some(context) = context() else { return };
    for dtype in DType::ALL {
        for (index, dim) in [32, 7].into_iter().enumerate() {
            let shape = Shape::new(2, 4, 150, dim)
                .with_key_value_heads(2)
                .with_key_len(277)
                .with_value_dim([64, 9][index]);
            let keys = match index {
                0 => blocks(64, 64, lists(true, ListHeads::KeyHead)),
                _ => Keys::Indices { block_q: 64, lists: lists(false, ListHeads::QueryHead) },
            };
            let attention = Attention::new(shape, dtype).with_keys(keys).with_mask(Mask::causal());
            for (seed, layout) in layouts(&attention).into_iter().enumerate() {
                let activation = [Activation::Softmax, SIGMOID][seed % 2];
                let attention = attention.clone().with_activation(activation);
                case(attention, seed as u64).with_layout(layout).check(context);
            }
        }
    }
}

/// Score modifiers see the key itself, not its place in the list; a bias of −∞ masks its key.
#[test]
fn modifiers() {
    let Some(context) = context() else { return };
    for keys in [
        blocks(64, 64, Lists::SHARED),
        blocks(64, 16, lists(true, ListHeads::QueryHead)),
        Keys::Indices { block_q: 32, lists: lists(false, ListHeads::KeyHead) },
    ] {
        let attention = Attention::new(shape(), DType::F32)
            .with_keys(keys)
            .with_softcap(8.0)
            .with_alibi()
            .with_key_bias(Broadcast { per_batch: true, per_head: false })
            .with_bias(DType::F16, Broadcast { per_batch: false, per_head: true });
        case(attention, 12).check(context);
    }
}

/// A list of what a mask leaves changes nothing, and its claims of full blocks hold.
#[test]
fn lists_of_masks() {
    let Some(context) = context() else { return };
    for expression in [
        "full",
        "causal",
        "window(30,5) | sink(4)",
        "documents & causal",
        "lengths & causal",
        "roles",
        "dense & window(60,60)",
        "tree & documents",
    ] {
        let mask: Mask = expression.parse().expect("a mask");
        let dense = Attention::new(shape(), DType::F32).with_mask(mask);
        let mut case = Case::new(dense.clone(), 21);
        if let Some((bits, _)) = &mut case.sides.dense_mask {
            // Some blocks whole, some gone.
            bits.iter_mut().enumerate().for_each(|(word, bits)| match word / 7 % 3 {
                0 => *bits = u32::MAX,
                1 => *bits = 0,
                _ => {}
            });
        }
        for sizes in [(64, 64), (32, 16), (128, 32)] {
            case.sides.list = None;
            case.attention = dense.clone();
            let list = KeyList::from_mask(&dense, &case.sides.arrays(), sizes);
            let list = list.unwrap_or_else(|error| panic!("{expression}: {error}"));
            let rows = Reference::new(&dense, &case.host()).map(|r| r.out()).expect("valid");
            case.attention = dense.clone().with_keys(list.keys);
            case.sides.list = Some(list);
            let host = case.host();
            let listed = Reference::new(&case.attention, &host).expect("valid").out();
            assert_eq!(listed, rows, "{expression} in blocks of {sizes:?}");
            case.check(context);
        }
    }
}

#[test]
fn full_blocks_of_a_mask() {
    let shape = Shape::new(1, 1, 256, 32);
    let causal = Attention::new(shape, DType::F32).with_mask(Mask::causal());
    let list = KeyList::from_mask(&causal, &Arrays::default(), (128, 64)).expect("valid");
    assert_eq!(list.offsets, [0, 2, 6]);
    assert_eq!(list.entries, [0, 64, FULL, 64 | FULL, 128, 192]);
    let ragged = Attention::new(shape.with_key_len(100), DType::F32);
    let list = KeyList::from_mask(&ragged, &Arrays::default(), (256, 64)).expect("valid");
    assert_eq!(list.entries, [FULL, 64]);
}

#[test]
fn block_masks() {
    let shape = Shape::new(1, 2, 100, 32);
    let keys = blocks(64, 32, lists(false, ListHeads::QueryHead));
    let mask: Vec<bool> = (0..16).map(|block| block % 3 == 0).collect();
    let list = KeyList::from_block_mask(keys, &shape, &mask).expect("valid");
    assert_eq!(list.offsets, [0, 2, 3, 4, 6]);
    assert_eq!(list.entries, [0, 96, 64, 32, 0, 96]);
    let refused = KeyList::from_block_mask(keys, &shape, &mask[1..]).expect_err("too short");
    assert_eq!(
        refused.to_string(),
        "tensor `block_mask`: expected 16 values of shape [1, 2, 2, 4], got 15 values"
    );
}

#[test]
fn bad_lists_are_refused() {
    let shape = Shape::new(1, 1, 128, 32);
    let refusal = |keys: Keys, rows: &[&[u32]]| {
        let rows: Vec<_> = rows.iter().map(|row| row.to_vec()).collect();
        KeyList::from_rows(keys, &shape, &rows).expect_err("refused").to_string()
    };
    let keys = blocks(64, 32, Lists::SHARED);
    for (rows, sentence) in [
        (&[&[0u32][..]][..], "3 values: 1 x 1 x 2 rows and the end, got 2 values"),
        (&[&[128], &[]], "keys from 0 to 127, got 128 at place 0 of row 0"),
        (&[&[], &[32, 0]], "each at least 32 after the one before, got 0 at place 1 of row 1"),
        (&[&[], &[0, 31]], "each at least 32 after the one before, got 31 at place 1 of row 1"),
    ] {
        let said = refusal(keys, rows);
        assert!(said.ends_with(sentence), "{said}");
    }
    let indices = Keys::Indices { block_q: 64, lists: Lists::SHARED };
    let said = refusal(indices, &[&[5, 5], &[]]);
    assert!(
        said.ends_with(
            "ascending keys, each at least 1 after the one before, got 5 at place 1 of row 0"
        ),
        "{said}"
    );
    for (keys, field) in
        [(blocks(64, 24, Lists::SHARED), "block_k"), (blocks(8, 32, Lists::SHARED), "block_q")]
    {
        let said = refusal(keys, &[&[], &[]]);
        assert!(said.contains(field), "{said}");
    }
}

/// Offsets that descend or leave the entries, missing lists, false claims.
#[test]
fn bad_arrays_are_refused() {
    let shape = Shape::new(1, 1, 128, 32);
    let attention = Attention::new(shape, DType::F32).with_keys(blocks(64, 32, Lists::SHARED));
    let refusal = |offsets: Option<&[u32]>, entries: Option<&[u32]>| {
        let mut arrays = Arrays::default();
        arrays.list_offsets = offsets.map(Array::u32);
        arrays.list_entries = entries.map(Array::u32);
        KeyRows::new(&attention, &arrays).expect_err("refused").to_string()
    };
    for (offsets, entries, sentence) in [
        (
            None,
            None,
            "`list_offsets`: expected the list that the configuration's keys refer to, got nothing",
        ),
        (
            Some(&[0, 1, 1][..]),
            None,
            "`list_entries`: expected the list that the configuration's keys refer to, got nothing",
        ),
        (Some(&[1, 1, 1]), Some(&[0][..]), "`list_offsets`: expected a first value of 0, got 1"),
        (
            Some(&[0, 2, 1]),
            Some(&[0]),
            "`list_offsets`: expected ascending values, got 1 after 2 at 2",
        ),
        (
            Some(&[0, 1, 2]),
            Some(&[0]),
            "`list_offsets`: expected a last value of 1, the number of entries, got 2",
        ),
        (
            Some(&[0, 0, 0]),
            Some(&[0]),
            "`list_offsets`: expected a last value of 1, the number of entries, got 0",
        ),
    ] {
        let said = refusal(offsets, entries);
        assert!(said.ends_with(sentence), "{said}");
    }
    let dense = Attention::new(shape, DType::F32);
    let mut arrays = Arrays::default();
    arrays.list_offsets = Some(Array::u32(&[0, 0, 0]));
    let said = KeyRows::new(&dense, &arrays).expect_err("refused").to_string();
    assert!(
        said.ends_with("expected nothing: the configuration has no list of keys, got a list"),
        "{said}"
    );
}

#[test]
fn false_claims_are_refused_and_idle_ones_ignored() {
    let Some(context) = context() else { return };
    let keys = blocks(64, 64, Lists::SHARED);
    for (mask, lie) in [(Mask::dense(), true), (Mask::causal(), false)] {
        let attention = Attention::new(shape(), DType::F32).with_keys(keys).with_mask(mask);
        let mut case = Case::new(attention, 5);
        let rows = vec![vec![FULL, 64 | FULL]; 3];
        case.sides.list = Some(KeyList::from_rows(keys, &shape(), &rows).expect("valid"));
        if !lie {
            case.check(context);
            continue;
        }
        match case.run(context, Variant::Tiled) {
            Err(Error::Tensor { tensor, .. }) => assert_eq!(tensor, "list_entries"),
            other => panic!("{:?}", other.map(|_| ())),
        }
    }
}

/// Whatever lies in a list that only the device has: no read outside of the tensors, which NaNs
/// surround, no hang, and claims of full blocks are not believed.
#[test]
fn garbage_from_the_device_is_clamped() {
    let Some(context) = context() else { return };
    let shape = shape();
    for keys in [
        blocks(64, 64, lists(true, ListHeads::QueryHead)),
        blocks(64, 16, Lists::SHARED),
        Keys::Indices { block_q: 64, lists: Lists::SHARED },
    ] {
        let attention = Attention::new(shape, DType::F32).with_keys(keys).with_mask(Mask::causal());
        let rows = keys.rows(&shape) as usize;
        let mut random = Random::new(99);
        let mut words: Vec<u32> =
            (0..rows + 1 + 500).map(|_| random.bits() as u32 >> (random.below(4) * 7)).collect();
        words[0] = u32::MAX;
        let buffer = context.device().create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: None,
            contents: bytemuck::cast_slice(&words),
            usage: wgpu::BufferUsages::COPY_SRC,
        });
        let mut arrays = Arrays::default();
        arrays.list_offsets = Some(Array::device(&buffer, 0, rows + 1));
        arrays.list_entries = Some(Array::device(&buffer, rows as u64 + 1, 500));
        let case = Case::new(attention.clone(), 3);
        let place =
            |shape, values| Placed::new(context, DType::F32, shape, Layout::Apart(4), Some(values));
        let query = place(shape.query(), &case.query);
        let key = place(shape.key(), &case.key);
        let value = place(shape.value(), &case.value);
        let out = Placed::new(context, DType::F32, shape.out(), Layout::Apart(4), None);
        let inputs = Inputs::new(query.view(), key.view(), value.view()).with_arrays(arrays);
        for variant in [Variant::Tiled, Variant::Subgroup, Variant::Rows] {
            if variant.supports(context.caps(), &attention).is_err() {
                continue;
            }
            let plan = pollster::block_on(attention.plan_with(context, variant)).expect("plans");
            let bound = plan.bind(&inputs, &Outputs::new(out.view())).expect("binds");
            pollster::block_on(context.run(&bound)).expect("runs");
            let out = out.read(context);
            assert!(out.iter().all(|x| x.is_finite()), "{variant}: NaNs around a tensor were read");
        }
    }
}
