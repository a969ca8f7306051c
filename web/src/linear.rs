//! Linear attention: calls, kept plans, and the check against the reference.

use std::rc::Rc;

use wasm_bindgen::prelude::*;
use wgpu_attention::linear::reference::{HostInputs, Reference};
use wgpu_attention::linear::slopes;
use wgpu_attention::{
    Array, Carry, DType, Error, FeatureMap, LinearAttention, LinearInputs, LinearOutputs,
    LinearPlan as Plan, LinearVariant, Rule,
};

use crate::attention::natural;
use crate::buffer::{Buffer, Taken, host, size_of};
use crate::config::{self, COMMON};
use crate::context::Context;
use crate::error::{refuse, thrown};
use crate::options::Options;
use crate::plan::{Bound, Results, verdict};

const LINEAR: &[&str] =
    &["rule", "gatePer", "featureMap", "normalize", "decay", "starts", "chunk", "carry"];

const TENSORS: &[&str] = &["q", "k", "v", "gate", "beta", "state", "normalizer", "out"];

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
        let per = [("token", false), ("key-dim", true)];
        let per_key_dim = options.word("gatePer", &per)?.unwrap_or(false);
        let rules = [
            Rule::Decay,
            Rule::Gated { per_key_dim },
            Rule::Delta,
            Rule::GatedDelta { per_key_dim },
        ];
        if let Some(rule) = options.word("rule", &rules.map(|rule| (rule.name(), rule)))? {
            linear.rule = rule;
        }
        let maps = FeatureMap::ALL.map(|map| (map.name(), map));
        if let Some(map) = options.word("featureMap", &maps)? {
            linear.feature_map = map;
        }
        linear.normalize = options.number("normalize")?.map(|x| x as f32);
        linear.scale = options.number("scale")?.map_or(1.0, |x| x as f32);
        linear.chunk = options.count("chunk")?;
        let starts = options.counts("starts")?;
        linear.documents = starts.is_some();
        linear.carry = match (options.flag("carry")?, options.get("state")) {
            (_, Some(_)) => Carry::InOut,
            (true, None) => Carry::Out,
            (false, None) => Carry::None,
        };
        let variants = LinearVariant::ALL.map(|variant| (variant.name(), variant));
        let variant = options.word("variant", &variants)?;
        let packed = config::packed(options)?;
        Ok(Self { linear, decay: options.numbers("decay")?, starts, variant, packed })
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

    /// Binds the tensors of `options`: the binding, its outputs, whether they were on the device,
    /// and the buffers that were made for the call.
    fn bind(&self, options: &Options) -> Result<Called, JsValue> {
        let (problem, linear) = (&self.problem, &self.problem.linear);
        let (shape, context) = (&linear.shape, &self.context);
        let mut taken = Taken::default();
        let mut take = |name: &str, kind: DType| taken.take(context, options, name, kind);
        let side = |name: &str| {
            let value = options.get(name).unwrap_or_default();
            size_of(&value).map_or(DType::F32, |(kind, _)| kind)
        };
        let dtype = linear.dtype;
        let (query, key, value) = (take("q", dtype)?, take("k", dtype)?, take("v", dtype)?);
        let gate = linear.rule.is_gated().then(|| take("gate", side("gate"))).transpose()?;
        let beta = linear.rule.is_delta().then(|| take("beta", side("beta"))).transpose()?;

        let mut results = Results::default();
        results.add(context, options, ("out", "out"), (shape.out(), dtype))?;
        if linear.carry != Carry::None {
            let mut carried = vec![("state", linear.state(problem.documents()))];
            if linear.normalize.is_some() {
                carried.push(("normalizer", linear.normalizer(problem.documents())));
            }
            for (name, sizes) in carried {
                match options.get(name) {
                    Some(value) => {
                        let (buffer, given) = Buffer::take(context, &value, DType::F32, name)?;
                        results.add_buffer(name, sizes, buffer, given);
                    }
                    None => results.add(context, options, (name, name), (sizes, DType::F32))?,
                }
            }
        }
        let bound = (|| {
            let packed = problem.packed;
            let mut inputs = LinearInputs::new(
                query.tensor("q", shape.query(), packed)?,
                key.tensor("k", shape.key(), packed)?,
                value.tensor("v", shape.value(), packed)?,
            );
            let place = |tensor: &'_ Option<Buffer>| tensor.clone();
            let (gate, beta) = (place(&gate), place(&beta));
            inputs.gate = match &gate {
                Some(gate) => Some(gate.tensor("gate", linear.gate(), false)?),
                None => None,
            };
            inputs.beta = match &beta {
                Some(beta) => Some(beta.tensor("beta", linear.beta(), false)?),
                None => None,
            };
            inputs.decay = problem.decay.as_deref().map(Array::f32);
            inputs.starts = problem.starts.as_deref().map(Array::u32);
            let mut outputs = LinearOutputs::new(results.view("out", packed)?);
            outputs.state = results.view("state", false).ok();
            outputs.normalizer = results.view("normalizer", false).ok();
            self.plan.bind(&inputs, &outputs)
        })();
        Ok(Called { bound: bound.map_err(thrown)?, results, taken })
    }

    async fn run(&self, options: &Options) -> Result<JsValue, JsValue> {
        self.context.alive()?;
        let called = self.bind(options)?;
        self.context.library().run(&called.bound).await.map_err(thrown)?;
        self.context.alive()?;
        called.results.hand_out(&self.context, called.taken.on_device).await
    }
}

/// A call that is ready.
struct Called {
    bound: wgpu_attention::Bound,
    results: Results,
    taken: Taken,
}

#[wasm_bindgen]
impl LinearPlan {
    /// Computes; see `types.d.ts`.
    #[wasm_bindgen(skip_typescript)]
    pub async fn run(&self, tensors: JsValue) -> Result<JsValue, JsValue> {
        let planned = self.0.clone();
        let options = Options::new(&tensors, "tensors", &[TENSORS]).map_err(thrown)?;
        planned.run(&options).await
    }

    /// Checks buffers and makes all that computing on them needs.
    pub fn bind(
        &self,
        #[wasm_bindgen(unchecked_param_type = "LinearBuffers")] tensors: JsValue,
    ) -> Result<Bound, JsValue> {
        self.0.context.alive()?;
        let options = Options::new(&tensors, "tensors", &[TENSORS]).map_err(thrown)?;
        let called = self.0.bind(&options)?;
        Ok(Bound::new(&self.0.context, called.bound, called.results, called.taken))
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
    #[wasm_bindgen(js_name = planLinear, unchecked_return_type = "LinearPlan")]
    pub async fn plan_linear(
        &self,
        #[wasm_bindgen(unchecked_param_type = "LinearOptions")] options: JsValue,
    ) -> Result<LinearPlan, JsValue> {
        self.alive()?;
        let options = Options::new(&options, "options", &[COMMON, LINEAR, &["state"]]);
        let problem = options.and_then(|options| Problem::read(&options)).map_err(thrown)?;
        Ok(LinearPlan(Rc::new(Planned::new(self, problem).await?)))
    }

    /// Plans, computes and hands out; see `types.d.ts`.
    #[wasm_bindgen(skip_typescript)]
    pub async fn linear(&self, options: JsValue) -> Result<JsValue, JsValue> {
        self.alive()?;
        let options =
            Options::new(&options, "options", &[COMMON, LINEAR, TENSORS]).map_err(thrown)?;
        let problem = Problem::read(&options).map_err(thrown)?;
        Planned::new(self, problem).await?.run(&options).await
    }
}

/// Lightning attention's decay slopes, as released: one a head.
#[wasm_bindgen(js_name = lightningSlopes)]
pub fn lightning_slopes(heads: u32, layer: u32, layers: u32) -> Result<Vec<f32>, JsValue> {
    slopes::released(heads, layer, layers).map_err(thrown)
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
        let reference = Reference::new(linear, &inputs)?;
        Ok(reference.check(&host(&out, dtype, "out")?, None, None).out)
    };
    verdict(&read().map_err(thrown)?)
}
