// The scores of a block and what decay makes of them, for linear.coop_output: shared out over the
// subgroups as whole matrices, only those on and below the diagonal. They come back in f16, each
// matrix with a power of two of its own.
// Expects: coop_block.wgsl, coop_stage.wgsl.

const SCORE_TILES: u32 = TOKEN_TILES * (TOKEN_TILES + 1u) / 2u;
const SCORE_SHARE: u32 = (SCORE_TILES + STRIPS - 1u) / STRIPS;
const NEVER_SEEN: f32 = -1.0;

// What each matrix of scores is to be multiplied by; the columns of a row are neighbours.
var<workgroup> score_units: array<f32, SCORE_SHARE * STRIPS>;

// The row and the column of a matrix of scores.
struct ScoreTile {
    row: u32,
    column: u32,
}

// The subgroup's matrix of scores number `share`, which exists where the row does.
fn score_tile(lane: Lane, share: u32) -> ScoreTile {
    var row = 0u;
    var column = share * STRIPS + lane.strip;
    // rounds: SCORE_SHARE * STRIPS
    while (column > row) {
        row++;
        column -= row;
    }
    return ScoreTile(row, min(column, TOKEN_TILES - 1u));
}

// What decay leaves in a block: when it ends, of the state before it and of a thread's keys; of that
// state at each of a lane's rows; and of the tokens in the subgroup's scores, NEVER_SEEN of those
// that come later. The state after a block that is not whole is asked nothing.
struct Decays {
    left: f32,
    keys: KeysLeft,
    state: array<f32, TOKEN_TILES>,
    scores: array<vec4<f32>, 2u * SCORE_SHARE>,
}

fn decays_of(slope: f32, shares: ptr<function, array<ScoreTile, SCORE_SHARE>>, lane: Lane) -> Decays {
    var decays: Decays;
    decays.left = left_of_state(slope, BLOCK - 1u);
    decays.keys = left_of_keys(slope, lane);
    // unroll
    for (var t = 0u; t < TOKEN_TILES; t++) {
        decays.state[t] = left_of_state(slope, 16u * t + lane.row);
    }
    // unroll
    for (var n = 0u; n < 2u * SCORE_SHARE; n++) {
        let tile = (*shares)[n / 2u];
        let now = min(16u * tile.row + lane.row, BLOCK - 1u);
        let origin = 16u * tile.column + 4u * (2u * (n % 2u) + lane.half);
        let left = vec4(
            left_between(slope, now, origin), left_between(slope, now, origin + 1u),
            left_between(slope, now, origin + 2u), left_between(slope, now, origin + 3u));
        decays.scores[n] = select(vec4(NEVER_SEEN), left, origin + vec4(0u, 1u, 2u, 3u) <= vec4(now));
    }
    return decays;
}

// Multiplies keys by what is left of them when the block ends.
fn decay_keys(decays: ptr<function, Decays>, lane: Lane) {
    // unroll
    for (var n = 0u; n < KEY_LOADS; n++) {
        let at = token_of_key(n, lane) * KEY_STRIDE + vector_of_key(n, lane);
        if (BLOCK * KEY_WORDS % THREADS == 0u || token_of_key(n, lane) < BLOCK) {
            // unroll
            for (var w = 0u; w < WORD_VECS; w++) {
                tiles.keys[at + w] = vec4<f16>((*decays).keys[n] * vec4<f32>(tiles.keys[at + w]));
            }
        }
    }
}

// Leaves the subgroup's decayed scores of the block behind the queries, 0 above the diagonal.
fn score(
    shares: ptr<function, array<ScoreTile, SCORE_SHARE>>,
    decays: ptr<function, Decays>,
    zero: coop_mat16x16<f32, C>,
    lane: Lane,
) {
    let room = room_of(lane);
    let row = row_of(lane) + lane.half;
    // unroll
    for (var share = 0u; share < SCORE_SHARE; share++) {
        let tile = (*shares)[share];
        // Who has no matrix steps over all of it; barriers of an emulated subgroup are the workgroup's.
        if (EMULATED || tile.row < TOKEN_TILES) {
            var products = zero;
            if (tile.row < TOKEN_TILES) {
                // unroll
                for (var f = 0u; f < FEATURE_TILES; f++) {
                    let queries = coopLoadT<coop_mat16x16<f16, A>>(&tiles.queries[16u * tile.row * QUERY_STRIDE + 4u * f], QUERY_STRIDE);
                    let keys = coopLoad<coop_mat16x16<f16, B>>(&tiles.keys[16u * tile.column * KEY_STRIDE + 4u * f], KEY_STRIDE);
                    products = coopMultiplyAdd(queries, keys, products);
                }
            }
            coopStoreT(products, &tiles.wide[room], ROOM_STRIDE);
            subgroupBarrier();
            var weights: array<vec4<f32>, 2>;
            // unroll
            for (var n = 0u; n < 2u; n++) {
                let left = (*decays).scores[2u * share + n];
                weights[n] = select(vec4(0.0), left * tiles.wide[row + 2u * n], left >= vec4(0.0));
            }
            let scale = f16_scale(largest_of_subgroup(max(largest_finite(weights[0]), largest_finite(weights[1]))));
            if (tile.row < TOKEN_TILES) {
                let at = SCORES_AT + (16u * tile.row + lane.row) * SCORE_STRIDE + 4u * tile.column + lane.half;
                tiles.queries[at] = vec4<f16>(scale.x * weights[0]);
                tiles.queries[at + 2u] = vec4<f16>(scale.x * weights[1]);
            }
            if (lane.row == 0u && lane.half == 0u) {
                score_units[share * STRIPS + lane.strip] = scale.y;
            }
            subgroupBarrier();
        }
    }
}
