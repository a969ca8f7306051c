// Tensors whose dims, strides and offsets are multiples of four: a load is one vector.

alias Word = Packed4;

// Four elements from `element` on, of which the first `count` exist (none or all four).
fn load_query(element: u32, count: u32) -> vec4<f32> {
    if (count == 0u) {
        return vec4(0.0);
    }
    return unpack4(query[element >> 2u]);
}

fn load_key(element: u32, count: u32) -> vec4<f32> {
    if (count == 0u) {
        return vec4(0.0);
    }
    return unpack4(key[element >> 2u]);
}

// The same without a condition, for what is loaded ahead of its use: a load under a condition would
// be waited for at once. Dims beyond the tensor's are others of the row.
alias Ahead = Packed4;

fn query_ahead(row: u32, dim: u32) -> Ahead {
    return query[(row + min(dim, params.head_dim - 4u)) >> 2u];
}

fn key_ahead(row: u32, dim: u32) -> Ahead {
    return key[(row + min(dim, params.head_dim - 4u)) >> 2u];
}

fn value_ahead(row: u32, dim: u32) -> Ahead {
    return value[(row + min(dim, params.value_dim - 4u)) >> 2u];
}

fn arrived(vector: Ahead) -> vec4<f32> {
    return unpack4(vector);
}

// For the matrix kernels, which stage tensors by WORD_VECS vectors to a word: vector `n` of one, and
// the vector of values at `element`.
const WORD_VECS: u32 = 1u;

fn vector_of_word(word: Word, n: u32) -> Packed4 {
    return word;
}

fn value_at(element: u32) -> Packed4 {
    return value[element >> 2u];
}
