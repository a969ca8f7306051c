// linear.chunk_sums: adds up the gates, as −gate, from the start of each chunk. The differences of
// these sums are the logarithms of all decays inside a chunk, and a small difference of large sums must
// not lose its digits: they are kept as a whole number and a fraction, added in fixed point.
// (Compensated sums in floating point do not survive compilers that take sums for associative.)
// An invocation owns one column of gates of one of the SPANS of a chunk, and goes over it twice: for
// its total, and then on from the totals before it.
// Barriers: one.

const SPAN: u32 = CHUNK / SPANS;

const_assert CHUNK % SPANS == 0u && THREADS % SPANS == 0u && (SPANS == 1u || GATES == 1u);

@group(0) @binding(1) var<storage, read> gate: array<u32>;
@group(0) @binding(2) var<storage, read_write> sums: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> metadata: array<u32>;

// A NaN is kept apart: it has no whole part.
struct Sum {
    whole: f32,
    fraction: u32, // in units of 2^-32
    spoiled: f32,
}

// The total of each invocation's span.
var<workgroup> totals: array<Sum, THREADS>;

fn add(sum: ptr<function, Sum>, whole: f32, fraction: u32, spoiled: f32) {
    let total = (*sum).fraction + fraction;
    (*sum).whole += whole + select(0.0, 1.0, total < fraction);
    (*sum).fraction = total;
    (*sum).spoiled += spoiled;
}

fn add_gate(sum: ptr<function, Sum>, gate: f32) {
    let x = -clamp_gate(gate);
    if ((bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u) {
        add(sum, 0.0, 0u, x);
    } else {
        add(sum, floor(x), u32((x - floor(x)) * 4294967296.0), 0.0);
    }
}

// One column of the gates of a chunk's tokens.
struct Column {
    start: u32,
    chunk: Chunk,
}

// The gate of the token at place `local` of the chunk, 0 beyond its end, where nothing decays any more.
// Loaded without a condition, so that several loads are under way at a time.
fn gate_of(column: Column, local: u32) -> f32 {
    let token = min(column.chunk.begin + local, max(params.len, 1u) - 1u);
    let at = column.start + token * params.gate.z;
    let x = element_of(gate[word_of(at, params.gate_dtype)], at, params.gate_dtype);
    return select(0.0, x, local < column.chunk.count);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_number(group, groups) * THREADS + thread;
    let dim = index % GATES;
    let span = index / GATES % SPANS;
    let entry = index / GATES / SPANS;
    let slot = entry % params.segment_slots;
    let head_and_batch = entry / params.segment_slots;
    let exists = head_and_batch < params.heads * params.batch;
    let start = params.gate.w + head_and_batch / params.heads * params.gate.x + head_and_batch % params.heads * params.gate.y;
    let column = Column(start + select(0u, dim, dim < params.head_dim), find_chunk(params.first_slot + slot));

    var sum: Sum;
    if (SPANS > 1u && exists) {
        for (var i = 0u; i < SPAN; i++) {
            add_gate(&sum, gate_of(column, span * SPAN + i));
        }
    }
    totals[thread] = sum;
    workgroupBarrier();
    if (!exists) {
        return;
    }
    sum = Sum(0.0, 0u, 0.0);
    // rounds: SPANS
    for (var before = thread - span; before < thread; before++) {
        let total = totals[before];
        add(&sum, total.whole, total.fraction, total.spoiled);
    }
    // rounds: SPAN
    for (var local = span * SPAN; local < (span + 1u) * SPAN; local++) {
        add_gate(&sum, gate_of(column, local));
        sums[((head_and_batch * params.slot_capacity + slot) * CHUNK + local) * GATES + dim] =
            vec2(sum.whole, f32(sum.fraction) / 4294967296.0 + sum.spoiled);
    }
}
