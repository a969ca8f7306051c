// f16 elements as the native type, for kernels that need the device feature anyway.

alias Packed4 = vec4<f16>;

fn unpack4(packed: Packed4) -> vec4<f32> {
    return vec4<f32>(packed);
}

fn pack4(x: vec4<f32>) -> Packed4 {
    return vec4<f16>(x);
}
