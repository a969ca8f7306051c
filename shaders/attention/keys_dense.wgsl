// The keys axis, dense: a block of queries visits all that the mask leaves. A position of the walk
// is a key.

fn open_keys(walk: ptr<function, Walk>, here: Place, first_query: u32) {}

// [start, end) of the positions of one range of the walk.
fn range_at(walk: ptr<function, Walk>, range: u32) -> vec2<i32> {
    return (*walk).ranges[range];
}

// The position of the first tile; anything when there is none.
fn first_tile(walk: ptr<function, Walk>) -> u32 {
    return u32((*walk).ranges[0].x);
}

// The position of the tile after the one at `first` in a range up to `end`; anything when that is
// the last one.
fn following_tile(walk: ptr<function, Walk>, range: u32, first: i32, end: i32) -> u32 {
    let next = first + i32(BLOCK_K);
    if (next < end || range + 1u == (*walk).count) {
        return u32(next);
    }
    return u32((*walk).ranges[range + 1u].x);
}

// Whether every row of the block keeps every key of the tile at `first` in a range up to `end`.
fn is_full(walk: ptr<function, Walk>, range: u32, first: i32, end: i32) -> bool {
    return keeps_all(walk, first, first + i32(BLOCK_K));
}

// The key at a position.
fn key_at(position: u32) -> u32 {
    return position;
}
