// common.widen: a contiguous tensor of any dtype as f32. One invocation makes one element.

struct Params {
    count: u32,
    padding_0: u32,
    padding_1: u32,
    padding_2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> narrow: array<u32>;
@group(0) @binding(2) var<storage, read_write> wide: array<f32>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_number(group, groups) * THREADS + thread;
    if (index < params.count) {
        wide[index] = unpack1(narrow[index / PER_WORD], index);
    }
}
