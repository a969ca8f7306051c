// The mask: for one query, each AND-term keeps one range of keys, and up to three tests of single
// pairs. Twin of src/mask/rows.rs. What comes from data is clamped, so that no array of the
// caller's can lead outside of a tensor.

const TOP_LEFT: u32 = 1u; // causal with offset 0
const DOCUMENTS: u32 = 2u;
const LENGTHS: u32 = 4u;
const ROLES: u32 = 8u;
const TREE: u32 = 16u;
const DENSE: u32 = 32u;

const OFFSET_TOP_LEFT: u32 = 0u;
const OFFSET_BOTTOM_RIGHT: u32 = 1u;
const OFFSET_LENGTHS: u32 = 2u; // bottom right of the batch entry's key length
const OFFSET_PER_BATCH: u32 = 3u;
const OFFSET_LIMIT: i32 = 536870912;

// One query: what it may see, and the state of its weights.
struct Row {
    query: i32,
    exists: bool,
    // i' as an index of keys, for ALiBi.
    position: i32,
    start: array<i32, TERMS>,
    end: array<i32, TERMS>,
    tree_base: array<i32, TERMS>,
    maximum: f32,
    total: f32,
    poisoned: bool,
}

// Where a query stands: keys [start, end) are its sequence, `top_left` its own index among them
// with offset 0.
struct Stand {
    start: i32,
    end: i32,
    top_left: i32,
    offset: i32,
}

fn key_length(batch: u32) -> i32 {
    return clamp(i32(metadata[params.key_lengths_at + params.batch_base + batch]), 0, i32(params.key_len));
}

fn per_batch_offset(batch: u32) -> i32 {
    let offset = bitcast<i32>(metadata[params.query_offset_at + params.batch_base + batch]);
    return clamp(offset, -OFFSET_LIMIT, OFFSET_LIMIT);
}

fn sequence_stand(batch: u32, query: i32) -> Stand {
    var offset = params.offset;
    if (params.offset_kind == OFFSET_LENGTHS) {
        offset = key_length(batch) - i32(params.query_len);
    } else if (params.offset_kind == OFFSET_PER_BATCH) {
        offset = per_batch_offset(batch);
    }
    return Stand(0, i32(params.key_len), query, offset);
}

// The document is the last one that starts at or before the query; its keys end before they start for
// a query outside of all documents.
fn document_stand(batch: u32, query: i32) -> Stand {
    var low = 0u;
    var high = params.documents;
    // rounds: 32u
    while (high - low > 1u) {
        let middle = (low + high) / 2u;
        if (i32(metadata[params.query_starts_at + middle]) <= query) {
            low = middle;
        } else {
            high = middle;
        }
    }
    let query_start = i32(metadata[params.query_starts_at + low]);
    let query_end = i32(metadata[params.query_starts_at + low + 1u]);
    let start = clamp(i32(metadata[params.key_starts_at + low]), 0, i32(params.key_len));
    let end = clamp(i32(metadata[params.key_starts_at + low + 1u]), start, i32(params.key_len));
    if (query < query_start || query >= query_end) {
        return Stand(0, -1, query, 0);
    }
    var offset = 0;
    if (params.offset_kind == OFFSET_PER_BATCH) {
        offset = per_batch_offset(batch);
    } else if (params.offset_kind != OFFSET_TOP_LEFT) {
        offset = (end - start) - (query_end - query_start);
    }
    return Stand(start, end, start + query - query_start, offset);
}

fn start_row(batch: u32, query: u32) -> Row {
    var row: Row;
    row.query = i32(query);
    row.exists = query < params.query_len;
    row.maximum = MASKED;
    let whole = sequence_stand(batch, row.query);
    var document = whole;
    if (params.documents > 0u && row.exists) {
        document = document_stand(batch, row.query);
    }
    row.position = whole.top_left + whole.offset;
    if (params.document_positions != 0u && document.end >= document.start) {
        row.position = document.top_left + document.offset;
    }
    for (var term = 0u; term < TERMS; term++) {
        let words = params.term_words[term];
        var stand = whole;
        if ((words & DOCUMENTS) != 0u) {
            stand = document;
        }
        let position = stand.top_left + stand.offset;
        let start = max(stand.start, position - params.term_left[term]);
        var end = min(stand.end, position + params.term_right[term] + 1);
        end = min(end, stand.start + params.term_limit[term]);
        if ((words & TOP_LEFT) != 0u) {
            end = min(end, stand.top_left + 1);
        }
        if ((words & LENGTHS) != 0u) {
            end = min(end, stand.start + key_length(batch));
        }
        if ((words & TREE) != 0u) {
            end = min(end, stand.start + stand.offset + 64);
        }
        let some = row.exists && term < params.terms && start < end;
        row.start[term] = select(0, start, some);
        row.end[term] = select(0, end, some);
        row.tree_base[term] = stand.start + stand.offset;
    }
    return row;
}

// Whether the tests of single pairs of one term let the pair pass.
fn passes(row: ptr<function, Row>, here: Place, term: u32, key_index: i32) -> bool {
    let words = params.term_words[term];
    let query = u32((*row).query);
    if ((words & ROLES) != 0u) {
        let query_role = metadata[params.query_roles_at + query] & 7u;
        let key_role = metadata[params.key_roles_at + u32(key_index)] & 7u;
        if (((metadata[params.role_table_at + query_role] >> key_role) & 1u) == 0u) {
            return false;
        }
    }
    let node = key_index - (*row).tree_base[term];
    if ((words & TREE) != 0u && node >= 0) {
        // The range ends 64 nodes on.
        let bits = metadata[params.tree_bits_at + 2u * query + (u32(node) >> 5u)];
        if (((bits >> (u32(node) & 31u)) & 1u) == 0u) {
            return false;
        }
    }
    if ((words & DENSE) != 0u) {
        let line = params.dense_mask_at
            + (params.batch_base + here.batch) * params.dense_mask_batch
            + (params.head_base + here.head) * params.dense_mask_head
            + query * params.dense_mask_row;
        let bits = metadata[line + (u32(key_index) >> 5u)];
        if (((bits >> (u32(key_index) & 31u)) & 1u) == 0u) {
            return false;
        }
    }
    return true;
}

// Whether some term keeps the pair.
fn keeps(row: ptr<function, Row>, here: Place, key_index: i32) -> bool {
    for (var term = 0u; term < TERMS; term++) {
        if (key_index >= (*row).start[term] && key_index < (*row).end[term]) {
            if (!PAIR_TESTS || passes(row, here, term, key_index)) {
                return true;
            }
        }
    }
    return false;
}
