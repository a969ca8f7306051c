//! Masks against their definitions: every word is defined here once more, pair by pair and without
//! ranges, and compared on all pairs of many small cases.

use std::ops::Range;

use proptest::prelude::*;
use wgpu_attention::mask::{MAX_TERMS, MaskRows, pack_mask};
use wgpu_attention::{Array, Arrays, Attention, Broadcast, DType, Error, Mask, Positions, Shape};

/// One word of a mask.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Word {
    Full,
    Causal,
    CausalTopLeft,
    Window(Option<u32>, Option<u32>),
    Sink(u32),
    Prefix(u32),
    Documents,
    Lengths,
    Roles,
    Tree,
    Dense,
}

impl Word {
    fn mask(self) -> Mask {
        match self {
            Self::Full => Mask::full(),
            Self::Causal => Mask::causal(),
            Self::CausalTopLeft => Mask::causal_top_left(),
            Self::Window(left, right) => Mask::window(left, right),
            Self::Sink(n) => Mask::sink(n),
            Self::Prefix(n) => Mask::prefix(n),
            Self::Documents => Mask::documents(),
            Self::Lengths => Mask::lengths(),
            Self::Roles => Mask::roles(),
            Self::Tree => Mask::tree(),
            Self::Dense => Mask::dense(),
        }
    }

    fn text(self) -> String {
        let bound = |b: Option<u32>| b.map_or("inf".to_owned(), |n| n.to_string());
        match self {
            Self::Full => "full".into(),
            Self::Causal => "causal".into(),
            Self::CausalTopLeft => "causal_top_left".into(),
            Self::Window(left, Some(0)) => format!("window({})", bound(left)),
            Self::Window(left, right) => format!("window({}, {})", bound(left), bound(right)),
            Self::Sink(n) => format!("sink({n})"),
            Self::Prefix(n) => format!("prefix( {n} )"),
            Self::Documents => "documents".into(),
            Self::Lengths => "lengths".into(),
            Self::Roles => "roles".into(),
            Self::Tree => "tree".into(),
            Self::Dense => "dense".into(),
        }
    }
}

fn word() -> impl Strategy<Value = Word> {
    let bound = || prop_oneof![3 => (0_u32..6).prop_map(Some), 1 => Just(None)];
    prop_oneof![
        1 => Just(Word::Full),
        3 => Just(Word::Causal),
        1 => Just(Word::CausalTopLeft),
        3 => (bound(), bound()).prop_map(|(left, right)| Word::Window(left, right)),
        1 => (0_u32..5).prop_map(Word::Sink),
        1 => (0_u32..8).prop_map(Word::Prefix),
        2 => Just(Word::Documents),
        2 => Just(Word::Lengths),
        1 => Just(Word::Roles),
        1 => Just(Word::Tree),
        1 => Just(Word::Dense),
    ]
}

/// A mask, its sizes and every array it could refer to.
#[derive(Clone, Debug)]
struct Case {
    terms: Vec<Vec<Word>>,
    shape: Shape,
    positions: Positions,
    query_offset: Vec<i32>,
    query_starts: Vec<u32>,
    key_starts: Vec<u32>,
    key_lengths: Vec<u32>,
    query_roles: Vec<u32>,
    key_roles: Vec<u32>,
    role_table: Vec<u32>,
    tree_bits: Vec<u32>,
    dense: Vec<bool>,
    broadcast: Broadcast,
}

fn numbers(below: u32, len: usize) -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..below, len)
}

fn starts(len: u32, entries: usize) -> impl Strategy<Value = Vec<u32>> {
    numbers(len + 1, entries).prop_map(|mut starts| {
        starts.sort_unstable();
        starts
    })
}

fn case() -> impl Strategy<Value = Case> {
    let terms = prop::collection::vec(prop::collection::vec(word(), 1..4), 1..=MAX_TERMS);
    let sizes = (1_u32..3, 1_u32..3, 0_u32..13, prop_oneof![0_u32..15, 60_u32..75]);
    let positions = prop_oneof![
        Just(Positions::BottomRight),
        Just(Positions::TopLeft),
        Just(Positions::PerBatch)
    ];
    (terms, sizes, positions, 2_usize..6).prop_flat_map(
        |(terms, (batch, heads, query_len, key_len), positions, entries)| {
            let shape = Shape::new(batch, heads, query_len, 4).with_key_len(key_len);
            let (b, q, k) = (batch as usize, query_len as usize, key_len as usize);
            let cumulative = (starts(query_len, entries), starts(key_len, entries));
            let per_batch = (prop::collection::vec(-15..15_i32, b), numbers(key_len + 1, b));
            let roles = (numbers(8, q), numbers(8, k), prop::collection::vec(any::<u32>(), 8));
            let dense =
                (any::<bool>(), any::<bool>()).prop_flat_map(move |(per_batch, per_head)| {
                    let broadcast = Broadcast { per_batch, per_head };
                    let (b, h) = broadcast.sizes(batch, heads);
                    let bits = prop::collection::vec(any::<bool>(), (b * h) as usize * q * k);
                    (bits, Just(broadcast))
                });
            let tree = prop::collection::vec(any::<u32>(), 2 * q);
            (cumulative, per_batch, roles, tree, dense).prop_map(
                move |(cumulative, per_batch, roles, tree_bits, (dense, broadcast))| Case {
                    terms: terms.clone(),
                    shape,
                    positions,
                    query_offset: per_batch.0,
                    query_starts: cumulative.0,
                    key_starts: cumulative.1,
                    key_lengths: per_batch.1,
                    query_roles: roles.0,
                    key_roles: roles.1,
                    role_table: roles.2,
                    tree_bits,
                    dense,
                    broadcast,
                },
            )
        },
    )
}

impl Case {
    fn has(&self, word: Word) -> bool {
        self.terms.iter().flatten().any(|&other| other == word)
    }

    fn attention(&self) -> Attention {
        Attention::new(self.shape, DType::F32).with_positions(self.positions).with_mask(
            self.terms.iter().map(|words| conjunction(words)).reduce(|a, b| a | b).unwrap(),
        )
    }

    /// Calls `check` with the rows of the case's mask.
    fn with_rows(&self, check: impl FnOnce(MaskRows)) {
        let attention = self.attention();
        let words = pack_mask(&self.dense, self.shape.key_len);
        let mut arrays = Arrays::default();
        if self.positions == Positions::PerBatch {
            arrays.query_offset = Some(Array::i32(&self.query_offset));
        }
        if self.has(Word::Documents) {
            arrays.query_starts = Some(Array::u32(&self.query_starts));
            arrays.key_starts = Some(Array::u32(&self.key_starts));
        }
        if self.has(Word::Lengths) {
            arrays.key_lengths = Some(Array::u32(&self.key_lengths));
        }
        if self.has(Word::Roles) {
            arrays.query_roles = Some(Array::u32(&self.query_roles));
            arrays.key_roles = Some(Array::u32(&self.key_roles));
            arrays.role_table = Some(Array::u32(&self.role_table));
        }
        if self.has(Word::Tree) {
            arrays.tree_bits = Some(Array::u32(&self.tree_bits));
        }
        if self.has(Word::Dense) {
            arrays.dense_mask = Some((Array::u32(&words), self.broadcast));
        }
        check(MaskRows::new(&attention, &arrays).unwrap());
    }

    /// The document that holds an index, by its cumulative lengths.
    fn document_of(starts: &[u32], index: u32) -> Option<usize> {
        (0..starts.len() - 1).find(|&d| starts[d] <= index && index < starts[d + 1])
    }

    /// The offset of a sequence or document with these lengths.
    fn offset(&self, batch: u32, query_len: u32, key_len: u32) -> i64 {
        match self.positions {
            Positions::BottomRight => i64::from(key_len) - i64::from(query_len),
            Positions::TopLeft => 0,
            Positions::PerBatch => self.query_offset[batch as usize].into(),
            _ => unreachable!(),
        }
    }

    fn sequence_offset(&self, batch: u32) -> i64 {
        let counted = if self.has(Word::Lengths) {
            self.key_lengths[batch as usize]
        } else {
            self.shape.key_len
        };
        self.offset(batch, self.shape.query_len, counted)
    }

    fn document_offset(&self, batch: u32, d: usize) -> i64 {
        let len = |starts: &[u32]| starts[d + 1] - starts[d];
        self.offset(batch, len(&self.query_starts), len(&self.key_starts))
    }

    /// The definition: whether a term keeps a pair, word by word. With `only_ranges`, words that
    /// test single pairs keep all that they may keep for some roles and bits.
    fn term_keeps(&self, words: &[Word], at: [u32; 4], only_ranges: bool) -> bool {
        let [batch, head, query, key] = at;
        let (mut i, mut j) = (i64::from(query), i64::from(key));
        let mut offset = self.sequence_offset(batch);
        if words.contains(&Word::Documents) {
            let document = Self::document_of(&self.query_starts, query);
            if document.is_none() || document != Self::document_of(&self.key_starts, key) {
                return false;
            }
            let d = document.unwrap();
            offset = self.document_offset(batch, d);
            i -= i64::from(self.query_starts[d]);
            j -= i64::from(self.key_starts[d]);
        }
        words.iter().all(|&word| match word {
            Word::Full | Word::Documents => true,
            Word::Causal => j <= i + offset,
            Word::CausalTopLeft => j <= i,
            Word::Window(left, right) => {
                left.is_none_or(|left| i + offset - i64::from(left) <= j)
                    && right.is_none_or(|right| j <= i + offset + i64::from(right))
            }
            Word::Sink(n) | Word::Prefix(n) => j < n.into(),
            Word::Lengths => j < self.key_lengths[batch as usize].into(),
            Word::Roles | Word::Dense if only_ranges => true,
            Word::Tree if only_ranges => j - offset < 64,
            Word::Roles => {
                let seen = self.role_table[self.query_roles[query as usize] as usize];
                seen & (1 << self.key_roles[key as usize]) != 0
            }
            Word::Tree => {
                let bits = &self.tree_bits[2 * query as usize..][..2];
                let node = j - offset;
                match node {
                    ..0 => true,
                    0..64 => bits[node as usize / 32] & (1 << (node % 32)) != 0,
                    _ => false,
                }
            }
            Word::Dense => {
                let heads = if self.broadcast.per_head { self.shape.query_heads } else { 1 };
                let batch = if self.broadcast.per_batch { batch } else { 0 };
                let head = if self.broadcast.per_head { head } else { 0 };
                let row = (batch * heads + head) * self.shape.query_len + query;
                self.dense[(row * self.shape.key_len + key) as usize]
            }
        })
    }

    fn keeps(&self, at: [u32; 4]) -> bool {
        self.terms.iter().any(|words| self.term_keeps(words, at, false))
    }

    fn position(&self, batch: u32, query: u32) -> i64 {
        let all_documents = self.terms.iter().all(|words| words.contains(&Word::Documents));
        match Self::document_of(&self.query_starts, query).filter(|_| all_documents) {
            Some(d) => {
                let [queries, keys] =
                    [&self.query_starts, &self.key_starts].map(|s| i64::from(s[d]));
                keys + i64::from(query) - queries + self.document_offset(batch, d)
            }
            None => i64::from(query) + self.sequence_offset(batch),
        }
    }

    /// All `[batch, query]` of the case.
    fn all_rows(&self) -> impl Iterator<Item = [u32; 2]> + use<> {
        let Shape { batch, query_len, .. } = self.shape;
        (0..batch).flat_map(move |b| (0..query_len).map(move |q| [b, q]))
    }
}

fn conjunction(words: &[Word]) -> Mask {
    words.iter().map(|word| word.mask()).reduce(|a, b| a & b).unwrap()
}

/// The smallest range that holds all of some ascending keys, and whether it holds only them.
fn hull(keys: impl Iterator<Item = u32>) -> (Range<u32>, bool) {
    let keys: Vec<_> = keys.collect();
    match (keys.first(), keys.last()) {
        (Some(&first), Some(&last)) => (first..last + 1, keys.len() as u32 == last + 1 - first),
        _ => (0..0, true),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..Default::default() })]

    #[test]
    fn pairs_are_kept_as_defined(case in case()) {
        case.with_rows(|rows| {
            for [b, q] in case.all_rows() {
                assert_eq!(rows.position(b, q), case.position(b, q), "position of {q} in {b}");
                let row = rows.row(b, q);
                for h in 0..case.shape.query_heads {
                    for k in 0..case.shape.key_len {
                        assert_eq!(row.keeps(h, k), case.keeps([b, h, q, k]), "{:?}", [b, h, q, k]);
                    }
                }
            }
        });
    }

    #[test]
    fn ranges_are_exact(case in case()) {
        case.with_rows(|rows| {
            for [b, q] in case.all_rows() {
                for (index, term) in case.attention().mask.terms().iter().enumerate() {
                    // Equal terms have joined: not every term has its words at its own index.
                    let same = |words: &&Vec<Word>| conjunction(words).terms() == [term.clone()];
                    let words = case.terms.iter().find(same).unwrap();
                    let keys = (0..case.shape.key_len).filter(|&key| {
                        case.term_keeps(words, [b, 0, q, key], true)
                    });
                    let (hull, whole) = hull(keys);
                    assert!(whole, "{words:?} keeps no interval");
                    assert_eq!(rows.range(index, b, q), hull, "{words:?} {b} {q}");
                    assert_eq!(rows.row(b, q).ranges()[index], hull);
                }
            }
        });
    }

    #[test]
    fn block_ranges_cover_and_are_tight(case in case(), size in 1_u32..6) {
        case.with_rows(|rows| {
            for b in 0..case.shape.batch {
                for start in (0..case.shape.query_len).step_by(size as usize) {
                    // The last block reaches beyond the queries.
                    let ranges = rows.block_ranges(b, start..start + size);
                    let queries = start..(start + size).min(case.shape.query_len);
                    assert!(ranges.iter().all(|r| r.start < r.end && r.end <= case.shape.key_len));
                    assert!(ranges.is_sorted_by(|a, b| a.end < b.start), "{ranges:?}");
                    for key in 0..case.shape.key_len {
                        let walked = ranges.iter().any(|range| range.contains(&key));
                        let kept = queries.clone().any(|q| rows.keeps(b, 0, q, key));
                        assert!(walked || !kept, "key {key} of {ranges:?}");
                    }
                    // Both ends of every range are in the range of some row.
                    let needed = |key: u32| queries.clone().any(|q| {
                        rows.row(b, q).ranges().iter().any(|range| range.contains(&key))
                    });
                    assert!(ranges.iter().all(|r| needed(r.start) && needed(r.end - 1)));
                }
            }
        });
    }

    #[test]
    fn the_normal_form_parses_back(terms in prop::collection::vec(prop::collection::vec(word(), 1..5), 1..=4)) {
        let mask = terms.iter().map(|words| conjunction(words)).reduce(|a, b| a | b).unwrap();
        prop_assert_eq!(mask.to_string().parse::<Mask>(), Ok(mask));
    }

    #[test]
    fn expressions_multiply_out((text, mask) in expression()) {
        match text.parse::<Mask>() {
            Ok(parsed) => prop_assert_eq!(parsed, mask),
            Err(error) => prop_assert!(mask.terms().len() > MAX_TERMS, "{}", error),
        }
    }

    #[test]
    fn any_text_is_parsed_or_refused(text in prop_oneof![
        any::<String>(),
        "[a-z_&|(), 0-9]{0,40}",
        "((causal|sink|window|inf|tree|full|[()]|&|\\||,| |[0-9]{1,11}){0,12})",
    ]) {
        match text.parse::<Mask>() {
            Ok(mask) => prop_assert_eq!(mask.to_string().parse::<Mask>(), Ok(mask)),
            Err(Error::MaskSyntax { column, .. }) => {
                prop_assert!((1..=text.chars().count() + 1).contains(&column));
            }
            Err(error) => prop_assert!(matches!(error, Error::Config { .. }), "{}", error),
        }
    }
}

/// An expression with brackets, and the same mask by operators.
fn expression() -> impl Strategy<Value = (String, Mask)> {
    let leaf = word().prop_map(|word| (word.text(), word.mask()));
    leaf.prop_recursive(4, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone())
                .prop_map(|(a, b)| (format!("({}) & ( {})", a.0, b.0), a.1 & b.1)),
            // No brackets around what `&` has joined: it binds tighter.
            (inner.clone(), inner).prop_map(|(a, b)| (format!("{}|{}", a.0, b.0), a.1 | b.1)),
        ]
    })
}

fn causal_case(mask: &str, query_len: u32, key_len: u32) -> Attention {
    Attention::new(Shape::new(1, 1, query_len, 4).with_key_len(key_len), DType::F32)
        .with_mask(mask.parse().unwrap())
}

/// The rows of a mask, as the documentation draws them.
fn drawn(attention: &Attention, arrays: &Arrays) -> Vec<String> {
    let rows = MaskRows::new(attention, arrays).unwrap();
    let bit = |query, key| if rows.keeps(0, 0, query, key) { "1" } else { "0" };
    let row = |query| (0..attention.shape.key_len).map(|key| bit(query, key)).collect::<Vec<_>>();
    (0..attention.shape.query_len).map(|query| row(query).join(" ")).collect()
}

#[test]
fn masks_look_as_documented() {
    let none = Arrays::default();
    assert_eq!(drawn(&causal_case("causal", 2, 5), &none), ["1 1 1 1 0", "1 1 1 1 1"]);
    assert_eq!(drawn(&causal_case("causal", 5, 2), &none), ["0 0", "0 0", "0 0", "1 0", "1 1"]);
    for (mask, positions) in
        [("causal", Positions::TopLeft), ("causal_top_left", Positions::BottomRight)]
    {
        let wide = causal_case(mask, 2, 5).with_positions(positions);
        assert_eq!(drawn(&wide, &none), ["1 0 0 0 0", "1 1 0 0 0"]);
        let tall = causal_case(mask, 5, 2).with_positions(positions);
        assert_eq!(drawn(&tall, &none), ["1 0", "1 1", "1 1", "1 1", "1 1"]);
    }
    let streaming = causal_case("window(1,0) | sink(2)", 7, 7);
    assert_eq!(
        drawn(&streaming, &none),
        [
            "1 1 0 0 0 0 0",
            "1 1 0 0 0 0 0",
            "1 1 1 0 0 0 0",
            "1 1 1 1 0 0 0",
            "1 1 0 1 1 0 0",
            "1 1 0 0 1 1 0",
            "1 1 0 0 0 1 1",
        ]
    );
    let rows = MaskRows::new(&streaming, &none).unwrap();
    assert_eq!(rows.block_ranges(0, 5..7), [0..2, 4..7]);

    let starts = Array::u32(&[0, 3, 7]);
    let mut packed = Arrays::default();
    (packed.query_starts, packed.key_starts) = (Some(starts), Some(starts));
    assert_eq!(
        drawn(&causal_case("causal & documents", 7, 7), &packed),
        [
            "1 0 0 0 0 0 0",
            "1 1 0 0 0 0 0",
            "1 1 1 0 0 0 0",
            "0 0 0 1 0 0 0",
            "0 0 0 1 1 0 0",
            "0 0 0 1 1 1 0",
            "0 0 0 1 1 1 1",
        ]
    );
}

#[test]
fn a_streaming_block_loads_no_middle() {
    let attention = causal_case("causal & (window(255,0) | sink(4))", 4096, 4096);
    let arrays = Arrays::default();
    let rows = MaskRows::new(&attention, &arrays).unwrap();
    assert_eq!(rows.block_ranges(0, 2048..2112), [0..4, 1793..2112]);
    // Touching ranges join: the window of query 258 starts at key 3, of query 259 at key 4.
    assert_eq!(rows.block_ranges(0, 259..260), vec![0..260]);
    assert_eq!(rows.block_ranges(0, 260..261), [0..4, 5..261]);
    assert_eq!(rows.block_ranges(0, 4096..5000), []);
}

#[test]
fn rows_without_keys() {
    let arrays = Arrays::default();
    for (mask, query_len, key_len, empty) in [
        ("causal", 5, 2, 0..3),
        ("window(1,0)", 6, 2, 0..4),
        ("sink(0)", 3, 3, 0..3),
        ("causal & sink(0)", 3, 3, 0..3),
        ("full", 3, 0, 0..3),
    ] {
        let attention = causal_case(mask, query_len, key_len);
        let rows = MaskRows::new(&attention, &arrays).unwrap();
        for query in 0..query_len {
            assert_eq!(rows.range(0, 0, query) == (0..0), empty.contains(&query), "{mask} {query}");
        }
        assert_eq!(rows.block_ranges(0, empty.clone()), [], "{mask}");
    }
}

#[test]
fn extreme_numbers_do_not_overflow() {
    let max = u32::MAX;
    let mask = format!("window({max},{max}) & sink({max}) & prefix({max}) & causal");
    let shape = Shape::new(1, 1, 1 << 28, 4);
    let arrays_with = |offset: &'static [i32; 1]| {
        let mut arrays = Arrays::default();
        arrays.query_offset = Some(Array::i32(offset));
        arrays
    };
    let attention = Attention::new(shape, DType::F32)
        .with_mask(mask.parse().unwrap())
        .with_positions(Positions::PerBatch);
    for (offset, kept) in [(&[1 << 29], 0..1 << 28), (&[-(1 << 29)], 0..0)] {
        let arrays = arrays_with(offset);
        let rows = MaskRows::new(&attention, &arrays).unwrap();
        assert_eq!(rows.range(0, 0, (1 << 28) - 1), kept);
    }
    let arrays = arrays_with(&[i32::MIN]);
    assert!(MaskRows::new(&attention, &arrays).is_err());
}

#[test]
fn what_lies_outside_of_the_shape_is_masked() {
    let attention = causal_case("full", 3, 4);
    let arrays = Arrays::default();
    let rows = MaskRows::new(&attention, &arrays).unwrap();
    assert!(rows.keeps(0, 0, 2, 3));
    for [b, h, q, k] in [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 4]] {
        assert!(!rows.keeps(b, h, q, k));
    }
    assert_eq!(rows.range(1, 0, 0), 0..0);
    assert_eq!(rows.range(0, 1, 0), 0..0);
}

#[test]
fn packed_bits_are_row_by_row() {
    let keep: Vec<bool> = (0..2 * 33).map(|index| index % 33 == 0 || index == 65).collect();
    assert_eq!(pack_mask(&keep, 33), [1, 0, 1, 1]);
    assert_eq!(pack_mask(&keep[..34], 33), [1, 0, 1, 0]);
    assert_eq!(pack_mask(&[], 5), []);
    assert_eq!(pack_mask(&keep, 0), []);
}
