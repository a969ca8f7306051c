// Reads safetensors: eight bytes of header length, a JSON header, then the tensors.

const KINDS = { F32: ["f32", 4], F16: ["f16", 2], BF16: ["bf16", 2] };
const MAX_HEADER = 100e6;

function refuse(sentence) {
  throw new Error(`safetensors: ${sentence}`);
}

/** The float tensors of a file by name, as `{ dtype, shape, data }`; 16-bit ones as bits. */
export function parse(buffer) {
  if (buffer.byteLength < 8) refuse(`expected at least 8 bytes, got ${buffer.byteLength}`);
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  if (length > MAX_HEADER || 8 + length > buffer.byteLength) {
    refuse(`expected a header of ${length} bytes, got a file of ${buffer.byteLength}: it is truncated or no safetensors`);
  }
  let header;
  try {
    header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(new Uint8Array(buffer, 8, length)));
  } catch (error) {
    refuse(`the header is no JSON (${error.message})`);
  }
  const tensors = new Map();
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const { dtype, shape, data_offsets: offsets } = entry ?? {};
    if (!Array.isArray(shape) || !Array.isArray(offsets)) refuse(`tensor \`${name}\`: expected shape and data_offsets, got neither`);
    const [start, end] = offsets;
    if (!(start >= 0 && start <= end && 8 + length + end <= buffer.byteLength)) {
      refuse(`tensor \`${name}\`: expected bytes ${start} to ${end}, but the file ends after ${buffer.byteLength - 8 - length}: it is truncated`);
    }
    if (!KINDS[dtype]) continue;
    const [kind, size] = KINDS[dtype];
    const count = shape.reduce((a, b) => a * b, 1);
    if (count * size !== end - start) refuse(`tensor \`${name}\`: expected ${count * size} bytes for shape [${shape}], got ${end - start}`);
    const bytes = buffer.slice(8 + length + start, 8 + length + end);
    tensors.set(name, { dtype: kind, shape, data: size === 4 ? new Float32Array(bytes) : new Uint16Array(bytes) });
  }
  return { tensors, metadata: header.__metadata__ ?? {} };
}

/** The first `q`, `k`, `v` of one prefix, cut to what a page can draw. */
export function attentionTensors({ tensors }, { maxLength }) {
  const name = [...tensors.keys()].find((name) => /(^|\.)q$/.test(name));
  if (!name) refuse(`expected tensors q, k and v (a common prefix is fine), got ${[...tensors.keys()].join(", ") || "none"}`);
  const prefix = name.slice(0, -1);
  const [q, k, v] = ["q", "k", "v"].map((letter) => tensors.get(prefix + letter) ?? refuse(`expected a tensor \`${prefix}${letter}\` beside \`${name}\`, got none`));
  for (const [letter, tensor] of Object.entries({ q, k, v })) {
    if (tensor.shape.length !== 4) refuse(`tensor \`${prefix}${letter}\`: expected shape [batch, heads, len, dim], got [${tensor.shape}]`);
  }
  const [, heads, queries, headDim] = q.shape;
  const [, keyHeads, keys, keyDim] = k.shape;
  if (keyDim !== headDim || v.shape[1] !== keyHeads || v.shape[2] !== keys || queries !== keys || heads % keyHeads !== 0 || k.dtype !== q.dtype || v.dtype !== q.dtype) {
    refuse(`expected q, k and v of one dtype and length, with heads that divide, got ${[q, k, v].map((t) => `${t.dtype} [${t.shape}]`).join(", ")}`);
  }
  const len = Math.min(queries, maxLength);
  const shape = { heads, keyHeads, len, headDim, valueDim: v.shape[3] };
  return { prefix, dtype: q.dtype, shape, full: queries, q: cut(q, len), k: cut(k, len), v: cut(v, len) };
}

/** The first tokens of the first batch entry. */
function cut({ shape: [, heads, length, dim], data }, len) {
  const out = new data.constructor(heads * len * dim);
  for (let head = 0; head < heads; head++) {
    const start = head * length * dim;
    out.set(data.subarray(start, start + len * dim), head * len * dim);
  }
  return out;
}
