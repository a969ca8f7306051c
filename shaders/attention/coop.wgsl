// attention.coop: the tile loop on matrix units (cooperative matrices of 16 x 16, f16 products summed
// in f32). A subgroup owns ROWS rows; their queries and outputs stay in its matrices for good. What
// differs from the portable kernels, and why:
//  1. A matrix's elements cannot be touched, so scores go through workgroup memory to the lanes that
//     own the rows and come back as weights in f16; only the subgroup itself waits for that.
//  2. Rescaling outputs means a trip through workgroup memory too: a row's maximum is left as it is
//     until a score exceeds it by LAZY in log2, which f16 weights bear.
//  3. A masked weight is 0 and meets every value of its tile, so values that are no finite number are
//     staged as 0 in partial tiles, and the rows that keep them are spoilt at the end.
// Barriers per tile: two of the workgroup, for the staged keys and values, and two of the subgroup.

const ROWS: u32 = BLOCK_Q / THREADS_Y;
const THREADS: u32 = THREADS_X * THREADS_Y;
const ROW_TILES: u32 = ROWS / 16u;
const KEY_TILES: u32 = BLOCK_K / 16u;
const HEAD_TILES: u32 = HEAD_VECS / 4u;
const VALUE_TILES: u32 = VALUE_VECS / 4u;
// Strides in vectors of four; the padding keeps rows out of each other's banks.
const KEY_STRIDE: u32 = HEAD_VECS + 2u;
const VALUE_STRIDE: u32 = VALUE_VECS + 2u;
const SCORE_STRIDE: u32 = BLOCK_K / 4u + 1u;
const WEIGHT_STRIDE: u32 = BLOCK_K / 4u + 2u;
// Vectors of a row that one lane holds.
const LANE_VECS: u32 = BLOCK_K / 4u / LANES;
const KEY_LOADS: u32 = (BLOCK_K * HEAD_VECS + THREADS - 1u) / THREADS;
const VALUE_LOADS: u32 = (BLOCK_K * VALUE_VECS + THREADS - 1u) / THREADS;
const QUERY_PIECES: u32 = BLOCK_Q / BLOCK_K;
const LAZY: f32 = 8.0;

const_assert THREADS_X == 32u && ROWS * LANES == 32u && ROWS % 16u == 0u;
const_assert HEAD_VECS % 4u == 0u && VALUE_VECS % 4u == 0u && BLOCK_K % 16u == 0u;
const_assert BLOCK_Q % BLOCK_K == 0u && BLOCK_K % ROWS == 0u;

// Matrices load from addresses that are multiples of 16 bytes, and rows of f16 vectors alone would
// be aligned to 8: the scores come first and every array is a multiple of 16 bytes long.
struct Tiles {
    // [BLOCK_Q, BLOCK_K]
    scores: array<vec4<f32>, BLOCK_Q * SCORE_STRIDE>,
    weights: array<vec4<f16>, BLOCK_Q * WEIGHT_STRIDE>,
    keys: array<vec4<f16>, BLOCK_K * KEY_STRIDE>,
    values: array<vec4<f16>, BLOCK_K * VALUE_STRIDE>,
}

var<workgroup> tiles: Tiles;
var<workgroup> found_non_finite: atomic<u32>;

fn remaining(dim: u32, first: u32) -> u32 {
    return dim - min(dim, first);
}

// A thread's share of the next tile, under way while it computes.
struct Next {
    key: array<vec4<f16>, KEY_LOADS>,
    value: array<vec4<f16>, VALUE_LOADS>,
}

// keys [BLOCK_K, HEAD_VECS] and values [BLOCK_K, VALUE_VECS]
fn fetch(next: ptr<function, Next>, thread: u32, here: Place, first: u32) {
    let key_start = params.key.w + here.batch * params.key.x + here.key_head * params.key.y;
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        let column = key_at(first + i / HEAD_VECS);
        let dim = 4u * (i % HEAD_VECS);
        var vector = vec4<f16>();
        if (column < params.key_len && dim < params.head_dim) {
            vector = key[(key_start + column * params.key.z + dim) >> 2u];
        }
        (*next).key[n] = vector;
    }
    let value_start = params.value.w + here.batch * params.value.x + here.value_head * params.value.y;
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let i = n * THREADS + thread;
        let column = key_at(first + i / VALUE_VECS);
        let dim = 4u * (i % VALUE_VECS);
        var vector = vec4<f16>();
        if (column < params.key_len && dim < params.value_dim) {
            vector = value[(value_start + column * params.value.z + dim) >> 2u];
        }
        (*next).value[n] = vector;
    }
}

fn non_finite(x: vec4<f16>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(vec4<f32>(x)) & vec4(0x7f800000u)) == vec4(0x7f800000u);
}

fn put(next: ptr<function, Next>, thread: u32, full: bool) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let i = n * THREADS + thread;
        if (i < BLOCK_K * HEAD_VECS) {
            tiles.keys[i / HEAD_VECS * KEY_STRIDE + i % HEAD_VECS] = (*next).key[n];
        }
    }
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let i = n * THREADS + thread;
        var vector = (*next).value[n];
        if (!full) {
            let bad = non_finite(vector);
            if (any(bad)) {
                atomicStore(&found_non_finite, 1u);
                vector = select(vector, vec4<f16>(), bad);
            }
        }
        if (i < BLOCK_K * VALUE_VECS) {
            tiles.values[i / VALUE_VECS * VALUE_STRIDE + i % VALUE_VECS] = vector;
        }
    }
}

// Scales, modifies and masks the scores of a lane's part of its row, in units of log2: MASKED where
// the pair does not count.
fn judge(row: ptr<function, Row>, here: Place, local_row: u32, lane: u32, first: i32, end: i32, full: bool) {
    for (var vector = lane; vector < BLOCK_K / 4u; vector += LANES) {
        let at = local_row * SCORE_STRIDE + vector;
        let scores = params.query_scale * tiles.scores[at];
        tiles.scores[at] = judge_four(row, here, scores, first + i32(4u * vector), end, full);
    }
}

// Turns a lane's part of a row of scores, times `scale`, into f16 weights; the factor is what the
// row's output so far must be multiplied by.
fn weigh(row: ptr<function, Row>, local_row: u32, lane: u32, scale: f32) -> f32 {
    var scores: array<vec4<f32>, LANE_VECS>;
    var largest = vec4(MASKED);
    var magnitude = vec4(0u);
    // unroll
    for (var n = 0u; n < LANE_VECS; n++) {
        let part = scale * tiles.scores[local_row * SCORE_STRIDE + n * LANES + lane];
        largest = max(largest, part);
        magnitude = max(magnitude, bitcast<vec4<u32>>(part) & vec4(0x7fffffffu));
        scores[n] = part;
    }
    let worst = max(max(magnitude.x, magnitude.y), max(magnitude.z, magnitude.w));
    (*row).poisoned = (*row).poisoned || worst >= 0x7f800000u;

    var factor = 1.0;
    if (SOFTMAX) {
        let maximum = row_max(max(max(largest.x, largest.y), max(largest.z, largest.w)));
        if (maximum > (*row).maximum + LAZY) {
            factor = exp2((*row).maximum - maximum);
            (*row).maximum = maximum;
        }
    }
    var total = vec4(0.0);
    // unroll
    for (var n = 0u; n < LANE_VECS; n++) {
        var weights: vec4<f32>;
        if (SOFTMAX) {
            weights = exp2(scores[n] - (*row).maximum);
        } else {
            weights = 1.0 / (1.0 + exp2(min(-(scores[n] + params.sigmoid_bias), vec4(100.0))));
        }
        weights = select(weights, vec4(0.0), scores[n] <= vec4(EMPTY));
        total += weights;
        tiles.weights[local_row * WEIGHT_STRIDE + n * LANES + lane] = vec4<f16>(weights);
    }
    (*row).total = (*row).total * factor + (total.x + total.y + total.z + total.w);
    return factor;
}

// Whether a value that the row keeps is no finite number, for one vector of dimensions.
fn keeps_non_finite(row: ptr<function, Row>, here: Place, walk: ptr<function, Walk>, dim: u32) -> vec4<bool> {
    var found = vec4(false);
    let start = params.value.w + here.batch * params.value.x + here.value_head * params.value.y + dim;
    for (var range = 0u; range < (*walk).count; range++) {
        let bounds = range_at(walk, range);
        for (var position = bounds.x; position < bounds.y; position++) {
            let key_index = i32(key_at(u32(position)));
            if (keeps(row, here, key_index)) {
                found = found | non_finite(value[(start + u32(key_index) * params.value.z) >> 2u]);
            }
        }
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
    let index = group.x + group.y * groups.x;
    if (index >= params.workgroups) {
        return;
    }
    let thread = subgroup * 32u + subgroup_lane;
    let head_and_batch = index / params.query_blocks;
    let block = params.query_blocks - 1u - index % params.query_blocks;
    let here = place(head_and_batch / params.heads, head_and_batch % params.heads);
    let first_query = block * BLOCK_Q;

    let lane = subgroup_lane % LANES;
    let first_row = subgroup * ROWS;
    let local_row = first_row + subgroup_lane / LANES;
    var row = start_row(here.batch, first_query + local_row);
    if (thread == 0u) {
        atomicStore(&found_non_finite, 0u);
    }
    var walk = plan_walk(thread, &row);
    open_keys(&walk, here, first_query);

    // Queries come in through the key tile, BLOCK_K rows at a time, unscaled: the scale is applied
    // to the scores, in f32.
    var queries: array<coop_mat16x16<f16, A>, ROW_TILES * HEAD_TILES>;
    let query_start = params.query.w + here.batch * params.query.x + here.head * params.query.y;
    for (var piece = 0u; piece < QUERY_PIECES; piece++) {
        workgroupBarrier();
        for (var i = thread; i < BLOCK_K * HEAD_VECS; i += THREADS) {
            let query_index = first_query + piece * BLOCK_K + i / HEAD_VECS;
            let dim = 4u * (i % HEAD_VECS);
            var vector = vec4<f16>();
            if (query_index < params.query_len && dim < params.head_dim) {
                vector = query[(query_start + query_index * params.query.z + dim) >> 2u];
            }
            tiles.keys[i / HEAD_VECS * KEY_STRIDE + i % HEAD_VECS] = vector;
        }
        workgroupBarrier();
        if (first_row / BLOCK_K == piece) {
            // unroll
            for (var r = 0u; r < ROW_TILES; r++) {
                // unroll
                for (var h = 0u; h < HEAD_TILES; h++) {
                    queries[r * HEAD_TILES + h] = coopLoadT<coop_mat16x16<f16, A>>(
                        &tiles.keys[(first_row % BLOCK_K + 16u * r) * KEY_STRIDE + 4u * h], KEY_STRIDE);
                }
            }
        }
    }

    // No literal makes a matrix: this one comes from memory.
    for (var vector = lane; vector < 4u; vector += LANES) {
        tiles.scores[local_row * SCORE_STRIDE + vector] = vec4(0.0);
    }
    workgroupBarrier();
    let zero = coopLoadT<coop_mat16x16<f32, C>>(&tiles.scores[first_row * SCORE_STRIDE], SCORE_STRIDE);

    // out [ROWS, VALUE_TILES * 16] of this subgroup
    var acc: array<coop_mat16x16<f32, C>, ROW_TILES * VALUE_TILES>;
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
            fetch(&next, thread, here, following_tile(&walk, range, first));

            // scores, to the lanes that own the rows
            // unroll
            for (var k = 0u; k < KEY_TILES; k++) {
                var scores: array<coop_mat16x16<f32, C>, ROW_TILES>;
                // unroll
                for (var r = 0u; r < ROW_TILES; r++) {
                    scores[r] = zero;
                }
                // unroll
                for (var h = 0u; h < HEAD_TILES; h++) {
                    let keys = coopLoad<coop_mat16x16<f16, B>>(&tiles.keys[16u * k * KEY_STRIDE + 4u * h], KEY_STRIDE);
                    // unroll
                    for (var r = 0u; r < ROW_TILES; r++) {
                        scores[r] = coopMultiplyAdd(queries[r * HEAD_TILES + h], keys, scores[r]);
                    }
                }
                // unroll
                for (var r = 0u; r < ROW_TILES; r++) {
                    coopStoreT(scores[r], &tiles.scores[(first_row + 16u * r) * SCORE_STRIDE + 4u * k], SCORE_STRIDE);
                }
            }
            subgroupBarrier();
            let had_output = row.total > 0.0;
            var scale = params.query_scale;
            if (MODIFIED || !full) {
                judge(&row, here, local_row, lane, first, end, full);
                scale = 1.0;
            }
            let factor = weigh(&row, local_row, lane, scale);
            subgroupBarrier();

            if (SOFTMAX && subgroupAny(factor != 1.0 && had_output)) {
                // unroll
                for (var v = 0u; v < VALUE_TILES; v++) {
                    // unroll
                    for (var r = 0u; r < ROW_TILES; r++) {
                        coopStoreT(acc[r * VALUE_TILES + v], &tiles.scores[(first_row + 16u * r) * SCORE_STRIDE], SCORE_STRIDE);
                    }
                    subgroupBarrier();
                    for (var vector = lane; vector < 4u; vector += LANES) {
                        tiles.scores[local_row * SCORE_STRIDE + vector] *= factor;
                    }
                    subgroupBarrier();
                    // unroll
                    for (var r = 0u; r < ROW_TILES; r++) {
                        acc[r * VALUE_TILES + v] = coopLoadT<coop_mat16x16<f32, C>>(
                            &tiles.scores[(first_row + 16u * r) * SCORE_STRIDE], SCORE_STRIDE);
                    }
                    subgroupBarrier();
                }
            }

            // unroll
            for (var k = 0u; k < KEY_TILES; k++) {
                var weights: array<coop_mat16x16<f16, A>, ROW_TILES>;
                // unroll
                for (var r = 0u; r < ROW_TILES; r++) {
                    weights[r] = coopLoadT<coop_mat16x16<f16, A>>(
                        &tiles.weights[(first_row + 16u * r) * WEIGHT_STRIDE + 4u * k], WEIGHT_STRIDE);
                }
                // unroll
                for (var v = 0u; v < VALUE_TILES; v++) {
                    let values = coopLoadT<coop_mat16x16<f16, B>>(&tiles.values[16u * k * VALUE_STRIDE + 4u * v], VALUE_STRIDE);
                    // unroll
                    for (var r = 0u; r < ROW_TILES; r++) {
                        acc[r * VALUE_TILES + v] = coopMultiplyAdd(weights[r], values, acc[r * VALUE_TILES + v]);
                    }
                }
            }
        }
    }

    let total = row_sum(row.total);
    let poisoned = row_max(select(0.0, 1.0, row.poisoned)) > 0.0;
    let finish = finish_row(&row, here, total, poisoned);
    if (params.has_lse != 0u && row.exists && lane == 0u) {
        let at = params.lse.w + here.batch * params.lse.x + here.head * params.lse.y + u32(row.query) * params.lse.z;
        lse[at] = finish.lse;
    }
    workgroupBarrier();
    let spoilt = atomicLoad(&found_non_finite) != 0u;
    let out_start = params.out.w + here.batch * params.out.x + here.head * params.out.y + u32(row.query) * params.out.z;
    // unroll
    for (var v = 0u; v < VALUE_TILES; v++) {
        // unroll
        for (var r = 0u; r < ROW_TILES; r++) {
            coopStoreT(acc[r * VALUE_TILES + v], &tiles.scores[(first_row + 16u * r) * SCORE_STRIDE], SCORE_STRIDE);
        }
        subgroupBarrier();
        for (var vector = lane; vector < 4u; vector += LANES) {
            let dim = 16u * v + 4u * vector;
            if (row.exists && dim < params.value_dim) {
                var numbers = finish.factor * tiles.scores[local_row * SCORE_STRIDE + vector];
                if (spoilt) {
                    numbers = select(numbers, vec4(not_a_number()), keeps_non_finite(&row, here, &walk, dim));
                }
                out[(out_start + dim) >> 2u] = pack4(numbers);
            }
        }
        subgroupBarrier();
    }
}
