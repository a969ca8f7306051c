// attention.rows: for CPU drivers, which run a few threads as the lanes of one vector. A thread owns
// ROWS whole rows, scores and outputs in registers, and walks the keys by itself. What differs from
// forward.wgsl, and why:
//  1. Keys and values are loaded where they lie: a CPU has caches, and a barrier has it save and
//     restore every thread.
//  2. A row's output is rescaled when its maximum has grown by SLACK: a branch is cheap here, and
//     most keys do not take it.
//  3. The loops over rows and keys are written out even here; those over dims stay loops, so that the
//     text is short whatever the dims are.
// Barriers: those of the walk, in front of the loop.
// Expects: the keys axis, judge.wgsl, finish.wgsl, resume.wgsl.

const ROWS: u32 = BLOCK_Q / THREADS_Y;
const THREADS: u32 = THREADS_Y;
const FOURS: u32 = BLOCK_K / 4u;
// In units of log2: weights grow up to 2^SLACK.
const SLACK: f32 = 8.0;

const_assert BLOCK_Q % THREADS_Y == 0u;
const_assert BLOCK_K % 4u == 0u;

// A row between its first key and its last.
struct State {
    maximum: f32,
    total: f32,
    magnitude: u32, // of the bits of its largest score
}

// The ROWS rows of a thread.
alias Rows = array<Row, ROWS>;
alias States = array<State, ROWS>;
// out [ROWS, VALUE_VECS]
alias Outs = array<vec4<f32>, ROWS * VALUE_VECS>;
// scores [ROWS, BLOCK_K]
alias Scores = array<vec4<f32>, ROWS * FOURS>;

// Masks and modifies scores: MASKED where the pair does not count.
fn judge(rows: ptr<function, Rows>, count: u32, scores: ptr<function, Scores>, here: Place, first: i32, end: i32, full: bool) {
    // rounds: ROWS
    for (var r = 0u; r < count; r++) {
        var row = (*rows)[r];
        // unroll
        for (var four = 0u; four < FOURS; four++) {
            let at = r * FOURS + four;
            (*scores)[at] = judge_four(&row, here, (*scores)[at], first + i32(4u * four), end, full);
        }
    }
}

// Turns scores (in units of log2) into weights, −1 for a masked pair, and rescales the outputs of
// the rows whose maximum has grown. Scores count as `least` at least.
fn weigh(states: ptr<function, States>, scores: ptr<function, Scores>, acc: ptr<function, Outs>, least: f32) {
    if (SOFTMAX) {
        var maxima: array<f32, ROWS>;
        var grown = false;
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            var largest = (*scores)[r * FOURS];
            // unroll
            for (var four = 1u; four < FOURS; four++) {
                largest = max(largest, (*scores)[r * FOURS + four]);
            }
            let maximum = max(max(max(largest.x, largest.y), max(largest.z, largest.w)), least);
            let grows = maximum > (*states)[r].maximum + SLACK;
            maxima[r] = select((*states)[r].maximum, maximum, grows);
            grown = grown || grows;
        }
        if (grown) {
            var factors: array<f32, ROWS>;
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                let factor = exp2((*states)[r].maximum - maxima[r]);
                (*states)[r].maximum = maxima[r];
                (*states)[r].total *= factor;
                factors[r] = factor;
            }
            // rounds: VALUE_VECS
            for (var vector = 0u; vector < params.value_dim / 4u; vector++) {
                // unroll
                for (var r = 0u; r < ROWS; r++) {
                    (*acc)[r * VALUE_VECS + vector] *= factors[r];
                }
            }
        }
    }
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        // unroll
        for (var four = 0u; four < FOURS; four++) {
            let given = (*scores)[r * FOURS + four];
            // A kept score that is no finite number spoils its row, and only its row.
            let bits = bitcast<vec4<u32>>(given) & vec4(0x7fffffffu);
            (*states)[r].magnitude = max((*states)[r].magnitude, max(max(bits.x, bits.y), max(bits.z, bits.w)));
            let score = max(given, vec4(least));
            var weights = weights_of(score, (*states)[r].maximum);
            let masked = score <= vec4(EMPTY);
            weights = select(weights, vec4(0.0), masked);
            (*states)[r].total += weights.x + weights.y + weights.z + weights.w;
            (*scores)[r * FOURS + four] = select(weights, vec4(-1.0), masked);
        }
    }
}

fn attend(group: u32, thread: u32) {
    let turn = turn_of(group);
    let here = place(turn.head_and_batch / params.heads, turn.head_and_batch % params.heads);
    let first_query = turn.block * BLOCK_Q;
    let first_row = first_query + thread * ROWS;

    let count = min(params.query_len - min(first_row, params.query_len), ROWS);
    var rows: Rows;
    open_walk(thread);
    // rounds: ROWS
    for (var r = 0u; r < count; r++) {
        var row = start_row(here.batch, first_row + r);
        widen_walk(&row, 0u);
        rows[r] = row;
    }
    var walk = close_walk(thread);
    open_keys(&walk, here, first_query);

    let head_vecs = params.head_dim / 4u;
    let value_vecs = params.value_dim / 4u;
    // queries [ROWS, HEAD_VECS]
    var queries: array<vec4<f32>, ROWS * HEAD_VECS>;
    var acc: Outs;
    let query_start = params.query.w + here.batch * params.query.x + here.head * params.query.y;
    // rounds: HEAD_VECS
    for (var vector = 0u; vector < head_vecs; vector++) {
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            let row = query_start + min(first_row + r, params.query_len - 1u) * params.query.z;
            queries[r * HEAD_VECS + vector] = params.query_scale * arrived(query_ahead(row, 4u * vector));
        }
    }
    var states: States;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        states[r] = State(MASKED, 0.0, 0u);
    }
    if (PARTS) {
        // unroll
        for (var r = 0u; r < ROWS; r++) {
            var row = rows[r];
            row.maximum = MASKED;
            let total = resume_row(&row, here, first_row + r);
            states[r] = State(row.maximum, total, select(0u, 0x7f800000u, row.poisoned));
        }
        // rounds: VALUE_VECS
        for (var vector = 0u; vector < params.value_dim / 4u; vector++) {
            // unroll
            for (var r = 0u; r < ROWS; r++) {
                acc[r * VALUE_VECS + vector] = resume_out(here, first_row + r, 4u * vector);
            }
        }
    }

    let last = max(params.key_len, 1u) - 1u;
    let key_start = params.key.w + here.batch * params.key.x + here.key_head * params.key.y;
    let value_start = params.value.w + here.batch * params.value.x + here.value_head * params.value.y;
    var after = next_range(&walk, 0u);
    // rounds: WALK
    while (after.start < after.end) {
        let range = after;
        after = next_range(&walk, range.index + 1u);
        // rounds: WALK
        for (var first = range.start; first < range.end; first += i32(BLOCK_K)) {
            // A bias of −∞ masks its pair in any tile.
            let full = is_full(&walk, range, first)
                && (!MODIFIED || (params.bias_dtype == 0u && params.key_bias_at == ABSENT));
            // Where the keys and the values begin.
            var keys: array<u32, BLOCK_K>;
            var values: array<u32, BLOCK_K>;
            // unroll
            for (var i = 0u; i < BLOCK_K; i++) {
                let column = min(key_at(u32(first) + i), last);
                keys[i] = key_start + column * params.key.z;
                values[i] = value_start + column * params.value.z;
            }

            // Zero by hand: see forward.wgsl.
            var scores = Scores();
            // rounds: HEAD_VECS
            for (var vector = 0u; vector < head_vecs; vector++) {
                // unroll
                for (var four = 0u; four < FOURS; four++) {
                    let k0 = arrived(key_ahead(keys[4u * four], 4u * vector));
                    let k1 = arrived(key_ahead(keys[4u * four + 1u], 4u * vector));
                    let k2 = arrived(key_ahead(keys[4u * four + 2u], 4u * vector));
                    let k3 = arrived(key_ahead(keys[4u * four + 3u], 4u * vector));
                    // unroll
                    for (var r = 0u; r < ROWS; r++) {
                        let q = queries[r * HEAD_VECS + vector];
                        var sum = scores[r * FOURS + four];
                        sum += q.x * vec4(k0.x, k1.x, k2.x, k3.x);
                        sum += q.y * vec4(k0.y, k1.y, k2.y, k3.y);
                        sum += q.z * vec4(k0.z, k1.z, k2.z, k3.z);
                        sum += q.w * vec4(k0.w, k1.w, k2.w, k3.w);
                        scores[r * FOURS + four] = sum;
                    }
                }
            }
            let judged = MODIFIED || !full;
            if (judged) {
                judge(&rows, count, &scores, here, first, range.end, full);
            }
            weigh(&states, &scores, &acc, select(LEAST_SCORE, MASKED, judged));

            if (full) {
                // rounds: VALUE_VECS
                for (var vector = 0u; vector < value_vecs; vector++) {
                    var v: array<vec4<f32>, BLOCK_K>;
                    // unroll
                    for (var i = 0u; i < BLOCK_K; i++) {
                        v[i] = arrived(value_ahead(values[i], 4u * vector));
                    }
                    // unroll
                    for (var r = 0u; r < ROWS; r++) {
                        var sum = acc[r * VALUE_VECS + vector];
                        // unroll
                        for (var i = 0u; i < BLOCK_K; i++) {
                            sum += scores[r * FOURS + i / 4u][i % 4u] * v[i];
                        }
                        acc[r * VALUE_VECS + vector] = sum;
                    }
                }
            } else {
                // rounds: VALUE_VECS
                for (var vector = 0u; vector < value_vecs; vector++) {
                    // unroll
                    for (var i = 0u; i < BLOCK_K; i++) {
                        let v = arrived(value_ahead(values[i], 4u * vector));
                        // unroll
                        for (var r = 0u; r < ROWS; r++) {
                            // A masked value may be anything, and 0 · NaN is no 0.
                            let weight = scores[r * FOURS + i / 4u][i % 4u];
                            acc[r * VALUE_VECS + vector] += select(weight * v, vec4(0.0), weight < 0.0);
                        }
                    }
                }
            }
        }
    }

    // rounds: ROWS
    for (var r = 0u; r < count; r++) {
        var row = rows[r];
        row.maximum = states[r].maximum;
        let finish = finish_row(&row, here, states[r].total, states[r].magnitude >= 0x7f800000u);
        let query_index = first_row + r;
        if (params.has_lse != 0u) {
            lse[params.lse.w + here.batch * params.lse.x + here.head * params.lse.y
                + query_index * params.lse.z] = finish.lse;
        }
        let start = params.out.w + here.batch * params.out.x + here.head * params.out.y
            + query_index * params.out.z;
        // rounds: VALUE_VECS
        for (var vector = 0u; vector < value_vecs; vector++) {
            store_out(start + 4u * vector, 4u, acc[r * VALUE_VECS + vector] * finish.factor);
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
    if (index < params.workgroups) {
        attend(index, thread);
    }
}
