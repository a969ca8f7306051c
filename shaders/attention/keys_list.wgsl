// Lists of keys, for keys_blocks.wgsl and keys_gathered.wgsl: a row of entries for every block of
// list_block_q queries; an entry is the first of 2^list_shift keys, its top bit set where the host
// has proven that the mask keeps every pair. Lists from the device are clamped, so that no list
// leads outside of a tensor or takes longer than all keys would.

const LIST_FULL: u32 = 0x80000000u;
// Values of list_trust: the host has seen that entries ascend; and that full ones are full.
const LIST_CHECKED: u32 = 1u;
const LIST_PROVEN: u32 = 2u;

// Where the row of a block of queries lies in the metadata, and its number of entries.
fn list_row(here: Place, first_query: u32) -> vec2<u32> {
    let row = (params.batch_base + here.batch) * params.list_batch
        + (params.head_base + here.head) / params.list_head_group * params.list_head
        + first_query / params.list_block_q;
    let start = min(metadata[params.list_offsets_at + row], params.list_len);
    let end = clamp(metadata[params.list_offsets_at + row + 1u], start, params.list_len);
    let most = (params.key_len + (1u << params.list_shift) - 1u) >> params.list_shift;
    return vec2(params.list_entries_at + start, min(end - start, most));
}

// The first key of an entry, key_len where it lies beyond.
fn list_key(entry: u32) -> u32 {
    return min(entry & ~LIST_FULL, params.key_len);
}
