// What a call takes and refuses: arrays as they are at the call, promises that every failure rejects, options that
// have an effect, and sentences that say what is wrong.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { open } from "./browser.mjs";

let browser;
before(async () => void (browser = await open()));
after(() => browser.close());

/** Runs a function of the module, a context and helpers in a page, whose console must stay silent. */
async function inPage(work) {
  const { page, errors } = await browser.page("tests/blank.html");
  const found = await page.evaluate(async (text) => {
    const module = await import("/pkg/wgpu_attention.js");
    await module.default();
    const { numbers } = await import("/tests/cases.js");
    const context = await module.Context.create();
    const shape = [1, 2, 5, 8];
    const [q, k, v] = [1, 2, 3].map((seed) => numbers(80, seed));
    const gate = numbers(10, 4).map((x) => -Math.abs(x));
    const beta = numbers(10, 5).map((x) => Math.abs(x) / 4);
    // What becomes of a call: a sentence, or "settled" without one. A call that throws is none that rejects.
    const outcome = async (call) => {
      let promise;
      try {
        promise = call();
      } catch (error) {
        return `thrown: ${error}`;
      }
      const late = new Promise((resolve) => setTimeout(resolve, 20_000, "unsettled"));
      return Promise.race([late, Promise.resolve(promise).then(() => "settled", (error) => String(error))]);
    };
    return new Function(`return (${text})(...arguments)`)({ module, context, numbers, shape, q, k, v, gate, beta, outcome });
  }, String(work));
  assert.deepEqual(errors, []);
  await page.close();
  return found;
}

test("arrays are read before the call returns", async () => {
  const found = await inPage(async ({ context, numbers, shape, q, k, v, gate, beta }) => {
    const found = {};
    const bits = (array) => [...new Uint32Array(array.buffer)].join();
    // The result of a call whose arrays and options change at once must be that of one whose do not.
    const compare = async (name, call, given) => {
      const copy = () => Object.fromEntries(Object.entries(given).map(([key, value]) => [key, ArrayBuffer.isView(value) ? value.slice() : value]));
      const flat = (out) => (out.out ? bits(out.out) + bits(out.state) : bits(out));
      const right = flat(await call(copy()));
      const changing = copy();
      const promise = call(changing);
      for (const [key, value] of Object.entries(changing)) {
        if (ArrayBuffer.isView(value)) value.set(value.map((x) => (Number.isInteger(x) ? x : x / 2 - 1)));
        if (value instanceof Float32Array && value.length) value[0] = 7;
        delete changing[key];
      }
      changing.unknown = 1;
      found[name] = await promise.then((out) => flat(out) === right, String);
    };
    const sided = { alibiSlopes: Float32Array.of(0.5, 0.25), bias: numbers(50, 6), keyBias: numbers(5, 7), mask: "causal" };
    await compare("attention", (given) => context.attention(given), { q, k, v, shape, ...sided });
    const plan = await context.planAttention({ shape, ...sided });
    await compare("plan.run", (given) => plan.run(given), { q, k, v, bias: sided.bias });
    await compare("planAttention", (given) => context.planAttention(given).then((plan) => plan.run({ q, k, v, bias: sided.bias })), { shape, ...sided });
    const linear = { shape, rule: "gated-delta" };
    const state = numbers(2 * 8 * 8, 8);
    await compare("linear", (given) => context.linear(given), { q, k, v, gate, beta, state, ...linear });
    const kept = await context.planLinear({ ...linear, state: true });
    await compare("linear plan.run", (given) => kept.run(given), { q, k, v, gate, beta, state });
    await compare("the oracle", async (given) => ({ buffer: (await context.oracle(given)).entries.slice().buffer }), { q, k, v, shape, density: 0.5 });
    // A copy to the host begins at the call too.
    const buffer = context.buffer(q.slice());
    const read = buffer.read();
    buffer.write(k);
    found["buffer.read"] = bits(await read) === bits(q) && bits(await buffer.read()) === bits(k);
    return found;
  });
  assert.deepEqual(found, Object.fromEntries(Object.keys(found).map((name) => [name, true])));
  assert.equal(Object.keys(found).length, 7);
});

test("every failure rejects the promise", async () => {
  const found = await inPage(async ({ module, context, shape, q, k, v, gate, beta, outcome }) => {
    const detached = (array) => {
      const copy = array.slice();
      structuredClone(copy, { transfer: [copy.buffer] });
      return copy;
    };
    const plan = await context.planAttention({ shape });
    const linear = await context.planLinear({ shape, rule: "gated" });
    const bound = plan.bind({ q: context.buffer(q), k: context.buffer(k), v: context.buffer(v) });
    const other = await module.Context.create();
    const foreign = other.buffer(q);
    const broken = await module.Context.create();
    const throwing = { shape, k, v, get q() { throw new Error("from a getter"); } };
    const calls = {
      "attention, detached q": () => context.attention({ q: detached(q), k, v, shape }),
      "attention, detached v of f16": () => context.attention({ q, k, v: detached(v), shape, dtype: "f16" }),
      "attention, detached slopes": () => context.attention({ q, k, v, shape, alibiSlopes: detached(Float32Array.of(1, 2)) }),
      "attention, detached list": () => context.attention({ q, k, v, shape, mask: "lengths", keyLengths: detached(Uint32Array.of(4)) }),
      "attention, detached bias": () => context.attention({ q, k, v, shape, bias: detached(new Float32Array(25)) }),
      "plan.run, detached k": () => plan.run({ q, k: detached(k), v }),
      "linear, detached gate": () => context.linear({ q, k, v, gate: detached(gate), shape, rule: "gated" }),
      "linear, detached beta": () => context.linear({ q, k, v, beta: detached(beta), shape, rule: "delta" }),
      "linear plan.run, detached q": () => linear.run({ q: detached(q), k, v, gate }),
      "the oracle, detached k": () => context.oracle({ q, k: detached(k), v, shape }),
      "attention, a foreign buffer": () => context.attention({ q: foreign, k, v, shape }),
      "plan.run, a foreign output": () => plan.run({ q, k, v, out: foreign }),
      "attention, a getter": () => context.attention(throwing),
      "attention, a proxy": () => context.attention(new Proxy({}, { ownKeys() { throw new Error("from a proxy"); } })),
      "attention, a revoked proxy": () => {
        const { proxy, revoke } = Proxy.revocable({}, {});
        revoke();
        return context.attention({ q: proxy, k, v, shape });
      },
      // Exceptions that nothing foresees, before the first pause and after it.
      "attention, a broken device": () => {
        broken.device.createShaderModule = () => { throw new Error("broken at once"); };
        return broken.attention({ q, k, v, shape });
      },
      "attention, a broken queue": () => {
        other.device.queue.submit = () => { throw new Error("broken later"); };
        return other.attention({ q, k, v, shape });
      },
      "attention, nothing": () => context.attention(),
      "plan.run, nothing": () => plan.run(),
      "planAttention, a shape of text": () => context.planAttention({ shape: "1x2" }),
      "planLinear, a wrong shape": () => context.planLinear({ shape: { heads: 2, keyHeads: 3, len: 5, headDim: 8 } }),
      "bound.run, a fraction": () => bound.run(1.5),
      "create, a wrong word": () => module.Context.create({ powerPreference: "fast" }),
      "create, an unknown feature": () => module.Context.create({ without: ["subgroup"] }),
      "create, a text": () => module.Context.create("fast"),
      "fromDevice, an object": () => module.Context.fromDevice({}),
    };
    const found = {};
    for (const [name, call] of Object.entries(calls)) found[name] = await outcome(call);
    return found;
  });
  const detached = (name, arrays) => `TensorError: tensor \`${name}\`: expected a Buffer of this context, or for ${arrays}, got a detached Float32Array`;
  const f32 = "f32 a Float32Array or Float16Array";
  const f16 = "f16 a Float16Array, Uint16Array (bits) or Float32Array (rounded)";
  const foreign = (name) => `TensorError: tensor \`${name}\`: expected a Buffer of this context's device, got one of another device`;
  assert.deepEqual(found, {
    "attention, detached q": detached("q", f32),
    "attention, detached v of f16": detached("v", f16),
    "attention, detached slopes": "ConfigError: configuration `alibiSlopes`: expected an array of numbers, got a detached Float32Array",
    "attention, detached list": "ConfigError: configuration `keyLengths`: expected an array of whole numbers from 0 to 4294967295, got a detached Uint32Array",
    "attention, detached bias": "TensorError: tensor `bias`: expected a Buffer or typed array, got a detached Float32Array",
    "plan.run, detached k": detached("k", f32),
    "linear, detached gate": detached("gate", f32),
    "linear, detached beta": detached("beta", f32),
    "linear plan.run, detached q": detached("q", f32),
    "the oracle, detached k": detached("k", f32),
    "attention, a foreign buffer": foreign("q"),
    "plan.run, a foreign output": foreign("out"),
    "attention, a getter": "ConfigError: configuration `q`: expected a property that can be read, got an exception: from a getter",
    "attention, a proxy": "ConfigError: configuration `options`: expected a property that can be read, got an exception: from a proxy",
    "attention, a revoked proxy": "TypeError: Cannot perform 'IsArray' on a proxy that has been revoked",
    "attention, a broken device": "Error: broken at once",
    "attention, a broken queue": "Error: broken later",
    "attention, nothing": "ConfigError: configuration `options`: expected an object, got nothing",
    "plan.run, nothing": "ConfigError: configuration `tensors`: expected an object, got nothing",
    "planAttention, a shape of text": "ConfigError: configuration `shape`: expected an object, got `1x2`",
    "planLinear, a wrong shape": "ConfigError: configuration `shape.key_heads`: expected at least 1 and a divisor of the 2 query heads (at least 1 too), got 3",
    "bound.run, a fraction": "ConfigError: configuration `times`: expected a whole number from 0 to 4294967295, got 1.5",
    "create, a wrong word": 'ConfigError: configuration `powerPreference`: expected "high-performance", "low-power", got `fast`',
    "create, an unknown feature": "ConfigError: configuration `without`: expected features among subgroups, subgroups-f16, shader-f16, timestamp-query, got `subgroup`",
    "create, a text": "ConfigError: configuration `options`: expected an object, got `fast`",
    "fromDevice, an object": "ConfigError: configuration `device`: expected a GPUDevice, got an object",
  });
});

test("options without effect are refused", async () => {
  const found = await inPage(async ({ module, context, numbers, shape, q, k, v, gate, beta, outcome }) => {
    const given = { q, k, v, shape };
    const [plan, decay] = [await context.planAttention({ shape }), await context.planLinear({ shape })];
    const state = numbers(2 * 8 * 8, 8);
    const attention = (options) => () => context.attention({ ...given, ...options });
    const linear = (options) => () => context.linear({ ...given, ...options });
    const list = { offsets: [0, 1], entries: [0], blockQ: 16 };
    const calls = {
      // Unknown names.
      "attention, msk": attention({ msk: "causal" }),
      "linear, mask": linear({ mask: "causal" }),
      "plan.run, mask": () => plan.run({ q, k, v, mask: "causal" }),
      "linear plan.run, rule": () => decay.run({ q, k, v, rule: "gated" }),
      "planAttention, q": () => context.planAttention({ shape, q }),
      "shape, keyLength": attention({ shape: { heads: 2, len: 5, headDim: 8, keyLength: 5 } }),
      "sparse, block": attention({ sparse: { pattern: "sink(1)", block: 16 } }),
      "create, withot": () => module.Context.create({ withot: [] }),
      // Known ones that the others leave without effect.
      "sigmoidBias": attention({ sigmoidBias: 1 }),
      "keyLengths": attention({ keyLengths: [3] }),
      "planAttention, keyLengths": () => context.planAttention({ shape, keyLengths: [3] }),
      "denseMask": attention({ denseMask: new Uint8Array(25) }),
      "lseOut": attention({ lseOut: context.buffer(10) }),
      "lse and scores": attention({ lse: true, scores: "scaled" }),
      "scores and blockSums": attention({ scores: "scaled", blockSums: [16, 16] }),
      "plan.run, bias": () => plan.run({ q, k, v, bias: numbers(25, 1) }),
      "plan.run, lseOut": () => plan.run({ q, k, v, lseOut: context.buffer(10) }),
      "pattern and list": attention({ sparse: { pattern: "sink(1)", offsets: [0, 1] } }),
      "oracle and heads": attention({ sparse: { oracle: 0.5, heads: "key" } }),
      "the oracle, sparse": () => context.oracle({ ...given, sparse: list }),
      "the oracle, lse": () => context.oracle({ ...given, lse: true }),
      "gate": linear({ gate }),
      "gatePer": linear({ gatePer: "key-dim", rule: "delta", beta }),
      "beta": linear({ beta, rule: "gated", gate }),
      "decay": linear({ decay: [1, 2], rule: "delta", beta }),
      "planLinear, decay": () => context.planLinear({ shape, decay: [1, 2], rule: "delta" }),
      "chunk": linear({ chunk: 16, variant: "recurrent" }),
      "normalizer": linear({ normalizer: numbers(16, 1), carry: true }),
      "linear plan.run, gate": () => decay.run({ q, k, v, gate }),
      "linear plan.run, state": () => decay.run({ q, k, v, state }),
      "carry false": linear({ state, carry: false }),
      "a state without its normalizer": linear({ state, normalize: 1e-6 }),
      "checkAttention, layout": async () => module.checkAttention({ ...given, layout: "batch,len,heads,dim" }, q),
      "checkAttention, blockSums": async () => module.checkAttention({ ...given, blockSums: [16, 16] }, q),
      "checkLinear, gate": async () => module.checkLinear({ ...given, gate }, q),
    };
    const found = {};
    for (const [name, call] of Object.entries(calls)) found[name] = (await outcome(call)).replace(/^ConfigError: configuration /, "");
    return found;
  });
  const needs = (name, need, got) => `\`${name}\`: expected nothing, for it has an effect only with ${need}, got ${got}`;
  const unused = (name, values) => `TensorError: tensor \`${name}\`: expected nothing: the configuration does not use it, got ${values} values`;
  const gated = "the rules gated and gated-delta";
  const list = "a list of `offsets` and `entries`";
  const one = (got) => `\`options\`: expected one of lse, scores and blockSums, got ${got}`;
  const tensors = "q, k, v, out, lseOut, bias";
  const linear = "q, k, v, gate, beta, state, normalizer, out";
  const unknown = (what, name) => new RegExp(`^\`${what}\`: expected options among .+, got \`${name}\`$`);
  const patterns = {
    "attention, msk": unknown("options", "msk"),
    "linear, mask": unknown("options", "mask"),
    "planAttention, q": unknown("options", "q"),
    "sparse, block": unknown("sparse", "block"),
  };
  for (const [name, pattern] of Object.entries(patterns)) {
    assert.match(found[name], pattern);
    delete found[name];
  }
  assert.deepEqual(found, {
    "plan.run, mask": `\`tensors\`: expected options among ${tensors}, got \`mask\``,
    "linear plan.run, rule": `\`tensors\`: expected options among ${linear}, got \`rule\``,
    "shape, keyLength": "`shape`: expected options among batch, heads, keyHeads, valueHeads, len, keyLen, headDim, valueDim, got `keyLength`",
    "create, withot": "`options`: expected options among powerPreference, without, asGpu, got `withot`",
    "sigmoidBias": needs("sigmoidBias", '`activation: "sigmoid"`', "1"),
    "keyLengths": unused("key_lengths", 1),
    "planAttention, keyLengths": unused("key_lengths", 1),
    "denseMask": unused("mask", 5),
    "lseOut": needs("lseOut", "`lse: true`", "an object"),
    "lse and scores": one("scores and lse"),
    "scores and blockSums": one("scores and blockSums"),
    "plan.run, bias": needs("bias", "a plan made with `bias`", "Float32Array"),
    "plan.run, lseOut": needs("lseOut", "a plan made with `lse: true`", "an object"),
    "pattern and list": "`offsets`: expected nothing, for it has an effect only with a list, without a pattern or an oracle, got Array",
    "oracle and heads": needs("heads", list, "`key`"),
    "the oracle, sparse": needs("sparse", "a call of attention, not of an oracle", "an object"),
    "the oracle, lse": "`options`: expected none of lse, scores and blockSums for an oracle, which gives a list, got one of them",
    "gate": needs("gate", gated, "Float32Array"),
    "gatePer": needs("gatePer", gated, "`key-dim`"),
    "beta": needs("beta", "the rules delta and gated-delta", "Float32Array"),
    "decay": needs("decay", "the rule decay", "Array"),
    "planLinear, decay": needs("decay", "the rule decay", "Array"),
    "chunk": needs("chunk", "another variant than recurrent", "16"),
    "normalizer": needs("normalizer", "`normalize` and a `state`", "Float32Array"),
    "linear plan.run, gate": needs("gate", gated, "Float32Array"),
    "linear plan.run, state": needs("state", "a plan made with `state`", "Float32Array"),
    "carry false": "`carry`: expected true, or nothing, with a state, got false",
    "a state without its normalizer": "`state`: expected `state` and `normalizer` together, got `state` alone",
    "checkAttention, layout": '`layout`: expected "batch,heads,len,dim" for checks, got another layout',
    "checkAttention, blockSums": "`blockSums`: expected none: checks compare outputs and scores, got a size",
    "checkLinear, gate": needs("gate", gated, "Float32Array"),
  });
});

test("numbers out of range are refused, as the program refuses them", async () => {
  const found = await inPage(async ({ module, context, shape, q, k, v, gate, beta, outcome }) => {
    const given = { q, k, v, shape };
    const kept = await context.planLinear({ shape, rule: "gated" });
    const halves = Uint16Array.from(gate, () => 0xbc00);
    const wrong = (value) => gate.map((x, i) => (i === 3 ? value : x));
    const perDim = Float32Array.from({ length: 80 }, (_, i) => (i === 79 ? 1e-3 : -0.1));
    const both = { batch: 2, heads: 2, len: 5, headDim: 8 };
    const [q2, k2, v2] = [q, k, v].map((x) => Float32Array.from([...x, ...x]));
    const calls = {
      "shape, a negative size": () => context.attention({ ...given, shape: [1, 2, -9, 16] }),
      "shape, a fraction": () => context.linear({ ...given, shape: Float32Array.of(1, 2, 5.5, 16) }),
      "shape, three numbers": () => context.attention({ ...given, shape: [1, 2, 5] }),
      "shape, a text": () => context.attention({ ...given, shape: [1, 2, "5", 8] }),
      "positions, a fraction": () => context.attention({ ...given, mask: "causal", positions: [0.5] }),
      "a positive gate": () => context.linear({ ...given, rule: "gated", gate: wrong(0.25) }),
      "a NaN gate": () => context.linear({ ...given, rule: "gated-delta", beta, gate: wrong(NaN) }),
      "a positive gate per key dimension": () => context.linear({ ...given, rule: "gated", gatePer: "key-dim", gate: perDim }),
      "a positive gate in f16": () => context.linear({ ...given, rule: "gated", gate: halves.with(2, 0x3c00) }),
      "plan.run, a positive gate": () => kept.run({ q, k, v, gate: wrong(1) }),
      "bind, a positive gate": async () => kept.bind({ q, k, v, gate: wrong(1) }),
      "checkLinear, a positive gate": async () => module.checkLinear({ ...given, rule: "gated", gate: wrong(2) }, q),
      "a gate of 0 and of -Infinity": () => context.linear({ ...given, rule: "gated", gate: wrong(-Infinity).with(4, 0) }),
      "gates in f16": () => context.linear({ ...given, rule: "gated", gate: halves }),
      "a slope of NaN": () => context.linear({ ...given, decay: [NaN, 1] }),
      "a density above 1": () => context.attention({ ...given, sparse: { oracle: 1.5 } }),
      "a block of 0": () => context.attention({ ...given, sparse: { pattern: "random(0.5)", blockQ: 0 } }),
      "rows that may be heads or batch entries": () => context.attention({ q: q2, k: k2, v: v2, shape: both, keyBias: new Float32Array(10) }),
      "pairs, a head too many": async () => module.pairs({ shape }, 2),
      "lightningSlopes, a negative number": async () => module.lightningSlopes(-1, 0, 1),
    };
    const found = {};
    for (const [name, call] of Object.entries(calls)) found[name] = await outcome(call);
    return found;
  });
  const config = (name, rest) => `ConfigError: configuration \`${name}\`: expected ${rest}`;
  const gate = (got) => `TensorError: tensor \`gate\`: expected logarithms of decay, at most 0, got ${got}`;
  const sizes = "whole numbers from 0 to 4294967295";
  assert.deepEqual(found, {
    "shape, a negative size": config("shape", `${sizes}, got -9 at index 2`),
    "shape, a fraction": config("shape", `${sizes}, got 5.5 at index 2`),
    "shape, three numbers": config("shape", "the four numbers [batch, heads, len, dim], got 3 numbers"),
    "shape, a text": config("shape", `${sizes}, got \`5\` at index 2`),
    "positions, a fraction": config("positions", "whole numbers from -2147483647 to 2147483647, got 0.5 at index 0"),
    "a positive gate": gate("0.25 at index 3"),
    "a NaN gate": gate("NaN at index 3"),
    "a positive gate per key dimension": gate("0.001 at index 79"),
    "a positive gate in f16": gate("1 at index 2"),
    "plan.run, a positive gate": gate("1 at index 3"),
    "bind, a positive gate": gate("1 at index 3"),
    "checkLinear, a positive gate": gate("2 at index 3"),
    "a gate of 0 and of -Infinity": "settled",
    "gates in f16": "settled",
    "a slope of NaN": "TensorError: tensor `decay`: expected finite slopes that are not negative, got NaN",
    "a density above 1": config("oracle", "a share of blocks above 0, up to 1, got 1.5"),
    "a block of 0": config("keys.block_q", "queries per row of the list that are a multiple of 16, got 0"),
    "rows that may be heads or batch entries": config("keyBias", "rows for each batch entry and head, [2, 2, …], got 2 rows, one a head or one a batch entry"),
    "pairs, a head too many": config("head", "a number below 2, got 2"),
    "lightningSlopes, a negative number": config("heads", "a whole number from 0 to 4294967295, got -1"),
  });
});

test("before init() every call says that it is missing", async () => {
  const { page, errors } = await browser.page("tests/blank.html");
  const found = await page.evaluate(async () => {
    const module = await import("/pkg/wgpu_attention.js");
    const outcome = (call) => {
      try {
        return Promise.resolve(call()).then(() => "settled", (error) => `rejected: ${error}`);
      } catch (error) {
        return `thrown: ${error}`;
      }
    };
    const calls = [
      () => module.Context.create(),
      () => module.Context.create({ asGpu: true }),
      () => module.Context.fromDevice({}),
      () => module.pairs({ shape: [1, 1, 1, 1] }),
      () => module.checkAttention({}, new Float32Array(1)),
      () => module.lightningSlopes(1, 0, 1),
      // Once it has been awaited, they work; a second time changes nothing.
      () => module.default().then(() => module.default()).then(() => module.Context.create()),
    ];
    const found = [];
    for (const call of calls) found.push(await outcome(call));
    return found;
  });
  const sentence = "InitError: wgpu-attention: expected `await init()` (the module's default export) before any other call, got a call without it";
  const [promises, others] = [`rejected: ${sentence}`, `thrown: ${sentence}`];
  assert.deepEqual(found, [promises, promises, promises, others, others, others, "settled"]);
  assert.deepEqual(errors, []);
  await page.close();
});
