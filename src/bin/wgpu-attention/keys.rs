//! The keys axis on the command line: lists from tensors and from patterns.

use anyhow::Result;
use clap::ValueEnum;
use pollster::block_on;
use wgpu_attention::{
    Arrays, Attention, Context, DType, Inputs, KeyList, Keys, ListHeads, Lists, Outputs, Pattern,
    Shape,
};

use crate::bad_input;
use crate::device::DeviceTensor;
use crate::input::{Size, Tensors};
use crate::problem::Problem;

/// The choice of keys for `run`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeysName {
    /// All that the mask leaves.
    Dense,
    /// The blocks of `block_mask`, or of `block_offsets` and `block_entries`.
    Blocks,
    /// The single keys of `key_index_offsets` and `key_indices`.
    Indices,
}

/// A static pattern, or the oracle, which looks at the scores first.
#[derive(Clone, Debug)]
pub enum PatternName {
    Static(Pattern),
    Oracle {
        /// The share of the visible blocks that each row takes.
        density: f64,
        /// The size of its blocks, where it says.
        block: Option<(u32, u32)>,
    },
}

/// The kinds of lists.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListKind {
    /// Blocks of keys.
    Blocks,
    /// Single keys.
    Indices,
}

impl ListKind {
    /// Lists for each query head; those of single keys are shared by all queries.
    pub fn keys(self, (block_q, block_k): (u32, u32), attention: &Attention) -> Keys {
        let lists = Lists { per_batch: false, heads: ListHeads::QueryHead };
        match self {
            Self::Blocks => Keys::Blocks { block_q, block_k, lists },
            Self::Indices => {
                let block_q = attention.shape.query_len.next_multiple_of(128).max(128);
                Keys::Indices { block_q, lists }
            }
        }
    }
}

/// Block sizes as one number or two.
pub fn parse_block(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.trim().parse::<u32>().ok();
    let (q, k) = text.split_once(',').unwrap_or((text, text));
    match (number(q), number(k)) {
        (Some(q), Some(k)) => Ok((q, k)),
        _ => Err("expected a number of tokens, or two: queries,keys".into()),
    }
}

/// A share of blocks or of pairs.
pub fn parse_density(text: &str) -> Result<f64, String> {
    let density = text.trim().parse().ok().filter(|&density| density > 0.0 && density <= 1.0);
    density.ok_or_else(|| format!("expected a density above 0 and up to 1, got `{}`", text.trim()))
}

/// A pattern, `oracle(density=0.1, block=64)` among them.
pub fn parse_pattern(text: &str) -> Result<PatternName, String> {
    let Some(rest) = text.trim().strip_prefix("oracle") else {
        return text.parse().map(PatternName::Static).map_err(|error| {
            let error: wgpu_attention::Error = error;
            format!("{error}; or oracle(density=D, block=N)")
        });
    };
    let refuse = || "expected oracle(density=D, block=N)".to_owned();
    let inside = rest.trim().strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
    let (mut density, mut block) = (None, None);
    for (place, argument) in inside.ok_or_else(refuse)?.split(',').enumerate() {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name.trim(), value),
            None => (["density", "block"].get(place).copied().unwrap_or_default(), argument),
        };
        match name {
            "density" => density = Some(parse_density(value)?),
            "block" => block = Some(parse_block(value)?),
            _ => return Err(refuse()),
        }
    }
    Ok(PatternName::Oracle { density: density.ok_or_else(refuse)?, block })
}

/// The list in a file's tensors.
pub fn load(
    tensors: &Tensors<'_>,
    shape: &Shape,
    keys: KeysName,
    block: (u32, u32),
) -> Result<Option<KeyList>> {
    let (offsets, entries, reason) = match keys {
        KeysName::Dense => return Ok(None),
        KeysName::Blocks => ("block_offsets", "block_entries", "since --keys is blocks"),
        KeysName::Indices => ("key_index_offsets", "key_indices", "since --keys is indices"),
    };
    let kind = |lists| match keys {
        KeysName::Indices => Keys::Indices { block_q: block.0, lists },
        _ => Keys::Blocks { block_q: block.0, block_k: block.1, lists },
    };
    kind(Lists::SHARED).validate()?;
    if let Some(mask) = tensors.get("block_mask").filter(|_| keys == KeysName::Blocks) {
        let blocks = [shape.query_len.div_ceil(block.0), shape.key_len.div_ceil(block.1)];
        let [own_batch, own_head] = [shape.batch, shape.query_heads].map(Size::OrOne);
        let sizes = [own_batch, own_head, Size::Is(blocks[0]), Size::Is(blocks[1])];
        let [batch, heads, ..] = mask.shape("[B|1, Hq|1, ⌈Nq/block⌉, ⌈Nk/block⌉]", sizes)?;
        let heads = if heads == 1 { ListHeads::Shared } else { ListHeads::QueryHead };
        let keys = kind(Lists { per_batch: batch != 1, heads });
        return Ok(Some(KeyList::from_block_mask(keys, shape, &mask.bools()?)?));
    }
    let offsets = tensors.require(offsets, reason)?;
    let [count] = offsets.shape("[rows + 1]", [Size::Any])?;
    let entries = tensors.require(entries, reason)?;
    entries.shape("[entries]", [Size::Any])?;
    let mut fitting: Vec<Keys> = Vec::new();
    for per_batch in [false, true] {
        for heads in [ListHeads::Shared, ListHeads::KeyHead, ListHeads::QueryHead] {
            let keys = kind(Lists { per_batch, heads });
            let sizes = keys.lists().sizes(shape);
            let known = fitting.iter().any(|other| other.lists().sizes(shape) == sizes);
            if keys.rows(shape) + 1 == u64::from(count) && !known {
                fitting.push(keys);
            }
        }
    }
    let words = |tensor: &crate::input::Tensor<'_>| tensor.words(0..=u32::MAX.into());
    match fitting[..] {
        [keys] => Ok(Some(KeyList::new(keys, shape, words(&offsets)?, words(&entries)?)?)),
        _ => {
            let blocks = shape.query_len.div_ceil(block.0);
            let expected = format!(
                "(B|1) · (Hq|Hk|1) · {blocks} rows and the end, in a number that leaves no doubt"
            );
            Err(offsets.error(expected, format!("{count} values")).into())
        }
    }
}

/// The blocks that hold most weight, by block-summed probabilities from the device.
pub fn oracle(
    context: &Context,
    problem: &Problem<'_>,
    density: f64,
    block: (u32, u32),
) -> Result<KeyList> {
    let attention = problem.attention.clone().with_keys(Keys::Dense);
    let attention = attention.with_block_sums(block.0, block.1);
    let plan = block_on(attention.plan(context))?;
    let shape = &attention.shape;
    let tensors = problem.upload(context)?;
    let blocks = [shape.query_len.div_ceil(block.0), shape.key_len.div_ceil(block.1)];
    let sizes = [shape.batch, shape.query_heads, blocks[0], blocks[1]];
    let sums = DeviceTensor::new(context, "sums", DType::F32, sizes)?;
    let inputs = tensors.inputs(problem.arrays());
    block_on(context.run(&plan.bind(&inputs, &Outputs::scores(sums.view()))?))?;
    let visible = KeyList::from_mask(&attention, &problem.arrays(), block)?;
    Ok(visible.top_blocks(shape, &sums.read(context)?, density)?)
}

/// A problem's tensors on the device.
pub struct Uploaded {
    query: DeviceTensor,
    key: DeviceTensor,
    value: DeviceTensor,
    bias: Option<DeviceTensor>,
}

impl Uploaded {
    pub fn inputs<'a>(&'a self, arrays: Arrays<'a>) -> Inputs<'a> {
        let inputs = Inputs::new(self.query.view(), self.key.view(), self.value.view());
        let mut inputs = inputs.with_arrays(arrays);
        inputs.bias = self.bias.as_ref().map(DeviceTensor::view);
        inputs
    }
}

impl Problem<'_> {
    /// Brings the tensors to the device.
    pub fn upload(&self, context: &Context) -> Result<Uploaded> {
        let (shape, dtype) = (&self.attention.shape, self.attention.dtype);
        let upload = |name, dtype, shape, bytes| -> Result<_> {
            Ok(DeviceTensor::new(context, name, dtype, shape)?.write(context, bytes))
        };
        let bias = match (&self.bias, self.attention.score.bias) {
            (Some(bias), Some((dtype, broadcast))) => {
                let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
                let sizes = [batch, heads, shape.query_len, shape.key_len];
                Some(upload("bias", dtype, sizes, bias.bytes)?)
            }
            _ => None,
        };
        Ok(Uploaded {
            query: upload("q", dtype, shape.query(), self.query.bytes)?,
            key: upload("k", dtype, shape.key(), self.key.bytes)?,
            value: upload("v", dtype, shape.value(), self.value.bytes)?,
            bias,
        })
    }
}

/// Says that two options exclude each other.
pub fn check_options(keys: KeysName, pattern: Option<&PatternName>) -> Result<()> {
    if keys != KeysName::Dense && pattern.is_some() {
        return Err(bad_input(
            "--pattern: expected without --keys, since a pattern makes its own list, got both",
        ));
    }
    Ok(())
}
