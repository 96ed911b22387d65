import { Attention, Encoding } from "./generated/sidelight/v1/attention.js";

export interface Numbers {
  shape: number[];
  /** In C order: the last axis varies fastest. */
  values: Float32Array;
}

/**
 * Decodes the numbers of an Attention message for every position. A position that was not sent is 0.
 *
 * @param axis The axis of the positions: 0 in a step, 1 in encoder self-attention.
 */
export function decode(message: Attention, axis: number, positions: number): Numbers {
  const { shape } = message;
  const size = shape.reduce((product, length) => product * length, 1);
  const read = reader(message, size);
  const sent = shape[axis] ?? 0;
  const isSparse = message.positions.length > 0;
  if (isSparse ? message.positions.length !== 4 * size : sent !== positions) {
    throw new Error(`attention of shape [${shape}] is not for ${positions} positions`);
  }
  const indices = view(message.positions);
  const scales = view(message.scales);
  // A place has an index before the axis, on the axis and after it: (before * sent + at) * inner + after.
  const inner = shape.slice(axis + 1).reduce((product, length) => product * length, 1);
  const whole = shape.map((length, index) => (index === axis ? positions : length));
  const values = new Float32Array(whole.reduce((product, length) => product * length, 1));
  for (let i = 0; i < size; i++) {
    const before = Math.floor(i / (sent * inner));
    const after = i % inner;
    const at = isSparse ? indices.getUint32(4 * i, true) : Math.floor(i / inner) % sent;
    if (at >= positions) {
      throw new Error(`position ${at} is out of range: there are ${positions}`);
    }
    // In bytes, each row has a scale: each index of the other axes.
    const isScaled = message.encoding === Encoding.ENCODING_UINT8;
    const scale = isScaled ? scales.getFloat32(4 * (before * inner + after), true) : 1;
    values[(before * positions + at) * inner + after] = read(i) * scale;
  }
  return { shape: whole, values };
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function reader(message: Attention, size: number): (index: number) => number {
  const data = view(message.values);
  const readers: { [encoding: number]: [number, (index: number) => number] } = {
    [Encoding.ENCODING_FLOAT32]: [4, (index) => data.getFloat32(4 * index, true)],
    [Encoding.ENCODING_FLOAT16]: [2, (index) => float16(data.getUint16(2 * index, true))],
    [Encoding.ENCODING_UINT8]: [1, (index) => data.getUint8(index)],
  };
  const found = readers[message.encoding];
  if (found === undefined || data.byteLength !== size * found[0]) {
    throw new Error(`${data.byteLength} bytes of encoding ${message.encoding} do not fill a shape of [${message.shape}]`);
  }
  return found[1];
}

/** Reads an IEEE 754 binary16. (Node has DataView.getFloat16 from version 24.) */
function float16(bits: number): number {
  const sign = bits >> 15 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) {
    return fraction ? NaN : sign * Infinity;
  }
  return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
}
