// The numbers of workgroups: a dispatch may be a part of a longer one, so that long work can be
// submitted in pieces, and then begins at a workgroup of its own.

@group(1) @binding(0) var<uniform> first_workgroup: u32;

// The number of a workgroup in the whole dispatch, which has rows where one dimension is too short.
fn workgroup_number(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return first_workgroup + group.x + group.y * groups.x;
}
