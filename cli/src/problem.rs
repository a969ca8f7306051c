//! What is to be computed: a configuration and its tensors, from a file and the options.

use std::str::FromStr;

use anyhow::Result;
use clap::ValueEnum;
use wgpu_attention::attention::reference::HostInputs;
use wgpu_attention::keys::Source;
use wgpu_attention::{
    Activation, Arrays, Attention, Broadcast, Context, DType, Error, KeyList, Keys, Lists, Mask,
    Positions, Shape,
};

use crate::bad_input;
use crate::input::{Size, Tensor, Tensors};
use crate::keys::{
    self, KeysName, PatternName, check_options, parse_block, parse_lists, parse_pattern,
};
use crate::side::{Side, broadcast};

/// Queries and keys of a block, where no option says.
const DEFAULT_BLOCK: (u32, u32) = (64, 64);

/// The options that make a configuration.
#[derive(clap::Args)]
pub struct Options {
    /// How scores become weights
    #[arg(long, value_enum, default_value_t = ActivationName::Softmax)]
    activation: ActivationName,
    /// Added to every score before the sigmoid [default: −ln Nk]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    sigmoid_bias: Option<f32>,
    /// Which pairs count, such as `causal & (window(255,0) | sink(4))`; words: full, causal,
    /// causal_top_left, window(L,R) with `inf` for no bound, sink(N), prefix(N), documents, lengths,
    /// roles, tree, dense. With `lengths`, the last query stands at the last key that counts: in
    /// `causal & lengths` query i sees the keys up to i + key_lengths[b] − Nq
    #[arg(long, value_name = "EXPR", default_value = "full")]
    mask: Mask,
    /// Where the queries stand among the keys [default: bottom-right, or the file's query_offset];
    /// the last key of bottom-right is the last of the document, or of the length, where the mask
    /// has `documents` or `lengths`
    #[arg(long, value_enum)]
    align: Option<Align>,
    /// Factor of the dot products [default: 1/√dk; 1 for linear]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub scale: Option<f32>,
    /// Caps scores at ±X by X · tanh(s/X)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    softcap: Option<f32>,
    /// Which keys a block of queries visits: dense is all that the mask leaves, blocks and indices
    /// are lists in the file's tensors. An entry of `block_entries` is the first key of its block
    /// (not the number of the block), of `key_indices` the key; those of a row ascend without
    /// overlap, and bit 31 says that the mask keeps all pairs of a block
    #[arg(long, value_enum, default_value_t = KeysName::Dense)]
    pub keys: KeysName,
    /// Queries and keys of a block of the list, as one number or two [default: 64]
    #[arg(long, value_name = "N|Q,K", value_parser = parse_block)]
    pub block: Option<(u32, u32)>,
    /// Who has lists of their own in the file's tensors: shared, key-head, query-head, batch, or
    /// batch,key-head or batch,query-head [default: as the number of offsets says]
    #[arg(long, value_name = "WHO", value_parser = parse_lists)]
    pub lists: Option<Lists>,
    /// A sparse pattern, of the pairs that the mask keeps; parts joined by `+`: sink(N), window(L),
    /// strided(S), dilated(N,S), global(N), documents, roles, random(D,SEED),
    /// bigbird(WINDOW,GLOBAL,RANDOM,SEED); or oracle(density=D, block=N)
    #[arg(long, value_name = "EXPR", value_parser = parse_pattern)]
    pub pattern: Option<PatternName>,
    /// Writes the log-sum-exp of every row as `lse` (softmax only)
    #[arg(long)]
    lse: bool,
    /// Lets f32 and bf16 tensors be rounded to f16 before they are multiplied, for matrix units
    #[arg(long)]
    f16_products: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActivationName {
    Softmax,
    Sigmoid,
}

#[derive(Clone, Copy, ValueEnum)]
enum Align {
    /// The last query stands at the last key.
    BottomRight,
    /// The first query stands at the first key.
    TopLeft,
}

/// A configuration and its tensors, borrowed from the file where they need no conversion.
pub struct Problem<'a> {
    pub attention: Attention,
    pub query: Tensor<'a>,
    pub key: Tensor<'a>,
    pub value: Tensor<'a>,
    pub bias: Option<Tensor<'a>>,
    /// The file's own `out`, to compare with.
    pub out: Option<Tensor<'a>>,
    side: Side,
    list: Option<KeyList>,
    pattern: Option<Source>,
    oracle: Option<(f64, (u32, u32))>,
}

impl<'a> Problem<'a> {
    /// Reads and checks everything that the configuration refers to.
    pub fn load(tensors: &Tensors<'a>, options: &Options) -> Result<Self> {
        let query = tensors.require("q", "as [B, Hq, Nq, dk]")?;
        let key = tensors.require("k", "as [B, Hk, Nk, dk]")?;
        let value = tensors.require("v", "as [B, Hv, Nk, dv]")?;
        let shape = shape_of(&query, &key, &value)?;
        shape.validate()?;
        let dtype = dtype_of(&query, [&key, &value])?;
        let mut attention = Attention::new(shape, dtype).with_mask(options.mask.clone());
        check_options(options)?;
        let block = options.block.unwrap_or(DEFAULT_BLOCK);
        let side = Side::load(tensors, &shape, &options.mask_and_pattern())?;
        attention.positions = options.positions(&side)?;
        attention.activation = options.activation()?;
        attention.score.scale = options.scale;
        attention.score.softcap = options.softcap;
        attention.score.alibi = side.alibi_slopes.is_some();
        attention.score.sinks = side.sinks.is_some();
        attention.score.key_bias = side.key_bias.as_ref().map(|(_, broadcast)| *broadcast);
        let bias = tensors.get("bias");
        if let Some(bias) = &bias {
            attention = attention.with_bias(bias.dtype()?, bias_broadcast(bias, &shape)?);
        }
        if options.lse {
            attention = attention.with_lse();
        }
        attention.f16_products = options.f16_products;
        let list = keys::load(tensors, &shape, options.keys, block, options.lists)?;
        attention.keys = list.as_ref().map_or(Keys::Dense, |list| list.keys);
        attention.validate()?;
        let (mut pattern, mut oracle) = (None, None);
        match &options.pattern {
            Some(PatternName::Static(parts)) => {
                let source = parts.source(&attention, &side.arrays(), block)?;
                attention = source.apply(&attention);
                pattern = Some(source);
            }
            Some(PatternName::Oracle { density, block: own }) => {
                oracle = Some((*density, own.unwrap_or(block)));
            }
            None => {}
        }
        let out = tensors.get("out");
        if let Some(out) = &out {
            out.shape("[B, Hq, Nq, dv]", shape.out().map(Size::Is))?;
            out.dtype()?;
        }
        Ok(Self { attention, query, key, value, bias, out, side, list, pattern, oracle })
    }

    pub fn arrays(&self) -> Arrays<'_> {
        let arrays = self.side.arrays();
        match (&self.list, &self.pattern) {
            (Some(list), _) => list.arrays(arrays),
            (_, Some(source)) => source.arrays(arrays),
            _ => arrays,
        }
    }

    /// Whether the list is still to be found by the oracle.
    pub const fn wants_oracle(&self) -> bool {
        self.oracle.is_some()
    }

    /// Has the oracle find the list.
    pub fn ask_oracle(&mut self, context: &Context) -> Result<()> {
        if let Some((density, block)) = self.oracle.take() {
            let list = keys::oracle(context, self, density, block)?;
            self.attention.keys = list.keys;
            self.list = Some(list);
        }
        Ok(())
    }

    /// The tensors as numbers, for the reference.
    pub fn decode(&self) -> Result<Decoded> {
        let rounded = |mut numbers: Vec<f32>| {
            if self.attention.f16_products {
                numbers = DType::F16.decode(&DType::F16.encode(&numbers));
            }
            numbers
        };
        Ok(Decoded {
            query: rounded(self.query.floats()?),
            key: rounded(self.key.floats()?),
            value: rounded(self.value.floats()?),
            bias: self.bias.as_ref().map(Tensor::floats).transpose()?,
        })
    }
}

/// A problem's tensors as numbers.
pub struct Decoded {
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Decoded {
    pub fn host_inputs<'a>(&'a self, arrays: Arrays<'a>) -> HostInputs<'a> {
        let mut inputs = HostInputs::new(&self.query, &self.key, &self.value).with_arrays(arrays);
        inputs.bias = self.bias.as_deref();
        inputs
    }
}

impl Options {
    /// Dense causal softmax attention.
    pub fn causal() -> Self {
        Self {
            activation: ActivationName::Softmax,
            sigmoid_bias: None,
            mask: Mask::causal(),
            align: None,
            scale: None,
            softcap: None,
            keys: KeysName::Dense,
            block: None,
            lists: None,
            pattern: None,
            lse: false,
            f16_products: false,
        }
    }

    /// The mask with the words that a pattern adds, for the arrays that they refer to.
    fn mask_and_pattern(&self) -> Mask {
        match &self.pattern {
            Some(PatternName::Static(pattern)) => {
                pattern.words().map_or(self.mask.clone(), |words| self.mask.clone() & words)
            }
            _ => self.mask.clone(),
        }
    }

    /// The first option that was given and means nothing to linear attention.
    pub fn given(&self) -> Option<&'static str> {
        let given = [
            ("--activation", self.activation != ActivationName::Softmax),
            ("--sigmoid-bias", self.sigmoid_bias.is_some()),
            ("--mask", self.mask != Mask::full()),
            ("--align", self.align.is_some()),
            ("--softcap", self.softcap.is_some()),
            ("--lse", self.lse),
            ("--f16-products", self.f16_products),
            ("--keys", self.keys != KeysName::Dense),
            ("--block", self.block.is_some()),
            ("--lists", self.lists.is_some()),
            ("--pattern", self.pattern.is_some()),
        ];
        given.into_iter().find_map(|(name, given)| given.then_some(name))
    }

    fn activation(&self) -> Result<Activation> {
        match (self.activation, self.sigmoid_bias) {
            (ActivationName::Sigmoid, bias) => Ok(Activation::Sigmoid { bias }),
            (ActivationName::Softmax, None) => Ok(Activation::Softmax),
            (ActivationName::Softmax, Some(bias)) => Err(bad_input(format!(
                "--sigmoid-bias: expected with --activation sigmoid only, got {bias} with softmax"
            ))),
        }
    }

    fn positions(&self, side: &Side) -> Result<Positions> {
        match (self.align, &side.query_offset) {
            (None, Some(_)) => Ok(Positions::PerBatch),
            (None | Some(Align::BottomRight), None) => Ok(Positions::BottomRight),
            (Some(Align::TopLeft), None) => Ok(Positions::TopLeft),
            (Some(_), Some(_)) => Err(bad_input(
                "--align: expected without a tensor `query_offset`, which says where the queries \
                 stand, got both",
            )),
        }
    }
}

/// What `--variant` names, a kernel of the op at hand.
pub fn variant<V: FromStr<Err = Error>>(name: &str) -> Result<V> {
    name.parse().map_err(|error| bad_input(format!("--variant: {error}")))
}

/// The dtype that queries, keys and values share.
pub fn dtype_of(query: &Tensor<'_>, others: [&Tensor<'_>; 2]) -> Result<DType> {
    let dtype = query.dtype()?;
    for other in others {
        let got = other.dtype()?;
        if got != dtype {
            let expected = format!("dtype {dtype} as `{}`", query.name);
            return Err(other.error(expected, got.to_string()).into());
        }
    }
    Ok(dtype)
}

pub fn shape_of(query: &Tensor<'_>, key: &Tensor<'_>, value: &Tensor<'_>) -> Result<Shape> {
    use Size::{Any, Is};
    let [batch, query_heads, query_len, head_dim] = query.shape("[B, Hq, Nq, dk]", [Any; 4])?;
    let [_, key_heads, key_len, _] =
        key.shape("[B, Hk, Nk, dk]", [Is(batch), Any, Any, Is(head_dim)])?;
    let [_, value_heads, _, value_dim] =
        value.shape("[B, Hv, Nk, dv]", [Is(batch), Any, Is(key_len), Any])?;
    Ok(Shape::new(batch, query_heads, query_len, head_dim)
        .with_key_heads(key_heads)
        .with_value_heads(value_heads)
        .with_key_len(key_len)
        .with_value_dim(value_dim))
}

fn bias_broadcast(bias: &Tensor<'_>, shape: &Shape) -> Result<Broadcast> {
    let [batch, heads, query_len, key_len] = shape.scores();
    let sizes = [Size::OrOne(batch), Size::OrOne(heads), Size::Is(query_len), Size::Is(key_len)];
    let [batch, heads, ..] = bias.shape("[B|1, Hq|1, Nq, Nk]", sizes)?;
    Ok(broadcast(batch, heads))
}
