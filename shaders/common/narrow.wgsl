// common.narrow: rounds a contiguous f32 tensor to a strided 16-bit one whose rows may start in
// the middle of a word. One invocation owns one word of the output's binding, finds which elements
// of the tensor lie in its halves, and keeps a half that belongs to nobody.

struct Params {
    // the output's axes, longest stride first
    sizes: vec4<u32>,
    strides: vec4<u32>,
    source: vec4<u32>,
    offset: u32,
    end: u32,
    workgroups: u32,
    padding: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> wide: array<f32>;
@group(0) @binding(2) var<storage, read_write> narrow: array<u32>;

// The bits of the element at `position` of the output, or those it has where no element lies.
fn half_at(position: u32, current: u32) -> u32 {
    if (position < params.offset || position >= params.end) {
        return current;
    }
    var rest = position - params.offset;
    var source = 0u;
    for (var axis = 0u; axis < 4u; axis++) {
        if (params.sizes[axis] > 1u) {
            let index = rest / params.strides[axis];
            if (index >= params.sizes[axis]) {
                return current;
            }
            rest -= index * params.strides[axis];
            source += index * params.source[axis];
        }
    }
    if (rest != 0u) {
        return current;
    }
    return pack2(vec2(wide[source], 0.0)) & 0xffffu;
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let word = workgroup_number(group, groups) * THREADS + thread;
    if (word < (params.end + 1u) / 2u) {
        let current = narrow[word];
        let low = half_at(2u * word, current & 0xffffu);
        let high = half_at(2u * word + 1u, current >> 16u);
        narrow[word] = low | (high << 16u);
    }
}
