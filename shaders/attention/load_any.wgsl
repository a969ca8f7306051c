// Tensors of any dims, strides and offsets: loads by the element.

alias Word = u32;

// Four elements from `element` on, of which the first `count` exist; 0 for the others.
fn load_query(element: u32, count: u32) -> vec4<f32> {
    var x = vec4(0.0);
    for (var i = 0u; i < min(count, 4u); i++) {
        x[i] = unpack1(query[(element + i) / PER_WORD], element + i);
    }
    return x;
}

fn load_key(element: u32, count: u32) -> vec4<f32> {
    var x = vec4(0.0);
    for (var i = 0u; i < min(count, 4u); i++) {
        x[i] = unpack1(key[(element + i) / PER_WORD], element + i);
    }
    return x;
}

// The same without a condition, for what is loaded ahead of its use: see load_vec4.wgsl.
alias Ahead = vec4<f32>;

fn ahead_from(row: u32, dim: u32, dims: u32) -> vec4<u32> {
    return row + min(dim + vec4(0u, 1u, 2u, 3u), vec4(dims - 1u));
}

fn query_ahead(row: u32, dim: u32) -> Ahead {
    let at = ahead_from(row, dim, params.head_dim);
    return vec4(
        unpack1(query[at.x / PER_WORD], at.x), unpack1(query[at.y / PER_WORD], at.y),
        unpack1(query[at.z / PER_WORD], at.z), unpack1(query[at.w / PER_WORD], at.w));
}

fn key_ahead(row: u32, dim: u32) -> Ahead {
    let at = ahead_from(row, dim, params.head_dim);
    return vec4(
        unpack1(key[at.x / PER_WORD], at.x), unpack1(key[at.y / PER_WORD], at.y),
        unpack1(key[at.z / PER_WORD], at.z), unpack1(key[at.w / PER_WORD], at.w));
}

fn value_ahead(row: u32, dim: u32) -> Ahead {
    let at = ahead_from(row, dim, params.value_dim);
    return vec4(
        unpack1(value[at.x / PER_WORD], at.x), unpack1(value[at.y / PER_WORD], at.y),
        unpack1(value[at.z / PER_WORD], at.z), unpack1(value[at.w / PER_WORD], at.w));
}

fn arrived(vector: Ahead) -> vec4<f32> {
    return vector;
}
