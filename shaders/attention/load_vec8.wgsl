// 16-bit tensors whose dims, strides and offsets are multiples of eight, for the matrix kernels: a load
// is two vectors, 16 bytes. Twin of load_vec4.wgsl.

alias Word = vec4<u32>;

const WORD_VECS: u32 = 2u;

fn vector_of_word(word: Word, n: u32) -> Packed4 {
    return select(word.zw, word.xy, n == 0u);
}

fn query_ahead(row: u32, dim: u32) -> Word {
    return query[(row + min(dim, params.head_dim - 8u)) >> 3u];
}

fn key_ahead(row: u32, dim: u32) -> Word {
    return key[(row + min(dim, params.head_dim - 8u)) >> 3u];
}

fn value_ahead(row: u32, dim: u32) -> Word {
    return value[(row + min(dim, params.value_dim - 8u)) >> 3u];
}

fn value_at(element: u32) -> Packed4 {
    return vector_of_word(value[element >> 3u], (element >> 2u) & 1u);
}
