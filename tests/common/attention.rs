//! One call of attention, run by any variant and compared with the f64 reference.

use super::{Layout, Placed, Random, emulating};
use wgpu_attention::attention::reference::{HostInputs, Reference};
use wgpu_attention::attention::tolerance::compare;
use wgpu_attention::{
    Alignment, Array, Arrays, Attention, Broadcast, Context, DType, Error, Inputs, KeyList, Keys,
    Output, Outputs, Plan, Shape, Stage, Variant, pack_mask,
};

/// The side arrays of a case, owned.
#[derive(Clone, Debug, Default)]
pub struct Sides {
    pub query_offset: Option<Vec<i32>>,
    pub query_starts: Option<Vec<u32>>,
    pub key_starts: Option<Vec<u32>>,
    pub key_lengths: Option<Vec<u32>>,
    pub query_roles: Option<Vec<u32>>,
    pub key_roles: Option<Vec<u32>>,
    pub role_table: Option<Vec<u32>>,
    pub tree_bits: Option<Vec<u32>>,
    pub dense_mask: Option<(Vec<u32>, Broadcast)>,
    pub alibi_slopes: Option<Vec<f32>>,
    pub key_bias: Option<Vec<f32>>,
    pub sinks: Option<Vec<f32>>,
    pub list: Option<KeyList>,
}

impl Sides {
    /// Draws every array that the configuration refers to.
    pub fn draw(attention: &Attention, random: &mut Random) -> Self {
        let shape = &attention.shape;
        let (mask, score) = (&attention.mask, &attention.score);
        let mut sides = Self::default();
        if attention.positions == wgpu_attention::Positions::PerBatch {
            let span = shape.query_len + shape.key_len + 1;
            let offset = |_| random.below(span) as i32 - shape.query_len as i32;
            sides.query_offset = Some((0..shape.batch).map(offset).collect());
        }
        if mask.any(|t| t.documents) {
            let documents = 1 + random.below(4);
            sides.query_starts = Some(starts(random, documents, shape.query_len));
            sides.key_starts = Some(starts(random, documents, shape.key_len));
        }
        if mask.any(|t| t.lengths) {
            let lengths = (0..shape.batch).map(|_| random.below(shape.key_len + 1)).collect();
            sides.key_lengths = Some(lengths);
        }
        if mask.any(|t| t.roles) {
            sides.query_roles = Some((0..shape.query_len).map(|_| random.below(8)).collect());
            sides.key_roles = Some((0..shape.key_len).map(|_| random.below(8)).collect());
            sides.role_table = Some((0..8).map(|_| random.below(256)).collect());
        }
        if mask.any(|t| t.tree) {
            let bits = (0..2 * shape.query_len).map(|_| random.bits() as u32).collect();
            sides.tree_bits = Some(bits);
        }
        if mask.any(|t| t.dense) {
            let broadcast = random.broadcast();
            let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
            let pairs = batch * heads * shape.query_len * shape.key_len;
            let keep: Vec<bool> = (0..pairs).map(|_| random.below(3) > 0).collect();
            sides.dense_mask = Some((pack_mask(&keep, shape.key_len), broadcast));
        }
        if score.alibi {
            sides.alibi_slopes = Some((0..shape.query_heads).map(|_| random.unit()).collect());
        }
        if let Some(broadcast) = score.key_bias {
            let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
            let count = (batch * heads * shape.key_len) as usize;
            sides.key_bias = Some(random.bias(DType::F32, count));
        }
        if score.sinks {
            let sinks = (0..shape.query_heads).map(|_| 6.0 * random.unit() - 1.0);
            sides.sinks = Some(sinks.collect());
        }
        sides
    }

    /// The words of every array of integers.
    pub fn integers(&mut self) -> Vec<&mut [u32]> {
        let plain = [
            &mut self.query_starts,
            &mut self.key_starts,
            &mut self.key_lengths,
            &mut self.query_roles,
            &mut self.key_roles,
            &mut self.role_table,
            &mut self.tree_bits,
        ];
        let mut arrays: Vec<&mut [u32]> =
            plain.into_iter().flatten().map(Vec::as_mut_slice).collect();
        arrays.extend(self.query_offset.as_deref_mut().map(bytemuck::cast_slice_mut));
        arrays.extend(self.dense_mask.as_mut().map(|(bits, _)| bits.as_mut_slice()));
        if let Some(list) = &mut self.list {
            arrays.extend([&mut list.offsets[..], &mut list.entries[..]]);
        }
        arrays
    }

    pub fn arrays(&self) -> Arrays<'_> {
        let mut arrays = Arrays::default();
        arrays.query_offset = self.query_offset.as_deref().map(Array::i32);
        arrays.query_starts = self.query_starts.as_deref().map(Array::u32);
        arrays.key_starts = self.key_starts.as_deref().map(Array::u32);
        arrays.key_lengths = self.key_lengths.as_deref().map(Array::u32);
        arrays.query_roles = self.query_roles.as_deref().map(Array::u32);
        arrays.key_roles = self.key_roles.as_deref().map(Array::u32);
        arrays.role_table = self.role_table.as_deref().map(Array::u32);
        arrays.tree_bits = self.tree_bits.as_deref().map(Array::u32);
        arrays.dense_mask = self.dense_mask.as_ref().map(|(bits, b)| (Array::u32(bits), *b));
        arrays.alibi_slopes = self.alibi_slopes.as_deref().map(Array::f32);
        arrays.key_bias = self.key_bias.as_deref().map(Array::f32);
        arrays.sinks = self.sinks.as_deref().map(Array::f32);
        match &self.list {
            Some(list) => list.arrays(arrays),
            None => arrays,
        }
    }
}

/// Does something to every array of integers.
pub fn each_integer<'a>(arrays: &mut Arrays<'a>, mut change: impl FnMut(&mut Array<'a>)) {
    let plain = [
        &mut arrays.query_offset,
        &mut arrays.query_starts,
        &mut arrays.key_starts,
        &mut arrays.key_lengths,
        &mut arrays.query_roles,
        &mut arrays.key_roles,
        &mut arrays.role_table,
        &mut arrays.tree_bits,
        &mut arrays.list_offsets,
        &mut arrays.list_entries,
    ];
    plain.into_iter().flatten().for_each(&mut change);
    if let Some((bits, _)) = &mut arrays.dense_mask {
        change(bits);
    }
}

impl Random {
    pub fn broadcast(&mut self) -> Broadcast {
        Broadcast { per_batch: self.below(2) == 0, per_head: self.below(2) == 0 }
    }
}

/// A list that visits about half of the keys from unaligned tokens on; one row in five is empty.
pub fn random_list(keys: Keys, shape: &Shape, random: &mut Random) -> KeyList {
    let block_k = keys.block_k();
    let row = |random: &mut Random| {
        let mut entries = Vec::new();
        let mut token = random.below(block_k);
        while token < shape.key_len && entries.len() < 1000 {
            entries.push(token);
            token += block_k + random.below(2 * block_k + 1);
        }
        if random.below(5) == 0 { Vec::new() } else { entries }
    };
    let rows: Vec<_> = (0..keys.rows(shape)).map(|_| row(random)).collect();
    KeyList::from_rows(keys, shape, &rows).expect("a valid list")
}

/// Cumulative lengths of `documents` documents, some of them empty, within `len`.
fn starts(random: &mut Random, documents: u32, len: u32) -> Vec<u32> {
    let mut starts: Vec<u32> = (0..=documents).map(|_| random.below(len + 1)).collect();
    starts.sort_unstable();
    starts
}

/// One attention call with everything it reads.
pub struct Case {
    pub attention: Attention,
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub bias: Option<Vec<f32>>,
    pub sides: Sides,
    pub layout: Layout,
}

/// What a case gave.
#[derive(Clone, Debug)]
pub struct Results {
    pub out: Vec<f32>,
    pub lse: Option<Vec<f32>>,
    pub scores: Vec<f32>,
}

impl Case {
    /// Draws all tensors and arrays of a configuration.
    pub fn new(attention: Attention, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let sides = Sides::draw(&attention, &mut random);
        let (shape, dtype) = (attention.shape, attention.dtype);
        let count = |shape: [u32; 4]| shape.iter().map(|&n| n as usize).product::<usize>();
        let bias = attention.score.bias.map(|(dtype, broadcast)| {
            let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
            random.bias(dtype, count([batch, heads, shape.query_len, shape.key_len]))
        });
        Self {
            query: random.normal(dtype, count(shape.query())),
            key: random.normal(dtype, count(shape.key())),
            value: random.normal(dtype, count(shape.value())),
            bias,
            sides,
            layout: Layout::Dense,
            attention,
        }
    }

    /// Sets how all tensors lie in their buffers.
    pub fn with_layout(mut self, layout: Layout) -> Self {
        if layout == Layout::Shared && self.attention.shape.batch > 1 {
            for values in [&mut self.query, &mut self.key, &mut self.value] {
                let entry = values.len() / self.attention.shape.batch as usize;
                let first = values[..entry].to_vec();
                values.chunks_mut(entry.max(1)).for_each(|chunk| chunk.copy_from_slice(&first));
            }
        }
        self.layout = layout;
        self
    }

    pub fn host(&self) -> HostInputs<'_> {
        let mut host = HostInputs::new(&self.query, &self.key, &self.value);
        host.bias = self.bias.as_deref();
        host.with_arrays(self.sides.arrays())
    }

    /// Runs one variant.
    pub fn run(&self, context: &Context, variant: Variant) -> Result<Results, Error> {
        let plan = pollster::block_on(self.attention.plan_with(context, variant))?;
        self.run_plan(context, &plan)
    }

    /// Runs a plan of this case's configuration.
    pub fn run_plan(&self, context: &Context, plan: &Plan) -> Result<Results, Error> {
        let call = Call::new(context, self);
        let bound = plan.bind(&call.inputs().with_arrays(self.sides.arrays()), &call.outputs())?;
        pollster::block_on(context.run(&bound))?;
        Ok(call.results(context))
    }

    /// Runs every variant that supports the case and compares some of its rows with the reference; says
    /// which ran.
    pub fn check_rows(&self, context: &Context, rows: usize) -> Vec<Variant> {
        let variants = variants(context, &self.attention);
        for &variant in &variants {
            let results = self.run(context, variant).expect("a supported variant runs");
            self.judge_rows(&results, variant.label(), rows);
        }
        variants
    }

    /// Runs every variant that supports the case and compares it with the reference; says which
    /// ran.
    pub fn check(&self, context: &Context) -> Vec<Variant> {
        let variants = self.check_rows(context, usize::MAX);
        let emulating = emulating(context);
        let supports =
            |context: &&Context| Variant::Coop.supports(context.caps(), &self.attention).is_ok();
        if let Some(context) = emulating.filter(supports) {
            let results = self.run(context, Variant::Coop).expect("a supported variant runs");
            self.judge(&results, "attention.coop, emulated");
        }
        variants
    }

    /// Compares results with the reference.
    pub fn judge(&self, results: &Results, label: &str) {
        self.judge_rows(results, label, usize::MAX);
    }

    /// Compares some rows of results with the reference.
    pub fn judge_rows(&self, results: &Results, label: &str, rows: usize) {
        let host = self.host();
        let reference = Reference::new(&self.attention, &host).expect("a valid case");
        let rows = reference.sample(rows);
        let name =
            || format!("{label}/{} {:?} {:?}", self.attention.dtype, self.layout, self.attention);
        if let Output::Scores(stage) = self.attention.output {
            let found = reference.check_scores(stage, &rows, &results.scores);
            assert!(found.ok, "{}: {found:?}", name());
            return;
        }
        if let Output::BlockSums { block_q, block_k } = self.attention.output {
            let sums = |eager| block_sums(&reference, &self.attention, (block_q, block_k), eager);
            let magnitude = f64::from(block_q) * 4.0;
            let found = compare(&results.scores, &sums(false), &sums(true), DType::F32, magnitude);
            assert!(found.ok, "{}: {found:?}", name());
            return;
        }
        let (out, lse) = reference.check_out(&rows, &results.out, results.lse.as_deref());
        assert!(out.ok, "{}: out {out:?}", name());
        if let Some(lse) = lse {
            assert!(lse.ok, "{}: lse {lse:?}", name());
        }
    }
}

/// The reference's probabilities, summed over blocks.
fn block_sums(
    reference: &Reference<'_>,
    attention: &Attention,
    (block_q, block_k): (u32, u32),
    eager: bool,
) -> Vec<f64> {
    let shape = &attention.shape;
    let columns = shape.key_len.div_ceil(block_k) as usize;
    let blocks = shape.query_len.div_ceil(block_q);
    let mut sums = Vec::new();
    for row in 0..shape.batch * shape.query_heads * blocks {
        let (head, block) = (row / blocks, row % blocks);
        let (batch, head) = (head / shape.query_heads, head % shape.query_heads);
        let mut row = vec![0.0; columns];
        for query in block * block_q..((block + 1) * block_q).min(shape.query_len) {
            let weights = match eager {
                true => reference.scores_eager(Stage::Probabilities, batch, head, query),
                false => reference.scores(Stage::Probabilities, batch, head, query),
            };
            for (key, weight) in weights.into_iter().enumerate() {
                row[key / block_k as usize] += weight;
            }
        }
        sums.extend(row);
    }
    sums
}

/// The tensors of a case on the device.
pub struct Call {
    pub query: Placed,
    pub key: Placed,
    pub value: Placed,
    pub bias: Option<Placed>,
    pub out: Placed,
    pub lse: Placed,
    pub scores: Placed,
    output: Output,
}

impl Call {
    pub fn new(context: &Context, case: &Case) -> Self {
        let (attention, layout) = (&case.attention, case.layout);
        let (shape, dtype) = (&attention.shape, attention.dtype);
        let place = |shape, values| Placed::new(context, dtype, shape, layout, Some(values));
        let bias = attention.score.bias.zip(case.bias.as_deref()).map(|((dtype, b), values)| {
            let (batch, heads) = b.sizes(shape.batch, shape.query_heads);
            let shape = [batch, heads, shape.query_len, shape.key_len];
            Placed::new(context, dtype, shape, Layout::Dense, Some(values))
        });
        let scores = match attention.output {
            Output::BlockSums { block_q, block_k } => {
                let blocks = [shape.query_len.div_ceil(block_q), shape.key_len.div_ceil(block_k)];
                [shape.batch, shape.query_heads, blocks[0], blocks[1]]
            }
            _ => shape.scores(),
        };
        let layout = if layout == Layout::Shared { Layout::Dense } else { layout };
        let empty = |dtype, shape, layout| Placed::new(context, dtype, shape, layout, None);
        Self {
            query: place(shape.query(), &case.query),
            key: place(shape.key(), &case.key),
            value: place(shape.value(), &case.value),
            bias,
            out: empty(dtype, shape.out(), layout),
            lse: empty(DType::F32, shape.lse(), layout),
            scores: empty(DType::F32, scores, Layout::Apart(3)),
            output: attention.output,
        }
    }

    /// Everything but the side arrays.
    pub fn inputs(&self) -> Inputs<'_> {
        let mut inputs = Inputs::new(self.query.view(), self.key.view(), self.value.view());
        inputs.bias = self.bias.as_ref().map(Placed::view);
        inputs
    }

    pub fn outputs(&self) -> Outputs<'_> {
        match self.output {
            Output::Attention { lse: true } => {
                Outputs::new(self.out.view()).with_lse(self.lse.view())
            }
            Output::Attention { lse: false } => Outputs::new(self.out.view()),
            _ => Outputs::scores(self.scores.view()),
        }
    }

    pub fn results(&self, context: &Context) -> Results {
        let outputs = self.outputs();
        let scores = || match self.output {
            Output::Scores(stage) if stage.may_be_masked() => self.scores.read_logits(context),
            _ => self.scores.read(context),
        };
        Results {
            out: outputs.out.map(|_| self.out.read(context)).unwrap_or_default(),
            lse: outputs.lse.map(|_| self.lse.read_logits(context)),
            scores: outputs.scores.map(|_| scores()).unwrap_or_default(),
        }
    }
}

/// The variants that support a configuration; at least one.
pub fn variants(context: &Context, attention: &Attention) -> Vec<Variant> {
    let supports = |v: &Variant| v.supports(context.caps(), attention).is_ok();
    let variants: Vec<_> = Variant::ALL.into_iter().filter(supports).collect();
    assert!(!variants.is_empty(), "no variant supports {attention:?}");
    variants
}

/// The layouts that a configuration's alignment can reach.
pub fn layouts(attention: &Attention) -> Vec<Layout> {
    let apart = match attention.alignment() {
        Alignment::Any => Layout::Apart(3),
        vectors => Layout::Apart(u64::from(vectors.elements())),
    };
    vec![Layout::Dense, Layout::Packed, apart, Layout::Shared]
}

/// A small shape for tests that are not about shapes.
pub fn small() -> Shape {
    Shape::new(2, 4, 33, 32).with_key_value_heads(2).with_key_len(65)
}
