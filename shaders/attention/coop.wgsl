// attention.coop: the tile loop on matrix units (cooperative matrices of 16 x 16, f16 products summed
// in f32). A subgroup owns ROWS rows, 16 to a row tile; their queries and outputs stay in its
// matrices for good. What differs from the portable kernels, and why:
//  1. A matrix's elements cannot be touched, so scores go through workgroup memory to the LANES lanes
//     that own a row and come back as weights in f16; only the subgroup itself waits for that. The
//     row tiles of a band, 32 / LANES rows, do so together, and bands take turns in the same room.
//  2. Rescaling outputs means a trip through workgroup memory too: a row's maximum is left as it is
//     until a score exceeds it by LAZY in log2, which f16 weights bear.
//  3. A masked weight is 0 and meets every value of its tile, so values that are no finite number are
//     staged as 0 in partial tiles, and the rows that keep them are spoilt at the end. Scores of
//     finite queries and keys are finite: others are looked at one by one, as in partial tiles.
//  4. Keys and values are loaded without a condition, or the load would be waited for at once: what
//     lies outside of a tensor is a copy of something inside, and comes to nothing.
//  5. Full tiles have a loop of their own, whose matrices then stay in the registers where they are;
//     it goes on from an entry of a list to the next.
// Staging is in coop_stage.wgsl, what becomes of a row in coop_rows.wgsl.
// Barriers per tile: two of the workgroup, for the staged keys and values, and two of the subgroup
// for each band of scores.

const ROWS: u32 = BLOCK_Q / THREADS_Y;
const THREADS: u32 = THREADS_X * THREADS_Y;
const STEPS: u32 = BLOCK_K / STEP_K;
const ROW_TILES: u32 = ROWS / 16u;
const KEY_TILES: u32 = STEP_K / 16u;
const HEAD_TILES: u32 = HEAD_VECS / 4u;
const VALUE_TILES: u32 = VALUE_VECS / 4u;
const BANDS: u32 = ROWS * LANES / 32u;
const BAND_TILES: u32 = 2u / LANES;
// Strides in vectors of four; the padding keeps rows out of each other's banks.
const KEY_STRIDE: u32 = HEAD_VECS + 2u;
const VALUE_STRIDE: u32 = VALUE_VECS + 2u;
// Vectors of a row of scores in one step; the rows of a band's tiles lie side by side, and so do the
// rooms of up to four subgroups.
const SCORE_VECS: u32 = STEP_K / 4u;
const ROOM_VECS: u32 = BAND_TILES * SCORE_VECS;
const ABREAST: u32 = min(THREADS_Y, 4u);
const SCORE_STRIDE: u32 = ABREAST * ROOM_VECS + 2u;
const SCORE_ROWS: u32 = (THREADS_Y + ABREAST - 1u) / ABREAST * 16u;
const LANE_VECS: u32 = SCORE_VECS / LANES;
// Words of a row of keys and of values, and how many each thread brings in for a tile.
const KEY_WORDS: u32 = HEAD_VECS / WORD_VECS;
const VALUE_WORDS: u32 = VALUE_VECS / WORD_VECS;
const KEY_LOADS: u32 = (BLOCK_K * KEY_WORDS + THREADS - 1u) / THREADS;
const VALUE_LOADS: u32 = (BLOCK_K * VALUE_WORDS + THREADS - 1u) / THREADS;
const VALUES_AT: u32 = BLOCK_K * KEY_STRIDE;
// Queries come in through the room for keys and values, as many whole matrices at a time as it holds.
const PIECE_ROWS: u32 = BLOCK_K * (KEY_STRIDE + VALUE_STRIDE) / KEY_STRIDE / 16u * 16u;
const QUERY_PIECES: u32 = (BLOCK_Q + PIECE_ROWS - 1u) / PIECE_ROWS;
const PIECE_LOADS: u32 = (PIECE_ROWS * KEY_WORDS + THREADS - 1u) / THREADS;
const QUERY_LOADS: u32 = QUERY_PIECES * PIECE_LOADS;
const LAZY: f32 = 8.0;

const_assert THREADS_X == 32u && (LANES == 1u || LANES == 2u) && ROWS % (32u / LANES) == 0u;
const_assert HEAD_VECS % 4u == 0u && VALUE_VECS % 4u == 0u && STEP_K % 16u == 0u;
const_assert BLOCK_K % STEP_K == 0u;

alias Queries = array<coop_mat16x16<f16, A>, ROW_TILES * HEAD_TILES>;
alias Scores = array<coop_mat16x16<f32, C>, ROW_TILES * KEY_TILES>;
alias Weights = array<coop_mat16x16<f16, A>, ROW_TILES * KEY_TILES>;
alias Outputs = array<coop_mat16x16<f32, C>, ROW_TILES * VALUE_TILES>;

// Multiplies the outputs of a band's rows by a factor each.
fn rescale(acc: ptr<function, Outputs>, factor: f32, first_tile: u32, lane: Lane) {
    // unroll
    for (var v = 0u; v < VALUE_TILES; v++) {
        // unroll
        for (var t = 0u; t < BAND_TILES; t++) {
            coopStoreT((*acc)[(first_tile + t) * VALUE_TILES + v], &tiles.scores[lane.room + t * SCORE_VECS], SCORE_STRIDE);
        }
        subgroupBarrier();
        for (var vector = lane.part; vector < 4u; vector += LANES) {
            tiles.scores[lane.start + vector] *= factor;
        }
        subgroupBarrier();
        // unroll
        for (var t = 0u; t < BAND_TILES; t++) {
            (*acc)[(first_tile + t) * VALUE_TILES + v] = coopLoadT<coop_mat16x16<f32, C>>(
                &tiles.scores[lane.room + t * SCORE_VECS], SCORE_STRIDE);
        }
        subgroupBarrier();
    }
}

// Scores one tile of keys and adds weights · values to the outputs of the subgroup.
fn visit(
    queries: ptr<function, Queries>,
    acc: ptr<function, Outputs>,
    rows: ptr<function, array<Row, BANDS>>,
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
                let keys = coopLoad<coop_mat16x16<f16, B>>(&tiles.staged[(first_key + 16u * k) * KEY_STRIDE + 4u * h], KEY_STRIDE);
                // unroll
                for (var r = 0u; r < ROW_TILES; r++) {
                    scores[r * KEY_TILES + k] = coopMultiplyAdd((*queries)[r * HEAD_TILES + h], keys, scores[r * KEY_TILES + k]);
                }
            }
        }
        var weights: Weights;
        // unroll
        for (var band = 0u; band < BANDS; band++) {
            // unroll
            for (var t = 0u; t < BAND_TILES; t++) {
                // unroll
                for (var k = 0u; k < KEY_TILES; k++) {
                    coopStoreT(scores[(band * BAND_TILES + t) * KEY_TILES + k], &tiles.scores[lane.room + t * SCORE_VECS + 4u * k], SCORE_STRIDE);
                }
            }
            subgroupBarrier();
            var part: Part;
            // unroll
            for (var n = 0u; n < LANE_VECS; n++) {
                part[n] = tiles.scores[lane.start + vector_of(lane, n)];
            }
            var row = (*rows)[band];
            let had_output = row.total > 0.0;
            var scale = abs(params.query_scale);
            if (judged) {
                judge(&row, &part, here, lane, Tile(tile.first + i32(first_key), tile.end, tile.full));
                scale = 1.0;
            }
            let factor = weigh(&row, &part, scale);
            (*rows)[band] = row;
            // unroll
            for (var n = 0u; n < LANE_VECS; n++) {
                tiles.weights[lane.start + vector_of(lane, n)] = vec4<f16>(part[n]);
            }
            subgroupBarrier();
            // unroll
            for (var t = 0u; t < BAND_TILES; t++) {
                // unroll
                for (var k = 0u; k < KEY_TILES; k++) {
                    weights[(band * BAND_TILES + t) * KEY_TILES + k] = coopLoadT<coop_mat16x16<f16, A>>(
                        &tiles.weights[lane.room + t * SCORE_VECS + 4u * k], SCORE_STRIDE);
                }
            }
            if (SOFTMAX && subgroupAny(factor != 1.0 && had_output)) {
                rescale(acc, factor, band * BAND_TILES, lane);
            }
        }
        // unroll
        for (var k = 0u; k < KEY_TILES; k++) {
            // unroll
            for (var v = 0u; v < VALUE_TILES; v++) {
                let values = coopLoadT<coop_mat16x16<f16, B>>(
                    &tiles.staged[VALUES_AT + (first_key + 16u * k) * VALUE_STRIDE + 4u * v], VALUE_STRIDE);
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
    let turn = turn_of(index);
    let here = place(turn.head_and_batch / params.heads, turn.head_and_batch % params.heads);
    let first_query = turn.block * BLOCK_Q;
    let first_row = subgroup * ROWS;
    let lane = lane_of(subgroup, subgroup_lane);
    // Emulated subgroups wait for each other, so they visit the same tiles.
    let owner = select(subgroup, 0u, EMULATED);
    var ahead: array<Word, QUERY_LOADS>;
    fetch_queries(&ahead, thread, here, first_query);
    if (thread == 0u) {
        atomicStore(&found_non_finite, 0u);
        atomicStore(&found_non_finite_value, 0u);
    }
    var rows: array<Row, BANDS>;
    open_walk(thread);
    // unroll
    for (var band = 0u; band < BANDS; band++) {
        var row = start_row(here.batch, first_query + first_row + band * 32u / LANES + subgroup_lane / LANES);
        widen_walk(&row, owner);
        rows[band] = row;
    }
    var walk = close_walk(thread);
    open_keys(&walk, here, first_query);
    var next: Next;
    fetch(&next, thread, here, u32(next_range(&walk, 0u).start));

    // Queries take the scale's sign: its size is applied to the scores, in f32.
    var queries: Queries;
    // unroll
    for (var piece = 0u; piece < QUERY_PIECES; piece++) {
        workgroupBarrier();
        put_queries(&ahead, thread, piece);
        workgroupBarrier();
        // unroll
        for (var r = 0u; r < ROW_TILES; r++) {
            if ((first_row + 16u * r) / PIECE_ROWS == piece) {
                // unroll
                for (var h = 0u; h < HEAD_TILES; h++) {
                    queries[r * HEAD_TILES + h] = coopLoadT<coop_mat16x16<f16, A>>(
                        &tiles.staged[(first_row + 16u * r) % PIECE_ROWS * KEY_STRIDE + 4u * h], KEY_STRIDE);
                }
            }
        }
    }

    // A matrix that is never written is 0. out [ROWS, VALUE_TILES * 16] of this subgroup
    var zero: coop_mat16x16<f32, C>;
    var acc: Outputs;
    // unroll
    for (var i = 0u; i < ROW_TILES * VALUE_TILES; i++) {
        acc[i] = zero;
    }
    // A bias of −∞ masks its pair in any tile.
    let biased = MODIFIED && (params.bias_dtype != 0u || params.key_bias_at != ABSENT);
    // rounds: WALK
    for (var index = 0u; index < walk.count; index++) {
        var range = range_at(&walk, index);
        var after = next_range(&walk, index + 1u);
        var first = range.start;
        // rounds: WALK
        while (first < range.end) {
            // rounds: WALK
            for (; !MODIFIED && is_full(&walk, range, first); first += i32(BLOCK_K)) {
                workgroupBarrier();
                put(&next, thread, true);
                workgroupBarrier();
                fetch(&next, thread, here, following_tile(range, after, first));
                let then = entry_at(&walk, after.index + 1u);
                // The branch also keeps the loads above where they are.
                if (atomicLoad(&found_non_finite) != 0u) {
                    break;
                }
                visit(&queries, &acc, &rows, zero, here, lane, Tile(first, range.end, true), false);
                if (ENTRIES && first + i32(BLOCK_K) >= range.end) {
                    index = after.index;
                    range = after;
                    first = after.start - i32(BLOCK_K);
                    after = range_of(&walk, after.index + 1u, then);
                }
            }
            if (first < range.end) {
                let full = !biased && is_full(&walk, range, first);
                // The loop above has staged a full tile and left it for what is in it.
                if (MODIFIED || !full) {
                    workgroupBarrier();
                    put(&next, thread, full);
                    workgroupBarrier();
                    fetch(&next, thread, here, following_tile(range, after, first));
                }
                // Each subgroup by what its own rows keep.
                var own = own_walk(&walk, owner);
                if (touches(&own, first)) {
                    let own_full = MODIFIED && !biased && is_full(&own, range, first);
                    visit(&queries, &acc, &rows, zero, here, lane, Tile(first, range.end, own_full), true);
                }
                first += i32(BLOCK_K);
            }
        }
    }
    workgroupBarrier();
    if (atomicLoad(&found_non_finite_value) != 0u) {
        spoil(&acc, &rows, here, &walk, lane);
    }
    // unroll
    for (var band = 0u; band < BANDS; band++) {
        store_band(&acc, rows[band], band, here, lane, first_query + first_row);
    }
}
