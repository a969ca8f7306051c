// How scores become weights, for the kernels that walk tiles.
// Expects: key_at of the keys axis.

// Modifies and masks four neighbouring scores of a row, those of the positions from `first` on, in
// units of log2: MASKED where the pair does not count.
fn judge_four(row: ptr<function, Row>, here: Place, given: vec4<f32>, first: i32, end: i32, full: bool) -> vec4<f32> {
    var scores = given;
    for (var i = 0u; i < 4u; i++) {
        let position = first + i32(i);
        let key_index = i32(key_at(u32(position)));
        if (full || (position < end && keeps(row, here, key_index))) {
            if (MODIFIED) {
                let score = modify(row, here, u32(key_index), scores[i]);
                scores[i] = select(score * LOG2_E, MASKED, score == MASKED);
            } else if (!MATRICES) {
                // Plans keep scores that low away from matrix units, where this costs 3 %.
                scores[i] = at_least(scores[i], LEAST_SCORE);
            }
        } else {
            scores[i] = MASKED;
        }
    }
    return scores;
}

// The weights of four scores, in units of log2 as the maximum of their row is.
fn weights_of(scores: vec4<f32>, maximum: f32) -> vec4<f32> {
    if (SOFTMAX) {
        return exp2(scores - maximum);
    }
    // exp2(-x) stays finite, and the sigmoid of -100 is nothing beside any other weight.
    return 1.0 / (1.0 + exp2(min(-(scores + params.sigmoid_bias), vec4(100.0))));
}
