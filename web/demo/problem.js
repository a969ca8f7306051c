// The four families of the bench, as options of the package, and numbers to compute on.

/** Reproducible numbers, about normal. */
export function normal(count, seed) {
  let state = seed >>> 0;
  const unit = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  };
  return Float32Array.from({ length: count }, () => 2 * (unit() + unit() + unit()));
}

/** Names as the page shows them; the order is that of tables and plots. */
export const FAMILIES = { flash: "flash", sigmoid: "sigmoid", sparse: "block-sparse", lightning: "lightning" };

/** Keys and queries of a block, in block-sparse attention. */
const BLOCK = 64;

/** The options of a family's plan. */
export function options(family, attention, { length, heads, dim, dtype, causal, density }) {
  const shape = [1, heads, length, dim];
  if (family === "lightning") {
    const decay = attention.lightningSlopes(heads, 0, 24);
    return { shape, dtype, featureMap: "silu", scale: 1 / Math.sqrt(dim), decay };
  }
  const options = { shape, dtype, mask: causal ? "causal" : "full" };
  if (family === "sigmoid") options.activation = "sigmoid";
  if (family === "sparse") {
    const pattern = `random(${density}, 7)`;
    options.sparse = { pattern, blockQ: BLOCK, blockK: BLOCK };
  }
  return options;
}

/** Plans a family, attention or linear attention. */
export function plan(family, context, given) {
  return family === "lightning" ? context.planLinear(given) : context.planAttention(given);
}

/** Compares a family's output with the reference. */
export function check(family, attention, given, out) {
  return family === "lightning" ? attention.checkLinear(given, out) : attention.checkAttention(given, out);
}

/** A turn of the event loop, so that the page can draw and answer. */
export const breathe = () => new Promise((resolve) => setTimeout(resolve, 0));
