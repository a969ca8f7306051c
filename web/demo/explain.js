// Explain: each family in two sentences and its formula, with the shader that ran.

import { options, plan } from "./problem.js";

const $ = (selector) => document.querySelector(selector);

const row = (...parts) => `<mrow>${parts.join("")}</mrow>`;
const i = (name) => `<mi>${name}</mi>`;
const o = (sign) => `<mo>${sign}</mo>`;
const n = (number) => `<mn>${number}</mn>`;
const sub = (base, index) => `<msub>${base}${index}</msub>`;
const sup = (base, power) => `<msup>${base}${power}</msup>`;
const sum = (under) => `<munder>${o("∑")}${under}</munder>`;
const frac = (top, bottom) => `<mfrac>${row(top)}${row(bottom)}</mfrac>`;
const ij = row(i("i"), i("j"));
const [oI, qI, kJ, vJ] = [sub(i("o"), i("i")), sub(i("q"), i("i")), sub(i("k"), i("j")), sub(i("v"), i("j"))];
const score = row(sub(i("s"), ij), o("="), frac(row(qI, o("·"), kJ), `<msqrt>${i("d")}</msqrt>`));
const kept = row(i("j"), o("∈"), sub(i("M"), i("i")));
const exp = sup(i("e"), sub(i("s"), ij));

const FAMILIES = [
  {
    name: "flash",
    title: "Flash: exact softmax attention, tile by tile",
    text: "Tiles of queries walk tiles of keys, and each row keeps its maximum and its total so far, so that softmax needs no second pass and nothing of size length × length is ever stored. The mask decides first which tiles are walked at all, and only then which pairs count.",
    formula: row(oI, o("="), frac(row(sum(kept), exp, vJ), row(sum(kept), exp)), o(","), o("&emsp;"), score),
  },
  {
    name: "sigmoid",
    title: "Sigmoid: every pair weighs for itself",
    text: "Each score becomes a weight on its own, so that a row has nothing to normalise and no pair competes with another. The bias −ln N keeps the sum of N weights near one at the start of training (Ramapuram et al., 2024).",
    formula: row(oI, o("="), sum(kept), i("σ"), o("("), sub(i("s"), ij), o("−"), i("ln"), i("N"), o(")"), vJ),
  },
  {
    name: "sparse",
    title: "Block-sparse: a list of keys to visit",
    text: "Every block of queries has a list of blocks of keys, and only those are loaded: a pattern, a mask or an oracle makes the list. The kernel is the same as flash; what is not on the list costs nothing.",
    formula: row(oI, o("="), frac(row(sum(row(kept, o("∩"), sub(i("L"), row(o("⌊"), i("i"), o("/"), i("b"), o("⌋"))))), exp, vJ), row(sum(row(kept, o("∩"), sub(i("L"), row(o("⌊"), i("i"), o("/"), i("b"), o("⌋"))))), exp))),
  },
  {
    name: "lightning",
    title: "Lightning: a state instead of a list of keys",
    text: "What earlier tokens have to say is summed into a matrix per head that fades by λ with every token, so that time grows with length and not with its square. Chunks of tokens are computed side by side, and a scan passes the state on between them.",
    formula: row(sub(i("S"), i("i")), o("="), i("λ"), sub(i("S"), row(i("i"), o("−"), n(1))), o("+"), i("φ"), o("("), sub(i("k"), i("i")), o(")"), sup(sub(i("v"), i("i")), i("⊤")), o(","), o("&emsp;"), oI, o("="), sup(sub(i("S"), i("i")), i("⊤")), i("φ"), o("("), qI, o(")")),
  },
];

/** Wires the view. */
export function startExplain(app) {
  const dialog = $("#source");

  async function show({ name, title }) {
    let shader = app.shaders.get(name);
    let note = "The text that the device last compiled for this family, as composed from a header of constants and whole files.";
    try {
      if (!shader) {
        if (!app.context) throw new Error("There is no device to compile for; restart it first.");
        const setting = { length: 256, heads: 4, dim: 32, dtype: "f32", causal: true, density: 0.2 };
        const planned = await plan(name, app.context, options(name, app.attention, setting));
        shader = { label: planned.variant, wgsl: planned.wgsl };
        app.shaders.set(name, shader);
        planned.free();
        note = "Compiled just now, for 4 heads of 32 in f32; what Bench and See run next takes its place.";
      }
    } catch (error) {
      app.notice(error.message, !app.context);
      return;
    }
    $("#source-title").textContent = `${title.split(":")[0]}: ${shader.label}`;
    $("#source-note").textContent = `${note} ${shader.wgsl.split("\n").length} lines.`;
    dialog.querySelector("code").textContent = shader.wgsl;
    dialog.showModal();
  }

  $("#families").replaceChildren(
    ...FAMILIES.map((family) => {
      const article = document.createElement("article");
      article.className = "family";
      article.style.setProperty("--colour", `var(--${family.name})`);
      article.innerHTML = `<h2></h2><p></p><math display="block">${family.formula}</math><button type="button">Show the WGSL</button>`;
      article.querySelector("h2").textContent = family.title;
      article.querySelector("p").textContent = family.text;
      article.querySelector("button").addEventListener("click", () => show(family));
      article.querySelector("button").setAttribute("aria-label", `Show the WGSL of ${family.name}`);
      return article;
    }),
  );
  $("#source-close").addEventListener("click", () => dialog.close());
  $("#source-copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(dialog.querySelector("code").textContent);
    $("#source-note").textContent = "Copied.";
  });
}
