// What the matrix kernel keeps in workgroup memory, and how keys and values come there: loaded into
// registers while the thread computes, put down when there is room.
// Expects: the sizes of coop.wgsl.

// Matrices load from addresses that are multiples of 16 bytes, and rows of f16 vectors alone would
// be aligned to 8: the scores come first and every array is a multiple of 16 bytes long.
struct Tiles {
    // [16, BAND_TILES * STEP_K] of each subgroup; nothing is behind the last row, here and below
    scores: array<vec4<f32>, THREADS_Y * 16u * SCORE_STRIDE - 2u>,
    weights: array<vec4<f16>, THREADS_Y * 16u * SCORE_STRIDE - 2u>,
    keys: array<vec4<f16>, BLOCK_K * KEY_STRIDE - 2u>,
    values: array<vec4<f16>, BLOCK_K * VALUE_STRIDE - 2u>,
}

var<workgroup> tiles: Tiles;
var<workgroup> found_non_finite: atomic<u32>;
var<workgroup> found_non_finite_value: atomic<u32>;

// A thread's share of the next tile, under way while it computes: as words, since an f16 takes a
// register of its own.
struct Next {
    key: array<Packed4, KEY_LOADS>,
    value: array<Packed4, VALUE_LOADS>,
}

// keys [BLOCK_K, HEAD_VECS] and values [BLOCK_K, VALUE_VECS]
fn fetch(next: ptr<function, Next>, thread: u32, here: Place, first: u32) {
    let last = max(params.key_len, 1u) - 1u;
    let key_start = params.key.w + here.batch * params.key.x + here.key_head * params.key.y;
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let column = min(key_at(first + i / HEAD_VECS), last);
        let dim = min(4u * (i % HEAD_VECS), params.head_dim - 4u);
        (*next).key[n] = key[(key_start + column * params.key.z + dim) >> 2u];
    }
    let value_start = params.value.w + here.batch * params.value.x + here.value_head * params.value.y;
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let i = n * THREADS + thread;
        let column = min(key_at(first + i / VALUE_VECS), last);
        let dim = min(4u * (i % VALUE_VECS), params.value_dim - 4u);
        (*next).value[n] = value[(value_start + column * params.value.z + dim) >> 2u];
    }
}

// Which numbers would be no finite f16: 65520 is the least that rounds to infinity.
fn beyond_f16(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4(0x7fffffffu)) >= vec4(0x477ff000u);
}

// queries [BLOCK_Q, HEAD_VECS], all at once and long before they are put down
fn fetch_queries(ahead: ptr<function, array<Packed4, QUERY_LOADS>>, thread: u32, here: Place, first: u32) {
    let start = params.query.w + here.batch * params.query.x + here.head * params.query.y;
    // unroll
    for (var n = 0u; n < QUERY_LOADS; n++) {
        let i = n % KEY_LOADS * THREADS + thread;
        let row = min(first + n / KEY_LOADS * BLOCK_K + i / HEAD_VECS, params.query_len - 1u);
        let dim = min(4u * (i % HEAD_VECS), params.head_dim - 4u);
        (*ahead)[n] = query[(start + row * params.query.z + dim) >> 2u];
    }
}

// Puts BLOCK_K queries into the key tile, with the scale's sign; 0 beyond the last row and dim.
fn put_queries(ahead: ptr<function, array<Packed4, QUERY_LOADS>>, thread: u32, first: u32, piece: u32) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let exists = first + piece * BLOCK_K + i / HEAD_VECS < params.query_len && 4u * (i % HEAD_VECS) < params.head_dim;
        let numbers = select(vec4(0.0), unpack4((*ahead)[piece * KEY_LOADS + n]), exists);
        if (any(beyond_f16(numbers))) {
            atomicStore(&found_non_finite, 1u);
        }
        if (i < BLOCK_K * HEAD_VECS) {
            tiles.keys[i / HEAD_VECS * KEY_STRIDE + i % HEAD_VECS] =
                vec4<f16>(select(numbers, -numbers, params.query_scale < 0.0));
        }
    }
}

fn put(next: ptr<function, Next>, thread: u32, full: bool) {
    var exceeds = false;
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        exceeds = exceeds | exceeds_f16((*next).key[n]);
    }
    if (exceeds) {
        atomicStore(&found_non_finite, 1u);
    }
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        if (BLOCK_K * HEAD_VECS % THREADS == 0u || i < BLOCK_K * HEAD_VECS) {
            tiles.keys[i / HEAD_VECS * KEY_STRIDE + i % HEAD_VECS] = vec4<f16>(unpack4((*next).key[n]));
        }
    }
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let i = n * THREADS + thread;
        var numbers = unpack4((*next).value[n]);
        if (!full) {
            let beyond = beyond_f16(numbers);
            if (any(beyond)) {
                atomicStore(&found_non_finite_value, 1u);
                numbers = select(numbers, vec4(0.0), beyond);
            }
        }
        if (BLOCK_K * VALUE_VECS % THREADS == 0u || i < BLOCK_K * VALUE_VECS) {
            tiles.values[i / VALUE_VECS * VALUE_STRIDE + i % VALUE_VECS] = vec4<f16>(numbers);
        }
    }
}
