// linear.chunk_state: what each chunk by itself adds to the state, Σ decay · k vᵀ. One workgroup
// computes 64 features by 4·SLICE_VECS columns for one chunk of one key head: a product whose long
// side is the chunk, STEP tokens at a time. A thread owns two vectors of features and OUT_VECS
// vectors of columns.
// Barriers: two for each STEP tokens.

const THREADS_X: u32 = 16u;
const THREADS_Y: u32 = 8u;
const THREADS: u32 = THREADS_X * THREADS_Y;
const BLOCK_VECS: u32 = 2u * THREADS_Y;
const BLOCKS: u32 = (FEATURE_VECS + BLOCK_VECS - 1u) / BLOCK_VECS;
const OUT_VECS: u32 = SLICE_VECS / THREADS_X;
const STEP: u32 = 16u;

const_assert SLICE_VECS % THREADS_X == 0u;
const_assert CHUNK % STEP == 0u;

var<workgroup> key_tile: array<vec4<f32>, STEP * BLOCK_VECS>;
var<workgroup> value_tile: array<vec4<f32>, STEP * SLICE_VECS>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_number(group, groups);
    if (index >= params.workgroups) {
        return;
    }
    let slice = index % params.slices;
    let block = (index / params.slices) % BLOCKS;
    let here = place(index / params.slices / BLOCKS);
    let slope = slope_of(here.head);
    let thread_x = thread % THREADS_X;
    let thread_y = thread / THREADS_X;

    // [8, OUT_VECS]: features of vector thread_y, then of vector thread_y + THREADS_Y
    var acc: array<vec4<f32>, 8u * OUT_VECS>;
    // rounds: CHUNK / STEP
    for (var first = 0u; first < here.chunk.count; first += STEP) {
        workgroupBarrier();
        for (var i = thread; i < STEP * BLOCK_VECS; i += THREADS) {
            let local = first + i / BLOCK_VECS;
            let vector = block * BLOCK_VECS + i % BLOCK_VECS;
            let start = key_start(here.batch, here.head, token_at(here.chunk, local));
            let features = decay_to_end(here, slope, min(local, CHUNK - 1u), vector) * key_features(start, vector);
            key_tile[i] = select(vec4(0.0), features, local < here.chunk.count && vector < FEATURE_VECS);
        }
        for (var i = thread; i < STEP * SLICE_VECS; i += THREADS) {
            let local = first + i / SLICE_VECS;
            let vector = slice * SLICE_VECS + i % SLICE_VECS;
            let x = value_vector(here.batch, here.head, token_at(here.chunk, local), vector);
            value_tile[i] = select(vec4(0.0), x, local < here.chunk.count);
        }
        workgroupBarrier();
        for (var i = 0u; i < STEP; i++) {
            let near = key_tile[i * BLOCK_VECS + thread_y];
            let far = key_tile[i * BLOCK_VECS + THREADS_Y + thread_y];
            for (var vector = 0u; vector < OUT_VECS; vector++) {
                let v = value_tile[i * SLICE_VECS + vector * THREADS_X + thread_x];
                acc[vector] += near.x * v;
                acc[OUT_VECS + vector] += near.y * v;
                acc[2u * OUT_VECS + vector] += near.z * v;
                acc[3u * OUT_VECS + vector] += near.w * v;
                acc[4u * OUT_VECS + vector] += far.x * v;
                acc[5u * OUT_VECS + vector] += far.y * v;
                acc[6u * OUT_VECS + vector] += far.z * v;
                acc[7u * OUT_VECS + vector] += far.w * v;
            }
        }
    }
    let entry = entry_start(here);
    for (var i = 0u; i < 8u; i++) {
        let feature_vec = block * BLOCK_VECS + (i / 4u) * THREADS_Y + thread_y;
        for (var vector = 0u; vector < OUT_VECS; vector++) {
            let column = slice * SLICE_VECS + vector * THREADS_X + thread_x;
            if (feature_vec < FEATURE_VECS && column < VALUE_VECS) {
                state[entry + (4u * feature_vec + i % 4u) * VALUE_VECS + column] = acc[i * OUT_VECS + vector];
            }
        }
    }
}
