// linear.chunk_correct: the delta rule inside one chunk (the WY form). With the keys' decayed
// products A_ab = β_a decay(b → a) k_a·k_b for b < a, the corrected values are U = U' − W S for the
// state S before the chunk, where (I + A) U' = βV and (I + A) W = β decay(start → a) K. One
// workgroup builds A for its chunk and solves for all columns of both by forward substitution, one
// vector of columns a thread; it leaves W, U' and the keys decayed to the end of the chunk.
// Barriers: two for each KEY_VECS vectors of features, one before the substitution.
// Expects: CHUNK to divide THREADS.

const KEY_VECS: u32 = 4u;
const STAGE_STRIDE: u32 = KEY_VECS | 1u;
const PAIRS: u32 = CHUNK * CHUNK / THREADS;
const KEY_SUMS: u32 = select(1u, CHUNK * STAGE_STRIDE, PER_KEY_DIM);

var<workgroup> key_tile: array<vec4<f32>, CHUNK * STAGE_STRIDE>;
// Sums of gates per key dimension: whole numbers and fractions.
var<workgroup> whole_tile: array<vec4<f32>, KEY_SUMS>;
var<workgroup> part_tile: array<vec4<f32>, KEY_SUMS>;
// A [CHUNK, CHUNK]
var<workgroup> products: array<f32, CHUNK * CHUNK>;
var<workgroup> beta_tile: array<f32, CHUNK>;

fn stage_keys(thread: u32, here: Place, first: u32) {
    for (var i = thread; i < CHUNK * KEY_VECS; i += THREADS) {
        let local = i / KEY_VECS;
        let vector = first + i % KEY_VECS;
        let at = local * STAGE_STRIDE + i % KEY_VECS;
        var k = vec4(0.0);
        if (local < here.chunk.count && vector < FEATURE_VECS) {
            k = key_features(key_start(here.batch, here.head, here.chunk.begin + local), vector);
        }
        key_tile[at] = k;
        if (PER_KEY_DIM) {
            var whole = vec4(0.0);
            var part = vec4(0.0);
            if (vector < FEATURE_VECS) {
                for (var e = 0u; e < 4u; e++) {
                    let sum = gate_sum(here, local, 4u * vector + e);
                    whole[e] = sum.x;
                    part[e] = sum.y;
                }
            }
            whole_tile[at] = whole;
            part_tile[at] = part;
        }
    }
}

// Leaves A in `products`.
fn multiply_keys(thread: u32, here: Place) {
    var sums: array<f32, PAIRS>;
    for (var first = 0u; first < FEATURE_VECS; first += KEY_VECS) {
        workgroupBarrier();
        stage_keys(thread, here, first);
        workgroupBarrier();
        for (var pair = 0u; pair < PAIRS; pair++) {
            let to_row = ((pair * THREADS + thread) / CHUNK) * STAGE_STRIDE;
            let from_row = ((pair * THREADS + thread) % CHUNK) * STAGE_STRIDE;
            for (var vector = 0u; vector < KEY_VECS; vector++) {
                var k = key_tile[to_row + vector];
                if (PER_KEY_DIM) {
                    let whole = whole_tile[from_row + vector] - whole_tile[to_row + vector];
                    let part = part_tile[from_row + vector] - part_tile[to_row + vector];
                    k *= exp(min(whole + part, vec4(0.0)));
                }
                sums[pair] += dot(k, key_tile[from_row + vector]);
            }
        }
    }
    for (var pair = 0u; pair < PAIRS; pair++) {
        let to_local = (pair * THREADS + thread) / CHUNK;
        let from_local = (pair * THREADS + thread) % CHUNK;
        var product = beta_tile[to_local] * sums[pair];
        if (GATED && !PER_KEY_DIM) {
            product *= decay_between(gate_sum(here, to_local, 0u), gate_sum(here, from_local, 0u));
        }
        products[to_local * CHUNK + from_local] = select(0.0, product, from_local < to_local);
    }
    workgroupBarrier();
}

// What stands on the right of the equations: β times values, then β times keys decayed from the
// start of the chunk.
fn right_side(here: Place, local: u32, column: u32) -> vec4<f32> {
    if (local >= here.chunk.count) {
        return vec4(0.0);
    }
    let index = here.chunk.begin + local;
    if (column < VALUE_VECS) {
        return beta_tile[local] * value_vector(here.batch, here.head, index, column);
    }
    let vector = column - VALUE_VECS;
    let k = key_features(key_start(here.batch, here.head, index), vector);
    return beta_tile[local] * decay_from_start(here, 0.0, local, vector) * k;
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
    let here = place(index);
    if (thread < CHUNK) {
        var beta = 0.0;
        if (thread < here.chunk.count) {
            beta = token_value(here.head, here.batch, here.chunk.begin + thread);
        }
        beta_tile[thread] = beta;
    }
    multiply_keys(thread, here);

    let entry = entry_start(here);
    for (var column = thread; column < VALUE_VECS + FEATURE_VECS; column += THREADS) {
        var solved: array<vec4<f32>, CHUNK>;
        for (var local = 0u; local < CHUNK; local++) {
            var x = right_side(here, local, column);
            // rounds: CHUNK
            for (var earlier = 0u; earlier < local; earlier++) {
                x -= products[local * CHUNK + earlier] * solved[earlier];
            }
            solved[local] = x;
            if (column < VALUE_VECS) {
                state[entry + CORRECTED_AT + local * VALUE_VECS + column] = x;
            } else {
                state[entry + CORRECTOR_AT + local * FEATURE_VECS + column - VALUE_VECS] = x;
            }
        }
    }
    for (var i = thread; i < CHUNK * FEATURE_VECS; i += THREADS) {
        let local = i / FEATURE_VECS;
        var k = vec4(0.0);
        if (local < here.chunk.count) {
            let start = key_start(here.batch, here.head, here.chunk.begin + local);
            k = decay_to_end(here, 0.0, local, i % FEATURE_VECS) * key_features(start, i % FEATURE_VECS);
        }
        state[entry + DECAYED_AT + i] = k;
    }
}
