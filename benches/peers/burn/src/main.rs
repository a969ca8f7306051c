//! burn's attention (cubek, autotuned) through wgpu on Vulkan, a peer of the family `flash`.
//!
//! Takes the cases as `wgpu-attention bench --peers` sends them: one JSON object on stdin; answers
//! with a line of JSON a time, or with a sentence why there is none.

use std::io::Read as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{DType, Device, DeviceKind, Distribution, Tensor};
use serde::Deserialize;
use serde_json::{Value, json};

const PROGRAM: &str = "burn 0.22.1 (cubek 0.3.1)";

/// As in the program: seconds of warm-up, and of waiting for a steady clock.
const WARM_UP: f64 = 1.0;
const PATIENCE: f64 = 5.0;
const STEADY: f64 = 0.02;

/// Waiting for the device after less than this would be most of what is measured.
const LEAST_MS: f64 = 5.0;

#[derive(Deserialize)]
struct Request {
    seconds: f64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    label: String,
    family: String,
    dtype: String,
    batch: usize,
    heads: usize,
    kv_heads: usize,
    len: usize,
    head_dim: usize,
    causal: bool,
}

impl Case {
    fn dtype(&self) -> Option<DType> {
        match self.dtype.as_str() {
            "f32" => Some(DType::F32),
            "f16" => Some(DType::F16),
            _ => None,
        }
    }
}

fn main() {
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text).map_err(|error| error.to_string());
    let request = read
        .and_then(|_| serde_json::from_str::<Request>(&text).map_err(|error| error.to_string()));
    let request = match request {
        Ok(request) => request,
        Err(error) => return skip(format!("expected cases as JSON on stdin: {error}")),
    };
    let opened = catch_unwind(|| {
        let device = Device::vulkan(DeviceKind::DefaultDevice);
        device.sync().map(|()| device)
    });
    let Ok(Ok(device)) = opened else { return skip("burn finds no device for Vulkan".into()) };
    for case in request.cases.iter().filter(|case| case.family == "flash") {
        let Some(dtype) = case.dtype().filter(|_| case.heads == case.kv_heads) else {
            skip(format!("{}: timed in f16 and f32 with heads of their own keys", case.label));
            continue;
        };
        // Its kernels panic where they do not fit the device.
        let run = AssertUnwindSafe(|| measure(&device, case, dtype, request.seconds));
        match catch_unwind(run) {
            Ok(line) => println!("{line}"),
            Err(_) => skip(format!("{}: burn panicked", case.label)),
        }
    }
}

fn skip(sentence: String) {
    println!("{}", json!({ "skipped": sentence }));
}

fn measure(device: &Device, case: &Case, dtype: DType, seconds: f64) -> Value {
    let shape = [case.batch, case.heads, case.len, case.head_dim];
    let [q, k, v] = [(); 3].map(|()| {
        Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), (device, dtype))
    });
    let run = || {
        let options = AttentionModuleOptions { is_causal: case.causal, ..Default::default() };
        attention(q.clone(), k.clone(), v.clone(), None, None, options)
    };
    let wait = || device.sync().expect("the device works");
    let max_error = error(case, [&q, &k, &v].map(first_head), &first_head(&run()));
    // So many runs and a wait, in milliseconds a run.
    let once = |runs: usize| {
        let started = Instant::now();
        for _ in 0..runs {
            drop(run());
        }
        wait();
        started.elapsed().as_secs_f64() * 1e3 / runs as f64
    };
    wait();
    let together = (LEAST_MS / once(1)).ceil().clamp(1.0, 100.0) as usize;
    let batch = |times: f64| {
        let mut times: Vec<f64> = (0..times as usize).map(|_| once(together)).collect();
        times.sort_by(f64::total_cmp);
        times
    };
    let started = Instant::now();
    let mut last = once(together);
    let steady = loop {
        let times = batch((100.0 / (last * together as f64)).clamp(3.0, 1000.0));
        let median = times[times.len() / 2];
        let steady = (median / last - 1.0).abs() <= STEADY;
        last = median;
        let elapsed = started.elapsed().as_secs_f64();
        if elapsed >= WARM_UP && (steady || elapsed >= PATIENCE) {
            break steady;
        }
    };
    let times = batch((1e3 * seconds / (last * together as f64)).clamp(10.0, 1000.0));
    json!({
        "label": case.label, "program": PROGRAM, "median_ms": times[times.len() / 2],
        "min_ms": times[0], "max_ms": times[times.len() - 1], "repetitions": times.len(),
        "steady": steady, "clock": "wall clock", "max_error": max_error,
    })
}

/// The numbers of the first head, `[len, head_dim]`.
fn first_head(tensor: &Tensor<4>) -> Vec<f64> {
    let data = tensor.clone().slice([0..1, 0..1]).into_data();
    data.iter::<f64>().collect()
}

/// The largest difference from f64 in some rows of the first head.
fn error(case: &Case, [q, k, v]: [Vec<f64>; 3], out: &[f64]) -> f64 {
    let (n, dim) = (case.len, case.head_dim);
    let row = |x: &[f64], at: usize| x[at * dim..(at + 1) * dim].to_vec();
    let mut largest = 0.0f64;
    for query in [0, n / 3, n / 2, n - 1] {
        let keys = if case.causal { query + 1 } else { n };
        let q = row(&q, query);
        let score = |key| {
            let products = q.iter().zip(row(&k, key)).map(|(a, b)| a * b);
            products.sum::<f64>() / (dim as f64).sqrt()
        };
        let scores: Vec<f64> = (0..keys).map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        for column in 0..dim {
            let wanted: f64 = (0..keys).map(|key| weights[key] * v[key * dim + column]).sum();
            largest = largest.max((out[query * dim + column] - wanted / sum).abs());
        }
    }
    largest
}
