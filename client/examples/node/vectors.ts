import { readFileSync } from "node:fs";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { decode } from "./attention.js";
import { describeStatus } from "./errors.js";
import { Status } from "./generated/google/rpc/status.js";
import { Attention } from "./generated/sidelight/v1/attention.js";
import { AlignResponse, AttributionServiceService, Finished, Started } from "./generated/sidelight/v1/attribution_service.js";
import { OffsetUnit } from "./generated/sidelight/v1/text.js";

/** What the JSON file of a golden vector has beside the bytes. */
interface Vector {
  method: string;
  status: { code: number; details: { reason?: string; fieldViolations?: { field: string; description: string }[] }[] } | null;
  requests: unknown[];
  responses: unknown[];
  arrays: { path: string; positionsAxis: number; shape: number[]; values: number[] }[];
}

interface Codec {
  serialize: (message: any) => Buffer;
  deserialize: (bytes: Buffer) => object;
}

/** Decodes all golden vectors, and compares them with their arrays and their texts. */
export function checkVectors(folder: string): void {
  const names: string[] = JSON.parse(readFileSync(join(folder, "index.json"), "utf8"));
  const total = { messages: 0, arrays: 0, texts: 0 };
  for (const name of names) {
    const path = join(folder, name);
    const vector: Vector = JSON.parse(readFileSync(`${path}.json`, "utf8"));
    const key = vector.method[0].toLowerCase() + vector.method.slice(1);
    const method = AttributionServiceService[key as keyof typeof AttributionServiceService];
    const { requestSerialize, requestDeserialize, responseSerialize, responseDeserialize } = method;
    const requests = read(`${path}.requests.bin`, { serialize: requestSerialize, deserialize: requestDeserialize });
    const responses = read(`${path}.responses.bin`, { serialize: responseSerialize, deserialize: responseDeserialize });
    expect(requests.length, vector.requests.length, `${name}: number of requests`);
    expect(responses.length, vector.responses.length, `${name}: number of responses`);
    total.messages += requests.length + responses.length;
    if (vector.status !== null) {
      const decoded = Status.decode(readFileSync(`${path}.status.bin`));
      const { code, details } = vector.status;
      const words = details.flatMap(({ reason, fieldViolations }) => [
        ...(reason ? [reason] : []),
        ...(fieldViolations ?? []).map(({ field, description }) => `${field}: ${description}`),
      ]);
      expect(describeStatus(decoded), [status[code], ...words].join(" "), `${name}: status`);
      total.messages++;
    }
    const parts = responses.flatMap((response) => [...walk(response)]);
    compareArrays(parts.filter(isAttention), vector, name);
    total.arrays += vector.arrays.length;
    total.texts += compareTexts(parts, name);
  }
  const { messages, arrays, texts } = total;
  console.log(`${names.length} vectors, ${messages} messages, ${arrays} arrays, ${texts} texts at their offsets`);
}

/** Reads messages as gRPC sends them: a byte 0, four bytes of length, and the message. */
function read(path: string, { serialize, deserialize }: Codec): object[] {
  const messages: object[] = [];
  for (let data = readFileSync(path); data.length > 0; ) {
    const end = 5 + data.readUInt32BE(1);
    const bytes = data.subarray(5, end);
    const message = deserialize(bytes);
    // The bytes are as many when the message is written again, perhaps in another order: no field is unknown.
    expect(serialize(message).length, bytes.length, `${path}: bytes of message ${messages.length}`);
    messages.push(message);
    data = data.subarray(end);
  }
  return messages;
}

/** A message and all messages in it, in the order of the fields. */
function* walk(value: unknown): Generator<object> {
  if (typeof value === "object" && value !== null && !(value instanceof Uint8Array)) {
    if (!Array.isArray(value)) yield value;
    for (const part of Object.values(value)) yield* walk(part);
  }
}

const isAttention = (part: object): part is Attention => "specialShares" in part;
const isStarted = (part: object): part is Started => "sourceUnits" in part;
const isFinished = (part: object): part is Finished => "hypotheses" in part;
const isAlignment = (part: object): part is AlignResponse => "markedTargetText" in part;

function compareArrays(found: Attention[], vector: Vector, name: string): void {
  expect(found.length, vector.arrays.length, `${name}: number of arrays`);
  vector.arrays.forEach(({ path, positionsAxis, shape, values }, index) => {
    const numbers = decode(found[index], positionsAxis, shape[positionsAxis]);
    expect(String(numbers.shape), String(shape), `${name}: shape of ${path}`);
    expect(String(numbers.values), String(Float32Array.from(values)), `${name}: ${path}`);
  });
}

/** Compares each text of a token or a span with the characters at its offsets. Returns how many there are. */
function compareTexts(parts: object[], name: string): number {
  let unit = OffsetUnit.OFFSET_UNIT_CODE_POINT;
  let count = 0;
  const compare = (whole: string, spans: { begin: number; end: number; text: string }[]) => {
    for (const { begin, end, text } of spans) expect(cut(whole, begin, end, unit), text, `${name}: text`);
    count += spans.length;
  };
  for (const part of parts) {
    if (isStarted(part)) {
      unit = part.offsetUnit;
      compare(part.sourceText, [...part.source, ...part.sourceUnits]);
    } else if (isFinished(part)) {
      compare(part.text, part.alignment?.target ?? []);
    } else if (isAlignment(part)) {
      unit = part.offsetUnit;
      compare(part.sourceText, part.source);
      compare(part.targetText, part.target);
    }
  }
  return count;
}

/** The part of a text between two offsets. */
function cut(text: string, begin: number, end: number, unit: OffsetUnit): string {
  if (unit === OffsetUnit.OFFSET_UNIT_UTF16) return text.slice(begin, end);
  if (unit === OffsetUnit.OFFSET_UNIT_UTF8) return Buffer.from(text).subarray(begin, end).toString();
  return [...text].slice(begin, end).join("");
}

function expect(found: unknown, expected: unknown, where: string): void {
  if (found !== expected) throw new Error(`${where}: ${found}, not ${expected}`);
}
