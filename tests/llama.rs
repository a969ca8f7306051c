//! The case list of llama.cpp's test of flash attention (`test_flash_attn_ext` of its
//! `tests/test-backend-ops.cpp`), with data of our own: head dims from 40 to 576, groups of up to 32
//! heads, 113 to 1024 keys, 1 to 75 queries, masks, sinks, ALiBi, softcap and permuted layouts.
//!
//! Left out is what this library does not have: quantised keys and values. Its two precisions of sums are
//! one here, f32. Queries have the type of the keys, where llama.cpp's are f32. A mask is a bias of one
//! number a pair, some of them −∞; where there is ALiBi, llama.cpp's mask holds the distances, and ours is
//! added to them.

mod common;

use std::collections::HashSet;

use common::{Random, conformance, context};
use wgpu_attention::attention::reference::{HostInputs, Reference};
use wgpu_attention::wgpu::util::DeviceExt as _;
use wgpu_attention::{
    Array, Arrays, Attention, Broadcast, Context, DType, Inputs, Outputs, Shape, View, wgpu,
};

/// What llama.cpp asks of a result: the normalised mean square error.
const NMSE: f64 = 5e-4;

/// Rows of a case that are compared with the reference.
const ROWS: usize = 6;

/// One case, by llama.cpp's names.
#[derive(Clone, Copy, Debug)]
struct Case {
    head_dim: u32,
    value_dim: u32,
    mask: bool,
    sinks: bool,
    max_bias: f32,
    softcap: f32,
    key_heads: u32,
    /// Query heads to a key head, and batch entries that share the keys.
    repeats: (u32, u32),
    key_len: u32,
    query_len: u32,
    dtype: DType,
    /// Whether heads and tokens have changed places in memory.
    permuted: bool,
}

/// The conditions under which llama.cpp leaves a combination out, from the outermost loop inwards.
fn cases() -> Vec<Case> {
    let dims = [40, 64, 72, 80, 96, 128, 192, 256, 320, 512, 576];
    let value_dims = |head_dim| match head_dim {
        192 => vec![128, 192],
        320 => vec![256],
        576 => vec![512],
        other => vec![other],
    };
    let mut cases = Vec::new();
    for (head_dim, value_dim) in
        dims.into_iter().flat_map(|dim| value_dims(dim).into_iter().map(move |value| (dim, value)))
    {
        for (mask, sinks, max_bias, softcap) in modifiers(head_dim) {
            for (key_heads, repeats, key_len) in heads_and_keys(head_dim) {
                for query_len in [1, 3, 32, 75] {
                    for dtype in DType::ALL {
                        if dtype != DType::F16 && head_dim != 64 && head_dim != 72 {
                            continue;
                        }
                        let case = Case {
                            head_dim,
                            value_dim,
                            mask,
                            sinks,
                            max_bias,
                            softcap,
                            key_heads,
                            repeats,
                            key_len,
                            query_len,
                            dtype,
                            permuted: false,
                        };
                        cases.push(case);
                        if mask && max_bias == 0.0 && softcap == 0.0 && key_len == 512 {
                            cases.push(Case { permuted: true, ..case });
                        }
                    }
                }
            }
        }
    }
    cases
}

fn modifiers(head_dim: u32) -> Vec<(bool, bool, f32, f32)> {
    let mut modifiers = Vec::new();
    for (mask, max_bias) in [(true, 0.0), (true, 8.0), (false, 0.0)] {
        for sinks in [true, false] {
            let softcaps: &[f32] = if head_dim == 128 { &[0.0, 10.0] } else { &[0.0] };
            modifiers.extend(softcaps.iter().map(|&softcap| (mask, sinks, max_bias, softcap)));
        }
    }
    modifiers
}

fn heads_and_keys(head_dim: u32) -> Vec<(u32, (u32, u32), u32)> {
    let mut found = Vec::new();
    let few = matches!(head_dim, 320 | 576);
    for key_heads in if few { &[1, 4][..] } else { &[4] } {
        for entries in if head_dim > 64 { &[1][..] } else { &[1, 3] } {
            for group in [1, 4, 8, 12, 16, 20, 32] {
                let wanted = match group {
                    8 | 16 => head_dim == 192,
                    12 => head_dim == 128,
                    20 => *key_heads == 1 && head_dim == 576,
                    32 => *key_heads == 1 && head_dim == 320,
                    _ => true,
                };
                let lens = if group == 1 { &[113, 512, 1024][..] } else { &[512] };
                if wanted {
                    found.extend(lens.iter().map(|&len| (*key_heads, (group, *entries), len)));
                }
            }
        }
    }
    found
}

/// ALiBi's slopes as llama.cpp makes them from the largest bias.
fn slopes(heads: u32, max_bias: f32) -> Vec<f32> {
    let power = 1 << heads.ilog2();
    let slope = |head: u32| match head < power {
        true => (-f64::from(max_bias) / f64::from(power) * f64::from(head + 1)).exp2(),
        false => {
            let step = f64::from(2 * (head - power) + 1);
            (-f64::from(max_bias) / 2.0 / f64::from(power) * step).exp2()
        }
    };
    (0..heads).map(|head| slope(head) as f32).collect()
}

/// Numbers that all cases of a dtype take their tensors from, on the host and on the device.
struct Pool {
    dtype: DType,
    numbers: [Vec<f32>; 3],
    buffers: [wgpu::Buffer; 3],
    out: wgpu::Buffer,
    nan: wgpu::Buffer,
    bias: Vec<f32>,
    bias_buffer: wgpu::Buffer,
    sinks: Vec<f32>,
}

impl Pool {
    fn new(context: &Context, dtype: DType, cases: &[Case]) -> Self {
        let mut random = Random::new(dtype.size());
        let upload = |dtype: DType, numbers: &[f32]| {
            context.device().create_buffer_init(&wgpu::util::BufferInitDescriptor {
                label: None,
                contents: &dtype.encode(numbers),
                usage: wgpu::BufferUsages::STORAGE
                    | wgpu::BufferUsages::COPY_SRC
                    | wgpu::BufferUsages::COPY_DST,
            })
        };
        let largest = |shape: fn(&Shape) -> [u32; 4]| {
            let shapes = cases.iter().map(|case| shape(&case.shape()));
            shapes.map(|shape| shape.iter().product::<u32>()).max().unwrap_or(0) as usize
        };
        let numbers = [Shape::query, Shape::key, Shape::value]
            .map(|shape| random.normal(dtype, largest(shape)));
        let bias = random.bias(DType::F16, 3 * 75 * 1024);
        Self {
            dtype,
            buffers: [0, 1, 2].map(|index| upload(dtype, &numbers[index])),
            numbers,
            out: upload(dtype, &vec![f32::NAN; largest(Shape::out)]),
            nan: upload(dtype, &vec![f32::NAN; largest(Shape::out)]),
            bias_buffer: upload(DType::F16, &bias),
            bias,
            sinks: (0..64).map(|_| 20.0 * random.unit() - 10.0).collect(),
        }
    }
}

impl Case {
    fn shape(&self) -> Shape {
        let heads = self.key_heads * self.repeats.0;
        Shape::new(self.repeats.1, heads, self.query_len, self.head_dim)
            .with_key_value_heads(self.key_heads)
            .with_key_len(self.key_len)
            .with_value_dim(self.value_dim)
    }

    fn attention(&self) -> Attention {
        let mut attention = Attention::new(self.shape(), self.dtype);
        attention.score.softcap = (self.softcap > 0.0).then_some(self.softcap);
        attention.score.alibi = self.max_bias > 0.0;
        attention.score.sinks = self.sinks;
        attention.score.bias =
            self.mask.then_some((DType::F16, Broadcast { per_batch: true, per_head: false }));
        attention
    }

    /// The normalised mean square error, or why the case failed.
    fn run(&self, context: &Context, pool: &Pool) -> Result<f64, String> {
        let (shape, attention) = (self.shape(), self.attention());
        let view = |buffer, shape| match self.permuted {
            true => View::packed(buffer, self.dtype, shape),
            false => View::new(buffer, self.dtype, shape),
        };
        // All batch entries have the keys and values of the first.
        let shared = |buffer, shape| {
            let mut view: View<'_> = view(buffer, shape);
            view.strides[0] = 0;
            view
        };
        let [query, key, value] = &pool.buffers;
        let slopes = slopes(shape.query_heads, self.max_bias);
        let mut arrays = Arrays::default();
        arrays.alibi_slopes = attention.score.alibi.then(|| Array::f32(&slopes));
        let sinks = &pool.sinks[..shape.query_heads as usize];
        arrays.sinks = self.sinks.then(|| Array::f32(sinks));
        let mut inputs = Inputs::new(
            view(query, shape.query()),
            shared(key, shape.key()),
            shared(value, shape.value()),
        )
        .with_arrays(arrays);
        let bias_shape = [shape.batch, 1, shape.query_len, shape.key_len];
        inputs.bias = self.mask.then(|| View::new(&pool.bias_buffer, DType::F16, bias_shape));
        let out = view(&pool.out, shape.out());
        let mut encoder = context.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&pool.nan, 0, &pool.out, 0, pool.out.size());
        context.queue().submit([encoder.finish()]);

        let ran = pollster::block_on(async {
            let plan = attention.plan(context).await?;
            context.run(&plan.bind(&inputs, &Outputs::new(out))?).await?;
            context.read(out).await
        });
        let got = ran.map_err(|error| error.to_string())?;

        let host = |index: usize, tensor: [u32; 4], entries: u32| {
            self.contiguous(&pool.numbers[index], tensor, entries)
        };
        let batch = shape.batch;
        let query = host(0, shape.query(), batch);
        let (key, value) = (host(1, shape.key(), 1), host(2, shape.value(), 1));
        let mut host = HostInputs::new(&query, &key, &value).with_arrays(arrays);
        let pairs = bias_shape.iter().product::<u32>() as usize;
        host.bias = self.mask.then(|| &pool.bias[..pairs]);
        let reference = Reference::new(&attention, &host).map_err(|error| error.to_string())?;
        let (found, _) = reference.check_out(&reference.sample(ROWS), &got, None);
        let nmse = found.relative * found.relative;
        if found.ok && nmse <= NMSE { Ok(nmse) } else { Err(format!("{found:?}")) }
    }

    /// A tensor as contiguous `[batch, heads, len, dim]`, of which the pool has `entries` batch
    /// entries.
    fn contiguous(&self, pool: &[f32], shape: [u32; 4], entries: u32) -> Vec<f32> {
        let [batch, heads, len, dim] = shape.map(|size| size as usize);
        let mut numbers = Vec::with_capacity(batch * heads * len * dim);
        for entry in 0..batch {
            let entry = if entries == 1 { 0 } else { entry };
            for row in 0..heads * len {
                let (head, token) = (row / len, row % len);
                let place = if self.permuted { token * heads + head } else { row };
                let start = (entry * heads * len + place) * dim;
                numbers.extend_from_slice(&pool[start..start + dim]);
            }
        }
        numbers
    }
}

/// The selection leaves out no value of any parameter beside any head dim.
#[test]
fn the_selection_has_every_pair_with_the_head_dims() {
    let all = cases();
    let selected: Vec<Case> = all.iter().copied().step_by(STRIDE).collect();
    let parameters: [fn(&Case) -> String; 10] = [
        |case| format!("mask {}", case.mask),
        |case| format!("sinks {}", case.sinks),
        |case| format!("max_bias {}", case.max_bias),
        |case| format!("softcap {}", case.softcap),
        |case| format!("value_dim {}", case.value_dim),
        |case| format!("repeats {:?}", case.repeats),
        |case| format!("key_len {}", case.key_len),
        |case| format!("query_len {}", case.query_len),
        |case| format!("dtype {}", case.dtype),
        |case| format!("key_heads {}", case.key_heads),
    ];
    for parameter in parameters {
        let pairs = |cases: &[Case]| -> HashSet<(u32, String)> {
            cases.iter().map(|case| (case.head_dim, parameter(case))).collect()
        };
        assert_eq!(pairs(&selected), pairs(&all));
    }
    assert!(selected.iter().any(|case| case.permuted));
}

/// Says that all cases are to be run on a CPU too, where they take half an hour.
const ALL_CASES: &str = "WGPU_ATTENTION_ALL_CASES";

/// Which cases a CPU runs unless all are asked for: one in this many. It has no factor in common with
/// the loops above, so that every value of every parameter comes up.
const STRIDE: usize = 13;

#[test]
fn flash_attention_cases() {
    let Some(context) = context() else { return };
    let mut cases = cases();
    assert_eq!(cases.len(), 2808);
    let mut suite = "llama.cpp flash attention";
    if context.caps().is_cpu && std::env::var_os(ALL_CASES).is_none() {
        suite = "llama.cpp flash attention, one case in 13";
        cases = cases.into_iter().step_by(STRIDE).collect();
    }
    let pools = DType::ALL.map(|dtype| {
        let own: Vec<Case> = cases.iter().copied().filter(|case| case.dtype == dtype).collect();
        Pool::new(context, dtype, &own)
    });
    let mut failures = Vec::new();
    let mut worst = 0.0f64;
    for case in &cases {
        let pool = pools.iter().find(|pool| pool.dtype == case.dtype).expect("of every dtype");
        match case.run(context, pool) {
            Ok(nmse) => worst = worst.max(nmse),
            Err(reason) => failures.push(format!("{case:?}: {reason}")),
        }
    }
    eprintln!("{} pipelines, worst NMSE {worst:.1e}", context.pipelines());
    conformance(context, suite, cases.len() - failures.len(), cases.len());
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}
