// An output whose dims, strides and offset are multiples of four: a store is one vector.

alias OutWord = Packed4;

fn store_out(element: u32, count: u32, x: vec4<f32>) {
    out[element >> 2u] = pack4(x);
}
