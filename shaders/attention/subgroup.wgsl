// attention.subgroup: LANES neighbouring lanes of a subgroup own a row of scores together and join
// its maximum and total by shuffles. Threads are numbered by subgroup, whatever its size is, so
// that neighbours are neighbours: the plan makes LANES divide the smallest subgroup there may be.

fn row_max(x: f32) -> f32 {
    var largest = x;
    for (var distance = 1u; distance < LANES; distance *= 2u) {
        largest = max(largest, subgroupShuffleXor(largest, distance));
    }
    return largest;
}

fn row_sum(x: f32) -> f32 {
    var total = x;
    for (var distance = 1u; distance < LANES; distance *= 2u) {
        total += subgroupShuffleXor(total, distance);
    }
    return total;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let index = group.x + group.y * groups.x;
    if (index < params.workgroups) {
        attend(index, subgroup * size + lane);
    }
}
