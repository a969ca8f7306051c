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
use crate::input::{Size, Tensor, Tensors};
use crate::problem::{Options, Problem};

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

impl KeysName {
    /// The tensors of a file that hold a list's offsets and entries.
    pub const fn names(self) -> [&'static str; 2] {
        match self {
            Self::Dense | Self::Blocks => ["block_offsets", "block_entries"],
            Self::Indices => ["key_index_offsets", "key_indices"],
        }
    }
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
        (Some(q @ 1..), Some(k @ 1..)) => Ok((q, k)),
        _ => Err("expected a number of tokens of at least 1, or two: queries,keys".into()),
    }
}

/// Who has lists of their own, in words: all that `--lists` takes.
const LISTS: [(&str, Lists); 6] = {
    const fn lists(per_batch: bool, heads: ListHeads) -> Lists {
        Lists { per_batch, heads }
    }
    [
        ("shared", lists(false, ListHeads::Shared)),
        ("key-head", lists(false, ListHeads::KeyHead)),
        ("query-head", lists(false, ListHeads::QueryHead)),
        ("batch", lists(true, ListHeads::Shared)),
        ("batch,key-head", lists(true, ListHeads::KeyHead)),
        ("batch,query-head", lists(true, ListHeads::QueryHead)),
    ]
};

/// Who has lists of their own.
pub fn parse_lists(text: &str) -> Result<Lists, String> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let known = LISTS.iter().find(|(name, _)| *name == text);
    known.map(|(_, lists)| *lists).ok_or_else(|| {
        format!("expected one of {}, got `{text}`", LISTS.map(|(name, _)| name).join(" "))
    })
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
    asked: Option<Lists>,
) -> Result<Option<KeyList>> {
    let reason = match keys {
        KeysName::Dense => return Ok(None),
        KeysName::Blocks => "since --keys is blocks",
        KeysName::Indices => "since --keys is indices",
    };
    let kind = |lists| match keys {
        KeysName::Indices => Keys::Indices { block_q: block.0, lists },
        _ => Keys::Blocks { block_q: block.0, block_k: block.1, lists },
    };
    kind(Lists::SHARED).validate().map_err(|error| bad_input(format!("--block: {error}")))?;
    let block_mask = if keys == KeysName::Blocks { tensors.get("block_mask") } else { None };
    if let Some(mask) = block_mask {
        if asked.is_some() {
            let expected =
                "a file without `block_mask`, whose shape says who has lists of their own";
            return Err(bad_input(format!("--lists: expected {expected}, got both")));
        }
        let blocks = [shape.query_len.div_ceil(block.0), shape.key_len.div_ceil(block.1)];
        let [own_batch, own_head] = [shape.batch, shape.query_heads].map(Size::OrOne);
        let sizes = [own_batch, own_head, Size::Is(blocks[0]), Size::Is(blocks[1])];
        let [batch, heads, ..] = mask.shape("[B|1, Hq|1, ⌈Nq/block⌉, ⌈Nk/block⌉]", sizes)?;
        let heads = if heads == 1 { ListHeads::Shared } else { ListHeads::QueryHead };
        let keys = kind(Lists { per_batch: batch != 1, heads });
        return Ok(Some(KeyList::from_block_mask(keys, shape, &mask.bools()?)?));
    }
    let [offsets, entries] = keys.names();
    let offsets = tensors.require(offsets, reason)?;
    let [count] = offsets.shape("[rows + 1]", [Size::Any])?;
    let entries = tensors.require(entries, reason)?;
    entries.shape("[entries]", [Size::Any])?;
    let lists = match asked {
        Some(lists) => lists,
        None => fitting_lists(&offsets, count, shape, kind)?,
    };
    let words = |tensor: &Tensor<'_>| tensor.words(0..=u32::MAX.into());
    Ok(Some(KeyList::new(kind(lists), shape, words(&offsets)?, words(&entries)?)?))
}

/// Who has lists of their own, by the number of offsets, where it leaves no choice.
fn fitting_lists(
    offsets: &Tensor<'_>,
    count: u32,
    shape: &Shape,
    kind: impl Fn(Lists) -> Keys,
) -> Result<Lists> {
    // Of readings that mean the same, the first.
    let mut readings: Vec<(&str, Lists)> = Vec::new();
    for (name, lists) in LISTS {
        if readings.iter().all(|(_, other)| other.sizes(shape) != lists.sizes(shape)) {
            readings.push((name, lists));
        }
    }
    let values = |lists: Lists| kind(lists).rows(shape) + 1;
    let fitting: Vec<_> =
        readings.iter().filter(|(_, lists)| values(*lists) == u64::from(count)).collect();
    match fitting[..] {
        // Lists without rows are the same list.
        [(_, lists), ..] if count == 1 => Ok(*lists),
        [(_, lists)] => Ok(*lists),
        [] => {
            let reading = |(name, lists): &(&str, Lists)| format!("{} ({name})", values(*lists));
            let readings = readings.iter().map(reading).collect::<Vec<_>>().join(", ");
            let expected = format!(
                "a value a row and the end; by who has lists of their own, as --lists names them: \
                 {readings}"
            );
            Err(offsets.error(expected, format!("{count} values")).into())
        }
        _ => {
            let names: Vec<_> = fitting.iter().map(|(name, _)| format!("--lists {name}")).collect();
            Err(bad_input(format!(
                "--lists: expected {}, since {count} values of tensor `{}` fit all of them, got \
                 nothing",
                names.join(" or "),
                offsets.name
            )))
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

/// Checks the options of the keys axis against each other.
pub fn check_options(options: &Options) -> Result<()> {
    let listed = options.keys != KeysName::Dense;
    let refuse = |sentence: &str| Err(bad_input(sentence));
    match &options.pattern {
        Some(_) if listed => refuse(
            "--pattern: expected without --keys, since a pattern makes its own list, got both",
        ),
        Some(PatternName::Oracle { block: Some(_), .. }) if options.block.is_some() => {
            refuse("--block: expected without a block in --pattern oracle(...), got both")
        }
        None if !listed && options.block.is_some() => {
            refuse("--block: expected with --keys or --pattern, which make blocks, got neither")
        }
        _ if !listed && options.lists.is_some() => {
            refuse("--lists: expected with --keys blocks or --keys indices, got neither")
        }
        _ => Ok(()),
    }
}
