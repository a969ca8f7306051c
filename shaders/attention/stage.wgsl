// Staging of queries, keys and values: loaded into registers while the thread computes, put into
// workgroup memory when there is room.
// Expects: the sizes and `stage` of forward.wgsl.

// A thread's share of what comes into workgroup memory next, under way while it computes.
struct Next {
    query: array<vec4<f32>, QUERY_LOADS>,
    key: array<vec4<f32>, KEY_LOADS>,
    value: array<vec4<f32>, VALUE_LOADS>,
}

// queries [BLOCK_Q, CHUNK_VECS]
fn fetch_query(next: ptr<function, Next>, thread: u32, here: Place, first: u32, chunk: u32) {
    let start = params.query.w + here.batch * params.query.x + here.head * params.query.y;
    // unroll
    for (var n = 0u; n < QUERY_LOADS; n++) {
        let i = n * THREADS + thread;
        let row = first + i / CHUNK_VECS;
        let dim = 4u * (chunk * CHUNK_VECS + i % CHUNK_VECS);
        let count = select(0u, remaining(params.head_dim, dim), row < params.query_len);
        (*next).query[n] = load_query(start + row * params.query.z + dim, count);
    }
}

fn put_query(next: ptr<function, Next>, thread: u32) {
    // unroll
    for (var n = 0u; n < QUERY_LOADS; n++) {
        let i = n * THREADS + thread;
        if (i < BLOCK_Q * CHUNK_VECS) {
            stage[i / CHUNK_VECS * STAGE_STRIDE + i % CHUNK_VECS] = params.query_scale * (*next).query[n];
        }
    }
}

// keys [BLOCK_K, CHUNK_VECS]
fn fetch_key(next: ptr<function, Next>, thread: u32, here: Place, first: u32, chunk: u32) {
    let start = params.key.w + here.batch * params.key.x + here.key_head * params.key.y;
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let column = key_at(first + i / CHUNK_VECS);
        let dim = 4u * (chunk * CHUNK_VECS + i % CHUNK_VECS);
        let count = select(0u, remaining(params.head_dim, dim), column < params.key_len);
        (*next).key[n] = load_key(start + column * params.key.z + dim, count);
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
            stage[KEY_AT + slot * STAGE_STRIDE + i % CHUNK_VECS] = (*next).key[n];
        }
    }
}

// values [VALUE_KEYS, VALUE_STRIDE]
fn fetch_value(next: ptr<function, Next>, thread: u32, here: Place, first: u32) {
    let start = params.value.w + here.batch * params.value.x + here.value_head * params.value.y;
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let i = n * THREADS + thread;
        let column = key_at(first + i / VALUE_STRIDE);
        let dim = 4u * (i % VALUE_STRIDE);
        let count = select(0u, remaining(params.value_dim, dim), column < params.key_len);
        (*next).value[n] = load_value(start + column * params.value.z + dim, count);
    }
}

fn put_value(next: ptr<function, Next>, thread: u32) {
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let i = n * THREADS + thread;
        if (i < VALUE_KEYS * VALUE_STRIDE) {
            stage[VALUE_AT + i] = (*next).value[n];
        }
    }
}
