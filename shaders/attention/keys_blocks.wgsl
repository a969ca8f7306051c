// The keys axis, blocks: a range of the walk is an entry of the list, one or several tiles long. A
// position of the walk is a key. Twin of keys_dense.wgsl, where the functions are explained.

// Entries are cut to the keys between the first and the last that the mask leaves.
fn open_keys(walk: ptr<function, Walk>, here: Place, first_query: u32) {
    let last = max((*walk).count, 1u) - 1u;
    (*walk).ranges[0].y = (*walk).ranges[last].y;
    let row = list_row(here, first_query);
    (*walk).list_at = row.x;
    (*walk).count = row.y;
}

fn range_at(walk: ptr<function, Walk>, index: u32) -> Range {
    let entry = metadata[(*walk).list_at + index];
    let start = i32(list_key(entry));
    let left = (*walk).ranges[0];
    let end = min(start + (1 << params.list_shift), left.y);
    return Range(index, max(start, left.x), end, params.list_trust == LIST_PROVEN && entry >= LIST_FULL);
}

fn is_full(walk: ptr<function, Walk>, range: Range, first: i32) -> bool {
    let next = first + i32(BLOCK_K);
    return next <= range.end && (range.proven || keeps_all(walk, first, next));
}

fn touches(walk: ptr<function, Walk>, first: i32) -> bool {
    return overlaps(walk, first, first + i32(BLOCK_K));
}

fn key_at(position: u32) -> u32 {
    return position;
}
