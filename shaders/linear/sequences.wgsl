// Documents, and the chunks of tokens that each is cut into.
// Expects: params.wgsl, `metadata: array<u32>`, const CHUNK.

// Where a document starts. The first starts at 0 and the last ends at the length, whatever the
// array holds.
fn document_start(document: u32) -> u32 {
    if (document == 0u) {
        return 0u;
    }
    if (document >= params.documents) {
        return params.len;
    }
    return min(metadata[params.starts_at + document], params.len);
}

// The decay of a head: its slope, 0 without slopes.
fn slope_of(head: u32) -> f32 {
    if (params.slopes_at == ABSENT) {
        return 0.0;
    }
    return bitcast<f32>(metadata[params.slopes_at + params.head_base + head]);
}

struct Chunk {
    document: u32,
    begin: u32,
    count: u32, // tokens, perhaps none
    is_first: bool, // of its document
    is_last: bool,
}

// The first slot of a document. Each has one slot more than it fills whole chunks of the sequence,
// so that slots follow from the starts alone.
fn first_slot_of(document: u32) -> u32 {
    return document_start(document) / CHUNK + document;
}

fn find_chunk(slot: u32) -> Chunk {
    if (params.documents == 1u) {
        let begin = slot * CHUNK;
        let count = min(CHUNK, params.len - min(begin, params.len));
        return Chunk(0u, begin, count, slot == 0u, slot + 1u == params.slots);
    }
    var low = 0u;
    var high = params.documents - 1u;
    // rounds: 32u
    while (low < high) {
        let middle = (low + high + 1u) / 2u;
        if (first_slot_of(middle) <= slot) {
            low = middle;
        } else {
            high = middle - 1u;
        }
    }
    let base = first_slot_of(low);
    let begin = document_start(low) + (slot - min(base, slot)) * CHUNK;
    let end = document_start(low + 1u);
    let last = select(first_slot_of(low + 1u), params.slots, low + 1u == params.documents);
    return Chunk(low, begin, min(CHUNK, end - min(begin, end)), slot == base, slot + 1u == last);
}
