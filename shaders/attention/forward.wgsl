// One workgroup computes BLOCK_Q rows of one head's output: it walks the tiles of BLOCK_K keys that
// the mask leaves, scores them against its queries, turns scores into weights row by row and adds
// weights · values. What differs from the three lines of the formula, and why:
//  1. Softmax is online: a row keeps its maximum and total and rescales its output when the
//     maximum grows, so nothing of size [query_len, key_len] exists.
//  2. A thread owns ROWS x COLS scores and ROWS x OUT_VECS vectors of output in registers; queries,
//     keys and values pass through workgroup memory.
//  3. Scores go through workgroup memory to the lanes that own the rows (LANES to a row), so that
//     masks, modifiers and row statistics are written once, for one row, by both variants.
//  4. The head dimension is staged CHUNK_VECS vectors at a time where workgroup memory is short.
//  5. What is staged next is loaded into registers before the arithmetic on what is there.
// Barriers per tile: two for each staged chunk of keys and of values.
// Which tiles come, and what key a position of the walk is, keys_*.wgsl say.
// Expects: row_max, row_sum (tiled.wgsl, lanes.wgsl), stage.wgsl, outputs.wgsl, judge.wgsl, finish.wgsl, resume.wgsl.

const ROWS: u32 = BLOCK_Q / THREADS_Y;
const COLS: u32 = BLOCK_K / THREADS_X;
const THREADS: u32 = THREADS_X * THREADS_Y;
const OUT_VECS: u32 = (VALUE_VECS + THREADS_X - 1u) / THREADS_X;
const KEY_VECS: u32 = BLOCK_K / 4u;
const CHUNKS: u32 = HEAD_VECS / CHUNK_VECS;
const QUERY_RESIDENT: bool = CHUNKS == 1u;
// Rows of staged queries and keys are an odd number of vectors long: no bank conflicts.
const STAGE_STRIDE: u32 = CHUNK_VECS | 1u;
const KEY_AT: u32 = BLOCK_Q * STAGE_STRIDE;
// Values overwrite the keys, and the queries too when those are staged anew for every tile.
const VALUE_AT: u32 = select(0u, KEY_AT, QUERY_RESIDENT);
const VALUE_STRIDE: u32 = OUT_VECS * THREADS_X;
// Vectors that each thread brings in at a time.
const QUERY_LOADS: u32 = (BLOCK_Q * CHUNK_VECS + THREADS - 1u) / THREADS;
const KEY_LOADS: u32 = (BLOCK_K * CHUNK_VECS + THREADS - 1u) / THREADS;
const VALUE_LOADS: u32 = (VALUE_KEYS * VALUE_STRIDE + THREADS - 1u) / THREADS;
const STAGE_VECS: u32 = max(KEY_AT + BLOCK_K * STAGE_STRIDE, VALUE_AT + VALUE_KEYS * VALUE_STRIDE);
// Rows of the weight tile are a power of two long: their vectors are swizzled instead.
const SWIZZLE: u32 = min(KEY_VECS, 8u) - 1u;

const_assert BLOCK_Q % THREADS_Y == 0u;
const_assert COLS % 4u == 0u;
const_assert HEAD_VECS % CHUNK_VECS == 0u;
const_assert BLOCK_K % VALUE_KEYS == 0u && VALUE_KEYS % 4u == 0u;
const_assert BLOCK_Q * LANES <= THREADS;

var<workgroup> stage: array<vec4<f32>, STAGE_VECS>;
// [BLOCK_Q, BLOCK_K] scores, then weights; a weight of −1 marks a masked pair.
var<workgroup> weight_tile: array<vec4<f32>, BLOCK_Q * KEY_VECS>;
var<workgroup> row_factor: array<f32, BLOCK_Q>;

fn weight_at(row: u32, vector: u32) -> u32 {
    return row * KEY_VECS + (vector ^ (row & SWIZZLE));
}

// Masks and modifies the scores of a lane's part of its row: MASKED where the pair does not count.
fn judge(row: ptr<function, Row>, here: Place, local_row: u32, lane: u32, first: i32, end: i32, full: bool) {
    for (var vector = lane; vector < KEY_VECS; vector += LANES) {
        let at = weight_at(local_row, vector);
        weight_tile[at] = judge_four(row, here, weight_tile[at], first + i32(4u * vector), end, full);
    }
}

// Turns a lane's part of a row of scores (in units of log2) into weights. The factor is what the
// row's output so far must be multiplied by. Scores that were not judged may be below LEAST_SCORE.
fn weigh(row: ptr<function, Row>, local_row: u32, lane: u32, judged: bool) -> f32 {
    var largest = vec4((*row).maximum);
    var magnitude = vec4(0u);
    for (var vector = lane; vector < KEY_VECS; vector += LANES) {
        let scores = weight_tile[weight_at(local_row, vector)];
        largest = max(largest, scores);
        magnitude = max(magnitude, bitcast<vec4<u32>>(scores) & vec4(0x7fffffffu));
    }
    // A kept score that is no finite number spoils its row, and only its row.
    let worst = max(max(magnitude.x, magnitude.y), max(magnitude.z, magnitude.w));
    (*row).poisoned = (*row).poisoned || worst >= 0x7f800000u;
    var maximum = 0.0;
    var factor = 1.0;
    if (SOFTMAX) {
        largest.x = max(largest.x, select(LEAST_SCORE, MASKED, judged));
        maximum = row_max(max(max(largest.x, largest.y), max(largest.z, largest.w)));
        factor = exp2((*row).maximum - maximum);
        (*row).maximum = maximum;
    }
    var total = vec4(0.0);
    if (judged) {
        for (var vector = lane; vector < KEY_VECS; vector += LANES) {
            let at = weight_at(local_row, vector);
            let scores = weight_tile[at];
            let weights = weights_of(scores, maximum);
            let masked = scores <= vec4(EMPTY);
            total += select(weights, vec4(0.0), masked);
            weight_tile[at] = select(weights, vec4(-1.0), masked);
        }
    } else {
        for (var vector = lane; vector < KEY_VECS; vector += LANES) {
            let at = weight_at(local_row, vector);
            let weights = weights_of(max(weight_tile[at], vec4(LEAST_SCORE)), maximum);
            total += weights;
            weight_tile[at] = weights;
        }
    }
    (*row).total = (*row).total * factor + (total.x + total.y + total.z + total.w);
    return factor;
}

// out [ROWS, OUT_VECS] of a thread
alias Outputs = array<vec4<f32>, ROWS * OUT_VECS>;

// Adds weights · values of four keys: `column` is the first of them in the weight tile, `slot` in the
// stage.
fn add_four(acc: ptr<function, Outputs>, thread_x: u32, thread_y: u32, column: u32, slot: u32, full: bool) {
    var weights: array<vec4<f32>, ROWS>;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        weights[r] = weight_tile[weight_at(r * THREADS_Y + thread_y, column / 4u)];
    }
    // unroll
    for (var vector = 0u; vector < OUT_VECS; vector++) {
        let at = VALUE_AT + slot * VALUE_STRIDE + vector * THREADS_X + thread_x;
        let v0 = stage[at];
        let v1 = stage[at + VALUE_STRIDE];
        let v2 = stage[at + 2u * VALUE_STRIDE];
        let v3 = stage[at + 3u * VALUE_STRIDE];
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            let w = weights[r];
            var sum = (*acc)[r * OUT_VECS + vector];
            if (full) {
                sum += w.x * v0;
                sum += w.y * v1;
                sum += w.z * v2;
                sum += w.w * v3;
            } else {
                // A masked value may be anything, and 0 · NaN is no 0.
                let none = vec4(0.0);
                sum += select(w.x * v0, none, w.x < 0.0);
                sum += select(w.y * v1, none, w.y < 0.0);
                sum += select(w.z * v2, none, w.z < 0.0);
                sum += select(w.w * v3, none, w.w < 0.0);
            }
            (*acc)[r * OUT_VECS + vector] = sum;
        }
    }
}

fn attend(group: u32, thread: u32) {
    let thread_x = thread % THREADS_X;
    let thread_y = thread / THREADS_X;
    let turn = turn_of(group);
    let here = place(turn.head_and_batch / params.heads, turn.head_and_batch % params.heads);
    let first_query = turn.block * BLOCK_Q;

    let lane = thread % LANES;
    let owned_row = thread / LANES;
    let owns = owned_row < BLOCK_Q;
    var row = start_row(here.batch, select(params.query_len, first_query + owned_row, owns));
    var walk = plan_walk(thread, &row);
    open_keys(&walk, here, first_query);
    var acc: Outputs;
    if (PARTS) {
        let total = resume_row(&row, here, select(params.query_len, first_query + owned_row, owns));
        row.total = select(0.0, total, lane == 0u);
        resume_outputs(&acc, thread_x, thread_y, here, first_query);
    }
    var next: Next;
    fetch_query(&next, thread, here, first_query, 0u);
    if (QUERY_RESIDENT) {
        put_query(&next, thread, 0u);
    }
    var after = next_range(&walk, 0u);
    fetch_key(&next, thread, here, u32(after.start), 0u);
    // rounds: WALK
    while (after.start < after.end) {
        let range = after;
        after = next_range(&walk, range.index + 1u);
        let end = range.end;
        // rounds: WALK
        for (var first = range.start; first < end; first += i32(BLOCK_K)) {
            // A bias of −∞ masks its pair in any tile.
            let full = is_full(&walk, range, first)
                && (!MODIFIED || (params.bias_dtype == 0u && params.key_bias_at == ABSENT));

            // scores [ROWS, COLS] of this thread; zero by hand, since Chromium zeroes a bare declaration
            // inside a loop once only
            var scores = array<f32, ROWS * COLS>();
            for (var chunk = 0u; chunk < CHUNKS; chunk++) {
                workgroupBarrier();
                if (!QUERY_RESIDENT) {
                    put_query(&next, thread, chunk);
                }
                put_key(&next, thread);
                workgroupBarrier();
                if (chunk + 1u < CHUNKS) {
                    fetch_query(&next, thread, here, first_query, chunk + 1u);
                    fetch_key(&next, thread, here, u32(first), chunk + 1u);
                } else {
                    fetch_value(&next, thread, here, u32(first));
                }
                // unroll
                for (var vector = 0u; vector < CHUNK_VECS; vector++) {
                    var keys: array<vec4<f32>, COLS>;
                    // unroll
                    for (var column = 0u; column < COLS; column++) {
                        let slot = column * THREADS_X + thread_x;
                        keys[column] = stage[KEY_AT + slot * STAGE_STRIDE + vector];
                    }
                    // unroll
                    for (var r = 0u; r < ROWS; r++) {
                        let q = stage[(r * THREADS_Y + thread_y) * STAGE_STRIDE + vector];
                        // unroll
                        for (var column = 0u; column < COLS; column++) {
                            // Not dot(): the sum goes on from the score, one fma each.
                            var score = scores[r * COLS + column];
                            score += q.x * keys[column].x;
                            score += q.y * keys[column].y;
                            score += q.z * keys[column].z;
                            score += q.w * keys[column].w;
                            scores[r * COLS + column] = score;
                        }
                    }
                }
            }
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let local_row = r * THREADS_Y + thread_y;
                // unroll
                for (var column = 0u; column < COLS; column += 4u) {
                    let at = r * COLS + column;
                    weight_tile[weight_at(local_row, (thread_x * COLS + column) / 4u)] =
                        vec4(scores[at], scores[at + 1u], scores[at + 2u], scores[at + 3u]);
                }
            }
            workgroupBarrier();
            put_value(&next, thread);
            if (owns) {
                if (MODIFIED || !full) {
                    judge(&row, here, owned_row, lane, first, end, full);
                }
                let factor = weigh(&row, owned_row, lane, MODIFIED || !full);
                if (lane == 0u) {
                    row_factor[owned_row] = factor;
                }
            }
            workgroupBarrier();
            if (SOFTMAX) {
                // unroll
                for (var r = 0u; r < ROWS; r++) {
                    let factor = row_factor[r * THREADS_Y + thread_y];
                    // unroll
                    for (var vector = 0u; vector < OUT_VECS; vector++) {
                        acc[r * OUT_VECS + vector] *= factor;
                    }
                }
            }
            for (var base = 0u; base < BLOCK_K; base += VALUE_KEYS) {
                if (base > 0u) {
                    workgroupBarrier();
                    put_value(&next, thread);
                    workgroupBarrier();
                }
                if (base + VALUE_KEYS < BLOCK_K) {
                    fetch_value(&next, thread, here, u32(first) + base + VALUE_KEYS);
                } else {
                    if (!QUERY_RESIDENT) {
                        fetch_query(&next, thread, here, first_query, 0u);
                    }
                    fetch_key(&next, thread, here, following_tile(range, after, first), 0u);
                }
                // A loop of its own for full tiles: one that asks at every product took twice as long.
                if (full) {
                    // unroll
                    for (var slot = 0u; slot < VALUE_KEYS; slot += 4u) {
                        add_four(&acc, thread_x, thread_y, base + slot, slot, true);
                    }
                } else {
                    for (var slot = 0u; slot < VALUE_KEYS; slot += 4u) {
                        add_four(&acc, thread_x, thread_y, base + slot, slot, false);
                    }
                }
            }
        }
    }

    let total = row_sum(row.total);
    let poisoned = row_max(select(0.0, 1.0, row.poisoned)) > 0.0;
    if (owns && lane == 0u) {
        let finish = finish_row(&row, here, total, poisoned);
        row_factor[owned_row] = finish.factor;
        if (params.has_lse != 0u && row.exists) {
            let at = params.lse.w + here.batch * params.lse.x + here.head * params.lse.y
                + u32(row.query) * params.lse.z;
            lse[at] = finish.lse;
        }
    }
    workgroupBarrier();
    store_outputs(&acc, thread_x, thread_y, here, first_query);
}
