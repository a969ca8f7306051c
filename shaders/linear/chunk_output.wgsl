// linear.chunk_output: the outputs of one chunk of one query head, 4·SLICE_VECS columns of them:
// what the state before the chunk answers, and what the chunk's own earlier tokens add.
//  1. Queries are staged once for both products, q · state and q · kᵀ, CHUNK_VECS vectors of
//     features at a time; a thread owns ROWS x 4 weights and ROWS x OUT_VECS vectors of output.
//  2. The weights then pass through workgroup memory STEP columns at a time, beside their values.
//  3. Decays between two tokens are exp of a difference that is never above 0: powers and their
//     inverses, which overflow, do not occur. Gates per key dimension go into every product of the
//     dot, and nothing else does.
// Barriers: two for each CHUNK_VECS vectors of features, two for each STEP tokens.

const THREADS_X: u32 = CHUNK / 4u;
const THREADS_Y: u32 = 8u;
const THREADS: u32 = THREADS_X * THREADS_Y;
const ROWS: u32 = CHUNK / THREADS_Y;
const OUT_VECS: u32 = (SLICE_VECS + THREADS_X - 1u) / THREADS_X;
const SLICE_STRIDE: u32 = OUT_VECS * THREADS_X;
const STEP: u32 = 16u;
// Rows of staged queries and keys are an odd number of vectors long: no bank conflicts.
const STAGE_STRIDE: u32 = CHUNK_VECS | 1u;
const KEY_AT: u32 = CHUNK * STAGE_STRIDE;
// Sums of gates per key dimension: whole numbers, then fractions.
const SUM_AT: u32 = 2u * CHUNK * STAGE_STRIDE;
const STATE_AT: u32 = select(2u, 4u, PER_KEY_DIM) * CHUNK * STAGE_STRIDE;
const VALUE_AT: u32 = CHUNK * STEP / 4u;
const STAGE_VECS: u32 = max(STATE_AT + 4u * CHUNK_VECS * SLICE_STRIDE, VALUE_AT + STEP * SLICE_STRIDE);

const_assert CHUNK % STEP == 0u;

var<workgroup> stage: array<vec4<f32>, STAGE_VECS>;
var<workgroup> sum_tile: array<vec2<f32>, CHUNK>;

// queries and keys [CHUNK, CHUNK_VECS], of features or of plain elements; the four keys of a thread
// lie THREADS_X slots apart
fn stage_tokens(thread: u32, here: Place, head: u32, first: u32, vectors: u32, plain: bool) {
    for (var i = thread; i < CHUNK * CHUNK_VECS; i += THREADS) {
        let local = i / CHUNK_VECS;
        let vector = first + i % CHUNK_VECS;
        let slot = (local % 4u) * THREADS_X + local / 4u;
        let query_at = local * STAGE_STRIDE + i % CHUNK_VECS;
        let key_at = KEY_AT + slot * STAGE_STRIDE + i % CHUNK_VECS;
        let index = token_at(here.chunk, local);
        let query_from = query_start(here.batch, head, index);
        let key_from = key_start(here.batch, here.head, index);
        var q: vec4<f32>;
        var k: vec4<f32>;
        if (plain) {
            q = query_vector(query_from, vector);
            k = key_vector(key_from, vector);
        } else {
            q = query_features(query_from, vector);
            if (FEATURE_MAP != TAYLOR2) {
                k = key_features(key_from, vector);
            }
        }
        let exists = local < here.chunk.count && vector < vectors;
        stage[query_at] = select(vec4(0.0), q, exists);
        stage[key_at] = select(vec4(0.0), k, exists);
        if (PER_KEY_DIM) {
            var whole = vec4(0.0);
            var part = vec4(0.0);
            if (vector < vectors) {
                for (var e = 0u; e < 4u; e++) {
                    let sum = gate_sum(here, local, 4u * vector + e);
                    whole[e] = sum.x;
                    part[e] = sum.y;
                }
            }
            // As keys are ordered, so that a thread's own lie apart.
            stage[SUM_AT + slot * STAGE_STRIDE + i % CHUNK_VECS] = whole;
            stage[SUM_AT + KEY_AT + slot * STAGE_STRIDE + i % CHUNK_VECS] = part;
        }
    }
}

// states [4·CHUNK_VECS, SLICE_STRIDE]
fn stage_state(thread: u32, entry: u32, first: u32, slice: u32) {
    for (var i = thread; i < 4u * CHUNK_VECS * SLICE_STRIDE; i += THREADS) {
        let row = 4u * first + i / SLICE_STRIDE;
        let column = slice * SLICE_VECS + i % SLICE_STRIDE;
        let x = state[entry + min(row, 4u * FEATURE_VECS - 1u) * VALUE_VECS + min(column, VALUE_VECS - 1u)];
        stage[STATE_AT + i] = select(vec4(0.0), x, row < 4u * FEATURE_VECS && column < VALUE_VECS);
    }
}

// values [STEP, SLICE_STRIDE]
fn stage_values(thread: u32, here: Place, entry: u32, first: u32, slice: u32) {
    for (var i = thread; i < STEP * SLICE_STRIDE; i += THREADS) {
        let local = first + i / SLICE_STRIDE;
        let vector = slice * SLICE_VECS + i % SLICE_STRIDE;
        var x: vec4<f32>;
        if (DELTA) {
            x = state[entry + CORRECTED_AT + min(local, CHUNK - 1u) * VALUE_VECS + min(vector, VALUE_VECS - 1u)];
        } else {
            x = value_vector(here.batch, here.head, token_at(here.chunk, local), vector);
        }
        stage[VALUE_AT + i] = select(vec4(0.0), x, local < here.chunk.count && vector < VALUE_VECS);
    }
}

// Where a row of queries has its sums, which are ordered as keys are.
fn sum_slot(local: u32) -> u32 {
    return ((local % 4u) * THREADS_X + local / 4u) * STAGE_STRIDE;
}

fn answer(thread: u32, here: Place, head: u32, slice: u32) {
    let thread_x = thread % THREADS_X;
    let thread_y = thread / THREADS_X;
    let slope = slope_of(here.head);
    let entry = entry_start(here);
    if (GATED && !PER_KEY_DIM && thread < CHUNK) {
        sum_tile[thread] = gate_sum(here, thread, 0u);
    }

    // scores [ROWS, 4] and out [ROWS, OUT_VECS] of this thread
    var scores: array<f32, 4u * ROWS>;
    var acc: array<vec4<f32>, ROWS * OUT_VECS>;
    if (FEATURE_MAP == TAYLOR2) {
        for (var first = 0u; first < HEAD_VECS; first += CHUNK_VECS) {
            workgroupBarrier();
            stage_tokens(thread, here, head, first, HEAD_VECS, true);
            workgroupBarrier();
            for (var vector = 0u; vector < CHUNK_VECS; vector++) {
                for (var r = 0u; r < ROWS; r++) {
                    let q = stage[(r * THREADS_Y + thread_y) * STAGE_STRIDE + vector];
                    for (var c = 0u; c < 4u; c++) {
                        let k = stage[KEY_AT + (c * THREADS_X + thread_x) * STAGE_STRIDE + vector];
                        scores[4u * r + c] += dot(q, k);
                    }
                }
            }
        }
        for (var i = 0u; i < 4u * ROWS; i++) {
            let u = scores[i] * inverseSqrt(f32(params.head_dim));
            scores[i] = 1.0 + u + 0.5 * u * u;
        }
    }
    for (var first = 0u; first < FEATURE_VECS; first += CHUNK_VECS) {
        workgroupBarrier();
        stage_tokens(thread, here, head, first, FEATURE_VECS, false);
        stage_state(thread, entry, first, slice);
        workgroupBarrier();
        for (var vector = 0u; vector < CHUNK_VECS; vector++) {
            var keys: array<vec4<f32>, 4>;
            var wholes: array<vec4<f32>, 4>;
            var parts: array<vec4<f32>, 4>;
            if (FEATURE_MAP != TAYLOR2) {
                for (var c = 0u; c < 4u; c++) {
                    let at = (c * THREADS_X + thread_x) * STAGE_STRIDE + vector;
                    keys[c] = stage[KEY_AT + at];
                    if (PER_KEY_DIM) {
                        wholes[c] = stage[SUM_AT + at];
                        parts[c] = stage[SUM_AT + KEY_AT + at];
                    }
                }
            }
            // [4, OUT_VECS]: the rows of the state that this vector of features multiplies
            var rows: array<vec4<f32>, 4u * OUT_VECS>;
            for (var e = 0u; e < 4u; e++) {
                for (var out_vec = 0u; out_vec < OUT_VECS; out_vec++) {
                    let at = STATE_AT + (4u * vector + e) * SLICE_STRIDE + out_vec * THREADS_X + thread_x;
                    rows[e * OUT_VECS + out_vec] = stage[at];
                }
            }
            for (var r = 0u; r < ROWS; r++) {
                let local = r * THREADS_Y + thread_y;
                var q = stage[local * STAGE_STRIDE + vector];
                if (PER_KEY_DIM) {
                    let whole = stage[SUM_AT + sum_slot(local) + vector];
                    let part = stage[SUM_AT + KEY_AT + sum_slot(local) + vector];
                    for (var c = 0u; c < 4u; c++) {
                        let decay = exp(min((wholes[c] - whole) + (parts[c] - part), vec4(0.0)));
                        scores[4u * r + c] += dot(q * decay, keys[c]);
                    }
                    q *= exp(-whole - part);
                } else if (FEATURE_MAP != TAYLOR2) {
                    for (var c = 0u; c < 4u; c++) {
                        var score = scores[4u * r + c];
                        score += q.x * keys[c].x;
                        score += q.y * keys[c].y;
                        score += q.z * keys[c].z;
                        score += q.w * keys[c].w;
                        scores[4u * r + c] = score;
                    }
                }
                for (var out_vec = 0u; out_vec < OUT_VECS; out_vec++) {
                    var sum = acc[r * OUT_VECS + out_vec];
                    sum += q.x * rows[out_vec];
                    sum += q.y * rows[OUT_VECS + out_vec];
                    sum += q.z * rows[2u * OUT_VECS + out_vec];
                    sum += q.w * rows[3u * OUT_VECS + out_vec];
                    acc[r * OUT_VECS + out_vec] = sum;
                }
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        let local = r * THREADS_Y + thread_y;
        if (!PER_KEY_DIM) {
            var decay = exp(-slope * f32(local + 1u));
            if (GATED) {
                decay = exp(-sum_tile[local].x - sum_tile[local].y);
            }
            for (var vector = 0u; vector < OUT_VECS; vector++) {
                acc[r * OUT_VECS + vector] *= decay;
            }
        }
        for (var c = 0u; c < 4u; c++) {
            let from_local = 4u * thread_x + c;
            var decay = 1.0;
            if (!GATED) {
                decay = exp(slope * min(f32(from_local) - f32(local), 0.0));
            } else if (!PER_KEY_DIM) {
                decay = decay_between(sum_tile[local], sum_tile[from_local]);
            }
            scores[4u * r + c] = select(0.0, decay * scores[4u * r + c], from_local <= local);
        }
    }
    // rounds: CHUNK / STEP
    for (var first = 0u; first < here.chunk.count; first += STEP) {
        workgroupBarrier();
        if (thread_x / (STEP / 4u) == first / STEP) {
            for (var r = 0u; r < ROWS; r++) {
                let local = r * THREADS_Y + thread_y;
                stage[local * (STEP / 4u) + thread_x % (STEP / 4u)] =
                    vec4(scores[4u * r], scores[4u * r + 1u], scores[4u * r + 2u], scores[4u * r + 3u]);
            }
        }
        stage_values(thread, here, entry, first, slice);
        workgroupBarrier();
        for (var column = 0u; column < STEP / 4u; column++) {
            for (var vector = 0u; vector < OUT_VECS; vector++) {
                let at = VALUE_AT + 4u * column * SLICE_STRIDE + vector * THREADS_X + thread_x;
                let v0 = stage[at];
                let v1 = stage[at + SLICE_STRIDE];
                let v2 = stage[at + 2u * SLICE_STRIDE];
                let v3 = stage[at + 3u * SLICE_STRIDE];
                for (var r = 0u; r < ROWS; r++) {
                    let w = stage[(r * THREADS_Y + thread_y) * (STEP / 4u) + column];
                    var sum = acc[r * OUT_VECS + vector];
                    sum += w.x * v0;
                    sum += w.y * v1;
                    sum += w.z * v2;
                    sum += w.w * v3;
                    acc[r * OUT_VECS + vector] = sum;
                }
            }
        }
    }
    for (var r = 0u; r < ROWS; r++) {
        let local = r * THREADS_Y + thread_y;
        if (local < here.chunk.count) {
            let index = here.chunk.begin + local;
            var factor = params.scale;
            if (NORMALIZE) {
                factor /= token_value(head, here.batch, index) + params.epsilon;
            }
            let start = params.out.w + here.batch * params.out.x + head * params.out.y + index * params.out.z;
            for (var vector = 0u; vector < OUT_VECS; vector++) {
                let in_slice = vector * THREADS_X + thread_x;
                let column = 4u * (slice * SLICE_VECS + in_slice);
                let count = select(0u, remaining(params.value_dim, column), in_slice < SLICE_VECS);
                store_out(start + column, count, factor * acc[r * OUT_VECS + vector]);
            }
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_number(group, groups);
    if (index >= params.workgroups) {
        return;
    }
    let slice = index % params.slices;
    let member = (index / params.slices) % params.group;
    let here = place(index / params.slices / params.group);
    if (here.chunk.count == 0u) {
        return;
    }
    answer(thread, here, here.head * params.group + member, slice);
}
