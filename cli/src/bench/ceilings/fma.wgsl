// bench.fma: f32 multiply-adds in registers, eight independent vectors of four to an invocation,
// FMAS_PER_ROUND of them a round. What this reaches is the arithmetic ceiling without matrix units.

// A factor and a summand that the compiler does not know; then sums that nobody reads.
@group(0) @binding(0) var<storage, read> numbers: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> sums: array<vec4<f32>>;

const_assert FMAS_PER_ROUND == 8u * 4u * 4u;

fn four(start: vec4<f32>, factor: vec4<f32>, summand: vec4<f32>) -> vec4<f32> {
    var x = fma(start, factor, summand);
    x = fma(x, factor, summand);
    x = fma(x, factor, summand);
    return fma(x, factor, summand);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(global_invocation_id) invocation: vec3<u32>) {
    let factor = numbers[0];
    let summand = numbers[1];
    let start = vec4<f32>(f32(invocation.x));
    var a = start;
    var b = start + 1.0;
    var c = start + 2.0;
    var d = start + 3.0;
    var e = start + 4.0;
    var f = start + 5.0;
    var g = start + 6.0;
    var h = start + 7.0;
    for (var round = 0u; round < ROUNDS; round++) {
        a = four(a, factor, summand);
        b = four(b, factor, summand);
        c = four(c, factor, summand);
        d = four(d, factor, summand);
        e = four(e, factor, summand);
        f = four(f, factor, summand);
        g = four(g, factor, summand);
        h = four(h, factor, summand);
    }
    sums[invocation.x] = ((a + b) + (c + d)) + ((e + f) + (g + h));
}
