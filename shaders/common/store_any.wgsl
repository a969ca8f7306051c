// An output of any dims, strides and offset, in f32; 16-bit tensors go through a workspace and
// common/narrow.wgsl, which owns whole words.

alias OutWord = f32;

// Four elements from `element` on, of which the first `count` exist.
fn store_out(element: u32, count: u32, x: vec4<f32>) {
    for (var i = 0u; i < min(count, 4u); i++) {
        out[element + i] = x[i];
    }
}

// The same of what lies there.
fn load_out(element: u32, count: u32) -> vec4<f32> {
    var x = vec4(0.0);
    for (var i = 0u; i < min(count, 4u); i++) {
        x[i] = out[element + i];
    }
    return x;
}
