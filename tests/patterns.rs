//! Static patterns: which pairs they keep, on the host and on the device, and the oracle.

mod common;

use common::{Case, context};
use proptest::prelude::*;
use wgpu_attention::keys::{Source, moa_span, streaming_heads};
use wgpu_attention::{
    Activation, Arrays, Attention, DType, KeyList, KeyRows, Keys, Mask, MaskRows, Pattern, Shape,
    Variant,
};

fn attention() -> Attention {
    let shape = Shape::new(1, 2, 150, 32).with_key_len(277);
    Attention::new(shape, DType::F32).with_mask(Mask::causal())
}

/// `[heads, query_len, key_len]` of the pairs that a source keeps.
fn pairs(attention: &Attention, source: &Source) -> Vec<bool> {
    let shape = attention.shape;
    let sparse = source.apply(attention);
    let arrays = source.arrays(Arrays::default());
    let keys = KeyRows::new(&sparse, &arrays).expect("a list");
    let masks = MaskRows::new(&sparse, &arrays).expect("a mask");
    let mut pairs = Vec::new();
    for head in 0..shape.query_heads {
        for query in 0..shape.query_len {
            let (visited, row) = (keys.row(0, head, query), masks.row(0, query));
            pairs.extend(
                (0..shape.key_len).map(|key| visited.contains(key) && row.keeps(head, key)),
            );
        }
    }
    pairs
}

/// Runs a source on every variant against the reference.
fn check(attention: &Attention, source: Source) {
    let Some(context) = context() else { return };
    let mut case = Case::new(attention.clone(), 3);
    case.attention = source.apply(attention);
    case.sides.dense_mask = source.dense_mask;
    case.sides.list = Some(source.list);
    case.check(context);
}

/// Every exact part, alone and joined, keeps the pairs that its definition says.
#[test]
fn exact_patterns() {
    let attention = attention();
    let shape = attention.shape;
    let offset = i64::from(shape.key_len) - i64::from(shape.query_len);
    type Rule = fn(i64, i64) -> bool;
    let cases: [(&str, Rule); 8] = [
        ("window(20)", |i, j| i - j <= 20),
        ("sink(4) + window(20)", |i, j| j < 4 || i - j <= 20),
        ("strided(16)", |_, j| j % 16 == 15),
        ("strided(16) + window(9)", |i, j| j % 16 == 15 || i - j <= 9),
        ("dilated(5, 7)", |i, j| (i - j) % 7 == 0 && i - j <= 35),
        ("global(3)", |i, j| j < 3 || i < 3),
        ("global(130)", |i, j| j < 130 || i < 130),
        ("sink(2) + dilated(count=2, step=3)", |i, j| j < 2 || [0, 3, 6].contains(&(i - j))),
    ];
    for (text, rule) in cases {
        let pattern: Pattern = text.parse().expect("a pattern");
        let source = pattern.source(&attention, &Arrays::default(), (64, 32)).expect("resolves");
        let mut wanted = Vec::new();
        for _ in 0..shape.query_heads {
            for query in 0..shape.query_len {
                let i = i64::from(query) + offset;
                wanted.extend((0..i64::from(shape.key_len)).map(|j| j <= i && rule(i, j)));
            }
        }
        assert_eq!(pairs(&attention, &source), wanted, "{text}");
        check(&attention, source);
    }
}

#[test]
fn documents_and_roles_resolve_to_words() {
    let mut case = Case::new(attention().with_mask(Mask::causal() & Mask::documents()), 6);
    let base = attention();
    let source = Pattern::documents().source(&base, &case.sides.arrays(), (64, 64));
    let source = source.expect("resolves");
    assert_eq!(source.mask, case.attention.mask);
    case.attention = source.apply(&base);
    case.sides.list = Some(source.list);
    let Some(context) = context() else { return };
    case.check(context);
    let mixed = (Pattern::roles() + Pattern::strided(4))
        .source(&base, &Arrays::default(), (64, 64))
        .expect_err("no words for it");
    let mixed = mixed.to_string();
    assert!(mixed.contains("documents and roles"), "{mixed}");
    assert!(mixed.ends_with("got `roles + strided(4)`"), "{mixed}");
}

#[test]
fn heads_of_their_own_sizes() {
    let attention = attention();
    let shape = attention.shape;
    let sizes = [(4, 16), (0, shape.key_len)];
    let source = streaming_heads(&attention, &Arrays::default(), &sizes, (64, 32)).expect("valid");
    let pairs = pairs(&attention, &source);
    let offset = shape.key_len - shape.query_len;
    for (index, &kept) in pairs.iter().enumerate() {
        let index = index as u32;
        let (row, j) = (index / shape.key_len, index % shape.key_len);
        let (head, i) = (row / shape.query_len, row % shape.query_len + offset);
        assert_eq!(kept, j <= i && (head == 1 || j < 4 || i - j <= 16), "{head} {i} {j}");
    }
    check(&attention, source);
    assert_eq!(
        [moa_span(-50.0, 0.5, 200), moa_span(0.0, 2.0, 200), moa_span(0.0, 0.0, 9)],
        [49, 199, 0]
    );
    assert!(streaming_heads(&attention, &Arrays::default(), &sizes[1..], (64, 32)).is_err());
}

#[test]
fn whole_blocks() {
    let shape = Shape::new(1, 3, 1024, 32);
    let attention = Attention::new(shape, DType::F32).with_mask(Mask::causal());
    let source = |text: &str| {
        let pattern: Pattern = text.parse().expect("a pattern");
        pattern.source(&attention, &Arrays::default(), (64, 64)).expect("resolves")
    };
    let random = source("random(density=0.25, seed=3)");
    assert_eq!(random, source("random(0.25, 3)"));
    assert_ne!(random, source("random(0.25, 4)"));
    // Row r of 16 sees r + 1 blocks and takes a quarter of them, at least one.
    let counts: Vec<u32> = random.list.offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let wanted = |row: usize| ((row % 16 + 1) as f64 / 4.0).round().max(1.0) as u32;
    assert_eq!(counts, (0..48).map(wanted).collect::<Vec<_>>());

    let big_bird = source("bigbird(window=3, global=1, random=2)");
    // Row 10: block 0, two random ones, 9 and 10 (11 is in the future).
    let row = &big_bird.list.entries[big_bird.list.offsets[10] as usize..];
    let row = &row[..(big_bird.list.offsets[11] - big_bird.list.offsets[10]) as usize];
    assert_eq!(row.len(), 5);
    assert_eq!((row[0], row[3], row[4]), (0, 9 * 64, 10 * 64));

    let mixed = source("random(0.1) + strided(100)");
    let strided = source("strided(100)");
    let (mixed, strided) = (pairs(&attention, &mixed), pairs(&attention, &strided));
    assert!(strided.iter().zip(&mixed).all(|(&part, &whole)| whole || !part));
    assert!(mixed != strided);
}

#[test]
fn text_that_is_no_pattern_is_refused() {
    for text in [
        "",
        "sink",
        "sink(4",
        "sink(4)+",
        "sink(-1)",
        "sink(1.5)",
        "sink(1,2)",
        "sink(n=1,n=2)",
        "moon(3)",
        "random(seed=1)",
        "window(k=3)",
        "random(-1)",
        "random(0)",
        "random(2)",
        "random(NaN)",
        "strided(0)",
        "dilated(3,0)",
        "sink(1) + strided(0)",
    ] {
        let error = text.parse::<Pattern>().expect_err(text).to_string();
        assert!(error.starts_with("configuration `pattern`: expected"), "{error}");
    }
}

/// Numbers that mean nothing are refused of patterns that were built in code, too.
#[test]
fn numbers_without_meaning_are_refused() {
    let patterns = [
        (Pattern::strided(0), "a stride of at least 1, got `strided(0)`"),
        (Pattern::dilated(3, 0), "a step of at least 1, got `dilated(3,0)`"),
        (Pattern::random(0.0, 7), "a density above 0 and up to 1, got `random(0,7)`"),
        (Pattern::random(1.5, 7), "a density above 0 and up to 1, got `random(1.5,7)`"),
        (Pattern::random(f64::NAN, 7), "got `random(NaN,7)`"),
        (Pattern::window(9) + Pattern::strided(0), "got `strided(0)`"),
    ];
    for (pattern, words) in patterns {
        let made = pattern.source(&attention(), &Arrays::default(), (64, 64));
        let error = made.expect_err(words).to_string();
        assert!(error.ends_with(words), "{error}");
    }
    let source = Pattern::random(1.0, 7).source(&attention(), &Arrays::default(), (64, 64));
    assert!(source.is_ok());
}

#[test]
fn patterns_print_as_text_that_parses_back() {
    for text in [
        "sink(4) + window(1020)",
        "strided(16) + dilated(64,4) + global(2)",
        "documents + roles",
        "random(0.125,7) + bigbird(3,2,1,9)",
    ] {
        let pattern: Pattern = text.parse().expect(text);
        assert_eq!(pattern.to_string(), text);
    }
}

/// Block sizes that lists do not allow are refused by every kind of pattern.
#[test]
fn blocks_of_no_queries_are_refused() {
    for text in ["sink(4)", "strided(3)", "dilated(2,3)", "random(0.5)", "global(1) + strided(2)"] {
        let pattern: Pattern = text.parse().expect("a pattern");
        let made = pattern.source(&attention(), &Arrays::default(), (0, 16));
        let error = made.expect_err(text).to_string();
        assert!(error.starts_with("configuration `keys.block_q`: expected"), "{text}: {error}");
    }
}

/// Sums over blocks are those of the probabilities; the blocks that hold most follow from them.
#[test]
fn block_sums_and_the_oracle() {
    let Some(context) = context() else { return };
    for (dtype, dim, activation) in [
        (DType::F32, 32, Activation::Softmax),
        (DType::F16, 7, Activation::Softmax),
        (DType::BF16, 32, Activation::Sigmoid { bias: None }),
    ] {
        let shape = Shape::new(1, 2, 100, dim).with_key_value_heads(1).with_key_len(177);
        for (sizes, mask) in [((64, 32), "causal"), ((32, 64), "window(40,3) | sink(2)")] {
            let mut plain = Attention::new(shape, dtype)
                .with_mask(mask.parse().expect("a mask"))
                .with_activation(activation)
                .with_softcap(6.0);
            plain.score.sinks = dtype == DType::F16;
            let summed = plain.clone().with_block_sums(sizes.0, sizes.1);
            let case = Case::new(summed, 17);
            let results = case.run(context, Variant::BlockSums).expect("runs");
            case.judge(&results, "sums");
            let sums = results.scores;

            let visible = KeyList::from_mask(&plain, &case.sides.arrays(), sizes).expect("valid");
            let top = visible.top_blocks(&shape, &sums, 0.5).expect("valid");
            let mut oracle = Case::new(plain.clone().with_keys(top.keys), 17);
            oracle.sides.list = Some(top);
            oracle.check(context);
        }
    }
}

/// The oracle takes, of what is visible, the blocks with the largest sums.
#[test]
fn top_blocks() {
    let shape = Shape::new(1, 1, 64, 32).with_key_len(200);
    let dense = Attention::new(shape, DType::F32);
    let visible = KeyList::from_mask(&dense, &Arrays::default(), (64, 64)).expect("valid");
    let top = visible.top_blocks(&shape, &[1.0, 5.0, 1.0, 7.0], 0.75).expect("valid");
    assert!(matches!(top.keys, Keys::Blocks { block_q: 64, block_k: 64, .. }));
    let tokens: Vec<u32> = top.entries.iter().map(|entry| entry & 0x7fff_ffff).collect();
    assert_eq!(tokens, [0, 64, 192]);
    assert!(visible.top_blocks(&shape, &[1.0; 3], 0.5).is_err());
    for density in [0.0, -0.5, 1.5, f64::NAN] {
        assert!(visible.top_blocks(&shape, &[1.0; 4], density).is_err(), "{density}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the text, it is refused with a sentence or makes a list that its own checks accept.
    #[test]
    fn any_text_makes_a_sound_list_or_is_refused(text in prop_oneof![
        any::<String>(),
        "[a-z_+(),=.0-9 -]{0,40}",
        // Mostly in order, to get beyond the parser.
        prop::collection::vec(
            r"(sink|global|window|strided)\([0-9]{1,4}\)|dilated\([0-9]{1,3}, ?[0-9]{1,3}\)|documents|random\((0\.[0-9]{1,3}|1)(, ?[0-9]{1,9})?\)|bigbird\([0-9], ?[0-9], ?[0-9]{1,2}\)",
            1..4,
        ).prop_map(|parts| parts.join(" + ")),
    ], block in prop_oneof![Just((16, 16)), Just((64, 32)), Just((17, 0))]) {
        let attention = Attention::new(Shape::new(1, 2, 70, 8).with_key_len(91), DType::F32);
        let arrays = Arrays::default();
        let made = text.parse::<Pattern>().and_then(|pattern| pattern.source(&attention, &arrays, block));
        match made {
            Ok(source) => {
                let sparse = source.apply(&attention);
                prop_assert!(KeyRows::new(&sparse, &source.arrays(arrays)).is_ok(), "{}", text);
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
