// Which keys the mask leaves a block of queries: each term's range over all rows of the block,
// merged to disjoint ascending ranges. What of them is visited, keys_*.wgsl say.
// Expects: THREADS, TERMS, OWNERS; every thread of the workgroup calls `plan_walk`, or the three
// functions it is made of.

struct Walk {
    // [start, end) of the merged ranges
    ranges: array<vec2<i32>, TERMS>,
    count: u32,
    // [start, end) that a term keeps for every row of the block without a test
    full: array<vec2<i32>, TERMS>,
    // Of a list: where its first entry lies in the metadata.
    list_at: u32,
}

// One of the ranges that are visited: positions [start, end), number `index` of the walk; `proven`
// where every pair of it counts, whatever the mask's own ranges say.
struct Range {
    index: u32,
    start: i32,
    end: i32,
    proven: bool,
}

// Of each owner's rows and each term: [start, end) that some row keeps, and that every row keeps.
var<workgroup> term_start: array<atomic<i32>, OWNERS * TERMS>;
var<workgroup> term_end: array<atomic<i32>, OWNERS * TERMS>;
var<workgroup> full_start: array<atomic<i32>, OWNERS * TERMS>;
var<workgroup> full_end: array<atomic<i32>, OWNERS * TERMS>;
var<workgroup> shared_walk: Walk;

// For a thread with one row.
fn plan_walk(thread: u32, row: ptr<function, Row>) -> Walk {
    open_walk(thread);
    widen_walk(row, 0u);
    return close_walk(thread);
}

fn open_walk(thread: u32) {
    let key_len = i32(params.key_len);
    for (var at = thread; at < OWNERS * TERMS; at += THREADS) {
        atomicStore(&term_start[at], key_len);
        atomicStore(&term_end[at], 0);
        atomicStore(&full_start[at], 0);
        atomicStore(&full_end[at], key_len);
    }
    workgroupBarrier();
}

// Between opening and closing: makes room for what a row of `owner` keeps.
fn widen_walk(row: ptr<function, Row>, owner: u32) {
    for (var term = 0u; term < TERMS; term++) {
        if ((*row).exists) {
            let at = owner * TERMS + term;
            let start = (*row).start[term];
            let end = (*row).end[term];
            if (start < end) {
                atomicMin(&term_start[at], start);
                atomicMax(&term_end[at], end);
            }
            atomicMax(&full_start[at], start);
            atomicMin(&full_end[at], end);
        }
    }
}

fn close_walk(thread: u32) -> Walk {
    workgroupBarrier();
    if (thread == 0u) {
        merge_ranges();
    }
    return workgroupUniformLoad(&shared_walk);
}

// [start, end) that some row of the workgroup keeps of a term.
fn some_of_term(term: u32) -> vec2<i32> {
    var range = vec2(i32(params.key_len), 0);
    for (var at = term; at < OWNERS * TERMS; at += TERMS) {
        range = vec2(min(range.x, atomicLoad(&term_start[at])), max(range.y, atomicLoad(&term_end[at])));
    }
    return range;
}

// [start, end) that every row of the workgroup keeps of a term.
fn full_of_term(term: u32) -> vec2<i32> {
    var range = vec2(0, i32(params.key_len));
    for (var at = term; at < OWNERS * TERMS; at += TERMS) {
        range = vec2(max(range.x, atomicLoad(&full_start[at])), min(range.y, atomicLoad(&full_end[at])));
    }
    return range;
}

// Whether a term's ranges tell all pairs that it keeps.
fn is_ranges(term: u32) -> bool {
    return (params.term_words[term] & (ROLES | TREE | DENSE)) == 0u;
}

// Takes the ranges in order of their starts and joins those that touch.
fn merge_ranges() {
    var taken: array<bool, TERMS>;
    var walk: Walk;
    for (var n = 0u; n < TERMS; n++) {
        var next = TERMS;
        var start = i32(params.key_len);
        for (var term = 0u; term < TERMS; term++) {
            let candidate = some_of_term(term).x;
            if (!taken[term] && candidate < start) {
                next = term;
                start = candidate;
            }
        }
        if (next < TERMS) {
            taken[next] = true;
            let end = some_of_term(next).y;
            if (walk.count > 0u && start <= walk.ranges[walk.count - 1u].y) {
                walk.ranges[walk.count - 1u].y = max(walk.ranges[walk.count - 1u].y, end);
            } else {
                walk.ranges[walk.count] = vec2(start, end);
                walk.count += 1u;
            }
        }
    }
    for (var term = 0u; term < TERMS; term++) {
        if (is_ranges(term)) {
            walk.full[term] = full_of_term(term);
        }
    }
    shared_walk = walk;
}

// After closing: what of the walk the rows of one owner keep; in `ranges` those of each term, not
// merged.
fn own_walk(walk: ptr<function, Walk>, owner: u32) -> Walk {
    var own = *walk;
    for (var term = 0u; term < TERMS; term++) {
        let at = owner * TERMS + term;
        if (is_ranges(term)) {
            own.full[term] = vec2(atomicLoad(&full_start[at]), atomicLoad(&full_end[at]));
        }
        own.ranges[term] = vec2(atomicLoad(&term_start[at]), atomicLoad(&term_end[at]));
    }
    return own;
}

// Whether every row of the block keeps all keys [start, end).
fn keeps_all(walk: ptr<function, Walk>, start: i32, end: i32) -> bool {
    var full = false;
    for (var term = 0u; term < TERMS; term++) {
        let range = (*walk).full[term];
        full = full || (range.x <= start && end <= range.y);
    }
    return full;
}

// Whether a range of the walk has a key of [start, end).
fn overlaps(walk: ptr<function, Walk>, start: i32, end: i32) -> bool {
    var some = false;
    for (var term = 0u; term < TERMS; term++) {
        let range = (*walk).ranges[term];
        some = some || (range.x < end && start < range.y);
    }
    return some;
}

// The first range from number `index` on that holds keys; behind the last, one that holds none.
fn next_range(walk: ptr<function, Walk>, index: u32) -> Range {
    // rounds: WALK
    for (var at = index; at < (*walk).count; at++) {
        let range = range_at(walk, at);
        if (range.start < range.end) {
            return range;
        }
    }
    return Range((*walk).count, 0, 0, false);
}

// The position of the tile after the one at `first`, 0 when that is the last; `after` is the range
// behind its own.
fn following_tile(range: Range, after: Range, first: i32) -> u32 {
    let next = first + i32(BLOCK_K);
    return u32(select(after.start, next, next < range.end));
}
