// What the kernels of linear attention on matrix units share: cooperative matrices of 16 x 16, f16
// products summed in f32. A workgroup walks a chunk BLOCK tokens at a time; a subgroup owns a strip
// of 16 columns, of the state and of all that is made of values, and nobody else sees its strip:
//  1. A matrix's elements cannot be touched, so what must be scaled goes through the subgroup's room
//     for one matrix, in f32 or f16, and only the subgroup itself waits for that.
//  2. Factors in f16 are multiplied by the power of two that their largest finite element allows, so
//     that neither long sums nor small numbers leave its range.
//  3. A state that is kept must be exact to f32, where outputs are rounded to f16: with EXACT, what
//     f16 leaves of a factor is a factor of its own.
//  4. Keys and values are loaded a block ahead and without a condition, or the load would be waited
//     for at once: tokens beyond the chunk are copies of its last, of which nothing is left.
//  5. Where decay is constant, what it leaves inside of a block is the same in every one, and stays in
//     registers.
// Expects: chunks.wgsl, tensors.wgsl, load_vec4.wgsl, const BLOCK, SLICE_VECS, WHOLE, EXACT, WIDE_ROOMS,
// QUERY_VECS.

const FEATURE_TILES: u32 = FEATURE_VECS / 4u;
const TOKEN_TILES: u32 = BLOCK / 16u;
const STRIPS: u32 = SLICE_VECS / 4u;
const THREADS: u32 = 32u * STRIPS;
// Strides in vectors of four; the padding keeps rows out of each other's banks.
const KEY_STRIDE: u32 = FEATURE_VECS + 2u;
const ROOM_STRIDE: u32 = 6u;
const KEY_LOADS: u32 = (BLOCK * FEATURE_VECS + THREADS - 1u) / THREADS;
const LOST_LOADS: u32 = (BLOCK + THREADS - 1u) / THREADS;

const_assert FEATURE_VECS % 4u == 0u && SLICE_VECS % 4u == 0u && VALUE_VECS % SLICE_VECS == 0u;
const_assert BLOCK % 16u == 0u && CHUNK % BLOCK == 0u;

// Matrices load from addresses that are multiples of 16 bytes: vectors of f32 come first, and every
// array is a multiple of 16 bytes long.
struct Tiles {
    // [16, 16] of each subgroup
    wide: array<vec4<f32>, WIDE_ROOMS * 16u * ROOM_STRIDE>,
    narrow: array<vec4<f16>, STRIPS * 16u * ROOM_STRIDE>,
    keys: array<vec4<f16>, BLOCK * KEY_STRIDE>,
    queries: array<vec4<f16>, QUERY_VECS>,
}

var<workgroup> tiles: Tiles;
// With gates: −log of what is left of the state before the block after each of its tokens, a whole
// number and a fraction.
var<workgroup> lost: array<vec2<f32>, BLOCK>;

alias State = array<coop_mat16x16<f32, C>, FEATURE_TILES>;
// A lane's part of [BLOCK, 16]: two vectors of a row of each matrix.
alias Strip = array<vec4<f32>, 2u * TOKEN_TILES>;

struct Lane {
    strip: u32, // its subgroup
    column: u32, // the first vector of its strip, among those of the values
    row: u32, // of a matrix
    half: u32, // vectors `half` and `half + 2` of the row are its own
    room: u32, // where its row starts in its subgroup's room
}

fn lane_of(slice: u32, subgroup: u32, subgroup_lane: u32) -> Lane {
    let row = subgroup_lane / 2u;
    return Lane(subgroup, slice * SLICE_VECS + 4u * subgroup, row, subgroup_lane % 2u, (16u * subgroup + row) * ROOM_STRIDE);
}

// The block that is computed: its tokens are `first` and on, in the chunk.
struct Block {
    first: u32,
    count: u32,
}

fn block_at(here: Place, first: u32) -> Block {
    return Block(first, min(BLOCK, here.chunk.count - first));
}

// A thread's share of the next block, under way while it computes.
struct Next {
    key: array<Ahead, KEY_LOADS>,
    value: array<Ahead, 2u * TOKEN_TILES>,
    lost: array<vec2<f32>, LOST_LOADS>,
    lost_before: vec2<f32>,
}

fn fetch(next: ptr<function, Next>, thread: u32, lane: Lane, here: Place, first: u32) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let row = key_start(here.batch, here.head, token_at(here.chunk, first + i / FEATURE_VECS));
        (*next).key[n] = key_ahead(row, 4u * (i % FEATURE_VECS));
    }
    let value_start = params.value.w + here.batch * params.value.x + here.head * params.value.y;
    // unroll
    for (var n = 0u; n < 2u * TOKEN_TILES; n++) {
        let index = token_at(here.chunk, first + 16u * (n / 2u) + lane.row);
        let vector = lane.column + 2u * (n % 2u) + lane.half;
        (*next).value[n] = value_ahead(value_start + index * params.value.z, 4u * vector);
    }
    if (GATED) {
        // unroll
        for (var n = 0u; n < LOST_LOADS; n++) {
            let local = first + min(n * THREADS + thread, BLOCK - 1u);
            (*next).lost[n] = gate_sum(here, min(local, CHUNK - 1u), 0u);
        }
        (*next).lost_before = gate_sum(here, min(max(first, 1u), CHUNK) - 1u, 0u);
    }
}

// Four elements; 0 beyond the last, where dims are no WHOLE matrices.
fn features_of(vector: Ahead, dim: u32) -> vec4<f32> {
    let features = arrived(vector);
    return select(vec4(0.0), features, WHOLE || dim < params.head_dim);
}

// Numbers of 11 bits next to those given, by their bits: a conversion to f16 and back, some compilers
// leave out.
fn f16_part(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((bitcast<vec4<u32>>(x) + vec4(0x1000u)) & vec4(0xffffe000u));
}

// Puts down the block that begins at token `first` of the chunk.
fn put(next: ptr<function, Next>, thread: u32, first: u32) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let at = i / FEATURE_VECS * KEY_STRIDE + i % FEATURE_VECS;
        if (BLOCK * FEATURE_VECS % THREADS == 0u || i < BLOCK * FEATURE_VECS) {
            tiles.keys[at] = vec4<f16>(features_of((*next).key[n], 4u * (i % FEATURE_VECS)));
        }
    }
    if (GATED) {
        // unroll
        for (var n = 0u; n < LOST_LOADS; n++) {
            let local = n * THREADS + thread;
            if (local < BLOCK) {
                lost[local] = (*next).lost[n] - select(vec2(0.0), (*next).lost_before, first > 0u);
            }
        }
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

// What is left when the block ends: of each of a lane's rows, nothing of those that it lacks, and of
// the state before the block.
struct Left {
    rows: array<f32, TOKEN_TILES>,
    state: f32,
}

fn left_at_end(slope: f32, lane: Lane, block: Block) -> Left {
    var left: Left;
    let last = block.count - 1u;
    // unroll
    for (var t = 0u; t < TOKEN_TILES; t++) {
        let local = 16u * t + lane.row;
        left.rows[t] = select(0.0, left_between(slope, last, local), local <= last);
    }
    left.state = left_of_state(slope, last);
    return left;
}

// The largest finite magnitude among four numbers, in bits that order as the numbers do: without
// signs and with exponents one higher, so that those of no finite numbers run over to 0.
fn largest_bits(x: vec4<f32>) -> u32 {
    let bits = (bitcast<vec4<u32>>(x) << vec4(1u)) + vec4(0x01000000u);
    return max(max(bits.x, bits.y), max(bits.z, bits.w));
}

// A power of two that brings a number of these bits to between 2^14 and 2^15, and its inverse.
fn f16_scale(bits: u32) -> vec2<f32> {
    let exponent = clamp(269u - (bits >> 24u), 67u, 187u);
    return vec2(bitcast<f32>(exponent << 23u), bitcast<f32>((254u - exponent) << 23u));
}

// Whether some of a lane's values of a block are no finite numbers.
fn holds_non_finite(next: ptr<function, Next>) -> bool {
    var found = false;
    // unroll
    for (var n = 0u; n < 2u * TOKEN_TILES; n++) {
        found = found | exceeds_f16((*next).value[n]);
    }
    return found;
}

// A lane's values of a block; 0 beyond the last dimension.
fn values_of(next: ptr<function, Next>, lane: Lane) -> Strip {
    var strip: Strip;
    // unroll
    for (var n = 0u; n < 2u * TOKEN_TILES; n++) {
        let dim = 4u * (lane.column + 2u * (n % 2u) + lane.half);
        strip[n] = select(vec4(0.0), arrived((*next).value[n]), WHOLE || dim < params.value_dim);
    }
    return strip;
}

// A matrix of which each lane gives its two vectors.
fn right_factor(lane: Lane, left: vec4<f32>, right: vec4<f32>) -> coop_mat16x16<f16, B> {
    put_right(lane, left, right);
    return load_right(lane);
}

fn put_right(lane: Lane, left: vec4<f32>, right: vec4<f32>) {
    tiles.narrow[lane.room + lane.half] = vec4<f16>(left);
    tiles.narrow[lane.room + 2u + lane.half] = vec4<f16>(right);
}

fn load_right(lane: Lane) -> coop_mat16x16<f16, B> {
    subgroupBarrier();
    let factor = coopLoadT<coop_mat16x16<f16, B>>(&tiles.narrow[16u * lane.strip * ROOM_STRIDE], ROOM_STRIDE);
    subgroupBarrier();
    return factor;
}

// No literal makes a matrix: this one comes from memory, the first room's, before that is used.
fn zero_matrix(lane: Lane) -> coop_mat16x16<f32, C> {
    tiles.wide[lane.row * ROOM_STRIDE + lane.half] = vec4(0.0);
    tiles.wide[lane.row * ROOM_STRIDE + 2u + lane.half] = vec4(0.0);
    subgroupBarrier();
    return coopLoadT<coop_mat16x16<f32, C>>(&tiles.wide[0], ROOM_STRIDE);
}

// Takes a block into the strip's state: what is left of it, and Σ decay · k vᵀ. Decays are applied
// to the values, which are the strip's own.
fn take_in(
    state: ptr<function, State>,
    values: ptr<function, Strip>,
    left: ptr<function, Left>,
    zero: coop_mat16x16<f32, C>,
    lane: Lane,
) {
    var largest = 0u;
    // unroll
    for (var n = 0u; n < 2u * TOKEN_TILES; n++) {
        (*values)[n] *= (*left).rows[n / 2u];
        largest = max(largest, largest_bits((*values)[n]));
    }
    let scale = f16_scale(subgroupMax(largest));
    var decayed: array<coop_mat16x16<f16, B>, TOKEN_TILES>;
    var rests: array<coop_mat16x16<f16, B>, TOKEN_TILES>;
    // unroll
    for (var t = 0u; t < TOKEN_TILES; t++) {
        let first = scale.x * (*values)[2u * t];
        let second = scale.x * (*values)[2u * t + 1u];
        if (EXACT) {
            decayed[t] = right_factor(lane, f16_part(first), f16_part(second));
            rests[t] = right_factor(lane, first - f16_part(first), second - f16_part(second));
        } else {
            decayed[t] = right_factor(lane, first, second);
        }
    }
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        var added = zero;
        // unroll
        for (var t = 0u; t < TOKEN_TILES; t++) {
            // The transpose of the keys.
            let keys = coopLoad<coop_mat16x16<f16, A>>(&tiles.keys[16u * t * KEY_STRIDE + 4u * f], KEY_STRIDE);
            added = coopMultiplyAdd(keys, decayed[t], added);
            if (EXACT) {
                added = coopMultiplyAdd(keys, rests[t], added);
            }
        }
        (*state)[f] = (*state)[f] * (*left).state + added * scale.y;
    }
}
