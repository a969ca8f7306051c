// linear.coop_output: the outputs of one chunk of one query head, on matrix units. One workgroup
// walks the chunk with the state in its matrices: a block's queries meet the state before it, then
// the block's own keys, and then the state takes the block in.
//  1. What the state answers decays by the row, which no matrix can: it is summed in a matrix of its
//     own and joined with the rest on the way out.
//  2. A weight of 0 meets every value of its block, so values that are no finite number are staged
//     as 0, and from their token on their columns are spoilt. The loop over blocks is left for a
//     careful one where the first of them comes.
// Scores are in coop_scores.wgsl.
// Barriers: three of the workgroup for each block of BLOCK tokens.

const WIDE_ROOMS: u32 = STRIPS;
const QUERY_STRIDE: u32 = FEATURE_VECS + 2u;
// Behind the queries lie the scores [BLOCK, BLOCK].
const SCORES_AT: u32 = BLOCK * QUERY_STRIDE;
const SCORE_STRIDE: u32 = BLOCK / 4u + 2u;
const QUERY_VECS: u32 = SCORES_AT + BLOCK * SCORE_STRIDE;
const SCORE_TILES: u32 = TOKEN_TILES * (TOKEN_TILES + 1u) / 2u;
const SCORE_SHARE: u32 = (SCORE_TILES + STRIPS - 1u) / STRIPS;
const NEVER: u32 = 0xffffffffu;

alias Answers = array<coop_mat16x16<f32, C>, TOKEN_TILES>;

// The token of the chunk from which on a column is no finite number; whether there is any.
var<workgroup> spoilt_since: array<atomic<u32>, 16u * STRIPS>;
var<workgroup> any_spoilt: atomic<u32>;

fn fetch_queries(next: ptr<function, array<Ahead, KEY_LOADS>>, thread: u32, here: Place, head: u32, first: u32) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let row = query_start(here.batch, head, token_at(here.chunk, first + i / FEATURE_VECS));
        (*next)[n] = query_ahead(row, 4u * (i % FEATURE_VECS));
    }
}

fn put_queries(next: ptr<function, array<Ahead, KEY_LOADS>>, thread: u32) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let vector = i % FEATURE_VECS;
        if (BLOCK * FEATURE_VECS % THREADS == 0u || i < BLOCK * FEATURE_VECS) {
            tiles.queries[i / FEATURE_VECS * QUERY_STRIDE + vector] = vec4<f16>(features_of((*next)[n], 4u * vector));
        }
    }
}

// Multiplies the block's queries with the strip's state; gives what the answers are to be multiplied by.
fn ask_state(answers: ptr<function, Answers>, state: ptr<function, State>, zero: coop_mat16x16<f32, C>, lane: Lane) -> f32 {
    var numbers: array<vec4<f32>, 2u * FEATURE_TILES>;
    var largest = 0u;
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        coopStoreT((*state)[f], &tiles.wide[16u * lane.strip * ROOM_STRIDE], ROOM_STRIDE);
        subgroupBarrier();
        numbers[2u * f] = tiles.wide[lane.room + lane.half];
        numbers[2u * f + 1u] = tiles.wide[lane.room + 2u + lane.half];
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
        let rows = right_factor(lane, scale.x * numbers[2u * f], scale.x * numbers[2u * f + 1u]);
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

// A lane's vector `n` of values without those that are no finite number, whose columns are noted.
fn sound_values(x: vec4<f32>, n: u32, lane: Lane, block: Block) -> vec4<f32> {
    let spoilt = is_spoilt(x);
    if (any(spoilt)) {
        // unroll
        for (var e = 0u; e < 4u; e++) {
            if (spoilt[e]) {
                let column = 4u * (4u * lane.strip + 2u * (n % 2u) + lane.half) + e;
                atomicMin(&spoilt_since[column], block.first + 16u * (n / 2u) + lane.row);
            }
        }
    }
    return select(x, vec4(0.0), spoilt);
}

// Puts a block down and loads the next one, from token `following` of the chunk on.
fn stage(
    next: ptr<function, Next>,
    next_queries: ptr<function, array<Ahead, KEY_LOADS>>,
    values: ptr<function, Strip>,
    thread: u32,
    here: Place,
    head: u32,
    lane: Lane,
    following: u32,
) {
    workgroupBarrier();
    put(next, thread, following - BLOCK);
    put_queries(next_queries, thread);
    if (holds_non_finite(next)) {
        atomicStore(&any_spoilt, 1u);
    }
    workgroupBarrier();
    *values = values_of(next, lane);
    fetch(next, thread, lane, here, following);
    fetch_queries(next_queries, thread, here, head, following);
}

// The outputs of a block that is staged, and the state after it; `careful` where a value may be no
// finite number.
fn answer(
    state_strip: ptr<function, State>,
    values: ptr<function, Strip>,
    shares: ptr<function, array<ScoreTile, SCORE_SHARE>>,
    decays: ptr<function, Decays>,
    zero: coop_mat16x16<f32, C>,
    here: Place,
    head: u32,
    lane: Lane,
    block: Block,
    careful: bool,
) {
    score(shares, decays, zero, lane);
    var answers: Answers;
    let state_scale = ask_state(&answers, state_strip, zero, lane);
    workgroupBarrier();

    var sound: array<coop_mat16x16<f16, B>, TOKEN_TILES>;
    // unroll
    for (var t = 0u; t < TOKEN_TILES; t++) {
        put_right(lane, (*values)[2u * t], (*values)[2u * t + 1u]);
        if (careful) {
            put_right(lane, sound_values((*values)[2u * t], 2u * t, lane, block),
                sound_values((*values)[2u * t + 1u], 2u * t + 1u, lane, block));
        }
        sound[t] = load_right(lane);
    }
    // unroll
    for (var t = 0u; t < TOKEN_TILES; t++) {
        var sums = zero;
        // unroll
        for (var k = 0u; k < t + 1u; k++) {
            let weights = coopLoadT<coop_mat16x16<f16, A>>(&tiles.queries[SCORES_AT + 16u * t * SCORE_STRIDE + 4u * k], SCORE_STRIDE);
            sums = sums + coopMultiplyAdd(weights, sound[k], zero) * score_units[t * (t + 1u) / 2u + k];
        }
        let local = 16u * t + lane.row;
        let row = here.chunk.begin + block.first + min(local, block.count - 1u);
        var factor = params.scale;
        if (NORMALIZE) {
            factor /= token_value(head, here.batch, row) + params.epsilon;
        }
        let state_factor = factor * state_scale * (*decays).state[t];
        coopStoreT(answers[t], &tiles.wide[16u * lane.strip * ROOM_STRIDE], ROOM_STRIDE);
        subgroupBarrier();
        var from_state = array<vec4<f32>, 2>(
            state_factor * tiles.wide[lane.room + 2u * lane.half],
            state_factor * tiles.wide[lane.room + 2u * lane.half + 1u]);
        subgroupBarrier();
        coopStoreT(sums, &tiles.wide[16u * lane.strip * ROOM_STRIDE], ROOM_STRIDE);
        subgroupBarrier();
        // Other vectors than elsewhere: two lanes store a row.
        let first_dim = 8u * (2u * lane.strip + lane.half);
        var numbers: array<vec4<f32>, 2>;
        // unroll
        for (var n = 0u; n < 2u; n++) {
            numbers[n] = from_state[n] + factor * tiles.wide[lane.room + 2u * lane.half + n];
            if (careful) {
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    if (atomicLoad(&spoilt_since[first_dim + 4u * n + e]) <= block.first + local) {
                        numbers[n][e] = bitcast<f32>(params.len | 0x7fc00000u);
                    }
                }
            }
        }
        if (local < block.count) {
            let out_start = params.out.w + here.batch * params.out.x + head * params.out.y + row * params.out.z;
            store_eight(out_start + first_dim, remaining(params.value_dim, first_dim), numbers[0], numbers[1]);
        }
        subgroupBarrier();
    }
    if (block.first + BLOCK < here.chunk.count) {
        // A copy, since naga passes no pointer to a member on.
        var left = (*decays).left;
        take_in(state_strip, values, &left, zero, lane);
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
    let thread = 32u * subgroup + subgroup_lane;
    let lane = lane_of(0u, subgroup, subgroup_lane);
    let slope = slope_in_block(here.head);
    for (var i = thread; i < 16u * STRIPS; i += THREADS) {
        atomicStore(&spoilt_since[i], NEVER);
    }
    if (thread == 0u) {
        atomicStore(&any_spoilt, 0u);
    }
    let zero = zero_matrix(lane);

    // state [FEATURE_TILES * 16, 16] of this subgroup
    var state_strip: State;
    let entry = entry_start(here);
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        state_strip[f] = coopLoadT<coop_mat16x16<f32, C>>(
            &state[entry + 16u * f * VALUE_VECS + lane.column], VALUE_VECS);
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
    var values: Strip;
    var next: Next;
    var next_queries: array<Ahead, KEY_LOADS>;
    fetch(&next, thread, lane, here, 0u);
    fetch_queries(&next_queries, thread, here, head, 0u);
    var first = 0u;
    for (; first < here.chunk.count; first += BLOCK) {
        stage(&next, &next_queries, &values, thread, here, head, lane, first + BLOCK);
        if (GATED) {
            decays = decays_of(slope, &shares, lane);
        }
        // The branch also keeps the loads above where they are.
        if (atomicLoad(&any_spoilt) != 0u) {
            break;
        }
        answer(&state_strip, &values, &shares, &decays, zero, here, head, lane, block_at(here, first), false);
    }
    while (first < here.chunk.count) {
        answer(&state_strip, &values, &shares, &decays, zero, here, head, lane, block_at(here, first), true);
        first += BLOCK;
        if (first < here.chunk.count) {
            stage(&next, &next_queries, &values, thread, here, head, lane, first + BLOCK);
            if (GATED) {
                decays = decays_of(slope, &shares, lane);
            }
        }
    }
}
