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

fn range_at(walk: ptr<function, Walk>, range: u32) -> vec2<i32> {
    let start = i32(list_key(metadata[(*walk).list_at + range]));
    let left = (*walk).ranges[0];
    return vec2(max(start, left.x), min(start + (1 << params.list_shift), left.y));
}

// The start of the first range from `range` on that holds keys.
fn tile_from(walk: ptr<function, Walk>, range: u32) -> u32 {
    for (var next = range; next < (*walk).count; next++) {
        let bounds = range_at(walk, next);
        if (bounds.x < bounds.y) {
            return u32(bounds.x);
        }
    }
    return 0u;
}

fn first_tile(walk: ptr<function, Walk>) -> u32 {
    return tile_from(walk, 0u);
}

fn following_tile(walk: ptr<function, Walk>, range: u32, first: i32, end: i32) -> u32 {
    let next = first + i32(BLOCK_K);
    if (next < end) {
        return u32(next);
    }
    return tile_from(walk, range + 1u);
}

fn is_full(walk: ptr<function, Walk>, range: u32, first: i32, end: i32) -> bool {
    let next = first + i32(BLOCK_K);
    let proven = params.list_trust == LIST_PROVEN && metadata[(*walk).list_at + range] >= LIST_FULL;
    return next <= end && (proven || keeps_all(walk, first, next));
}

fn key_at(position: u32) -> u32 {
    return position;
}
