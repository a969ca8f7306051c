// attention.subgroup: LANES neighbouring lanes of a subgroup own a row of scores together and join
// its maximum and total by shuffles. Threads are numbered by subgroup, whatever its size is, so
// that neighbours are neighbours: the plan makes LANES divide the smallest subgroup there may be.

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_size) size: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let index = workgroup_number(group, groups);
    if (index < params.workgroups) {
        attend(index, subgroup * size + lane);
    }
}
