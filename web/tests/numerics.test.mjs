// The numbers that come out in a browser, with its subgroups and without, against the f64 reference.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { open } from "./browser.mjs";

let browser;
before(async () => void (browser = await open()));
after(() => browser.close());

/** Runs the cases of `cases.js` in a page. */
async function judged(options, variant, linear) {
  const { page, errors } = await browser.page("tests/blank.html");
  const found = await page.evaluate(
    async ([options, variant, linear]) => {
      const module = await import("/pkg/wgpu_attention.js");
      await module.default();
      const { run } = await import("/tests/cases.js");
      const context = await module.Context.create(options);
      const features = [...context.device.features];
      const cases = features.includes("subgroups") || variant !== "subgroup" ? await run(module, context, { variant, linear }) : [];
      return { features, cases, pipelines: context.pipelines };
    },
    [options, variant, linear],
  );
  assert.deepEqual(errors, []);
  await page.close();
  return found;
}

function assertRight(cases, least) {
  for (const { name, ok, maxAbs, bound } of cases) assert.ok(ok, `${name}: off by ${maxAbs}, of ${bound}`);
  assert.ok(cases.length >= least, `${cases.length} cases`);
}

test("every family is right with subgroups hidden", async () => {
  const { features, cases } = await judged({ without: ["subgroups"] }, "tiled", true);
  assert.ok(!features.includes("subgroups"));
  assertRight(cases, 23);
});

test("attention is right in the kernel for CPUs", async () => {
  const { cases } = await judged({}, "rows", false);
  assertRight(cases, 15);
});

test("attention is right with subgroups, where the browser has them", async (t) => {
  const { features, cases } = await judged({}, "subgroup", false);
  if (!features.includes("subgroups")) {
    t.skip("this browser offers no subgroups");
    return;
  }
  assertRight(cases, 15);
});
