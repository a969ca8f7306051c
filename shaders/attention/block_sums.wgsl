// attention.block_sums: how much weight each block of queries gives to each block of keys, [batch,
// heads, blocks of queries, blocks of keys], without the weights ever being in memory. One workgroup
// computes a row of blocks and a thread one query of it, in two passes over the keys: the first finds
// each row's maximum and total, the second adds up weights. The sums are written through the f32
// binding `lse`.
// Expects: THREADS queries to a block, BLOCK_K, HEAD_VECS.

// Fewer where rows are long: they share 16 KiB of workgroup memory.
const STAGED_KEYS: u32 = select(4u, 8u, HEAD_VECS <= 64u);

const_assert BLOCK_K % STAGED_KEYS == 0u;

var<workgroup> staged: array<vec4<f32>, STAGED_KEYS * HEAD_VECS>;
var<workgroup> row_sums: array<f32, THREADS>;

// A query's scores against the keys from `first` on, MASKED where the pair does not count.
fn score_keys(row: ptr<function, Row>, here: Place, thread: u32, first: u32) -> array<f32, STAGED_KEYS> {
    workgroupBarrier();
    let key_start = params.key.w + here.batch * params.key.x + here.key_head * params.key.y;
    for (var i = thread; i < STAGED_KEYS * HEAD_VECS; i += THREADS) {
        let key_index = first + i / HEAD_VECS;
        let dim = 4u * (i % HEAD_VECS);
        let count = select(0u, params.head_dim - min(params.head_dim, dim), key_index < params.key_len);
        staged[i] = load_key(key_start + key_index * params.key.z + dim, count);
    }
    workgroupBarrier();
    let query_start = params.query.w + here.batch * params.query.x + here.head * params.query.y
        + u32((*row).query) * params.query.z;
    var scores: array<f32, STAGED_KEYS>;
    for (var vector = 0u; vector < HEAD_VECS; vector++) {
        let count = select(0u, params.head_dim - 4u * vector, (*row).exists);
        let q = params.query_scale * load_query(query_start + 4u * vector, count);
        for (var i = 0u; i < STAGED_KEYS; i++) {
            scores[i] += dot(q, staged[i * HEAD_VECS + vector]);
        }
    }
    for (var i = 0u; i < STAGED_KEYS; i++) {
        let key_index = first + i;
        if (keeps(row, here, i32(key_index))) {
            scores[i] = modify(row, here, key_index, scores[i]);
        } else {
            scores[i] = MASKED;
        }
    }
    return scores;
}

// A query's weight before its row is normalised. Masked keys of a poisoned row keep theirs of 0.
fn weight_of(row: ptr<function, Row>, score: f32, poisoned: bool) -> f32 {
    if (score == MASKED) {
        return 0.0;
    }
    if (poisoned || !is_finite(score)) {
        return not_a_number();
    }
    if (SOFTMAX) {
        return exp2(LOG2_E * (score - (*row).maximum));
    }
    return 1.0 / (1.0 + exp2(min(-(LOG2_E * score + params.sigmoid_bias), 100.0)));
}

// What a part does, where the walk is cut into parts: all of them find each row's maximum and total,
// which they hand on through `out`, before any adds up weights.
const FIND_TOTALS: u32 = 1u;
const ADD_WEIGHTS: u32 = 2u;

fn state_at(here: Place, query_index: u32) -> u32 {
    return params.out.w + here.batch * params.out.x + here.head * params.out.y + query_index * params.out.z;
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
    let block = index % params.query_blocks;
    let head_and_batch = index / params.query_blocks;
    let here = place(head_and_batch / params.heads, head_and_batch % params.heads);
    var row = start_row(here.batch, block * THREADS + thread);
    let walk = plan_walk(thread, &row);
    // The blocks of keys that the mask leaves something of.
    let last = max(walk.count, 1u) - 1u;
    var first_block = u32(walk.ranges[0].x) / BLOCK_K;
    var end_block = (u32(walk.ranges[last].y) + BLOCK_K - 1u) / BLOCK_K;
    var key_blocks = vec2(0u, (params.key_len + BLOCK_K - 1u) / BLOCK_K);
    if (PARTS) {
        // A part is whole blocks.
        key_blocks = min(vec2(params.part_first, params.part_end) / BLOCK_K, vec2(key_blocks.y));
        first_block = clamp(first_block, key_blocks.x, key_blocks.y);
        end_block = clamp(end_block, key_blocks.x, key_blocks.y);
    }

    var poisoned = false;
    if (SOFTMAX) {
        row.maximum = sink_of(here);
        row.total = select(0.0, 1.0, row.maximum > EMPTY);
        if (PARTS && row.exists && (params.resumes != 0u || params.stage == ADD_WEIGHTS)) {
            let state = load_out(state_at(here, u32(row.query)), 4u);
            row.maximum = state.x;
            row.total = state.y;
            poisoned = state.z > 0.0;
        }
    }
    if (SOFTMAX && (!PARTS || params.stage == FIND_TOTALS)) {
        // rounds: WALK
        for (var first = first_block * BLOCK_K; first < end_block * BLOCK_K; first += STAGED_KEYS) {
            let scores = score_keys(&row, here, thread, first);
            var maximum = row.maximum;
            for (var i = 0u; i < STAGED_KEYS; i++) {
                maximum = max(maximum, scores[i]);
                poisoned = poisoned || !is_finite(scores[i]);
            }
            row.total *= exp2(LOG2_E * (row.maximum - maximum));
            row.maximum = maximum;
            for (var i = 0u; i < STAGED_KEYS; i++) {
                row.total += weight_of(&row, scores[i], false);
            }
        }
        if (PARTS) {
            if (row.exists) {
                let state = vec4(row.maximum, row.total, select(0.0, 1.0, poisoned), 0.0);
                store_out(state_at(here, u32(row.query)), 4u, state);
            }
            return;
        }
    }
    var factor = 1.0;
    if (SOFTMAX) {
        factor = select(select(0.0, 1.0 / row.total, row.total > 0.0), 1.0, poisoned);
    }
    let start = params.lse.w + here.batch * params.lse.x + here.head * params.lse.y + block * params.lse.z;
    // rounds: WALK
    for (var key_block = key_blocks.x + thread; key_block < key_blocks.y; key_block += THREADS) {
        if (key_block < first_block || key_block >= end_block) {
            lse[start + key_block] = 0.0;
        }
    }
    // rounds: WALK / (BLOCK_K / STAGED_KEYS)
    for (var key_block = first_block; key_block < end_block; key_block++) {
        var sum = 0.0;
        // rounds: WALK
        for (var first = key_block * BLOCK_K; first < (key_block + 1u) * BLOCK_K; first += STAGED_KEYS) {
            let scores = score_keys(&row, here, thread, first);
            for (var i = 0u; i < STAGED_KEYS; i++) {
                sum += weight_of(&row, scores[i], poisoned);
            }
        }
        row_sums[thread] = factor * sum;
        workgroupBarrier();
        if (thread == 0u) {
            var total = 0.0;
            for (var i = 0u; i < THREADS; i++) {
                total += row_sums[i];
            }
            lse[start + key_block] = total;
        }
    }
}
