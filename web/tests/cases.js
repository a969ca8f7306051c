// Small shapes of every family, computed in the page and judged by the f64 reference. A software
// adapter takes seconds for a pipeline, so cases share kernels and differ in what they are given.

/** Reproducible numbers between −1 and 1. */
export function numbers(count, seed) {
  let state = seed * 2654435761 + 1;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  });
}

const product = (sizes) => sizes.reduce((a, b) => a * b, 1);

function tensors({ batch = 1, heads, keyHeads = heads, len, keyLen = len, headDim, valueDim = headDim }, seed) {
  return {
    q: numbers(product([batch, heads, len, headDim]), seed),
    k: numbers(product([batch, keyHeads, keyLen, headDim]), seed + 1),
    v: numbers(product([batch, keyHeads, keyLen, valueDim]), seed + 2),
  };
}

const base = { batch: 2, heads: 4, keyHeads: 2, len: 63, keyLen: 70, headDim: 16 };
const square = { heads: 2, len: 70, headDim: 16 };
const attention = (name, options, shape = base) => ({ name, shape, ...options });

/** Attention: the name and the options of each case. */
export const ATTENTION = [
  attention("dense", {}),
  attention("causal", { mask: "causal" }),
  attention("window and sink", { mask: "causal & window(9,0)", lse: true }),
  attention("top left", { mask: "causal", positions: "top-left" }),
  attention("key lengths, with rows that see nothing", { mask: "causal & lengths", keyLengths: [33, 70] }),
  attention("f16", { mask: "causal", dtype: "f16" }),
  attention("bf16, any dims", { dtype: "bf16" }, { ...base, headDim: 7, valueDim: 5 }),
  attention("four terms with bits", {
    mask: "causal & dense | sink(3) | window(4,2) | prefix(2)",
    denseMask: Uint8Array.from(numbers(63 * 70, 5), (x) => x > 0),
    softcap: 3,
    alibiSlopes: [0.5, 0.25, 0.125, 0.0625],
    keyBias: numbers(70, 6),
  }),
  attention("learned sinks", { mask: "causal", sinks: [1, 0, -1, 2] }),
  attention("bias per pair", { bias: numbers(4 * 63 * 70, 7) }),
  attention("sigmoid", { activation: "sigmoid", mask: "causal" }),
  attention("packed layout", { mask: "causal", layout: "batch,len,heads,dim" }),
  attention("blocks: window and sink", { mask: "causal", sparse: "sink(4) + window(20)" }, square),
  attention("blocks: random", { mask: "causal", sparse: { pattern: "random(0.5, 3)", blockQ: 16, blockK: 32 } }, square),
  attention("single keys: strided", { mask: "causal", sparse: "strided(3)" }, square),
  attention("scores", { mask: "causal", scores: "probabilities" }, square),
];

const gates = (count, seed) => numbers(count, seed).map((x) => -0.3 * Math.abs(x));

/** Linear attention. */
export const LINEAR = [
  { name: "lightning", shape: square, featureMap: "silu", decay: [0.3, 0.05] },
  { name: "lightning, f16", shape: square, dtype: "f16", decay: [0.3, 0.05] },
  { name: "normalised", shape: square, featureMap: "elu1", normalize: 1e-6 },
  { name: "documents", shape: square, featureMap: "silu", starts: [0, 17, 70] },
  { name: "gated", shape: square, rule: "gated", gate: gates(2 * 70, 8) },
  { name: "gated per key dimension", shape: square, rule: "gated", gatePer: "key-dim", gate: gates(2 * 70 * 16, 9) },
  { name: "delta", shape: square, rule: "delta", beta: gates(2 * 70, 10).map((x) => -x) },
  { name: "token by token", shape: square, variant: "recurrent", decay: [0.3, 0.05] },
];

/** Reorders `[batch, heads, len, dim]` to `[batch, len, heads, dim]`, or back with sizes swapped. */
function packed(array, [batch, heads, len, dim]) {
  const out = new array.constructor(array.length);
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < len; i++)
        for (let d = 0; d < dim; d++)
          out[((b * len + i) * heads + h) * dim + d] = array[((b * heads + h) * len + i) * dim + d];
  return out;
}

async function attend(module, context, { name, ...options }, variant) {
  const { batch = 1, heads, keyHeads = heads, len, keyLen = len, headDim } = options.shape;
  const call = { ...options, ...tensors(options.shape, 11) };
  const given = { ...call };
  if (variant && !options.scores) given.variant = variant;
  if (options.layout) {
    given.q = packed(call.q, [batch, heads, len, headDim]);
    given.k = packed(call.k, [batch, keyHeads, keyLen, headDim]);
    given.v = packed(call.v, [batch, keyHeads, keyLen, headDim]);
  }
  let result = await context.attention(given);
  if (options.lse) result = result.out;
  if (options.layout) result = packed(result, [batch, len, heads, headDim]);
  const { layout, ...judged } = call;
  return { name: `${name}, ${variant}`, ...module.checkAttention({ ...judged, rows: 200 }, result) };
}

/** Runs all cases; `variant` is the kernel of attention. */
export async function run(module, context, { variant, linear = false }) {
  const found = [];
  // attention.rows is made for dims that are multiples of 4.
  const suits = ({ shape }) => variant !== "rows" || (shape.headDim % 4 === 0 && (shape.valueDim ?? 0) % 4 === 0);
  for (const options of ATTENTION.filter(suits)) found.push(await attend(module, context, options, variant));
  for (const { name, ...options } of linear ? LINEAR : []) {
    const call = { ...options, ...tensors(options.shape, 12) };
    if (options.rule === "delta") call.k = call.k.map((x) => x / 4);
    found.push({ name, ...module.checkLinear(call, await context.linear(call)) });
  }
  return found;
}
