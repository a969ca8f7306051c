// linear.state_scan: from what each chunk adds to the state before each chunk, in place. An
// invocation owns one vector of one key head's state and walks the chunks of the segment; AHEAD of
// them are loaded at a time, since each step waits for the one before it and memory need not.
// Behind the segment's last entry lies the state that the next segment begins with.
// Expects: scan.wgsl.

const AHEAD: u32 = 8u;

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
    let batch = head_and_batch / params.heads;
    let head = head_and_batch % params.heads;
    let row = vector / VALUE_VECS;
    let column = vector % VALUE_VECS;
    let first_entry = head_and_batch * params.slot_capacity;
    let carry = (first_entry + params.slot_capacity - 1u) * ENTRY_VECS + vector;

    var current = vec4(0.0);
    if (params.first_slot > 0u) {
        current = chunks[carry];
    }
    for (var base = 0u; base < params.segment_slots; base += AHEAD) {
        var added: array<vec4<f32>, AHEAD>;
        for (var i = 0u; i < AHEAD; i++) {
            let slot = min(base + i, params.segment_slots - 1u);
            added[i] = chunks[(first_entry + slot) * ENTRY_VECS + vector];
        }
        for (var i = 0u; i < AHEAD; i++) {
            let slot = base + i;
            if (slot < params.segment_slots) {
                let chunk = find_chunk(params.first_slot + slot);
                let entry = first_entry + slot;
                if (chunk.is_first) {
                    current = initial_state(state_place(batch, head, chunk.document, row, column));
                }
                chunks[entry * ENTRY_VECS + vector] = current;
                if (chunk.count > 0u) {
                    current = chunk_decay(head, entry, chunk, row) * current + added[i];
                }
                if (chunk.is_last) {
                    final_state(state_place(batch, head, chunk.document, row, column), current);
                }
            }
        }
    }
    chunks[carry] = current;
}
