// linear.chunk_sums: adds up the gates from the start of each chunk. The differences of these sums
// are the logarithms of all decays inside a chunk, so each is a pair of f32 whose sum is exact to
// some 2^-46: a small difference of large sums must not lose its digits.
// An invocation owns one (head, chunk) and one column of gates.

@group(0) @binding(1) var<storage, read> gate: array<u32>;
@group(0) @binding(2) var<storage, read_write> sums: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> metadata: array<u32>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * groups.x) * THREADS + thread;
    let column = index % GATES;
    let entry = index / GATES;
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
    let target_start = (head_and_batch * params.slot_capacity + slot) * CHUNK * GATES + column;
    var sum = vec2(0.0);
    for (var i = 0u; i < CHUNK; i++) {
        if (i < chunk.count) {
            let at = start + (chunk.begin + i) * params.gate.z + dim;
            let x = clamp_gate(element_of(gate[word_of(at, params.gate_dtype)], at, params.gate_dtype));
            // Knuth's two-sum: `high + error` is exactly `sum.x + x`.
            let high = sum.x + x;
            let part = high - sum.x;
            let error = (sum.x - (high - part)) + (x - part);
            sum = vec2(high, sum.y + error);
        }
        // Beyond the chunk's end nothing decays any more.
        sums[target_start + i * GATES] = sum;
    }
}
