// Time against length, both logarithmic, drawn anew as numbers come in.

const NS = "http://www.w3.org/2000/svg";
const FRAME = { left: 62, right: 18, top: 18, bottom: 46, width: 640, height: 400 };

function element(name, attributes, text) {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** `1 ms`, `20 s`, `500 µs`. */
export function time(ms) {
  const [value, unit] = ms < 1 ? [ms * 1000, "µs"] : ms < 1000 ? [ms, "ms"] : [ms / 1000, "s"];
  return `${Number(value.toPrecision(3))} ${unit}`;
}

/** Draws `rows` of `{ family, length, ms }`; the axes cover `lengths` from the start. */
export function draw(svg, rows, lengths, names) {
  svg.replaceChildren();
  const times = rows.map(({ ms }) => ms);
  const low = Math.floor(Math.log10(Math.min(...times, 1)));
  const high = Math.max(Math.ceil(Math.log10(Math.max(...times, 10))), low + 1);
  const [first, last] = [Math.log2(Math.min(...lengths)), Math.log2(Math.max(...lengths))];
  const span = Math.max(last - first, 1);
  const x = (length) => FRAME.left + 14 + ((Math.log2(length) - first) / span) * (FRAME.width - FRAME.left - FRAME.right - 28);
  const y = (ms) => FRAME.top + ((high - Math.log10(ms)) / (high - low)) * (FRAME.height - FRAME.top - FRAME.bottom);

  for (let power = low; power <= high; power++) {
    const at = y(10 ** power);
    svg.append(element("line", { class: "grid", x1: FRAME.left, x2: FRAME.width - FRAME.right, y1: at, y2: at }));
    svg.append(element("text", { x: FRAME.left - 8, y: at + 4, "text-anchor": "end" }, time(10 ** power)));
  }
  for (const length of lengths) {
    const at = x(length);
    svg.append(element("line", { class: "grid", x1: at, x2: at, y1: FRAME.top, y2: FRAME.height - FRAME.bottom }));
    svg.append(element("text", { x: at, y: FRAME.height - FRAME.bottom + 20, "text-anchor": "middle" }, length));
  }
  svg.append(element("text", { x: FRAME.width / 2 + 20, y: FRAME.height - 6, "text-anchor": "middle" }, "length (tokens)"));

  for (const [family, name] of Object.entries(names)) {
    const own = rows.filter((row) => row.family === family).sort((a, b) => a.length - b.length);
    if (own.length === 0) continue;
    const colour = `var(--${family})`;
    const points = own.map(({ length, ms }) => `${x(length)},${y(ms)}`).join(" ");
    svg.append(element("polyline", { points, style: `stroke:${colour}` }));
    for (const { length, ms } of own) {
      const mark = element("circle", { class: "mark", cx: x(length), cy: y(ms), r: 5.5, style: `fill:${colour}` });
      mark.append(element("title", {}, `${name}, ${length} tokens: ${time(ms)}`));
      svg.append(mark);
    }
  }
}
