// linear.coop_output: the outputs of one chunk of one query head, on matrix units. One workgroup
// walks the chunk with the state in its matrices: a block's queries meet the state before it, then
// the block's own keys, and then the state takes the block in.
//  1. What the state answers decays by the row, which no matrix can: it is summed in a matrix of its
//     own and joined with the rest on the way out.
//  2. A weight of 0 meets every value of its block, so values that are no finite number are staged
//     as 0, and from their token on their columns are spoilt. The loop over blocks is left for a
//     careful one where the first of them comes.
//  3. When the state has answered, values take the place of the rooms in which it went into f16, and
//     keys are replaced by what is left of them at the block's end: the state takes in products of
//     what lies there, and no subgroup scales anything for that.
// Scores are in coop_scores.wgsl.
// Barriers: four of the workgroup for each block of BLOCK tokens.

const QUERY_STRIDE: u32 = FEATURE_VECS + 2u;
// Behind the queries lie the scores [BLOCK, BLOCK].
const SCORES_AT: u32 = BLOCK * QUERY_STRIDE;
const SCORE_STRIDE: u32 = BLOCK / 4u + 2u;
const SCORE_TILES: u32 = TOKEN_TILES * (TOKEN_TILES + 1u) / 2u;
const SCORE_SHARE: u32 = (SCORE_TILES + STRIPS - 1u) / STRIPS;
const VALUE_STRIDE: u32 = SLICE_VECS + 2u;
const VALUE_LOADS: u32 = (BLOCK * SLICE_VECS + THREADS - 1u) / THREADS;
// Subgroups have rooms for a matrix [16, 16], up to four of them side by side.
const ROOM_ROWS: u32 = (STRIPS + 3u) / 4u;
const ABREAST: u32 = (STRIPS + ROOM_ROWS - 1u) / ROOM_ROWS;
const ROOM_STRIDE: u32 = 4u * ABREAST + 2u;
const ROOM_VECS: u32 = ROOM_ROWS * 16u * ROOM_STRIDE;
const NEVER: u32 = 0xffffffffu;

// Matrices load from addresses that are multiples of 16 bytes: vectors of f32 come first, and every
// array is a multiple of 16 bytes long.
struct Tiles {
    wide: array<vec4<f32>, ROOM_VECS>,
    keys: array<vec4<f16>, BLOCK * KEY_STRIDE>,
    queries: array<vec4<f16>, SCORES_AT + BLOCK * SCORE_STRIDE>,
    // [BLOCK, SLICE_VECS], or rooms
    values: array<vec4<f16>, max(BLOCK * VALUE_STRIDE, ROOM_VECS)>,
}

var<workgroup> tiles: Tiles;
// The token of the chunk from which on a column is no finite number; whether there is any.
var<workgroup> spoilt_since: array<atomic<u32>, 16u * STRIPS>;
var<workgroup> any_spoilt: atomic<u32>;

// Where a lane's subgroup's room starts.
fn room_of(lane: Lane) -> u32 {
    return lane.strip / ABREAST * 16u * ROOM_STRIDE + lane.strip % ABREAST * 4u;
}

// Where its row of it starts.
fn row_of(lane: Lane) -> u32 {
    return room_of(lane) + lane.row * ROOM_STRIDE;
}

alias Answers = array<coop_mat16x16<f32, C>, TOKEN_TILES>;
alias NextQueries = array<Ahead, KEY_LOADS>;
alias NextValues = array<Ahead, VALUE_LOADS>;

fn fetch_queries(next: ptr<function, NextQueries>, lane: Lane, here: Place, head: u32, first: u32) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let row = query_start(here.batch, head, token_at(here.chunk, first + token_of_key(n, lane)));
        (*next)[n] = query_ahead(row, 4u * vector_of_key(n, lane));
    }
}

// queries [BLOCK, FEATURE_VECS]
fn put_queries(next: ptr<function, NextQueries>, lane: Lane) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let vector = vector_of_key(n, lane);
        if (BLOCK * FEATURE_VECS % THREADS == 0u || token_of_key(n, lane) < BLOCK) {
            tiles.queries[token_of_key(n, lane) * QUERY_STRIDE + vector] = vec4<f16>(features_of((*next)[n], 4u * vector));
        }
    }
}

// The token of the block and the vector that a thread's n-th vector of values is.
fn token_of_value(n: u32, lane: Lane) -> u32 {
    return (n * THREADS + lane.thread) / SLICE_VECS;
}

fn vector_of_value(n: u32, lane: Lane) -> u32 {
    return (n * THREADS + lane.thread) % SLICE_VECS;
}

fn fetch_values(next: ptr<function, NextValues>, lane: Lane, here: Place, first: u32) {
    let start = params.value.w + here.batch * params.value.x + here.head * params.value.y;
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let token = token_at(here.chunk, first + token_of_value(n, lane));
        (*next)[n] = value_ahead(start + token * params.value.z, 4u * vector_of_value(n, lane));
    }
}

// Multiplies the block's queries with the strip's state; gives what the answers are to be multiplied by.
fn ask_state(answers: ptr<function, Answers>, state: ptr<function, State>, zero: coop_mat16x16<f32, C>, lane: Lane) -> f32 {
    let room = room_of(lane);
    let row = row_of(lane) + lane.half;
    var numbers: array<vec4<f32>, 2u * FEATURE_TILES>;
    var largest = 0u;
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        coopStoreT((*state)[f], &tiles.wide[room], ROOM_STRIDE);
        subgroupBarrier();
        numbers[2u * f] = tiles.wide[row];
        numbers[2u * f + 1u] = tiles.wide[row + 2u];
        subgroupBarrier();
        largest = max(largest, max(largest_bits(numbers[2u * f]), largest_bits(numbers[2u * f + 1u])));
    }
    let scale = f16_scale(subgroupMax(largest));
    // unroll
    for (var t = 0u; t < TOKEN_TILES; t++) {
        (*answers)[t] = zero;
    }
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        tiles.values[row] = vec4<f16>(scale.x * numbers[2u * f]);
        tiles.values[row + 2u] = vec4<f16>(scale.x * numbers[2u * f + 1u]);
        subgroupBarrier();
        let rows = coopLoadT<coop_mat16x16<f16, B>>(&tiles.values[room], ROOM_STRIDE);
        subgroupBarrier();
        // unroll
        for (var t = 0u; t < TOKEN_TILES; t++) {
            let queries = coopLoadT<coop_mat16x16<f16, A>>(&tiles.queries[16u * t * QUERY_STRIDE + 4u * f], QUERY_STRIDE);
            (*answers)[t] = coopMultiplyAdd(queries, rows, (*answers)[t]);
        }
    }
    return scale.y;
}

fn is_spoilt(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4(0x7f800000u)) == vec4(0x7f800000u);
}

// Whether some of a thread's values are no finite numbers.
fn holds_non_finite(values: ptr<function, NextValues>) -> bool {
    var found = false;
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        found = found | exceeds_f16((*values)[n]);
    }
    return found;
}

// values [BLOCK, SLICE_VECS]; `careful` where one may be no finite number: those are left out, and
// their columns noted.
fn put_values(values: ptr<function, NextValues>, lane: Lane, first: u32, careful: bool) {
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let vector = vector_of_value(n, lane);
        let row = token_of_value(n, lane);
        var numbers = select(vec4(0.0), arrived((*values)[n]), WHOLE || 4u * vector < params.value_dim);
        if (careful) {
            let spoilt = is_spoilt(numbers);
            // unroll
            for (var e = 0u; e < 4u; e++) {
                if (spoilt[e]) {
                    atomicMin(&spoilt_since[4u * vector + e], first + row);
                }
            }
            numbers = select(numbers, vec4(0.0), spoilt);
        }
        if (BLOCK * SLICE_VECS % THREADS == 0u || row < BLOCK) {
            tiles.values[row * VALUE_STRIDE + vector] = vec4<f16>(numbers);
        }
    }
}

// Multiplies keys by what is left of them when the block ends.
fn decay_keys(decays: ptr<function, Decays>, lane: Lane) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let at = token_of_key(n, lane) * KEY_STRIDE + vector_of_key(n, lane);
        if (BLOCK * FEATURE_VECS % THREADS == 0u || token_of_key(n, lane) < BLOCK) {
            tiles.keys[at] = vec4<f16>((*decays).keys[n] * vec4<f32>(tiles.keys[at]));
        }
    }
}

// Puts a block down, but for its values, and loads the next one, from token `following` of the chunk
// on.
fn stage(
    next_keys: ptr<function, NextKeys>,
    next_queries: ptr<function, NextQueries>,
    next_values: ptr<function, NextValues>,
    values: ptr<function, NextValues>,
    lane: Lane,
    here: Place,
    head: u32,
    following: u32,
) {
    workgroupBarrier();
    put_keys(next_keys, lane, following - BLOCK);
    put_queries(next_queries, lane);
    *values = *next_values;
    if (holds_non_finite(values)) {
        atomicStore(&any_spoilt, 1u);
    }
    workgroupBarrier();
    fetch_keys(next_keys, lane, here, following);
    fetch_queries(next_queries, lane, here, head, following);
    fetch_values(next_values, lane, here, following);
}

// The outputs of a block that is staged, and the state after it; `careful` where a value may be no
// finite number.
fn answer(
    state_strip: ptr<function, State>,
    values: ptr<function, NextValues>,
    shares: ptr<function, array<ScoreTile, SCORE_SHARE>>,
    decays: ptr<function, Decays>,
    zero: coop_mat16x16<f32, C>,
    here: Place,
    head: u32,
    lane: Lane,
    first: u32,
    careful: bool,
) {
    score(shares, decays, zero, lane);
    var answers: Answers;
    let state_scale = ask_state(&answers, state_strip, zero, lane);
    workgroupBarrier();
    put_values(values, lane, first, careful);
    decay_keys(decays, lane);
    workgroupBarrier();

    var factors: array<coop_mat16x16<f16, B>, TOKEN_TILES>;
    // unroll
    for (var t = 0u; t < TOKEN_TILES; t++) {
        factors[t] = coopLoadT<coop_mat16x16<f16, B>>(&tiles.values[16u * t * VALUE_STRIDE + lane.column], VALUE_STRIDE);
    }
    let room = room_of(lane);
    // Two neighbouring vectors, other ones than elsewhere: two lanes store a row.
    let row = row_of(lane) + 2u * lane.half;
    let first_dim = 4u * (lane.column + 2u * lane.half);
    let count = min(BLOCK, here.chunk.count - first);
    // unroll
    for (var t = 0u; t < TOKEN_TILES; t++) {
        var sums = zero;
        // unroll
        for (var k = 0u; k < t + 1u; k++) {
            let weights = coopLoadT<coop_mat16x16<f16, A>>(&tiles.queries[SCORES_AT + 16u * t * SCORE_STRIDE + 4u * k], SCORE_STRIDE);
            sums = sums + coopMultiplyAdd(weights, factors[k], zero) * score_units[t * (t + 1u) / 2u + k];
        }
        let local = 16u * t + lane.row;
        let token = here.chunk.begin + first + min(local, count - 1u);
        var factor = params.scale;
        if (NORMALIZE) {
            factor /= token_value(head, here.batch, token) + params.epsilon;
        }
        let state_factor = factor * state_scale * (*decays).state[t];
        coopStoreT(answers[t], &tiles.wide[room], ROOM_STRIDE);
        subgroupBarrier();
        var from_state = array<vec4<f32>, 2>(state_factor * tiles.wide[row], state_factor * tiles.wide[row + 1u]);
        subgroupBarrier();
        coopStoreT(sums, &tiles.wide[room], ROOM_STRIDE);
        subgroupBarrier();
        var numbers: array<vec4<f32>, 2>;
        // unroll
        for (var n = 0u; n < 2u; n++) {
            numbers[n] = from_state[n] + factor * tiles.wide[row + n];
            if (careful) {
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    if (atomicLoad(&spoilt_since[first_dim + 4u * n + e]) <= first + local) {
                        numbers[n][e] = bitcast<f32>(params.len | 0x7fc00000u);
                    }
                }
            }
        }
        if (local < count) {
            let out_start = params.out.w + here.batch * params.out.x + head * params.out.y + token * params.out.z;
            store_eight(out_start + first_dim, remaining(params.value_dim, first_dim), numbers[0], numbers[1]);
        }
        subgroupBarrier();
    }
    if (first + BLOCK < here.chunk.count) {
        // unroll
        for (var f = 0u; f < FEATURE_TILES; f++) {
            var taken = (*state_strip)[f] * (*decays).left;
            // unroll
            for (var t = 0u; t < TOKEN_TILES; t++) {
                // The transpose of the keys.
                let keys = coopLoad<coop_mat16x16<f16, A>>(&tiles.keys[16u * t * KEY_STRIDE + 4u * f], KEY_STRIDE);
                taken = coopMultiplyAdd(keys, factors[t], taken);
            }
            (*state_strip)[f] = taken;
        }
    }
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
    let here = place(index / params.group);
    let head = here.head * params.group + index % params.group;
    if (here.chunk.count == 0u) {
        return;
    }
    let lane = lane_of(0u, subgroup, subgroup_lane);
    let slope = slope_in_block(here.head);
    for (var i = lane.thread; i < 16u * STRIPS; i += THREADS) {
        atomicStore(&spoilt_since[i], NEVER);
    }
    if (lane.thread == 0u) {
        atomicStore(&any_spoilt, 0u);
    }

    // A matrix that is never written is 0. state [FEATURE_TILES * 16, 16] of this subgroup
    var zero: coop_mat16x16<f32, C>;
    var state_strip: State;
    let entry = entry_start(here);
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        state_strip[f] = coopLoadT<coop_mat16x16<f32, C>>(&state[entry + 16u * f * VALUE_VECS + lane.column], VALUE_VECS);
    }
    var shares: array<ScoreTile, SCORE_SHARE>;
    // unroll
    for (var share = 0u; share < SCORE_SHARE; share++) {
        shares[share] = score_tile(lane, share);
    }
    var decays: Decays;
    if (!GATED) {
        decays = decays_of(slope, &shares, lane);
    }
    var values: NextValues;
    var next_keys: NextKeys;
    var next_queries: NextQueries;
    var next_values: NextValues;
    fetch_keys(&next_keys, lane, here, 0u);
    fetch_queries(&next_queries, lane, here, head, 0u);
    fetch_values(&next_values, lane, here, 0u);
    var first = 0u;
    for (; first < here.chunk.count; first += BLOCK) {
        stage(&next_keys, &next_queries, &next_values, &values, lane, here, head, first + BLOCK);
        if (GATED) {
            decays = decays_of(slope, &shares, lane);
        }
        // The branch also keeps the loads above where they are.
        if (atomicLoad(&any_spoilt) != 0u) {
            break;
        }
        answer(&state_strip, &values, &shares, &decays, zero, here, head, lane, first, false);
    }
    while (first < here.chunk.count) {
        answer(&state_strip, &values, &shares, &decays, zero, here, head, lane, first, true);
        first += BLOCK;
        if (first < here.chunk.count) {
            stage(&next_keys, &next_queries, &next_values, &values, lane, here, head, first + BLOCK);
            if (GATED) {
                decays = decays_of(slope, &shares, lane);
            }
        }
    }
}
