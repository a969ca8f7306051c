// linear.coop_output: the outputs of one chunk of one query head, on matrix units. One workgroup
// walks the chunk with the state in its matrices: a block's queries meet the state before it, then
// the block's own keys, and then the state takes the block in.
//  1. What the state answers decays by the row, which no matrix can: it is summed in a matrix of its
//     own and joined with the rest on the way out.
//  2. A weight of 0 meets every value of its block, so values that are no finite number are staged
//     as 0, and from their token on their columns are spoilt. The loop over blocks is left for a
//     careful one where the first of them comes, and for a state that holds one from the start.
//  3. When the state has answered, values take the place of the rooms in which it went into f16, and
//     keys are replaced by what is left of them at the block's end: the state takes in products of
//     what lies there, and no subgroup scales anything for that.
// Staging is in coop_stage.wgsl, scores and decay are in coop_scores.wgsl.
// Barriers: four of the workgroup for each block of BLOCK tokens.

alias Answers = array<coop_mat16x16<f32, C>, TOKEN_TILES>;

// Multiplies the block's queries with the strip's state; gives what the answers are to be multiplied by.
fn ask_state(
    answers: ptr<function, Answers>,
    state: ptr<function, State>,
    zero: coop_mat16x16<f32, C>,
    lane: Lane,
    careful: bool,
) -> f32 {
    let room = room_of(lane);
    let row = row_of(lane) + lane.half;
    var numbers: array<vec4<f32>, 2u * FEATURE_TILES>;
    var largest = 0.0;
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        coopStoreT((*state)[f], &tiles.wide[room], ROOM_STRIDE);
        subgroupBarrier();
        numbers[2u * f] = tiles.wide[row];
        numbers[2u * f + 1u] = tiles.wide[row + 2u];
        subgroupBarrier();
        if (careful) {
            largest = max(largest, max(largest_finite(numbers[2u * f]), largest_finite(numbers[2u * f + 1u])));
        } else {
            largest = max(largest, max(largest_of(numbers[2u * f]), largest_of(numbers[2u * f + 1u])));
        }
    }
    let scale = f16_scale(largest_of_subgroup(largest));
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

// The outputs of a block that is staged, and the state after it; `careful` where a value or the state
// may be no finite number.
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
    let state_scale = ask_state(&answers, state_strip, zero, lane, careful);
    workgroupBarrier();
    put_values(values, lane, first, careful);
    decay_keys(decays, lane);
    workgroupBarrier();

    var factors: Values;
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
        var sums: coop_mat16x16<f32, C>;
        // rounds: TOKEN_TILES
        // unroll
        for (var k = 0u; k < t + 1u; k++) {
            let weights = coopLoadT<coop_mat16x16<f16, A>>(&tiles.queries[SCORES_AT + 16u * t * SCORE_STRIDE + 4u * k], SCORE_STRIDE);
            let products = coopMultiplyAdd(weights, factors[k], zero) * score_units[t * (t + 1u) / 2u + k];
            if (k == 0u) {
                sums = products;
            } else {
                sums = sums + products;
            }
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
        take_in(state_strip, &factors, (*decays).left);
    }
}

// Whether a lane's share of the state before the chunk holds a number that is not finite.
fn is_non_finite(entry: u32, lane: Lane) -> bool {
    var found = false;
    for (var i = lane.thread; i < 4u * FEATURE_VECS * VALUE_VECS; i += THREADS) {
        found = found | any(is_spoilt(state[entry + i]));
    }
    return found;
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
    workgroupBarrier();
    if (is_non_finite(entry, lane)) {
        atomicStore(&any_spoilt, 1u);
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
    // rounds: CHUNK / BLOCK
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
    // rounds: CHUNK / BLOCK
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
