// The end of a row: what its output is multiplied by, and its LSE.

struct Finish {
    factor: f32,
    lse: f32,
}

// Given the row's maximum (in units of log2) and total. A sink joins here as one key more, that has
// no value. A row without keys has output 0 and LSE MASKED, or that of its sink.
fn finish_row(row: ptr<function, Row>, here: Place, all: f32, poisoned: bool) -> Finish {
    var factor = 1.0;
    var logarithm = MASKED;
    if (SOFTMAX) {
        var maximum = (*row).maximum;
        var total = all;
        var lowered = 1.0;
        let sink = LOG2_E * sink_of(here);
        if (sink > EMPTY) {
            maximum = max(maximum, sink);
            lowered = exp2((*row).maximum - maximum);
            total = total * lowered + exp2(sink - maximum);
        }
        factor = select(0.0, lowered / total, total > 0.0);
        // Rounding must not make a row with keys look like one without.
        let sum = max(LN_2 * maximum + log(max(total, 1e-38)), LEAST_LOGIT);
        logarithm = select(MASKED, sum, total > 0.0);
    }
    return Finish(
        select(factor, not_a_number(), poisoned),
        select(logarithm, not_a_number(), poisoned),
    );
}
