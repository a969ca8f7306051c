// attention.coop: the tile loop on matrix units (cooperative matrices of 16 x 16, f16 products summed
// in f32). A subgroup owns ROWS rows, 16 to a row tile; their queries and outputs stay in its
// matrices for good. What differs from the portable kernels, and why:
//  1. A matrix's elements cannot be touched, so scores go through workgroup memory to the two lanes
//     that own a row and come back as weights in f16; only the subgroup itself waits for that. They
//     take turns in room for one matrix: an H100 has 48 KiB of workgroup memory for all the
//     workgroups on a core.
//  2. Rescaling outputs means a trip through workgroup memory too: a row's maximum is left as it is
//     until a score exceeds it by LAZY in log2, which f16 weights bear.
//  3. A masked weight is 0 and meets every value of its tile, so values that are no finite number are
//     staged as 0 in partial tiles, and the rows that keep them are spoilt at the end. Scores of
//     finite queries and keys are finite: others are looked at one by one, as in partial tiles.
//  4. Keys and values are loaded without a condition, or the load would be waited for at once: what
//     lies outside of a tensor is a copy of something inside, and comes to nothing.
// Staging is in coop_stage.wgsl, what becomes of a row in coop_rows.wgsl.
// Barriers per tile: two of the workgroup, for the staged keys and values, and four of the subgroup
// for each matrix of scores.

const ROWS: u32 = BLOCK_Q / THREADS_Y;
const THREADS: u32 = THREADS_X * THREADS_Y;
const STEPS: u32 = BLOCK_K / STEP_K;
const ROW_TILES: u32 = ROWS / 16u;
const KEY_TILES: u32 = STEP_K / 16u;
const HEAD_TILES: u32 = HEAD_VECS / 4u;
const VALUE_TILES: u32 = VALUE_VECS / 4u;
// Strides in vectors of four; the padding keeps rows out of each other's banks.
const KEY_STRIDE: u32 = HEAD_VECS + 2u;
const VALUE_STRIDE: u32 = VALUE_VECS + 2u;
const SCORE_STRIDE: u32 = 6u;
const WEIGHT_STRIDE: u32 = 6u;
// Vectors of a row that a lane holds: of one matrix of scores, and of all in one step.
const LANE_VECS: u32 = 4u / LANES;
const STEP_VECS: u32 = KEY_TILES * LANE_VECS;
const KEY_LOADS: u32 = (BLOCK_K * HEAD_VECS + THREADS - 1u) / THREADS;
const VALUE_LOADS: u32 = (BLOCK_K * VALUE_VECS + THREADS - 1u) / THREADS;
const QUERY_PIECES: u32 = (BLOCK_Q + BLOCK_K - 1u) / BLOCK_K;
const LAZY: f32 = 8.0;

const_assert THREADS_X == 32u && LANES == 2u && ROWS % 16u == 0u;
const_assert HEAD_VECS % 4u == 0u && VALUE_VECS % 4u == 0u && STEP_K % 16u == 0u;
const_assert BLOCK_K % STEP_K == 0u;

alias Queries = array<coop_mat16x16<f16, A>, ROW_TILES * HEAD_TILES>;
alias Scores = array<coop_mat16x16<f32, C>, ROW_TILES * KEY_TILES>;
alias Weights = array<coop_mat16x16<f16, A>, ROW_TILES * KEY_TILES>;
alias Outputs = array<coop_mat16x16<f32, C>, ROW_TILES * VALUE_TILES>;

// Scores one tile of keys and adds weights · values to the outputs of the subgroup.
fn visit(
    queries: ptr<function, Queries>,
    acc: ptr<function, Outputs>,
    rows: ptr<function, array<Row, ROW_TILES>>,
    zero: coop_mat16x16<f32, C>,
    here: Place,
    lane: Lane,
    tile: Tile,
    judged: bool,
) {
    // unroll
    for (var step = 0u; step < STEPS; step++) {
        let first_key = STEP_K * step;
        var scores: Scores;
        // unroll
        for (var k = 0u; k < KEY_TILES; k++) {
            // unroll
            for (var r = 0u; r < ROW_TILES; r++) {
                scores[r * KEY_TILES + k] = zero;
            }
            // unroll
            for (var h = 0u; h < HEAD_TILES; h++) {
                let keys = coopLoad<coop_mat16x16<f16, B>>(&tiles.keys[(first_key + 16u * k) * KEY_STRIDE + 4u * h], KEY_STRIDE);
                // unroll
                for (var r = 0u; r < ROW_TILES; r++) {
                    scores[r * KEY_TILES + k] = coopMultiplyAdd((*queries)[r * HEAD_TILES + h], keys, scores[r * KEY_TILES + k]);
                }
            }
        }
        var weights: Weights;
        // unroll
        for (var r = 0u; r < ROW_TILES; r++) {
            var part: Part;
            // unroll
            for (var k = 0u; k < KEY_TILES; k++) {
                coopStoreT(scores[r * KEY_TILES + k], &tiles.scores[lane.first * SCORE_STRIDE], SCORE_STRIDE);
                subgroupBarrier();
                // unroll
                for (var n = 0u; n < LANE_VECS; n++) {
                    part[k * LANE_VECS + n] = tiles.scores[lane.row * SCORE_STRIDE + n * LANES + lane.half];
                }
                subgroupBarrier();
            }
            var row = (*rows)[r];
            let had_output = row.total > 0.0;
            var scale = abs(params.query_scale);
            if (judged) {
                let at = Tile(tile.first + i32(STEP_K * step), tile.end, tile.full);
                judge(&row, &part, here, lane, at);
                scale = 1.0;
            }
            let factor = weigh(&row, &part, scale);
            (*rows)[r] = row;
            // unroll
            for (var k = 0u; k < KEY_TILES; k++) {
                // unroll
                for (var n = 0u; n < LANE_VECS; n++) {
                    tiles.weights[lane.row * WEIGHT_STRIDE + n * LANES + lane.half] = vec4<f16>(part[k * LANE_VECS + n]);
                }
                subgroupBarrier();
                weights[r * KEY_TILES + k] = coopLoadT<coop_mat16x16<f16, A>>(&tiles.weights[lane.first * WEIGHT_STRIDE], WEIGHT_STRIDE);
                subgroupBarrier();
            }
            if (SOFTMAX && subgroupAny(factor != 1.0 && had_output)) {
                // unroll
                for (var v = 0u; v < VALUE_TILES; v++) {
                    coopStoreT((*acc)[r * VALUE_TILES + v], &tiles.scores[lane.first * SCORE_STRIDE], SCORE_STRIDE);
                    subgroupBarrier();
                    for (var vector = lane.half; vector < 4u; vector += LANES) {
                        tiles.scores[lane.row * SCORE_STRIDE + vector] *= factor;
                    }
                    subgroupBarrier();
                    (*acc)[r * VALUE_TILES + v] = coopLoadT<coop_mat16x16<f32, C>>(
                        &tiles.scores[lane.first * SCORE_STRIDE], SCORE_STRIDE);
                    subgroupBarrier();
                }
            }
        }
        // unroll
        for (var k = 0u; k < KEY_TILES; k++) {
            // unroll
            for (var v = 0u; v < VALUE_TILES; v++) {
                let values = coopLoadT<coop_mat16x16<f16, B>>(
                    &tiles.values[(first_key + 16u * k) * VALUE_STRIDE + 4u * v], VALUE_STRIDE);
                // unroll
                for (var r = 0u; r < ROW_TILES; r++) {
                    (*acc)[r * VALUE_TILES + v] = coopMultiplyAdd(weights[r * KEY_TILES + k], values, (*acc)[r * VALUE_TILES + v]);
                }
            }
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
    let thread = subgroup * 32u + subgroup_lane;
    let head_and_batch = index / params.query_blocks;
    let block = params.query_blocks - 1u - index % params.query_blocks;
    let here = place(head_and_batch / params.heads, head_and_batch % params.heads);
    let first_query = block * BLOCK_Q;

    let lane = Lane(16u * subgroup, 16u * subgroup + subgroup_lane / LANES, subgroup_lane % LANES);
    let first_row = subgroup * ROWS;
    if (thread == 0u) {
        atomicStore(&found_non_finite, 0u);
        atomicStore(&found_non_finite_value, 0u);
    }
    var rows: array<Row, ROW_TILES>;
    open_walk(thread);
    // unroll
    for (var r = 0u; r < ROW_TILES; r++) {
        var row = start_row(here.batch, first_query + first_row + 16u * r + subgroup_lane / LANES);
        widen_walk(&row);
        rows[r] = row;
    }
    var walk = close_walk(thread);
    open_keys(&walk, here, first_query);

    // Queries come in through the key tile, BLOCK_K rows at a time, and take the scale's sign: its
    // size is applied to the scores, in f32.
    var queries: Queries;
    let query_start = params.query.w + here.batch * params.query.x + here.head * params.query.y;
    for (var piece = 0u; piece < QUERY_PIECES; piece++) {
        workgroupBarrier();
        for (var i = thread; i < BLOCK_K * HEAD_VECS; i += THREADS) {
            let query_index = first_query + piece * BLOCK_K + i / HEAD_VECS;
            let dim = 4u * (i % HEAD_VECS);
            var halves = vec2(0u);
            if (query_index < params.query_len && dim < params.head_dim) {
                halves = query[(query_start + query_index * params.query.z + dim) >> 2u];
            }
            if (any(non_finite(halves) != vec2(0u))) {
                atomicStore(&found_non_finite, 1u);
            }
            tiles.keys[i / HEAD_VECS * KEY_STRIDE + i % HEAD_VECS] =
                as_halves(halves ^ vec2(select(0u, 0x80008000u, params.query_scale < 0.0)));
        }
        workgroupBarrier();
        // unroll
        for (var r = 0u; r < ROW_TILES; r++) {
            if ((first_row + 16u * r) / BLOCK_K == piece) {
                // unroll
                for (var h = 0u; h < HEAD_TILES; h++) {
                    queries[r * HEAD_TILES + h] = coopLoadT<coop_mat16x16<f16, A>>(
                        &tiles.keys[(first_row + 16u * r) % BLOCK_K * KEY_STRIDE + 4u * h], KEY_STRIDE);
                }
            }
        }
    }

    // No literal makes a matrix: this one comes from memory.
    for (var vector = lane.half; vector < 4u; vector += LANES) {
        tiles.scores[lane.row * SCORE_STRIDE + vector] = vec4(0.0);
    }
    workgroupBarrier();
    let zero = coopLoadT<coop_mat16x16<f32, C>>(&tiles.scores[lane.first * SCORE_STRIDE], SCORE_STRIDE);

    // out [ROWS, VALUE_TILES * 16] of this subgroup
    var acc: Outputs;
    // unroll
    for (var i = 0u; i < ROW_TILES * VALUE_TILES; i++) {
        acc[i] = zero;
    }
    var next: Next;
    fetch(&next, thread, here, first_tile(&walk));
    for (var range = 0u; range < walk.count; range++) {
        let bounds = range_at(&walk, range);
        let end = bounds.y;
        for (var first = bounds.x; first < end; first += i32(BLOCK_K)) {
            // A bias of −∞ masks its pair in any tile.
            let full = is_full(&walk, range, first, end)
                && (!MODIFIED || (params.bias_dtype == 0u && params.key_bias_at == ABSENT));
            workgroupBarrier();
            put(&next, thread, full);
            workgroupBarrier();
            fetch(&next, thread, here, following_tile(&walk, range, first, end));
            let tile = Tile(first, end, full);
            // Written out twice, or what only partial tiles need is in the way of the others.
            if (MODIFIED || !full || atomicLoad(&found_non_finite) != 0u) {
                visit(&queries, &acc, &rows, zero, here, lane, tile, true);
            } else {
                visit(&queries, &acc, &rows, zero, here, lane, tile, false);
            }
        }
    }
    workgroupBarrier();
    let spoilt = atomicLoad(&found_non_finite_value) != 0u;
    // unroll
    for (var r = 0u; r < ROW_TILES; r++) {
        var row = rows[r];
        let factor = finish_part(&row, here, lane);
        let out_start = params.out.w + here.batch * params.out.x + here.head * params.out.y + u32(row.query) * params.out.z;
        // unroll
        for (var v = 0u; v < VALUE_TILES; v++) {
            coopStoreT(acc[r * VALUE_TILES + v], &tiles.scores[lane.first * SCORE_STRIDE], SCORE_STRIDE);
            subgroupBarrier();
            for (var vector = lane.half; vector < 4u; vector += LANES) {
                let dim = 16u * v + 4u * vector;
                if (row.exists && dim < params.value_dim) {
                    var numbers = factor * tiles.scores[lane.row * SCORE_STRIDE + vector];
                    if (spoilt) {
                        numbers = select(numbers, vec4(not_a_number()), keeps_non_finite(&row, here, &walk, dim));
                    }
                    out[(out_start + dim) >> 2u] = pack4(numbers);
                }
            }
            subgroupBarrier();
        }
    }
}
