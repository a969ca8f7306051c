//! The keys axis: patterns, lists, and the oracle.

use js_sys::{Object, Promise, Reflect, Uint32Array};
use wasm_bindgen::prelude::*;
use wgpu_attention::{
    Arrays, Attention, DType, Error, Inputs, KeyList, Keys, ListHeads, Lists, MaskRows, Output,
    Outputs, Pattern, keys::Source,
};

use crate::attention::{Tensors, natural};
use crate::buffer::Taken;
use crate::config::{self, ATTENTION, COMMON, NEEDS, Side};
use crate::context::Context;
use crate::error::{refuse, thrown};
use crate::options::{Options, argument};
use crate::promise::promise;

const SPARSE: &[&str] =
    &["pattern", "offsets", "entries", "oracle", "blockQ", "blockK", "perBatch", "heads"];

/// What parts of `sparse` need to have an effect.
const SPARSE_NEEDS: &[(&str, &str)] = &[
    ("offsets", "a list, without a pattern or an oracle"),
    ("entries", "a list, without a pattern or an oracle"),
    ("perBatch", "a list of `offsets` and `entries`"),
    ("heads", "a list of `offsets` and `entries`"),
    ("pattern", "neither a list nor an oracle"),
    ("oracle", "neither a list nor a pattern, in a call"),
];

const HEADS: [(&str, ListHeads); 3] =
    [("shared", ListHeads::Shared), ("key", ListHeads::KeyHead), ("query", ListHeads::QueryHead)];

/// Which keys are visited, resolved for one configuration.
pub enum Choice {
    Dense,
    List(KeyList),
    Pattern(Box<Source>),
}

impl Choice {
    /// Reads the option `sparse`; an oracle is asked of the device first.
    pub fn read(options: &Options, attention: &Attention, side: &Side) -> Result<Self, Error> {
        let Some(value) = options.get("sparse") else { return Ok(Self::Dense) };
        if let Some(text) = value.as_string() {
            let source = text.parse::<Pattern>()?.source(attention, &side.arrays(), (64, 64))?;
            return Ok(Self::Pattern(Box::new(source)));
        }
        let options = Options::new(&value, "sparse", &[SPARSE])?;
        let (block_q, block_k) = blocks(&options)?;
        if let Some(text) = options.text("pattern")? {
            let pattern = text.parse::<Pattern>()?;
            let block = (block_q, block_k.unwrap_or(64));
            options.finish(SPARSE_NEEDS)?;
            let source = pattern.source(attention, &side.arrays(), block)?;
            return Ok(Self::Pattern(Box::new(source)));
        }
        let (Some(offsets), Some(entries)) =
            (options.counts("offsets")?, options.counts("entries")?)
        else {
            let expected = "a pattern, a list of offsets and entries, or in a call an oracle";
            return Err(refuse("sparse", expected, "none of them"));
        };
        let heads = options.word("heads", &HEADS)?.unwrap_or(ListHeads::Shared);
        let lists = Lists { per_batch: options.flag("perBatch")?, heads };
        options.finish(SPARSE_NEEDS)?;
        let keys = match block_k {
            Some(block_k) => Keys::Blocks { block_q, block_k, lists },
            None => Keys::Indices { block_q, lists },
        };
        Ok(Self::List(KeyList::new(keys, &attention.shape, offsets, entries)?))
    }

    /// The configuration that visits these keys.
    pub fn apply(&self, attention: Attention) -> Attention {
        match self {
            Self::Dense => attention,
            Self::List(list) => attention.with_keys(list.keys),
            Self::Pattern(source) => source.apply(&attention),
        }
    }

    /// The side arrays with the list among them.
    pub fn arrays<'a>(&'a self, side: &'a Side) -> Arrays<'a> {
        match self {
            Self::Dense => side.arrays(),
            Self::List(list) => list.arrays(side.arrays()),
            Self::Pattern(source) => source.arrays(side.arrays()),
        }
    }

    /// Checks that the side arrays and the list are what the configuration refers to.
    pub fn check(&self, attention: &Attention, side: &Side) -> Result<(), Error> {
        MaskRows::new(&self.apply(attention.clone()), &self.arrays(side)).map(drop)
    }

    /// The share of the keys that is visited, on average over queries.
    pub fn density(&self, attention: &Attention) -> f64 {
        match self {
            Self::Dense => 1.0,
            Self::List(list) => list.density(&attention.shape),
            Self::Pattern(source) => source.list.density(&attention.shape),
        }
    }
}

fn blocks(options: &Options) -> Result<(u32, Option<u32>), Error> {
    Ok((options.count("blockQ")?.unwrap_or(64), options.count("blockK")?))
}

/// An option that says how much of the blocks is visited.
fn share(options: &Options, name: &'static str) -> Result<Option<f64>, Error> {
    match options.number(name)? {
        Some(share) if !(share > 0.0 && share <= 1.0) => {
            Err(refuse(name, "a share of blocks above 0, up to 1", share.to_string()))
        }
        share => Ok(share),
    }
}

/// The density of the oracle that `sparse` asks for, with its block sizes.
pub fn oracle(options: &Options) -> Result<Option<(f64, u32, u32)>, Error> {
    let Some(value) = options.get("sparse").filter(|value| value.is_object()) else {
        return Ok(None);
    };
    let options = Options::new(&value, "sparse", &[SPARSE])?;
    let (block_q, block_k) = blocks(&options)?;
    let Some(density) = share(&options, "oracle")? else { return Ok(None) };
    options.finish(SPARSE_NEEDS)?;
    Ok(Some((density, block_q, block_k.unwrap_or(64))))
}

/// The blocks that hold most of the weights, found by computing all weights.
pub async fn best(
    context: &Context,
    (attention, side): (&Attention, &Side),
    tensors: &Tensors,
    (density, block_q, block_k): (f64, u32, u32),
) -> Result<KeyList, JsValue> {
    let mut summed = attention.clone().with_block_sums(block_q, block_k);
    summed.keys = Keys::Dense;
    let shape = attention.shape;
    let plan = summed.plan(context.library()).await.map_err(thrown)?;
    let blocks = [shape.query_len.div_ceil(block_q), shape.key_len.div_ceil(block_k)];
    let sizes = [shape.batch, shape.query_heads, blocks[0], blocks[1]];
    let count = sizes.iter().map(|&n| n as usize).product();
    let mut made = Taken::default();
    let sums = made.make(context, DType::F32, count);
    let view = sums.tensor("sums", sizes, false).map_err(thrown)?;
    let [query, key, value] = tensors.views(&shape).map_err(thrown)?;
    let mut inputs = Inputs::new(query, key, value).with_arrays(side.arrays());
    inputs.bias = tensors.bias_view(attention).map_err(thrown)?;
    let bound = plan.bind(&inputs, &Outputs::scores(view)).map_err(thrown)?;
    context.library().run(&bound).await.map_err(thrown)?;
    let numbers = context.library().read(view).await.map_err(thrown)?;
    let list = KeyList::from_mask(attention, &side.arrays(), (block_q, block_k)).map_err(thrown)?;
    list.top_blocks(&shape, &numbers, density).map_err(thrown)
}

#[wasm_bindgen]
impl Context {
    /// The list of the blocks that hold most of the weights.
    #[wasm_bindgen(unchecked_return_type = "Promise<KeyList>")]
    pub fn oracle(
        &self,
        #[wasm_bindgen(unchecked_param_type = "OracleCall")] options: JsValue,
    ) -> Promise {
        let read = || -> Result<_, Error> {
            let own: &[&str] = &["q", "k", "v", "density", "blockQ", "blockK"];
            let options = Options::new(&options, "options", &[COMMON, ATTENTION, own])?;
            let (attention, side) = config::attention(&options, natural(&options))?;
            if attention.output != (Output::Attention { lse: false }) {
                let expected =
                    "none of lse, scores and blockSums for an oracle, which gives a list";
                return Err(refuse("options", expected, "one of them"));
            }
            let (block_q, block_k) = blocks(&options)?;
            let density = share(&options, "density")?.unwrap_or(0.1);
            let packed = config::packed(&options)?;
            Choice::Dense.check(&attention, &side)?;
            Ok((attention, side, (density, block_q, block_k.unwrap_or(64)), packed, options))
        };
        promise(|| {
            self.alive()?;
            let (attention, side, choice, packed, options) = read().map_err(thrown)?;
            let context = self.clone();
            let tensors = Tensors::take(self, &options, (&attention, packed))?;
            options.finish(NEEDS_OF_ORACLE).map_err(thrown)?;
            Ok(
                async move { exported(&best(&context, (&attention, &side), &tensors, choice).await?) },
            )
        })
    }
}

/// What options need that an oracle does not use.
const NEEDS_OF_ORACLE: &[(&str, &str)] = &[
    NEEDS[0],
    ("sparse", "a call of attention, not of an oracle"),
    ("variant", "a call of attention, not of an oracle"),
];

/// A list as JavaScript sees it.
fn exported(list: &KeyList) -> Result<JsValue, JsValue> {
    let object = Object::new();
    let set = |name: &str, value: JsValue| Reflect::set(&object, &name.into(), &value);
    set("offsets", Uint32Array::from(list.offsets.as_slice()).into())?;
    set("entries", Uint32Array::from(list.entries.as_slice()).into())?;
    set("blockQ", list.keys.block_q().unwrap_or(1).into())?;
    if matches!(list.keys, Keys::Blocks { .. }) {
        set("blockK", list.keys.block_k().into())?;
    }
    let lists = list.keys.lists();
    set("perBatch", lists.per_batch.into())?;
    let heads = HEADS.iter().find(|(_, heads)| *heads == lists.heads);
    set("heads", heads.map_or("shared", |(name, _)| name).into())?;
    Ok(object.into())
}

/// Which pairs of one head count, list and mask both: 1 or 0 for each, `[len, keyLen]`.
#[wasm_bindgen(unchecked_return_type = "Uint8Array")]
pub fn pairs(
    #[wasm_bindgen(unchecked_param_type = "AttentionOptions")] options: JsValue,
    #[wasm_bindgen(unchecked_optional_param_type = "number")] head: JsValue,
    #[wasm_bindgen(unchecked_optional_param_type = "number")] batch: JsValue,
) -> Result<Vec<u8>, JsValue> {
    let read = || -> Result<_, Error> {
        let options = Options::new(&options, "options", &[COMMON, ATTENTION])?;
        let (attention, side) = config::attention(&options, None)?;
        let place = |value: &JsValue, name: &str, count: u32| {
            let place = argument(value, name, Some(0))?;
            let expected = || refuse(name, format!("a number below {count}"), place.to_string());
            (place < count).then_some(place).ok_or_else(expected)
        };
        let head = place(&head, "head", attention.shape.query_heads)?;
        let batch = place(&batch, "batch", attention.shape.batch)?;
        let choice = Choice::read(&options, &attention, &side)?;
        let attention = choice.apply(attention);
        attention.validate()?;
        // The options of a call, of which these say how it is computed.
        ["variant", "layout"].iter().for_each(|name| drop(options.get(name)));
        options.finish(NEEDS)?;
        let arrays = choice.arrays(&side);
        let shape = attention.shape;
        let masks = MaskRows::new(&attention, &arrays)?;
        let lists = wgpu_attention::KeyRows::new(&attention, &arrays)?;
        let mut kept = Vec::new();
        for query in 0..shape.query_len {
            let (mask, list) = (masks.row(batch, query), lists.row(batch, head, query));
            kept.extend(
                (0..shape.key_len).map(|key| u8::from(list.contains(key) && mask.keeps(head, key))),
            );
        }
        Ok(kept)
    };
    read().map_err(thrown)
}
