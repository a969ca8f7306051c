// Tensors whose dims, strides and offsets are multiples of four: a load is one vector.

alias Word = Packed4;
alias OutWord = Packed4;

// Four elements from `element` on, of which the first `count` exist (none or all four).
fn load_query(element: u32, count: u32) -> vec4<f32> {
    if (count == 0u) {
        return vec4(0.0);
    }
    return unpack4(query[element >> 2u]);
}

fn load_key(element: u32, count: u32) -> vec4<f32> {
    if (count == 0u) {
        return vec4(0.0);
    }
    return unpack4(key[element >> 2u]);
}

fn load_value(element: u32, count: u32) -> vec4<f32> {
    if (count == 0u) {
        return vec4(0.0);
    }
    return unpack4(value[element >> 2u]);
}

fn store_out(element: u32, count: u32, x: vec4<f32>) {
    if (count != 0u) {
        out[element >> 2u] = pack4(x);
    }
}
