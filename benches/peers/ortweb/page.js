// Both sides on the same shapes, each answer checked against the f64 reference first, then timed in turn: from arrays
// to arrays, so with the upload and the readback on both sides.

import init, { Context, checkAttention } from "/pkg/wgpu_attention.js";
import { multiHeadAttention } from "/peer/model.js";

/** Hides the subgroup features from whoever asks for an adapter, where wanted. */
function hideSubgroups() {
  const request = GPU.prototype.requestAdapter;
  GPU.prototype.requestAdapter = async function (...options) {
    const adapter = await request.apply(this, options);
    const features = new Set([...adapter.features].filter((name) => !name.startsWith("subgroup")));
    Object.defineProperty(adapter, "features", { value: features });
    return adapter;
  };
}

export async function compare({ shapes, hidden, asGpu, repetitions }) {
  await init();
  const ours = await Context.create({ asGpu, without: hidden ? ["subgroups"] : [] });
  if (hidden) hideSubgroups();
  const ort = await import("/peer/node_modules/onnxruntime-web/dist/ort.webgpu.mjs");
  ort.env.wasm.wasmPaths = new URL("/peer/node_modules/onnxruntime-web/dist/", location.href).href;
  ort.env.wasm.numThreads = 1;
  ort.env.logLevel = "error";
  const found = [];
  for (const [heads, len, dim] of shapes) {
    const session = await ort.InferenceSession.create(multiHeadAttention(heads), { executionProviders: ["webgpu"] });
    const [q, k, v] = [1, 2, 3].map((seed) => Float32Array.from({ length: heads * len * dim }, (_, i) => Math.sin(seed * i * 0.7 + ((i * i) % 13))));
    const shape = [1, heads, len, dim];
    const plan = await ours.planAttention({ shape, layout: "batch,len,heads,dim" });
    const tensor = (data) => new ort.Tensor("float32", data, [1, len, heads * dim]);
    const sides = {
      ours: () => plan.run({ q, k, v }),
      peer: async () => (await session.run({ q: tensor(q), k: tensor(k), v: tensor(v) })).out.data,
    };
    // The reference takes heads first.
    const apart = (packed) => packed.map((_, i) => packed[(Math.floor(i / dim) % len) * heads * dim + Math.floor(i / (len * dim)) * dim + (i % dim)]);
    const judge = (out) => checkAttention({ q: apart(q), k: apart(k), v: apart(v), shape, rows: 64 }, apart(out));
    const row = { heads, len, dim, hidden, variant: plan.variant, checks: {}, best: { ours: Infinity, peer: Infinity } };
    for (const [name, run] of Object.entries(sides)) row.checks[name] = judge(await run());
    for (let i = 0; i < repetitions; i++) {
      for (const [name, run] of Object.entries(sides)) {
        const start = performance.now();
        await run();
        row.best[name] = Math.min(row.best[name], performance.now() - start);
      }
    }
    row.ratio = row.best.peer / row.best.ours;
    found.push(row);
    await session.release();
    plan.free();
  }
  return { adapter: ours.adapter, found };
}
