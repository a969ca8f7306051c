// Bench: times families over lengths, after their answers have been checked.

import { draw } from "./plot.js";
import { FAMILIES, breathe, check, normal, options, plan } from "./problem.js";

const $ = (selector) => document.querySelector(selector);

/** The size at which answers are checked, and the time that one measurement may take. */
const CHECK_LENGTH = 96;
const BUDGET_MS = 400;

function read(form) {
  const data = new FormData(form);
  const lengths = [...new Set(data.get("lengths").split(/[\s,]+/).filter(Boolean).map(Number))].sort((a, b) => a - b);
  if (lengths.length === 0 || lengths.some((length) => !(Number.isInteger(length) && length > 0))) {
    throw new Error("Lengths are whole numbers above 0, with commas between them.");
  }
  const families = data.getAll("family");
  if (families.length === 0) throw new Error("Choose at least one family.");
  return {
    families,
    lengths,
    heads: Number(data.get("heads")),
    dim: Number(data.get("dim")),
    dtype: data.get("dtype"),
    causal: data.get("causal") !== null,
    density: Number(data.get("density")),
  };
}

/** Queries, keys and values for a length. */
function tensors({ heads, dim }, length) {
  const count = heads * length * dim;
  return { q: normal(count, 1), k: normal(count, 2), v: normal(count, 3) };
}

/** A family's answer at a small size, against the f64 reference. */
async function judge(app, family, setting) {
  const given = { ...options(family, app.attention, { ...setting, length: CHECK_LENGTH, heads: Math.min(setting.heads, 2) }) };
  const numbers = tensors({ ...setting, heads: Math.min(setting.heads, 2) }, CHECK_LENGTH);
  const planned = await plan(family, app.context, given);
  const out = await planned.run(numbers);
  await breathe();
  const found = check(family, app.attention, { ...given, ...numbers }, out);
  app.shaders.set(family, { label: planned.variant, wgsl: planned.wgsl });
  planned.free();
  if (found.verdict === "unjudged") throw new Error(`${FAMILIES[family]}: ${found.unjudged} rows cannot be judged in f32: nothing was timed.`);
  if (!found.ok) throw new Error(`${FAMILIES[family]} is wrong by ${found.maxAbs}, where ${found.bound} is allowed: nothing was timed.`);
  return found;
}

/** Milliseconds per call: the best of several groups of calls, each group long enough to time. */
async function measure(app, family, setting, length, stopped) {
  const given = options(family, app.attention, { ...setting, length });
  const planned = await plan(family, app.context, given);
  const buffers = {};
  for (const [name, numbers] of Object.entries(tensors(setting, length))) {
    buffers[name] = app.context.buffer(numbers, setting.dtype);
    await breathe();
  }
  const bound = planned.bind(buffers);
  try {
    const timed = async (times) => {
      const start = performance.now();
      await bound.run(times);
      return (performance.now() - start) / times;
    };
    const first = await timed(1);
    const times = Math.max(1, Math.min(64, Math.floor(BUDGET_MS / 8 / Math.max(first, 0.05))));
    let best = first;
    const end = performance.now() + BUDGET_MS;
    while (performance.now() < end && !stopped()) best = Math.min(best, await timed(times));
    return best;
  } finally {
    for (const buffer of [...Object.values(buffers), bound.out]) {
      buffer?.destroy();
      buffer?.free();
    }
    bound.free();
    planned.free();
  }
}

/** The table: a row per length, a column per family. */
function tabulate(rows, { lengths, families }) {
  const table = $("#results");
  const row = (cells, tag) => {
    const line = document.createElement("tr");
    cells.forEach((text, index) => {
      const cell = document.createElement(index === 0 ? "th" : tag);
      cell.textContent = text;
      cell.scope = index === 0 && tag === "td" ? "row" : "col";
      line.append(cell);
    });
    return line;
  };
  table.tHead.replaceChildren(row(["length", ...families.map((family) => FAMILIES[family])], "th"));
  const cell = (length, family) => rows.find((r) => r.length === length && r.family === family)?.ms;
  const shown = (ms) => (ms === undefined ? "" : ms.toPrecision(3));
  table.tBodies[0].replaceChildren(...lengths.map((length) => row([length, ...families.map((f) => shown(cell(length, f)))], "td")));
}

/** Wires the view. */
export function startBench(app) {
  const form = $("#bench-form");
  const [status, progress, stop] = [$("#bench-status"), $("#progress"), $("#stop")];
  let stopping = false;
  let report = null;

  const busy = (is) => {
    form.querySelector("[type=submit]").disabled = is;
    stop.disabled = !is;
    for (const id of ["#copy", "#download"]) $(id).disabled = is || !report?.rows.length;
  };

  async function run() {
    const setting = read(form);
    const { families, lengths } = setting;
    const rows = [];
    const checks = {};
    report = { adapter: app.context.adapter, features: app.context.features, userAgent: navigator.userAgent, date: new Date().toISOString(), ...setting, checks, rows };
    const total = families.length * (lengths.length + 1);
    let done = 0;
    const step = () => (progress.value = ++done / total);
    progress.value = 0;
    draw($("#plot"), rows, lengths, FAMILIES);
    tabulate(rows, setting);
    for (const family of families) {
      status.textContent = `Checking ${FAMILIES[family]} against the f64 reference …`;
      checks[family] = await judge(app, family, setting);
      step();
      if (stopping) return "Stopped.";
    }
    for (const length of lengths) {
      for (const family of families) {
        status.textContent = `Timing ${FAMILIES[family]}, ${length} tokens …`;
        const ms = await measure(app, family, setting, length, () => stopping);
        if (stopping) return `Stopped after ${rows.length} measurements.`;
        rows.push({ family, length, ms });
        draw($("#plot"), rows, lengths, FAMILIES);
        tabulate(rows, setting);
        step();
      }
    }
    const worst = Math.max(...Object.values(checks).map(({ maxAbs, bound }) => maxAbs / bound));
    return `Done. Every answer was within its bound (the worst at ${Math.round(100 * worst)} %).`;
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!app.context) return;
    stopping = false;
    busy(true);
    try {
      status.textContent = await run();
    } catch (error) {
      status.textContent = error.message;
    }
    busy(false);
  });
  stop.addEventListener("click", () => {
    stopping = true;
    stop.disabled = true;
    status.textContent = "Stopping …";
  });
  const json = () => `${JSON.stringify(report, null, 2)}\n`;
  $("#copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(json());
    status.textContent = "Copied.";
  });
  $("#download").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([json()], { type: "application/json" }));
    link.download = "wgpu-attention-bench.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  document.addEventListener("device-ready", () => {
    // A CPU takes seconds where a GPU takes milliseconds.
    if (app.context.isCpu) form.elements.lengths.value = "64, 128, 256, 512";
    if (app.context.isCpu) form.elements.heads.value = 2;
    if (app.context.isCpu) form.elements.dim.value = "32";
    const lengths = form.elements.lengths.value.split(",").map(Number);
    draw($("#plot"), [], lengths, FAMILIES);
    busy(false);
  });
  document.addEventListener("device-lost", () => busy(false));
}
