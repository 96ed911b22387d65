// The attention of one stream: its tokens, its rows, and rows reduced over the heads that are picked.

// How numbers become one, as the contract defines it: [begin, add(sum, number, weight), end(sum, weights)].
const REDUCTIONS = {
  mean: [0, (sum, v, w) => sum + v * w, (sum, weights) => sum / weights],
  max: [-Infinity, (sum, v) => Math.max(sum, v), (sum) => sum],
  min: [Infinity, (sum, v) => Math.min(sum, v), (sum) => sum],
  sum: [0, (sum, v, w) => sum + v * w, (sum) => sum],
  prod: [1, (sum, v) => sum * v, (sum) => sum],
  absmax: [0, (sum, v) => (Math.abs(v) > Math.abs(sum) ? v : sum), (sum) => sum],
  l2: [0, (sum, v) => sum + v * v, (sum) => Math.sqrt(sum)],
};
export const REDUCTION_NAMES = Object.keys(REDUCTIONS);

export class Attention {
  // `started` is the message that begins a stream; `kind` is the kind of attention that is shown.
  constructor(started, kind) {
    this.started = started;
    this.kind = kind;
    this.layout = started.layouts[kind];
    this.source = started.source;
    this.steps = []; // {token, text, probability}
    this.tokens = []; // of the steps
    this.rows = []; // of encoder self-attention only: the queries are the source
    this.cache = [];
    this.picked = { heads: null, reduction: "mean" };
    this.heads = this.layout ? listHeads(this.layout) : [];
    this.most = 0;
    this.alignment = null;
  }

  get isSelf() {
    return this.kind === "encoder_self";
  }

  // What the columns stand for.
  columns() {
    if (this.kind !== "decoder_self") return this.source;
    const prompt = this.started.encoderDecoder ? [] : this.source;
    return [...prompt, ...this.started.prefix, ...this.tokens];
  }

  // What the lines stand for.
  lines() {
    return this.isSelf ? this.source : this.tokens;
  }

  get length() {
    return this.isSelf ? this.rows.length : this.steps.length;
  }

  add(message) {
    const { token, joined, text, scores } = message;
    this.steps.push({ token: { ...token, joined }, text, probability: scores.probability });
    this.tokens.push(this.steps.at(-1).token);
    if (!this.isSelf) this.rows.push(message.values[this.kind] ?? null);
  }

  addMatrix(message) {
    const values = message.values[this.kind], [queries] = message.arrays[0].shape, size = values.length / queries;
    for (let query = 0; query < queries; query++) this.rows.push(values.subarray(query * size, (query + 1) * size));
  }

  // The source has grown: rows keep what they have seen. Special tokens at the end of the source stay at its end.
  grow(started) {
    const before = this.source, after = started.source, count = this.heads.length;
    let ending = 0;
    while (ending < before.length && before.at(-1 - ending).special) ending++;
    const stay = (before.length - ending) * count;
    if (this.kind === "cross")
      this.rows = this.rows.map((values) => {
        const grown = new Float32Array(after.length * count);
        grown.set(values.subarray(0, stay));
        grown.set(values.subarray(stay), grown.length - ending * count);
        return grown;
      });
    this.started = started;
    this.source = after;
    this.cache = [];
  }

  // Chooses the heads (indices in `heads`; null: all) and how they become one. Rows are computed when they are asked for.
  pick(heads, reduction) {
    this.picked = { heads, reduction };
    this.cache = [];
    this.most = 0;
  }

  // One line of the heatmap, a number for each position that it has seen.
  row(index) {
    if (!this.cache[index]) {
      const values = this.rows[index];
      this.cache[index] = values ? this.reduce(values) : new Float32Array(0);
      for (const value of this.cache[index]) if (value > this.most) this.most = value;
    }
    return this.cache[index];
  }

  // One line of one head.
  headRow(index, head) {
    const values = this.rows[index];
    if (!values) return new Float32Array(0);
    const count = this.heads.length, row = new Float32Array(values.length / count);
    for (let position = 0; position < row.length; position++) row[position] = values[position * count + head];
    return row;
  }

  reduce(values) {
    const count = this.heads.length, row = new Float32Array(values.length / count);
    const { heads, reduction } = this.picked, [begin, add, end] = REDUCTIONS[reduction];
    const chosen = heads ?? this.heads.keys();
    const listed = [...chosen].filter((head) => head < count);
    if (!listed.length) return row;
    const weights = listed.map((head) => this.heads[head].weight), whole = weights.reduce((a, b) => a + b, 0);
    for (let position = 0; position < row.length; position++) {
      let sum = begin;
      for (let i = 0; i < listed.length; i++) sum = add(sum, values[position * count + listed[i]], weights[i]);
      row[position] = end(sum, whole);
    }
    return row;
  }

  // The groups of neighbouring tokens that are one word: [[0], [1, 2], ...].
  static words(tokens) {
    const words = [];
    tokens.forEach((token, index) => (token.joined && index ? words.at(-1).push(index) : words.push([index])));
    return words;
  }

  // The mean row of the steps of a word.
  wordRow(lines) {
    const rows = lines.map((line) => this.row(line)), longest = Math.max(0, ...rows.map((row) => row.length));
    const mean = new Float32Array(longest);
    for (const row of rows) row.forEach((value, position) => (mean[position] += value / rows.length));
    return mean;
  }
}

// The heads of a layout, in the order of the numbers of a position: [{layer, head, weight, label}].
function listHeads(layout) {
  if (layout.axes.includes("pair"))
    return layout.pairs.map(([layer, head], i) => named(layer, head, layout.weights[i] ?? 1));
  if (!layout.axes.includes("layer")) return [{ layer: null, head: null, weight: 1, label: "all" }];
  if (!layout.axes.includes("head")) return layout.layers.map((layer) => named(layer, null, 1));
  return layout.layers.flatMap((layer) => [...Array(layout.heads).keys()].map((head) => named(layer, head, 1)));
}

function named(layer, head, weight) {
  return { layer, head, weight, label: head === null ? `layer ${layer}` : `layer ${layer}, head ${head}` };
}
