// bf16 elements as words: two to a word, the lower half first; each is the upper half of an f32.

alias Packed4 = vec2<u32>;
const PER_WORD: u32 = 2u;

fn unpack4(packed: Packed4) -> vec4<f32> {
    let words = packed.xxyy << vec4(16u, 0u, 16u, 0u);
    return bitcast<vec4<f32>>(words & vec4(0xffff0000u));
}

fn pack4(x: vec4<f32>) -> Packed4 {
    return vec2(pack2(x.xy), pack2(x.zw));
}

// Rounds to nearest, ties to even; a NaN stays one.
fn pack2(x: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(x);
    let rounded = (bits + vec2(0x7fffu) + ((bits >> vec2(16u)) & vec2(1u))) >> vec2(16u);
    let is_nan = (bits & vec2(0x7fffffffu)) > vec2(0x7f800000u);
    let halves = select(rounded, (bits >> vec2(16u)) | vec2(0x40u), is_nan);
    return halves.x | (halves.y << 16u);
}

// With other signs where `flips`.
fn flipped4(packed: Packed4, flips: bool) -> Packed4 {
    return packed ^ vec2(select(0u, 0x80008000u, flips));
}

// Element `index % PER_WORD` of a word.
fn unpack1(word: u32, index: u32) -> f32 {
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, (index & 1u) == 1u));
}

// Whether one of four elements would be no finite f16: 65520 is the least that rounds to infinity.
fn exceeds_f16(packed: Packed4) -> bool {
    let magnitudes = (packed.xxyy << vec4(16u, 0u, 16u, 0u)) & vec4(0x7fff0000u);
    return any(magnitudes >= vec4(0x477ff000u));
}
