// What the chunked kernels share: entries of the workspace and decays inside a chunk.
// Expects: tensors.wgsl with `state` as vectors of four, const CHUNK, FEATURE_VECS, VALUE_VECS,
// ENTRY_VECS, GATES.

alias StateWord = vec4<f32>;

struct Place {
    batch: u32,
    head: u32, // key head, in the piece
    slot: u32, // in the segment
    chunk: Chunk,
}

fn place(entry: u32) -> Place {
    let head_and_batch = entry / params.segment_slots;
    let slot = entry % params.segment_slots;
    return Place(
        head_and_batch / params.heads,
        head_and_batch % params.heads,
        slot,
        find_chunk(params.first_slot + slot),
    );
}

// The token at place `local` of the chunk, or its last: what stands in for tokens beyond the end,
// which no load asks for.
fn token_at(chunk: Chunk, local: u32) -> u32 {
    return chunk.begin + min(local, max(chunk.count, 1u) - 1u);
}

// Where an entry starts, in vectors.
fn entry_start(here: Place) -> u32 {
    return ((here.batch * params.heads + here.head) * params.slot_capacity + here.slot) * ENTRY_VECS;
}

// The sum of −gate over tokens 0 to `local` of the chunk: a whole number and a fraction.
fn gate_sum(here: Place, local: u32, column: u32) -> vec2<f32> {
    let entry = (here.batch * params.heads + here.head) * params.slot_capacity + here.slot;
    let at = 2u * ((entry * CHUNK + local) * GATES + column);
    return vec2(bitcast<f32>(gate[at]), bitcast<f32>(gate[at + 1u]));
}

// What is left of token `from` when token `to` is answered (from ≤ to).
fn decay_between(to_sum: vec2<f32>, from_sum: vec2<f32>) -> f32 {
    return exp(min((from_sum.x - to_sum.x) + (from_sum.y - to_sum.y), 0.0));
}

// What is left of feature vector `vector` of token `local` at the end of the chunk.
fn decay_to_end(here: Place, slope: f32, local: u32, vector: u32) -> vec4<f32> {
    if (!GATED) {
        return vec4(exp(-slope * f32(here.chunk.count - 1u - local)));
    }
    if (!PER_KEY_DIM) {
        return vec4(decay_between(gate_sum(here, CHUNK - 1u, 0u), gate_sum(here, local, 0u)));
    }
    var decay: vec4<f32>;
    for (var i = 0u; i < 4u; i++) {
        let column = 4u * vector + i;
        decay[i] = decay_between(gate_sum(here, CHUNK - 1u, column), gate_sum(here, local, column));
    }
    return decay;
}

// What is left of the state before the chunk, of its feature vector `vector`, when token `local` is
// answered.
fn decay_from_start(here: Place, slope: f32, local: u32, vector: u32) -> vec4<f32> {
    if (!GATED) {
        return vec4(exp(-slope * f32(local + 1u)));
    }
    if (!PER_KEY_DIM) {
        let sum = gate_sum(here, local, 0u);
        return vec4(exp(-sum.x - sum.y));
    }
    var decay: vec4<f32>;
    for (var i = 0u; i < 4u; i++) {
        let sum = gate_sum(here, local, 4u * vector + i);
        decay[i] = exp(-sum.x - sum.y);
    }
    return decay;
}
