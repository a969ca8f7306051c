// linear.state_scan: from what each chunk adds to the state before each chunk, in place. An
// invocation takes one vector of one key head's state after another, as many as the workgroups leave
// it, and walks the chunks of the segment; AHEAD of them are loaded at a time while there are as many,
// since each step waits for the one before it and memory need not. Behind the segment's last entry lies
// the state that the next segment begins with.
// Expects: scan.wgsl.

const AHEAD: u32 = 8u;
const STATE_VECS: u32 = 4u * FEATURE_VECS * VALUE_VECS;

// The vector that an invocation is at.
struct Owned {
    batch: u32,
    head: u32,
    row: u32,
    column: u32,
    first_entry: u32, // of its key head in the segment
}

// Where the vector lies in the entry of a slot.
fn vector_at(here: Owned, slot: u32) -> u32 {
    return (here.first_entry + slot) * ENTRY_VECS + here.row * VALUE_VECS + here.column;
}

// Leaves the state before a chunk in its entry, and goes on to the state after it.
fn pass_chunk(current: ptr<function, vec4<f32>>, added: vec4<f32>, chunk: Chunk, slot: u32, here: Owned) {
    let callers = state_place(here.batch, here.head, chunk.document, here.row, here.column);
    if (chunk.is_first) {
        *current = initial_state(callers);
    }
    chunks[vector_at(here, slot)] = *current;
    if (chunk.count > 0u) {
        *current = chunk_decay(here.head, here.first_entry + slot, chunk, here.row) * *current + added;
    }
    if (chunk.is_last) {
        final_state(callers, *current);
    }
}

fn scan(vector: u32, head_and_batch: u32) {
    let here = Owned(
        head_and_batch / params.heads,
        head_and_batch % params.heads,
        vector / VALUE_VECS,
        vector % VALUE_VECS,
        head_and_batch * params.slot_capacity,
    );
    let carry = vector_at(here, params.slot_capacity - 1u);

    var current = vec4(0.0);
    if (params.first_slot > 0u) {
        current = chunks[carry];
    }
    var slot = 0u;
    for (; slot + AHEAD <= params.segment_slots; slot += AHEAD) {
        var added: array<vec4<f32>, AHEAD>;
        for (var i = 0u; i < AHEAD; i++) {
            added[i] = chunks[vector_at(here, slot + i)];
        }
        for (var i = 0u; i < AHEAD; i++) {
            pass_chunk(&current, added[i], find_chunk(params.first_slot + slot + i), slot + i, here);
        }
    }
    for (; slot < params.segment_slots; slot++) {
        let chunk = find_chunk(params.first_slot + slot);
        var added = vec4(0.0);
        // Nobody sees what comes after the last chunk of a document, unless it is carried out.
        if (!chunk.is_last || params.carries_out != 0u) {
            added = chunks[vector_at(here, slot)];
        }
        pass_chunk(&current, added, chunk, slot, here);
    }
    if (is_continued()) {
        chunks[carry] = current;
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let first = workgroup_number(group, groups);
    if (first >= params.workgroups) {
        return;
    }
    let count = params.heads * params.batch * STATE_VECS;
    for (var index = first * THREADS + thread; index < count; index += params.workgroups * THREADS) {
        scan(index % STATE_VECS, index / STATE_VECS);
    }
}
