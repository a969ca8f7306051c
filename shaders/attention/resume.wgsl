// Walks in parts: where a driver limits the rounds of loops, several dispatches walk the keys of a row
// one after the other. Each leaves output and LSE as if no key came after, in f32, and the next goes
// on from there.
// Expects: const PARTS, load_out, params.resumes.

// Takes up a row's maximum, in units of log2, and gives its total in those of the maximum.
fn resume_row(row: ptr<function, Row>, here: Place, query_index: u32) -> f32 {
    if (!SOFTMAX || params.resumes == 0u || query_index >= params.query_len) {
        return 0.0;
    }
    let before = lse[params.lse.w + here.batch * params.lse.x + here.head * params.lse.y
        + query_index * params.lse.z];
    (*row).poisoned = !is_finite(before);
    if ((*row).poisoned || before <= EMPTY) {
        return 0.0;
    }
    (*row).maximum = before * LOG2_E;
    return 1.0;
}

// Four elements of the output so far; 0 outside of it.
fn resume_out(here: Place, query_index: u32, dim: u32) -> vec4<f32> {
    if (params.resumes == 0u || query_index >= params.query_len) {
        return vec4(0.0);
    }
    let start = params.out.w + here.batch * params.out.x + here.head * params.out.y
        + query_index * params.out.z;
    return load_out(start + dim, remaining(params.value_dim, dim));
}
