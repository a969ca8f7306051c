// A 16-bit output whose dims, strides and offset are multiples of eight, for the matrix kernels: a
// store is 16 bytes, and two neighbouring lanes fill a sector of 32. Twin of store_vec4.wgsl.

alias OutWord = vec4<u32>;

fn store_eight(element: u32, count: u32, left: vec4<f32>, right: vec4<f32>) {
    if (count != 0u) {
        out[element >> 3u] = vec4(pack4(left), pack4(right));
    }
}
