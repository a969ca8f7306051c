// The keys axis, dense: a block of queries visits all that the mask leaves. A position of the walk
// is a key.

// A part walks what lies in its range.
fn open_keys(walk: ptr<function, Walk>, here: Place, first_query: u32) {
    if (PARTS) {
        for (var term = 0u; term < TERMS; term++) {
            let range = (*walk).ranges[term];
            (*walk).ranges[term] = clamp(range, vec2(i32(params.part_first)), vec2(i32(params.part_end)));
        }
    }
}

// Whether ranges are the entries of a list: many, short, and each behind a load. Where they are,
// `entry_at` loads one, whatever its number, and `range_of` makes a range of it, an empty one behind
// the last.
const ENTRIES: bool = false;

fn entry_at(walk: ptr<function, Walk>, index: u32) -> u32 {
    return 0u;
}

fn range_of(walk: ptr<function, Walk>, index: u32, entry: u32) -> Range {
    return range_at(walk, index);
}

// A range of the walk, by its number.
fn range_at(walk: ptr<function, Walk>, index: u32) -> Range {
    let bounds = (*walk).ranges[index];
    return Range(index, bounds.x, bounds.y, false);
}

// Whether every row that the walk is for keeps every key of the tile at `first`, which begins in the
// range.
fn is_full(walk: ptr<function, Walk>, range: Range, first: i32) -> bool {
    // Where no part ends, what every row keeps ends no earlier than the tile.
    let inside = first + select(0, i32(BLOCK_K) - 1, PARTS) < range.end;
    return inside && keeps_all(walk, first, first + i32(BLOCK_K));
}

// Whether a row that the walk is for may keep a key of the tile at `first`.
fn touches(walk: ptr<function, Walk>, first: i32) -> bool {
    return overlaps(walk, first, first + i32(BLOCK_K));
}

// The key at a position.
fn key_at(position: u32) -> u32 {
    return position;
}
