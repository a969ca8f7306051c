// The bindings of the kernels that see tokens.

@group(0) @binding(1) var<storage, read> query: array<Word>;
@group(0) @binding(2) var<storage, read> key: array<Word>;
@group(0) @binding(3) var<storage, read> value: array<Word>;
@group(0) @binding(4) var<storage, read_write> out: array<OutWord>;
// The caller's state; in the chunked kernels what they keep of each chunk.
@group(0) @binding(5) var<storage, read_write> state: array<StateWord>;
// Gates; in the chunked kernels their sums from the start of each chunk, a whole number and a fraction of f32 each.
@group(0) @binding(6) var<storage, read> gate: array<u32>;
// β for the delta rules, the denominators where there is a normaliser.
@group(0) @binding(7) var<storage, read> token: array<u32>;
// Slopes (as bits) and the starts of documents.
@group(0) @binding(8) var<storage, read> metadata: array<u32>;

// How many of the `dim` elements lie at or beyond element `first`.
fn remaining(dim: u32, first: u32) -> u32 {
    return dim - min(dim, first);
}

fn token_value(head: u32, batch: u32, index: u32) -> f32 {
    let at = params.token.w + batch * params.token.x + head * params.token.y + index * params.token.z;
    return element_of(token[word_of(at, params.token_dtype)], at, params.token_dtype);
}

// Where a query and a key start.
fn query_start(batch: u32, head: u32, index: u32) -> u32 {
    return params.query.w + batch * params.query.x + head * params.query.y + index * params.query.z;
}

fn key_start(batch: u32, head: u32, index: u32) -> u32 {
    return params.key.w + batch * params.key.x + head * params.key.y + index * params.key.z;
}
