//! Attention: calls, kept plans, and the check against the reference.

use std::rc::Rc;

use js_sys::Promise;
use wasm_bindgen::prelude::*;
use wgpu_attention::attention::reference::{HostInputs, Reference};
use wgpu_attention::{
    Attention, DType, Error, Inputs, Output, Outputs, Plan, Shape, Variant, View,
};

use crate::buffer::{Buffer, Taken, host, size_of};
use crate::config::{self, ATTENTION, COMMON, NEEDS, Side};
use crate::context::Context;
use crate::error::{refuse, thrown};
use crate::options::Options;
use crate::plan::{Bound, Results, verdict};
use crate::promise::promise;
use crate::sparse::{self, Choice};

const TENSORS: &[&str] = &["q", "k", "v", "out", "lseOut"];

/// What the tensors of a call need to have an effect.
const NEEDS_OF_PLAN: &[(&str, &str)] =
    &[("bias", "a plan made with `bias`"), ("lseOut", "a plan made with `lse: true`")];

/// A configuration with its side arrays and its keys, and how to compute it.
struct Problem {
    attention: Attention,
    side: Side,
    choice: Choice,
    variant: Option<Variant>,
    packed: bool,
}

/// A problem and the kernel compiled for it.
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

impl Problem {
    fn read(
        options: &Options,
        (attention, side): (Attention, Side),
        choice: Choice,
    ) -> Result<Self, Error> {
        let variant = options.text("variant")?.map(|name| name.parse::<Variant>()).transpose()?;
        let packed = config::packed(options)?;
        choice.check(&attention, &side)?;
        Ok(Self { attention, side, choice, variant, packed })
    }
}

/// The outputs of a configuration by name: the caller's buffers, or new ones.
fn outputs(
    context: &Context,
    options: &Options,
    attention: &Attention,
) -> Result<Results, JsValue> {
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
    results.add(context, options, ("out", "out"), main)?;
    if attention.output == (Output::Attention { lse: true }) {
        results.add(context, options, ("lse", "lseOut"), (shape.lse(), DType::F32))?;
        results.mark_logits("lse");
    }
    if matches!(attention.output, Output::Scores(stage) if stage.may_be_masked()) {
        results.mark_logits("out");
    }
    Ok(results)
}

impl Planned {
    async fn new(context: &Context, problem: Problem) -> Result<Self, JsValue> {
        let Problem { attention, side, choice, variant, packed } = problem;
        let attention = choice.apply(attention);
        let plan = match variant {
            Some(variant) => attention.plan_with(context.library(), variant).await,
            None => attention.plan(context.library()).await,
        };
        let plan = plan.map_err(thrown)?;
        Ok(Self { context: context.clone(), plan, side, choice, packed })
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

    /// Takes the tensors and the outputs of a call.
    fn take(&self, tensors: &JsValue) -> Result<(Tensors, Results), JsValue> {
        self.context.alive()?;
        let attention = self.plan.attention();
        let names: &[&[&str]] = &[TENSORS, &["bias"]];
        let options = Options::new(tensors, "tensors", names).map_err(thrown)?;
        let tensors = Tensors::take(&self.context, &options, (attention, self.packed))?;
        let results = outputs(&self.context, &options, attention)?;
        options.finish(NEEDS_OF_PLAN).map_err(thrown)?;
        Ok((tensors, results))
    }

    async fn run(&self, tensors: &Tensors, results: Results) -> Result<JsValue, JsValue> {
        let bound = self.bind(tensors, &results).map_err(thrown)?;
        self.context.library().run(&bound).await.map_err(thrown)?;
        self.context.alive()?;
        results.hand_out(tensors.taken.on_device).await
    }
}

#[wasm_bindgen]
impl AttentionPlan {
    /// Computes; see `types.d.ts`.
    #[wasm_bindgen(skip_typescript)]
    pub fn run(&self, tensors: JsValue) -> Promise {
        promise(|| {
            let planned = self.0.clone();
            let (tensors, results) = planned.take(&tensors)?;
            Ok(async move { planned.run(&tensors, results).await })
        })
    }

    /// Checks buffers and makes all that computing on them needs.
    pub fn bind(
        &self,
        #[wasm_bindgen(unchecked_param_type = "AttentionBuffers")] tensors: JsValue,
    ) -> Result<Bound, JsValue> {
        let (tensors, results) = self.0.take(&tensors)?;
        let bound = self.0.bind(&tensors, &results).map_err(thrown)?;
        Ok(Bound::new(&self.0.context, bound, results, tensors.taken))
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
    #[wasm_bindgen(js_name = planAttention, unchecked_return_type = "Promise<AttentionPlan>")]
    pub fn plan_attention(
        &self,
        #[wasm_bindgen(unchecked_param_type = "AttentionOptions")] options: JsValue,
    ) -> Promise {
        let read = || -> Result<_, Error> {
            let options = Options::new(&options, "options", &[COMMON, ATTENTION])?;
            let (attention, side) = config::attention(&options, None)?;
            let choice = Choice::read(&options, &attention, &side)?;
            let problem = Problem::read(&options, (attention, side), choice)?;
            options.finish(NEEDS)?;
            Ok(problem)
        };
        promise(|| {
            self.alive()?;
            let (context, problem) = (self.clone(), read().map_err(thrown)?);
            Ok(async move { Ok(AttentionPlan(Rc::new(Planned::new(&context, problem).await?))) })
        })
    }

    /// Plans, computes and hands out; see `types.d.ts`.
    #[wasm_bindgen(skip_typescript)]
    pub fn attention(&self, options: JsValue) -> Promise {
        let read = || -> Result<_, Error> {
            let options = Options::new(&options, "options", &[COMMON, ATTENTION, TENSORS])?;
            let (attention, side) = config::attention(&options, natural(&options))?;
            let oracle = sparse::oracle(&options)?;
            let choice = match oracle {
                Some(_) => Choice::Dense,
                None => Choice::read(&options, &attention, &side)?,
            };
            let problem = Problem::read(&options, (attention, side), choice)?;
            Ok((options, problem, oracle))
        };
        promise(|| {
            self.alive()?;
            let (options, mut problem, oracle) = read().map_err(thrown)?;
            let (context, attention) = (self.clone(), &problem.attention);
            let tensors = Tensors::take(self, &options, (attention, problem.packed))?;
            let results = outputs(self, &options, attention)?;
            options.finish(NEEDS).map_err(thrown)?;
            Ok(async move {
                if let Some(wanted) = oracle {
                    let described = (&problem.attention, &problem.side);
                    let list = sparse::best(&context, described, &tensors, wanted).await?;
                    problem.choice = Choice::List(list);
                }
                Planned::new(&context, problem).await?.run(&tensors, results).await
            })
        })
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
        if config::packed(&options)? {
            return Err(refuse("layout", "\"batch,heads,len,dim\" for checks", "another layout"));
        }
        if let Output::BlockSums { .. } = attention.output {
            return Err(refuse("blockSums", "none: checks compare outputs and scores", "a size"));
        }
        let attention = choice.apply(attention);
        let tensor = |name: &str, kind| host(&options.get(name).unwrap_or_default(), kind, name);
        let dtype = attention.dtype;
        let (query, key, value) = (tensor("q", dtype)?, tensor("k", dtype)?, tensor("v", dtype)?);
        let bias = attention.score.bias.map(|(dtype, _)| tensor("bias", dtype)).transpose()?;
        let mut inputs = HostInputs::new(&query, &key, &value).with_arrays(choice.arrays(&side));
        inputs.bias = bias.as_deref();
        let reference = Reference::new(&attention, &inputs)?;
        let rows = reference.sample(options.count("rows")?.unwrap_or(64) as usize);
        // The options of a call, of which these say how it is computed.
        ["variant", "out", "lseOut"].iter().for_each(|name| drop(options.get(name)));
        options.finish(NEEDS)?;
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
