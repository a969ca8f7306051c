// linear.state_scan: from what each chunk adds to the state before each chunk, in place. An
// invocation owns one vector of one key head's state and walks the chunks of the segment; AHEAD of
// them are loaded at a time while there are as many, since each step waits for the one before it and
// memory need not. Behind the segment's last entry lies the state that the next segment begins with.
// Expects: scan.wgsl.

const AHEAD: u32 = 8u;

struct Owned {
    batch: u32,
    head: u32,
    row: u32,
    column: u32,
    vector: u32, // row and column in an entry
}

// Leaves the state before a chunk in its entry, and goes on to the state after it.
fn pass_chunk(current: ptr<function, vec4<f32>>, added: vec4<f32>, slot: u32, entry: u32, here: Owned) {
    let chunk = find_chunk(params.first_slot + slot);
    if (chunk.is_first) {
        *current = initial_state(state_place(here.batch, here.head, chunk.document, here.row, here.column));
    }
    chunks[entry * ENTRY_VECS + here.vector] = *current;
    if (chunk.count > 0u) {
        *current = chunk_decay(here.head, entry, chunk, here.row) * *current + added;
    }
    if (chunk.is_last) {
        final_state(state_place(here.batch, here.head, chunk.document, here.row, here.column), *current);
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_number(group, groups) * THREADS + thread;
    let vector = index % (4u * FEATURE_VECS * VALUE_VECS);
    let head_and_batch = index / (4u * FEATURE_VECS * VALUE_VECS);
    if (head_and_batch >= params.heads * params.batch) {
        return;
    }
    let here = Owned(
        head_and_batch / params.heads,
        head_and_batch % params.heads,
        vector / VALUE_VECS,
        vector % VALUE_VECS,
        vector,
    );
    let first_entry = head_and_batch * params.slot_capacity;
    let carry = (first_entry + params.slot_capacity - 1u) * ENTRY_VECS + vector;

    var current = vec4(0.0);
    if (params.first_slot > 0u) {
        current = chunks[carry];
    }
    var slot = 0u;
    for (; slot + AHEAD <= params.segment_slots; slot += AHEAD) {
        var added: array<vec4<f32>, AHEAD>;
        for (var i = 0u; i < AHEAD; i++) {
            added[i] = chunks[(first_entry + slot + i) * ENTRY_VECS + vector];
        }
        for (var i = 0u; i < AHEAD; i++) {
            pass_chunk(&current, added[i], slot + i, first_entry + slot + i, here);
        }
    }
    for (; slot < params.segment_slots; slot++) {
        let entry = first_entry + slot;
        pass_chunk(&current, chunks[entry * ENTRY_VECS + vector], slot, entry, here);
    }
    if (is_continued()) {
        chunks[carry] = current;
    }
}
