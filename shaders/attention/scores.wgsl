// attention.scores: one workgroup computes one row of scores, [key_len] of [batch, heads,
// query_len, key_len], at one of four stages, for whoever wants to see an attention map. Plain:
// each thread takes every THREADS-th key; weights are made in a second pass over its own scores, for
// which parts of a long walk begin at multiples of THREADS.
// The scores are written through the f32 binding `lse`.

const SCALED: u32 = 0u;
const MODIFIED_STAGE: u32 = 1u;
const MASKED_STAGE: u32 = 2u;
const PROBABILITIES: u32 = 3u;

var<workgroup> partial: array<f32, THREADS>;

// Every thread calls it in uniform control flow; all get the same bits.
fn group_max(thread: u32, x: f32) -> f32 {
    workgroupBarrier();
    partial[thread] = x;
    workgroupBarrier();
    var largest = partial[0];
    for (var i = 1u; i < THREADS; i++) {
        largest = max(largest, partial[i]);
    }
    return largest;
}

fn group_sum(thread: u32, x: f32) -> f32 {
    workgroupBarrier();
    partial[thread] = x;
    workgroupBarrier();
    var total = partial[0];
    for (var i = 1u; i < THREADS; i++) {
        total += partial[i];
    }
    return total;
}

// scale · q·k
fn scaled_score(here: Place, query_index: u32, key_index: u32) -> f32 {
    let query_start = params.query.w + here.batch * params.query.x + here.head * params.query.y
        + query_index * params.query.z;
    let key_start = params.key.w + here.batch * params.key.x + here.key_head * params.key.y
        + key_index * params.key.z;
    var score = 0.0;
    // rounds: HEAD_DIM / 4u + 1u
    for (var dim = 0u; dim < params.head_dim; dim += 4u) {
        let count = params.head_dim - dim;
        score += dot(params.query_scale * load_query(query_start + dim, count), load_key(key_start + dim, count));
    }
    return score;
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
    let query_index = index % params.query_len;
    let head_and_batch = index / params.query_len;
    let here = place(head_and_batch / params.heads, head_and_batch % params.heads);
    let start = params.lse.w + here.batch * params.lse.x + here.head * params.lse.y + query_index * params.lse.z;
    var row = start_row(here.batch, query_index);

    var maximum = MASKED;
    var spoilt = 0.0;
    let part_first = select(0u, params.part_first, PARTS);
    let part_end = select(params.key_len, min(params.part_end, params.key_len), PARTS);
    // rounds: WALK
    for (var key_index = part_first + thread; key_index < part_end; key_index += THREADS) {
        var score = scaled_score(here, query_index, key_index);
        if (params.stage >= MODIFIED_STAGE) {
            score = modify(&row, here, key_index, score);
        }
        if (params.stage >= MASKED_STAGE && !keeps(&row, here, i32(key_index))) {
            score = MASKED;
        }
        maximum = max(maximum, score);
        spoilt = select(1.0, spoilt, is_finite(score));
        lse[start + key_index] = score;
    }
    if (params.stage < PROBABILITIES || part_end < params.key_len) {
        return;
    }
    if (PARTS) {
        // The last part makes weights of all scores.
        // rounds: KEY_ROUNDS
        for (var key_index = thread; key_index < part_first; key_index += THREADS) {
            let score = lse[start + key_index];
            maximum = max(maximum, score);
            spoilt = select(1.0, spoilt, is_finite(score));
        }
    }
    maximum = group_max(thread, maximum);
    let sink = sink_of(here);
    maximum = max(maximum, sink);
    let poisoned = group_max(thread, spoilt) > 0.0;
    var total = 0.0;
    // rounds: KEY_ROUNDS
    for (var key_index = thread; key_index < params.key_len; key_index += THREADS) {
        let score = lse[start + key_index];
        var weight = 0.0;
        if (!is_finite(score) || (SOFTMAX && poisoned && score > EMPTY)) {
            weight = not_a_number();
        } else if (score > EMPTY) {
            if (SOFTMAX) {
                weight = exp2(LOG2_E * (score - maximum));
            } else {
                weight = 1.0 / (1.0 + exp2(min(-(LOG2_E * score + params.sigmoid_bias), 100.0)));
            }
        }
        total += weight;
        lse[start + key_index] = weight;
    }
    var factor = 1.0;
    if (SOFTMAX) {
        total = group_sum(thread, total) + select(0.0, exp2(LOG2_E * (sink - maximum)), sink > EMPTY);
        // Masked keys of a poisoned row keep their weight of 0.
        factor = select(select(0.0, 1.0 / total, total > 0.0), 1.0, poisoned);
    }
    // rounds: KEY_ROUNDS
    for (var key_index = thread; key_index < params.key_len; key_index += THREADS) {
        lse[start + key_index] *= factor;
    }
}
