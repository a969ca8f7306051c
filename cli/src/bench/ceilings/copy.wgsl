// bench.copy: every invocation copies VECTORS vectors of 16 bytes, those of a workgroup side by side.
// What this reaches is the memory's ceiling; copies by the command encoder are slower on some GPUs.

@group(0) @binding(0) var<storage, read> source: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read_write> copied: array<vec4<u32>>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let first = workgroup.x * THREADS * VECTORS + thread;
    for (var n = 0u; n < VECTORS; n++) {
        copied[first + n * THREADS] = source[first + n * THREADS];
    }
}
