// scatter.scatter: copies rows into a cache, each batch entry from a position of its own on. One
// invocation moves one word of a row, whatever its elements are: rows are whole words.

// Twin of `ScatterParams` in src/params.rs.
struct Params {
    // strides of batch, head and row, then the offset, in words
    rows: vec4<u32>,
    cache: vec4<u32>,
    batch: u32,
    heads: u32,
    len: u32,
    words: u32,
    capacity: u32,
    circular: u32,
    batch_base: u32,
    padding: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> rows: array<u32>;
// [batch] first positions
@group(0) @binding(2) var<storage, read> starts: array<u32>;
@group(0) @binding(3) var<storage, read_write> cache: array<u32>;

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_number(group, groups) * THREADS + thread;
    let word = index % params.words;
    let row = index / params.words % params.len;
    let head_and_batch = index / params.words / params.len;
    let head = head_and_batch % params.heads;
    let batch = head_and_batch / params.heads;
    if (batch >= params.batch) {
        return;
    }
    // Clamped, so that no sum overflows; what leads outside of the cache is dropped.
    var position = min(starts[params.batch_base + batch], params.capacity) + row;
    if (params.circular != 0u) {
        position %= params.capacity;
    }
    if (position < params.capacity) {
        let source = params.rows.w + batch * params.rows.x + head * params.rows.y + row * params.rows.z;
        let target_row = params.cache.w + batch * params.cache.x + head * params.cache.y + position * params.cache.z;
        cache[target_row + word] = rows[source + word];
    }
}
