// The demo page as a visitor has it: every tab, what goes wrong and what is said then. Screenshots of each tab in
// both colour schemes are left in `artefacts`.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { open } from "./browser.mjs";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const PATIENCE = 180_000;

let browser;
before(async () => {
  mkdirSync(path("../artefacts"), { recursive: true });
  browser = await open();
});
after(() => browser.close());

/** The page with a device, showing a tab. */
async function visit(tab, options) {
  const visit = await browser.page(`index.html#${tab}`, { viewport: { width: 1180, height: 900 }, ...options });
  visit.page.setDefaultTimeout(PATIENCE);
  await visit.page.waitForSelector("body[data-state=ready]");
  return visit;
}

/** Pictures of a tab in light and dark. */
async function shoot(page, name) {
  for (const colorScheme of ["dark", "light"]) {
    await page.emulateMedia({ colorScheme });
    await page.waitForTimeout(200);
    await page.screenshot({ path: path(`../artefacts/${name}-${colorScheme}.png`), fullPage: true });
  }
}

const text = (page, selector) => page.textContent(selector);

/** Runs the bench on lengths and waits until its last word. */
async function bench(page, lengths) {
  await page.fill("[name=lengths]", lengths);
  await page.click("#bench-form [type=submit]");
}

test("Bench checks every family, times it, draws, tabulates and exports", async () => {
  const { page, errors } = await visit("bench", { acceptDownloads: true });
  assert.match(await text(page, "#device"), /swiftshader/i);
  await bench(page, "64, 128");
  await page.waitForFunction(() => !document.querySelector("#stop").disabled);
  await page.waitForFunction(() => document.querySelector("#stop").disabled);
  assert.match(await text(page, "#bench-status"), /^Done\. Every answer was within its bound/);
  assert.equal(await page.getAttribute("#progress", "value"), "1");
  assert.equal(await page.locator("#plot circle").count(), 8);
  assert.equal(await page.locator("#results tbody td").count(), 8);
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  const report = JSON.parse(readFileSync(await download.path(), "utf8"));
  assert.deepEqual(Object.keys(report.checks), ["flash", "sigmoid", "sparse", "lightning"]);
  assert.ok(Object.values(report.checks).every(({ ok }) => ok));
  assert.equal(report.rows.length, 8);
  assert.ok(report.rows.every(({ ms }) => ms > 0));
  await shoot(page, "bench");
  assert.deepEqual(errors, []);
  await page.close();
});

test("the stop button stops", async () => {
  const { page, errors } = await visit("bench");
  await bench(page, "64, 1024, 2048, 4096");
  await page.waitForFunction(() => document.querySelectorAll("#plot circle").length > 0);
  const start = performance.now();
  await page.click("#stop");
  await page.waitForFunction(() => /^Stopped/.test(document.querySelector("#bench-status").textContent));
  assert.ok(performance.now() - start < 60_000);
  assert.ok((await page.locator("#plot circle").count()) < 16);
  assert.equal(await page.isEnabled("#bench-form [type=submit]"), true);
  assert.deepEqual(errors, []);
  await page.close();
});

/** Waits for the view to draw again, or to complain, after an action. */
async function redrawn(page, action) {
  const before = await page.evaluate(() => document.querySelector("#see").dataset.drawn ?? "0");
  await action();
  await page.waitForFunction((before) => (document.querySelector("#see").dataset.drawn ?? "0") !== before, before);
}

const numbers = (page) => page.locator("#see-numbers dd").allTextContents();

test("See draws real maps, their patterns and what these cost", async () => {
  const { page, errors } = await visit("see");
  await redrawn(page, () => {});
  assert.equal(await page.locator("#heads canvas").count(), 9);
  const [pairs, covered, error, verdict] = await numbers(page);
  assert.equal(verdict, "right");
  // 4 sinks and 32 positions of 192: Σ min(i + 1, 36) of Σ (i + 1) pairs.
  let [kept, all] = [0, 0];
  for (let i = 0; i < 192; i++) {
    all += i + 1;
    for (let j = 0; j <= i; j++) kept += j < 4 || j >= i - 31 ? 1 : 0;
  }
  assert.equal(pairs, `${((100 * kept) / all).toFixed(1)} %`);
  assert.ok(Number.parseFloat(covered) > 50 && Number.parseFloat(covered) < 100, covered);
  assert.ok(Number(error) > 0 && Number(error) < 1, error);

  const { width } = await page.locator("#heads canvas >> nth=1").boundingBox();
  await page.hover("#heads canvas >> nth=1", { position: { x: 0.1 * width, y: 0.5 * width } });
  assert.match(await text(page, "#hover"), /^Head 1, query 9\d, key (1|2)\d: weight [0-9.e-]+, left out by the pattern$/);
  await page.focus("#heads canvas >> nth=0");
  for (const key of ["Shift+ArrowDown", "ArrowDown", "ArrowRight"]) await page.keyboard.press(key);
  assert.match(await text(page, "#hover"), /^Head 0, query 17, key 1: weight [0-9.e-]+, kept/);
  await shoot(page, "see");

  await redrawn(page, () => page.selectOption("#see-form [name=pattern]", "oracle"));
  const oracle = await numbers(page);
  assert.equal(oracle[3], "right");
  await redrawn(page, () => page.selectOption("#see-form [name=pattern]", "random"));
  const random = await numbers(page);
  assert.equal(random[3], "right");
  // As many blocks, chosen by their weights and by chance.
  assert.ok(Number.parseFloat(oracle[1]) > Number.parseFloat(random[1]) + 5, `${oracle[1]} by the oracle, ${random[1]} by chance`);
  await redrawn(page, () => page.selectOption("#see-form [name=pattern]", ""));
  assert.deepEqual((await numbers(page)).slice(0, 3), ["all", "100.00 %", "0.00e+0"]);
  assert.deepEqual(errors, []);
  await page.close();
});

test("an invalid mask is told at its position, a truncated file is refused", async () => {
  const { page, errors } = await visit("see");
  await redrawn(page, () => {});
  await page.fill("#see-form [name=mask]", "causal & wndow(3)");
  await page.click("#see-form [type=submit]");
  await page.waitForSelector("#mask-error:not(:empty)");
  const lines = (await text(page, "#mask-error")).split("\n");
  assert.equal(lines[0], "causal & wndow(3)");
  assert.equal(lines[1].indexOf("^"), "causal & ".length);
  assert.match(lines[2], /column 10: expected .*`window\(L,R\)`.* got `wndow`/);
  assert.equal(await page.getAttribute("#see-form [name=mask]", "aria-invalid"), "true");
  await redrawn(page, async () => {
    await page.fill("#see-form [name=mask]", "causal & window(63,0)");
    await page.keyboard.press("Enter");
  });
  assert.equal(await text(page, "#mask-error"), "");

  const whole = readFileSync(path("../sample.safetensors"));
  const give = (buffer) => page.setInputFiles("#see-form [name=file]", { name: "mine.safetensors", mimeType: "application/octet-stream", buffer });
  for (const length of [4, 40, 2000]) {
    await page.evaluate(() => (document.querySelector("#mask-error").textContent = ""));
    await give(whole.subarray(0, length));
    await page.waitForSelector("#mask-error:not(:empty)");
    assert.match(await text(page, "#mask-error"), /^safetensors: .*expected .*(truncated|got 4)/);
  }
  await redrawn(page, () => give(whole));
  assert.match(await text(page, "#see-source"), /^mine\.safetensors: 9 query heads over 3 key heads of 64, f16, 192 tokens\.$/);
  assert.deepEqual(errors, []);
  await page.close();
});

test("Explain shows every family's formula and the shader that ran", async () => {
  const { page, errors } = await visit("explain");
  assert.equal(await page.locator("#families math").count(), 4);
  for (const [index, label] of [/attention\.(rows|tiled|subgroup)/, /attention\./, /attention\./, /linear\.columns/].entries()) {
    await page.click(`#families button >> nth=${index}`);
    await page.waitForSelector("dialog[open]");
    assert.match(await text(page, "#source-title"), label);
    assert.match(await text(page, "#source code"), /@compute @workgroup_size/);
    if (index < 3) await page.keyboard.press("Escape");
  }
  await page.screenshot({ path: path("../artefacts/explain-source.png") });
  await page.click("#source-close");
  await shoot(page, "explain");
  assert.deepEqual(errors, []);
  await page.close();
});

test("a lost device is told, and a restart goes on", async () => {
  const { page, errors } = await visit("bench");
  await page.evaluate(() => {
    const request = GPUAdapter.prototype.requestDevice;
    GPUAdapter.prototype.requestDevice = async function (...all) {
      return (globalThis.lastDevice = await request.apply(this, all));
    };
  });
  // The page's first device came before the eyes above; the second is the one to lose twice.
  const lose = async (how) => {
    await page.evaluate(how);
    await page.waitForSelector("body[data-state=lost]");
    assert.match(await text(page, "#notice p"), /^The device was lost: .*restart/);
    await page.click("#notice button");
    await page.waitForSelector("body[data-state=ready]");
    assert.equal(await page.isHidden("#notice"), true);
  };
  await page.evaluate(() => document.querySelector("#notice button").click());
  await page.waitForFunction(() => globalThis.lastDevice);
  await page.waitForSelector("body[data-state=ready]");
  await bench(page, "64");
  await page.waitForTimeout(300);
  await lose(() => globalThis.lastDevice.destroy());
  await page.waitForFunction(() => !document.querySelector("#bench-form [type=submit]").disabled);
  await bench(page, "64");
  await page.waitForFunction(() => /^Done/.test(document.querySelector("#bench-status").textContent));
  assert.deepEqual(errors, []);
  await page.close();
});

test("without WebGPU the page says what to do", async () => {
  const context = await browser.browser.newContext();
  await context.addInitScript(() => Object.defineProperty(Navigator.prototype, "gpu", { get: () => undefined }));
  const page = await context.newPage();
  await page.goto(`${browser.url}index.html`);
  await page.waitForSelector("body[data-state=missing]");
  assert.match(await text(page, "#notice p"), /^This browser offers no WebGPU here\. .*chrome:\/\/flags/);
  await context.close();
});

test("the page works by keyboard and at the width of a phone", async () => {
  const { page, errors } = await visit("bench", { viewport: { width: 360, height: 740 } });
  await page.focus("#tab-bench");
  for (const tab of ["see", "explain"]) {
    await page.keyboard.press("ArrowRight");
    assert.equal(await page.evaluate(() => document.activeElement.id), `tab-${tab}`);
    assert.equal(await page.isVisible(`#${tab}`), true);
    if (tab === "see") await page.waitForSelector("#heads canvas");
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `${tab} is ${overflow} pixels too wide`);
    await page.screenshot({ path: path(`../artefacts/${tab}-phone.png`) });
  }
  assert.deepEqual(errors, []);
  await page.close();
});
