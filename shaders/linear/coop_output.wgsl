// linear.coop_output: the outputs of one chunk of one query head, on matrix units. One workgroup
// walks the chunk with the state in its matrices: a block's queries meet the state before it, then
// the block's own keys, and then the state takes the block in.
//  1. Scores are shared out over the subgroups as whole matrices, only those on and below the
//     diagonal, and come back in f16, each matrix with a power of two of its own.
//  2. What the state answers decays by the row, which no matrix can: it is summed in a matrix of its
//     own and joined with the rest on the way out.
//  3. A weight of 0 meets every value of its block, so values that are no finite number are staged
//     as 0, and from their token on their columns are spoilt.
// Barriers: three of the workgroup for each block of BLOCK tokens.

const WIDE_ROOMS: u32 = STRIPS;
const QUERY_STRIDE: u32 = FEATURE_VECS + 2u;
// Behind the queries lie the scores [BLOCK, BLOCK].
const SCORES_AT: u32 = BLOCK * QUERY_STRIDE;
const SCORE_STRIDE: u32 = BLOCK / 4u + 2u;
const QUERY_VECS: u32 = SCORES_AT + BLOCK * SCORE_STRIDE;
const EXACT: bool = false;
const SCORE_TILES: u32 = TOKEN_TILES * (TOKEN_TILES + 1u) / 2u;
const SCORE_SHARE: u32 = (SCORE_TILES + STRIPS - 1u) / STRIPS;
const NEVER: u32 = 0xffffffffu;

alias Answers = array<coop_mat16x16<f32, C>, TOKEN_TILES>;

// What each matrix of scores is to be multiplied by; the columns of a row are neighbours.
var<workgroup> score_units: array<f32, SCORE_SHARE * STRIPS>;
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
        if (i < BLOCK * FEATURE_VECS) {
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

// The row and the column of matrices of the subgroup's score matrix `share`, which exists where the
// row does.
fn score_tile(lane: Lane, share: u32) -> vec2<u32> {
    var row = 0u;
    var column = share * STRIPS + lane.strip;
    while (column > row) {
        row++;
        column -= row;
    }
    return vec2(row, min(column, TOKEN_TILES - 1u));
}

// Leaves the subgroup's decayed scores of the block behind the queries, 0 above the diagonal.
fn score(zero: coop_mat16x16<f32, C>, lane: Lane) {
    // unroll
    for (var share = 0u; share < SCORE_SHARE; share++) {
        let tile = score_tile(lane, share);
        var products = zero;
        if (tile.x < TOKEN_TILES) {
            // unroll
            for (var f = 0u; f < FEATURE_TILES; f++) {
                let queries = coopLoadT<coop_mat16x16<f16, A>>(&tiles.queries[16u * tile.x * QUERY_STRIDE + 4u * f], QUERY_STRIDE);
                let keys = coopLoad<coop_mat16x16<f16, B>>(&tiles.keys[16u * tile.y * KEY_STRIDE + 4u * f], KEY_STRIDE);
                products = coopMultiplyAdd(queries, keys, products);
            }
        }
        coopStoreT(products, &tiles.wide[16u * lane.strip * ROOM_STRIDE], ROOM_STRIDE);
        subgroupBarrier();
        let now = min(16u * tile.x + lane.row, BLOCK - 1u);
        var weights: array<vec4<f32>, 2>;
        // unroll
        for (var n = 0u; n < 2u; n++) {
            let origin = 16u * tile.y + 4u * (2u * n + lane.half);
            let left = vec4(
                left_between(now, origin), left_between(now, origin + 1u),
                left_between(now, origin + 2u), left_between(now, origin + 3u));
            let product = tiles.wide[lane.room + 2u * n + lane.half];
            weights[n] = select(vec4(0.0), left * product, origin + vec4(0u, 1u, 2u, 3u) <= vec4(now));
        }
        let scale = f16_scale(subgroupMax(max(largest_bits(weights[0]), largest_bits(weights[1]))));
        if (tile.x < TOKEN_TILES) {
            let at = SCORES_AT + (16u * tile.x + lane.row) * SCORE_STRIDE + 4u * tile.y + lane.half;
            tiles.queries[at] = vec4<f16>(scale.x * weights[0]);
            tiles.queries[at + 2u] = vec4<f16>(scale.x * weights[1]);
        }
        if (lane.row == 0u && lane.half == 0u) {
            score_units[share * STRIPS + lane.strip] = scale.y;
        }
        subgroupBarrier();
    }
}

fn is_spoilt(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4(0x7f800000u)) == vec4(0x7f800000u);
}

// A lane's vector `n` of values without those that are no finite number, whose columns are noted.
fn sound_values(x: vec4<f32>, n: u32, lane: Lane, block: Block) -> vec4<f32> {
    let spoilt = is_spoilt(x);
    if (any(spoilt)) {
        atomicStore(&any_spoilt, 1u);
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
    let lane = lane_of(subgroup, subgroup_lane);
    let slope = slope_of(here.head);
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
            &state[entry + 16u * f * VALUE_VECS + 4u * lane.strip], VALUE_VECS);
    }
    var next: Next;
    var next_queries: array<Ahead, KEY_LOADS>;
    fetch(&next, thread, lane, here, 0u);
    fetch_queries(&next_queries, thread, here, head, 0u);
    for (var first = 0u; first < here.chunk.count; first += BLOCK) {
        let block = block_at(here, first);
        workgroupBarrier();
        put(&next, thread, block, slope);
        put_queries(&next_queries, thread);
        workgroupBarrier();
        var values = values_of(&next, lane, block);
        fetch(&next, thread, lane, here, first + BLOCK);
        fetch_queries(&next_queries, thread, here, head, first + BLOCK);

        score(zero, lane);
        var answers: Answers;
        let state_scale = ask_state(&answers, &state_strip, zero, lane);
        workgroupBarrier();

        var sound: array<coop_mat16x16<f16, B>, TOKEN_TILES>;
        // unroll
        for (var t = 0u; t < TOKEN_TILES; t++) {
            let left = sound_values(values[2u * t], 2u * t, lane, block);
            let right = sound_values(values[2u * t + 1u], 2u * t + 1u, lane, block);
            sound[t] = right_factor(lane, left, right);
        }
        let spoilt = atomicLoad(&any_spoilt) != 0u;
        // unroll
        for (var t = 0u; t < TOKEN_TILES; t++) {
            var sums = zero;
            // unroll
            for (var k = 0u; k < t + 1u; k++) {
                let weights = coopLoadT<coop_mat16x16<f16, A>>(&tiles.queries[SCORES_AT + 16u * t * SCORE_STRIDE + 4u * k], SCORE_STRIDE);
                sums = sums + coopMultiplyAdd(weights, sound[k], zero) * score_units[t * (t + 1u) / 2u + k];
            }
            let local = 16u * t + lane.row;
            let row = here.chunk.begin + first + min(local, block.count - 1u);
            var factor = params.scale;
            if (NORMALIZE) {
                factor /= token_value(head, here.batch, row) + params.epsilon;
            }
            let state_factor = factor * state_scale * exp(-lost[local].x - lost[local].y);
            coopStoreT(answers[t], &tiles.wide[16u * lane.strip * ROOM_STRIDE], ROOM_STRIDE);
            subgroupBarrier();
            var from_state = array<vec4<f32>, 2>(
                state_factor * tiles.wide[lane.room + lane.half], state_factor * tiles.wide[lane.room + 2u + lane.half]);
            subgroupBarrier();
            coopStoreT(sums, &tiles.wide[16u * lane.strip * ROOM_STRIDE], ROOM_STRIDE);
            subgroupBarrier();
            let out_start = params.out.w + here.batch * params.out.x + head * params.out.y + row * params.out.z;
            // unroll
            for (var n = 0u; n < 2u; n++) {
                let dim = 4u * (4u * lane.strip + 2u * n + lane.half);
                var numbers = from_state[n] + factor * tiles.wide[lane.room + 2u * n + lane.half];
                if (spoilt) {
                    // unroll
                    for (var e = 0u; e < 4u; e++) {
                        if (atomicLoad(&spoilt_since[dim + e]) <= first + local) {
                            numbers[e] = bitcast<f32>(params.len | 0x7fc00000u);
                        }
                    }
                }
                if (local < block.count && dim < params.value_dim) {
                    out[(out_start + dim) >> 2u] = pack4(numbers);
                }
            }
            subgroupBarrier();
        }
        if (first + BLOCK < here.chunk.count) {
            take_in(&state_strip, &values, zero, lane);
        }
    }
}
