// What the two lanes that own a row do in the matrix kernel: scores to weights, and the end of a row.
// Expects: the sizes of coop.wgsl, coop_stage.wgsl, judge.wgsl, finish.wgsl, lanes.wgsl.

// Where a lane works in `scores` and `weights`.
struct Lane {
    index: u32, // in its subgroup
    room: u32, // of its subgroup
    start: u32, // of its own row
    part: u32, // which of the LANES that own the row
    turn: u32, // the vector it begins with
}

// Where a row of a band lies in its subgroup's room.
fn row_in(room: u32, row: u32) -> u32 {
    return room + row % 16u * SCORE_STRIDE + row / 16u * SCORE_VECS;
}

fn lane_of(subgroup: u32, subgroup_lane: u32) -> Lane {
    let row = subgroup_lane / LANES;
    let part = subgroup_lane % LANES;
    let room = subgroup / ABREAST * 16u * SCORE_STRIDE + subgroup % ABREAST * ROOM_VECS;
    // Eight lanes that load side by side meet in no bank: two to a row do not, and of eight rows the
    // last four begin one vector later.
    return Lane(subgroup_lane, room, row_in(room, row), part, select(part, subgroup_lane / 4u, LANES == 1u));
}

// The vector of a row of scores that is the n-th of a lane.
fn vector_of(lane: Lane, n: u32) -> u32 {
    return (n * LANES + lane.turn) % SCORE_VECS;
}

// A tile of keys: its positions up to the end of its range, and whether every pair of it counts.
struct Tile {
    first: i32,
    end: i32,
    full: bool,
}

// Sigmoid's weights are counted in units of 2^-SIGMOID_BITS: most are small, and numbers below 2^-14 lose
// bits in f16, which a weight of 1 does not exceed even so.
const SIGMOID_BITS: f32 = 15.0;
const SIGMOID_UNIT: f32 = 1.0 / 32768.0;

// A lane's part of a row of scores, then of weights.
alias Part = array<vec4<f32>, LANE_VECS>;

// Scales, modifies and masks a lane's part of its row, in units of log2: MASKED where the pair does
// not count.
fn judge(row: ptr<function, Row>, part: ptr<function, Part>, here: Place, lane: Lane, tile: Tile) {
    for (var n = 0u; n < LANE_VECS; n++) {
        let first = tile.first + i32(4u * vector_of(lane, n));
        let scores = judge_four(row, here, abs(params.query_scale) * (*part)[n], first, tile.end, tile.full);
        let good = is_finite(scores.x) && is_finite(scores.y) && is_finite(scores.z) && is_finite(scores.w);
        (*row).poisoned = (*row).poisoned || !good;
        (*part)[n] = scores;
    }
}

// Turns a lane's part of a row of scores, times `scale`, into weights; the factor is what the row's
// output so far must be multiplied by.
fn weigh(row: ptr<function, Row>, part: ptr<function, Part>, scale: f32) -> f32 {
    var factor = 1.0;
    var shift = params.sigmoid_bias + SIGMOID_BITS;
    if (SOFTMAX) {
        var largest = vec4(MASKED);
        // unroll
        for (var n = 0u; n < LANE_VECS; n++) {
            largest = max(largest, (*part)[n]);
        }
        let maximum = scale * row_max(max(max(largest.x, largest.y), max(largest.z, largest.w)));
        if (maximum > (*row).maximum + LAZY) {
            factor = exp2((*row).maximum - maximum);
            (*row).maximum = maximum;
        }
        // While a row has kept nothing, its masked scores are no maximum.
        shift = select(-(*row).maximum, 0.0, (*row).maximum <= EMPTY);
    }
    var total = vec4(0.0);
    // unroll
    for (var n = 0u; n < LANE_VECS; n++) {
        var weights = fma((*part)[n], vec4(scale), vec4(shift));
        if (SOFTMAX) {
            weights = exp2(weights);
            total += weights;
        } else {
            // One division for two weights; those below 2^-60 are nothing in f16.
            let inverse = SIGMOID_UNIT + exp2(min(-weights, vec4(60.0)));
            weights = inverse.yxwz * (1.0 / (inverse.xz * inverse.yw)).xxyy;
        }
        (*part)[n] = weights;
    }
    (*row).total = (*row).total * factor + (total.x + total.y + total.z + total.w);
    return factor;
}

// Whether a value that the row keeps is no finite number, for one vector of dimensions.
fn keeps_non_finite(row: ptr<function, Row>, here: Place, walk: ptr<function, Walk>, dim: u32) -> vec4<bool> {
    var found = vec4(false);
    let start = params.value.w + here.batch * params.value.x + here.value_head * params.value.y + dim;
    // rounds: WALK
    for (var range = 0u; range < (*walk).count; range++) {
        let bounds = range_at(walk, range);
        // rounds: WALK * BLOCK_K
        for (var position = bounds.start; position < bounds.end; position++) {
            let key_index = i32(key_at(u32(position)));
            if (keeps(row, here, key_index)) {
                let beyond = beyond_f16(unpack4(value_at(start + u32(key_index) * params.value.z)));
                // A bias of −∞ masks too.
                if (any(beyond) && (!MODIFIED || modify(row, here, u32(key_index), 0.0) != MASKED)) {
                    found = found | beyond;
                }
            }
        }
    }
    return found;
}

// Makes those outputs no numbers whose rows keep a value that is none: seldom, and so apart from what
// every workgroup does on its way out, where code costs time that is only stepped over.
fn spoil(acc: ptr<function, Outputs>, rows: ptr<function, array<Row, BANDS>>, here: Place, walk: ptr<function, Walk>, lane: Lane) {
    // unroll
    for (var band = 0u; band < BANDS; band++) {
        var row = (*rows)[band];
        // unroll
        for (var v = 0u; v < VALUE_TILES; v++) {
            // unroll
            for (var t = 0u; t < BAND_TILES; t++) {
                coopStoreT((*acc)[(band * BAND_TILES + t) * VALUE_TILES + v], &tiles.scores[lane.room + t * SCORE_VECS], SCORE_STRIDE);
            }
            subgroupBarrier();
            for (var vector = lane.part; vector < 4u; vector += LANES) {
                let dim = 16u * v + 4u * vector;
                if (row.exists && dim < params.value_dim) {
                    let spoilt = keeps_non_finite(&row, here, walk, dim);
                    tiles.scores[lane.start + vector] = select(tiles.scores[lane.start + vector], vec4(not_a_number()), spoilt);
                }
            }
            subgroupBarrier();
            // unroll
            for (var t = 0u; t < BAND_TILES; t++) {
                (*acc)[(band * BAND_TILES + t) * VALUE_TILES + v] = coopLoadT<coop_mat16x16<f32, C>>(
                    &tiles.scores[lane.room + t * SCORE_VECS], SCORE_STRIDE);
            }
            subgroupBarrier();
        }
    }
}

// The factor of a row's output, after its LSE is written.
fn finish_part(row: ptr<function, Row>, here: Place, lane: Lane) -> f32 {
    let total = row_sum((*row).total);
    let poisoned = row_max(select(0.0, 1.0, (*row).poisoned)) > 0.0;
    let finish = finish_row(row, here, total, poisoned);
    if (params.has_lse != 0u && (*row).exists && lane.part == 0u) {
        let at = params.lse.w + here.batch * params.lse.x + here.head * params.lse.y + u32((*row).query) * params.lse.z;
        lse[at] = finish.lse;
    }
    return finish.factor * select(SIGMOID_UNIT, 1.0, SOFTMAX);
}

// Rows of a band that a lane stores a half of: two lanes store a row, whoever owns it, and so fill
// whole sectors of memory.
const OUT_SHARES: u32 = 2u / LANES;

// Divides the outputs of a band's rows by their totals and stores them; `first` is the subgroup's
// first query.
fn store_band(
    acc: ptr<function, Outputs>,
    of_row: Row,
    band: u32,
    here: Place,
    lane: Lane,
    first: u32,
) {
    var row = of_row;
    let factor = finish_part(&row, here, lane);
    if (lane.part == 0u) {
        tiles.scores[lane.start].x = factor;
    }
    subgroupBarrier();
    let out_start = params.out.w + here.batch * params.out.x + here.head * params.out.y;
    var factors: array<f32, OUT_SHARES>;
    var starts: array<u32, OUT_SHARES>;
    // unroll
    for (var n = 0u; n < OUT_SHARES; n++) {
        let local = 16u * n + lane.index / 2u;
        let query = first + band * 32u / LANES + local;
        factors[n] = tiles.scores[row_in(lane.room, local)].x;
        starts[n] = select(ABSENT, out_start + query * params.out.z, query < params.query_len);
    }
    subgroupBarrier();
    // unroll
    for (var v = 0u; v < VALUE_TILES; v++) {
        // unroll
        for (var t = 0u; t < BAND_TILES; t++) {
            coopStoreT((*acc)[(band * BAND_TILES + t) * VALUE_TILES + v], &tiles.scores[lane.room + t * SCORE_VECS], SCORE_STRIDE);
        }
        subgroupBarrier();
        // unroll
        for (var n = 0u; n < OUT_SHARES; n++) {
            let at = row_in(lane.room, 16u * n + lane.index / 2u) + 2u * (lane.index % 2u);
            let dim = 16u * v + 8u * (lane.index % 2u);
            if (starts[n] != ABSENT) {
                store_eight(starts[n] + dim, remaining(params.value_dim, dim),
                    factors[n] * tiles.scores[at], factors[n] * tiles.scores[at + 1u]);
            }
        }
        subgroupBarrier();
    }
}
