//! Random configurations on the device against the f64 reference.
//!
//! Pipelines are what takes time, so what is compiled in comes from a small set and everything else
//! is drawn: sizes, heads, mask words and their numbers, arrays, positions, layouts, modifiers.

mod common;

use common::{Case, Layout, context};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use wgpu_attention::{
    Activation, Alignment, Attention, Broadcast, Context, DType, Mask, Positions, Shape, Stage,
};

/// Cases of each of the [`statics`].
const CASES: u32 = 12;

/// What a shader is compiled for; dims are bounds, since CPU drivers compile for the next of a few.
#[derive(Clone, Copy, Debug)]
struct Static {
    dtype: DType,
    alignment: Alignment,
    sigmoid: bool,
    modified: bool,
    pair_tests: bool,
    four_terms: bool,
    /// Dims above the first and up to the second, of queries and of values: one bucket each.
    head_dim: (u32, u32),
    value_dim: (u32, u32),
    scores: bool,
}

/// Every value of every member with every dtype's fragments, in as few as may be.
fn statics() -> [Static; 8] {
    use Alignment::{Any, Vec4};
    use DType::{BF16, F16, F32};
    const SMALL: (u32, u32) = (0, 16);
    const MIDDLE: (u32, u32) = (16, 32);
    const LARGE: (u32, u32) = (32, 64);
    let plain = Static {
        dtype: F32,
        alignment: Vec4,
        sigmoid: false,
        modified: false,
        pair_tests: false,
        four_terms: false,
        head_dim: MIDDLE,
        value_dim: MIDDLE,
        scores: false,
    };
    let all = Static { modified: true, pair_tests: true, four_terms: true, ..plain };
    [
        plain,
        Static { alignment: Any, head_dim: SMALL, value_dim: LARGE, ..all },
        Static { dtype: F16, sigmoid: true, modified: true, pair_tests: true, ..plain },
        Static { dtype: F16, alignment: Any, four_terms: true, value_dim: SMALL, ..plain },
        Static { dtype: BF16, head_dim: LARGE, ..all },
        Static { dtype: BF16, alignment: Any, sigmoid: true, modified: false, ..all },
        Static { head_dim: (96, 128), value_dim: (96, 128), modified: true, ..plain },
        Static { dtype: F16, scores: true, alignment: Any, ..all },
    ]
}

/// What is drawn for a [`Static`], as numbers of any size.
#[derive(Clone, Debug)]
struct Drawn {
    batch: u32,
    heads: (u32, u32, u32),
    lens: (u32, u32),
    dims: (u32, u32),
    words: Vec<u32>,
    positions: u32,
    scale: Option<f32>,
    modifiers: u32,
    output: u32,
    layout: u32,
    seed: u64,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let sizes = (
        1..4u32,
        (1..7u32, any::<u32>(), any::<u32>()),
        (0..90u32, prop_oneof![4 => 0..150u32, 1 => 150..400u32]),
        (any::<u32>(), any::<u32>()),
    );
    let axes = (
        prop::collection::vec(any::<u32>(), 4),
        any::<u32>(),
        prop::option::of(-2.0..2.0f32),
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
        any::<u64>(),
    );
    (sizes, axes).prop_map(|((batch, heads, lens, dims), axes)| {
        let (words, positions, scale, modifiers, output, layout, seed) = axes;
        Drawn { batch, heads, lens, dims, words, positions, scale, modifiers, output, layout, seed }
    })
}

/// One of `choices`.
fn pick<T: Copy>(choices: &[T], number: u32) -> T {
    choices[number as usize % choices.len()]
}

fn divisor(n: u32, number: u32) -> u32 {
    let divisors: Vec<u32> = (1..=n).filter(|d| n.is_multiple_of(*d)).collect();
    pick(&divisors, number)
}

/// An AND-term whose words are the bits of `number`.
fn term(number: u32, pair_tests: bool) -> Mask {
    let size = number >> 12;
    let window = Mask::window(
        (size & 3 != 0).then_some(size >> 2 & 63),
        (size & 0x100 != 0).then_some(size >> 9 & 63),
    );
    let plain = [
        Mask::causal(),
        window,
        Mask::documents(),
        Mask::lengths(),
        Mask::prefix(size & 127),
        Mask::causal_top_left(),
        Mask::sink(size >> 3 & 31),
    ];
    // The rarer words take two bits each, so that most terms leave some keys.
    let wanted = |index: usize| match index {
        0..4 => number >> index & 1 == 1,
        _ => number >> (2 * index - 4) & 3 == 3,
    };
    let words = plain.into_iter().enumerate().filter(|(i, _)| wanted(*i)).map(|(_, word)| word);
    let tests = [Mask::roles(), Mask::dense(), Mask::tree()];
    let chosen = pick(&[1, 2, 2, 4, 4, 3, 6, 7], number >> 20);
    let tests = tests.into_iter().enumerate().filter(|(i, _)| pair_tests && chosen >> i & 1 == 1);
    words.chain(tests.map(|(_, word)| word)).fold(Mask::full(), |mask, word| mask & word)
}

impl Static {
    fn case(&self, drawn: &Drawn) -> Case {
        let mask = self.mask(&drawn.words);
        let (mut query_len, key_len) = drawn.lens;
        if mask.any(|term| term.tree) {
            query_len %= 65;
        }
        let dim = |(above, up_to): (u32, u32), number: u32| match self.alignment {
            Alignment::Vec4 => above + 4 * (1 + number % ((up_to - above) / 4)),
            Alignment::Any => above + 1 + number % (up_to - above),
        };
        let (query_heads, key_heads, value_heads) = drawn.heads;
        let shape =
            Shape::new(drawn.batch, query_heads, query_len, dim(self.head_dim, drawn.dims.0))
                .with_key_heads(divisor(query_heads, key_heads))
                .with_value_heads(divisor(query_heads, value_heads))
                .with_key_len(key_len)
                .with_value_dim(dim(self.value_dim, drawn.dims.1));
        let positions = [Positions::BottomRight, Positions::TopLeft, Positions::PerBatch];
        let mut attention = Attention::new(shape, self.dtype)
            .with_alignment(self.alignment)
            .with_mask(mask)
            .with_positions(pick(&positions, drawn.positions));
        attention.score.scale = drawn.scale;
        self.add_modifiers(&mut attention, drawn.modifiers);
        attention.score.sinks = !self.sigmoid && drawn.modifiers >> 24 & 1 == 1;
        if self.sigmoid {
            let biases = [None, Some(0.0), Some(-3.0)];
            attention.activation = Activation::Sigmoid { bias: pick(&biases, drawn.output) };
        } else if !self.scores && drawn.output.is_multiple_of(2) {
            attention = attention.with_lse();
        }
        if self.scores {
            attention = attention.with_scores(pick(&Stage::ALL, drawn.output));
        }
        let apart = match self.alignment {
            Alignment::Vec4 => Layout::Apart(4 * (1 + u64::from(drawn.layout / 4 % 20))),
            Alignment::Any => Layout::Apart(1 + u64::from(drawn.layout / 4 % 80)),
        };
        let layouts = [Layout::Dense, Layout::Packed, Layout::Shared, apart];
        Case::new(attention, drawn.seed).with_layout(pick(&layouts, drawn.layout))
    }

    fn mask(&self, words: &[u32]) -> Mask {
        let mask = if self.four_terms {
            let count = 2 + words[0] as usize % 3;
            let terms = words[..count].iter().map(|&number| term(number, self.pair_tests));
            terms.reduce(|mask, term| mask | term).expect("some terms")
        } else {
            term(words[0], self.pair_tests)
        };
        let text = mask.to_string();
        assert_eq!(text.parse(), Ok(mask.clone()), "{text}");
        mask
    }

    fn add_modifiers(&self, attention: &mut Attention, number: u32) {
        if !self.modified {
            return;
        }
        let broadcast = |bits: u32| Broadcast { per_batch: bits & 1 == 1, per_head: bits & 2 == 2 };
        // At least one: without any, another shader is compiled.
        let chosen = 1 + number % 15;
        let score = &mut attention.score;
        score.softcap = (chosen & 1 != 0).then(|| pick(&[0.5, 5.0, 50.0], number >> 8));
        score.alibi = chosen & 2 != 0;
        score.key_bias = (chosen & 4 != 0).then(|| broadcast(number >> 12));
        let dtype = pick(&DType::ALL, number >> 16);
        score.bias = (chosen & 8 != 0).then(|| (dtype, broadcast(number >> 20)));
    }
}

/// Draws cases of one static configuration, the same ones every time.
fn check(context: &Context, index: u8, fixed: &Static) {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 100,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[index; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let result = runner.run(&drawn(), |drawn| {
        fixed.case(&drawn).check(context);
        Ok(())
    });
    match result {
        Ok(()) => {}
        // The reason names variant, layout and configuration of the smallest case that fails.
        Err(TestError::Fail(reason, drawn)) => panic!("{reason}\ndrawn as {drawn:?}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn random_configurations_agree_with_the_reference() {
    let Some(context) = context() else { return };
    for (index, fixed) in (0..).zip(&statics()) {
        check(context, index, fixed);
    }
    eprintln!("{} pipelines", context.pipelines());
    if context.caps().is_cpu {
        // Two variants of each of seven, one kernel of scores, and two that round to 16 bits.
        assert!(context.pipelines() <= 17, "{} pipelines", context.pipelines());
    }
}
