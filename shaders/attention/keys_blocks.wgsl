// The keys axis, blocks: a range of the walk is an entry of the list, one or several tiles long. A
// position of the walk is a key. Twin of keys_dense.wgsl, where the functions are explained.

// Entries are cut to the keys between the first and the last that the mask leaves.
fn open_keys(walk: ptr<function, Walk>, here: Place, first_query: u32) {
    let last = max((*walk).count, 1u) - 1u;
    (*walk).ranges[0].y = (*walk).ranges[last].y;
    let row = list_row(here, first_query);
    (*walk).list_at = row.x;
    (*walk).count = row.y;
    if (PARTS) {
        let first = min(params.part_first >> params.list_shift, row.y);
        (*walk).list_at += first;
        (*walk).count = min(params.part_end >> params.list_shift, row.y) - first;
    }
}

const ENTRIES: bool = true;

fn entry_at(walk: ptr<function, Walk>, index: u32) -> u32 {
    return metadata[min((*walk).list_at + index, params.list_entries_at + params.list_len - 1u)];
}

// Ascending entries that the mask leaves nothing of are the first and the last ones.
fn range_of(walk: ptr<function, Walk>, index: u32, entry: u32) -> Range {
    let start = i32(list_key(entry));
    let left = (*walk).ranges[0];
    let end = select(0, min(start + (1 << params.list_shift), left.y), index < (*walk).count);
    return Range(index, max(start, left.x), end, params.list_trust == LIST_PROVEN && entry >= LIST_FULL);
}

fn range_at(walk: ptr<function, Walk>, index: u32) -> Range {
    return range_of(walk, index, entry_at(walk, index));
}

fn is_full(walk: ptr<function, Walk>, range: Range, first: i32) -> bool {
    let next = first + i32(BLOCK_K);
    // Without tests of pairs the mask's own ranges say the same, and the question is asked every tile.
    return next <= range.end && ((PAIR_TESTS && range.proven) || keeps_all(walk, first, next));
}

fn touches(walk: ptr<function, Walk>, first: i32) -> bool {
    return overlaps(walk, first, first + i32(BLOCK_K));
}

fn key_at(position: u32) -> u32 {
    return position;
}
