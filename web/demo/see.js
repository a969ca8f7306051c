// See: the weights of real activations as one heat map per head, under a mask that can be edited, with a sparse
// pattern laid over it and what the pattern costs.

import { attentionTensors, parse } from "./safetensors.js";
import { breathe } from "./problem.js";

const $ = (selector) => document.querySelector(selector);

/** As many tokens of a file as a map shows. */
const MAX_LENGTH = 256;

/** The weight at which the colour scale starts; below it is paper. */
const FLOOR = 1e-4;

/** A colour of the style sheet as `[r, g, b]`. */
function colour(name) {
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  probe.fillRect(0, 0, 1, 1);
  return probe.getImageData(0, 0, 1, 1).data.slice(0, 3);
}

/** The option `sparse` that the controls ask for. */
function pattern(data) {
  const block = Number(data.get("block"));
  const blocks = { blockQ: block, blockK: block };
  switch (data.get("pattern")) {
    case "window":
      return { pattern: `sink(${data.get("sinks")}) + window(${data.get("window")})`, blockQ: 64, blockK: 16 };
    case "oracle":
      return { oracle: Number(data.get("density")), ...blocks };
    case "random":
      return { pattern: `random(${data.get("density")}, 7)`, ...blocks };
    case "bigbird":
      return { pattern: "bigbird(window=3, global=1, random=1)", ...blocks };
    case "strided":
      return { pattern: `strided(${data.get("stride")})`, blockQ: 64 };
    default:
      return null;
  }
}

/** The numbers of a 16-bit or f32 array. */
function decode(array) {
  if (!(array instanceof Uint16Array)) return Float32Array.from(array);
  return Float32Array.from(array, (bits) => {
    const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
  });
}

/** The norm of a difference, relative to the second. */
function distance(a, b) {
  let [difference, size] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    size += b[i] ** 2;
  }
  return Math.sqrt(difference / size);
}

/** Wires the view. */
export function startSee(app) {
  const form = $("#see-form");
  let problem = null;
  let drawn = null;
  let working = Promise.resolve();

  async function load(buffer, from) {
    problem = attentionTensors(parse(buffer), { maxLength: MAX_LENGTH });
    const { shape, dtype, full, prefix } = problem;
    const cut = full > shape.len ? `, the first ${shape.len} of ${full} tokens` : `, ${shape.len} tokens`;
    $("#see-source").textContent = `${from}${prefix ? ` (${prefix})` : ""}: ${shape.heads} query heads over ${shape.keyHeads} key heads of ${shape.headDim}, ${dtype}${cut}.`;
  }

  /** Weights and outputs of the mask alone, and outputs and pairs of the pattern within it. */
  async function compute() {
    const data = new FormData(form);
    const { shape, dtype, q, k, v } = problem;
    const { attention, context } = app;
    const dense = { shape, dtype, mask: data.get("mask") };
    // The text is read before anything else, so that a fault in it is told at once.
    const masked = attention.pairs({ ...dense });
    const scores = { ...dense, q, k, v, scores: "probabilities" };
    const weights = await context.attention(scores);
    const planned = await context.planAttention(dense);
    app.shaders.set("flash", { label: planned.variant, wgsl: planned.wgsl });
    const out = await planned.run({ q, k, v });
    planned.free();
    await breathe();
    // Few rows: the reference computes on the page's own thread.
    const checks = [attention.checkAttention({ ...scores, rows: 24 }, weights)];
    await breathe();
    checks.push(attention.checkAttention({ ...dense, q, k, v, rows: 24 }, out));
    let sparse = pattern(data);
    const kept = [];
    let [density, error] = [1, 0];
    if (sparse) {
      await breathe();
      if (sparse.oracle) sparse = await context.oracle({ ...dense, q, k, v, density: sparse.oracle, blockQ: sparse.blockQ, blockK: sparse.blockK });
      const plan = await context.planAttention({ ...dense, sparse });
      app.shaders.set("sparse", { label: plan.variant, wgsl: plan.wgsl });
      const sparseOut = await plan.run({ q, k, v });
      error = distance(decode(sparseOut), decode(out));
      plan.free();
      await breathe();
      checks.push(attention.checkAttention({ ...dense, sparse, q, k, v, rows: 24 }, sparseOut));
      for (let head = 0; head < shape.heads; head++) {
        kept.push(attention.pairs({ ...dense, sparse }, head));
        await breathe();
      }
      const count = (pairs) => pairs.reduce((sum, pair) => sum + pair, 0);
      density = kept.reduce((sum, pairs) => sum + count(pairs), 0) / (kept.length * Math.max(count(masked), 1));
    }
    drawn = { shape, weights, masked, kept, density, error, checks, sparse: Boolean(sparse) };
  }

  /** The share of a head's weights that the pattern keeps, averaged over queries that see anything. */
  function covered(head) {
    const { shape, weights, kept } = drawn;
    const size = shape.len * shape.len;
    let [sum, total] = [0, 0];
    for (let i = 0; i < size; i++) {
      const weight = weights[head * size + i];
      total += weight;
      if (!kept[head] || kept[head][i]) sum += weight;
    }
    return total > 0 ? sum / total : 1;
  }

  function paint(canvas, head) {
    const { shape, weights, masked, kept } = drawn;
    const size = shape.len;
    canvas.width = canvas.height = size;
    const [low, high, veil] = ["--map-low", "--map-high", "--veil"].map(colour);
    const image = new ImageData(size, size);
    for (let i = 0; i < size * size; i++) {
      const weight = weights[head * size * size + i];
      const level = masked[i] ? Math.max(0, 1 - Math.log(Math.max(weight, FLOOR)) / Math.log(FLOOR)) : 0;
      const lost = masked[i] && kept[head] && !kept[head][i];
      for (let c = 0; c < 3; c++) {
        const plain = low[c] + (high[c] - low[c]) * level;
        // What the pattern leaves out is tinted, more where more is lost.
        image.data[4 * i + c] = lost ? plain + (veil[c] - plain) * (0.22 + 0.5 * level) : plain;
      }
      image.data[4 * i + 3] = masked[i] ? 255 : 60;
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  function point(canvas, head, query, key) {
    const { shape, weights, masked, kept } = drawn;
    const index = query * shape.len + key;
    const weight = weights[head * shape.len ** 2 + index];
    const state = !masked[index] ? "masked" : kept[head] && !kept[head][index] ? "left out by the pattern" : "kept";
    $("#hover").textContent = `Head ${head}, query ${query}, key ${key}: weight ${weight.toPrecision(3)}, ${state}`;
    Object.assign(canvas.dataset, { query, key });
  }

  function map(head) {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Weights of head ${head}: queries down, keys across`);
    canvas.addEventListener("pointermove", ({ offsetX, offsetY }) => {
      const cell = (offset, whole) => Math.min(drawn.shape.len - 1, Math.max(0, Math.floor((offset / whole) * drawn.shape.len)));
      point(canvas, head, cell(offsetY, canvas.clientHeight), cell(offsetX, canvas.clientWidth));
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const by = event.shiftKey ? 16 : 1;
      const move = (from, by) => Math.min(drawn.shape.len - 1, Math.max(0, Number(from ?? 0) + by));
      point(canvas, head, move(canvas.dataset.query, by * step[0]), move(canvas.dataset.key, by * step[1]));
    });
    const caption = document.createElement("figcaption");
    const share = document.createElement("span");
    share.textContent = drawn.sparse ? `${(100 * covered(head)).toFixed(1)} % covered` : "";
    caption.append(`head ${head}`, share);
    figure.append(canvas, caption);
    paint(canvas, head);
    return figure;
  }

  function show() {
    const { shape, density, error, checks, sparse } = drawn;
    $("#heads").replaceChildren(...Array.from({ length: shape.heads }, (_, head) => map(head)));
    const shares = Array.from({ length: shape.heads }, (_, head) => covered(head));
    const mean = shares.reduce((a, b) => a + b, 0) / shares.length;
    const right = checks.every(({ ok }) => ok);
    const numbers = [
      ["Pairs visited", sparse ? `${(100 * density).toFixed(1)} %` : "all"],
      ["Covered mass", `${(100 * mean).toFixed(2)} %`],
      ["Output error", error.toExponential(2)],
      ["Against the f64 reference", right ? "right" : "wrong"],
    ];
    $("#see-numbers").replaceChildren(
      ...numbers.map(([name, value]) => {
        const group = document.createElement("div");
        const [term, number] = [document.createElement("dt"), document.createElement("dd")];
        [term.textContent, number.textContent] = [name, value];
        group.append(term, number);
        return group;
      }),
    );
    $("#see").dataset.drawn = String(Number($("#see").dataset.drawn ?? 0) + 1);
  }

  function complain(error) {
    const field = form.elements.mask;
    field.setAttribute("aria-invalid", String(error?.name === "MaskSyntaxError"));
    let text = error?.message ?? "";
    if (error?.column) {
      text = `${field.value}\n${" ".repeat(error.column - 1)}^\n${text}`;
      field.setSelectionRange(error.column - 1, field.value.length);
    }
    $("#mask-error").textContent = text;
  }

  function redraw() {
    working = working.then(async () => {
      if (!app.context) return;
      form.querySelector("[type=submit]").disabled = true;
      try {
        if (!problem) {
          const response = await fetch(new URL("../sample.safetensors", import.meta.url));
          await load(await response.arrayBuffer(), "SmolLM2-135M reading a licence text, layer 20");
        }
        await compute();
        complain(null);
        show();
      } catch (error) {
        complain(error);
      }
      form.querySelector("[type=submit]").disabled = false;
    });
    return working;
  }

  const fit = () => {
    const chosen = form.elements.pattern.value;
    for (const label of form.querySelectorAll("[data-for]")) label.hidden = !label.dataset.for.split(" ").includes(chosen);
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    redraw();
  });
  form.elements.pattern.addEventListener("change", () => {
    fit();
    redraw();
  });
  form.elements.file.addEventListener("change", async () => {
    const [file] = form.elements.file.files;
    if (!file) return;
    try {
      await load(await file.arrayBuffer(), file.name);
      await redraw();
    } catch (error) {
      complain(error);
    }
  });
  document.addEventListener("view", ({ detail }) => detail === "see" && !drawn && redraw());
  document.addEventListener("device-ready", () => !$("#see").hidden && redraw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn && show());
  fit();
}
