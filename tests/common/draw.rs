//! Calls of attention drawn from numbers of any size.
//!
//! Pipelines are what takes time, so what is compiled in comes from a small set ([`Static`]) and
//! everything else is drawn ([`Drawn`]): sizes, heads, mask words and their numbers, arrays,
//! positions, layouts, modifiers.

use super::{Case, Layout, Random, random_list};
use wgpu_attention::{
    Activation, Alignment, Attention, Broadcast, DType, Keys, ListHeads, Lists, Mask, Positions,
    Shape, Stage,
};

/// What a shader is compiled for; dims are bounds, since CPU drivers compile for the next of a few.
#[derive(Clone, Copy, Debug)]
pub struct Static {
    pub dtype: DType,
    pub alignment: Alignment,
    pub sigmoid: bool,
    pub modified: bool,
    pub pair_tests: bool,
    pub four_terms: bool,
    /// Dims above the first and up to the second, of queries and of values: one bucket each.
    pub head_dim: (u32, u32),
    pub value_dim: (u32, u32),
    pub list: Option<List>,
    pub made: Made,
}

/// What a list's entries stand for.
#[derive(Clone, Copy, Debug)]
pub enum List {
    Blocks(u32),
    Indices,
}

/// What comes out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Made {
    Out,
    Scores,
    BlockSums,
}

const PLAIN: Static = Static {
    dtype: DType::F32,
    alignment: Alignment::Vec4,
    sigmoid: false,
    modified: false,
    pair_tests: false,
    four_terms: false,
    head_dim: MIDDLE,
    value_dim: MIDDLE,
    list: None,
    made: Made::Out,
};
const ALL: Static = Static { modified: true, pair_tests: true, four_terms: true, ..PLAIN };
const SMALL: (u32, u32) = (0, 16);
const MIDDLE: (u32, u32) = (16, 32);
const LARGE: (u32, u32) = (32, 64);

/// Every value of every member but lists, with every dtype's fragments, in as few as may be.
pub const DENSE: [Static; 8] = {
    use Alignment::{Any, Vec8};
    use DType::{BF16, F16};
    [
        PLAIN,
        Static { alignment: Any, head_dim: SMALL, value_dim: LARGE, ..ALL },
        Static {
            dtype: F16,
            alignment: Vec8,
            sigmoid: true,
            modified: true,
            pair_tests: true,
            ..PLAIN
        },
        Static { dtype: F16, alignment: Any, four_terms: true, value_dim: SMALL, ..PLAIN },
        Static { dtype: BF16, head_dim: LARGE, ..ALL },
        Static { dtype: BF16, alignment: Any, sigmoid: true, modified: false, ..ALL },
        Static { head_dim: (96, 128), value_dim: (96, 128), modified: true, ..PLAIN },
        Static { dtype: F16, made: Made::Scores, alignment: Any, ..ALL },
    ]
};

/// Lists of entries shorter and longer than tiles, and sums over blocks.
pub const SPARSE: [Static; 5] = {
    use Alignment::{Any, Vec8};
    use DType::{BF16, F16};
    [
        Static { list: Some(List::Blocks(16)), head_dim: SMALL, ..ALL },
        Static {
            list: Some(List::Blocks(128)),
            dtype: F16,
            alignment: Vec8,
            sigmoid: true,
            ..PLAIN
        },
        Static { list: Some(List::Indices), dtype: BF16, modified: true, ..PLAIN },
        Static { list: Some(List::Indices), dtype: F16, alignment: Any, ..ALL },
        Static { made: Made::BlockSums, modified: true, head_dim: SMALL, ..PLAIN },
    ]
};

/// What is drawn for a [`Static`], as numbers of any size.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub batch: u32,
    pub heads: (u32, u32, u32),
    pub lens: (u32, u32),
    pub dims: (u32, u32),
    pub words: Vec<u32>,
    pub positions: u32,
    pub scale: Option<f32>,
    pub modifiers: u32,
    pub output: u32,
    pub layout: u32,
    pub lists: u32,
    pub seed: u64,
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
    pub fn case(&self, drawn: &Drawn) -> Case {
        let mask = self.mask(&drawn.words);
        let (mut query_len, key_len) = drawn.lens;
        if mask.any(|term| term.tree) {
            query_len %= 65;
        }
        let dim = |(above, up_to): (u32, u32), number: u32| match self.alignment {
            Alignment::Any => above + 1 + number % (up_to - above),
            vectors => {
                let elements = vectors.elements();
                above + elements * (1 + number % ((up_to - above) / elements))
            }
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
        attention.keys = self.keys(drawn.lists);
        if self.sigmoid {
            let biases = [None, Some(0.0), Some(-3.0)];
            attention.activation = Activation::Sigmoid { bias: pick(&biases, drawn.output) };
        } else if self.made == Made::Out && drawn.output.is_multiple_of(2) {
            attention = attention.with_lse();
        }
        match self.made {
            Made::Out => {}
            Made::Scores => attention = attention.with_scores(pick(&Stage::ALL, drawn.output)),
            Made::BlockSums => attention = attention.with_block_sums(32, 64),
        }
        let apart = match self.alignment {
            Alignment::Any => Layout::Apart(1 + u64::from(drawn.layout / 4 % 80)),
            vectors => {
                let elements = u64::from(vectors.elements());
                Layout::Apart(elements * (1 + u64::from(drawn.layout / 4 % 20)))
            }
        };
        let layouts = [Layout::Dense, Layout::Packed, Layout::Shared, apart];
        let mut case = Case::new(attention, drawn.seed).with_layout(pick(&layouts, drawn.layout));
        case.sides.list = self.list.map(|_| {
            random_list(case.attention.keys, &case.attention.shape, &mut Random::new(!drawn.seed))
        });
        case
    }

    /// Who has lists, and for how many queries.
    fn keys(&self, number: u32) -> Keys {
        let heads = [ListHeads::Shared, ListHeads::KeyHead, ListHeads::QueryHead];
        let lists = Lists { per_batch: number & 1 == 1, heads: pick(&heads, number >> 1) };
        // Tiles divide it: one that is drawn would be compiled for.
        let block_q = 64;
        match self.list {
            None => Keys::Dense,
            Some(List::Blocks(block_k)) => Keys::Blocks { block_q, block_k, lists },
            Some(List::Indices) => Keys::Indices { block_q, lists },
        }
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
