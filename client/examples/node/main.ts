/**
 * Calls a Sidelight server in each of the ways that the contract has, with code that ts-proto generates and grpc-js.
 *
 *     node build/main.js stream TEXT      the target, and where each token looks, as soon as the token exists
 *     node build/main.js deadline TEXT    a call that takes longer than its deadline
 *     node build/main.js cancel TEXT      a call that the client cancels
 *     node build/main.js error TEXT       a wrong request: the status, its reason and the field
 *     node build/main.js many TEXT...     many texts on one stream
 *     node build/main.js align HTML       a translation that keeps the markup, and the links of its words
 *     node build/main.js vectors FOLDER   decodes the golden vectors
 */
import { ClientReadableStream, Metadata, status } from "@grpc/grpc-js";
import { decode } from "./attention.js";
import { connect } from "./connect.js";
import { describe } from "./errors.js";
import { AttentionKind, Capture, Reduction } from "./generated/sidelight/v1/attention.js";
import {
  AlignRequest,
  AlignResponse,
  AttributeManyRequest,
  AttributeManyResponse,
  AttributeRequest,
  AttributeResponse,
  AttributionServiceClient,
  Link,
  LinkOptions,
  MarkupFormat,
  Span,
} from "./generated/sidelight/v1/attribution_service.js";
import { Decoding, OffsetUnit, Text, Token } from "./generated/sidelight/v1/text.js";
import { checkVectors } from "./vectors.js";

const inSeconds = (seconds: number) => ({ deadline: Date.now() + 1000 * seconds });
const plain = (text: string) => Text.fromPartial({ kind: { $case: "text", text } });

/** Prints each token with the source token that it looks at most, and the links of the words at the end. */
async function stream(client: AttributionServiceClient, text: string): Promise<void> {
  const request = AttributeRequest.fromPartial({
    source: plain(text),
    capture: {
      kinds: [AttentionKind.ATTENTION_KIND_CROSS],
      heads: { selection: { $case: "preset", preset: "alignment" } },
      overHeads: Reduction.REDUCTION_MEAN,
    },
    linkOptions: {},
    offsetUnit: OffsetUnit.OFFSET_UNIT_UTF16, // a string of JavaScript is code units of UTF-16
  });
  let source: Token[] = [];
  const call: AsyncIterable<AttributeResponse> = client.attribute(request, new Metadata(), inSeconds(60));
  for await (const { event } of call) {
    if (event?.$case === "started") {
      source = event.started.source;
    } else if (event?.$case === "steps") {
      for (const step of event.steps.steps) {
        const { values } = decode(step.cross!, 0, source.length);
        const greatest = values.indexOf(Math.max(...values));
        const value = values[greatest].toFixed(2);
        console.log(`${step.index} ${show(step.token!)} <- ${show(source[greatest])} ${value}`);
      }
    } else if (event?.$case === "finished") {
      console.log(event.finished.text);
      printLinks(event.finished.alignment!);
    }
  }
}

/** Returns the characters of a token, or the name of a special token, which has no characters. */
function show(token: Token): string {
  return token.text || token.piece;
}

function printLinks({ source, target, links }: { source: Span[]; target: Span[]; links: Link[] }): void {
  for (const link of links) {
    console.log(`${target[link.target].text} <- ${source[link.source].text} ${link.score.toFixed(2)}`);
  }
}

/** A request that takes a while: the end of the sentence does not end it. */
function long(text: string): AttributeRequest {
  const decoding = Decoding.fromPartial({ maxNewTokens: 200, ignoreEos: true });
  return AttributeRequest.fromPartial({ source: plain(text), target: { $case: "decoding", decoding } });
}

/** Reads a call to its end, with a callback for each number of new steps. Returns the code with which the call ends. */
async function endOf(call: ClientReadableStream<AttributeResponse>, onSteps = (_: number) => {}): Promise<string> {
  try {
    for await (const { event } of call as AsyncIterable<AttributeResponse>) {
      onSteps(event?.$case === "steps" ? event.steps.steps.length : 0);
    }
    return "OK";
  } catch (error) {
    return describe(error).split(" ")[0];
  }
}

async function deadline(client: AttributionServiceClient, text: string): Promise<void> {
  console.log(await endOf(client.attribute(long(text), new Metadata(), inSeconds(0.02))));
}

/** Cancels a request after three steps. The server ends it, and frees its place in the batch. */
async function cancel(client: AttributionServiceClient, text: string): Promise<void> {
  const call = client.attribute(long(text));
  let steps = 0;
  console.log(await endOf(call, (count) => (steps += count) >= 3 && call.cancel()));
}

/** Asks for a layer that no model has. */
async function wrongRequest(client: AttributionServiceClient, text: string): Promise<void> {
  const heads = { selection: { $case: "layers" as const, layers: { layers: [0, 1000] } } };
  const call = client.attribute(AttributeRequest.fromPartial({ source: plain(text), capture: { heads } }));
  try {
    for await (const _ of call) throw new Error("the request should be refused");
  } catch (error) {
    console.log(describe(error));
  }
}

/** Sends texts over one stream, and prints the results in the order of the texts. */
async function many(client: AttributionServiceClient, ...texts: string[]): Promise<void> {
  const call = client.attributeMany(new Metadata(), inSeconds(60));
  const send = async () => {
    for (const [number, text] of texts.entries()) {
      const attribute = AttributeRequest.fromPartial({
        requestId: String(number), source: plain(text), capture: Capture.fromPartial({ none: true }),
      });
      const request = AttributeManyRequest.fromPartial({ event: { $case: "attribute", attribute } });
      // The server reads no more texts while it has enough to do.
      if (!call.write(request)) await new Promise((resolve) => call.once("drain", resolve));
    }
    call.end();
  };
  void send();
  const results = new Map<string, string>();
  for await (const response of call as AsyncIterable<AttributeManyResponse>) {
    const responses = response.event?.$case === "batch" ? response.event.batch.responses : [response];
    for (const { requestId, event } of responses) {
      if (event?.$case === "response" && event.response.event?.$case === "finished") {
        results.set(requestId, event.response.event.finished.text);
      } else if (event?.$case === "error") {
        results.set(requestId, `${status[event.error.code]} ${event.error.reason} ${event.error.message}`);
      }
    }
  }
  texts.forEach((_, number) => console.log(number, results.get(String(number))));
}

/** Translates HTML, and prints the translation with its markup and the links of the words. */
async function align(client: AttributionServiceClient, html: string): Promise<void> {
  const markup = { format: MarkupFormat.MARKUP_FORMAT_HTML };
  const request = AlignRequest.fromPartial({ source: plain(html), markup });
  const response = await new Promise<AlignResponse>((resolve, reject) => {
    client.align(request, new Metadata(), inSeconds(60), (error, value) => (error ? reject(error) : resolve(value)));
  });
  console.log(response.markedTargetText);
  printLinks(response);
}

const COMMANDS: { [name: string]: (client: AttributionServiceClient, ...texts: string[]) => Promise<void> } = {
  stream: (client, text) => stream(client, text),
  deadline: (client, text) => deadline(client, text),
  cancel: (client, text) => cancel(client, text),
  error: (client, text) => wrongRequest(client, text),
  many,
  align: (client, text) => align(client, text),
};

async function main(): Promise<void> {
  const [command, ...words] = process.argv.slice(2);
  if (command === "vectors") {
    checkVectors(words[0]);
    return;
  }
  const run = COMMANDS[command];
  if (run === undefined || words.length === 0) {
    throw new Error("usage: main.js stream|deadline|cancel|error|many|align|vectors ARGUMENT...");
  }
  const client = connect();
  try {
    await run(client, ...words);
  } finally {
    client.close();
  }
}

main().catch((error: unknown) => {
  console.error(describe(error));
  process.exitCode = 1;
});
