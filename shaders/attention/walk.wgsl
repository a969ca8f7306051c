// Which keys the mask leaves a block of queries: each term's range over all rows of the block,
// merged to disjoint ascending ranges. What of them is visited, keys_*.wgsl say.
// Expects: THREADS, TERMS; every thread of the workgroup calls `plan_walk`, or the three
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

var<workgroup> term_start: array<atomic<i32>, TERMS>;
var<workgroup> term_end: array<atomic<i32>, TERMS>;
var<workgroup> full_start: array<atomic<i32>, TERMS>;
var<workgroup> full_end: array<atomic<i32>, TERMS>;
var<workgroup> shared_walk: Walk;

// For a thread with one row.
fn plan_walk(thread: u32, row: ptr<function, Row>) -> Walk {
    open_walk(thread);
    widen_walk(row);
    return close_walk(thread);
}

fn open_walk(thread: u32) {
    let key_len = i32(params.key_len);
    for (var term = thread; term < TERMS; term += THREADS) {
        atomicStore(&term_start[term], key_len);
        atomicStore(&term_end[term], 0);
        atomicStore(&full_start[term], 0);
        atomicStore(&full_end[term], key_len);
    }
    workgroupBarrier();
}

// Between opening and closing: makes room for what a row keeps.
fn widen_walk(row: ptr<function, Row>) {
    for (var term = 0u; term < TERMS; term++) {
        if ((*row).exists) {
            let start = (*row).start[term];
            let end = (*row).end[term];
            if (start < end) {
                atomicMin(&term_start[term], start);
                atomicMax(&term_end[term], end);
            }
            atomicMax(&full_start[term], start);
            atomicMin(&full_end[term], end);
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

// Takes the ranges in order of their starts and joins those that touch.
fn merge_ranges() {
    var taken: array<bool, TERMS>;
    var walk: Walk;
    for (var n = 0u; n < TERMS; n++) {
        var next = TERMS;
        var start = i32(params.key_len);
        for (var term = 0u; term < TERMS; term++) {
            let candidate = atomicLoad(&term_start[term]);
            if (!taken[term] && candidate < start) {
                next = term;
                start = candidate;
            }
        }
        if (next < TERMS) {
            taken[next] = true;
            let end = atomicLoad(&term_end[next]);
            if (walk.count > 0u && start <= walk.ranges[walk.count - 1u].y) {
                walk.ranges[walk.count - 1u].y = max(walk.ranges[walk.count - 1u].y, end);
            } else {
                walk.ranges[walk.count] = vec2(start, end);
                walk.count += 1u;
            }
        }
    }
    for (var term = 0u; term < TERMS; term++) {
        if ((params.term_words[term] & (ROLES | TREE | DENSE)) == 0u) {
            walk.full[term] = vec2(atomicLoad(&full_start[term]), atomicLoad(&full_end[term]));
        }
    }
    shared_walk = walk;
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
