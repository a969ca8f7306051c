// f16 elements as words: two to a word, the lower half first. Needs no device feature.

alias Packed4 = vec2<u32>;
const PER_WORD: u32 = 2u;

fn unpack4(packed: Packed4) -> vec4<f32> {
    return vec4(unpack2x16float(packed.x), unpack2x16float(packed.y));
}

fn pack4(x: vec4<f32>) -> Packed4 {
    return vec2(pack2(x.xy), pack2(x.zw));
}

// WGSL leaves halves beyond the largest f16 undefined: they become infinities by their bits. Devices
// with matrix units convert infinities as such, so there it is enough that numbers from 65520 on,
// the least that rounds to infinity, are infinities of f32 first; others gain nothing but zeros.
fn pack2(x: vec2<f32>) -> u32 {
    if (MATRICES) {
        return pack2x16float(fma(x * 0x1.001002p+112f * 0x1p-100f, vec2(0x1p-100f), x));
    }
    let largest = vec2(65504.0);
    let packed = pack2x16float(clamp(x, -largest, largest));
    let bits = bitcast<vec2<u32>>(x);
    let magnitude = bits & vec2(0x7fffffffu);
    let sign = (bits >> vec2(16u)) & vec2(0x8000u);
    // 65520 is the least number that rounds to infinity; above 0x7f800000 lie the NaNs.
    let special = select(vec2(0x7c00u), vec2(0x7e00u), magnitude > vec2(0x7f800000u)) | sign;
    let halves = select(vec2(packed & 0xffffu, packed >> 16u), special, magnitude >= vec2(0x477ff000u));
    return halves.x | (halves.y << 16u);
}

// With other signs where `flips`.
fn flipped4(packed: Packed4, flips: bool) -> Packed4 {
    return packed ^ vec2(select(0u, 0x80008000u, flips));
}

// Element `index % PER_WORD` of a word.
fn unpack1(word: u32, index: u32) -> f32 {
    let halves = unpack2x16float(word);
    return select(halves.x, halves.y, (index & 1u) == 1u);
}

// Whether one of four elements is no finite f16.
fn exceeds_f16(packed: Packed4) -> bool {
    let carries = (packed & vec2(0x7c007c00u)) + vec2(0x04000400u);
    return any((carries & vec2(0x80008000u)) != vec2(0u));
}
