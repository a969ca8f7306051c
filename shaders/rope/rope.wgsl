// rope.rope: turns pairs of a row's elements by angles whose cosines and sines come from tables.
// One invocation makes four neighbouring elements of one row. The other half of a pair may be
// anywhere in the row, so elements are loaded one by one.

// Twin of `RopeParams` in src/params.rs.
struct Params {
    // strides of batch, head and row, then the offset
    input: vec4<u32>,
    out: vec4<u32>,
    cos: vec4<u32>,
    sin: vec4<u32>,
    batch: u32,
    heads: u32,
    len: u32,
    dim: u32,
    rotary_dim: u32,
    interleaved: u32,
    table_rows: u32,
    table_dtype: u32,
    has_positions: u32,
    positions_batch: u32,
    batch_base: u32,
    padding: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<u32>;
@group(0) @binding(2) var<storage, read> cos_table: array<u32>;
@group(0) @binding(3) var<storage, read> sin_table: array<u32>;
// [batch | 1, len]
@group(0) @binding(4) var<storage, read> positions: array<u32>;
@group(0) @binding(5) var<storage, read_write> out: array<OutWord>;

const TABLE_F32: u32 = 0u;
const TABLE_BF16: u32 = 2u;

fn table_word(element: u32) -> u32 {
    return select(element / 2u, element, params.table_dtype == TABLE_F32);
}

// A number of a table, given the word it lies in.
fn table_number(word: u32, element: u32) -> f32 {
    if (params.table_dtype == TABLE_F32) {
        return bitcast<f32>(word);
    }
    let half = select(word & 0xffffu, word >> 16u, (element & 1u) == 1u);
    if (params.table_dtype == TABLE_BF16) {
        return bitcast<f32>(half << 16u);
    }
    return unpack2x16float(half).x;
}

fn load(element: u32) -> f32 {
    return unpack1(input[element / PER_WORD], element);
}

// Element `dim` of the rotated row that starts at `start`.
fn rotated(start: u32, batch: u32, table_row: u32, dim: u32) -> f32 {
    let own = load(start + dim);
    if (dim >= params.rotary_dim) {
        return own;
    }
    let half = params.rotary_dim / 2u;
    var pair = dim % half;
    var second = dim >= half;
    var other = select(dim + half, pair, second);
    if (params.interleaved != 0u) {
        pair = dim / 2u;
        second = (dim & 1u) == 1u;
        other = dim ^ 1u;
    }
    let cos_at = params.cos.w + batch * params.cos.x + table_row * params.cos.z + pair;
    let sin_at = params.sin.w + batch * params.sin.x + table_row * params.sin.z + pair;
    let c = table_number(cos_table[table_word(cos_at)], cos_at);
    let s = table_number(sin_table[table_word(sin_at)], sin_at);
    return own * c + load(start + other) * select(-s, s, second);
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_number(group, groups) * THREADS + thread;
    let vectors = (params.dim + 3u) / 4u;
    let row = index / vectors % params.len;
    let head_and_batch = index / vectors / params.len;
    let head = head_and_batch % params.heads;
    let batch = head_and_batch / params.heads;
    if (batch >= params.batch) {
        return;
    }
    var table_row = row;
    if (params.has_positions != 0u) {
        table_row = positions[(params.batch_base + batch) * params.positions_batch + row];
    }
    table_row = min(table_row, params.table_rows - 1u);
    let start = params.input.w + batch * params.input.x + head * params.input.y + row * params.input.z;
    let dim = 4u * (index % vectors);
    let count = min(params.dim - dim, 4u);
    var x = vec4(0.0);
    // rounds: 4u
    for (var i = 0u; i < count; i++) {
        x[i] = rotated(start, batch, table_row, dim + i);
    }
    let target_row = params.out.w + batch * params.out.x + head * params.out.y + row * params.out.z;
    store_out(target_row + dim, count, x);
}
