// linear.state_scan: from what each chunk adds to the state before each chunk, in place. An
// invocation takes one vector of one key head's state after another, as many as the workgroups leave
// it, and walks the chunks of the segment; AHEAD of them are loaded at a time while there are as many,
// since each step waits for the one before it and memory need not. Those loops are written out, or what
// they load would lie in memory. Behind the segment's last entry lies the state that the next segment
// begins with.
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

// What a chunk does to the vector.
struct Step {
    chunk: Chunk,
    added: vec4<f32>,
    left: f32, // of the state before it
}

fn step_of(here: Owned, slot: u32) -> Step {
    let chunk = find_chunk(params.first_slot + slot);
    // Nobody sees what comes after the last chunk of a document, unless it is carried out.
    var added = vec4(0.0);
    if (!chunk.is_last || params.carries_out != 0u) {
        added = chunks[vector_at(here, slot)];
    }
    return Step(chunk, added, chunk_decay(here.head, here.first_entry + slot, chunk, here.row));
}

// Leaves the state before a chunk in its entry, and goes on to the state after it.
fn take(current: ptr<function, vec4<f32>>, step: Step, slot: u32, here: Owned) {
    let callers = state_place(here.batch, here.head, step.chunk.document, here.row, here.column);
    if (step.chunk.is_first) {
        *current = initial_state(callers);
    }
    chunks[vector_at(here, slot)] = *current;
    if (step.chunk.count > 0u) {
        *current = step.left * *current + step.added;
    }
    if (step.chunk.is_last) {
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
    // rounds: WALK / AHEAD
    for (; slot + AHEAD <= params.segment_slots; slot += AHEAD) {
        var steps: array<Step, AHEAD>;
        // unroll
        for (var i = 0u; i < AHEAD; i++) {
            steps[i] = step_of(here, slot + i);
        }
        // unroll
        for (var i = 0u; i < AHEAD; i++) {
            take(&current, steps[i], slot + i, here);
        }
    }
    // rounds: WALK
    for (; slot < params.segment_slots; slot++) {
        take(&current, step_of(here, slot), slot, here);
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
    // rounds: VECTORS
    for (var index = first * THREADS + thread; index < count; index += params.workgroups * THREADS) {
        scan(index % STATE_VECS, index / STATE_VECS);
    }
}
