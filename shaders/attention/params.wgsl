// What one piece of an attention call is told, and what it reads and writes. Twin of
// `AttentionParams` in src/params.rs, where every member is explained.

struct Params {
    query: vec4<u32>,
    key: vec4<u32>,
    value: vec4<u32>,
    out: vec4<u32>,
    lse: vec4<u32>,
    bias: vec4<u32>,
    term_words: vec4<u32>,
    term_left: vec4<i32>,
    term_right: vec4<i32>,
    term_limit: vec4<i32>,
    batch: u32,
    heads: u32,
    query_len: u32,
    key_len: u32,
    head_dim: u32,
    value_dim: u32,
    workgroups: u32,
    query_blocks: u32,
    batch_base: u32,
    head_base: u32,
    key_head_base: u32,
    value_head_base: u32,
    query_heads: u32,
    key_heads: u32,
    value_heads: u32,
    offset_kind: u32,
    offset: i32,
    query_scale: f32,
    softcap: f32,
    sigmoid_bias: f32,
    bias_dtype: u32,
    has_lse: u32,
    document_positions: u32,
    nan: u32,
    query_offset_at: u32,
    query_starts_at: u32,
    key_starts_at: u32,
    documents: u32,
    key_lengths_at: u32,
    query_roles_at: u32,
    key_roles_at: u32,
    role_table_at: u32,
    tree_bits_at: u32,
    dense_mask_at: u32,
    dense_mask_batch: u32,
    dense_mask_head: u32,
    dense_mask_row: u32,
    alibi_slopes_at: u32,
    key_bias_at: u32,
    key_bias_batch: u32,
    key_bias_head: u32,
    sinks_at: u32,
    stage: u32,
    terms: u32,
    list_offsets_at: u32,
    list_entries_at: u32,
    list_len: u32,
    list_batch: u32,
    list_head: u32,
    list_head_group: u32,
    list_block_q: u32,
    list_shift: u32,
    list_trust: u32,
    part_first: u32,
    part_end: u32,
    resumes: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> query: array<Word>;
@group(0) @binding(2) var<storage, read> key: array<Word>;
@group(0) @binding(3) var<storage, read> value: array<Word>;
@group(0) @binding(4) var<storage, read_write> out: array<OutWord>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
// Lengths, roles, bits: see `Arrays`.
@group(0) @binding(6) var<storage, read> metadata: array<u32>;
// Slopes, biases per key and sinks: see `Arrays`.
@group(0) @binding(7) var<storage, read> side: array<f32>;
@group(0) @binding(8) var<storage, read> bias: array<u32>;

const ABSENT: u32 = 0xffffffffu;
const LOG2_E: f32 = 1.4426950408889634;
const LN_2: f32 = 0.6931471805599453;
// Stands for −∞, which WGSL cannot write: a masked score, the LSE of a row without keys.
const MASKED: f32 = -1e30;
// The least number that does not mean −∞ in a buffer, where −5e29 and less do: a lower logit of a pair
// that is kept counts as this one, so that no logit is taken for a mask.
const LEAST_LOGIT: f32 = -0x1.93e592p+98;
const LEAST_SCORE: f32 = LOG2_E * LEAST_LOGIT; // in units of log2
// Between MASKED and both of the least: a score at or below it is a masked one, in either unit.
const EMPTY: f32 = -8e29;

// The head and batch entry that a workgroup or invocation works on.
struct Place {
    batch: u32, // in the piece
    head: u32, // query head, in the piece
    key_head: u32,
    value_head: u32,
}

fn place(batch: u32, head: u32) -> Place {
    let whole_head = params.head_base + head;
    // Heads divide each other, so that nothing needs to be multiplied.
    return Place(
        batch,
        head,
        whole_head / (params.query_heads / params.key_heads) - params.key_head_base,
        whole_head / (params.query_heads / params.value_heads) - params.value_head_base,
    );
}

// Which block of queries of which head a workgroup computes.
struct Turn {
    head_and_batch: u32,
    block: u32,
}

// Heads whose turns come together: few enough for a cache to hold their keys, and many enough to
// keep a device busy.
const HEADS_TOGETHER: u32 = 16u;

// The last blocks of some heads come first, since they see most under a causal mask: work that
// takes long must not be left for the end.
fn turn_of(index: u32) -> Turn {
    let several = HEADS_TOGETHER * params.query_blocks;
    let first_head = index / several * HEADS_TOGETHER;
    let heads = min(HEADS_TOGETHER, params.heads * params.batch - first_head);
    let within = index % several;
    return Turn(first_head + within % heads, params.query_blocks - 1u - within / heads);
}

// How many of the `dim` elements lie at or beyond element `first`.
fn remaining(dim: u32, first: u32) -> u32 {
    return dim - min(dim, first);
}

fn is_finite(x: f32) -> bool {
    return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u;
}

fn not_a_number() -> f32 {
    return bitcast<f32>(params.nan);
}
