// What `npm pack` makes, installed in an empty project: the README's lines run there, and their types are right.

import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { open } from "./browser.mjs";

const web = fileURLToPath(new URL("..", import.meta.url));
const npm = (words, cwd) => execFileSync("npm", [...words.split(" "), "--loglevel=error"], { cwd, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
const block = (text) => /```js\n(.*?)```/s.exec(text)?.[1];

let project;
let packed;
const lines = block(readFileSync(join(web, "README.md"), "utf8"));
before(() => {
  project = mkdtempSync(join(tmpdir(), "wgpu-attention-"));
  [packed] = JSON.parse(npm(`pack --json --pack-destination ${project}`, web));
  writeFileSync(join(project, "package.json"), JSON.stringify({ name: "empty", private: true, type: "module" }));
  npm(`install --offline --no-audit --no-fund ./${packed.filename}`, project);
});
after(() => rmSync(project, { recursive: true, force: true }));

test("the package is a module, its types and the wasm", () => {
  const files = packed.files.map(({ path }) => path).sort();
  assert.deepEqual(files, ["README.md", "package.json", "pkg/wgpu_attention.d.ts", "pkg/wgpu_attention.js", "pkg/wgpu_attention_bg.wasm"]);
});

test("the READMEs show the same lines", () => {
  assert.ok(readFileSync(join(web, "../README.md"), "utf8").includes(lines));
});

test("the README's lines run in a page", async () => {
  const imports = { "wgpu-attention": "./node_modules/wgpu-attention/pkg/wgpu_attention.js" };
  const script = `${lines}
import { checkAttention } from "wgpu-attention";
const given = { q, k, v, shape, rows: 32 };
globalThis.found = [
  checkAttention({ ...given, mask: "causal & (window(255,0) | sink(4))", dtype: "f16" }, out),
  checkAttention({ ...given, mask: "causal", sparse: "sink(4) + window(60)" }, await buffer.read()),
];
const other = await Context.fromDevice(ctx.device);
const again = await other.attention({ q: other.buffer(q), k: other.buffer(k), v: other.buffer(v), shape, mask: "causal & (window(60,0) | sink(4))" });
found.push(checkAttention({ ...given, mask: "causal & (window(60,0) | sink(4))" }, await again.read()));
globalThis.facts = { same: other.device === ctx.device, buffer: buffer.gpuBuffer instanceof GPUBuffer, out: out.constructor.name };`;
  const page = `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>The README's lines</title>
<script type="importmap">${JSON.stringify({ imports })}</script><script type="module">${script}</script>`;
  writeFileSync(join(project, "index.html"), page);
  const browser = await open(project);
  try {
    const { page, errors } = await browser.page("index.html");
    await page.waitForFunction(() => globalThis.facts, null, { timeout: 120_000 }).catch((error) => assert.deepEqual(errors, [], String(error)));
    const { found, facts } = await page.evaluate(() => ({ found: globalThis.found, facts: globalThis.facts }));
    for (const { ok, maxAbs, bound } of found) assert.ok(ok, `off by ${maxAbs}, of ${bound}`);
    assert.equal(found.length, 3);
    assert.deepEqual(facts, { same: true, buffer: true, out: (await page.evaluate(() => "Float16Array" in globalThis)) ? "Float16Array" : "Uint16Array" });
    assert.deepEqual(errors, []);
  } finally {
    await browser.close();
  }
});

test("the types say what the README does, and refuse what is not there", () => {
  const options = {
    compilerOptions: { strict: true, noEmit: true, module: "nodenext", target: "es2024", lib: ["esnext", "dom"], types: ["@webgpu/types"], typeRoots: [join(web, "node_modules")] },
    include: ["right.ts", "wrong.ts"],
  };
  writeFileSync(join(project, "tsconfig.json"), JSON.stringify(options));
  writeFileSync(
    join(project, "right.ts"),
    `${lines}
const array: Float32Array | Uint16Array | { length: number } = out;
const gpu: GPUBuffer = buffer.gpuBuffer;
const { out: o, lse } = await ctx.attention({ q, k, v, shape, lse: true });
const state = await ctx.linear({ q, k, v, shape, featureMap: "silu", carry: true });
export { array, gpu, o, lse, state };\n`,
  );
  writeFileSync(
    join(project, "wrong.ts"),
    `import { Context } from "wgpu-attention";
declare const ctx: Context, x: Float32Array;
// @ts-expect-error: no such option
await ctx.attention({ q: x, k: x, v: x, shape: [1, 1, 1, 1], msk: "causal" });
// @ts-expect-error: no such dtype
ctx.buffer(x, "f8");\n`,
  );
  const tsc = spawnSync(process.execPath, [join(web, "node_modules/typescript/bin/tsc"), "--project", project], { encoding: "utf8" });
  assert.equal(tsc.stdout, "");
  assert.equal(tsc.status, 0);
});
