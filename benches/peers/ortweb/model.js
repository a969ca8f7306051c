// An ONNX model of one node, com.microsoft's MultiHeadAttention, written as protobuf by hand: no package makes
// models in a browser.

const utf8 = new TextEncoder();

function varint(value) {
  const bytes = [];
  for (let rest = value; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return [...bytes, rest];
    bytes.push((rest % 128) | 128);
  }
}

/** A field: a number, a text, or a message as the list of its own fields. */
function field(number, value) {
  if (typeof value === "number") return [...varint(number * 8), ...varint(value)];
  const bytes = typeof value === "string" ? [...utf8.encode(value)] : value.flat();
  return [...varint(number * 8 + 2), ...varint(bytes.length), ...bytes];
}

const FLOAT = 1;
const INT = 2;

/** A tensor's name and type, its shape left open. */
function info(name) {
  const dimension = (axis) => field(1, [field(2, `${name}${axis}`)]);
  return [field(1, name), field(2, [field(1, [field(1, FLOAT), field(2, [0, 1, 2].map(dimension))])])];
}

/** The bytes of the model; inputs `[batch, len, heads · dim]`. */
export function multiHeadAttention(heads) {
  const attribute = [field(1, "num_heads"), field(3, heads), field(20, INT)];
  const inputs = ["q", "k", "v"];
  const node = [...inputs.map((name) => field(1, name)), field(2, "out"), field(4, "MultiHeadAttention"), field(5, attribute), field(7, "com.microsoft")];
  const graph = [field(1, node), field(2, "peer"), ...inputs.map((name) => field(11, info(name))), field(12, info("out"))];
  const opset = (domain, version) => field(8, [field(1, domain), field(2, version)]);
  return Uint8Array.from([field(1, 8), field(7, graph), opset("", 17), opset("com.microsoft", 1)].flat());
}
