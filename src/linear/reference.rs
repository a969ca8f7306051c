//! The judge: linear attention on the host in f64, by plain loops, as a recurrence and as the
//! quadratic form; and the recurrence once more in f32, the yardstick of the tolerance.

use super::check::{check_arrays, check_gates};
use super::{FeatureMap, LinearAttention, Rule};
use crate::error::Error;
use crate::launch::Array;
use crate::reference::real::{Real, check_len, vector};
use crate::reference::tolerance::{Comparison, Part, Verdict, compare_parts};
use crate::tensor::DType;

/// The tensors of one call on the host, contiguous `[batch, heads, len, dim]`.
///
/// The numbers are held as f32 and already rounded to the dtype of the configuration.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct HostInputs<'a> {
    /// `[batch, query_heads, len, head_dim]`.
    pub query: &'a [f32],
    /// `[batch, key_heads, len, head_dim]`.
    pub key: &'a [f32],
    /// `[batch, key_heads, len, value_dim]`.
    pub value: &'a [f32],
    /// `[key_heads]`: the slopes of [`Rule::Decay`], finite and not negative; none is no decay.
    pub decay: Option<&'a [f32]>,
    /// `[batch, key_heads, len, 1 | head_dim]`, where the rule is gated: at most 0.
    pub gate: Option<&'a [f32]>,
    /// `[batch, key_heads, len]`, for the delta rules.
    pub beta: Option<&'a [f32]>,
    /// `[documents + 1]`, where there are documents: from 0, ascending, to the length.
    pub starts: Option<&'a [u32]>,
    /// `[batch · documents, key_heads, features, value_dim]`: the state to begin with; none is 0.
    pub state: Option<&'a [f32]>,
    /// `[batch · documents, key_heads, features]`: the normaliser's state; none is 0.
    pub normalizer: Option<&'a [f32]>,
}

impl<'a> HostInputs<'a> {
    /// Queries, keys and values alone.
    pub const fn new(query: &'a [f32], key: &'a [f32], value: &'a [f32]) -> Self {
        Self {
            query,
            key,
            value,
            decay: None,
            gate: None,
            beta: None,
            starts: None,
            state: None,
            normalizer: None,
        }
    }
}

/// What linear attention gives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Results {
    /// `[batch, query_heads, len, value_dim]`.
    pub out: Vec<f64>,
    /// `[batch · documents, key_heads, features, value_dim]`: the states at the end.
    pub state: Vec<f64>,
    /// `[batch · documents, key_heads, features]`; empty without a normaliser.
    pub normalizer: Vec<f64>,
    /// The largest `scale · Σ_d |q_d| Σ_j decay |k_jd| |v_j|` of an element of `out`, over the
    /// denominator: what rounding errors of `out` scale with.
    pub magnitude: f64,
    /// The same for the state: the largest `Σ_j decay |k_j| |v_j|`.
    pub state_magnitude: f64,
    /// The same for the normaliser.
    pub normalizer_magnitude: f64,
    /// What each row of `out` is held against.
    rows: Vec<RowSize>,
}

/// How large the sums of a row of the output are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct RowSize {
    /// The largest `scale · Σ_d |q_d| Σ_j decay |k_jd| |v_j|` of an element, over the denominator.
    size: f64,
    /// That, times how much larger the denominator's rounding errors are than the denominator.
    magnitude: f64,
}

/// What [`Reference::check`] found.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Checked {
    /// The output.
    pub out: Comparison,
    /// The state, where it was given.
    pub state: Option<Comparison>,
    /// The normaliser, where it was given.
    pub normalizer: Option<Comparison>,
}

impl Checked {
    /// Whether all could be judged and is within its bound.
    pub fn ok(&self) -> bool {
        self.verdict() == Verdict::Ok
    }

    /// The worst of the verdicts.
    pub fn verdict(&self) -> Verdict {
        let others = [self.state, self.normalizer].into_iter().flatten();
        others.fold(self.out.verdict(), |worst, found| worst.max(found.verdict()))
    }
}

/// Linear attention computed token by token on the host.
///
/// ```
/// use wgpu_attention::linear::reference::{HostInputs, Reference};
/// use wgpu_attention::{DType, LinearAttention, Shape};
/// let linear = LinearAttention::new(Shape::new(1, 1, 2, 1), DType::F32);
/// let inputs = HostInputs::new(&[1.0, 2.0], &[3.0, 4.0], &[5.0, 6.0]);
/// let results = Reference::new(&linear, &inputs)?.recurrence();
/// assert_eq!(results.out, [15.0, 2.0 * (15.0 + 24.0)]);
/// assert_eq!(results.state, [39.0]);
/// # Ok::<(), wgpu_attention::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Reference<'a> {
    linear: &'a LinearAttention,
    inputs: &'a HostInputs<'a>,
    documents: u32,
}

/// A sequence with a state of its own, and one of its query heads or, for the state, key heads.
#[derive(Clone, Copy)]
struct Sequence {
    batch: u32,
    document: u32,
    head: u32,
    begin: u32,
    end: u32,
}

/// A state with everything that goes along with it; `R` is the precision.
struct State<R> {
    /// `[features, value_dim]`.
    numbers: Vec<R>,
    /// The same sums over absolute values, for the magnitude.
    sizes: Vec<f64>,
    /// `[features]`.
    normalizer: Vec<R>,
    normalizer_sizes: Vec<f64>,
}

impl<'a> Reference<'a> {
    /// Checks the configuration and all tensors and arrays, their values too.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a configuration without meaning; [`Error::Tensor`] for a tensor or
    /// array that is missing, not wanted, of the wrong length, or with values out of range.
    pub fn new(linear: &'a LinearAttention, inputs: &'a HostInputs<'a>) -> Result<Self, Error> {
        linear.validate()?;
        let documents =
            check_arrays(linear, inputs.decay.map(Array::f32), inputs.starts.map(Array::u32))?;
        let shape = &linear.shape;
        check_len("query", inputs.query, &shape.query())?;
        check_len("key", inputs.key, &shape.key())?;
        check_len("value", inputs.value, &shape.value())?;
        let optional = |name: &str, values: Option<&[f32]>, wanted: bool, sizes: &[u32]| match (
            values, wanted,
        ) {
            (Some(_), false) => {
                Err(Error::tensor(name, "nothing: the configuration does not use it", "a tensor"))
            }
            (None, false) => Ok(()),
            (values, true) => check_len(name, values.unwrap_or_default(), sizes),
        };
        optional("gate", inputs.gate, linear.rule.is_gated(), &linear.gate())?;
        optional("beta", inputs.beta, linear.rule.is_delta(), &linear.beta())?;
        let state = inputs.state.is_some();
        optional("state", inputs.state, state, &linear.state(documents))?;
        let normalizer = inputs.normalizer.is_some() && linear.normalize.is_some();
        optional("normalizer", inputs.normalizer, normalizer, &linear.normalizer(documents))?;
        check_gates(inputs.gate.unwrap_or_default())?;
        Ok(Self { linear, inputs, documents })
    }

    /// The recurrence in f64.
    pub fn recurrence(&self) -> Results {
        self.run::<f64>()
    }

    /// The recurrence in f32, `out` rounded to the dtype: the plain form in the precision of the
    /// kernels.
    pub fn recurrence_eager(&self) -> Results {
        let mut results = self.run::<f32>();
        let dtype = self.linear.dtype;
        let out: Vec<f32> = results.out.iter().map(|&x| x as f32).collect();
        results.out = dtype.decode(&dtype.encode(&out)).into_iter().map(f64::from).collect();
        results
    }

    /// The output in f64 by the quadratic form, `out_i = Σ_j w_ij v_j` and what the state to begin
    /// with adds. `None` for the delta rules, which have no such form.
    pub fn quadratic(&self) -> Option<Vec<f64>> {
        if self.linear.rule.is_delta() {
            return None;
        }
        let shape = &self.linear.shape;
        let mut out =
            vec![0.0; self.inputs.query.len() / shape.head_dim as usize * shape.value_dim as usize];
        for sequence in self.sequences(shape.query_heads) {
            for token in sequence.begin..sequence.end {
                self.quadratic_row(
                    sequence,
                    token,
                    row_mut(&mut out, shape.out(), sequence, token),
                );
            }
        }
        Some(out)
    }

    /// Judges results by the tolerance rule of [`tolerance`](crate::attention::tolerance). Where the
    /// recurrence gives no finite number, any that is none will do. A row of the output, or a whole state,
    /// is unjudged where arithmetic in f32 may err by more than its sums of absolute values.
    pub fn check(&self, out: &[f32], state: Option<&[f32]>, normalizer: Option<&[f32]>) -> Checked {
        let (mut want, eager) = (self.recurrence(), self.recurrence_eager());
        // Of −∞ the rule thinks that it stands for nothing.
        for numbers in [&mut want.out, &mut want.state, &mut want.normalizer] {
            numbers.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = f64::NAN);
        }
        let most = f64::INFINITY;
        let len = self.linear.shape.value_dim as usize;
        let row = |&RowSize { size, magnitude }: &RowSize| Part { len, magnitude, size, most };
        let rows: Vec<_> = want.rows.iter().map(row).collect();
        let whole = |got: &[f32], want: &[f64], eager: &[f64], size| {
            let part = Part { len: want.len(), magnitude: size, size, most };
            compare_parts(got, (want, eager), DType::F32, &[part])
        };
        Checked {
            out: compare_parts(out, (&want.out, &eager.out), self.linear.dtype, &rows),
            state: state.map(|got| whole(got, &want.state, &eager.state, want.state_magnitude)),
            normalizer: normalizer.map(|got| {
                whole(got, &want.normalizer, &eager.normalizer, want.normalizer_magnitude)
            }),
        }
    }

    /// All sequences, with `heads` heads each.
    fn sequences(&self, heads: u32) -> impl Iterator<Item = Sequence> + use<> {
        let (batches, documents, len) =
            (self.linear.shape.batch, self.documents, self.linear.shape.key_len);
        let starts: Vec<u32> = match self.inputs.starts {
            Some(starts) => starts.to_vec(),
            None => vec![0, len],
        };
        (0..batches * documents * heads).map(move |index| {
            let (entry, head) = (index / heads, index % heads);
            let document = entry % documents;
            Sequence {
                batch: entry / documents,
                document,
                head,
                begin: starts[document as usize],
                end: starts[document as usize + 1],
            }
        })
    }

    fn run<R: Real>(&self) -> Results {
        let shape = &self.linear.shape;
        let rows = self.inputs.query.len() / shape.head_dim as usize;
        let mut results = Results {
            out: vec![0.0; rows * shape.value_dim as usize],
            state: Vec::new(),
            normalizer: Vec::new(),
            magnitude: 0.0,
            state_magnitude: 0.0,
            normalizer_magnitude: 0.0,
            rows: vec![RowSize::default(); rows],
        };
        for sequence in self.sequences(shape.key_heads) {
            let mut state = self.initial::<R>(sequence);
            for token in sequence.begin..sequence.end {
                self.update(sequence, token, &mut state);
                let group = shape.query_heads / shape.key_heads;
                for head in sequence.head * group..(sequence.head + 1) * group {
                    let query = Sequence { head, ..sequence };
                    let row = row_mut(&mut results.out, shape.out(), query, token);
                    let size = self.answer(query, token, &state, row);
                    results.magnitude = results.magnitude.max(size.magnitude);
                    row_mut(&mut results.rows, shape.lse(), query, token)[0] = size;
                }
            }
            let of_state = largest_finite(&state.sizes);
            results.state_magnitude = results.state_magnitude.max(of_state);
            let of_normalizer = largest_finite(&state.normalizer_sizes);
            results.normalizer_magnitude = results.normalizer_magnitude.max(of_normalizer);
            results.state.extend(state.numbers.into_iter().map(Into::<f64>::into));
            if self.linear.normalize.is_some() {
                results.normalizer.extend(state.normalizer.into_iter().map(Into::<f64>::into));
            }
        }
        results
    }

    /// The state that a sequence's key head begins with.
    fn initial<R: Real>(&self, sequence: Sequence) -> State<R> {
        let shape = &self.linear.shape;
        let rows = self.linear.features() as usize;
        let head =
            (sequence.batch * self.documents + sequence.document) * shape.key_heads + sequence.head;
        let part = |tensor: Option<&[f32]>, size: usize| match tensor {
            Some(tensor) => tensor[head as usize * size..][..size].to_vec(),
            None => vec![0.0; size],
        };
        let numbers = part(self.inputs.state, rows * shape.value_dim as usize);
        let normalizer = part(self.inputs.normalizer, rows);
        let real = |numbers: &[f32]| numbers.iter().map(|&x| R::real(x.into())).collect();
        let sizes = |numbers: &[f32]| numbers.iter().map(|&x| f64::from(x.abs())).collect();
        State {
            sizes: sizes(&numbers),
            numbers: real(&numbers),
            normalizer_sizes: sizes(&normalizer),
            normalizer: real(&normalizer),
        }
    }

    /// Takes one token into the state of its key head.
    fn update<R: Real>(&self, sequence: Sequence, token: u32, state: &mut State<R>) {
        let shape = &self.linear.shape;
        let at = [sequence.batch, sequence.head, token];
        let key = self.features::<R>(vector(self.inputs.key, shape.key(), at));
        let columns = shape.value_dim as usize;
        for (row, _) in key.iter().enumerate() {
            let decay = R::real(self.log_decay(sequence, token, row)).exp();
            state.normalizer[row] = decay * state.normalizer[row];
            state.normalizer_sizes[row] *= decay.into();
            for column in 0..columns {
                let at = row * columns + column;
                state.numbers[at] = decay * state.numbers[at];
                state.sizes[at] *= decay.into();
            }
        }
        let value = vector(self.inputs.value, shape.value(), at);
        for (column, &value) in value.iter().enumerate() {
            let mut value = R::real(value.into());
            let mut size: f64 = value.into().abs();
            if self.linear.rule.is_delta() {
                let beta = vector(self.inputs.beta.unwrap_or_default(), self.linear.beta(), at)[0];
                let mut answer = R::ZERO;
                for (row, &k) in key.iter().enumerate() {
                    let s = state.numbers[row * columns + column];
                    answer += s * k;
                    size += (s * k).into().abs();
                }
                value = R::real(beta.into()) * (value - answer);
                size *= f64::from(beta.abs());
            }
            for (row, &k) in key.iter().enumerate() {
                state.numbers[row * columns + column] += k * value;
                state.sizes[row * columns + column] += k.into().abs() * size;
            }
        }
        for (row, &k) in key.iter().enumerate() {
            state.normalizer[row] += k;
            state.normalizer_sizes[row] += k.into().abs();
        }
    }

    /// Asks the state one query: writes a row of the output and says how large its sums are.
    fn answer<R: Real>(
        &self,
        sequence: Sequence,
        token: u32,
        state: &State<R>,
        out: &mut [f64],
    ) -> RowSize {
        let at = [sequence.batch, sequence.head, token];
        let query = self.features::<R>(vector(self.inputs.query, self.linear.shape.query(), at));
        let scale = R::real(self.linear.scale.into());
        let mut denominator = R::ONE;
        // How much larger the denominator's rounding errors are than the denominator.
        let mut unsure: f64 = 1.0;
        if let Some(epsilon) = self.linear.normalize {
            let mut total = R::ZERO;
            let mut size = 0.0;
            for (row, &q) in query.iter().enumerate() {
                total += q * state.normalizer[row];
                size += q.into().abs() * state.normalizer_sizes[row];
            }
            denominator = scale * total + R::real(epsilon.into());
            unsure += (scale.into() * size / denominator.into()).abs();
        }
        let mut found = RowSize::default();
        for (column, out) in out.iter_mut().enumerate() {
            let mut sum = R::ZERO;
            let mut size = 0.0;
            for (row, &q) in query.iter().enumerate() {
                let at = row * self.linear.shape.value_dim as usize + column;
                sum += q * state.numbers[at];
                size += q.into().abs() * state.sizes[at];
            }
            *out = (scale * sum / denominator).into();
            let size = (scale.into() * size / denominator.into()).abs();
            found.size = largest_finite(&[found.size, size]);
            found.magnitude = largest_finite(&[found.magnitude, size * unsure]);
        }
        found
    }

    /// One row of the quadratic form.
    fn quadratic_row(&self, sequence: Sequence, token: u32, out: &mut [f64]) {
        let shape = &self.linear.shape;
        let key_head = shape.key_head(sequence.head);
        let keys = Sequence { head: key_head, ..sequence };
        let at = [sequence.batch, sequence.head, token];
        let query = self.features::<f64>(vector(self.inputs.query, shape.query(), at));
        let mut total = 0.0;
        // The log of what is left of each row of the state, walking back from the query.
        let mut decay = vec![0.0; query.len()];
        for j in (sequence.begin..=token).rev() {
            let at = [sequence.batch, key_head, j];
            let key = self.features::<f64>(vector(self.inputs.key, shape.key(), at));
            let products = query.iter().zip(&key).zip(&decay);
            let weight: f64 = products.map(|((q, k), decay)| q * k * decay.exp()).sum();
            total += weight;
            let value = vector(self.inputs.value, shape.value(), at);
            for (out, &v) in out.iter_mut().zip(value) {
                *out += weight * f64::from(v);
            }
            for (row, decay) in decay.iter_mut().enumerate() {
                *decay += self.log_decay(keys, j, row);
            }
        }
        let begin = self.initial::<f64>(keys);
        for (row, q) in query.iter().enumerate() {
            let q = q * decay[row].exp();
            total += q * begin.normalizer[row];
            for (column, out) in out.iter_mut().enumerate() {
                *out += q * begin.numbers[row * shape.value_dim as usize + column];
            }
        }
        let scale = f64::from(self.linear.scale);
        let denominator = match self.linear.normalize {
            Some(epsilon) => scale * total + f64::from(epsilon),
            None => 1.0,
        };
        out.iter_mut().for_each(|out| *out *= scale / denominator);
    }

    /// The logarithm of what a token leaves of a row of the state.
    fn log_decay(&self, sequence: Sequence, token: u32, row: usize) -> f64 {
        let at = [sequence.batch, sequence.head, token];
        match (self.linear.rule, self.inputs.decay, self.inputs.gate) {
            (Rule::Decay, Some(slopes), _) => -f64::from(slopes[sequence.head as usize]),
            (_, _, Some(gate)) => {
                let gates = vector(gate, self.linear.gate(), at);
                f64::from(gates[row % gates.len()])
            }
            _ => 0.0,
        }
    }

    /// The features of a query or key.
    fn features<R: Real>(&self, vector: &[f32]) -> Vec<R> {
        let numbers: Vec<R> = vector.iter().map(|&x| R::real(x.into())).collect();
        match self.linear.feature_map {
            FeatureMap::Identity => numbers,
            FeatureMap::Silu => numbers.into_iter().map(|x| x / (R::ONE + (-x).exp())).collect(),
            FeatureMap::Elu1 => numbers
                .into_iter()
                .map(|x| if x > R::ZERO { x + R::ONE } else { x.exp() })
                .collect(),
            FeatureMap::Taylor2 => taylor(&numbers),
        }
    }
}

/// See [`FeatureMap::Taylor2`].
fn taylor<R: Real>(x: &[R]) -> Vec<R> {
    let dim = x.len() as f64;
    let mut features = vec![R::ONE];
    features.extend(x.iter().map(|&x| x * R::real(dim.powf(-0.25))));
    for (a, &first) in x.iter().enumerate() {
        for (b, &second) in x.iter().enumerate().skip(a) {
            let factor = if a == b { (2.0 * dim).sqrt() } else { dim.sqrt() };
            features.push(first * second * R::real(1.0 / factor));
        }
    }
    features
}

/// The largest of some sizes: those of elements that are no finite numbers bound no other's error.
fn largest_finite(sizes: &[f64]) -> f64 {
    sizes.iter().copied().filter(|size| size.is_finite()).fold(0.0, f64::max)
}

/// A row of a contiguous output.
fn row_mut<T>(tensor: &mut [T], shape: [u32; 4], sequence: Sequence, token: u32) -> &mut [T] {
    let [_, heads, len, dim] = shape.map(|size| size as usize);
    let row = (sequence.batch as usize * heads + sequence.head as usize) * len + token as usize;
    &mut tensor[row * dim..][..dim]
}
