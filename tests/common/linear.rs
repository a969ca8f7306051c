//! One call of linear attention, run by any variant and compared with the f64 reference.

use super::{Layout, Placed, Random, emulating, on_device};
use wgpu_attention::linear::reference::{HostInputs, Reference};
use wgpu_attention::{
    Array, Carry, Context, DType, Error, FeatureMap, LinearAttention, LinearInputs, LinearOutputs,
    LinearVariant, Rule,
};

/// One call with everything it reads.
#[derive(Clone)]
pub struct Case {
    pub linear: LinearAttention,
    pub query: Vec<f32>,
    pub key: Vec<f32>,
    pub value: Vec<f32>,
    pub decay: Option<Vec<f32>>,
    pub gate: Option<Vec<f32>>,
    pub beta: Option<Vec<f32>>,
    pub starts: Option<Vec<u32>>,
    pub state: Option<Vec<f32>>,
    pub normalizer: Option<Vec<f32>>,
    pub layout: Layout,
    /// Of gates and β.
    pub side_dtype: DType,
    /// Whether the starts lie on the device, where nobody checks them.
    pub unseen: bool,
}

/// What a call gave.
pub struct Given {
    pub out: Vec<f32>,
    pub state: Option<Vec<f32>>,
    pub normalizer: Option<Vec<f32>>,
}

fn count(shape: [u32; 4]) -> usize {
    shape.iter().map(|&n| n as usize).product()
}

impl Case {
    pub fn new(linear: LinearAttention, seed: u64) -> Self {
        Self::with_starts(linear, seed, None)
    }

    /// Draws all tensors; keys of the delta rules are about as long as 1, as those rules want them.
    pub fn with_starts(linear: LinearAttention, seed: u64, starts: Option<Vec<u32>>) -> Self {
        let mut random = Random::new(seed);
        let (shape, dtype) = (linear.shape, linear.dtype);
        let documents = starts.as_ref().map_or(1, |starts| starts.len() as u32 - 1);
        let mut key = random.normal(dtype, count(shape.key()));
        if linear.rule.is_delta() {
            let length = (shape.head_dim as f32).sqrt();
            let scaled: Vec<f32> = key.iter().map(|x| x / length).collect();
            key = dtype.decode(&dtype.encode(&scaled));
        }
        let mut unit = |n: usize, from: f32, to: f32| -> Vec<f32> {
            (0..n).map(|_| from + (to - from) * random.unit()).collect()
        };
        let decay = (linear.rule == Rule::Decay).then(|| unit(shape.key_heads as usize, 0.0, 0.3));
        let gate = linear.rule.is_gated().then(|| unit(count(linear.gate()), -0.5, 0.0));
        // Corrections by more than β|k|² = 2 grow without bound.
        let longest = match linear.feature_map {
            FeatureMap::Identity | FeatureMap::Silu => 1.0,
            _ => 2.0 * linear.features() as f32,
        };
        let beta = linear.rule.is_delta().then(|| unit(count(linear.beta()), 0.0, 1.0 / longest));
        let carried = linear.carry == Carry::InOut;
        let state = carried.then(|| unit(count(linear.state(documents)), -1.0, 1.0));
        let normalizer = (carried && linear.normalize.is_some())
            .then(|| unit(count(linear.normalizer(documents)), 1.0, 2.0));
        Self {
            query: random.normal(dtype, count(shape.query())),
            value: random.normal(dtype, count(shape.value())),
            key,
            decay,
            gate,
            beta,
            starts,
            state,
            normalizer,
            layout: Layout::Dense,
            side_dtype: DType::F32,
            unseen: false,
            linear,
        }
    }

    pub fn with_layout(mut self, layout: Layout) -> Self {
        if layout == Layout::Shared {
            let batch = self.linear.shape.batch as usize;
            for values in [&mut self.query, &mut self.key, &mut self.value] {
                let first = values[..values.len() / batch].to_vec();
                values.chunks_mut(first.len().max(1)).for_each(|part| part.copy_from_slice(&first));
            }
        }
        self.layout = layout;
        self
    }

    /// Rounds gates and β to a dtype of their own.
    pub fn with_side_dtype(mut self, dtype: DType) -> Self {
        for values in [&mut self.gate, &mut self.beta].into_iter().flatten() {
            *values = dtype.decode(&dtype.encode(values));
        }
        self.side_dtype = dtype;
        self
    }

    pub fn host(&self) -> HostInputs<'_> {
        let mut host = HostInputs::new(&self.query, &self.key, &self.value);
        host.decay = self.decay.as_deref();
        host.gate = self.gate.as_deref();
        host.beta = self.beta.as_deref();
        host.starts = self.starts.as_deref();
        host.state = self.state.as_deref();
        host.normalizer = self.normalizer.as_deref();
        host
    }

    pub fn run(&self, context: &Context, variant: Option<LinearVariant>) -> Result<Given, Error> {
        let (linear, shape) = (&self.linear, &self.linear.shape);
        let plan = pollster::block_on(async {
            match variant {
                Some(variant) => linear.plan_with(context, variant).await,
                None => linear.plan(context).await,
            }
        })?;
        let place = |shape, values: &[f32]| {
            Placed::new(context, linear.dtype, shape, self.layout, Some(values))
        };
        let side = |shape, values: &Option<Vec<f32>>| {
            let values = values.as_ref()?;
            Some(Placed::new(context, self.side_dtype, shape, Layout::Packed, Some(values)))
        };
        let query = place(shape.query(), &self.query);
        let key = place(shape.key(), &self.key);
        let value = place(shape.value(), &self.value);
        let gate = side(linear.gate(), &self.gate);
        let beta = side(linear.beta(), &self.beta);
        let mut inputs = LinearInputs::new(query.view(), key.view(), value.view());
        inputs.gate = gate.as_ref().map(Placed::view);
        inputs.beta = beta.as_ref().map(Placed::view);
        inputs.decay = self.decay.as_deref().map(Array::f32);
        let unseen = on_device(context, self.starts.as_deref().unwrap_or_default());
        inputs.starts = self.starts.as_deref().map(|starts| match self.unseen {
            true => Array::device(&unseen, 0, starts.len()),
            false => Array::u32(starts),
        });

        let layout = if self.layout == Layout::Shared { Layout::Dense } else { self.layout };
        let out = Placed::new(context, linear.dtype, shape.out(), layout, None);
        let documents = self.starts.as_ref().map_or(1, |starts| starts.len() as u32 - 1);
        let carried = |shape, layout, values: &Option<Vec<f32>>| {
            Placed::new(context, DType::F32, shape, layout, values.as_deref())
        };
        // Vectors of a state are four numbers, whatever the tensors are reached by.
        let state_layout = match layout {
            Layout::Apart(by) => Layout::Apart(by.min(4)),
            other => other,
        };
        let state = carried(linear.state(documents), state_layout, &self.state);
        let normalizer = carried(linear.normalizer(documents), Layout::Dense, &self.normalizer);
        let mut outputs = LinearOutputs::new(out.view());
        if linear.carry != Carry::None {
            outputs.state = Some(state.view());
            outputs.normalizer = linear.normalize.map(|_| normalizer.view());
        }
        let bound = plan.bind(&inputs, &outputs)?;
        pollster::block_on(context.run(&bound))?;
        Ok(Given {
            out: out.read(context),
            state: outputs.state.map(|_| state.read(context)),
            normalizer: outputs.normalizer.map(|_| normalizer.read(context)),
        })
    }

    /// Runs every variant and compares it with the reference; on matrix units, perhaps emulated ones,
    /// with the tensors rounded to what those take.
    pub fn check(&self, context: &Context) {
        let portable = [LinearVariant::Columns, LinearVariant::Chunked, LinearVariant::Recurrent];
        for variant in portable {
            if variant.supports(context.caps(), &self.linear).is_ok() {
                self.check_variant(context, variant);
            } else {
                assert_ne!(variant, LinearVariant::Recurrent, "it supports everything");
            }
        }
        self.check_matrices(emulating(context).unwrap_or(context));
    }

    pub fn check_matrices(&self, context: &Context) {
        let halves = self.in_halves();
        if LinearVariant::Coop.supports(context.caps(), &halves.linear).is_ok() {
            halves.check_variant(context, LinearVariant::Coop);
        }
    }

    pub fn check_variant(&self, context: &Context, variant: LinearVariant) {
        self.judge(&self.run(context, Some(variant)).expect("a supported variant runs"), variant);
    }

    /// Compares results with the reference.
    pub fn judge(&self, given: &Given, variant: LinearVariant) {
        let host = self.host();
        let reference = Reference::new(&self.linear, &host).expect("a valid case");
        let found =
            reference.check(&given.out, given.state.as_deref(), given.normalizer.as_deref());
        assert!(found.ok(), "{variant} {:?} {:?}: {found:?}", self.layout, self.linear);
    }

    /// The same in f16.
    pub fn in_halves(&self) -> Self {
        let mut halves = self.clone();
        if let Layout::Apart(_) = self.layout {
            // As far apart as before, which halves by themselves would not expect.
            halves.linear.access = Some(self.linear.alignment());
        }
        halves.linear.dtype = DType::F16;
        for values in [&mut halves.query, &mut halves.key, &mut halves.value] {
            *values = DType::F16.decode(&DType::F16.encode(values));
        }
        halves
    }

    /// Some of the tokens.
    pub fn part(&self, from: u32, to: u32) -> Self {
        let mut part = self.clone();
        let len = self.linear.shape.key_len;
        part.linear.shape.query_len = to - from;
        part.linear.shape.key_len = to - from;
        let cut = |values: &[f32]| {
            let Some(row) = values.len().checked_div((2 * len) as usize) else { return vec![] };
            let head = |head: &[f32]| head[from as usize * row..to as usize * row].to_vec();
            values.chunks(len as usize * row).flat_map(head).collect::<Vec<_>>()
        };
        part.query = cut(&self.query);
        part.key = cut(&self.key);
        part.value = cut(&self.value);
        part.gate = self.gate.as_deref().map(cut);
        part.beta = self.beta.as_deref().map(cut);
        part
    }
}
