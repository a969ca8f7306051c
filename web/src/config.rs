//! Options as configurations of attention, with the side arrays they refer to.

use wgpu_attention::{
    Activation, Array, Arrays, Attention, Broadcast, DType, Error, Mask, Positions, Shape, Stage,
    pack_mask,
};

use wasm_bindgen::JsValue;

use crate::buffer::size_of;
use crate::error::{refuse, shown};
use crate::options::Options;

/// What describes a problem, whatever the family.
pub const COMMON: &[&str] = &["shape", "dtype", "layout", "scale", "variant"];

/// What describes attention.
pub const ATTENTION: &[&str] = &[
    "mask",
    "positions",
    "softcap",
    "activation",
    "sigmoidBias",
    "lse",
    "scores",
    "blockSums",
    "bias",
    "sparse",
    "queryStarts",
    "keyStarts",
    "keyLengths",
    "queryRoles",
    "keyRoles",
    "roleTable",
    "treeBits",
    "denseMask",
    "alibiSlopes",
    "keyBias",
    "sinks",
];

/// `[batch, heads, len, dim]`, or the sizes by name.
pub fn shape(options: &Options) -> Result<Shape, Error> {
    let value = options.get("shape").ok_or_else(|| {
        refuse("shape", "[batch, heads, len, dim] or { heads, len, headDim, … }", "nothing")
    })?;
    if let Ok(Some(sizes)) = options.counts("shape") {
        let [batch, heads, len, dim] = sizes[..] else {
            let got = format!("{} numbers", sizes.len());
            return Err(refuse("shape", "the four numbers [batch, heads, len, dim]", got));
        };
        return Ok(Shape::new(batch, heads, len, dim));
    }
    const NAMES: &[&str] =
        &["batch", "heads", "keyHeads", "valueHeads", "len", "keyLen", "headDim", "valueDim"];
    let sizes = Options::new(&value, "shape", &[NAMES])?;
    let need = |name: &str| {
        sizes.count(name)?.ok_or_else(|| refuse(name, "a whole number, in shape", "nothing"))
    };
    let heads = need("heads")?;
    let mut shape =
        Shape::new(sizes.count("batch")?.unwrap_or(1), heads, need("len")?, need("headDim")?);
    shape.key_heads = sizes.count("keyHeads")?.unwrap_or(heads);
    shape.value_heads = sizes.count("valueHeads")?.unwrap_or(shape.key_heads);
    shape.key_len = sizes.count("keyLen")?.unwrap_or(shape.query_len);
    shape.value_dim = sizes.count("valueDim")?.unwrap_or(shape.head_dim);
    Ok(shape)
}

/// The dtype that is asked for, or the one that the tensors have.
pub fn dtype(options: &Options, natural: Option<DType>) -> Result<DType, Error> {
    match options.text("dtype")? {
        Some(name) => named(&name),
        None => Ok(natural.unwrap_or(DType::F32)),
    }
}

/// The dtype of a name.
pub fn named(name: &str) -> Result<DType, Error> {
    let found = DType::ALL.into_iter().find(|dtype| dtype.name() == name);
    found.ok_or_else(|| refuse("dtype", "\"f32\", \"f16\" or \"bf16\"", format!("`{name}`")))
}

/// Whether tensors lie as `[batch, len, heads, dim]`.
pub fn packed(options: &Options) -> Result<bool, Error> {
    let layouts = [("batch,heads,len,dim", false), ("batch,len,heads,dim", true)];
    Ok(options.word("layout", &layouts)?.unwrap_or(false))
}

/// The broadcast whose number of rows makes up a length, the least one.
fn fitting(len: usize, row: usize, shape: &Shape) -> Broadcast {
    let all = [
        Broadcast::SHARED,
        Broadcast { per_head: true, ..Broadcast::SHARED },
        Broadcast { per_batch: true, ..Broadcast::SHARED },
    ];
    let fits = |broadcast: &Broadcast| {
        let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
        batch as usize * heads as usize * row == len
    };
    all.into_iter().find(fits).unwrap_or(Broadcast { per_batch: true, per_head: true })
}

/// The dtype of a bias per pair, and along which axes it has entries of its own.
fn bias_of(bias: &JsValue, shape: &Shape) -> Result<(DType, Broadcast), Error> {
    let (dtype, elements) = size_of(bias).ok_or_else(|| Error::Tensor {
        tensor: "bias".into(),
        expected: "a Buffer or typed array".into(),
        got: shown(bias),
    })?;
    let pairs = shape.query_len as usize * shape.key_len as usize;
    Ok((dtype, fitting(elements, pairs, shape)))
}

/// The side arrays on the host.
#[derive(Default)]
pub struct Side {
    query_offset: Option<Vec<i32>>,
    query_starts: Option<Vec<u32>>,
    key_starts: Option<Vec<u32>>,
    key_lengths: Option<Vec<u32>>,
    query_roles: Option<Vec<u32>>,
    key_roles: Option<Vec<u32>>,
    role_table: Option<Vec<u32>>,
    tree_bits: Option<Vec<u32>>,
    dense_mask: Option<(Vec<u32>, Broadcast)>,
    alibi_slopes: Option<Vec<f32>>,
    key_bias: Option<Vec<f32>>,
    sinks: Option<Vec<f32>>,
}

impl Side {
    /// As the library takes them.
    pub fn arrays(&self) -> Arrays<'_> {
        fn words(array: &Option<Vec<u32>>) -> Option<Array<'_>> {
            array.as_deref().map(Array::u32)
        }
        let mut arrays = Arrays::default();
        arrays.query_offset = self.query_offset.as_deref().map(Array::i32);
        arrays.query_starts = words(&self.query_starts);
        arrays.key_starts = words(&self.key_starts);
        arrays.key_lengths = words(&self.key_lengths);
        arrays.query_roles = words(&self.query_roles);
        arrays.key_roles = words(&self.key_roles);
        arrays.role_table = words(&self.role_table);
        arrays.tree_bits = words(&self.tree_bits);
        arrays.dense_mask = self.dense_mask.as_ref().map(|(bits, b)| (Array::u32(bits), *b));
        arrays.alibi_slopes = self.alibi_slopes.as_deref().map(Array::f32);
        arrays.key_bias = self.key_bias.as_deref().map(Array::f32);
        arrays.sinks = self.sinks.as_deref().map(Array::f32);
        arrays
    }
}

/// Everything about attention but its keys.
pub fn attention(options: &Options, natural: Option<DType>) -> Result<(Attention, Side), Error> {
    let shape = shape(options)?;
    let mut attention = Attention::new(shape, dtype(options, natural)?);
    if let Some(text) = options.text("mask")? {
        attention.mask = text.parse::<Mask>()?;
    }
    let mut side = side(options, &shape)?;
    attention.positions = match options.integers("positions") {
        Ok(Some(offsets)) => {
            side.query_offset = Some(offsets);
            Positions::PerBatch
        }
        _ => {
            let words =
                [("bottom-right", Positions::BottomRight), ("top-left", Positions::TopLeft)];
            options.word("positions", &words)?.unwrap_or_default()
        }
    };
    attention.score.scale = options.number("scale")?.map(|x| x as f32);
    attention.score.softcap = options.number("softcap")?.map(|x| x as f32);
    attention.score.alibi = side.alibi_slopes.is_some();
    attention.score.sinks = side.sinks.is_some();
    let key_bias = side.key_bias.as_ref();
    attention.score.key_bias = key_bias.map(|b| fitting(b.len(), shape.key_len as usize, &shape));
    attention.score.bias = match options.get("bias") {
        Some(bias) => Some(bias_of(&bias, &shape)?),
        None => None,
    };
    let bias = options.number("sigmoidBias")?.map(|x| x as f32);
    let activations = [("softmax", Activation::Softmax), ("sigmoid", Activation::Sigmoid { bias })];
    if let Some(activation) = options.word("activation", &activations)? {
        attention.activation = activation;
    }
    if options.flag("lse")? {
        attention = attention.with_lse();
    }
    let stages = Stage::ALL.map(|stage| (stage.name(), stage));
    if let Some(stage) = options.word("scores", &stages)? {
        attention = attention.with_scores(stage);
    }
    match options.counts("blockSums")?.as_deref() {
        None => {}
        Some(&[block_q, block_k]) => attention = attention.with_block_sums(block_q, block_k),
        Some(other) => {
            let got = format!("{} numbers", other.len());
            return Err(refuse("blockSums", "[queries, keys] of a block", got));
        }
    }
    Ok((attention, side))
}

fn side(options: &Options, shape: &Shape) -> Result<Side, Error> {
    let dense_mask = options.counts("denseMask")?.map(|keep| {
        let row = shape.query_len as usize * shape.key_len as usize;
        let kept: Vec<bool> = keep.iter().map(|&keep| keep != 0).collect();
        (pack_mask(&kept, shape.key_len), fitting(kept.len(), row, shape))
    });
    Ok(Side {
        query_offset: None,
        query_starts: options.counts("queryStarts")?,
        key_starts: options.counts("keyStarts")?,
        key_lengths: options.counts("keyLengths")?,
        query_roles: options.counts("queryRoles")?,
        key_roles: options.counts("keyRoles")?,
        role_table: options.counts("roleTable")?,
        tree_bits: options.counts("treeBits")?,
        dense_mask,
        alibi_slopes: options.numbers("alibiSlopes")?,
        key_bias: options.numbers("keyBias")?,
        sinks: options.numbers("sinks")?,
    })
}
