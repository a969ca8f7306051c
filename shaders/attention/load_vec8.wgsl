// 16-bit tensors whose dims, strides and offsets are multiples of eight, for the matrix kernel: a load
// of keys or values is two vectors, 16 bytes; one of queries is a vector. Twin of load_vec4.wgsl.

alias Word = Packed4;
alias KeyWord = vec4<u32>;

const KEY_WORD_VECS: u32 = 2u;

fn vector_of_word(word: KeyWord, n: u32) -> Packed4 {
    return select(word.zw, word.xy, n == 0u);
}

fn value_at(element: u32) -> Packed4 {
    return vector_of_word(value[element >> 3u], (element >> 2u) & 1u);
}
