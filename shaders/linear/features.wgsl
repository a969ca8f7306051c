// The feature maps of queries and keys, four features at a time, and values.
// Expects: tensors.wgsl, const FEATURE_MAP, ONES.

const IDENTITY: u32 = 0u;
const SILU: u32 = 1u;
const ELU1: u32 = 2u;
const TAYLOR2: u32 = 3u;

fn map_elements(x: vec4<f32>, first: u32) -> vec4<f32> {
    if (FEATURE_MAP == SILU) {
        return x / (1.0 + exp(min(-x, vec4(88.0))));
    }
    if (FEATURE_MAP == ELU1) {
        // Beyond the last dimension there is no feature, where exp(0) would be 1.
        let exists = vec4(first) + vec4(0u, 1u, 2u, 3u) < vec4(params.head_dim);
        return select(vec4(0.0), select(exp(min(x, vec4(0.0))), x + 1.0, x > vec4(0.0)), exists);
    }
    return x;
}

// A feature of the Taylor map is a product of two elements of the vector with a 1 behind its end.
struct Product {
    a: u32,
    b: u32,
    factor: f32,
}

fn taylor_product(feature: u32) -> Product {
    let dim = params.head_dim;
    if (feature == 0u) {
        return Product(dim, dim, 1.0);
    }
    if (feature <= dim) {
        return Product(feature - 1u, dim, inverseSqrt(sqrt(f32(dim))));
    }
    var rest = feature - dim - 1u;
    var a = 0u;
    // rounds: 4u * HEAD_VECS
    while (rest >= dim - a && a < dim) {
        rest -= dim - a;
        a++;
    }
    return Product(a, a + rest, inverseSqrt(f32(dim) * select(1.0, 2.0, rest == 0u)));
}

fn query_element(start: u32, index: u32) -> f32 {
    if (index >= params.head_dim) {
        return 1.0;
    }
    return query_vector(start, index / 4u)[index & 3u];
}

fn key_element(start: u32, index: u32) -> f32 {
    if (index >= params.head_dim) {
        return 1.0;
    }
    return key_vector(start, index / 4u)[index & 3u];
}

// Four elements of a query or a key; 0 beyond the last. Loaded without a condition, so that several
// loads are under way at a time.
fn query_vector(start: u32, vector: u32) -> vec4<f32> {
    let dims = 4u * vector + vec4(0u, 1u, 2u, 3u);
    return select(vec4(0.0), arrived(query_ahead(start, 4u * vector)), dims < vec4(params.head_dim));
}

fn key_vector(start: u32, vector: u32) -> vec4<f32> {
    let dims = 4u * vector + vec4(0u, 1u, 2u, 3u);
    return select(vec4(0.0), arrived(key_ahead(start, 4u * vector)), dims < vec4(params.head_dim));
}

// Features 4·vector to 4·vector + 3 of the query that starts at `start`; 0 beyond the last.
fn query_features(start: u32, vector: u32) -> vec4<f32> {
    if (FEATURE_MAP != TAYLOR2) {
        return map_elements(query_vector(start, vector), 4u * vector);
    }
    var features = vec4(0.0);
    for (var i = 0u; i < 4u; i++) {
        if (4u * vector + i < params.features) {
            let product = taylor_product(4u * vector + i);
            features[i] = product.factor * query_element(start, product.a) * query_element(start, product.b);
        }
    }
    return features;
}

fn key_features(start: u32, vector: u32) -> vec4<f32> {
    if (FEATURE_MAP != TAYLOR2) {
        return map_elements(key_vector(start, vector), 4u * vector);
    }
    var features = vec4(0.0);
    for (var i = 0u; i < 4u; i++) {
        if (4u * vector + i < params.features) {
            let product = taylor_product(4u * vector + i);
            features[i] = product.factor * key_element(start, product.a) * key_element(start, product.b);
        }
    }
    return features;
}

// Four elements of a value; the normaliser's values are a column of ones.
fn value_vector(batch: u32, head: u32, index: u32, vector: u32) -> vec4<f32> {
    if (ONES) {
        return select(vec4(0.0), vec4(1.0, 0.0, 0.0, 0.0), vector == 0u);
    }
    let start = params.value.w + batch * params.value.x + head * params.value.y + index * params.value.z;
    let dims = 4u * vector + vec4(0u, 1u, 2u, 3u);
    return select(vec4(0.0), arrived(value_ahead(start, 4u * vector)), dims < vec4(params.value_dim));
}
