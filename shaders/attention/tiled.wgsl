// attention.tiled: runs on WebGPU's floor. One lane owns a row of scores, so that a row's maximum
// and total need no exchange.

fn row_max(x: f32) -> f32 {
    return x;
}

fn row_sum(x: f32) -> f32 {
    return x;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_number(group, groups);
    if (index < params.workgroups) {
        attend(index, thread);
    }
}
