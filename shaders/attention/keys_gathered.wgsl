// The keys axis, gathered: the walk has one range, over the keys of all entries of the list side by
// side, so that a tile is complete however few keys an entry has. A position counts keys of the
// list; rows of keys and values are gathered. Twin of keys_dense.wgsl, where the functions are
// explained.

// Where the list lies in the metadata, and its number of positions.
var<private> gathered: vec2<u32>;

fn open_keys(walk: ptr<function, Walk>, here: Place, first_query: u32) {
    let row = list_row(here, first_query);
    let some = (*walk).count > 0u;
    let positions = select(0u, row.y << params.list_shift, some);
    gathered = vec2(row.x, positions);
    (*walk).list_at = row.x;
    (*walk).ranges[0] = vec2(0, i32(positions));
    (*walk).count = select(0u, 1u, positions > 0u);
    if (PARTS) {
        (*walk).ranges[0] = vec2<i32>(min(vec2(params.part_first, params.part_end), vec2(positions)));
    }
}

const ENTRIES: bool = false;

fn entry_at(walk: ptr<function, Walk>, index: u32) -> u32 {
    return 0u;
}

fn range_of(walk: ptr<function, Walk>, index: u32, entry: u32) -> Range {
    return range_at(walk, index);
}

fn range_at(walk: ptr<function, Walk>, index: u32) -> Range {
    return Range(index, select(0, (*walk).ranges[0].x, PARTS), (*walk).ranges[0].y, false);
}

// Where entries ascend, so do the keys of a tile.
fn is_full(walk: ptr<function, Walk>, range: Range, first: i32) -> bool {
    let last = first + i32(BLOCK_K) - 1;
    if (params.list_trust < LIST_CHECKED || last >= range.end) {
        return false;
    }
    if (keeps_all(walk, i32(key_at(u32(first))), i32(key_at(u32(last))) + 1)) {
        return true;
    }
    var proven = params.list_trust == LIST_PROVEN;
    let final_entry = (*walk).list_at + (u32(last) >> params.list_shift);
    // rounds: BLOCK_K
    for (var at = (*walk).list_at + (u32(first) >> params.list_shift); proven && at <= final_entry; at++) {
        proven = metadata[at] >= LIST_FULL;
    }
    return proven;
}

// Nobody knows which keys lie between the first and the last.
fn touches(walk: ptr<function, Walk>, first: i32) -> bool {
    return true;
}

// key_len beyond the list's end.
fn key_at(position: u32) -> u32 {
    if (position >= gathered.y) {
        return params.key_len;
    }
    let within = position & ((1u << params.list_shift) - 1u);
    return list_key(metadata[gathered.x + (position >> params.list_shift)]) + within;
}
