// What the matrix kernel keeps in workgroup memory, and how keys and values come there: loaded into
// registers while the thread computes, put down when there is room; WORD_VECS vectors a load.
// Expects: the sizes of coop.wgsl.

// Matrices load from addresses that are multiples of 16 bytes, and rows of f16 vectors alone would
// be aligned to 8: the scores come first and every array is a multiple of 16 bytes long.
struct Tiles {
    // [16, BAND_TILES * STEP_K] of each subgroup; nothing is behind the last row, here and below
    scores: array<vec4<f32>, SCORE_ROWS * SCORE_STRIDE - 2u>,
    weights: array<vec4<f16>, SCORE_ROWS * SCORE_STRIDE - 2u>,
    // keys [BLOCK_K, HEAD_VECS], from VALUES_AT on values [BLOCK_K, VALUE_VECS]
    staged: array<vec4<f16>, BLOCK_K * (KEY_STRIDE + VALUE_STRIDE) - 2u>,
}

var<workgroup> tiles: Tiles;
var<workgroup> found_non_finite: atomic<u32>;
var<workgroup> found_non_finite_value: atomic<u32>;

// A thread's share of the next tile, under way while it computes: as words, since an f16 takes a
// register of its own.
struct Next {
    key: array<Word, KEY_LOADS>,
    value: array<Word, VALUE_LOADS>,
}

// keys [BLOCK_K, HEAD_VECS] and values [BLOCK_K, VALUE_VECS]; addresses in words, which the tensors'
// strides are multiples of
fn fetch(next: ptr<function, Next>, thread: u32, here: Place, first: u32) {
    let last = max(params.key_len, 1u) - 1u;
    let elements = 4u * WORD_VECS;
    let key_start = (params.key.w + here.batch * params.key.x + here.key_head * params.key.y) / elements;
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let column = min(key_at(first + i / KEY_WORDS), last);
        let word = min(i % KEY_WORDS, params.head_dim / elements - 1u);
        (*next).key[n] = key[key_start + column * (params.key.z / elements) + word];
    }
    let value_start = (params.value.w + here.batch * params.value.x + here.value_head * params.value.y) / elements;
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let i = n * THREADS + thread;
        let column = min(key_at(first + i / VALUE_WORDS), last);
        let word = min(i % VALUE_WORDS, params.value_dim / elements - 1u);
        (*next).value[n] = value[value_start + column * (params.value.z / elements) + word];
    }
}

// Which numbers would be no finite f16: 65520 is the least that rounds to infinity.
fn beyond_f16(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4(0x7fffffffu)) >= vec4(0x477ff000u);
}

// queries [BLOCK_Q, HEAD_VECS], all at once and long before they are put down
fn fetch_queries(ahead: ptr<function, array<Word, QUERY_LOADS>>, thread: u32, here: Place, first: u32) {
    let elements = 4u * WORD_VECS;
    let start = (params.query.w + here.batch * params.query.x + here.head * params.query.y) / elements;
    // unroll
    for (var n = 0u; n < QUERY_LOADS; n++) {
        let i = n % PIECE_LOADS * THREADS + thread;
        let row = min(first + n / PIECE_LOADS * PIECE_ROWS + i / KEY_WORDS, params.query_len - 1u);
        let word = min(i % KEY_WORDS, params.head_dim / elements - 1u);
        (*ahead)[n] = query[start + row * (params.query.z / elements) + word];
    }
}

// Puts PIECE_ROWS queries down, with the scale's sign; 0 beyond the last dim. Rows beyond the last
// are copies of it.
fn put_queries(ahead: ptr<function, array<Word, QUERY_LOADS>>, thread: u32, piece: u32) {
    var exceeds = false;
    // unroll
    for (var n = 0u; n < PIECE_LOADS; n++) {
        let i = n * THREADS + thread;
        let at = i / KEY_WORDS * KEY_STRIDE + WORD_VECS * (i % KEY_WORDS);
        // unroll
        for (var w = 0u; w < WORD_VECS; w++) {
            let packed = vector_of_word((*ahead)[piece * PIECE_LOADS + n], w);
            exceeds = exceeds | exceeds_f16(packed);
            let exists = 4u * (WORD_VECS * (i % KEY_WORDS) + w) < params.head_dim;
            let numbers = unpack4(select(Packed4(), flipped4(packed, params.query_scale < 0.0), exists));
            if (PIECE_ROWS * KEY_WORDS % THREADS == 0u || i < PIECE_ROWS * KEY_WORDS) {
                tiles.staged[at + w] = vec4<f16>(numbers);
            }
        }
    }
    if (exceeds) {
        atomicStore(&found_non_finite, 1u);
    }
}

fn put(next: ptr<function, Next>, thread: u32, full: bool) {
    var exceeds = false;
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        // unroll
        for (var w = 0u; w < WORD_VECS; w++) {
            exceeds = exceeds | exceeds_f16(vector_of_word((*next).key[n], w));
        }
    }
    if (exceeds) {
        atomicStore(&found_non_finite, 1u);
    }
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let at = i / KEY_WORDS * KEY_STRIDE + WORD_VECS * (i % KEY_WORDS);
        if (BLOCK_K * KEY_WORDS % THREADS == 0u || i < BLOCK_K * KEY_WORDS) {
            // unroll
            for (var w = 0u; w < WORD_VECS; w++) {
                tiles.staged[at + w] = vec4<f16>(unpack4(vector_of_word((*next).key[n], w)));
            }
        }
    }
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let i = n * THREADS + thread;
        let at = i / VALUE_WORDS * VALUE_STRIDE + WORD_VECS * (i % VALUE_WORDS);
        // unroll
        for (var w = 0u; w < WORD_VECS; w++) {
            var numbers = unpack4(vector_of_word((*next).value[n], w));
            if (!full) {
                let beyond = beyond_f16(numbers);
                if (any(beyond)) {
                    atomicStore(&found_non_finite_value, 1u);
                    numbers = select(numbers, vec4(0.0), beyond);
                }
            }
            if (BLOCK_K * VALUE_WORDS % THREADS == 0u || i < BLOCK_K * VALUE_WORDS) {
                tiles.staged[VALUES_AT + at + w] = vec4<f16>(numbers);
            }
        }
    }
}
