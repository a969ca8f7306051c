// What the matrix kernel keeps in workgroup memory, and how keys and values come there: loaded into
// registers while the thread computes, put down when there is room.
// Expects: the sizes of coop.wgsl.

// Matrices load from addresses that are multiples of 16 bytes, and rows of f16 vectors alone would
// be aligned to 8: the scores come first and every array is a multiple of 16 bytes long.
struct Tiles {
    // [16, 16] of each subgroup
    scores: array<vec4<f32>, THREADS_Y * 16u * SCORE_STRIDE>,
    weights: array<vec4<f16>, THREADS_Y * 16u * WEIGHT_STRIDE>,
    keys: array<vec4<f16>, BLOCK_K * KEY_STRIDE>,
    values: array<vec4<f16>, BLOCK_K * VALUE_STRIDE>,
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

// The sign bit of each half that is no finite number.
fn non_finite(halves: vec2<u32>) -> vec2<u32> {
    return ((halves & vec2(0x7c007c00u)) + vec2(0x04000400u)) & vec2(0x80008000u);
}

fn as_halves(halves: vec2<u32>) -> vec4<f16> {
    return vec4<f16>(unpack4(halves));
}

fn put(next: ptr<function, Next>, thread: u32, full: bool) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let halves = (*next).key[n];
        if (any(non_finite(halves) != vec2(0u))) {
            atomicStore(&found_non_finite, 1u);
        }
        if (i < BLOCK_K * HEAD_VECS) {
            tiles.keys[i / HEAD_VECS * KEY_STRIDE + i % HEAD_VECS] = as_halves(halves);
        }
    }
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let i = n * THREADS + thread;
        var halves = (*next).value[n];
        if (!full) {
            let bad = non_finite(halves);
            if (any(bad != vec2(0u))) {
                atomicStore(&found_non_finite_value, 1u);
                halves &= ~((bad >> vec2(15u)) * 0xffffu);
            }
        }
        if (i < BLOCK_K * VALUE_VECS) {
            tiles.values[i / VALUE_VECS * VALUE_STRIDE + i % VALUE_VECS] = as_halves(halves);
        }
    }
}
