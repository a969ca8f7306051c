// bench.matrix: products of 16 x 16 matrices in registers, f16 summed in f32, MATRICES independent
// sums to a subgroup. What this reaches is the ceiling of the matrix units.

@group(0) @binding(0) var<storage, read> factors: array<vec4<f16>>;
// [workgroups, THREADS / 32, 16, 16], of which nobody reads.
@group(0) @binding(1) var<storage, read_write> sums: array<vec4<f32>>;

const_assert MATRICES == 8u;

@compute @workgroup_size(32, THREADS / 32u)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_id) thread: vec3<u32>) {
    let place = 64u * (workgroup.x * (THREADS / 32u) + thread.y);
    let left = coopLoadT<coop_mat16x16<f16, A>>(&factors[0], 4u);
    let right = coopLoadT<coop_mat16x16<f16, B>>(&factors[64], 4u);
    // Sums that start alike would be one sum to the compiler.
    var a = coopLoadT<coop_mat16x16<f32, C>>(&sums[place], 4u);
    var b = coopMultiplyAdd(left, right, a);
    var c = coopMultiplyAdd(left, right, b);
    var d = coopMultiplyAdd(left, right, c);
    var e = coopMultiplyAdd(left, right, d);
    var f = coopMultiplyAdd(left, right, e);
    var g = coopMultiplyAdd(left, right, f);
    var h = coopMultiplyAdd(left, right, g);
    for (var round = 0u; round < ROUNDS; round++) {
        a = coopMultiplyAdd(left, right, a);
        b = coopMultiplyAdd(left, right, b);
        c = coopMultiplyAdd(left, right, c);
        d = coopMultiplyAdd(left, right, d);
        e = coopMultiplyAdd(left, right, e);
        f = coopMultiplyAdd(left, right, f);
        g = coopMultiplyAdd(left, right, g);
        h = coopMultiplyAdd(left, right, h);
    }
    coopStoreT(a + b + c + d + e + f + g + h, &sums[place], 4u);
}
