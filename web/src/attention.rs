//! Attention: calls, kept plans, and the check against the reference.

use std::rc::Rc;

use wasm_bindgen::prelude::*;
use wgpu_attention::attention::reference::{HostInputs, Reference};
use wgpu_attention::{
    Attention, DType, Error, Inputs, Output, Outputs, Plan, Shape, Variant, View,
};

use crate::buffer::{Buffer, Taken, host, size_of};
use crate::config::{self, ATTENTION, COMMON, Side};
use crate::context::Context;
use crate::error::thrown;
use crate::options::Options;
use crate::plan::{Bound, Results, verdict};
use crate::sparse::{self, Choice};

const TENSORS: &[&str] = &["q", "k", "v", "out", "lseOut"];

/// A configuration with its side arrays, its keys, and the kernel compiled for it.
struct Planned {
    context: Context,
    plan: Plan,
    side: Side,
    choice: Choice,
    packed: bool,
}

/// A kept plan of attention.
#[wasm_bindgen]
#[derive(Clone)]
pub struct AttentionPlan(Rc<Planned>);

/// The tensors that a call reads, in buffers.
pub struct Tensors {
    query: Buffer,
    key: Buffer,
    value: Buffer,
    bias: Option<Buffer>,
    packed: bool,
    taken: Taken,
}

impl Tensors {
    /// Takes `q`, `k`, `v` and, where the configuration has one, `bias`.
    pub fn take(
        context: &Context,
        options: &Options,
        (attention, packed): (&Attention, bool),
    ) -> Result<Self, JsValue> {
        let mut taken = Taken::default();
        let mut take = |name: &str, kind: DType| taken.take(context, options, name, kind);
        let dtype = attention.dtype;
        let (query, key, value) = (take("q", dtype)?, take("k", dtype)?, take("v", dtype)?);
        let bias = attention.score.bias.map(|(dtype, _)| take("bias", dtype)).transpose()?;
        Ok(Self { query, key, value, bias, packed, taken })
    }

    pub fn views(&self, shape: &Shape) -> Result<[View<'_>; 3], Error> {
        Ok([
            self.query.tensor("q", shape.query(), self.packed)?,
            self.key.tensor("k", shape.key(), self.packed)?,
            self.value.tensor("v", shape.value(), self.packed)?,
        ])
    }

    pub fn bias_view(&self, attention: &Attention) -> Result<Option<View<'_>>, Error> {
        let Some((bias, (_, broadcast))) = self.bias.as_ref().zip(attention.score.bias) else {
            return Ok(None);
        };
        let shape = &attention.shape;
        let (batch, heads) = broadcast.sizes(shape.batch, shape.query_heads);
        bias.tensor("bias", [batch, heads, shape.query_len, shape.key_len], false).map(Some)
    }
}

/// The dtype of the queries, where there are some.
pub fn natural(options: &Options) -> Option<DType> {
    size_of(&options.get("q")?).map(|(kind, _)| kind)
}

impl Planned {
    async fn new(
        context: &Context,
        options: &Options,
        (attention, side, choice): (Attention, Side, Choice),
    ) -> Result<Self, JsValue> {
        let attention = choice.apply(attention);
        let variant = options.text("variant").map_err(thrown)?;
        let packed = config::packed(options).map_err(thrown)?;
        let plan = match variant {
            Some(name) => {
                let variant = name.parse::<Variant>().map_err(thrown)?;
                attention.plan_with(context.library(), variant).await
            }
            None => attention.plan(context.library()).await,
        };
        let plan = plan.map_err(thrown)?;
        Ok(Self { context: context.clone(), plan, side, choice, packed })
    }

    /// The outputs by name: the caller's buffers, or new ones.
    fn outputs(&self, options: &Options) -> Result<Results, JsValue> {
        let attention = self.plan.attention();
        let shape = &attention.shape;
        let mut results = Results::default();
        let main = match attention.output {
            Output::Attention { .. } => (shape.out(), attention.dtype),
            Output::BlockSums { block_q, block_k } => {
                let blocks = [shape.query_len.div_ceil(block_q), shape.key_len.div_ceil(block_k)];
                ([shape.batch, shape.query_heads, blocks[0], blocks[1]], DType::F32)
            }
            _ => (shape.scores(), DType::F32),
        };
        results.add(&self.context, options, ("out", "out"), main)?;
        if attention.output == (Output::Attention { lse: true }) {
            results.add(&self.context, options, ("lse", "lseOut"), (shape.lse(), DType::F32))?;
        }
        Ok(results)
    }

    fn bind(&self, tensors: &Tensors, results: &Results) -> Result<wgpu_attention::Bound, Error> {
        let attention = self.plan.attention();
        let [query, key, value] = tensors.views(&attention.shape)?;
        let mut inputs = Inputs::new(query, key, value).with_arrays(self.choice.arrays(&self.side));
        inputs.bias = tensors.bias_view(attention)?;
        let outputs = if matches!(attention.output, Output::Attention { .. }) {
            let outputs = Outputs::new(results.view("out", self.packed)?);
            match results.view("lse", false) {
                Ok(lse) => outputs.with_lse(lse),
                Err(_) => outputs,
            }
        } else {
            Outputs::scores(results.view("out", false)?)
        };
        self.plan.bind(&inputs, &outputs)
    }

    fn take(&self, options: &Options) -> Result<Tensors, JsValue> {
        Tensors::take(&self.context, options, (self.plan.attention(), self.packed))
    }

    async fn run(&self, options: &Options) -> Result<JsValue, JsValue> {
        self.context.alive()?;
        let tensors = self.take(options)?;
        self.run_on(&tensors, options).await
    }

    async fn run_on(&self, tensors: &Tensors, options: &Options) -> Result<JsValue, JsValue> {
        let results = self.outputs(options)?;
        let bound = self.bind(tensors, &results).map_err(thrown)?;
        self.context.library().run(&bound).await.map_err(thrown)?;
        self.context.alive()?;
        results.hand_out(&self.context, tensors.taken.on_device).await
    }
}

#[wasm_bindgen]
impl AttentionPlan {
    /// Computes; see `types.d.ts`.
    #[wasm_bindgen(skip_typescript)]
    pub async fn run(&self, tensors: JsValue) -> Result<JsValue, JsValue> {
        let planned = self.0.clone();
        let names: &[&[&str]] = &[TENSORS, &["bias"]];
        let options = Options::new(&tensors, "tensors", names).map_err(thrown)?;
        planned.run(&options).await
    }

    /// Checks buffers and makes all that computing on them needs.
    pub fn bind(
        &self,
        #[wasm_bindgen(unchecked_param_type = "AttentionBuffers")] tensors: JsValue,
    ) -> Result<Bound, JsValue> {
        let planned = &self.0;
        planned.context.alive()?;
        let names: &[&[&str]] = &[TENSORS, &["bias"]];
        let options = Options::new(&tensors, "tensors", names).map_err(thrown)?;
        let tensors = planned.take(&options)?;
        let results = planned.outputs(&options)?;
        let bound = planned.bind(&tensors, &results).map_err(thrown)?;
        Ok(Bound::new(&planned.context, bound, results, tensors.taken))
    }

    /// The kernel that was chosen.
    #[wasm_bindgen(getter)]
    pub fn variant(&self) -> String {
        self.0.plan.variant().label().into()
    }

    /// The composed shader.
    #[wasm_bindgen(getter)]
    pub fn wgsl(&self) -> String {
        self.0.plan.wgsl().into()
    }

    /// The share of the keys that is visited, on average over queries.
    #[wasm_bindgen(getter)]
    pub fn density(&self) -> f64 {
        self.0.choice.density(self.0.plan.attention())
    }
}

#[wasm_bindgen]
impl Context {
    /// Chooses and compiles a kernel, to be kept.
    #[wasm_bindgen(js_name = planAttention, unchecked_return_type = "AttentionPlan")]
    pub async fn plan_attention(
        &self,
        #[wasm_bindgen(unchecked_param_type = "AttentionOptions")] options: JsValue,
    ) -> Result<AttentionPlan, JsValue> {
        self.alive()?;
        let read = || -> Result<_, Error> {
            let options = Options::new(&options, "options", &[COMMON, ATTENTION])?;
            let (attention, side) = config::attention(&options, None)?;
            let choice = Choice::read(&options, &attention, &side)?;
            Ok((options, (attention, side, choice)))
        };
        let (options, problem) = read().map_err(thrown)?;
        Ok(AttentionPlan(Rc::new(Planned::new(self, &options, problem).await?)))
    }

    /// Plans, computes and hands out; see `types.d.ts`.
    #[wasm_bindgen(skip_typescript)]
    pub async fn attention(&self, options: JsValue) -> Result<JsValue, JsValue> {
        self.alive()?;
        let read = || -> Result<_, Error> {
            let options = Options::new(&options, "options", &[COMMON, ATTENTION, TENSORS])?;
            let (attention, side) = config::attention(&options, natural(&options))?;
            let oracle = sparse::oracle(&options)?;
            let choice = match oracle {
                Some(_) => Choice::Dense,
                None => Choice::read(&options, &attention, &side)?,
            };
            Ok((options, attention, side, oracle, choice))
        };
        let (options, attention, side, oracle, mut choice) = read().map_err(thrown)?;
        let packed = config::packed(&options).map_err(thrown)?;
        let tensors = Tensors::take(self, &options, (&attention, packed))?;
        if let Some(wanted) = oracle {
            let list = sparse::best(self, (&attention, &side), &tensors, wanted).await?;
            choice = Choice::List(list);
        }
        let planned = Planned::new(self, &options, (attention, side, choice)).await?;
        planned.run_on(&tensors, &options).await
    }
}

/// Compares a result with the f64 reference on the host, on evenly spread rows.
#[wasm_bindgen(js_name = checkAttention, unchecked_return_type = "Check")]
pub fn check_attention(
    #[wasm_bindgen(unchecked_param_type = "AttentionCall & { rows?: number }")] options: JsValue,
    #[wasm_bindgen(unchecked_param_type = "TypedArray")] out: JsValue,
) -> Result<JsValue, JsValue> {
    let read = || -> Result<_, Error> {
        let names: &[&[&str]] = &[COMMON, ATTENTION, TENSORS, &["rows"]];
        let options = Options::new(&options, "options", names)?;
        let (attention, side) = config::attention(&options, natural(&options))?;
        let choice = Choice::read(&options, &attention, &side)?;
        let attention = choice.apply(attention);
        let tensor = |name: &str, kind| host(&options.get(name).unwrap_or_default(), kind, name);
        let dtype = attention.dtype;
        let (query, key, value) = (tensor("q", dtype)?, tensor("k", dtype)?, tensor("v", dtype)?);
        let bias = attention.score.bias.map(|(dtype, _)| tensor("bias", dtype)).transpose()?;
        let mut inputs = HostInputs::new(&query, &key, &value).with_arrays(choice.arrays(&side));
        inputs.bias = bias.as_deref();
        let reference = Reference::new(&attention, &inputs)?;
        let rows = reference.sample(options.count("rows")?.unwrap_or(64) as usize);
        Ok(match attention.output {
            Output::Scores(stage) => {
                let out = host(&out, DType::F32, "out")?;
                reference.check_scores(stage, &rows, &out)
            }
            _ => {
                let out = host(&out, dtype, "out")?;
                reference.check_out(&rows, &out, None).0
            }
        })
    };
    verdict(&read().map_err(thrown)?)
}
