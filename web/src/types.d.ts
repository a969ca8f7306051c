/** Element type of queries, keys, values and output; sums are f32 throughout. */
export type DType = "f32" | "f16" | "bf16";

/** `Float32Array` for f32; `Float16Array` where the browser has it, else the bits in a `Uint16Array`, for f16; bits for bf16. */
export type TypedArray = Float32Array | Uint16Array | (typeof globalThis extends { Float16Array: { prototype: infer T } } ? T : never);

/** Numbers on the host, rounded to the dtype where they are wider. */
export type TensorData = TypedArray;

/**
 * A tensor: numbers on the host, or a `Buffer` on the device of the same context. Arrays are copied before the call
 * returns. A `Buffer` is read when the kernel runs: do not write to it before the promise settles.
 */
export type Tensor = TensorData | Buffer;

/** `[batch, heads, len, dim]`, or the sizes by name; what is left out is as for the queries. */
export type Shape =
  | readonly number[]
  | {
      batch?: number;
      heads: number;
      /** Divides `heads`. */
      keyHeads?: number;
      valueHeads?: number;
      len: number;
      keyLen?: number;
      headDim: number;
      valueDim?: number;
    };

export interface ContextOptions {
  powerPreference?: "high-performance" | "low-power";
  /** Features not to ask for. */
  without?: ("subgroups" | "subgroups-f16" | "shader-f16" | "timestamp-query")[];
  /** Plans for a CPU as for a GPU: without `attention.rows`, and with kernels that take seconds longer to compile. */
  asGpu?: boolean;
}

interface Common {
  shape: Shape;
  /** That of `q` unless given; of a plan `"f32"`. */
  dtype?: DType;
  /** How tensors lie in memory; `"batch,heads,len,dim"` unless given. */
  layout?: "batch,heads,len,dim" | "batch,len,heads,dim";
  /** The factor of the dot products; `1/√headDim` in attention, 1 in linear attention. */
  scale?: number;
}

/** The keys that blocks of `blockQ` queries visit: rows of ascending first keys, in compressed sparse rows. */
export interface KeyList {
  offsets: Uint32Array | number[];
  entries: Uint32Array | number[];
  /** A multiple of 16. */
  blockQ: number;
  /** 16, 32, 64 or 128 keys to an entry; single keys where it is left out. */
  blockK?: number;
  perBatch?: boolean;
  heads?: "shared" | "key" | "query";
}

/**
 * A pattern such as `"sink(4) + window(1020)"`, `"strided(16)"`, `"dilated(64,4)"`, `"global(2)"`,
 * `"random(density=0.1, seed=7)"`, `"bigbird(window=3, global=2, random=3)"`; or a list.
 */
export type Sparse = string | { pattern: string; blockQ?: number; blockK?: number } | KeyList;

/**
 * An option that is unknown, or that has no effect beside the others, is an error: `keyLengths` needs `lengths` in the
 * mask, `sigmoidBias` the sigmoid. Arrays `[batch | 1, heads | 1, …]` take their shape from their length; a length that
 * fits one row a head and one row a batch entry alike is an error.
 */
export interface AttentionOptions extends Common {
  /** `"causal & (window(255,0) | sink(4))"`; words are joined by `&` and `|`. */
  mask?: string;
  /** Where the queries stand among the keys: at their end, at their start, or offsets per batch entry. */
  positions?: "bottom-right" | "top-left" | Int32Array | number[];
  softcap?: number;
  activation?: "softmax" | "sigmoid";
  /** `−ln keyLen` unless given. */
  sigmoidBias?: number;
  /** A bias per pair, `[batch | 1, heads | 1, len, keyLen]`. A plan takes note of its dtype and size. */
  bias?: Tensor;
  /** At most one of `lse`, `scores` and `blockSums`. */
  lse?: boolean;
  /** Hands out the scores instead, f32 `[batch, heads, len, keyLen]`. */
  scores?: "scaled" | "modified" | "masked" | "probabilities";
  /** Hands out the weights summed over blocks of `[queries, keys]`. */
  blockSums?: readonly [number, number];
  sparse?: Sparse;
  /** A kernel, instead of the first that supports the configuration. */
  variant?: "rows" | "subgroup" | "tiled" | "scores" | "block_sums";
  queryStarts?: Uint32Array | number[];
  keyStarts?: Uint32Array | number[];
  keyLengths?: Uint32Array | number[];
  queryRoles?: Uint32Array | number[];
  keyRoles?: Uint32Array | number[];
  roleTable?: Uint32Array | number[];
  treeBits?: Uint32Array | number[];
  /** 1 or 0 for each pair, `[batch | 1, heads | 1, len, keyLen]`. */
  denseMask?: Uint8Array | number[];
  alibiSlopes?: Float32Array | number[];
  keyBias?: Float32Array | number[];
  /** A logit per head that joins the softmax's sum and has no value. */
  sinks?: Float32Array | number[];
}

export interface AttentionTensors<T extends Tensor = Tensor> {
  /** `[batch, heads, len, headDim]`. */
  q: T;
  /** `[batch, keyHeads, keyLen, headDim]`. */
  k: T;
  /** `[batch, valueHeads, keyLen, valueDim]`. */
  v: T;
  bias?: T;
  /** Where the result goes; a new buffer or array unless given. */
  out?: Buffer;
  lseOut?: Buffer;
}

export type AttentionBuffers = AttentionTensors<Buffer>;

export type AttentionCall<T extends Tensor = Tensor> = Omit<AttentionOptions, "bias" | "sparse"> &
  AttentionTensors<T> & {
    /** A pattern, a list, or the share of blocks that an oracle chooses by all weights. */
    sparse?: Sparse | { oracle: number; blockQ?: number; blockK?: number };
  };

export type OracleCall = Omit<AttentionOptions, "bias" | "sparse" | "lse" | "scores" | "blockSums" | "variant"> &
  Pick<AttentionTensors, "q" | "k" | "v" | "bias"> & { density?: number; blockQ?: number; blockK?: number };

/** An option that is unknown, or that the rule does not use, is an error. */
export interface LinearOptions extends Common {
  rule?: "decay" | "gated" | "delta" | "gated-delta";
  /** Of the gated rules: whether gates are `[batch, keyHeads, len, 1]` or `[…, headDim]`. */
  gatePer?: "token" | "key-dim";
  featureMap?: "identity" | "silu" | "elu1" | "taylor2";
  /** The ε of the normaliser; none unless given. */
  normalize?: number;
  /** Of the rule `"decay"`: slopes ≥ 0 per key head, `λ = exp(−slope)`. */
  decay?: Float32Array | number[];
  /** Starts of packed documents, and the last one's end. */
  starts?: Uint32Array | number[];
  /** Tokens of a chunk; not with the variant `"recurrent"`. */
  chunk?: number;
  /** Hands out the state at the end as well, as a `state` to begin with does. */
  carry?: boolean;
  /** `columns` on a CPU's device alone. */
  variant?: "columns" | "chunked" | "recurrent";
}

export interface LinearTensors<T extends Tensor = Tensor> {
  q: T;
  k: T;
  v: T;
  /** Of the gated rules: logarithms of decay, at most 0. Arrays are checked, a `Buffer` is not. */
  gate?: T;
  /** Of the delta rules. */
  beta?: T;
  /** The state to begin with, f32; a `Buffer` is updated in place. A plan for it is made with `state: true`. */
  state?: T;
  /** Beside `state`, where there is `normalize`. */
  normalizer?: T;
  out?: Buffer;
}

export type LinearBuffers = LinearTensors<Buffer>;
export type LinearCall<T extends Tensor = Tensor> = LinearOptions & LinearTensors<T>;

/** What a comparison with the f64 reference found. */
export interface Check {
  /** Whether every row was judged and every number is within the bound. */
  ok: boolean;
  /** `"unjudged"`: nothing is beyond its bound, but in some rows no result could be. */
  verdict: "ok" | "unjudged" | "failed";
  /** Rows in which rounding in f32 may err by more than the result is large. */
  unjudged: number;
  maxAbs: number;
  /** What `maxAbs` may reach. */
  bound: number;
  relative: number;
  worstIndex: number;
}

/** Buffers in give a buffer out, arrays an array. */
type Given<T> = T extends Buffer ? Buffer : TypedArray;

export interface Context {
  /** Plans and computes. Plans are cached by shader, so that a second call of a kind compiles nothing. */
  attention<T extends Tensor>(options: AttentionCall<T> & { lse: true }): Promise<{ out: Given<T>; lse: Given<T> }>;
  attention<T extends Tensor>(options: AttentionCall<T>): Promise<Given<T>>;
  linear<T extends Tensor>(options: LinearCall<T> & ({ carry: true } | { state: T })): Promise<{ out: Given<T>; state: Given<T>; normalizer?: Given<T> }>;
  linear<T extends Tensor>(options: LinearCall<T>): Promise<Given<T>>;
}

export interface AttentionPlan {
  /** The one result; of a plan with `lse`, `{ out, lse }`. */
  run<T extends Tensor, R = Given<T>>(tensors: AttentionTensors<T>): Promise<R>;
}

export interface LinearPlan {
  /** The one result; of a plan that carries a state, `{ out, state, normalizer? }`. */
  run<T extends Tensor, R = Given<T>>(tensors: LinearTensors<T>): Promise<R>;
}
