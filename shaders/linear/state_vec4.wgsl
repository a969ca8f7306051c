// The caller's state by whole vectors: its value dimension and strides are multiples of four.

alias StateWord = vec4<f32>;

// Four elements from `element` on, of which the first `count` exist (none or all four).
fn load_state(element: u32, count: u32) -> vec4<f32> {
    if (count == 0u) {
        return vec4(0.0);
    }
    return state[element >> 2u];
}

fn store_state(element: u32, count: u32, x: vec4<f32>) {
    if (count != 0u) {
        state[element >> 2u] = x;
    }
}
