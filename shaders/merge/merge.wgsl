// merge.merge: joins the results of attention over parts of the keys. One invocation makes EACH
// vectors of four neighbouring elements of one row; the weights of the row's parts are found by each
// of them anew, from numbers that the cache holds. It walks the parts AHEAD at a time: what these
// hold is loaded together and without a condition, so that many loads are under way at once, and
// sums are rescaled when a part outweighs all before it.

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
// As in attention/params.wgsl: the least LSE of parts that are not all empty.
const LEAST_LOGIT: f32 = -0x1.93e592p+98;
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

// The logarithm of a part's weight, of which `bits` is the LSE; MASKED for an empty part. A part
// without a logit (NaN) keeps its LSE.
fn log_weight(bits: u32, place: Place, part: u32) -> f32 {
    if (is_empty(bits)) {
        return MASKED;
    }
    var weight = bitcast<f32>(bits);
    if (params.has_logits != 0u) {
        let logit = bitcast<u32>(weights[element(params.weights, place, part)]);
        if (is_empty(logit)) {
            return MASKED;
        }
        weight = bitcast<f32>(select(logit, bits, (logit & 0x7fffffffu) > INFINITY_BITS));
    }
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

// Vectors of a row, of AHEAD parts from `first` on; the last part again where there are no more.
alias Loaded = array<vec4<f32>, AHEAD * EACH>;

fn load_parts(place: Place, first: u32, dim: u32) -> Loaded {
    var x = Loaded();
    // unroll
    for (var i = 0u; i < AHEAD; i++) {
        let part = min(first + i, params.count - 1u);
        let start = element(params.parts, place, part) + dim;
        // unroll
        for (var e = 0u; e < EACH; e++) {
            x[i * EACH + e] = load_part(start + 4u * e, params.dim - dim - 4u * e);
        }
    }
    return x;
}

fn merge_by_lse(place: Place, dim: u32) -> array<vec4<f32>, EACH> {
    var maximum = MASKED;
    var total = 0.0;
    var sum = array<vec4<f32>, EACH>();
    var poisoned = false;
    // rounds: WALK / AHEAD
    for (var first = 0u; first < params.count; first += AHEAD) {
        var x = load_parts(place, first, dim);
        var bits = array<u32, AHEAD>();
        // unroll
        for (var i = 0u; i < AHEAD; i++) {
            bits[i] = bitcast<u32>(lse[element(params.lse, place, min(first + i, params.count - 1u))]);
        }
        var weight = array<f32, AHEAD>();
        var largest = maximum;
        // unroll
        for (var i = 0u; i < AHEAD; i++) {
            weight[i] = MASKED;
            if (first + i < params.count) {
                weight[i] = log_weight(bits[i], place, first + i);
            }
            largest = max(largest, weight[i]);
            poisoned = poisoned || !is_finite(weight[i]);
        }
        let rescale = exp(maximum - largest);
        maximum = largest;
        total *= rescale;
        // unroll
        for (var e = 0u; e < EACH; e++) {
            sum[e] *= rescale;
        }
        // unroll
        for (var i = 0u; i < AHEAD; i++) {
            // What an empty part holds counts for nothing, whatever it is.
            let empty = weight[i] == MASKED;
            let factor = select(exp(weight[i] - largest), 0.0, empty);
            total += factor;
            // unroll
            for (var e = 0u; e < EACH; e++) {
                sum[e] += factor * select(x[i * EACH + e], vec4(0.0), empty);
            }
        }
    }
    let nan = bitcast<f32>(params.nan);
    if (dim == 0u && params.has_lse != 0u) {
        let merged = select(MASKED, max(maximum + log(max(total, 1.0)), LEAST_LOGIT), total > 0.0);
        out_lse[element(params.out_lse, place, 0u)] = select(merged, nan, poisoned);
    }
    let factor = select(select(0.0, 1.0 / total, total > 0.0), nan, poisoned);
    // unroll
    for (var e = 0u; e < EACH; e++) {
        sum[e] *= factor;
    }
    return sum;
}

fn add(place: Place, dim: u32) -> array<vec4<f32>, EACH> {
    var sum = array<vec4<f32>, EACH>();
    // rounds: WALK / AHEAD
    for (var first = 0u; first < params.count; first += AHEAD) {
        var x = load_parts(place, first, dim);
        // unroll
        for (var i = 0u; i < AHEAD; i++) {
            var weight = select(0.0, 1.0, first + i < params.count);
            if (RULE == BY_WEIGHTS && weight != 0.0) {
                weight = weights[element(params.weights, place, first + i)];
            }
            // A weight of 0 drops the part, whatever it holds.
            // unroll
            for (var e = 0u; e < EACH; e++) {
                sum[e] += select(weight * x[i * EACH + e], vec4(0.0), weight == 0.0);
            }
        }
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
    let row = index / PER_ROW;
    let head_and_batch = row / params.len;
    let place = Place(head_and_batch / params.heads, head_and_batch % params.heads, row % params.len);
    if (place.batch >= params.batch) {
        return;
    }
    let dim = 4u * EACH * (index % PER_ROW);
    var x: array<vec4<f32>, EACH>;
    if (RULE == BY_LSE) {
        x = merge_by_lse(place, dim);
    } else {
        x = add(place, dim);
    }
    let start = element(params.out, place, 0u) + dim;
    // unroll
    for (var e = 0u; e < EACH; e++) {
        store_out(start + 4u * e, params.dim - dim - 4u * e, x[e]);
    }
}
