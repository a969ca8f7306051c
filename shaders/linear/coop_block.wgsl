// What the kernels of linear attention on matrix units share: cooperative matrices of 16 x 16, f16
// products summed in f32. A workgroup walks a chunk BLOCK tokens at a time; a subgroup owns a strip
// of 16 columns, of the state and of all that is made of values, and nobody else sees its strip:
//  1. A matrix's elements cannot be touched, so what must be scaled goes through workgroup memory, in
//     f32 or f16; a subgroup has room there for one matrix, for which only itself waits.
//  2. Factors in f16 are multiplied by the power of two that their largest finite element allows, so
//     that neither long sums nor small numbers leave its range.
//  3. Keys and values are loaded a block ahead and without a condition, or the load would be waited
//     for at once: tokens beyond the chunk are copies of its last, of which nothing is left.
// Expects: chunks.wgsl, tensors.wgsl, load_vec4.wgsl, const BLOCK, SLICE_VECS, WHOLE; the kernel's
// `tiles`.

const FEATURE_TILES: u32 = FEATURE_VECS / 4u;
const TOKEN_TILES: u32 = BLOCK / 16u;
const STRIPS: u32 = SLICE_VECS / 4u;
const THREADS: u32 = 32u * STRIPS;
// Strides in vectors of four; the padding keeps rows out of each other's banks.
const KEY_STRIDE: u32 = FEATURE_VECS + 2u;
// Subgroups have rooms for a matrix [16, 16], up to four of them side by side.
const ROOM_ROWS: u32 = (STRIPS + 3u) / 4u;
const ABREAST: u32 = (STRIPS + ROOM_ROWS - 1u) / ROOM_ROWS;
const ROOM_STRIDE: u32 = 4u * ABREAST + 2u;
const ROOM_VECS: u32 = ROOM_ROWS * 16u * ROOM_STRIDE;
const KEY_WORDS: u32 = FEATURE_VECS / WORD_VECS;
const KEY_LOADS: u32 = (BLOCK * KEY_WORDS + THREADS - 1u) / THREADS;
const LOST_LOADS: u32 = (BLOCK + THREADS - 1u) / THREADS;

const_assert FEATURE_VECS % 4u == 0u && SLICE_VECS % 4u == 0u && VALUE_VECS % SLICE_VECS == 0u;
const_assert BLOCK % 16u == 0u && CHUNK % BLOCK == 0u;

// With gates: −log of what is left of the state before the block after each of its tokens, a whole
// number and a fraction.
var<workgroup> lost: array<vec2<f32>, BLOCK>;

alias State = array<coop_mat16x16<f32, C>, FEATURE_TILES>;
// A block of a strip of values.
alias Values = array<coop_mat16x16<f16, B>, TOKEN_TILES>;

struct Lane {
    thread: u32, // of the workgroup
    strip: u32, // its subgroup
    column: u32, // the first vector of its strip, among those of the values
    row: u32, // of a matrix
    half: u32, // vectors `half` and `half + 2` of the row are its own
}

fn lane_of(slice: u32, subgroup: u32, subgroup_lane: u32) -> Lane {
    return Lane(32u * subgroup + subgroup_lane, subgroup, slice * SLICE_VECS + 4u * subgroup,
        subgroup_lane / 2u, subgroup_lane % 2u);
}

// Where a lane's subgroup's room starts.
fn room_of(lane: Lane) -> u32 {
    return lane.strip / ABREAST * 16u * ROOM_STRIDE + lane.strip % ABREAST * 4u;
}

// Where its row of it starts.
fn row_of(lane: Lane) -> u32 {
    return room_of(lane) + lane.row * ROOM_STRIDE;
}

// A thread's share of the next block's keys, under way while it computes; with gates, what is lost.
struct NextKeys {
    key: array<Word, KEY_LOADS>,
    lost: array<vec2<f32>, LOST_LOADS>,
    lost_before: vec2<f32>,
}

// The token of the block and the first vector that a thread's n-th word of features is.
fn token_of_key(n: u32, lane: Lane) -> u32 {
    return (n * THREADS + lane.thread) / KEY_WORDS;
}

fn vector_of_key(n: u32, lane: Lane) -> u32 {
    return WORD_VECS * ((n * THREADS + lane.thread) % KEY_WORDS);
}

fn fetch_keys(next: ptr<function, NextKeys>, lane: Lane, here: Place, first: u32) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let row = key_start(here.batch, here.head, token_at(here.chunk, first + token_of_key(n, lane)));
        (*next).key[n] = key_ahead(row, 4u * vector_of_key(n, lane));
    }
    if (GATED) {
        // unroll
        for (var n = 0u; n < LOST_LOADS; n++) {
            let local = first + min(n * THREADS + lane.thread, BLOCK - 1u);
            (*next).lost[n] = gate_sum(here, min(local, CHUNK - 1u), 0u);
        }
        (*next).lost_before = gate_sum(here, min(max(first, 1u), CHUNK) - 1u, 0u);
    }
}

// Four elements; 0 beyond the last, where dims are no WHOLE matrices.
fn features_of(vector: Packed4, dim: u32) -> vec4<f32> {
    let features = unpack4(vector);
    return select(vec4(0.0), features, WHOLE || dim < params.head_dim);
}

// A factor for each of a thread's words of keys.
alias KeysLeft = array<f32, KEY_LOADS>;

// Puts down the keys of the block that begins at token `first` of the chunk, multiplied by `left` if
// they are to be `decayed`.
fn put_keys(next: ptr<function, NextKeys>, lane: Lane, first: u32, left: ptr<function, KeysLeft>, decayed: bool) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let vector = vector_of_key(n, lane);
        if (BLOCK * KEY_WORDS % THREADS == 0u || token_of_key(n, lane) < BLOCK) {
            // unroll
            for (var w = 0u; w < WORD_VECS; w++) {
                var features = features_of(vector_of_word((*next).key[n], w), 4u * (vector + w));
                if (decayed) {
                    features *= (*left)[n];
                }
                tiles.keys[token_of_key(n, lane) * KEY_STRIDE + vector + w] = vec4<f16>(features);
            }
        }
    }
    if (GATED) {
        // unroll
        for (var n = 0u; n < LOST_LOADS; n++) {
            let local = n * THREADS + lane.thread;
            if (local < BLOCK) {
                lost[local] = (*next).lost[n] - select(vec2(0.0), (*next).lost_before, first > 0u);
            }
        }
    }
}

// What is left of a thread's keys when the block ends.
fn left_of_keys(slope: f32, lane: Lane) -> KeysLeft {
    var left: KeysLeft;
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        left[n] = left_between(slope, BLOCK - 1u, min(token_of_key(n, lane), BLOCK - 1u));
    }
    return left;
}

// Takes a block into a strip's state, of which `left` is left: Σ k vᵀ of keys that lie there decayed.
fn take_in(state: ptr<function, State>, values: ptr<function, Values>, left: f32) {
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        var taken = (*state)[f] * left;
        // unroll
        for (var t = 0u; t < TOKEN_TILES; t++) {
            // The transpose of the keys.
            let keys = coopLoad<coop_mat16x16<f16, A>>(&tiles.keys[16u * t * KEY_STRIDE + 4u * f], KEY_STRIDE);
            taken = coopMultiplyAdd(keys, (*values)[t], taken);
        }
        (*state)[f] = taken;
    }
}

// A head's slope; exp(-200) is nothing in f32.
fn slope_in_block(head: u32) -> f32 {
    return min(slope_of(head), 200.0);
}

// What is left of token `origin` when token `now` is answered (origin ≤ now).
fn left_between(slope: f32, now: u32, origin: u32) -> f32 {
    if (GATED) {
        return decay_between(lost[now], lost[origin]);
    }
    return exp(-slope * f32(now - min(origin, now)));
}

// What is left of the state before the block when token `now` is answered.
fn left_of_state(slope: f32, now: u32) -> f32 {
    if (GATED) {
        return exp(-lost[now].x - lost[now].y);
    }
    return exp(-slope * f32(now + 1u));
}

// The largest magnitude among four numbers that are finite.
fn largest_of(x: vec4<f32>) -> f32 {
    let magnitudes = abs(x);
    return max(max(magnitudes.x, magnitudes.y), max(magnitudes.z, magnitudes.w));
}

// The largest magnitude among four numbers, leaving out those that are not finite.
fn largest_finite(x: vec4<f32>) -> f32 {
    return largest_of(select(vec4(0.0), x, abs(x) <= vec4(0x1.fffffep+127f)));
}

// The largest magnitude of a subgroup. NVIDIA's driver 580.159.04 (2026-12-01) returns garbage from
// subgroupMax of integers in kernels that use all registers, see docs/platform.md: so lanes shuffle.
// Emulated subgroups are wider than the driver's own, whose lanes cannot shuffle so far.
fn largest_of_subgroup(magnitude: f32) -> f32 {
    if (EMULATED) {
        return bitcast<f32>(subgroupMax(bitcast<u32>(magnitude)));
    }
    var largest = magnitude;
    for (var distance = 1u; distance < 32u; distance *= 2u) {
        largest = max(largest, subgroupShuffleXor(largest, distance));
    }
    return largest;
}

// A power of two that brings numbers up to `largest` to below 2^15, and its inverse.
fn f16_scale(largest: f32) -> vec2<f32> {
    let exponent = clamp(268u - (bitcast<u32>(largest) >> 23u), 67u, 187u);
    return vec2(bitcast<f32>(exponent << 23u), bitcast<f32>((254u - exponent) << 23u));
}
