// linear.columns: for CPU drivers, token by token. A thread owns one vector of columns of the state of
// one key head, all of its features, and so sums over features by itself. What differs from
// recurrent.wgsl, and why:
//  1. Features are computed once for all columns: those of STAGED tokens lie in workgroup memory, and
//     barriers, at which a CPU saves and restores every thread, are few.
//  2. TOKENS tokens go through the state together, which then is loaded and stored once for them. Under
//     the delta rules a token's correction waits for the token before it.
//  3. Query heads that share a key head take the same tokens one after the other, each from a copy of
//     the state.
// Barriers: two for each STAGED tokens of a query head.

const TILE: u32 = STAGED * FEATURE_VECS;

const_assert STAGED % TOKENS == 0u;

// features [STAGED, FEATURE_VECS], 0 behind the last token
var<workgroup> key_tile: array<vec4<f32>, TILE>;
var<workgroup> query_tile: array<vec4<f32>, TILE>;
// What a token leaves of each feature's row, or of all.
var<workgroup> decay_tile: array<vec4<f32>, select(1u, TILE, PER_KEY_DIM)>;
var<workgroup> token_decay: array<f32, STAGED>;

struct Place {
    batch: u32,
    head: u32, // key head, in the piece
    vector: u32, // of columns
}

// state [4 * FEATURE_VECS] of a thread
alias Columns = array<vec4<f32>, 4u * FEATURE_VECS>;

fn stage_tokens(thread: u32, here: Place, head: u32, first: u32, end: u32) {
    // Those behind the last token that are taken together with others.
    let count = min(STAGED, (end - first + TOKENS - 1u) / TOKENS * TOKENS);
    // rounds: (TILE + THREADS - 1u) / THREADS
    for (var i = thread; i < count * FEATURE_VECS; i += THREADS) {
        let index = first + i / FEATURE_VECS;
        let vector = i % FEATURE_VECS;
        var k = vec4(0.0);
        var q = vec4(0.0);
        var decay = vec4(1.0);
        if (index < end) {
            k = key_features(key_start(here.batch, here.head, index), vector);
            q = query_features(query_start(here.batch, head, index), vector);
            if (PER_KEY_DIM) {
                decay = gated_decays(here.batch, here.head, index, vector);
            }
        }
        key_tile[i] = k;
        query_tile[i] = q;
        if (PER_KEY_DIM) {
            decay_tile[i] = decay;
        }
    }
    let fixed_decay = decay_of(-slope_of(here.head));
    for (var i = thread; i < STAGED; i += THREADS) {
        var decay = 1.0;
        if (first + i < end) {
            decay = fixed_decay;
            if (GATED && !PER_KEY_DIM) {
                decay = gated_decay(here.batch, here.head, first + i, 0u);
            }
        }
        token_decay[i] = decay;
    }
}

// What the token that lies at `local` leaves of a vector of features.
fn decay_at(local: u32, vector: u32) -> vec4<f32> {
    if (PER_KEY_DIM) {
        return decay_tile[local * FEATURE_VECS + vector];
    }
    return vec4(token_decay[local]);
}

// Takes TOKENS tokens into the state, those at `local` of the staged ones, and answers their queries.
fn take_tokens(own: ptr<function, Columns>, here: Place, head: u32, first: u32, local: u32, end: u32) {
    let columns = remaining(params.value_dim, 4u * here.vector);
    var updates: array<vec4<f32>, TOKENS>;
    var answers: array<vec4<f32>, TOKENS>;
    // unroll
    for (var t = 0u; t < TOKENS; t++) {
        let index = first + local + t;
        let value = value_vector(here.batch, here.head, min(index, end - 1u), here.vector);
        updates[t] = select(vec4(0.0), value, index < end);
        answers[t] = vec4(0.0);
    }
    if (DELTA) {
        var sum = vec4(0.0);
        for (var vector = 0u; vector < FEATURE_VECS; vector++) {
            let k = key_tile[local * FEATURE_VECS + vector] * decay_at(local, vector);
            sum += k.x * (*own)[4u * vector];
            sum += k.y * (*own)[4u * vector + 1u];
            sum += k.z * (*own)[4u * vector + 2u];
            sum += k.w * (*own)[4u * vector + 3u];
        }
        updates[0] = token_value(here.head, here.batch, first + local) * (updates[0] - sum);
    }
    for (var vector = 0u; vector < FEATURE_VECS; vector++) {
        var k: array<vec4<f32>, TOKENS>;
        var q: array<vec4<f32>, TOKENS>;
        var decay: array<vec4<f32>, TOKENS>;
        // unroll
        for (var t = 0u; t < TOKENS; t++) {
            k[t] = key_tile[(local + t) * FEATURE_VECS + vector];
            q[t] = query_tile[(local + t) * FEATURE_VECS + vector];
            decay[t] = decay_at(local + t, vector);
        }
        // unroll
        for (var e = 0u; e < 4u; e++) {
            var row = (*own)[4u * vector + e];
            // unroll
            for (var t = 0u; t < TOKENS; t++) {
                row = decay[t][e] * row + k[t][e] * updates[t];
                answers[t] += q[t][e] * row;
            }
            (*own)[4u * vector + e] = row;
        }
    }
    // unroll
    for (var t = 0u; t < TOKENS; t++) {
        let index = first + local + t;
        if (index < end) {
            var x = params.scale * answers[t];
            if (NORMALIZE) {
                x /= token_value(head, here.batch, index) + params.epsilon;
            }
            let at = params.out.w + here.batch * params.out.x + head * params.out.y + index * params.out.z;
            store_out(at + 4u * here.vector, columns, x);
        }
    }
}

fn walk(thread: u32, here: Place, document: u32) {
    let tokens = tokens_of(document);
    if (!tokens.exist) {
        return;
    }
    let columns = remaining(params.value_dim, 4u * here.vector);
    let sequence = here.batch * params.documents + document;
    let state_start = params.state.w + sequence * params.state.x + here.head * params.state.y + 4u * here.vector;
    var own: Columns;
    // Copied in loops: whole assignments take lavapipe's compiler seconds.
    var before: array<vec4<f32>, select(1u, 4u * FEATURE_VECS, GROUPED)>;
    for (var row = 0u; row < 4u * FEATURE_VECS; row++) {
        let exists = tokens.carries_in && row < params.features;
        own[row] = load_state(state_start + row * params.state.z, select(0u, columns, exists));
    }
    // rounds: WALK / STAGED
    for (var first = tokens.start; first < tokens.end; first += STAGED) {
        if (GROUPED) {
            for (var row = 0u; row < 4u * FEATURE_VECS; row++) {
                before[row] = own[row];
            }
        }
        // rounds: GROUP
        for (var member = 0u; member < params.group; member++) {
            let head = here.head * params.group + member;
            workgroupBarrier();
            stage_tokens(thread, here, head, first, tokens.end);
            workgroupBarrier();
            if (GROUPED && member > 0u) {
                for (var row = 0u; row < 4u * FEATURE_VECS; row++) {
                    own[row] = before[row];
                }
            }
            let count = min(STAGED, tokens.end - first);
            // rounds: STAGED / TOKENS
            for (var local = 0u; local < count; local += TOKENS) {
                take_tokens(&own, here, head, first, local, tokens.end);
            }
        }
    }
    if (tokens.carries_out) {
        for (var row = 0u; row < 4u * FEATURE_VECS; row++) {
            store_state(state_start + row * params.state.z, select(0u, columns, row < params.features), own[row]);
        }
    }
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = workgroup_number(group, groups);
    if (index < params.workgroups) {
        let head_and_sequence = index / params.slices;
        let sequence = head_and_sequence / params.heads;
        let vector = index % params.slices * THREADS + thread;
        walk(thread, Place(sequence / params.documents, head_and_sequence % params.heads, vector), sequence % params.documents);
    }
}
