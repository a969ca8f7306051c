//! Static sparse patterns: which pairs they keep, and the list of keys that visits little else.

use std::collections::HashSet;
use std::ops::Add;

use super::{FULL, KeyList, Keys, ListHeads, Lists};
use crate::attention::arrays::Arrays;
use crate::attention::mask::{Mask, MaskRows};
use crate::attention::score::Broadcast;
use crate::attention::{Attention, Positions};
use crate::error::Error;
use crate::launch::Array;
use crate::shape::Shape;

/// A sparse pattern: the pairs that any of its parts keeps, among those that the mask keeps.
///
/// Parts that masks have words for, and [`Pattern::strided`] and [`Pattern::dilated`], are exact to
/// the token; random parts and BigBird are whole blocks. Positions are those of the mask: query `i`
/// stands at `i' = i + offset`.
///
/// As text: `sink(4) + window(1020)`, `strided(16)`, `dilated(64,4)`, `global(2)`, `documents`,
/// `roles`, `random(density=0.1, seed=7)`, `bigbird(window=3, global=2, random=3)`. A pattern prints as
/// text that parses back to it, if it is valid and its seeds are below 2^32.
///
/// ```
/// use wgpu_attention::{Arrays, Attention, DType, Mask, Pattern, Shape};
/// let attention = Attention::new(Shape::new(1, 8, 4096, 64), DType::F16).with_mask(Mask::causal());
/// let streaming = Pattern::sink(4) + Pattern::window(1020);
/// assert_eq!("sink(4) + window(1020)".parse::<Pattern>()?, streaming);
/// let source = streaming.source(&attention, &Arrays::default(), (64, 64))?;
/// let sparse = source.apply(&attention);
/// assert_eq!(sparse.mask, Mask::causal() & (Mask::sink(4) | Mask::window(Some(1020), Some(0))));
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Pattern {
    pub(super) parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    Sink(u32),
    Window(u32),
    Strided(u32),
    Dilated { count: u32, step: u32 },
    Global(u32),
    Documents,
    Roles,
    Random { density: f64, seed: u64 },
    BigBird { window: u32, global: u32, random: u32, seed: u64 },
}

/// What a pattern comes to for one configuration: a mask, a list, and the bits that the mask may
/// need.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Source {
    /// The mask, that of the configuration narrowed.
    pub mask: Mask,
    /// The list of keys.
    pub list: KeyList,
    /// For [`Arrays::dense_mask`], where the mask has `dense`.
    pub dense_mask: Option<(Vec<u32>, Broadcast)>,
}

impl Source {
    /// The configuration with this mask and this list.
    pub fn apply(&self, attention: &Attention) -> Attention {
        attention.clone().with_mask(self.mask.clone()).with_keys(self.list.keys)
    }

    /// `arrays` with this list and these bits in them.
    pub fn arrays<'a>(&'a self, arrays: Arrays<'a>) -> Arrays<'a> {
        let mut arrays = self.list.arrays(arrays);
        if let Some((bits, broadcast)) = &self.dense_mask {
            arrays.dense_mask = Some((Array::u32(bits), *broadcast));
        }
        arrays
    }
}

impl Pattern {
    pub(super) fn part(part: Part) -> Self {
        Self { parts: vec![part] }
    }

    /// The first `n` keys.
    pub fn sink(n: u32) -> Self {
        Self::part(Part::Sink(n))
    }

    /// The query's own position and `left` earlier ones.
    pub fn window(left: u32) -> Self {
        Self::part(Part::Window(left))
    }

    /// Every `stride`-th key, for all queries alike: `j mod stride = stride − 1`. The stride is at
    /// least 1, or [`Pattern::source`] refuses it.
    pub fn strided(stride: u32) -> Self {
        Self::part(Part::Strided(stride))
    }

    /// The query's own position and `count` earlier ones that lie `step` apart. The step is at least 1,
    /// or [`Pattern::source`] refuses it.
    pub fn dilated(count: u32, step: u32) -> Self {
        Self::part(Part::Dilated { count, step })
    }

    /// The first `n` keys for all queries, and all keys for queries at the first `n` positions.
    pub fn global(n: u32) -> Self {
        Self::part(Part::Global(n))
    }

    /// Pairs within one document.
    pub fn documents() -> Self {
        Self::part(Part::Documents)
    }

    /// Pairs that the role table allows (BlockRank: candidates see instructions and themselves).
    pub fn roles() -> Self {
        Self::part(Part::Roles)
    }

    /// For each block of queries of each head, that share of the blocks of keys that the mask
    /// leaves, at least one; the same for the same seed. The density is above 0 and at most 1, or
    /// [`Pattern::source`] refuses it.
    pub fn random(density: f64, seed: u64) -> Self {
        Self::part(Part::Random { density, seed })
    }

    /// BigBird, in blocks: the query's own block and `window − 1` around it (before it first),
    /// the first `global` blocks as keys and as queries, and `random` others (Zaheer et al., 2020).
    pub fn big_bird(window: u32, global: u32, random: u32, seed: u64) -> Self {
        Self::part(Part::BigBird { window, global, random, seed })
    }

    /// Resolves the pattern for a configuration, with lists in blocks of `(block_q, block_k)`.
    ///
    /// Where the parts are exact and masks have no words for them, the pairs become bits of a dense
    /// mask: `query_len · key_len / 8` bytes, for each head where the parts tell heads apart.
    ///
    /// # Errors
    /// A part that [`Pattern::validate`] refuses; as those of [`KeyList::from_mask`]; block sizes that
    /// [`Keys`] does not allow; `documents` or
    /// `roles` joined with a part that masks have no words for; a part of whole blocks or of bits
    /// where positions are given per batch entry or the mask has bits of its own.
    pub fn source(
        &self,
        attention: &Attention,
        arrays: &Arrays<'_>,
        block: (u32, u32),
    ) -> Result<Source, Error> {
        self.validate()?;
        let (attention, arrays) = &without_list(attention, arrays);
        if let Some(words) = self.words() {
            let attention = attention.clone().with_mask(attention.mask.clone() & words);
            attention.validate()?;
            let list = KeyList::from_mask(&attention, arrays, block)?;
            return Ok(Source { mask: attention.mask, list, dense_mask: None });
        }
        if let [Part::Strided(stride)] = self.parts[..] {
            let keys = Keys::Indices { block_q: block.0, lists: Lists::SHARED };
            keys.validate()?;
            let list = strided(attention, keys, stride)?;
            return Ok(Source { mask: attention.mask.clone(), list, dense_mask: None });
        }
        check_bits(attention)?;
        if self.parts.iter().any(|part| matches!(part, Part::Documents | Part::Roles)) {
            let expected = "documents and roles joined with sink, window and each other alone";
            return Err(Error::config("pattern", expected, format!("`{self}`")));
        }
        let blocks = self.blocks(attention, arrays, block)?;
        if self.parts.iter().all(|part| part.is_blocks()) {
            return Ok(Source { mask: attention.mask.clone(), list: blocks, dense_mask: None });
        }
        self.bits(attention, arrays, &blocks, block)
    }

    /// Checks the numbers of all parts.
    ///
    /// # Errors
    /// [`Error::Config`] for a stride or a step of 0, and for a density that is not above 0 and at
    /// most 1.
    pub fn validate(&self) -> Result<(), Error> {
        let lacks = |part: &Part| match *part {
            Part::Strided(0) => Some("a stride of at least 1"),
            Part::Dilated { step: 0, .. } => Some("a step of at least 1"),
            Part::Random { density, .. } if !(density > 0.0 && density <= 1.0) => {
                Some("a density above 0 and up to 1")
            }
            _ => None,
        };
        let refused = self.parts.iter().find_map(|part| Some((part, lacks(part)?)));
        refused.map_or(Ok(()), |(part, expected)| {
            Err(Error::config("pattern", expected, format!("`{part}`")))
        })
    }

    /// The mask that says the same, if there is one.
    pub fn words(&self) -> Option<Mask> {
        let word = |part: &Part| match *part {
            Part::Sink(n) => Some(Mask::sink(n)),
            Part::Window(left) => Some(Mask::window(Some(left), Some(0))),
            Part::Documents => Some(Mask::documents()),
            Part::Roles => Some(Mask::roles()),
            _ => None,
        };
        let words: Option<Vec<_>> = self.parts.iter().map(word).collect();
        words?.into_iter().reduce(|a, b| a | b)
    }

    /// The list of the parts that are whole blocks; each block of queries of each head has a row.
    fn blocks(
        &self,
        attention: &Attention,
        arrays: &Arrays<'_>,
        block: (u32, u32),
    ) -> Result<KeyList, Error> {
        let visible = KeyList::from_mask(attention, arrays, block)?;
        let shape = &attention.shape;
        let lists = Lists { per_batch: false, heads: ListHeads::QueryHead };
        let keys = Keys::Blocks { block_q: block.0, block_k: block.1, lists };
        let masks = MaskRows::new(attention, arrays)?;
        let mut list = KeyList { keys, offsets: vec![0], entries: Vec::new() };
        for head in 0..shape.query_heads {
            for row in 0..keys.query_blocks(shape) {
                let last = ((row + 1) * block.0).min(shape.query_len).saturating_sub(1);
                let own = masks.position(0, last).max(0) as u32 / block.1;
                let candidates: Vec<u32> =
                    visible.row(row as usize).iter().map(|entry| entry & !FULL).collect();
                let mut chosen = vec![false; candidates.len()];
                for part in &self.parts {
                    part.choose(&candidates, &mut chosen, (head, row, own), block.1);
                }
                let kept = candidates.iter().zip(&chosen).filter(|(_, chosen)| **chosen);
                list.push_row(kept.map(|(&token, _)| token));
            }
        }
        list.checked(shape)
    }

    /// Pairs as bits, and the list of the blocks that hold some.
    fn bits(
        &self,
        attention: &Attention,
        arrays: &Arrays<'_>,
        blocks: &KeyList,
        block: (u32, u32),
    ) -> Result<Source, Error> {
        let per_head = self.parts.iter().any(|part| part.is_blocks());
        let exact: Vec<_> = self.parts.iter().filter(|part| !part.is_blocks()).collect();
        let query_blocks = blocks.keys.query_blocks(&attention.shape);
        by_bits(attention, arrays, (per_head, block), |head, query, position| {
            let at = (head * query_blocks + query / block.0) as usize;
            let row: HashSet<u32> = blocks.row(at).iter().map(|token| token / block.1).collect();
            let exact = &exact;
            move |key| {
                row.contains(&(key / block.1)) || exact.iter().any(|part| part.keeps(position, key))
            }
        })
    }
}

/// The source of pairs that are given by a function, as bits and the list of the blocks that hold
/// some. `row` is asked for each head (once for all unless `per_head`), query and position.
fn by_bits<K: Fn(u32) -> bool>(
    attention: &Attention,
    arrays: &Arrays<'_>,
    (per_head, block): (bool, (u32, u32)),
    row: impl Fn(u32, u32, i64) -> K,
) -> Result<Source, Error> {
    let shape = &attention.shape;
    let masks = MaskRows::new(attention, arrays)?;
    let words = shape.key_len.div_ceil(32);
    let mut bits = Vec::new();
    for head in 0..if per_head { shape.query_heads } else { 1 } {
        for query in 0..shape.query_len {
            let keeps = row(head, query, masks.position(0, query));
            bits.extend((0..words).map(|word| {
                let keys = 32 * word..(32 * word + 32).min(shape.key_len);
                keys.filter(|&key| keeps(key)).fold(0, |bits, key| bits | 1 << (key % 32))
            }));
        }
    }
    let broadcast = Broadcast { per_batch: false, per_head };
    let narrowed = attention.clone().with_mask(attention.mask.clone() & Mask::dense());
    let mut with_bits = *arrays;
    with_bits.dense_mask = Some((Array::u32(&bits), broadcast));
    let list = KeyList::from_mask(&narrowed, &with_bits, block)?;
    Ok(Source { mask: narrowed.mask, list, dense_mask: Some((bits, broadcast)) })
}

impl Add for Pattern {
    type Output = Self;

    /// Pairs that either pattern keeps.
    fn add(mut self, other: Self) -> Self {
        self.parts.extend(other.parts);
        self
    }
}

impl Part {
    const fn is_blocks(&self) -> bool {
        matches!(self, Self::Random { .. } | Self::BigBird { .. })
    }

    /// Whether a query at `position` keeps a key, for parts that are exact to the token.
    fn keeps(&self, position: i64, key: u32) -> bool {
        let back = position - i64::from(key);
        match *self {
            Self::Sink(n) => key < n,
            Self::Window(left) => (0..=i64::from(left)).contains(&back),
            Self::Strided(stride) => key % stride == stride - 1,
            Self::Dilated { count, step } => {
                back >= 0 && back % i64::from(step) == 0 && back / i64::from(step) <= count.into()
            }
            Self::Global(n) => key < n || position < n.into(),
            _ => false,
        }
    }

    /// Marks the blocks that a part takes of the candidates, for a row of blocks of queries whose
    /// last query stands in block `own`.
    fn choose(
        &self,
        candidates: &[u32],
        chosen: &mut [bool],
        (head, row, own): (u32, u32, u32),
        block_k: u32,
    ) {
        let stream = |seed: u64| Random(seed ^ u64::from(head) << 40 ^ u64::from(row) << 16);
        match *self {
            Self::Random { density, seed } if !candidates.is_empty() => {
                let wanted = (density * candidates.len() as f64).round() as usize;
                stream(seed).take(chosen, wanted.clamp(1, candidates.len()));
            }
            Self::BigBird { window, global, random, seed } => {
                // An odd window is centred, an even one has one more before.
                let (before, after) = (window / 2, window.saturating_sub(1) / 2);
                for (token, chosen) in candidates.iter().zip(chosen.iter_mut()) {
                    let block = token / block_k;
                    let near = block + before >= own && block <= own + after && window > 0;
                    *chosen |= near || block < global || own < global;
                }
                let left = chosen.iter().filter(|chosen| !**chosen).count();
                stream(seed).take(chosen, left.min(random as usize));
            }
            _ => {}
        }
    }
}

/// One row for all, of every `stride`-th key.
fn strided(attention: &Attention, keys: Keys, stride: u32) -> Result<KeyList, Error> {
    let shape = &attention.shape;
    let row: Vec<u32> = (stride - 1..shape.key_len).step_by(stride as usize).collect();
    KeyList::from_rows(keys, shape, &vec![row; keys.query_blocks(shape) as usize])
}

/// A streaming head for each query head, exact to the token: `(sink, window)` is the number of
/// first keys and of earlier positions that the head sees (StreamingLLM, DuoAttention; for MoA the
/// windows of [`moa_span`]). A head of window `key_len` is dense.
///
/// # Errors
/// Not one pair of sizes per query head; as [`Pattern::source`].
pub fn streaming_heads(
    attention: &Attention,
    arrays: &Arrays<'_>,
    sizes: &[(u32, u32)],
    block: (u32, u32),
) -> Result<Source, Error> {
    let shape = &attention.shape;
    if sizes.len() != shape.query_heads as usize {
        let expected = format!("{} pairs of sink and window, one a query head", shape.query_heads);
        return Err(Error::config("sizes", expected, sizes.len().to_string()));
    }
    let (attention, arrays) = &without_list(attention, arrays);
    check_bits(attention)?;
    by_bits(attention, arrays, (true, block), |head, _, position| {
        let (sink, window) = sizes[head as usize];
        move |key| {
            Part::Sink(sink).keeps(position, key) || Part::Window(window).keeps(position, key)
        }
    })
}

/// The configuration and its arrays without a list of keys.
fn without_list<'a>(attention: &Attention, arrays: &Arrays<'a>) -> (Attention, Arrays<'a>) {
    let arrays = Arrays { list_offsets: None, list_entries: None, ..*arrays };
    (attention.clone().with_keys(Keys::Dense), arrays)
}

/// Patterns that masks have no words for must be the same for all batch entries.
fn check_bits(attention: &Attention) -> Result<(), Error> {
    if attention.mask.any(|term| term.dense || term.lengths)
        || attention.positions == Positions::PerBatch
    {
        let expected = "positions and a mask that all batch entries share, and no dense mask";
        return Err(Error::config("pattern", expected, attention.mask.to_string()));
    }
    Ok(())
}

/// MoA's span of a head, `α + β · key_len`, as the window of [`streaming_heads`]: the span counts
/// the query's own position and a window does not.
pub fn moa_span(alpha: f64, beta: f64, key_len: u32) -> u32 {
    let span = alpha + beta * f64::from(key_len);
    (span.round().clamp(1.0, f64::from(key_len.max(1))) as u32) - 1
}

impl KeyList {
    /// Of the list's blocks, in each row the share `density` that holds most of `sums`: the oracle
    /// that every selector is measured against. `sums` is what [`Output::BlockSums`] gives for the
    /// same block sizes, `[batch, query_heads, ⌈query_len / block_q⌉, ⌈key_len / block_k⌉]`; each
    /// query head of each batch entry gets a list of its own, of at least one block a row where
    /// the row has any. Of equal sums the earlier block is taken.
    ///
    /// [`Output::BlockSums`]: crate::Output::BlockSums
    ///
    /// # Errors
    /// Sums of another length; a list of single keys or of blocks that are not aligned; a density
    /// that is not above 0, up to 1.
    pub fn top_blocks(&self, shape: &Shape, sums: &[f32], density: f64) -> Result<Self, Error> {
        let Keys::Blocks { block_q, block_k, .. } = self.keys else {
            return Err(Error::config("keys", "a list of blocks", self.keys.describe()));
        };
        if !(density > 0.0 && density <= 1.0) {
            return Err(Error::config("density", "above 0, up to 1", density.to_string()));
        }
        if self.entries.iter().any(|entry| !(entry & !FULL).is_multiple_of(block_k)) {
            return Err(Error::tensor("list_entries", "aligned blocks", "others"));
        }
        let lists = Lists { per_batch: true, heads: ListHeads::QueryHead };
        let keys = Keys::Blocks { block_q, block_k, lists };
        let columns = shape.key_len.div_ceil(block_k) as usize;
        let expected = keys.rows(shape) * columns as u64;
        if sums.len() as u64 != expected {
            let got = format!("{} values", sums.len());
            return Err(Error::tensor("sums", format!("{expected} values"), got));
        }
        let mut list = Self { keys, offsets: vec![0], entries: Vec::new() };
        for batch in 0..shape.batch {
            for head in 0..shape.query_heads {
                for block in 0..keys.query_blocks(shape) {
                    let at = [batch, head, block * block_q];
                    let sums = &sums[keys.row(shape, at) * columns..][..columns];
                    let mut row = self.row(self.keys.row(shape, at)).to_vec();
                    let sum = |entry: &u32| sums[((entry & !FULL) / block_k) as usize];
                    row.sort_by(|a, b| sum(b).total_cmp(&sum(a)));
                    let count = (density * row.len() as f64).round().max(1.0) as usize;
                    row.truncate(count);
                    row.sort_unstable_by_key(|entry| entry & !FULL);
                    list.push_row(row);
                }
            }
        }
        list.checked(shape)
    }
}

/// A reproducible stream of numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut hash = self.0;
        hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((hash ^ hash >> 31) % n.max(1) as u64) as usize
    }

    /// Marks `count` of those that are not marked.
    fn take(&mut self, chosen: &mut [bool], count: usize) {
        let mut free: Vec<usize> = (0..chosen.len()).filter(|&i| !chosen[i]).collect();
        for _ in 0..count.min(free.len()) {
            let place = self.below(free.len());
            chosen[free.swap_remove(place)] = true;
        }
    }
}
