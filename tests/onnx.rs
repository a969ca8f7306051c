//! Every case of the ONNX operator tests, through `wgpu_attention::onnx`.

mod common;

use std::collections::{BTreeMap, HashMap};

use common::{conformance, context};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use wgpu_attention::onnx::{
    self, AttentionAttributes, AttentionInputs, AttentionMask, LinearAttentionAttributes,
    LinearAttentionInputs, RotaryEmbeddingAttributes, RotaryEmbeddingInputs, Tensor,
    TensorScatterAttributes, TensorScatterInputs,
};
use wgpu_attention::{Context, DType, Error, wgpu};

/// A tensor of a case on the host.
#[derive(Clone, Debug)]
enum Host {
    Floats { dtype: DType, shape: Vec<u32>, numbers: Vec<f32> },
    Integers(Vec<i64>),
    Booleans { shape: Vec<u32>, values: Vec<bool> },
}

/// One case of an operator.
struct Case<'a> {
    json: &'a Value,
    name: &'a str,
    host: HashMap<String, Host>,
    /// The floating-point inputs on the device.
    device: HashMap<String, Tensor>,
}

/// What a case gave: the name of each output and its numbers.
type Got = Vec<(&'static str, Tensor)>;

impl<'a> Case<'a> {
    fn new(context: &Context, json: &'a Value, file: &SafeTensors<'_>) -> Self {
        let name = json["name"].as_str().expect("named");
        // The list gives the types of bfloat16 outputs alone: their cases are bfloat16 throughout.
        let is_bf16 = json["dtypes"].as_object().expect("types").values().any(|t| t == "bfloat16");
        let mut host = HashMap::new();
        for key in file.names() {
            let Some(short) = key.strip_prefix(&format!("{name}/")) else { continue };
            let view = file.tensor(key).expect("listed");
            let shape: Vec<u32> = view.shape().iter().map(|&size| size as u32).collect();
            let bytes = view.data();
            let floats = |dtype: DType, stored: DType| Host::Floats {
                dtype,
                shape: shape.clone(),
                numbers: stored.decode(bytes),
            };
            let tensor = match view.dtype() {
                Dtype::F32 if is_bf16 => floats(DType::BF16, DType::F32),
                Dtype::F32 => floats(DType::F32, DType::F32),
                Dtype::F16 => floats(DType::F16, DType::F16),
                Dtype::I64 => {
                    let number = |b: &[u8]| i64::from_le_bytes(b.try_into().expect("8 bytes"));
                    Host::Integers(bytes.chunks_exact(8).map(number).collect())
                }
                Dtype::U8 | Dtype::BOOL => {
                    let values = bytes.iter().map(|&byte| byte != 0).collect();
                    Host::Booleans { shape: shape.clone(), values }
                }
                other => panic!("{key} is of {other:?}"),
            };
            host.insert(short.to_owned(), tensor);
        }
        let upload = |(name, tensor): (&String, &Host)| match tensor {
            Host::Floats { dtype, shape, numbers } if name.starts_with("in.") => {
                let tensor = Tensor::upload(context, *dtype, shape, numbers).expect("uploads");
                Some((name.clone(), tensor))
            }
            _ => None,
        };
        let device = host.iter().filter_map(upload).collect();
        Self { json, name, host, device }
    }

    /// An input on the device.
    fn input(&self, name: &str) -> &Tensor {
        self.optional(name).unwrap_or_else(|| panic!("{} has no {name}", self.name))
    }

    fn optional(&self, name: &str) -> Option<&Tensor> {
        self.device.get(&format!("in.{name}"))
    }

    /// An input on the host.
    fn integers(&self, name: &str) -> Option<&[i64]> {
        match self.host.get(&format!("in.{name}")) {
            Some(Host::Integers(numbers)) => Some(numbers),
            _ => None,
        }
    }

    fn has_output(&self, name: &str) -> bool {
        self.host.contains_key(&format!("out.{name}"))
    }

    fn attribute(&self, name: &str) -> &Value {
        &self.json["attrs"][name]
    }

    fn number(&self, name: &str) -> Option<u32> {
        self.attribute(name).as_i64().and_then(|number| u32::try_from(number).ok())
    }

    /// Compares outputs with the expected ones, by ONNX's own tolerance.
    fn agrees(&self, context: &Context, got: &Got) -> Result<(), String> {
        let expected = self.host.keys().filter(|name| name.starts_with("out.")).count();
        if got.len() != expected {
            return Err(format!("{} outputs instead of {expected}", got.len()));
        }
        let bound = |name: &str| self.json[name].as_f64().expect("a tolerance");
        let (rtol, atol) = (bound("rtol"), bound("atol"));
        for (name, tensor) in got {
            let (shape, numbers) = self.expected(name);
            if tensor.shape != shape {
                return Err(format!("{name} of {:?} instead of {shape:?}", tensor.shape));
            }
            let got = pollster::block_on(async {
                match *name {
                    "qk_matmul_output" => tensor.read_logits(context).await,
                    _ => tensor.read(context).await,
                }
            });
            let got = got.expect("readable");
            for (index, (&got, &want)) in got.iter().zip(numbers).enumerate() {
                let error = f64::from((got - want).abs());
                let close = error <= atol + rtol * f64::from(want.abs());
                if got != want && !close {
                    return Err(format!("{name}[{index}] is {got} instead of {want}"));
                }
            }
        }
        Ok(())
    }

    fn expected(&self, name: &str) -> (&[u32], &[f32]) {
        match self.host.get(&format!("out.{name}")) {
            Some(Host::Floats { shape, numbers, .. }) => (shape, numbers),
            _ => panic!("{} expects no {name}", self.name),
        }
    }
}

/// The bits of every number.
fn bits(context: &Context, got: &Got) -> Vec<Vec<u32>> {
    let read = |tensor: &Tensor| pollster::block_on(tensor.read(context)).expect("readable");
    got.iter().map(|(_, tensor)| read(tensor).into_iter().map(f32::to_bits).collect()).collect()
}

/// Runs all cases of a file, on CPUs with checked shaders too, which give the same bits, and says of each
/// whether it passed; any failure fails the test.
fn check_all(
    suite: &str,
    json: &str,
    tensors: &[u8],
    run: impl Fn(&Context, &mut wgpu::CommandEncoder, &Case<'_>) -> Got,
    agrees: impl Fn(&Context, &Case<'_>, &Got) -> Result<(), String>,
) {
    let Some(context) = context() else { return };
    let checked = context.with_checked_shaders(true);
    let cases: Vec<Value> = serde_json::from_str(json).expect("valid JSON");
    let file = SafeTensors::deserialize(tensors).expect("valid safetensors");
    let (mut failures, mut counts) = (Vec::new(), BTreeMap::new());
    for json in &cases {
        let case = Case::new(context, json, &file);
        let mut encoder = context.device().create_command_encoder(&Default::default());
        let got = run(context, &mut encoder, &case);
        context.queue().submit([encoder.finish()]);
        // A GPU's compiler may join products and sums in other places once there are checks.
        if context.caps().is_cpu {
            let mut encoder = context.device().create_command_encoder(&Default::default());
            let guarded = run(&checked, &mut encoder, &case);
            context.queue().submit([encoder.finish()]);
            assert_eq!(bits(context, &got), bits(context, &guarded), "{}: with checks", case.name);
        }
        // The cases that are judged by a rule of their own are counted apart.
        let suite = match got[0].1.dtype {
            DType::BF16 => format!("{suite}, bfloat16"),
            _ => suite.to_owned(),
        };
        let (passed, total) = counts.entry(suite).or_insert((0, 0));
        *total += 1;
        match agrees(context, &case, &got) {
            Ok(()) => *passed += 1,
            Err(reason) => failures.push(format!("{}: {reason}", case.name)),
        }
    }
    for (suite, (passed, total)) in counts {
        conformance(context, &suite, passed, total);
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

fn attention(context: &Context, encoder: &mut wgpu::CommandEncoder, case: &Case<'_>) -> Got {
    let mut attributes = AttentionAttributes::default();
    attributes.q_num_heads = case.number("q_num_heads");
    attributes.kv_num_heads = case.number("kv_num_heads");
    attributes.scale = case.attribute("scale").as_f64().map(|scale| scale as f32);
    attributes.softcap = case.attribute("softcap").as_f64().unwrap_or(0.0) as f32;
    attributes.is_causal = case.attribute("is_causal") == 1;
    attributes.left_window_size = case.number("left_window_size");
    attributes.right_window_size = case.number("right_window_size");
    attributes.has_present = case.has_output("present_key");
    attributes.qk_matmul_output_mode = case
        .has_output("qk_matmul_output")
        .then(|| case.number("qk_matmul_output_mode").unwrap_or(0));

    let mut inputs = AttentionInputs::new(case.input("Q"), case.input("K"), case.input("V"));
    inputs.past = case.optional("past_key").zip(case.optional("past_value"));
    inputs.nonpad_kv_seqlen = case.integers("nonpad_kv_seqlen");
    inputs.mask = match case.host.get("in.attn_mask") {
        Some(Host::Booleans { shape, values }) => Some(AttentionMask::Bool { shape, keep: values }),
        _ => case.optional("attn_mask").map(AttentionMask::Float),
    };
    let outputs = onnx::attention(context, encoder, &attributes, &inputs);
    let outputs = pollster::block_on(outputs).unwrap_or_else(|e| panic!("{}: {e}", case.name));
    let optional = [
        ("present_key", outputs.present_key),
        ("present_value", outputs.present_value),
        ("qk_matmul_output", outputs.qk_matmul_output),
    ];
    let optional = optional.into_iter().filter_map(|(name, tensor)| {
        // With past keys there is always a present, and a case may not ask for it.
        case.has_output(name).then_some((name, tensor?))
    });
    std::iter::once(("Y", outputs.y)).chain(optional).collect()
}

#[test]
fn attention_cases() {
    let agrees = |context: &Context, case: &Case<'_>, got: &Got| match got[0].1.dtype {
        DType::BF16 => no_worse_than_expected(context, case, got),
        _ => case.agrees(context, got),
    };
    check_all(
        "ONNX Attention",
        include_str!("onnx/attention.json"),
        include_bytes!("onnx/attention.safetensors"),
        attention,
        agrees,
    );
}

/// ONNX's tolerance is finer than bfloat16 itself: there, ours may lie as far from the truth as what
/// ONNX expects does.
fn no_worse_than_expected(context: &Context, case: &Case<'_>, got: &Got) -> Result<(), String> {
    let (shape, expected) = case.expected("Y");
    let [(_, y)] = &got[..] else { return Err("more outputs than Y".into()) };
    if y.shape != shape {
        return Err(format!("Y of {:?} instead of {shape:?}", y.shape));
    }
    let truth = plain_attention(case);
    let got = pollster::block_on(y.read(context)).expect("readable");
    assert_eq!(truth.len(), got.len());
    let error = |numbers: &[f32]| {
        let errors = numbers.iter().zip(&truth).map(|(&x, want)| (f64::from(x) - want).abs());
        errors.fold(0.0, |most: f64, error| if error <= most { most } else { error })
    };
    let (ours, theirs) = (error(&got), error(expected));
    if ours <= theirs { Ok(()) } else { Err(format!("off by {ours}, ONNX by {theirs}")) }
}

/// ONNX's definition in f64, as far as the bfloat16 cases go: no groups, no past, a float mask of rank
/// 4 at most, which may be shorter than the keys.
fn plain_attention(case: &Case<'_>) -> Vec<f64> {
    let tensor = |name: &str| match &case.host[&format!("in.{name}")] {
        Host::Floats { shape, numbers, .. } => {
            (shape.iter().map(|&size| size as usize).collect::<Vec<_>>(), numbers)
        }
        other => panic!("{other:?}"),
    };
    let ((q_shape, q), (k_shape, k), (v_shape, v)) = (tensor("Q"), tensor("K"), tensor("V"));
    let packed = q_shape.len() == 3;
    let heads = case.number("q_num_heads").map_or(q_shape[1], |heads| heads as usize);
    let len = |shape: &[usize]| shape[shape.len() - 2];
    let dim = |shape: &[usize]| shape[shape.len() - 1] / if packed { heads } else { 1 };
    let at = |shape: &[usize], b: usize, h: usize, i: usize| {
        let row = if packed {
            (b * len(shape) + i) * heads + h
        } else {
            (b * heads + h) * len(shape) + i
        };
        row * dim(shape)
    };
    let lengths = case.integers("nonpad_kv_seqlen");
    let mask = case.optional("attn_mask").map(|_| tensor("attn_mask"));
    let mut out = vec![0.0; q_shape[0] * heads * len(&q_shape) * dim(&v_shape)];
    let out_shape = if packed {
        vec![q_shape[0], len(&q_shape), heads * dim(&v_shape)]
    } else {
        vec![q_shape[0], heads, len(&q_shape), dim(&v_shape)]
    };
    let query_len = len(&q_shape);
    for row in 0..q_shape[0] * heads * query_len {
        let (b, h, i) = (row / query_len / heads, row / query_len % heads, row % query_len);
        let length = lengths.map_or(len(&k_shape), |lengths| lengths[b] as usize);
        let offset = lengths.map_or(0, |lengths| lengths[b] - len(&q_shape) as i64);
        let row = &q[at(&q_shape, b, h, i)..][..dim(&q_shape)];
        let score = |j: usize| {
            let keys = &k[at(&k_shape, b, h, j)..][..dim(&k_shape)];
            let dot: f64 = row.iter().zip(keys).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            let later = case.attribute("is_causal") == 1 && j as i64 > i as i64 + offset;
            let bias = mask.as_ref().map_or(0.0, |(shape, numbers)| {
                let index = |axis: usize, i: usize| if shape[axis] == 1 { 0 } else { i };
                let line = (index(0, b) * shape[1] + index(1, h)) * shape[2] + index(2, i);
                match j < shape[3] {
                    true => f64::from(numbers[line * shape[3] + j]),
                    false => f64::NEG_INFINITY,
                }
            });
            if later || j >= length {
                f64::NEG_INFINITY
            } else {
                dot / (row.len() as f64).sqrt() + bias
            }
        };
        let weights: Vec<f64> = (0..len(&k_shape)).map(|j| score(j).exp()).collect();
        let total: f64 = weights.iter().sum();
        let start = at(&out_shape, b, h, i);
        for (j, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            let values = &v[at(&v_shape, b, h, j)..][..dim(&v_shape)];
            for (out, &value) in out[start..].iter_mut().zip(values) {
                *out += weight / total * f64::from(value);
            }
        }
    }
    out
}

#[test]
fn rotary_embedding_cases() {
    let run = |context: &Context, encoder: &mut wgpu::CommandEncoder, case: &Case<'_>| {
        let mut attributes = RotaryEmbeddingAttributes::default();
        attributes.interleaved = case.attribute("interleaved") == 1;
        attributes.num_heads = case.number("num_heads").filter(|&heads| heads != 0);
        attributes.rotary_embedding_dim = case.number("rotary_embedding_dim").unwrap_or(0);
        let input = |name| case.input(name);
        let mut inputs =
            RotaryEmbeddingInputs::new(input("input"), input("cos_cache"), input("sin_cache"));
        inputs.position_ids = case.integers("position_ids");
        let output = onnx::rotary_embedding(context, encoder, &attributes, &inputs);
        vec![("output", pollster::block_on(output).expect(case.name))]
    };
    check_all(
        "ONNX RotaryEmbedding",
        include_str!("onnx/rotary_embedding.json"),
        include_bytes!("onnx/rotary_embedding.safetensors"),
        run,
        |context, case, got| case.agrees(context, got),
    );
}

#[test]
fn tensor_scatter_cases() {
    let run = |context: &Context, encoder: &mut wgpu::CommandEncoder, case: &Case<'_>| {
        let mut attributes = TensorScatterAttributes::default();
        attributes.circular = case.attribute("mode") == "circular";
        attributes.axis = case.attribute("axis").as_i64().unwrap_or(-2);
        let mut inputs = TensorScatterInputs::new(case.input("past_cache"), case.input("update"));
        inputs.write_indices = case.integers("write_indices");
        let output = onnx::tensor_scatter(context, encoder, &attributes, &inputs);
        vec![("present_cache", pollster::block_on(output).expect(case.name))]
    };
    check_all(
        "ONNX TensorScatter",
        include_str!("onnx/tensor_scatter.json"),
        include_bytes!("onnx/tensor_scatter.safetensors"),
        run,
        |context, case, got| case.agrees(context, got),
    );
}

#[test]
fn linear_attention_cases() {
    let run = |context: &Context, encoder: &mut wgpu::CommandEncoder, case: &Case<'_>| {
        let mut attributes = LinearAttentionAttributes::default();
        attributes.q_num_heads = case.number("q_num_heads").expect("required");
        attributes.kv_num_heads = case.number("kv_num_heads").expect("required");
        attributes.scale = case.attribute("scale").as_f64().unwrap_or(0.0) as f32;
        attributes.update_rule = case.attribute("update_rule").as_str().unwrap_or("").to_owned();
        let input = |name| case.input(name);
        let mut inputs = LinearAttentionInputs::new(input("query"), input("key"), input("value"));
        inputs.past_state = case.optional("past_state");
        inputs.decay = case.optional("decay");
        inputs.beta = case.optional("beta");
        let outputs = onnx::linear_attention(context, encoder, &attributes, &inputs);
        let outputs = pollster::block_on(outputs).expect(case.name);
        vec![("output", outputs.output), ("present_state", outputs.present_state)]
    };
    check_all(
        "ONNX LinearAttention",
        include_str!("onnx/linear_attention.json"),
        include_bytes!("onnx/linear_attention.safetensors"),
        run,
        |context, case, got| case.agrees(context, got),
    );
}

/// A state in the type of the inputs goes on like the same numbers in f32.
#[test]
fn a_state_of_16_bits_is_taken_back() {
    let Some(context) = context() else { return };
    let mut random = common::Random::new(5);
    let mut draw = |dtype, shape: &[u32]| {
        let numbers = random.normal(dtype, shape.iter().product::<u32>() as usize);
        (Tensor::upload(context, dtype, shape, &numbers).expect("uploads"), numbers)
    };
    for dtype in [DType::F16, DType::BF16] {
        let [query, key, value] = [0; 3].map(|_| draw(dtype, &[2, 3, 24]).0);
        let (past, numbers) = draw(dtype, &[2, 3, 8, 8]);
        let wide = Tensor::upload(context, DType::F32, &past.shape, &numbers).expect("uploads");
        let run = |past_state| {
            let mut attributes = LinearAttentionAttributes::default();
            (attributes.q_num_heads, attributes.kv_num_heads) = (3, 3);
            attributes.update_rule = "linear".into();
            let mut inputs = LinearAttentionInputs::new(&query, &key, &value);
            inputs.past_state = past_state;
            let mut encoder = context.device().create_command_encoder(&Default::default());
            let outputs = onnx::linear_attention(context, &mut encoder, &attributes, &inputs);
            let outputs = pollster::block_on(outputs).expect("valid");
            context.queue().submit([encoder.finish()]);
            let read =
                |tensor: &Tensor| pollster::block_on(tensor.read(context)).expect("readable");
            (read(&outputs.output), read(&outputs.state))
        };
        assert_eq!(run(Some(&past)), run(Some(&wide)), "{dtype}");
        assert_ne!(run(Some(&past)), run(None), "{dtype}");
    }
}

/// A call of attention over four queries and six keys, two heads of eight.
fn call(
    context: &Context,
    change: impl Fn(&mut AttentionAttributes, &mut AttentionInputs<'_>),
) -> Result<onnx::AttentionOutputs, Error> {
    let tensor = |shape: &[u32]| {
        let count = shape.iter().product::<u32>() as usize;
        Tensor::upload(context, DType::F32, shape, &vec![0.5; count]).expect("uploads")
    };
    let (query, key, value) = (tensor(&[2, 4, 16]), tensor(&[2, 6, 16]), tensor(&[2, 6, 16]));
    let mut attributes = AttentionAttributes::default();
    (attributes.q_num_heads, attributes.kv_num_heads) = (Some(2), Some(2));
    let mut inputs = AttentionInputs::new(&query, &key, &value);
    change(&mut attributes, &mut inputs);
    let mut encoder = context.device().create_command_encoder(&Default::default());
    let outputs = onnx::attention(context, &mut encoder, &attributes, &inputs);
    let outputs = pollster::block_on(outputs)?;
    context.queue().submit([encoder.finish()]);
    Ok(outputs)
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let Some(context) = context() else { return };
    let refused = |change: fn(&mut AttentionAttributes, &mut AttentionInputs<'_>),
                   words: &[&str]| {
        let error = call(context, change).expect_err("refused").to_string();
        for word in words {
            assert!(error.contains(word), "no `{word}` in: {error}");
        }
    };
    refused(|a, _| a.q_num_heads = Some(3), &["`Q`", "q_num_heads = 3", "[2, 4, 16]"]);
    refused(|a, _| a.kv_num_heads = None, &["`K`", "rank 4", "[2, 6, 16]"]);
    refused(|a, _| a.kv_num_heads = Some(4), &["shape.key_heads", "divisor of the 2", "got 4"]);
    refused(|a, _| a.qk_matmul_output_mode = Some(4), &["qk_matmul_output_mode", "0 to 3", "4"]);
    refused(|a, _| a.softcap = -1.0, &["score.softcap", "above 0"]);
    refused(|_, i| i.nonpad_kv_seqlen = Some(&[6, 7]), &["`nonpad_kv_seqlen`", "0 to 6", "[6, 7]"]);
    refused(|_, i| i.nonpad_kv_seqlen = Some(&[6]), &["`nonpad_kv_seqlen`", "2 lengths", "[6]"]);
    let past = |_: &mut AttentionAttributes, i: &mut AttentionInputs<'_>| {
        i.past = Some((i.key, i.value));
    };
    refused(past, &["`past_key`", "[2, 2, any, 8]", "[2, 6, 16]"]);
    let mask = |shape, keep| Some(AttentionMask::Bool { shape, keep });
    for (shape, got) in [(&[5, 6][..], "[5, 6]"), (&[4, 7], "[4, 7]"), (&[], "[]")] {
        let change = |_: &mut AttentionAttributes, i: &mut AttentionInputs<'_>| {
            i.mask = mask(shape, &[]);
        };
        let error = call(context, change).expect_err("refused").to_string();
        assert!(error.contains("`attn_mask`") && error.contains(got), "{error}");
    }
    let short = |_: &mut AttentionAttributes, i: &mut AttentionInputs<'_>| {
        i.mask = mask(&[4, 6], &[true; 23]);
    };
    let error = call(context, short).expect_err("refused").to_string();
    assert!(error.contains("24 values") && error.contains("23 values"), "{error}");
}

/// A mask of no keys at all masks everything.
#[test]
fn an_empty_mask_leaves_zeros() {
    let Some(context) = context() else { return };
    for shape in [&[4, 0][..], &[1, 0], &[0]] {
        let change = |a: &mut AttentionAttributes, i: &mut AttentionInputs<'_>| {
            a.qk_matmul_output_mode = Some(3);
            i.mask = Some(AttentionMask::Bool { shape, keep: &[] });
        };
        let outputs = call(context, change).expect("runs");
        let read = |tensor: &Tensor| pollster::block_on(tensor.read(context)).expect("readable");
        assert_eq!(read(&outputs.y), [0.0; 128]);
        assert_eq!(read(outputs.qk_matmul_output.as_ref().expect("asked for")), [0.0; 96]);
    }
}
