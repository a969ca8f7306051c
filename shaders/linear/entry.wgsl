// What the workspace keeps of a chunk, in vectors of four: the state before it [4·FEATURE_VECS,
// VALUE_VECS] and, for the delta rules, its corrected values [CHUNK, VALUE_VECS], what the state is
// multiplied by to correct them [CHUNK, FEATURE_VECS], and its keys decayed to its end, the same.

const CORRECTED_AT: u32 = 4u * FEATURE_VECS * VALUE_VECS;
const CORRECTOR_AT: u32 = CORRECTED_AT + CHUNK * VALUE_VECS;
const DECAYED_AT: u32 = CORRECTOR_AT + CHUNK * FEATURE_VECS;
const ENTRY_VECS: u32 = select(CORRECTED_AT, DECAYED_AT + CHUNK * FEATURE_VECS, DELTA);
