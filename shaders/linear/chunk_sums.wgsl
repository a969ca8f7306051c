// linear.chunk_sums: adds up the gates, as −gate, from the start of each span of a chunk, which is
// the chunk itself or what its kernels take at a time. The differences of these sums are the
// logarithms of all decays inside a span, and a small difference of large sums must not lose its
// digits: they are kept as a whole number and a fraction, added in fixed point. (Compensated sums in
// floating point do not survive compilers that take sums for associative.)
// An invocation owns one (head, span) and one column of gates.

const SPANS: u32 = CHUNK / SPAN;

@group(0) @binding(1) var<storage, read> gate: array<u32>;
@group(0) @binding(2) var<storage, read_write> sums: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> metadata: array<u32>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_number(group, groups) * THREADS + thread;
    let column = index % GATES;
    let span = index / GATES % SPANS;
    let entry = index / GATES / SPANS;
    let slot = entry % params.segment_slots;
    let head_and_batch = entry / params.segment_slots;
    if (head_and_batch >= params.heads * params.batch) {
        return;
    }
    let batch = head_and_batch / params.heads;
    let head = head_and_batch % params.heads;
    let chunk = find_chunk(params.first_slot + slot);
    let start = params.gate.w + batch * params.gate.x + head * params.gate.y;
    let dim = select(0u, column, column < params.head_dim);
    let first = span * SPAN;
    let target_start = ((head_and_batch * params.slot_capacity + slot) * CHUNK + first) * GATES + column;
    var whole = 0.0;
    var fraction = 0u;
    var spoiled = 0.0;
    for (var i = 0u; i < SPAN; i++) {
        if (first + i < chunk.count) {
            let at = start + (chunk.begin + first + i) * params.gate.z + dim;
            let x = -clamp_gate(element_of(gate[word_of(at, params.gate_dtype)], at, params.gate_dtype));
            if ((bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u) {
                spoiled = x;
            } else {
                let below = floor(x);
                let sum = fraction + u32((x - below) * 4294967296.0);
                whole += below + select(0.0, 1.0, sum < fraction);
                fraction = sum;
            }
        }
        // Beyond the chunk's end nothing decays any more.
        sums[target_start + i * GATES] = vec2(whole, f32(fraction) / 4294967296.0 + spoiled);
    }
}
