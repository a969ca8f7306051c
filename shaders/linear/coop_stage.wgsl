// What linear.coop_output keeps in workgroup memory, and how a block comes there: loaded into
// registers while the one before it is computed, put down when there is room.
// Expects: coop_block.wgsl.

const QUERY_STRIDE: u32 = FEATURE_VECS + 2u;
// Behind the queries lie the scores [BLOCK, BLOCK].
const SCORES_AT: u32 = BLOCK * QUERY_STRIDE;
const SCORE_STRIDE: u32 = BLOCK / 4u + 2u;
const VALUE_STRIDE: u32 = SLICE_VECS + 2u;
const VALUE_WORDS: u32 = SLICE_VECS / WORD_VECS;
// A subgroup has a strip of 4 vectors and 32 threads.
const VALUE_LOADS: u32 = BLOCK / (8u * WORD_VECS);
const NEVER: u32 = 0xffffffffu;

// Matrices load from addresses that are multiples of 16 bytes: vectors of f32 come first, and every
// array is a multiple of 16 bytes long.
struct Tiles {
    wide: array<vec4<f32>, ROOM_VECS>,
    keys: array<vec4<f16>, BLOCK * KEY_STRIDE>,
    queries: array<vec4<f16>, SCORES_AT + BLOCK * SCORE_STRIDE>,
    // [BLOCK, SLICE_VECS], or rooms
    values: array<vec4<f16>, max(BLOCK * VALUE_STRIDE, ROOM_VECS)>,
}

var<workgroup> tiles: Tiles;
// The token of the chunk from which on a column is no finite number; whether there is any.
var<workgroup> spoilt_since: array<atomic<u32>, 16u * STRIPS>;
var<workgroup> any_spoilt: atomic<u32>;

alias NextQueries = array<Word, KEY_LOADS>;
alias NextValues = array<Word, VALUE_LOADS>;

fn fetch_queries(next: ptr<function, NextQueries>, lane: Lane, here: Place, head: u32, first: u32) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let row = query_start(here.batch, head, token_at(here.chunk, first + token_of_key(n, lane)));
        (*next)[n] = query_ahead(row, 4u * vector_of_key(n, lane));
    }
}

// queries [BLOCK, FEATURE_VECS]
fn put_queries(next: ptr<function, NextQueries>, lane: Lane) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let vector = vector_of_key(n, lane);
        if (BLOCK * KEY_WORDS % THREADS == 0u || token_of_key(n, lane) < BLOCK) {
            // unroll
            for (var w = 0u; w < WORD_VECS; w++) {
                tiles.queries[token_of_key(n, lane) * QUERY_STRIDE + vector + w] =
                    vec4<f16>(features_of(vector_of_word((*next)[n], w), 4u * (vector + w)));
            }
        }
    }
}

// The token of the block and the first vector that a thread's n-th word of values is.
fn token_of_value(n: u32, lane: Lane) -> u32 {
    return (n * THREADS + lane.thread) / VALUE_WORDS;
}

fn vector_of_value(n: u32, lane: Lane) -> u32 {
    return WORD_VECS * ((n * THREADS + lane.thread) % VALUE_WORDS);
}

fn fetch_values(next: ptr<function, NextValues>, lane: Lane, here: Place, first: u32) {
    let start = params.value.w + here.batch * params.value.x + here.head * params.value.y;
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let token = token_at(here.chunk, first + token_of_value(n, lane));
        (*next)[n] = value_ahead(start + token * params.value.z, 4u * vector_of_value(n, lane));
    }
}

fn is_spoilt(x: vec4<f32>) -> vec4<bool> {
    return (bitcast<vec4<u32>>(x) & vec4(0x7f800000u)) == vec4(0x7f800000u);
}

// Whether some of a thread's values are no finite numbers.
fn holds_non_finite(values: ptr<function, NextValues>) -> bool {
    var found = false;
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        // unroll
        for (var w = 0u; w < WORD_VECS; w++) {
            found = found | exceeds_f16(vector_of_word((*values)[n], w));
        }
    }
    return found;
}

// values [BLOCK, SLICE_VECS]; `careful` where one may be no finite number: those are left out, and
// their columns noted.
fn put_values(values: ptr<function, NextValues>, lane: Lane, first: u32, careful: bool) {
    // unroll
    for (var n = 0u; n < VALUE_LOADS; n++) {
        let row = token_of_value(n, lane);
        // unroll
        for (var w = 0u; w < WORD_VECS; w++) {
            let vector = vector_of_value(n, lane) + w;
            let loaded = unpack4(vector_of_word((*values)[n], w));
            var numbers = select(vec4(0.0), loaded, WHOLE || 4u * vector < params.value_dim);
            if (careful) {
                let spoilt = is_spoilt(numbers);
                // unroll
                for (var e = 0u; e < 4u; e++) {
                    if (spoilt[e]) {
                        atomicMin(&spoilt_since[4u * vector + e], first + row);
                    }
                }
                numbers = select(numbers, vec4(0.0), spoilt);
            }
            tiles.values[row * VALUE_STRIDE + vector] = vec4<f16>(numbers);
        }
    }
}

// Puts a block down, but for its values, and loads the next one, from token `following` of the chunk
// on.
fn stage(
    next_keys: ptr<function, NextKeys>,
    next_queries: ptr<function, NextQueries>,
    next_values: ptr<function, NextValues>,
    values: ptr<function, NextValues>,
    lane: Lane,
    here: Place,
    head: u32,
    following: u32,
) {
    workgroupBarrier();
    var undecayed: KeysLeft;
    put_keys(next_keys, lane, following - BLOCK, &undecayed, false);
    put_queries(next_queries, lane);
    *values = *next_values;
    if (holds_non_finite(values)) {
        atomicStore(&any_spoilt, 1u);
    }
    workgroupBarrier();
    fetch_keys(next_keys, lane, here, following);
    fetch_queries(next_queries, lane, here, head, following);
    fetch_values(next_values, lane, here, following);
}
