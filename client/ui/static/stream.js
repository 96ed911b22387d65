// One stream: a WebSocket to the page's own server. Closing it cancels the request.

// All numbers of float16, by their bits: a table is the quickest way to read them in every browser.
const FLOAT16 = (() => {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 31) table[bits] = fraction ? NaN : sign * 65504;
    else table[bits] = exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
  }
  return table;
})();

const utf8 = new TextDecoder();

// Reads a binary message: its JSON, and its arrays by kind.
function decode(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const message = JSON.parse(utf8.decode(new Uint8Array(buffer, 4, length)));
  let offset = 4 + length;
  message.values = {};
  for (const { kind, shape } of message.arrays) {
    const size = shape.reduce((a, b) => a * b, 1), bits = new Uint16Array(buffer, offset, size);
    const numbers = new Float32Array(size);
    for (let i = 0; i < size; i++) numbers[i] = FLOAT16[bits[i]];
    message.values[kind] = numbers;
    offset += 2 * size;
  }
  return message;
}

// Opens a stream. `handle(message)` is called for each message; the last one is "finished", "alignment" or "error".
export function openStream(start, handle) {
  const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/stream`);
  socket.binaryType = "arraybuffer";
  let open = true;
  const waiting = [];
  const end = (message) => {
    if (!open) return;
    open = false;
    socket.close();
    handle(message);
  };
  socket.onopen = () => {
    socket.send(JSON.stringify(start));
    for (const message of waiting.splice(0)) socket.send(message);
  };
  socket.onmessage = ({ data }) => {
    if (!open) return;
    const message = typeof data === "string" ? JSON.parse(data) : decode(data);
    if (["finished", "alignment", "error"].includes(message.event)) end(message);
    else handle(message);
  };
  socket.onclose = () => end({ event: "error", field: "", message: "the connection to the page's own server is lost" });
  return {
    send(message) {
      const text = JSON.stringify(message);
      if (socket.readyState === WebSocket.OPEN) socket.send(text);
      else waiting.push(text);
    },
    close() {
      open = false;
      socket.close();
    },
    get isOpen() {
      return open;
    },
  };
}
