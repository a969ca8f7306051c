// Tensors of any dims, strides and offsets: by the element.

alias Word = u32;

// Four elements of a part from `element` on, of which the first `count` exist; 0 for the others.
fn load_part(element: u32, count: u32) -> vec4<f32> {
    var x = vec4(0.0);
    for (var i = 0u; i < min(count, 4u); i++) {
        x[i] = unpack1(parts[(element + i) / PER_WORD], element + i);
    }
    return x;
}
