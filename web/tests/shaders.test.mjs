// Every shader of the web target, given to the browser's compiler: it checks what naga does not.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { open } from "./browser.mjs";

const folder = process.env.WEB_SHADERS;
let browser;
before(async () => void (browser = await open()));
after(() => browser.close());

/** The first complaint about each of some shaders, `null` where there is none. */
function compile(page, shaders) {
  return page.evaluate(async (shaders) => {
    const { device } = globalThis;
    const messages = shaders.map(async ({ wgsl }) => {
      device.pushErrorScope("validation");
      const module = device.createShaderModule({ code: wgsl });
      const scope = device.popErrorScope();
      const { messages } = await module.getCompilationInfo();
      const first = messages.find(({ type }) => type === "error");
      const error = await scope;
      return first ? `${first.lineNum}:${first.linePos}: ${first.message}` : (error?.message ?? null);
    });
    return Promise.all(messages);
  }, shaders);
}

test("the browser compiles every shader", { skip: !folder && "WEB_SHADERS names no folder of shaders" }, async () => {
  const { page, errors } = await browser.page("tests/blank.html");
  await page.evaluate(async () => {
    const adapter = await navigator.gpu.requestAdapter();
    const requiredFeatures = ["subgroups"].filter((name) => adapter.features.has(name));
    globalThis.device = await adapter.requestDevice({ requiredFeatures });
  });
  assert.match((await compile(page, [{ wgsl: "fn main() { oops }" }]))[0], /expected/);
  let compiled = 0;
  const labels = new Set();
  const hasSubgroups = await page.evaluate(() => device.features.has("subgroups"));
  for (const file of readdirSync(folder)) {
    const all = JSON.parse(readFileSync(join(folder, file), "utf8"));
    const shaders = all.filter(({ wgsl }) => hasSubgroups || !wgsl.includes("enable subgroups;"));
    for (let first = 0; first < shaders.length; first += 32) {
      const part = shaders.slice(first, first + 32);
      for (const [index, complaint] of (await compile(page, part)).entries()) {
        assert.equal(complaint, null, `${part[index].label}: ${complaint}`);
        labels.add(part[index].label);
        compiled++;
      }
    }
  }
  assert.ok(compiled > 1000 && labels.size >= 12, `${compiled} shaders of ${[...labels]}`);
  console.log(`the browser compiled ${compiled} shaders: ${[...labels].sort().join(", ")}`);
  assert.deepEqual(errors, []);
});
