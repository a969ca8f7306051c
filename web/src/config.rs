//! Options as configurations of attention, with the side arrays they refer to.

use wgpu_attention::{
    Activation, Array, Arrays, Attention, Broadcast, DType, Error, Mask, Positions, Shape, Stage,
    pack_mask,
};

use wasm_bindgen::JsValue;

use crate::buffer::size_of;
use crate::error::{refuse, shown};
use crate::options::{Options, elements};

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

/// What options of attention need to have an effect.
pub const NEEDS: &[(&str, &str)] =
    &[("sigmoidBias", "`activation: \"sigmoid\"`"), ("lseOut", "`lse: true`")];

/// `[batch, heads, len, dim]`, or the sizes by name.
pub fn shape(options: &Options) -> Result<Shape, Error> {
    let value = options.get("shape").ok_or_else(|| {
        refuse("shape", "[batch, heads, len, dim] or { heads, len, headDim, … }", "nothing")
    })?;
    if elements(&value).is_some() {
        let sizes = options.counts("shape")?.unwrap_or_default();
        let [batch, heads, len, dim] = sizes[..] else {
            let got = format!("{} numbers", sizes.len());
            return Err(refuse("shape", "the four numbers [batch, heads, len, dim]", got));
        };
        let shape = Shape::new(batch, heads, len, dim);
        return shape.validate().map(|()| shape);
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
    shape.validate().map(|()| shape)
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

/// The broadcast whose number of rows makes up a length, the least one. Rows that fit one a head
/// and one a batch entry alike are refused; a length that fits nothing is left to the library.
fn fitting(name: &str, len: usize, row: [u32; 2], shape: &Shape) -> Result<Broadcast, Error> {
    let (per_head, per_batch) = (
        Broadcast { per_batch: false, per_head: true },
        Broadcast { per_batch: true, per_head: false },
    );
    let fits = |broadcast: Broadcast| {
        let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
        let sizes = [batch, heads, row[0], row[1]];
        sizes.into_iter().fold(1, |product, n| u64::from(n).saturating_mul(product)) == len as u64
    };
    match [Broadcast::SHARED, per_head, per_batch].map(fits) {
        [true, ..] => Ok(Broadcast::SHARED),
        [_, true, true] => {
            let (batch, heads) = (shape.batch, shape.query_heads);
            let expected = format!("rows for each batch entry and head, [{batch}, {heads}, …]");
            let got = format!("{heads} rows, one a head or one a batch entry");
            Err(refuse(name, expected, got))
        }
        [_, true, _] => Ok(per_head),
        [_, _, true] => Ok(per_batch),
        _ => Ok(Broadcast { per_batch: true, per_head: true }),
    }
}

/// The dtype of a bias per pair, and along which axes it has entries of its own.
fn bias_of(bias: &JsValue, shape: &Shape) -> Result<(DType, Broadcast), Error> {
    let (dtype, elements) = size_of(bias).ok_or_else(|| Error::Tensor {
        tensor: "bias".into(),
        expected: "a Buffer or typed array".into(),
        got: shown(bias),
    })?;
    let pairs = [shape.query_len, shape.key_len];
    Ok((dtype, fitting("bias", elements, pairs, shape)?))
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
    attention.positions = match options.get("positions") {
        Some(value) if value.as_string().is_none() => {
            side.query_offset = options.integers("positions")?;
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
    attention.score.key_bias = match &side.key_bias {
        Some(bias) => Some(fitting("keyBias", bias.len(), [1, shape.key_len], &shape)?),
        None => None,
    };
    attention.score.bias = match options.get("bias") {
        Some(bias) => Some(bias_of(&bias, &shape)?),
        None => None,
    };
    if options.word("activation", &[("softmax", false), ("sigmoid", true)])? == Some(true) {
        let bias = options.number("sigmoidBias")?.map(|x| x as f32);
        attention.activation = Activation::Sigmoid { bias };
    }
    let outputs = ["scores", "blockSums"].map(|name| (name, options.get(name).is_some()));
    let lse = options.flag("lse")?;
    if [outputs[0].1, outputs[1].1, lse].into_iter().filter(|&given| given).count() > 1 {
        let names = outputs.into_iter().chain([("lse", lse)]).filter(|(_, given)| *given);
        let names: Vec<_> = names.map(|(name, _)| name).collect();
        return Err(refuse("options", "one of lse, scores and blockSums", names.join(" and ")));
    }
    if lse {
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
    attention.validate()?;
    Ok((attention, side))
}

fn side(options: &Options, shape: &Shape) -> Result<Side, Error> {
    let dense_mask = match options.counts("denseMask")? {
        Some(keep) => {
            let row = [shape.query_len, shape.key_len];
            let kept: Vec<bool> = keep.iter().map(|&keep| keep != 0).collect();
            let broadcast = fitting("denseMask", kept.len(), row, shape)?;
            Some((pack_mask(&kept, shape.key_len), broadcast))
        }
        None => None,
    };
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
