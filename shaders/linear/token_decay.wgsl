// What a token leaves of the state, for the kernels that take token by token, and which tokens of a
// document they take.

// exp(gate). A memory of n tokens multiplies n of them, and a device's exp may be off by several bits:
// where n is large, a short series is off by none.
fn decay_of(gate: f32) -> f32 {
    if (abs(gate) > 0.25) {
        return exp(gate);
    }
    return 1.0 + gate * (1.0 + gate / 2.0 * (1.0 + gate / 3.0 * (1.0 + gate / 4.0 * (1.0 + gate / 5.0 * (1.0 + gate / 6.0)))));
}

fn gated_decay(batch: u32, head: u32, index: u32, dim: u32) -> f32 {
    let at = params.gate.w + batch * params.gate.x + head * params.gate.y + index * params.gate.z + dim;
    return decay_of(clamp_gate(element_of(gate[word_of(at, params.gate_dtype)], at, params.gate_dtype)));
}

// The same of four dimensions; 1 beyond the last feature.
fn gated_decays(batch: u32, head: u32, index: u32, vector: u32) -> vec4<f32> {
    var decay = vec4(1.0);
    for (var i = 0u; i < 4u; i++) {
        if (4u * vector + i < params.features) {
            decay[i] = gated_decay(batch, head, index, 4u * vector + i);
        }
    }
    return decay;
}

// The tokens of a document that a dispatch takes, [start, end).
struct Tokens {
    start: u32,
    end: u32,
    carries_in: bool,
    carries_out: bool,
    exist: bool, // or the document lies in other parts
}

fn tokens_of(document: u32) -> Tokens {
    let start = document_start(document);
    let end = document_start(document + 1u);
    let carries_in = params.carries_in != 0u;
    let carries_out = params.carries_out != 0u;
    if (!PARTS) {
        return Tokens(start, end, carries_in, carries_out, true);
    }
    // Where a driver limits the rounds of loops, a dispatch takes the tokens of a segment, and the
    // state goes from one to the next. A document without tokens lies in one segment too.
    let first = params.first_slot;
    let last = first + params.segment_slots;
    let exist = max(end, start + 1u) > first && (start < last || last >= params.slots);
    return Tokens(
        clamp(start, first, last),
        clamp(end, first, last),
        carries_in || start < first,
        carries_out || end > last,
        exist,
    );
}
