// merge.merge: joins the results of attention over parts of the keys. One invocation makes four
// neighbouring elements of one row; the weights of the row's parts are found by each of them anew,
// from numbers that the cache holds.

// Twin of `MergeParams` in src/params.rs.
struct Params {
    // strides of batch, head and row, then the offset; part p of batch entry b is batch p · batch + b
    parts: vec4<u32>,
    lse: vec4<u32>,
    weights: vec4<u32>,
    out: vec4<u32>,
    out_lse: vec4<u32>,
    count: u32,
    batch: u32,
    heads: u32,
    len: u32,
    dim: u32,
    has_logits: u32,
    has_log_weights: u32,
    has_lse: u32,
    nan: u32,
    padding_0: u32,
    padding_1: u32,
    padding_2: u32,
}

const BY_LSE: u32 = 0u;
const BY_WEIGHTS: u32 = 1u;

const MASKED: f32 = -1e30;
// The bits of 5e29: negative numbers of at least this size mean −∞.
const EMPTY_BITS: u32 = 0x70c9f2cau;
const INFINITY_BITS: u32 = 0x7f800000u;

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> parts: array<Word>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
// Logits that replace LSEs, or weights.
@group(0) @binding(3) var<storage, read> weights: array<f32>;
@group(0) @binding(4) var<storage, read> log_weights: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<OutWord>;
@group(0) @binding(6) var<storage, read_write> out_lse: array<f32>;

struct Place {
    batch: u32,
    head: u32,
    row: u32,
}

// Where an element of a tensor lies, for part `part` of a row.
fn element(strides: vec4<u32>, place: Place, part: u32) -> u32 {
    return strides.w + (part * params.batch + place.batch) * strides.x + place.head * strides.y
        + place.row * strides.z;
}

fn is_empty(bits: u32) -> bool {
    return (bits >> 31u) == 1u && (bits & 0x7fffffffu) >= EMPTY_BITS && (bits & 0x7fffffffu) <= INFINITY_BITS;
}

// The logarithm of a part's weight; MASKED for an empty part. A part without a logit (NaN) keeps
// its LSE.
fn log_weight(place: Place, part: u32) -> f32 {
    var bits = bitcast<u32>(lse[element(params.lse, place, part)]);
    if (is_empty(bits)) {
        return MASKED;
    }
    if (params.has_logits != 0u) {
        let logit = bitcast<u32>(weights[element(params.weights, place, part)]);
        if (is_empty(logit)) {
            return MASKED;
        }
        bits = select(logit, bits, (logit & 0x7fffffffu) > INFINITY_BITS);
    }
    var weight = bitcast<f32>(bits);
    if (params.has_log_weights != 0u) {
        let own = bitcast<u32>(log_weights[part]);
        if (is_empty(own)) {
            return MASKED;
        }
        weight += bitcast<f32>(own);
    }
    return weight;
}

fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & INFINITY_BITS) != INFINITY_BITS;
}

fn merge_by_lse(place: Place, dim: u32) -> vec4<f32> {
    var maximum = MASKED;
    var poisoned = false;
    for (var part = 0u; part < params.count; part++) {
        let weight = log_weight(place, part);
        maximum = max(maximum, weight);
        poisoned = poisoned || !is_finite(weight);
    }
    var total = 0.0;
    var sum = vec4(0.0);
    for (var part = 0u; part < params.count; part++) {
        let weight = log_weight(place, part);
        // What an empty part holds counts for nothing, whatever it is.
        if (weight != MASKED) {
            let factor = exp(weight - maximum);
            total += factor;
            sum += factor * load_part(element(params.parts, place, part) + dim, params.dim - dim);
        }
    }
    let nan = bitcast<f32>(params.nan);
    if (dim == 0u && params.has_lse != 0u) {
        let merged = select(MASKED, maximum + log(max(total, 1.0)), total > 0.0);
        out_lse[element(params.out_lse, place, 0u)] = select(merged, nan, poisoned);
    }
    let factor = select(0.0, 1.0 / total, total > 0.0);
    return sum * select(factor, nan, poisoned);
}

fn add(place: Place, dim: u32) -> vec4<f32> {
    var sum = vec4(0.0);
    for (var part = 0u; part < params.count; part++) {
        var x = load_part(element(params.parts, place, part) + dim, params.dim - dim);
        if (RULE == BY_WEIGHTS) {
            let weight = weights[element(params.weights, place, part)];
            // A weight of 0 drops the part, whatever it holds.
            x = select(weight * x, vec4(0.0), weight == 0.0);
        }
        sum += x;
    }
    return sum;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_number(group, groups) * THREADS + thread;
    let row = index / DIM_VECS;
    let head_and_batch = row / params.len;
    let place = Place(head_and_batch / params.heads, head_and_batch % params.heads, row % params.len);
    if (place.batch >= params.batch) {
        return;
    }
    let dim = 4u * (index % DIM_VECS);
    var x: vec4<f32>;
    if (RULE == BY_LSE) {
        x = merge_by_lse(place, dim);
    } else {
        x = add(place, dim);
    }
    store_out(element(params.out, place, 0u) + dim, params.dim - dim, x);
}
