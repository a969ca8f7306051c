// What one piece of a call of linear attention is told. Twin of `LinearParams` in src/params.rs,
// where every member is explained.

struct Params {
    query: vec4<u32>,
    key: vec4<u32>,
    value: vec4<u32>,
    out: vec4<u32>,
    state: vec4<u32>,
    gate: vec4<u32>,
    token: vec4<u32>,
    batch: u32,
    heads: u32,
    group: u32,
    len: u32,
    head_dim: u32,
    features: u32,
    value_dim: u32,
    workgroups: u32,
    head_base: u32,
    documents: u32,
    starts_at: u32,
    slopes_at: u32,
    gate_dtype: u32,
    token_dtype: u32,
    carries_in: u32,
    carries_out: u32,
    scale: f32,
    epsilon: f32,
    slots: u32,
    first_slot: u32,
    segment_slots: u32,
    slot_capacity: u32,
    slices: u32,
    padding: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

const ABSENT: u32 = 0xffffffffu;
// An element of a tensor whose dtype is known only at run time: 0 is f32, 1 f16, 2 bf16.
fn element_of(word: u32, index: u32, dtype: u32) -> f32 {
    let upper = (index & 1u) == 1u;
    if (dtype == 0u) {
        return bitcast<f32>(word);
    }
    if (dtype == 1u) {
        let halves = unpack2x16float(word);
        return select(halves.x, halves.y, upper);
    }
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, upper));
}

// The word that holds an element.
fn word_of(index: u32, dtype: u32) -> u32 {
    return select(index >> 1u, index, dtype == 0u);
}

// exp(-100) is nothing in f32, and sums of a chunk's gates stay small. A NaN stays one.
fn clamp_gate(gate: f32) -> f32 {
    return select(gate, -100.0, gate < -100.0);
}
