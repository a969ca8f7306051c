// linear.coop_state: what each chunk by itself adds to the state, Σ decay · k vᵀ, on matrix units.
// One workgroup walks one chunk of one key head and keeps SLICE_VECS of the sum's columns in its
// matrices; they are written once, in f32.
//  1. Where outputs are all that is asked for, which are rounded to f16, keys are put down multiplied
//     by what is left of them at the block's end, and values are taken as they are.
//  2. A state that is kept must be exact to f32. With EXACT, decays are applied to the values of the
//     strip, and what f16 leaves of a factor is a factor of its own.
// Barriers: two of the workgroup for each block of BLOCK tokens.

// Matrices load from addresses that are multiples of 16 bytes: vectors of f32 come first, and every
// array is a multiple of 16 bytes long.
struct Tiles {
    // [16, 16]
    zeros: array<vec4<f32>, 64>,
    // [16, 16] of each subgroup
    narrow: array<vec4<f16>, ROOM_VECS>,
    keys: array<vec4<f16>, BLOCK * KEY_STRIDE>,
}

var<workgroup> tiles: Tiles;

// A lane's part of the strip's values [BLOCK, 16]: two vectors of a row of each matrix.
alias Strip = array<vec4<f32>, 2u * TOKEN_TILES>;
alias NextStrip = array<Word, 2u * TOKEN_TILES / WORD_VECS>;

// The vector that a lane's n-th of the strip is, among those of the values.
fn vector_of(n: u32, lane: Lane) -> u32 {
    return lane.column + 2u * lane.half + n % 2u;
}

fn fetch_strip(next: ptr<function, NextStrip>, lane: Lane, here: Place, first: u32) {
    let value_start = params.value.w + here.batch * params.value.x + here.head * params.value.y;
    // unroll
    for (var n = 0u; n < 2u * TOKEN_TILES; n += WORD_VECS) {
        let index = token_at(here.chunk, first + 16u * (n / 2u) + lane.row);
        (*next)[n / WORD_VECS] = value_ahead(value_start + index * params.value.z, 4u * vector_of(n, lane));
    }
}

// A lane's values of a block; 0 beyond the last dimension.
fn strip_of(next: ptr<function, NextStrip>, lane: Lane) -> Strip {
    var strip: Strip;
    // unroll
    for (var n = 0u; n < 2u * TOKEN_TILES; n++) {
        let loaded = unpack4(vector_of_word((*next)[n / WORD_VECS], n % WORD_VECS));
        strip[n] = select(vec4(0.0), loaded, WHOLE || 4u * vector_of(n, lane) < params.value_dim);
    }
    return strip;
}

// A matrix of which each lane gives its two vectors.
fn right_factor(lane: Lane, left: vec4<f32>, right: vec4<f32>) -> coop_mat16x16<f16, B> {
    let row = row_of(lane) + 2u * lane.half;
    tiles.narrow[row] = vec4<f16>(left);
    tiles.narrow[row + 1u] = vec4<f16>(right);
    subgroupBarrier();
    let factor = coopLoadT<coop_mat16x16<f16, B>>(&tiles.narrow[room_of(lane)], ROOM_STRIDE);
    subgroupBarrier();
    return factor;
}

// What is left when the block ends: of each of a lane's rows of values, nothing of those that it lacks,
// and of the sum before the block.
struct Left {
    rows: array<f32, TOKEN_TILES>,
    sum: f32,
}

fn left_at_end(slope: f32, lane: Lane, last: u32) -> Left {
    var left: Left;
    // unroll
    for (var t = 0u; t < TOKEN_TILES; t++) {
        let local = 16u * t + lane.row;
        left.rows[t] = select(0.0, left_between(slope, last, local), local <= last);
    }
    left.sum = left_of_state(slope, last);
    return left;
}

// Numbers of 11 bits next to those given, by their bits: a conversion to f16 and back, some compilers
// leave out.
fn f16_part(x: vec4<f32>) -> vec4<f32> {
    return bitcast<vec4<f32>>((bitcast<vec4<u32>>(x) + vec4(0x1000u)) & vec4(0xffffe000u));
}

// Takes a block into the strip's sum: what is left of it, and Σ decay · k vᵀ.
fn take_in_exactly(
    state: ptr<function, State>,
    values: ptr<function, Strip>,
    left: ptr<function, Left>,
    zero: coop_mat16x16<f32, C>,
    lane: Lane,
) {
    var largest = 0.0;
    // unroll
    for (var n = 0u; n < 2u * TOKEN_TILES; n++) {
        (*values)[n] *= (*left).rows[n / 2u];
        largest = max(largest, largest_finite((*values)[n]));
    }
    let scale = f16_scale(largest_of_subgroup(largest));
    var decayed: Values;
    var rests: Values;
    // unroll
    for (var t = 0u; t < TOKEN_TILES; t++) {
        let first = scale.x * (*values)[2u * t];
        let second = scale.x * (*values)[2u * t + 1u];
        decayed[t] = right_factor(lane, f16_part(first), f16_part(second));
        rests[t] = right_factor(lane, first - f16_part(first), second - f16_part(second));
    }
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        var added = zero;
        // unroll
        for (var t = 0u; t < TOKEN_TILES; t++) {
            // The transpose of the keys.
            let keys = coopLoad<coop_mat16x16<f16, A>>(&tiles.keys[16u * t * KEY_STRIDE + 4u * f], KEY_STRIDE);
            added = coopMultiplyAdd(keys, decayed[t], added);
            added = coopMultiplyAdd(keys, rests[t], added);
        }
        (*state)[f] = (*state)[f] * (*left).sum + added * scale.y;
    }
}

// A strip as matrices.
fn values_of(values: ptr<function, Values>, strip: ptr<function, Strip>, lane: Lane) {
    // unroll
    for (var t = 0u; t < TOKEN_TILES; t++) {
        (*values)[t] = right_factor(lane, (*strip)[2u * t], (*strip)[2u * t + 1u]);
    }
}

// With gates, what is lost from the chunk's start on: up to each of a thread's next keys, up to the end
// of their block, and before it.
struct NextLost {
    keys: array<vec2<f32>, KEY_LOADS>,
    end: vec2<f32>,
    before: vec2<f32>,
}

fn fetch_lost(next: ptr<function, NextLost>, lane: Lane, here: Place, first: u32) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        (*next).keys[n] = gate_sum(here, min(first + token_of_key(n, lane), CHUNK - 1u), 0u);
    }
    (*next).end = gate_sum(here, min(first + BLOCK, CHUNK) - 1u, 0u);
    (*next).before = select(vec2(0.0), gate_sum(here, min(max(first, 1u), CHUNK) - 1u, 0u), first > 0u);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let index = workgroup_number(group, groups);
    if (index >= params.workgroups) {
        return;
    }
    let here = place(index / params.slices);
    // Nobody sees what comes after a document, unless it is carried out: the other chunks are whole.
    if (here.chunk.count == 0u || (!EXACT && here.chunk.is_last)) {
        return;
    }
    let lane = lane_of(index % params.slices, subgroup, subgroup_lane);
    let slope = slope_in_block(here.head);
    // No literal makes a matrix: this one comes from memory.
    for (var i = lane.thread; i < 64u; i += THREADS) {
        tiles.zeros[i] = vec4(0.0);
    }
    workgroupBarrier();
    let zero = coopLoadT<coop_mat16x16<f32, C>>(&tiles.zeros[0], 4u);

    // state [FEATURE_TILES * 16, 16] of this subgroup
    var state_strip: State;
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        state_strip[f] = zero;
    }
    var next_keys: NextKeys;
    var next_lost: NextLost;
    var next_strip: NextStrip;
    fetch_keys(&next_keys, lane, here, 0u);
    fetch_strip(&next_strip, lane, here, 0u);
    var keys_left: KeysLeft;
    var sum_left = 0.0;
    if (!EXACT && GATED) {
        fetch_lost(&next_lost, lane, here, 0u);
    } else if (!EXACT) {
        keys_left = left_of_keys(slope, lane);
        sum_left = left_of_state(slope, BLOCK - 1u);
    }
    // rounds: CHUNK / BLOCK
    for (var first = 0u; first < here.chunk.count; first += BLOCK) {
        workgroupBarrier();
        if (!EXACT && GATED) {
            // unroll
            for (var n = 0u; n < KEY_LOADS; n++) {
                keys_left[n] = decay_between(next_lost.end, next_lost.keys[n]);
            }
            sum_left = decay_between(next_lost.end, next_lost.before);
        }
        put_keys(&next_keys, lane, first, &keys_left, !EXACT);
        workgroupBarrier();
        var strip = strip_of(&next_strip, lane);
        fetch_keys(&next_keys, lane, here, first + BLOCK);
        fetch_strip(&next_strip, lane, here, first + BLOCK);
        if (!EXACT && GATED) {
            fetch_lost(&next_lost, lane, here, first + BLOCK);
        }
        if (EXACT) {
            var left = left_at_end(slope, lane, min(BLOCK, here.chunk.count - first) - 1u);
            take_in_exactly(&state_strip, &strip, &left, zero, lane);
        } else {
            // Never taken. What both sides of a branch use is loaded before it, and not where it is used.
            if (params.len == 0u) {
                put_keys(&next_keys, lane, first, &keys_left, false);
                strip = strip_of(&next_strip, lane);
                tiles.narrow[row_of(lane)] = vec4<f16>(strip[0] + strip[2u * TOKEN_TILES - 1u]);
                break;
            }
            var values: Values;
            values_of(&values, &strip, lane);
            take_in(&state_strip, &values, sum_left);
        }
    }
    let entry = entry_start(here);
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        coopStoreT(state_strip[f], &state[entry + 16u * f * VALUE_VECS + lane.column], VALUE_VECS);
    }
}
