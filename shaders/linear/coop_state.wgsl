// linear.coop_state: what each chunk by itself adds to the state, Σ decay · k vᵀ, on matrix units.
// One workgroup walks one chunk of one key head and keeps SLICE_VECS of the sum's columns in its
// matrices; they are written once, in f32.
// Barriers: two of the workgroup for each block of BLOCK tokens.

// Nothing comes back out of matrices here, and no queries go in.
const WIDE_ROOMS: u32 = 1u;
const QUERY_VECS: u32 = 2u;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let index = workgroup_number(group, groups);
    if (index >= params.workgroups) {
        return;
    }
    let here = place(index / params.slices);
    if (here.chunk.count == 0u) {
        return;
    }
    let thread = 32u * subgroup + subgroup_lane;
    let lane = lane_of(index % params.slices, subgroup, subgroup_lane);
    let slope = slope_in_block(here.head);
    let zero = zero_matrix(lane);

    // state [FEATURE_TILES * 16, 16] of this subgroup
    var state_strip: State;
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        state_strip[f] = zero;
    }
    var next: Next;
    fetch(&next, thread, lane, here, 0u);
    for (var first = 0u; first < here.chunk.count; first += BLOCK) {
        let block = block_at(here, first);
        workgroupBarrier();
        put(&next, thread, first);
        workgroupBarrier();
        var values = values_of(&next, lane);
        fetch(&next, thread, lane, here, first + BLOCK);
        var left = left_at_end(slope, lane, block);
        take_in(&state_strip, &values, &left, zero, lane);
    }
    let entry = entry_start(here);
    // unroll
    for (var f = 0u; f < FEATURE_TILES; f++) {
        coopStoreT(state_strip[f], &state[entry + 16u * f * VALUE_VECS + lane.column], VALUE_VECS);
    }
}
