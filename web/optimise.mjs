// Makes the module smaller, then fails if it is larger than it may be.

import { execFileSync } from "node:child_process";
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const LIMIT = 400_000; // bytes, gzipped
const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const module = path("pkg/wgpu_attention_bg.wasm");

// What rustc takes for granted on this target.
const features = ["bulk-memory", "multivalue", "mutable-globals", "nontrapping-float-to-int", "reference-types", "sign-ext"];
const enabled = features.map((feature) => `--enable-${feature}`);
const wasmOpt = path("node_modules/binaryen/bin/wasm-opt");
execFileSync(process.execPath, [wasmOpt, "-Os", ...enabled, module, "-o", `${module}.new`], { stdio: "inherit" });
renameSync(`${module}.new`, module);

const bytes = readFileSync(module);
const gzipped = gzipSync(bytes, { level: 9 }).length;
const report = { bytes: bytes.length, gzipped, limit: LIMIT };
writeFileSync(path("pkg/size.json"), `${JSON.stringify(report)}\n`);
console.log(`the module has ${report.bytes} bytes, ${gzipped} gzipped; ${LIMIT} are allowed`);
if (gzipped > LIMIT) process.exitCode = 1;
