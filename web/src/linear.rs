//! Linear attention: calls, kept plans, and the check against the reference.

use std::rc::Rc;

use js_sys::Promise;
use wasm_bindgen::prelude::*;
use wgpu_attention::linear::reference::{HostInputs, Reference};
use wgpu_attention::linear::{check_gates, slopes};
use wgpu_attention::{
    Array, Carry, DType, Error, FeatureMap, LinearAttention, LinearInputs, LinearOutputs,
    LinearPlan as Plan, LinearVariant, Rule,
};

use crate::attention::natural;
use crate::buffer::{Buffer, Taken, host, size_of};
use crate::config::{self, COMMON};
use crate::context::Context;
use crate::error::{refuse, thrown};
use crate::options::{Options, argument};
use crate::plan::{Bound, Results, verdict};
use crate::promise::promise;

const LINEAR: &[&str] =
    &["rule", "gatePer", "featureMap", "normalize", "decay", "starts", "chunk", "carry"];

const TENSORS: &[&str] = &["q", "k", "v", "gate", "beta", "state", "normalizer", "out"];

/// What options need to have an effect.
const NEEDS: &[(&str, &str)] = &[
    ("gatePer", GATED),
    ("gate", GATED),
    ("beta", "the rules delta and gated-delta"),
    ("decay", "the rule decay"),
    ("chunk", "another variant than recurrent"),
    ("state", "a plan made with `state`"),
    ("normalizer", "`normalize` and a `state`"),
];

const GATED: &str = "the rules gated and gated-delta";

/// A configuration with its small arrays.
struct Problem {
    linear: LinearAttention,
    decay: Option<Vec<f32>>,
    starts: Option<Vec<u32>>,
    variant: Option<LinearVariant>,
    packed: bool,
}

struct Planned {
    context: Context,
    plan: Plan,
    problem: Problem,
}

/// A kept plan of linear attention.
#[wasm_bindgen]
#[derive(Clone)]
pub struct LinearPlan(Rc<Planned>);

impl Problem {
    fn read(options: &Options) -> Result<Self, Error> {
        let shape = config::shape(options)?;
        let mut linear = LinearAttention::new(shape, config::dtype(options, natural(options))?);
        let rules = |per_key_dim| {
            let (gated, delta) = (Rule::Gated { per_key_dim }, Rule::GatedDelta { per_key_dim });
            [Rule::Decay, gated, Rule::Delta, delta].map(|rule| (rule.name(), rule))
        };
        linear.rule = options.word("rule", &rules(false))?.unwrap_or(Rule::Decay);
        let per = [("token", false), ("key-dim", true)];
        if linear.rule.is_gated() && options.word("gatePer", &per)? == Some(true) {
            linear.rule = options.word("rule", &rules(true))?.unwrap_or(linear.rule);
        }
        let maps = FeatureMap::ALL.map(|map| (map.name(), map));
        if let Some(map) = options.word("featureMap", &maps)? {
            linear.feature_map = map;
        }
        linear.normalize = options.number("normalize")?.map(|x| x as f32);
        linear.scale = options.number("scale")?.map_or(1.0, |x| x as f32);
        let starts = options.counts("starts")?;
        linear.documents = starts.is_some();
        let carry = options.get("carry").is_some().then(|| options.flag("carry")).transpose()?;
        // Of a plan, `state` says whether there will be one.
        let state = options.get("state").filter(|state| state.as_bool() != Some(false));
        linear.carry = match (carry, state) {
            (Some(false), Some(_)) => {
                return Err(refuse("carry", "true, or nothing, with a state", "false"));
            }
            (_, Some(_)) => Carry::InOut,
            (Some(true), None) => Carry::Out,
            (_, None) => Carry::None,
        };
        let variants = LinearVariant::ALL.map(|variant| (variant.name(), variant));
        let variant = options.word("variant", &variants)?;
        if variant != Some(LinearVariant::Recurrent) {
            linear.chunk = options.count("chunk")?;
        }
        let decay = if linear.rule == Rule::Decay { options.numbers("decay")? } else { None };
        let packed = config::packed(options)?;
        linear.validate()?;
        Ok(Self { linear, decay, starts, variant, packed })
    }

    fn documents(&self) -> u32 {
        self.starts.as_ref().map_or(1, |starts| starts.len().saturating_sub(1).max(1) as u32)
    }
}

impl Planned {
    async fn new(context: &Context, problem: Problem) -> Result<Self, JsValue> {
        let plan = match problem.variant {
            Some(variant) => problem.linear.plan_with(context.library(), variant).await,
            None => problem.linear.plan(context.library()).await,
        };
        Ok(Self { context: context.clone(), plan: plan.map_err(thrown)?, problem })
    }

    fn bind(&self, tensors: &Tensors) -> Result<wgpu_attention::Bound, Error> {
        let (problem, linear) = (&self.problem, &self.problem.linear);
        let (shape, packed) = (&linear.shape, problem.packed);
        let Tensors { query, key, value, gate, beta, results, .. } = tensors;
        let mut inputs = LinearInputs::new(
            query.tensor("q", shape.query(), packed)?,
            key.tensor("k", shape.key(), packed)?,
            value.tensor("v", shape.value(), packed)?,
        );
        let gate = gate.as_ref().map(|gate| gate.tensor("gate", linear.gate(), false));
        inputs.gate = gate.transpose()?;
        let beta = beta.as_ref().map(|beta| beta.tensor("beta", linear.beta(), false));
        inputs.beta = beta.transpose()?;
        inputs.decay = problem.decay.as_deref().map(Array::f32);
        inputs.starts = problem.starts.as_deref().map(Array::u32);
        let mut outputs = LinearOutputs::new(results.view("out", packed)?);
        outputs.state = results.view("state", false).ok();
        outputs.normalizer = results.view("normalizer", false).ok();
        self.plan.bind(&inputs, &outputs)
    }

    /// Takes the tensors and the outputs of a call.
    fn take(&self, tensors: &JsValue) -> Result<Tensors, JsValue> {
        self.context.alive()?;
        let options = Options::new(tensors, "tensors", &[TENSORS]).map_err(thrown)?;
        Tensors::take(&self.context, &options, &self.problem)
    }

    async fn run(&self, tensors: Tensors) -> Result<JsValue, JsValue> {
        let bound = self.bind(&tensors).map_err(thrown)?;
        self.context.library().run(&bound).await.map_err(thrown)?;
        self.context.alive()?;
        tensors.results.hand_out(tensors.taken.on_device).await
    }
}

/// The tensors of a call in buffers, and its outputs.
struct Tensors {
    query: Buffer,
    key: Buffer,
    value: Buffer,
    gate: Option<Buffer>,
    beta: Option<Buffer>,
    results: Results,
    taken: Taken,
}

impl Tensors {
    /// Takes what `options` name, all of which must have an effect.
    fn take(context: &Context, options: &Options, problem: &Problem) -> Result<Self, JsValue> {
        let linear = &problem.linear;
        let (shape, dtype) = (&linear.shape, linear.dtype);
        let mut taken = Taken::default();
        let mut take = |name: &str, kind: DType| taken.take(context, options, name, kind);
        let side = |name: &str| {
            let value = options.get(name).unwrap_or_default();
            size_of(&value).map_or(DType::F32, |(kind, _)| kind)
        };
        if linear.rule.is_gated() {
            let gate = options.get("gate").filter(|gate| Buffer::existing(gate).is_none());
            // Those in a buffer are the caller's to check: reading them back would take a while.
            let gate = gate.map(|gate| host(&gate, side("gate"), "gate")).transpose();
            check_gates(&gate.map_err(thrown)?.unwrap_or_default()).map_err(thrown)?;
        }
        let (query, key, value) = (take("q", dtype)?, take("k", dtype)?, take("v", dtype)?);
        let gate = linear.rule.is_gated().then(|| take("gate", side("gate"))).transpose()?;
        let beta = linear.rule.is_delta().then(|| take("beta", side("beta"))).transpose()?;

        let mut results = Results::default();
        results.add(context, options, ("out", "out"), (shape.out(), dtype))?;
        let mut carried = Vec::new();
        if linear.carry != Carry::None {
            carried.push(("state", linear.state(problem.documents())));
            if linear.normalize.is_some() {
                carried.push(("normalizer", linear.normalizer(problem.documents())));
            }
        }
        let begins = |name| linear.carry == Carry::InOut && options.get(name).is_some();
        if carried.len() == 2 && begins("state") != begins("normalizer") {
            let given = if begins("state") { "`state` alone" } else { "`normalizer` alone" };
            return Err(thrown(refuse("state", "`state` and `normalizer` together", given)));
        }
        for (name, sizes) in carried {
            if begins(name) {
                let value = options.get(name).unwrap_or_default();
                let (buffer, given) = Buffer::take(context, &value, DType::F32, name)?;
                results.add_buffer(name, sizes, buffer, given);
            } else {
                // No option names a buffer for it.
                results.add(context, options, (name, ""), (sizes, DType::F32))?;
            }
        }
        options.finish(NEEDS).map_err(thrown)?;
        Ok(Self { query, key, value, gate, beta, results, taken })
    }
}

#[wasm_bindgen]
impl LinearPlan {
    /// Computes; see `types.d.ts`.
    #[wasm_bindgen(skip_typescript)]
    pub fn run(&self, tensors: JsValue) -> Promise {
        promise(|| {
            let planned = self.0.clone();
            let tensors = planned.take(&tensors)?;
            Ok(async move { planned.run(tensors).await })
        })
    }

    /// Checks buffers and makes all that computing on them needs.
    pub fn bind(
        &self,
        #[wasm_bindgen(unchecked_param_type = "LinearBuffers")] tensors: JsValue,
    ) -> Result<Bound, JsValue> {
        let tensors = self.0.take(&tensors)?;
        let bound = self.0.bind(&tensors).map_err(thrown)?;
        Ok(Bound::new(&self.0.context, bound, tensors.results, tensors.taken))
    }

    /// The algorithm that was chosen.
    #[wasm_bindgen(getter)]
    pub fn variant(&self) -> String {
        self.0.plan.variant().label().into()
    }

    /// The composed shaders, in the order in which they run, each after its label.
    #[wasm_bindgen(getter)]
    pub fn wgsl(&self) -> String {
        self.0.plan.wgsl().map(|(label, text)| format!("// {label}\n\n{text}\n")).collect()
    }
}

#[wasm_bindgen]
impl Context {
    /// Chooses an algorithm and compiles its kernels, to be kept.
    #[wasm_bindgen(js_name = planLinear, unchecked_return_type = "Promise<LinearPlan>")]
    pub fn plan_linear(
        &self,
        #[wasm_bindgen(unchecked_param_type = "LinearOptions & { state?: true }")] options: JsValue,
    ) -> Promise {
        let read = || -> Result<_, Error> {
            let options = Options::new(&options, "options", &[COMMON, LINEAR, &["state"]])?;
            let problem = Problem::read(&options)?;
            options.finish(NEEDS).map(|()| problem)
        };
        promise(|| {
            self.alive()?;
            let (context, problem) = (self.clone(), read().map_err(thrown)?);
            Ok(async move { Ok(LinearPlan(Rc::new(Planned::new(&context, problem).await?))) })
        })
    }

    /// Plans, computes and hands out; see `types.d.ts`.
    #[wasm_bindgen(skip_typescript)]
    pub fn linear(&self, options: JsValue) -> Promise {
        let read = || -> Result<_, Error> {
            let options = Options::new(&options, "options", &[COMMON, LINEAR, TENSORS])?;
            let problem = Problem::read(&options)?;
            Ok((options, problem))
        };
        promise(|| {
            self.alive()?;
            let (options, problem) = read().map_err(thrown)?;
            let (context, tensors) = (self.clone(), Tensors::take(self, &options, &problem)?);
            Ok(async move { Planned::new(&context, problem).await?.run(tensors).await })
        })
    }
}

/// Lightning attention's decay slopes, as released: one a head.
#[wasm_bindgen(js_name = lightningSlopes)]
pub fn lightning_slopes(
    #[wasm_bindgen(unchecked_param_type = "number")] heads: JsValue,
    #[wasm_bindgen(unchecked_param_type = "number")] layer: JsValue,
    #[wasm_bindgen(unchecked_param_type = "number")] layers: JsValue,
) -> Result<Vec<f32>, JsValue> {
    let number = |value, name| argument(value, name, None);
    let read = || {
        let (layer, layers) = (number(&layer, "layer")?, number(&layers, "layers")?);
        slopes::released(number(&heads, "heads")?, layer, layers)
    };
    read().map_err(thrown)
}

/// Compares a result with the f64 reference on the host.
#[wasm_bindgen(js_name = checkLinear, unchecked_return_type = "Check")]
pub fn check_linear(
    #[wasm_bindgen(unchecked_param_type = "LinearCall")] options: JsValue,
    #[wasm_bindgen(unchecked_param_type = "TypedArray")] out: JsValue,
) -> Result<JsValue, JsValue> {
    let read = || -> Result<_, Error> {
        let options = Options::new(&options, "options", &[COMMON, LINEAR, TENSORS])?;
        let problem = Problem::read(&options)?;
        let linear = &problem.linear;
        if linear.carry == Carry::InOut {
            return Err(refuse("state", "none: the check begins with zero", "a state"));
        }
        if problem.packed {
            return Err(refuse("layout", "\"batch,heads,len,dim\" for checks", "another layout"));
        }
        // What a call does not hand out is not compared.
        drop(options.get("out"));
        let tensor = |name: &str, kind| host(&options.get(name).unwrap_or_default(), kind, name);
        let dtype = linear.dtype;
        let (query, key, value) = (tensor("q", dtype)?, tensor("k", dtype)?, tensor("v", dtype)?);
        let gated = linear.rule.is_gated().then(|| tensor("gate", DType::F32)).transpose()?;
        let beta = linear.rule.is_delta().then(|| tensor("beta", DType::F32)).transpose()?;
        let mut inputs = HostInputs::new(&query, &key, &value);
        inputs.decay = problem.decay.as_deref();
        inputs.gate = gated.as_deref();
        inputs.beta = beta.as_deref();
        inputs.starts = problem.starts.as_deref();
        options.finish(NEEDS)?;
        let reference = Reference::new(linear, &inputs)?;
        Ok(reference.check(&host(&out, dtype, "out")?, None, None).out)
    };
    verdict(&read().map_err(thrown)?)
}
