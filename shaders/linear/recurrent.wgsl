// linear.recurrent: token by token. One workgroup owns 4·SLICE_VECS columns of the state of one key
// head of one sequence, in registers, and answers all query heads that share it.
//  1. A thread holds one vector of columns of every ROW_GROUPS-th row; what is summed over rows (the
//     answers, and what the delta rules correct) goes through workgroup memory.
//  2. The state is read once and written once, in place; where a driver limits the rounds of loops, by
//     each of several dispatches (PARTS), which take the tokens of a segment.
// Barriers per token: two, three more for each query head, two more for the delta rules.

const ROW_GROUPS: u32 = THREADS / SLICE_VECS;
const ROWS: u32 = (4u * FEATURE_VECS + ROW_GROUPS - 1u) / ROW_GROUPS;
const ROW_VECS: u32 = (ROWS * ROW_GROUPS + 3u) / 4u;

const_assert THREADS % SLICE_VECS == 0u;

var<workgroup> key_tile: array<vec4<f32>, ROW_VECS>;
var<workgroup> query_tile: array<vec4<f32>, ROW_VECS>;
// What a token leaves of each row, where rows have gates of their own.
var<workgroup> decay_tile: array<vec4<f32>, select(1u, ROW_VECS, PER_KEY_DIM)>;
var<workgroup> partial: array<vec4<f32>, THREADS>;
var<workgroup> correction: array<vec4<f32>, SLICE_VECS>;

struct Place {
    batch: u32,
    document: u32,
    head: u32, // key head, in the piece
    slice: u32,
}

fn stage_token(thread: u32, here: Place, index: u32) {
    let start = key_start(here.batch, here.head, index);
    for (var vector = thread; vector < ROW_VECS; vector += THREADS) {
        key_tile[vector] = key_features(start, vector);
        if (PER_KEY_DIM) {
            decay_tile[vector] = gated_decays(here.batch, here.head, index, vector);
        }
    }
}

// The sum of a column's `partial` over all row groups.
fn total(column: u32) -> vec4<f32> {
    var sum = vec4(0.0);
    for (var i = 0u; i < ROW_GROUPS; i++) {
        sum += partial[i * SLICE_VECS + column];
    }
    return sum;
}

fn step_tokens(thread: u32, here: Place) {
    let column = thread % SLICE_VECS;
    let row_group = thread / SLICE_VECS;
    let vector = here.slice * SLICE_VECS + column;
    let columns = remaining(params.value_dim, 4u * vector);
    let sequence = here.batch * params.documents + here.document;
    let state_start = params.state.w + sequence * params.state.x + here.head * params.state.y + 4u * vector;

    let tokens = tokens_of(here.document);
    if (!tokens.exist) {
        return;
    }

    // state [ROWS, 4] of this thread
    var rows: array<vec4<f32>, ROWS>;
    for (var r = 0u; r < ROWS; r++) {
        let row = r * ROW_GROUPS + row_group;
        let exists = tokens.carries_in && row < params.features;
        rows[r] = load_state(state_start + row * params.state.z, select(0u, columns, exists));
    }
    let fixed_decay = decay_of(-slope_of(here.head));
    // rounds: WALK
    for (var index = tokens.start; index < tokens.end; index++) {
        workgroupBarrier();
        stage_token(thread, here, index);
        workgroupBarrier();
        var decay = fixed_decay;
        if (GATED && !PER_KEY_DIM) {
            decay = gated_decay(here.batch, here.head, index, 0u);
        }
        var sum = vec4(0.0);
        for (var r = 0u; r < ROWS; r++) {
            let row = r * ROW_GROUPS + row_group;
            if (PER_KEY_DIM) {
                decay = decay_tile[row / 4u][row % 4u];
            }
            rows[r] *= decay;
            if (DELTA) {
                sum += key_tile[row / 4u][row % 4u] * rows[r];
            }
        }
        var update = vec4(0.0);
        if (DELTA) {
            partial[thread] = sum;
            workgroupBarrier();
            if (row_group == 0u) {
                let beta = token_value(here.head, here.batch, index);
                correction[column] = beta * (value_vector(here.batch, here.head, index, vector) - total(column));
            }
            workgroupBarrier();
            update = correction[column];
        } else {
            update = value_vector(here.batch, here.head, index, vector);
        }
        for (var r = 0u; r < ROWS; r++) {
            let row = r * ROW_GROUPS + row_group;
            rows[r] += key_tile[row / 4u][row % 4u] * update;
        }
        // rounds: GROUP
        for (var member = 0u; member < params.group; member++) {
            let head = here.head * params.group + member;
            workgroupBarrier();
            let start = query_start(here.batch, head, index);
            for (var i = thread; i < ROW_VECS; i += THREADS) {
                query_tile[i] = query_features(start, i);
            }
            workgroupBarrier();
            var answer = vec4(0.0);
            for (var r = 0u; r < ROWS; r++) {
                let row = r * ROW_GROUPS + row_group;
                answer += query_tile[row / 4u][row % 4u] * rows[r];
            }
            partial[thread] = answer;
            workgroupBarrier();
            if (row_group == 0u) {
                var x = params.scale * total(column);
                if (NORMALIZE) {
                    x /= token_value(head, here.batch, index) + params.epsilon;
                }
                let at = params.out.w + here.batch * params.out.x + head * params.out.y + index * params.out.z;
                store_out(at + 4u * vector, columns, x);
            }
        }
    }
    if (tokens.carries_out) {
        for (var r = 0u; r < ROWS; r++) {
            let row = r * ROW_GROUPS + row_group;
            store_state(state_start + row * params.state.z, select(0u, columns, row < params.features), rows[r]);
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
        let head_and_sequence = index / params.slices;
        let sequence = head_and_sequence / params.heads;
        step_tokens(thread, Place(
            sequence / params.documents,
            sequence % params.documents,
            head_and_sequence % params.heads,
            index % params.slices,
        ));
    }
}
