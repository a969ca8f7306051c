// The caller's state by the element, for any value dimension and strides.

alias StateWord = f32;

// Four elements from `element` on, of which the first `count` exist; 0 for the others.
fn load_state(element: u32, count: u32) -> vec4<f32> {
    var x = vec4(0.0);
    for (var i = 0u; i < min(count, 4u); i++) {
        x[i] = state[element + i];
    }
    return x;
}

fn store_state(element: u32, count: u32, x: vec4<f32>) {
    for (var i = 0u; i < min(count, 4u); i++) {
        state[element + i] = x[i];
    }
}
