// Staging of queries, keys and values: loaded into registers while the thread computes, put into
// workgroup memory when there is room. Rows and dims outside of a tensor are copies of some inside:
// the queries' dims are zeroed, and masks keep the rest out.
// Expects: the sizes and `stage` of forward.wgsl.

// A thread's share of what comes into workgroup memory next, under way while it computes.
struct Next {
    query: array<Ahead, QUERY_LOADS>,
    key: array<Ahead, KEY_LOADS>,
    value: array<Ahead, VALUE_LOADS>,
}

// queries [BLOCK_Q, CHUNK_VECS]
fn fetch_query(next: ptr<function, Next>, thread: u32, here: Place, first: u32, chunk: u32) {
    let start = params.query.w + here.batch * params.query.x + here.head * params.query.y;
    // unroll
    for (var n = 0u; n < QUERY_LOADS; n++) {
        let i = n * THREADS + thread;
        let row = min(first + i / CHUNK_VECS, params.query_len - 1u);
        let dim = 4u * (chunk * CHUNK_VECS + i % CHUNK_VECS);
        (*next).query[n] = query_ahead(start + row * params.query.z, dim);
    }
}

fn put_query(next: ptr<function, Next>, thread: u32, chunk: u32) {
    // unroll
    for (var n = 0u; n < QUERY_LOADS; n++) {
        let i = n * THREADS + thread;
        if (i < BLOCK_Q * CHUNK_VECS) {
            let dims = 4u * (chunk * CHUNK_VECS + i % CHUNK_VECS) + vec4(0u, 1u, 2u, 3u);
            let vector = params.query_scale * arrived((*next).query[n]);
            stage[i / CHUNK_VECS * STAGE_STRIDE + i % CHUNK_VECS] = select(vec4(0.0), vector, dims < vec4(params.head_dim));
        }
    }
}

// keys [BLOCK_K, CHUNK_VECS]
fn fetch_key(next: ptr<function, Next>, thread: u32, here: Place, first: u32, chunk: u32) {
    let last = max(params.key_len, 1u) - 1u;
    let start = params.key.w + here.batch * params.key.x + here.key_head * params.key.y;
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let column = min(key_at(first + i / CHUNK_VECS), last);
        let dim = 4u * (chunk * CHUNK_VECS + i % CHUNK_VECS);
        (*next).key[n] = key_ahead(start + column * params.key.z, dim);
    }
}

// The COLS keys of one thread lie THREADS_X slots apart, so that its scores are neighbours and its
// loads meet no other thread's bank.
fn put_key(next: ptr<function, Next>, thread: u32) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        if (i < BLOCK_K * CHUNK_VECS) {
            let column = i / CHUNK_VECS;
            let slot = column % COLS * THREADS_X + column / COLS;
            stage[KEY_AT + slot * STAGE_STRIDE + i % CHUNK_VECS] = arrived((*next).key[n]);
        }
    }
}

// values [VALUE_KEYS, VALUE_STRIDE]
fn fetch_value(next: ptr<function, Next>, thread: u32, here: Place, first: u32) {
    let last = max(params.key_len, 1u) - 1u;
    let start = params.value.w + here.batch * params.value.x + here.value_head * params.value.y;
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let i = n * THREADS + thread;
        let column = min(key_at(first + i / VALUE_STRIDE), last);
        (*next).value[n] = value_ahead(start + column * params.value.z, 4u * (i % VALUE_STRIDE));
    }
}

fn put_value(next: ptr<function, Next>, thread: u32) {
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let i = n * THREADS + thread;
        if (i < VALUE_KEYS * VALUE_STRIDE) {
            stage[VALUE_AT + i] = arrived((*next).value[n]);
        }
    }
}
