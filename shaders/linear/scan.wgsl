// What the scans over chunks share: the chunks' entries, the caller's state, decays of whole chunks.
// Expects: sequences.wgsl, state_vec4.wgsl or state_any.wgsl.

@group(0) @binding(1) var<storage, read_write> chunks: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> state: array<StateWord>;
@group(0) @binding(3) var<storage, read> sums: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> metadata: array<u32>;

// What a chunk leaves of the state's row.
fn chunk_decay(head: u32, entry: u32, chunk: Chunk, row: u32) -> f32 {
    if (!GATED) {
        return exp(-slope_of(head) * f32(chunk.count));
    }
    let column = select(0u, row, PER_KEY_DIM);
    let sum = sums[((entry + 1u) * CHUNK - 1u) * GATES + column];
    return exp(-sum.x - sum.y);
}

// Where the caller keeps a document's state, and how many of a vector's elements there are.
fn state_place(batch: u32, head: u32, document: u32, row: u32, column: u32) -> vec2<u32> {
    let start = params.state.w + (batch * params.documents + document) * params.state.x
        + head * params.state.y + row * params.state.z;
    let count = params.value_dim - min(params.value_dim, 4u * column);
    return vec2(start + 4u * column, select(0u, min(count, 4u), row < params.features));
}

// The state that a document begins with.
fn initial_state(at: vec2<u32>) -> vec4<f32> {
    if (params.carries_in == 0u) {
        return vec4(0.0);
    }
    return load_state(at.x, at.y);
}

fn final_state(at: vec2<u32>, x: vec4<f32>) {
    if (params.carries_out != 0u) {
        store_state(at.x, at.y, x);
    }
}

// Whether another segment takes up the state where this one leaves it.
fn is_continued() -> bool {
    return params.first_slot + params.segment_slots < params.slots;
}
