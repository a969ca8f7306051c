// Tensors whose dims, strides and offsets are multiples of four: a load is one vector.

alias Word = Packed4;

// Four elements of a part from `element` on.
fn load_part(element: u32, count: u32) -> vec4<f32> {
    return unpack4(parts[element >> 2u]);
}
