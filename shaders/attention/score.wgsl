// The score modifiers: softcap, then ALiBi, the bias per key and the bias per pair; and sinks.

const EMPTY_BITS: u32 = 0xf0c9f2cau; // of −5e29

// The bits of one element of the bias, widened to those of an f32.
fn bias_bits(element: u32) -> u32 {
    if (params.bias_dtype == 1u) {
        return bias[element];
    }
    let word = bias[element / 2u];
    let half = select(word & 0xffffu, word >> 16u, (element & 1u) == 1u);
    if (params.bias_dtype == 3u) {
        return half << 16u;
    }
    if ((half & 0x7fffu) == 0x7c00u) {
        return ((half & 0x8000u) << 16u) | 0x7f800000u;
    }
    return bitcast<u32>(unpack2x16float(half).x);
}

// Whether the bits of a bias say −∞: infinity itself, or any number that means it, as the least finite
// one, which exporters write for it.
fn is_empty(bits: u32) -> bool {
    return bits >= EMPTY_BITS && bits <= 0xff800000u;
}

// The logit that joins the sum of a row's weights without a value; MASKED for none.
fn sink_of(here: Place) -> f32 {
    if (params.sinks_at == ABSENT) {
        return MASKED;
    }
    let sink = side[params.sinks_at + params.head_base + here.head];
    return select(sink, MASKED, is_empty(bitcast<u32>(sink)));
}

// The score of a kept pair: `least` at least, unless it is not finite.
fn at_least(score: f32, least: f32) -> f32 {
    return select(score, least, score < least && is_finite(score));
}

// cap · tanh(score / cap), with an error relative to the result, as that of a plain score is. By
// exponentials tanh(x) = 1 − 2/(e^2x + 1) takes over the relative error of e^2x, times
// (1 − tanh²)/(2·tanh): 0.62 at x = 0.625 and less beyond it, but 1/(2x) towards 0. So below 0.625
// stands a polynomial in x², fitted to tanh(x)/x with a relative error of at most 1.8e-8, a third of
// half an ulp. WGSL's own tanh may err by 1e-5 and overflows on some drivers beyond 88.
fn cap_score(score: f32, cap: f32) -> f32 {
    // From 10 on, tanh is 1 to the last bit.
    let x = min(abs(score / cap), 16.0);
    let square = x * x;
    var series = fma(square, -0.00610495, 0.02100364);
    series = fma(square, series, -0.0538525);
    series = fma(square, series, 0.13332782);
    series = fma(square, series, -0.33333329);
    let near = fma(score * square, series, score);
    let far = cap * (1.0 - 2.0 / (exp2(2.0 * LOG2_E * x) + 1.0));
    let capped = select(near, select(far, -far, score < 0.0), x > 0.625);
    // A score that is not finite must stay so.
    return select(score, capped, is_finite(score));
}

// A modified score, given scale · q·k; MASKED where the bias says −∞, and otherwise LEAST_LOGIT at least.
fn modify(row: ptr<function, Row>, here: Place, key_index: u32, scaled: f32) -> f32 {
    var score = scaled;
    if (params.softcap > 0.0) {
        score = cap_score(score, params.softcap);
    }
    let head = params.head_base + here.head;
    let batch = params.batch_base + here.batch;
    if (params.alibi_slopes_at != ABSENT) {
        let distance = abs((*row).position - i32(key_index));
        score -= side[params.alibi_slopes_at + head] * f32(distance);
    }
    if (params.key_bias_at != ABSENT) {
        let line = params.key_bias_at + batch * params.key_bias_batch + head * params.key_bias_head;
        let bits = bitcast<u32>(side[line + key_index]);
        if (is_empty(bits)) {
            return MASKED;
        }
        score += bitcast<f32>(bits);
    }
    if (params.bias_dtype != 0u) {
        let line = params.bias.w + here.batch * params.bias.x + here.head * params.bias.y
            + u32((*row).query) * params.bias.z;
        let bits = bias_bits(line + key_index);
        if (is_empty(bits)) {
            return MASKED;
        }
        score += bitcast<f32>(bits);
    }
    return at_least(score, LEAST_LOGIT);
}
