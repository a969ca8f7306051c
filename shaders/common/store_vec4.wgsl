// An output whose dims, strides and offset are multiples of four: a store is one vector.

alias OutWord = Packed4;

// Four elements from `element` on, of which the first `count` exist (none or all four).
fn store_out(element: u32, count: u32, x: vec4<f32>) {
    if (count != 0u) {
        out[element >> 2u] = pack4(x);
    }
}

// The same of what lies there.
fn load_out(element: u32, count: u32) -> vec4<f32> {
    if (count == 0u) {
        return vec4(0.0);
    }
    return unpack4(out[element >> 2u]);
}

// Eight of them.
fn store_eight(element: u32, count: u32, left: vec4<f32>, right: vec4<f32>) {
    store_out(element, count, left);
    store_out(element + 4u, max(count, 4u) - 4u, right);
}
