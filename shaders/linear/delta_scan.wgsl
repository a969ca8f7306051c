// linear.delta_scan: carries the state through the chunks under a delta rule. Unlike a decay, a
// correction mixes the rows of the state, so a chunk waits for the one before it; columns are
// independent. One workgroup owns 4·SLICE_VECS columns of one key head's state, in workgroup memory:
// for each chunk it notes the state before, corrects the values, U = U' − W S, and takes them in,
// S ← decay · S + Kᵀ U.
// Barriers: three for each chunk.
// Expects: scan.wgsl.

// state [4·FEATURE_VECS, SLICE_VECS]
var<workgroup> state_tile: array<vec4<f32>, 4u * FEATURE_VECS * SLICE_VECS>;
// corrected values [CHUNK, SLICE_VECS]
var<workgroup> corrected: array<vec4<f32>, CHUNK * SLICE_VECS>;

struct Place {
    batch: u32,
    head: u32,
    slice: u32,
}

// A vector of the state: its row, and its column among all.
fn row_and_column(here: Place, i: u32) -> vec2<u32> {
    return vec2(i / SLICE_VECS, here.slice * SLICE_VECS + i % SLICE_VECS);
}

fn correct(thread: u32, start: u32, here: Place) {
    for (var i = thread; i < CHUNK * SLICE_VECS; i += THREADS) {
        let local = i / SLICE_VECS;
        let column = here.slice * SLICE_VECS + i % SLICE_VECS;
        var u = vec4(0.0);
        if (column < VALUE_VECS) {
            u = chunks[start + CORRECTED_AT + local * VALUE_VECS + column];
            for (var vector = 0u; vector < FEATURE_VECS; vector++) {
                let w = chunks[start + CORRECTOR_AT + local * FEATURE_VECS + vector];
                let at = 4u * vector * SLICE_VECS + i % SLICE_VECS;
                u -= w.x * state_tile[at];
                u -= w.y * state_tile[at + SLICE_VECS];
                u -= w.z * state_tile[at + 2u * SLICE_VECS];
                u -= w.w * state_tile[at + 3u * SLICE_VECS];
            }
            chunks[start + CORRECTED_AT + local * VALUE_VECS + column] = u;
        }
        corrected[i] = u;
    }
}

fn take_in(thread: u32, start: u32, here: Place, entry: u32, chunk: Chunk) {
    for (var i = thread; i < FEATURE_VECS * SLICE_VECS; i += THREADS) {
        let vector = i / SLICE_VECS;
        let at = 4u * vector * SLICE_VECS + i % SLICE_VECS;
        var rows: array<vec4<f32>, 4>;
        for (var e = 0u; e < 4u; e++) {
            rows[e] = chunk_decay(here.head, entry, chunk, 4u * vector + e) * state_tile[at + e * SLICE_VECS];
        }
        // rounds: CHUNK
        for (var local = 0u; local < chunk.count; local++) {
            let k = chunks[start + DECAYED_AT + local * FEATURE_VECS + vector];
            let u = corrected[local * SLICE_VECS + i % SLICE_VECS];
            rows[0] += k.x * u;
            rows[1] += k.y * u;
            rows[2] += k.z * u;
            rows[3] += k.w * u;
        }
        for (var e = 0u; e < 4u; e++) {
            state_tile[at + e * SLICE_VECS] = rows[e];
        }
    }
}

fn walk(thread: u32, here: Place) {
    let first_entry = (here.batch * params.heads + here.head) * params.slot_capacity;
    let carry = (first_entry + params.slot_capacity - 1u) * ENTRY_VECS;
    for (var i = thread; i < 4u * FEATURE_VECS * SLICE_VECS; i += THREADS) {
        let at = row_and_column(here, i);
        var x = vec4(0.0);
        if (params.first_slot > 0u && at.y < VALUE_VECS) {
            x = chunks[carry + at.x * VALUE_VECS + at.y];
        }
        state_tile[i] = x;
    }
    // rounds: WALK
    for (var slot = 0u; slot < params.segment_slots; slot++) {
        let chunk = find_chunk(params.first_slot + slot);
        let start = (first_entry + slot) * ENTRY_VECS;
        workgroupBarrier();
        for (var i = thread; i < 4u * FEATURE_VECS * SLICE_VECS; i += THREADS) {
            let at = row_and_column(here, i);
            if (chunk.is_first) {
                state_tile[i] = initial_state(state_place(here.batch, here.head, chunk.document, at.x, at.y));
            }
            if (at.y < VALUE_VECS) {
                chunks[start + at.x * VALUE_VECS + at.y] = state_tile[i];
            }
        }
        workgroupBarrier();
        correct(thread, start, here);
        workgroupBarrier();
        take_in(thread, start, here, first_entry + slot, chunk);
        if (chunk.is_last) {
            workgroupBarrier();
            for (var i = thread; i < 4u * FEATURE_VECS * SLICE_VECS; i += THREADS) {
                let at = row_and_column(here, i);
                final_state(state_place(here.batch, here.head, chunk.document, at.x, at.y), state_tile[i]);
            }
        }
    }
    if (!is_continued()) {
        return;
    }
    workgroupBarrier();
    for (var i = thread; i < 4u * FEATURE_VECS * SLICE_VECS; i += THREADS) {
        let at = row_and_column(here, i);
        if (at.y < VALUE_VECS) {
            chunks[carry + at.x * VALUE_VECS + at.y] = state_tile[i];
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
        let head_and_batch = index / params.slices;
        walk(thread, Place(
            head_and_batch / params.heads,
            head_and_batch % params.heads,
            index % params.slices,
        ));
    }
}
