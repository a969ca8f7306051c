// Where the outputs of the portable tile loop come from, in parts, and where they go.
// Expects: the sizes, `Outputs` and `row_factor` of forward.wgsl, resume.wgsl.

fn resume_outputs(acc: ptr<function, Outputs>, thread_x: u32, thread_y: u32, here: Place, first_query: u32) {
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        // unroll
        for (var vector = 0u; vector < OUT_VECS; vector++) {
            (*acc)[r * OUT_VECS + vector] =
                resume_out(here, first_query + r * THREADS_Y + thread_y, 4u * (vector * THREADS_X + thread_x));
        }
    }
}

fn store_outputs(acc: ptr<function, Outputs>, thread_x: u32, thread_y: u32, here: Place, first_query: u32) {
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        let local_row = r * THREADS_Y + thread_y;
        let query_index = first_query + local_row;
        if (query_index < params.query_len) {
            let start = params.out.w + here.batch * params.out.x + here.head * params.out.y
                + query_index * params.out.z;
            // unroll
            for (var vector = 0u; vector < OUT_VECS; vector++) {
                let dim = 4u * (vector * THREADS_X + thread_x);
                store_out(start + dim, remaining(params.value_dim, dim), (*acc)[r * OUT_VECS + vector] * row_factor[local_row]);
            }
        }
    }
}
