// `npm install && npm start`, after `cargo xtask web --release`: times onnxruntime-web's MultiHeadAttention beside
// ours in the system's Chromium and prints a record as CSV. Exit status 1 if ours is wrong anywhere, or slower where
// the peer is right and kernels were planned as by default.

import { cpSync, mkdtempSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { open } from "../../../web/tests/browser.mjs";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const SHAPES = [[8, 512, 64], [8, 256, 64], [4, 512, 32]];

// One folder with both packages, since a page is served from one.
const root = mkdtempSync(join(tmpdir(), "ortweb-"));
cpSync(path("../../../web/pkg"), join(root, "pkg"), { recursive: true });
cpSync(path("../../../web/tests/blank.html"), join(root, "index.html"));
symlinkSync(path("."), join(root, "peer"));
const browser = await open(root);
console.log("date,adapter,peer,heads,len,dim,dtype,subgroups,planned_for,kernel,ours_ms,peer_ms,ratio,ours_error,peer_error,peer_right");
try {
  for (const [hidden, asGpu] of [[true, true], [true, false], [false, true]]) {
    const { page } = await browser.page("index.html");
    const { adapter, found } = await page.evaluate(async (given) => (await import("/peer/page.js")).compare(given), { shapes: SHAPES, hidden, asGpu, repetitions: 7 });
    for (const { heads, len, dim, variant, checks, best, ratio } of found) {
      const date = new Date().toISOString().slice(0, 10);
      const times = [best.ours, best.peer].map((ms) => ms.toFixed(1));
      const errors = [checks.ours, checks.peer].map(({ maxAbs }) => maxAbs.toExponential(1));
      // Right by a wider mark than our own: arithmetic of another order may err more than the rule allows ours.
      const right = checks.peer.maxAbs < 1e-4;
      console.log([date, adapter, "onnxruntime-web 1.30.0", heads, len, dim, "f32", hidden ? "hidden" : "shown", asGpu ? "GPU" : "CPU", variant, ...times, ratio.toFixed(2), ...errors, right].join(","));
      if (!checks.ours.ok || (right && !asGpu && ratio < 1)) process.exitCode = 1;
    }
    await page.close();
  }
} finally {
  await browser.close();
  rmSync(root, { recursive: true, force: true });
}
