// f32 elements: one to a word.

alias Packed4 = vec4<f32>;
const PER_WORD: u32 = 1u;

fn unpack4(packed: Packed4) -> vec4<f32> {
    return packed;
}

fn pack4(x: vec4<f32>) -> Packed4 {
    return x;
}

// With other signs where `flips`.
fn flipped4(packed: Packed4, flips: bool) -> Packed4 {
    return select(packed, -packed, flips);
}

// Element `index % PER_WORD` of a word.
fn unpack1(word: u32, index: u32) -> f32 {
    return bitcast<f32>(word);
}

// Whether one of four elements would be no finite f16: 65520 is the least that rounds to infinity.
fn exceeds_f16(packed: Packed4) -> bool {
    let magnitudes = bitcast<vec4<u32>>(packed) & vec4(0x7fffffffu);
    return any(magnitudes >= vec4(0x477ff000u));
}
