// What the two lanes that own a row do in the matrix kernel: scores to weights, and the end of a row.
// Expects: the sizes of coop.wgsl, coop_stage.wgsl, judge.wgsl, finish.wgsl, lanes.wgsl.

// Where a lane works in `scores` and `weights`.
struct Lane {
    first: u32, // row of its subgroup
    row: u32,
    half: u32,
}

// A tile of keys: its positions up to the end of its range, and whether every pair of it counts.
struct Tile {
    first: i32,
    end: i32,
    full: bool,
}

// A lane's part of a row of scores, then of weights.
alias Part = array<vec4<f32>, STEP_VECS>;

// Scales, modifies and masks a lane's part of its row, in units of log2: MASKED where the pair does
// not count.
fn judge(row: ptr<function, Row>, part: ptr<function, Part>, here: Place, lane: Lane, tile: Tile) {
    for (var n = 0u; n < STEP_VECS; n++) {
        let column = n / LANE_VECS * 16u + 4u * (n % LANE_VECS * LANES + lane.half);
        let scaled = abs(params.query_scale) * (*part)[n];
        let scores = judge_four(row, here, scaled, tile.first + i32(column), tile.end, MODIFIED && tile.full);
        let good = is_finite(scores.x) && is_finite(scores.y) && is_finite(scores.z) && is_finite(scores.w);
        (*row).poisoned = (*row).poisoned || !good;
        (*part)[n] = scores;
    }
}

// Turns a lane's part of a row of scores, times `scale`, into weights; the factor is what the row's
// output so far must be multiplied by.
fn weigh(row: ptr<function, Row>, part: ptr<function, Part>, scale: f32) -> f32 {
    var factor = 1.0;
    var shift = params.sigmoid_bias;
    if (SOFTMAX) {
        var largest = vec4(MASKED);
        // unroll
        for (var n = 0u; n < STEP_VECS; n++) {
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
    for (var n = 0u; n < STEP_VECS; n++) {
        var weights = fma((*part)[n], vec4(scale), vec4(shift));
        if (SOFTMAX) {
            weights = exp2(weights);
            total += weights;
        } else {
            weights = 1.0 / (1.0 + exp2(min(-weights, vec4(100.0))));
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
    for (var range = 0u; range < (*walk).count; range++) {
        let bounds = range_at(walk, range);
        for (var position = bounds.x; position < bounds.y; position++) {
            let key_index = i32(key_at(u32(position)));
            if (keeps(row, here, key_index)) {
                let numbers = unpack4(value[(start + u32(key_index) * params.value.z) >> 2u]);
                found = found | (bitcast<vec4<u32>>(numbers) & vec4(0x7f800000u)) == vec4(0x7f800000u);
            }
        }
    }
    return found;
}

// The factor of a row's output, after its LSE is written.
fn finish_part(row: ptr<function, Row>, here: Place, lane: Lane) -> f32 {
    let total = row_sum((*row).total);
    let poisoned = row_max(select(0.0, 1.0, (*row).poisoned)) > 0.0;
    let finish = finish_row(row, here, total, poisoned);
    if (params.has_lse != 0u && (*row).exists && lane.half == 0u) {
        let at = params.lse.w + here.batch * params.lse.x + here.head * params.lse.y + u32((*row).query) * params.lse.z;
        lse[at] = finish.lse;
    }
    return finish.factor;
}
